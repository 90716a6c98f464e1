"""MLflow's tables in an SQLite file: whole or not there, also where a search was killed while they were made."""

import sqlite3
from contextlib import closing

import pytest
from tracked import new_study, read, search

from optuna_nas.tracking import MLflowTracker
from optuna_nas.tracking import client as client_module

pytestmark = [
    pytest.mark.filterwarnings("ignore:Unnamed CHECK constraint"),  # of MLflow's steps, in Alembic
]


def halve(file):
    """Leave a file as a kill in the middle of MLflow's steps does: one table is missing, another is there too early."""
    with closing(sqlite3.connect(file)) as database:
        database.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")  # before others
        database.execute("DROP TABLE trace_info")
        database.commit()


def test_a_file_whose_tables_were_never_finished_is_set_aside_with_a_word(uri, database, tmp_path, caplog):
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as file:
        for table in ("metrics", "latest_metrics", "params", "tags", "input_tags", "inputs", "runs"):
            file.execute(f"DELETE FROM {table}")
        file.commit()
    halve(tmp_path / "mlflow.db")
    search(MLflowTracker(uri), new_study(), 1)
    assert len(read(uri).children) == 1
    assert "MLflow was ended while it made the tables of" in caplog.text
    assert len(list(tmp_path.glob("mlflow.db.unfinished-*"))) == 1


def test_a_file_that_holds_runs_is_left_alone(uri, tmp_path):
    halve(tmp_path / "mlflow.db")
    with pytest.raises(ConnectionError, match="table experiment_tags already exists") as raised:
        MLflowTracker(uri).start(new_study())
    assert "start a server" not in str(raised.value)
    assert not list(tmp_path.glob("mlflow.db.unfinished-*"))


def test_a_kill_while_the_tables_are_made_leaves_no_file_of_that_name(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def half(file):
        file.write_text("half")
        raise Killed

    uri = f"sqlite:///{tmp_path / 'new.db'}"
    with monkeypatch.context() as patch:
        patch.setattr(client_module, "_open_database", half)
        with pytest.raises(Killed):
            client_module.Client(uri).mlflow  # noqa: B018
    assert not (tmp_path / "new.db").exists() or (tmp_path / "new.db").stat().st_size == 0
    search(MLflowTracker(uri), new_study(), 1)
    assert len(read(uri).children) == 1
    assert not list(tmp_path.glob(".new.db*"))

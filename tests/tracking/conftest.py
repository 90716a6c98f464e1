"""MLflow databases, made once and copied; a search that is looked at from all sides."""

import io
import shutil
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import optuna
import pytest
from servers import MLflowServer
from tracked import new_study, read, search

from optuna_nas.tracking import DatasetInfo, MLflowTracker


class Database(NamedTuple):
    """An MLflow database with its tables, which take seconds to make; tests copy it."""

    path: Path
    said: str


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    folder = tmp_path_factory.mktemp("database")
    said = io.StringIO()
    tracker = MLflowTracker(f"sqlite:///{folder / 'mlflow.db'}", experiment="first")
    with redirect_stdout(said), redirect_stderr(said):
        study = new_study()
        tracker.start(study)
        tracker.finish(study)
    assert sorted(path.name for path in folder.iterdir()) == ["mlflow.db", "mlruns"]
    return Database(folder / "mlflow.db", said.getvalue())


@pytest.fixture(autouse=True)
def _environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture
def uri(tmp_path, database):
    shutil.copy(database.path, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture(scope="module")
def server(tmp_path_factory, database):
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(database.path, folder / "mlflow.db")
    server = MLflowServer(folder)
    yield server
    server.kill()


@pytest.fixture(scope="session")
def finished(tmp_path_factory, database):
    """A search of six trials, one pruned and one failed, in a time zone far from UTC."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copy(database.path, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TZ", "Asia/Kolkata")
        time.tzset()
        study = new_study(folder=folder)
        begun = time.time()
        search(
            MLflowTracker(uri),
            study,
            6,
            pruned={1},
            failed={2},
            start={
                "description": "Which cell is *best*?",
                "dataset": DatasetInfo("digits", "sklearn.datasets.load_digits", "d" * 64),
                "params": {"sampler": "RandomSampler", "trials": 6},
            },
            during=lambda trial: time.sleep(0.05),
        )
        times = {
            trial.number: (trial.datetime_start.timestamp(), trial.datetime_complete.timestamp())
            for trial in study.trials
        }
        assert all(begun <= start < end <= time.time() for start, end in times.values())
    time.tzset()
    return read(uri), study, times

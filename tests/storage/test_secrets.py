"""What a message says of a database that does not answer: no password, in whole or in pieces, and the way out."""

from types import SimpleNamespace

import pytest
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import OperationalError

from optuna_nas.cli.mlflow_server import mlflow_server
from optuna_nas.search.study_file import UsageError
from optuna_nas.storage.artifacts import artifact_store
from optuna_nas.storage.database import clear_errors, connect, shown_storage, without_password

SECRETS = ("se@cr/et", "hunter2", "p%40ss", "to:ken")


@pytest.mark.parametrize("secret", SECRETS)
def test_an_address_is_shown_without_its_secrets(secret):
    for address in (
        f"postgresql://me:{secret}@host/studies",
        f"postgresql+psycopg://me:{secret}@host/studies?sslmode=require",
        f"https://me:{secret}@host/studies",
        f"postgresql://host/studies?user=me&password={secret}",
    ):
        assert without_password(address).endswith("://host/studies")
    assert shown_storage(f"mysql://me:{secret}@host/db") == "mysql://host/db"


@pytest.mark.parametrize("secret", SECRETS)
def test_what_a_driver_says_of_an_address_is_shown_without_its_secrets(secret):
    address = f"postgresql://me:{secret}@no-such-host.invalid:1/studies"
    with pytest.raises(ConnectionError) as raised, clear_errors(address):
        connect(address)
    message = str(raised.value)
    for piece in (secret, "cr/et", "cr", "hunter2", "p%40ss", "p@ss"):
        if piece in secret:
            assert piece not in message.replace("secret", "").replace("address", "")
    if "@" in secret:
        assert "@ is written %40" in message


@pytest.mark.parametrize(
    ("said", "way_out"),
    [
        ("database or disk is full", "make room on its disk"),
        ("attempt to write a readonly database", "give `storage` a place that can be written"),
        ("unable to open database file", "start the database, or correct the address"),
    ],
)
def test_a_database_that_does_not_answer_is_told_with_its_way_out(said, way_out):
    with pytest.raises(ConnectionError, match=f"{said}.*; {way_out}"), clear_errors("sqlite:///study.db"):
        raise StorageInternalError("failed") from OperationalError("insert", {}, Exception(said))


def test_a_question_mark_in_a_password_hides_it_no_less():
    address = "postgresql://me:ab?hunter2@no-such-host.invalid:1/db"
    assert without_password(address) == "postgresql://no-such-host.invalid:1/db"
    with pytest.raises(ConnectionError) as raised:
        connect(address)
    assert "hunter2" not in str(raised.value)
    assert "? %3F" in str(raised.value)


def test_a_port_that_is_none_is_told_without_the_password():
    with pytest.raises(
        ConnectionError, match=r"`storage` must be the address .*'postgresql.*://host:port/db' is none"
    ) as raised:
        connect("postgresql://me:hunter2@host:port/db")
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("address", ["s3://KEY:hunter2@bucket/x", "https://me:hunter2@host/b", "gs://me:hunter2@b"])
def test_an_artifact_store_that_is_none_is_told_without_secrets(address):
    with pytest.raises(ValueError, match="`artifacts` must be a folder or s3://BUCKET") as raised:
        artifact_store(address)
    assert "hunter2" not in str(raised.value)


def test_the_servers_process_list_has_no_address(monkeypatch):
    started = []

    def start(words, env, **others):
        started.append((words, env))
        return SimpleNamespace(poll=lambda: 1, terminate=lambda: None)

    monkeypatch.setattr("subprocess.Popen", start)
    with (
        pytest.raises(UsageError, match="must be free for MLflow"),
        mlflow_server("postgresql://me:hunter2@host/db", 1),
    ):
        pytest.fail("there is no server")
    ((words, environment),) = started
    assert not any("hunter2" in word for word in words)
    assert environment["MLFLOW_BACKEND_STORE_URI"] == "postgresql://me:hunter2@host/db"

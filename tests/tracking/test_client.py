"""Addresses: those that can't be used are one sentence, new databases are made without a word."""

import shlex
import socket
import socketserver
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import optuna
import pytest
from servers import answering, free_port
from tracked import new_study, read

from optuna_nas.tracking import MLflowTracker, client


def test_a_new_database_is_made_without_a_word(database):
    assert database.said == ""


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://127.0.0.1:{port}", "does not answer"),
        ("http://127.0.0.1:nonsense", "does not answer"),
        ("http://", "does not answer"),
        ("postgresql://127.0.0.1:{port}/mlflow", "refused"),
        ("sqlite:////no/such/folder/mlflow.db", "unable to open"),
        ("sqlite:///{text}", "not a database"),
        ("localhost:5000", "neither a server nor a database"),
        ("file:///tmp/mlruns", "neither a server nor a database"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_clear_sentence(address, reason, tmp_path):
    (tmp_path / "text").write_text("This is not a database at all. " * 50)
    address = address.format(port=free_port(), text=tmp_path / "text")
    tracker, study = MLflowTracker(address), new_study()
    begun = time.monotonic()
    with pytest.raises(ConnectionError, match=reason) as raised:
        tracker.start(study)
    assert time.monotonic() - begun < 10
    message = str(raised.value)
    assert address in message
    assert "mlflow server" in message or "another `tracking_uri`" in message
    assert "\n" not in message
    tracker.epoch(0, 0, {"accuracy": 0.0})  # without MLflow a search goes on
    tracker.finish(study)


def test_a_server_that_listens_but_says_nothing_is_given_up_within_ten_seconds(monkeypatch):
    assert client.PROBE_SECONDS <= 5
    monkeypatch.setattr(client, "PROBE_SECONDS", 1)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        begun = time.monotonic()
        with pytest.raises(ConnectionError, match="does not answer"):
            MLflowTracker(f"http://127.0.0.1:{listener.getsockname()[1]}").start(new_study())
        assert time.monotonic() - begun < 6


def test_a_server_that_lets_nobody_in_is_one_sentence_at_the_start():
    def answer(path):
        return (200, "OK") if path == "/health" else (403, "forbidden")

    with answering(answer) as address, pytest.raises(ConnectionError, match="403"):
        MLflowTracker(address).start(optuna.create_study())


NOBODY = """
import os, pwd
del os.environ["HOME"]
def unknown(user): raise KeyError(user)
pwd.getpwuid = unknown
import optuna
from optuna_nas import MLflowTracker
tracker, study = MLflowTracker("sqlite:///mlflow.db"), optuna.create_study()
tracker.start(study)
study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1, callbacks=[tracker.trial_finished])
tracker.finish(study)
"""


@pytest.mark.process
def test_a_user_whom_the_system_does_not_know_has_a_mirror(tmp_path):
    done = subprocess.run([sys.executable, "-c", NOBODY], capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(read(f"sqlite:///{tmp_path / 'mlflow.db'}").children) == 1


@pytest.mark.parametrize(
    ("address", "file"),
    [
        ("sqlite:///{}/ml.db?timeout=60", "ml.db"),
        ("sqlite:///{}/a%20b.db", "a b.db"),
        ("sqlite:///{}/100%25.db", "100%.db"),
    ],
)
def test_the_address_of_a_database_is_taken_apart_as_mlflow_does(address, file, tmp_path):
    study = optuna.create_study()
    study.optimize(lambda trial: 1.0, n_trials=1)
    MLflowTracker(address.format(tmp_path)).rebuild(study)
    assert [path.name for path in tmp_path.glob("*.db*")] == [file]


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://me:hunter2@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:hun@ter/2@host/db", "postgresql://me:***@host/db"),
        ("postgresql://host/db?user=me&password=hunter2", "postgresql://host/db?user=me&password=***"),
        ("mysql+pymysql://host/db?passwd=hunter2&charset=utf8", "mysql+pymysql://host/db?passwd=***&charset=utf8"),
        ("sqlite:///runs/me:a@b.db", "sqlite:///runs/me:a@b.db"),
    ],
)
def test_a_command_that_is_shown_has_no_password(address, shown):
    tracker = MLflowTracker(address)
    tracker._mirror = SimpleNamespace(view_url="http://localhost")
    assert tracker.command.splitlines() == [f"mlflow ui --backend-store-uri {shlex.quote(shown)}", "http://localhost"]


REFUSAL = b'SFATAL\0C28P01\0Mpassword authentication failed for user "me"\0\0'


def test_a_wrong_password_of_a_database_is_told_at_its_first_refusal():
    connections = []

    class Refusing(socketserver.BaseRequestHandler):
        def handle(self):
            connections.append(self.client_address)
            while len(asked := self.request.recv(4096)) == 8:  # whether encryption is possible
                self.request.sendall(b"N")
            if asked:
                self.request.sendall(b"E" + (len(REFUSAL) + 4).to_bytes(4, "big") + REFUSAL)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            with pytest.raises(ConnectionError, match='password authentication failed for user "me"; ') as raised:
                MLflowTracker(f"postgresql+psycopg://me:hunter2@127.0.0.1:{server.server_address[1]}/db").start(
                    new_study()
                )
        finally:
            server.shutdown()
    assert len(connections) == 1
    assert "hunter2" not in str(raised.value)
    assert "another `tracking_uri`" in str(raised.value)


def test_a_database_that_listens_but_says_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr(client, "PROBE_SECONDS", 1)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(ConnectionError, match="connection timeout expired"):
            MLflowTracker(f"postgresql+psycopg://127.0.0.1:{listener.getsockname()[1]}/db").start(new_study())

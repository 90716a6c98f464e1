"""How `optuna-nas view` starts MLflow's server: few processes, no password among its arguments, a word to who waits."""

import subprocess
from contextlib import nullcontext

import pytest

from optuna_nas.cli import mlflow_server as module
from optuna_nas.search.study_file import UsageError

STORE = "postgresql://me:secret@host/mlflow"


class Server:
    """A process that is never started."""

    def __init__(self, words, env, **unused):
        self.words, self.environment, self.ended = words, env, False
        servers.append(self)

    def poll(self):
        return None

    def terminate(self):
        self.ended = True


servers: list[Server] = []


@pytest.fixture
def said(monkeypatch):
    """What the terminal shows while the server starts; no process is started."""
    lines = []
    servers.clear()
    monkeypatch.setattr(module.subprocess, "Popen", Server)
    monkeypatch.setattr(module.console, "status", lambda line: lines.append(line) or nullcontext())
    monkeypatch.delenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", raising=False)
    return lines


def test_the_server_has_one_worker_and_no_job_runner(said, monkeypatch):
    monkeypatch.setattr(module, "_answers", lambda *unused: True)
    with module.mlflow_server(STORE, 5007) as server:
        assert server is servers[0]
        assert server.words[server.words.index("--workers") + 1] == "1"
        assert server.words[server.words.index("--port") + 1] == "5007"
        assert server.environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
        assert server.environment["MLFLOW_BACKEND_STORE_URI"] == STORE
        assert not any("secret" in word for word in server.words)
    assert server.ended
    assert said == ["Waiting for the first answer of MLflow's server on port 5007, some seconds ..."]
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "true")
    with module.mlflow_server(STORE, 5007):
        assert servers[1].environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "true", "who wants jobs has them"


def test_a_server_that_does_not_answer_is_ended_and_named(said, monkeypatch):
    monkeypatch.setattr(module, "_answers", lambda *unused: False)
    with pytest.raises(UsageError, match="`--port` must be free for MLflow but it did not start on 5007"):
        module.mlflow_server(STORE, 5007).__enter__()
    assert servers[0].ended
    with module.mlflow_server(STORE, 5007, ends=[2]):
        pass  # Ctrl-C while it starts is no error
    assert servers[1].ended


def test_the_first_answer_is_awaited_until_a_signal():
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            assert not module._answers(process, 9, ends=[2])
        finally:
            process.kill()

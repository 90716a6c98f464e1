"""Local MLflow server of `optuna-nas view`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from optuna_nas.cli.console import console
from optuna_nas.search.study_file import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@contextmanager
def mlflow_server(store_uri: str, port: int, ends: Sequence[int] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """Run MLflow's server on a database inside the block, which begins once the server answers.

    Args:
        store_uri: URL of the database.
        port: Port of the server.
        ends: Received signals; with the first, the server is not waited for any longer.

    Raises:
        UsageError: The server does not start within a minute.
    """
    arguments = [sys.executable, "-m", "mlflow", "ui", "--port", str(port)]
    arguments += ["--workers", "1"]  # enough for one user; the default of four takes four times as long to start
    # Jobs are for evaluations of language models; their eight processes more than double the time to the first answer:
    # 14 CPU seconds became 5, in two processes. Whoever wants them sets the variable.
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ}
    environment["MLFLOW_BACKEND_STORE_URI"] = store_uri  # arguments, and with them a password, are shown to all users
    with tempfile.TemporaryFile() as log:  # an unread pipe would block the server
        server = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=log, env=environment)
        try:
            with console.status(f"Waiting for the first answer of MLflow's server on port {port}, some seconds ..."):
                runs = _answers(server, port, ends)
            if runs or ends:
                yield server
                return
        finally:
            server.terminate()
        log.seek(0)
        last = log.read().decode(errors="replace").strip().splitlines()[-1:]
    raise UsageError(f"`--port` must be free for MLflow but it did not start on {port} {last}; try another.")


def _answers(server: subprocess.Popen[bytes], port: int, ends: Sequence[int]) -> bool:
    """Wait for the first answer of a server; return False if it does not come within a minute, or before a signal."""
    for _ in range(600):
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
            return server.poll() is None
        if ends or server.poll() is not None:
            return False
        time.sleep(0.1)
    return False

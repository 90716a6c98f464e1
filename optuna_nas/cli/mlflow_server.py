"""A local MLflow server for `optuna-nas view`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

from optuna_nas.cli.console import console
from optuna_nas.search.study_file import UsageError


def start_mlflow(store_uri: str, port: int) -> subprocess.Popen[bytes]:
    """Start MLflow's server on a database and wait until it answers."""
    arguments = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store_uri, "--port", str(port)]
    arguments += ["--workers", "1"]  # one person looks; four would take four times as long to start
    said = tempfile.TemporaryFile()  # noqa: SIM115 # the server's own; a pipe that nobody reads would stop it
    server = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=said)
    with console.status("Starting MLflow ..."):
        for _ in range(600):
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                if server.poll() is None:
                    return server
            if server.poll() is not None:
                break
            time.sleep(0.1)
    server.terminate()
    said.seek(0)
    last = said.read().decode(errors="replace").strip().splitlines()[-1:]
    raise UsageError(f"`--port` must be free for MLflow but it did not start on {port} {last}; try another.")


def program() -> str:
    """Return how to call this program again: by its path where it is not on the search path (`make study`)."""
    called = Path(sys.argv[0])
    return str(called) if called.name == "optuna-nas" and shutil.which(called.name) is None else "optuna-nas"

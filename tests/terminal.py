"""The command line as tests call it: as a process, or in this process, which need not load PyTorch again."""

import logging
import subprocess
import sys
import time

import psutil
import pytest
from typer.testing import CliRunner

from optuna_nas.cli import app


def command(*arguments):
    """Return the words that start `optuna-nas`."""
    return [sys.executable, "-m", "optuna_nas.cli", *map(str, arguments)]


def start(*arguments):
    """Start a process; whoever starts it waits for it."""
    return subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def nas(*arguments):
    """Run a process to its end."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=120)


def here(*arguments):
    """Run a command in this process; signals and a clean start have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging, "basicConfig", lambda **unused: None)
        return CliRunner().invoke(app, list(map(str, arguments)), prog_name="optuna-nas")


def wait_for(condition, seconds=150):
    """Wait until a condition holds; where it raises, it does not hold yet."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if condition():
                return
        except Exception:  # the study is not there yet
            pass
        time.sleep(0.05)
    pytest.fail("waited in vain")


def workers_of(process):
    """Return the worker processes of `optuna-nas run --workers`."""
    below = psutil.Process(process.pid).children(recursive=True)
    servers = [child for child in below if "forkserver" in " ".join(child.cmdline())]
    return [child for child in servers if child.ppid() in {other.pid for other in servers}]

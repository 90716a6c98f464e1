"""Versions of packages and the commit of the user's code."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("optuna_nas", "optuna", "torch", "torchvision", "mlflow", "numpy")


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def git_commit() -> str:
    """Return the commit of the working folder, with `-dirty` where files differ from it; empty outside of git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""

"""All commands of the program, in the order of its help."""

from optuna_nas.cli import start, running, showing, comparing, surrogate, networks  # isort: skip # noqa: F401 - the help's order
from optuna_nas.cli.application import app

__all__ = ["app"]

"""Command line: `optuna-nas init`, `run`, `list`, `report`, `view`, `train`, `export` and `compare`."""

from optuna_nas.cli.commands import app, main

__all__ = ["app", "main"]

"""Command line: `optuna-nas run`, `report`, `view`, `train`, `export` and `compare`."""

from optuna_nas.cli.commands import app, main

__all__ = ["app", "main"]

"""Command line: `optuna-nas init`, `run`, `list`, `report`, `view`, `train`, `export` and `compare`."""

from typing import TYPE_CHECKING

from optuna_nas.lazy import lazy_names

if TYPE_CHECKING:
    from optuna_nas.cli.commands import app as app
    from optuna_nas.cli.program import main as main

__all__ = ["app", "main"]

__getattr__ = lazy_names(__name__, {"commands": "app", "program": "main"})

"""Run around a search: one that is active in this thread, or that the environment names, as `mlflow run` does."""

from __future__ import annotations

import os
import sys
from typing import NamedTuple

RUN_ID = "MLFLOW_RUN_ID"


class Parent(NamedTuple):
    """Run under which the run of a study is put.

    Args:
        run_id: Its id.
        required: Whether it must exist where the study is tracked; an active run may be of another place.
    """

    run_id: str
    required: bool


def parent_of_searches() -> Parent | None:
    """Return the run that a search which starts now belongs to, None without one.

    Example:
        >>> from optuna_nas.tracking.parent import parent_of_searches
        >>> parent_of_searches() is None
        True
    """
    if (mlflow := sys.modules.get("mlflow")) is not None and (active := mlflow.active_run()) is not None:
        return Parent(str(active.info.run_id), required=False)
    named = os.environ.get(RUN_ID)
    return Parent(named, required=True) if named else None

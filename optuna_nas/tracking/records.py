"""Records passed from the tracker's queue to the mirror, and constants of both; does not import MLflow."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from optuna.trial import TrialState

from optuna_nas.storage.database import one_line
from optuna_nas.storage.secrets import without_password, without_secrets
from optuna_nas.training.disk import unwritable

if TYPE_CHECKING:
    from datetime import datetime

    import optuna
    from optuna.trial import FrozenTrial

STATUSES = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED", TrialState.FAIL: "FAILED"}
"""Status of a run in MLflow by state of its trial."""
DEFAULT_EXPERIMENT = "optuna_nas"
"""Name of the experiment of studies for which none is given and that have no run around them."""
THREAD_NAME = "optuna_nas.tracking"
CORRECT = "correct what it names, or give the tracker another `tracking_uri` or `experiment`"
"""What to do where MLflow, or its database, says why it cannot be used."""


CREDENTIALS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_AUTH")
"""Variables with which MLflow's client identifies its user to any server, besides the file of its home folder."""


def has_credentials() -> bool:
    """Return whether MLflow's client would send credentials to a server."""
    return any(name in os.environ for name in CREDENTIALS) or Path("~/.mlflow/credentials").expanduser().exists()


@dataclass(frozen=True)
class DatasetInfo:
    """Description of a data set in MLflow; no data are read.

    Args:
        name: Name, such as `cifar10`.
        source: Origin: a URL, a path or a package.
        digest: Hash of the version; MLflow keeps the first 36 characters.

    Example:
        >>> from optuna_nas.tracking import DatasetInfo
        >>> DatasetInfo("digits", "sklearn.datasets.load_digits", "1797x8x8").name
        'digits'
    """

    name: str
    source: str
    digest: str


class StartedTrial(NamedTuple):
    """Trial at its start.

    Args:
        number: Number of the trial.
        params: Suggested parameters.
        start: Start in milliseconds since 1970.
    """

    number: int
    params: dict[str, Any]
    start: int


class Epoch(NamedTuple):
    """Point of the learning curves of a trial.

    Args:
        number: Number of the trial.
        step: Step of the point.
        metrics: Metrics by name.
        time: Time in milliseconds since 1970.
    """

    number: int
    step: int
    metrics: dict[str, float]
    time: int


@dataclass
class LocalTrials:
    """Trials of this process, added by their threads.

    Args:
        running: Running trials by number.
        finished: Numbers of the finished trials.
    """

    running: dict[int, StartedTrial] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)

    def __contains__(self, number: int) -> bool:
        return number in self.running or number in self.finished


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the finished trials of a study, by number."""
    return sorted(study.get_trials(deepcopy=False, states=tuple(STATUSES)), key=lambda trial: trial.number)


def milliseconds(moment: datetime | None) -> int:
    """Return a time in milliseconds since 1970, now for None; times of Optuna without a zone are local."""
    return milliseconds_now() if moment is None else int(moment.timestamp() * 1000)


def milliseconds_now() -> int:
    """Return the current time in milliseconds since 1970, MLflow's unit."""
    return int(time.time() * 1000)


def is_server(uri: str) -> bool:
    """Return whether a tracking URI is that of a server."""
    return uri.startswith(("http://", "https://"))


def unreachable(uri: str, why: str, way_out: str = "") -> ConnectionError:
    """Return the error for a tracking URI at which MLflow cannot be used.

    Args:
        uri: Tracking URI.
        why: Cause.
        way_out: What to do about it; by default what helps where nothing answers.
    """
    elsewhere = "write to a file: `tracking_uri='sqlite:///mlflow.db'`"
    way_out = way_out or f"start a server there with `mlflow server`, or {elsewhere}"
    return ConnectionError(f"MLflow can't be used at {without_password(uri)}: {without_secrets(why, uri)}; {way_out}.")


def unusable(uri: str, error: BaseException, way_out: str = "") -> ConnectionError:
    """Return the error for a tracking URI at which MLflow has raised one; a disk that takes nothing is named.

    Args:
        uri: Tracking URI.
        error: Error of MLflow or of its database.
        way_out: As for `unreachable`, where the cause is no disk.
    """
    if (disk := unwritable(error)) is not None:
        return unreachable(uri, f"its disk is {disk.is_} ({one_line(error)})", f"{disk.way_out}, then run this again")
    return unreachable(uri, one_line(error), way_out)

"""What the queue and the mirror hand each other, and the few words they share; imports no MLflow."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from optuna.trial import TrialState

from optuna_nas.storage.database import without_password

if TYPE_CHECKING:
    from datetime import datetime

    import optuna
    from optuna.trial import FrozenTrial

STATUSES = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED", TrialState.FAIL: "FAILED"}
"""How a trial's state is called in MLflow."""
THREAD_NAME = "optuna_nas.tracking"
SQLITE = "sqlite:///"


@dataclass(frozen=True)
class DatasetInfo:
    """What MLflow shows about a data set; nothing is read.

    Args:
        name: Such as `cifar10`.
        source: Where it comes from: an address, a path, a package.
        digest: What tells its versions apart; MLflow keeps the first 36 characters.
    """

    name: str
    source: str
    digest: str


class StartedTrial(NamedTuple):
    """A trial as its run is opened; `start` in milliseconds."""

    number: int
    params: dict[str, Any]
    start: int


class Epoch(NamedTuple):
    """A point of the learning curves of a trial; `time` in milliseconds."""

    number: int
    step: int
    metrics: dict[str, float]
    time: int


@dataclass
class LocalTrials:
    """Trials of this process; filled by their threads.

    Args:
        running: Those that run, by number.
        finished: Numbers of those that have finished.
    """

    running: dict[int, StartedTrial] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)

    def __contains__(self, number: int) -> bool:
        return number in self.running or number in self.finished


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that are done, by number."""
    return sorted(study.get_trials(deepcopy=False, states=tuple(STATUSES)), key=lambda trial: trial.number)


def milliseconds(moment: datetime | None) -> int:
    """Return MLflow's time; now for None. Optuna's times without a zone are local."""
    return milliseconds_now() if moment is None else int(moment.timestamp() * 1000)


def milliseconds_now() -> int:
    """Return the time as MLflow counts it."""
    return int(time.time() * 1000)


def is_server(uri: str) -> bool:
    """Tell whether an MLflow address is a server's."""
    return uri.startswith(("http://", "https://"))


def unreachable(uri: str, why: str) -> ConnectionError:
    """Return the error for an address where MLflow can't be used."""
    way_out = "start a server there with `mlflow server`, or write to a file: `tracking_uri='sqlite:///mlflow.db'`"
    return ConnectionError(f"MLflow can't be used at {without_password(uri)}: {why}; {way_out}.")

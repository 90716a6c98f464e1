"""What a search may use of an objective, each part optional: any callable of a trial is an objective.

`TrainObjective` has all parts. An objective of one's own gains what it implements: with `describe` a changed setting is
refused on resume, with `bind` it can be stopped at a step and shown live, with `judge` its best network is evaluated on
the test split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from optuna import Trial
    from optuna.trial import FrozenTrial

    from optuna_nas.storage.optuna_rdb import ArtifactStore


class Objective(Protocol):
    """What Optuna optimises: any callable of a trial."""

    def __call__(self, trial: Trial, /) -> float | Sequence[float]:
        """Return the value of a trial, or several."""


class TrialListener(Protocol):
    """Listener of running trials; must not raise and must not take long."""

    def trial_started(self, trial: Trial | FrozenTrial, metrics: Mapping[str, float]) -> None:
        """Receive the parameters (`trial.params`) and the cost of a trial that starts to train."""

    def epoch(self, trial_number: int, step: int, metrics: Mapping[str, float]) -> None:
        """Receive the learning curves after epoch `step`, counted from 1."""

    def progress(self, trial_number: int, fraction: float) -> None:
        """Receive the fraction of its training that a trial has done; called after every step."""


@dataclass(frozen=True)
class TrialRun:
    """Where and how a process runs trials: what a search gives to its objective.

    Args:
        folder: Where networks (`networks/trial-00007.safetensors`) and checkpoints go; None keeps neither.
        listener: Listener of the running trial.
        should_stop: Asked after every training step; True stops the training with a checkpoint.
        store: Where checkpoints and networks go besides, for other machines.
        lead: Called before every training with what the other ranks must `follow`; of a search over several ranks.
    """

    folder: Path | None = None
    listener: TrialListener | None = None
    should_stop: Callable[[], bool] | None = None
    store: ArtifactStore | None = None
    lead: Callable[[Mapping[str, Any]], None] | None = None


@runtime_checkable
class Describes(Protocol):
    """An objective whose settings must not change while a study goes on."""

    def describe(self) -> dict[str, Any]:
        """Return everything that decides a result, as JSON values."""


@runtime_checkable
class Binds(Protocol):
    """An objective that tells how its trials go, keeps files and can be stopped; it calls `listener.trial_started`."""

    def bind(self, run: TrialRun) -> Objective:
        """Return the objective with this folder, listener and so on."""


@runtime_checkable
class Judges(Protocol):
    """An objective that can evaluate a network file on data that the search never saw."""

    def judge(self, network: Path) -> float | None:
        """Return the metric on the test split, None where there is none."""


@runtime_checkable
class Follows(Protocol):
    """An objective that other ranks of a process group can train along with."""

    def follow(self, plan: Mapping[str, Any]) -> None:
        """Train along with rank 0, whose `lead` was called with this plan."""


def directions_of(objective: Objective) -> tuple[str, ...] | None:
    """Return the directions that an objective asks for, None where it does not say."""
    directions = getattr(objective, "directions", None)
    return None if directions is None else tuple(directions)


def metric_of(objective: Objective) -> str:
    """Return the name of the first objective value, `value` where the objective does not say."""
    return str(getattr(objective, "metric", "value"))

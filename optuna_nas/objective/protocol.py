"""Protocols of objectives. Any callable of a trial is an objective; the other methods are optional.

`TrainObjective` implements all of them. Of your own objective, implement `describe` so that a resumed study with other
settings is refused, `bind` so that a trial can be stopped at a step and shown live, and `judge` so that the best
network is evaluated on the test split.
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
    """Protocol of objectives: any callable of a trial."""

    def __call__(self, trial: Trial, /) -> float | Sequence[float]:
        """Return the value or the values of a trial."""


class TrialListener(Protocol):
    """Protocol of listeners to running trials. Methods must return quickly and must not raise.

    Example:
        >>> from optuna_nas.objective import TrialListener
        >>> class Printer:
        ...     def trial_started(self, trial, metrics):
        ...         print("trial", trial.number, metrics)
        ...
        ...     def epoch(self, trial_number, step, metrics):
        ...         print("trial", trial_number, "epoch", step, metrics)
        ...
        ...     def progress(self, trial_number, fraction):
        ...         pass
        >>> listener: TrialListener = Printer()
        >>> listener.epoch(7, 1, {"accuracy": 0.5})
        trial 7 epoch 1 {'accuracy': 0.5}
    """

    def trial_started(self, trial: Trial | FrozenTrial, metrics: Mapping[str, float]) -> None:
        """Handle the start of a trial's training.

        Args:
            trial: The trial, with its parameters.
            metrics: Costs and, if there is one, predicted score of its architecture.
        """

    def epoch(self, trial_number: int, step: int, metrics: Mapping[str, float]) -> None:
        """Handle the end of an epoch.

        Args:
            trial_number: Number of the trial.
            step: Number of the epoch, counted from 1.
            metrics: Learning curves at this epoch.
        """

    def progress(self, trial_number: int, fraction: float) -> None:
        """Handle the end of a training step.

        Args:
            trial_number: Number of the trial.
            fraction: Fraction of the training that is done, in (0, 1].
        """


@dataclass(frozen=True)
class TrialRun:
    """Folder, listener and so on that a search passes to its objective.

    Args:
        folder: Folder of networks (`networks/trial-00007.safetensors`) and checkpoints; None keeps neither.
        listener: Listener to the running trial.
        should_stop: Callback after every training step; True stops the training with a checkpoint.
        store: Artifact store for copies of checkpoints and networks, for other machines.
        lead: Callback before every training, with the plan for the other ranks to `follow`; None for a single rank.

    Example:
        >>> from pathlib import Path
        >>> from optuna_nas.objective import TrialRun
        >>> TrialRun(folder=Path("runs/digits")).should_stop is None
        True
    """

    folder: Path | None = None
    listener: TrialListener | None = None
    should_stop: Callable[[], bool] | None = None
    store: ArtifactStore | None = None
    lead: Callable[[Mapping[str, Any]], None] | None = None


@runtime_checkable
class Describes(Protocol):
    """Protocol of objectives whose settings must not change when a study is resumed."""

    def describe(self) -> dict[str, Any]:
        """Return everything that determines a result, as JSON values."""


@runtime_checkable
class Binds(Protocol):
    """Protocol of objectives that report to a listener, write files and can be stopped."""

    def bind(self, run: TrialRun) -> Objective:
        """Return the objective with the folder, listener and so on of a search. It must call the listener's methods."""


@runtime_checkable
class Judges(Protocol):
    """Protocol of objectives that can evaluate a network file on the test split."""

    def judge(self, network: Path) -> float | None:
        """Return the metric on the test split, None if that is empty."""


@runtime_checkable
class Follows(Protocol):
    """Protocol of objectives that several ranks of a process group can train together."""

    def follow(self, plan: Mapping[str, Any]) -> None:
        """Train together with rank 0, which has called `lead` with this plan."""


def directions_of(objective: Objective) -> tuple[str, ...] | None:
    """Return the attribute `directions` of an objective, None if it has none."""
    directions = getattr(objective, "directions", None)
    return None if directions is None else tuple(directions)


def names_of(objective: Objective) -> tuple[str, ...] | None:
    """Return the attribute `objective_names` of an objective, the names of its values, None if it has none."""
    names = getattr(objective, "objective_names", None)
    return None if names is None else tuple(map(str, names))


def metric_of(objective: Objective) -> str:
    """Return the attribute `metric` of an objective, `value` if it has none."""
    return str(getattr(objective, "metric", "value"))


def judged_metric_of(objective: Objective) -> str:
    """Return the attribute `judged_metric` of an objective, the name of what `judge` returns; by default its metric."""
    return str(getattr(objective, "judged_metric", metric_of(objective)))

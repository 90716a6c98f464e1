"""Curves of a study over trial numbers: counts, best value, time saved by pruning, rank correlation of scores."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from math import inf
from operator import attrgetter
from typing import TYPE_CHECKING

from optuna.trial import TrialState

from optuna_nas.plots.surrogate import scores_of
from optuna_nas.storage.attributes import SURROGATE_SCORE, has_attribute
from optuna_nas.storage.directions import better
from optuna_nas.storage.leaderboard import can_win
from optuna_nas.storage.spending import Savings
from optuna_nas.tracking.records import Epoch, milliseconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from optuna.study import StudyDirection
    from optuna.trial import FrozenTrial

    from optuna_nas.space import Space

TAU_CURVES = (("", "tau"), ("_lower", "lower"), ("_upper", "upper"))
TAU_GROWTH = 1.01
"""The rank correlation is recomputed whenever the number of trials has grown by this factor."""


class CurvePoints:
    """Points of a study's curves, one per finished trial, each returned once.

    The point of a trial is computed after all trials with lower numbers have finished, so that the curve of the best
    value is monotonic although trials finish in any order.

    Args:
        direction: Direction of the first objective.
        space: Search space, None if it is not known.
    """

    def __init__(self, direction: StudyDirection, space: Space | None = None) -> None:
        self._space = space
        self.written: set[int] = set()  # numbers of trials whose points are in MLflow
        self._direction = direction
        self._curves = StudyCurves(direction)
        self._unwritten: dict[int, Epoch] = {}  # points that were not taken yet, by number of the trial
        self._n_tau = 0  # number of finished trials at the last rank correlation

    def update(self, finished: Sequence[FrozenTrial], running: Iterable[int]) -> list[FrozenTrial]:
        """Compute the points of finished trials; return the trials with a point, which precede all running trials.

        Args:
            finished: Finished trials of the study, by number.
            running: Numbers of the running trials.
        """
        horizon = min(running, default=inf)
        settled = list(finished[: bisect_right(finished, horizon, key=attrgetter("number"))])
        if not self._curves.begins(settled):  # a trial has finished whose number precedes points that exist
            self._curves, self._unwritten = StudyCurves(self._direction), {}
        for n_seen in range(len(self._curves.numbers), len(settled)):
            trial = settled[n_seen]
            point = self._curves.add(trial)
            if trial.number in self.written:
                continue
            if has_attribute(trial.user_attrs, SURROGATE_SCORE) and n_seen + 1 >= TAU_GROWTH * self._n_tau:
                self._n_tau = n_seen + 1
                tau = scores_of(settled[: n_seen + 1], self._direction, self._space).correlation
                point |= {f"surrogate/kendall_tau{name}": getattr(tau, field) for name, field in TAU_CURVES}
            moment = milliseconds(trial.datetime_complete)
            self._unwritten[trial.number] = Epoch(trial.number, trial.number, point, moment)
        return settled

    def take(self, numbers: set[int]) -> list[Epoch]:
        """Return the points of these trials that were not returned before, by number."""
        return [self._unwritten.pop(number) for number in sorted(numbers & self._unwritten.keys())]


class StudyCurves:
    """Values of a study's curves, updated per trial at a constant cost.

    What pruning has saved is defined by `Savings`.

    Args:
        direction: Direction of the first objective.

    Example:
        >>> import optuna
        >>> from optuna_nas.tracking.curves import StudyCurves
        >>> curves = StudyCurves(optuna.study.StudyDirection.MAXIMIZE)
        >>> curves.add(optuna.trial.create_trial(value=0.5))["best_value"]
        0.5
    """

    def __init__(self, direction: StudyDirection) -> None:
        self.numbers: list[int] = []
        self._direction = direction
        self._best: float | None = None
        self._counts: Counter[TrialState] = Counter()
        self._savings = Savings()

    def begins(self, trials: Sequence[FrozenTrial]) -> bool:
        """Return whether the added trials are the first of these."""
        n_added = len(self.numbers)
        return n_added <= len(trials) and (not n_added or trials[n_added - 1].number == self.numbers[-1])

    def add(self, trial: FrozenTrial) -> dict[str, float]:
        """Add a finished trial, and return the values of the curves at this trial."""
        self.numbers.append(trial.number)
        self._counts[trial.state] += 1
        self._savings.add(trial)
        complete, pruned = (self._counts[state] for state in (TrialState.COMPLETE, TrialState.PRUNED))
        point = {"n_complete": complete, "n_pruned": pruned, "n_failed": self._counts[TrialState.FAIL]}
        values = {name: float(count) for name, count in point.items()} | {"pruned_share": pruned / len(self.numbers)}
        values |= {"seconds_saved": self._savings.seconds, "epochs_saved": float(self._savings.spent.epochs_saved)}
        spent = self._savings.spent
        values |= {"seconds_training": spent.training, "seconds_model": spent.model, "seconds_waiting": spent.waiting}
        if (gpu_seconds := self._savings.gpu_seconds) is not None:
            values["gpu_seconds_saved"] = gpu_seconds
        if can_win(trial):
            values["trial_value"] = trial.values[0]
            self._best = (
                trial.values[0] if self._best is None else better((self._best, trial.values[0]), self._direction)
            )
        return values if self._best is None else values | {"best_value": self._best}

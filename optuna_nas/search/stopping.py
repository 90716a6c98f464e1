"""When a search ends before its total of trials: its seconds are spent, or another trial is not expected to help."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from optuna.trial import TrialState

from optuna_nas.storage.directions import oriented
from optuna_nas.storage.finished import FinishedTrials
from optuna_nas.storage.leaderboard import feasible
from optuna_nas.storage.spending import spending_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna import Study
    from optuna.trial import FrozenTrial

    from optuna_nas.search.config import Search


class Stopping:
    """Rules that end a search; every finished trial is read once.

    Args:
        seconds: Seconds of all trials, with the training of one-shot models in them; None for no limit. A trial is not
            begun if the longest so far would not fit.
        patience: Trials in a row without a better value; None for no limit.
        upcoming: Function that tells the parameter that is the length of a training and its value in the next trial
            (`PromotingSampler.upcoming`), of which the longest then counts; None where all may be equally long.

    Example:
        >>> import optuna
        >>> from optuna_nas.search.stopping import Stopping
        >>> study, stopping = optuna.create_study(), Stopping(seconds=None, patience=2)
        >>> for value in (0.5, 0.6, 0.7):
        ...     study.add_trial(optuna.create_trial(value=value))
        >>> stopping.reason(study)
        '2 trials in a row were not better than the best'
    """

    def __init__(
        self,
        seconds: float | None,
        patience: int | None,
        upcoming: Callable[[Study], tuple[str, int]] | None = None,
    ) -> None:
        self._seconds, self._patience, self._upcoming = seconds, patience, upcoming
        self._lock = threading.Lock()
        self._finished = FinishedTrials()
        self._spent = 0.0
        self._longest: dict[int | None, float] = {None: 0.0}  # seconds, by the length of a training
        self._best: float | None = None
        self._since = 0

    def reason(self, study: Study) -> str | None:
        """Return why the search ends before its next trial, None if it goes on."""
        if self._seconds is None and self._patience is None:
            return None
        parameter, length = (None, None) if self._upcoming is None else self._upcoming(study)
        with self._lock:
            for trial in self._finished.take(study.get_trials(deepcopy=False)):
                self._read(study, trial, parameter)
            if self._seconds is not None and self._spent and self._spent + self._expected(length) > self._seconds:
                return f"{self._spent:,.0f} of {self._seconds:,.0f} seconds are spent, and no further trial would fit"
            if self._patience is not None and self._since >= self._patience:
                return f"{self._since} trials in a row were not better than the best"
        return None

    def _expected(self, length: int | None) -> float:
        """Return the seconds of the next trial: the longest of its length, or what others would take at that length."""
        if length is None:
            return max(self._longest.values())
        if length in self._longest:
            return self._longest[length]
        return max(seconds * (length / other if other else 1) for other, seconds in self._longest.items())

    def _read(self, study: Study, trial: FrozenTrial, parameter: str | None) -> None:
        duration = spending_of(trial).total
        self._spent += duration
        length = None if parameter is None else trial.params.get(parameter)
        # The first one may train a model or score a pool; one that ended early does not show what its length takes.
        if trial.number > 0 and (length is None or trial.state == TrialState.COMPLETE):
            self._longest[length] = max(self._longest.get(length, 0.0), duration)
        if trial.state == TrialState.COMPLETE and trial.values and feasible(trial):
            value = oriented(trial.values[0], study.directions[0])
            if self._best is None or value > self._best:
                self._best, self._since = value, 0
                return
        if trial.state != TrialState.FAIL:
            self._since += 1


def stopping_of(search: Search) -> Stopping:
    """Return the rules of a search, which know how long its sampler lets trials be."""
    return Stopping(search.seconds, search.patience, getattr(search.resolved_sampler, "upcoming", None))

"""The total of trials, exact with any number of workers."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, NamedTuple

from optuna.trial import TrialState

from optuna_nas.storage.attributes import REQUEUED, WORKER
from optuna_nas.storage.finished import FinishedTrials
from optuna_nas.storage.optuna_rdb import has_heartbeats
from optuna_nas.storage.retries import replaced_by

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial


class Surplus(BaseException):
    """A trial that another worker's made superfluous; it waits in the queue again. No error of an objective."""


class StorageAway(BaseException):
    """The database did not take what a trial wrote; who is told of the trial's end decides when it is back."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Standing(NamedTuple):
    """How far a study is.

    Args:
        finished: Trials that count towards the total: finished, and not gone on with by another.
        running: Numbers of those that run.
        total: Trials asked for.
    """

    finished: int
    running: tuple[int, ...]
    total: int

    @property
    def missing(self) -> int:
        """Trials that have not finished."""
        return max(0, self.total - self.finished)

    @property
    def free(self) -> int:
        """Trials that may be taken; negative where too many run."""
        return self.total - self.finished - len(self.running)


class Quota:
    """The total of trials of a study, which many workers fill and none exceeds; flat cost as the study grows.

    A worker that has taken a trial looks at the study and goes on if all that is finished or runs is within the total.
    Else the latest trials step back at once, and earlier ones when the later do not. Whoever looks last sees all
    others, so no two go on where there is room for one; this asks of a storage only that it shows what was written.
    """

    def __init__(self, study: Study, total: int) -> None:
        self._study, self.total = study, total
        self._has_heartbeat = has_heartbeats(study)
        self._known = FinishedTrials()
        self._finished: set[int] = set()
        self._replaced: set[int] = set()

    def look(self) -> Standing:
        """Return how far the study is now."""
        trials = self._study.get_trials(deepcopy=False)
        for trial in self._known.take(trials):
            self._finished.add(trial.number)
            self._see(trial)
        open_trials = [trials[place] for place in self._known.unfinished]
        for trial in open_trials:
            self._see(trial)
        running = (trial.number for trial in open_trials if self._runs(trial))
        return Standing(len(self._finished - self._replaced), tuple(running), self.total)

    def _runs(self, trial: FrozenTrial) -> bool:
        """Tell whether a trial will end: some process of ours runs it, or heartbeats tell when none does."""
        return trial.state == TrialState.RUNNING and (self._has_heartbeat or WORKER in trial.user_attrs)

    def _see(self, trial: FrozenTrial) -> None:
        if REQUEUED in trial.user_attrs and trial.state == TrialState.FAIL:
            self._replaced.add(trial.number)
        self._replaced.update(replaced_by(trial))

    def room(self) -> int:
        """Return how many trials may be taken now."""
        return max(0, self.look().free)

    def missing(self) -> int:
        """Return how many trials have not finished."""
        return self.look().missing

    def claim(self, trial: Trial) -> None:
        """Confirm a running trial, or put it back into the queue.

        Raises:
            Surplus: There is no room for it.
        """
        for _ in range(RIVAL_LOOKS):
            standing = self.look()
            if standing.free >= 0:
                return
            if trial.number in sorted(standing.running)[standing.free :]:
                break
            time.sleep(RIVAL_SECONDS * (0.5 + random.random()))
        self._study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
        raise Surplus


def counted_trials(study: Study) -> int:
    """Return how many trials count towards the total: finished ones, but not those that another goes on with."""
    return Quota(study, 0).look().finished


RIVAL_LOOKS, RIVAL_SECONDS = 5, 0.2
"""How often, and about how long apart, a worker looks whether those with later trials have stepped back."""

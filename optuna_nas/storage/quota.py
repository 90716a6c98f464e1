"""Exact total number of trials with any number of workers."""

from __future__ import annotations

import random
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple

from optuna.trial import TrialState

from optuna_nas.storage.attributes import REQUEUED, WORKER, attribute, has_attribute
from optuna_nas.storage.finished import FinishedTrials
from optuna_nas.storage.optuna_rdb import Surplus, backend_of, has_heartbeats
from optuna_nas.storage.presence import this_worker
from optuna_nas.storage.retries import replaced_by, requeue_interrupted

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from optuna import Study, Trial
    from optuna.trial import FrozenTrial


class StorageAway(BaseException):
    """Raised if the database did not accept a write of a trial; the end of the trial is stored once it answers again.

    Args:
        error: Error of the database.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Standing(NamedTuple):
    """Progress of a study.

    Args:
        finished: Number of finished trials that count towards the total, without those that another trial retries.
        running: Numbers of the running trials.
        waiting: Number of the trials in the queue.
        started: Number of all trials that do not wait.
        total: Total number of trials to run.
    """

    finished: int
    running: tuple[int, ...]
    waiting: int
    started: int
    total: int

    @property
    def missing(self) -> int:
        """Number of trials that have not finished."""
        return max(0, self.total - self.finished)

    @property
    def free(self) -> int:
        """Number of trials that may be started; negative if too many are running."""
        return self.total - self.finished - len(self.running)

    @property
    def unclaimed(self) -> int:
        """Number of trials that may be started besides those in the queue."""
        return max(0, self.free - self.waiting)


class Quota:
    """Total number of trials of a study, which all workers together reach but never exceed.

    A worker that has created a trial reads the study and continues if the finished and running trials are within the
    total. Otherwise the trials with the largest numbers go back to the queue at once, and those before them if the
    later ones stay. The worker that reads last sees all others, so that two workers never take the same free place;
    this requires only that the storage shows completed writes.

    Args:
        study: Study that workers share.
        total: Total number of trials.

    Example:
        >>> import optuna
        >>> from optuna_nas.storage.quota import Quota
        >>> study = optuna.create_study()
        >>> study.add_trial(optuna.create_trial(value=1.0))
        >>> quota = Quota(study, total=3)
        >>> quota.missing()
        2
    """

    def __init__(self, study: Study, total: int) -> None:
        self._study, self.total = study, total
        self._has_heartbeat = has_heartbeats(study)
        self._trials = FinishedTrials()
        self._finished: set[int] = set()
        self._failed: set[int] = set()  # only these can be tried again, whatever a trial says that it replaces
        self._replaced: set[int] = set()

    def look(self) -> Standing:
        """Return the current progress of the study."""
        trials = self._study.get_trials(deepcopy=False)
        for trial in self._trials.take(trials):
            self._finished.add(trial.number)
            if trial.state == TrialState.FAIL:
                self._failed.add(trial.number)
            self._see(trial)
        open_trials = [trials[place] for place in self._trials.unfinished]
        for trial in open_trials:
            self._see(trial)
        running = tuple(trial.number for trial in open_trials if self._runs(trial))
        waiting = sum(trial.state == TrialState.WAITING for trial in open_trials)
        return Standing(len(self.counted), running, waiting, len(trials) - waiting, self.total)

    @property
    def counted(self) -> set[int]:
        """Numbers of the finished trials that counted towards the total at the last look."""
        return self._finished - (self._replaced & self._failed)

    def _runs(self, trial: FrozenTrial) -> bool:
        """Return whether a trial will end: a worker of this package runs it, or heartbeats reveal its death."""
        return trial.state == TrialState.RUNNING and (self._has_heartbeat or has_attribute(trial.user_attrs, WORKER))

    def _see(self, trial: FrozenTrial) -> None:
        if attribute(trial.user_attrs, REQUEUED, False) and trial.state == TrialState.FAIL:
            self._replaced.add(trial.number)
        self._replaced.update(replaced_by(trial))

    def room(self) -> int:
        """Return the number of trials that may be started now."""
        return max(0, self.look().free)

    def missing(self) -> int:
        """Return the number of trials that have not finished."""
        return self.look().missing

    def admitting(self, standing: Standing) -> AbstractContextManager[object]:
        """Let the storage start no more trials inside the block than a standing leaves free, by whatever process.

        Those of this process have its name from their start. Only the storages of this package can do so; with others,
        trials too many are put back by `claim`.
        """
        backend = backend_of(self._study)
        if backend is None:
            return nullcontext()
        return backend.limited(self._study._study_id, standing.started + standing.free, {WORKER: this_worker()})

    def requeue_interrupted(self, worker: str | None = None) -> None:
        """Enqueue the parameters of interrupted trials that no other trial retries yet, as far as trials are missing.

        Args:
            worker: Name of the worker whose trials are enqueued; None for those of all workers.
        """
        requeue_interrupted(self._study, worker, self.look().unclaimed)

    def claim(self, trial: Trial) -> None:
        """Confirm a running trial, or put it back into the queue.

        Args:
            trial: Running trial of this worker.

        Raises:
            Surplus: The trial exceeds the total.
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


def counted_numbers(study: Study) -> set[int]:
    """Return the numbers of the finished trials that count towards the total, without those that another retries."""
    quota = Quota(study, 0)
    quota.look()
    return quota.counted


def counted_trials(study: Study) -> int:
    """Return the number of finished trials that count towards the total, without those that another trial retries."""
    return len(counted_numbers(study))


RIVAL_LOOKS, RIVAL_SECONDS = 5, 0.2
"""How often, and with how many seconds in between, a worker checks whether later trials went back to the queue."""

"""What keeps a study whole while processes come and go: who takes a trial, whose is dead, who tries it again."""

from __future__ import annotations

import os
import random
import secrets
import socket
import time
import warnings
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.trial import TrialState

from optuna_nas.objective import CHECKPOINT, REASON
from optuna_nas.storage import MOST_ATTEMPTS, backend_of
from optuna_nas.study_state import PREFIX, RESUMES, FinishedTrials

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

WORKER = PREFIX + "worker"
"""Trial attribute: who runs it: host, process id, and a token of that process."""
REQUEUED = PREFIX + "requeued"
"""Trial attribute: it was interrupted, and another trial goes on with its parameters."""
RETRY_OF = PREFIX + "retry_of"
"""Trial attribute: number of the interrupted trial that it goes on with."""
ATTEMPT = PREFIX + "attempt"
"""Trial attribute: how often these parameters were tried, counting processes that died."""
RETRY_HISTORY = "retry_history"
"""Optuna's system attribute: numbers of the dead trials that it goes on with."""

INTERRUPTED = "interrupted"
RIVAL_LOOKS, RIVAL_SECONDS = 5, 0.2
"""How often, and about how long apart, a worker looks whether those with later trials have stepped back."""


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
        backend = backend_of(study)
        self._has_heartbeat = backend is not None and backend.heartbeat_interval is not None
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


def replaced_by(trial: FrozenTrial) -> list[int]:
    """Return the numbers of the trials that a trial goes on with."""
    ours = [trial.user_attrs[RETRY_OF]] if RETRY_OF in trial.user_attrs else []
    return [*ours, *trial.system_attrs.get(RETRY_HISTORY, ())]


def counted_trials(study: Study) -> int:
    """Return how many trials count towards the total: finished ones, but not those that another goes on with."""
    return Quota(study, 0).look().finished


# -- trials of the dead -------------------------------------------------------------------------------------------


def requeue_interrupted(study: Study, worker: str | None = None) -> None:
    """Enqueue the parameters of every interrupted trial that nobody goes on with yet.

    Args:
        study: With interrupted trials.
        worker: Only of trials that it ran: others do the same for theirs at this moment.
    """
    trials = study.get_trials(deepcopy=False)
    taken = {number for trial in trials for number in replaced_by(trial)}
    for trial in trials:
        is_ours = worker is None or trial.user_attrs.get(WORKER) == worker
        if is_ours and trial.state == TrialState.FAIL and REQUEUED in trial.user_attrs and trial.number not in taken:
            _requeue(study, trial)


def _requeue(study: Study, trial: FrozenTrial) -> None:
    params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
    attributes = {
        RETRY_OF: trial.number,
        # Being stopped on purpose is no sign that something is wrong with the parameters.
        ATTEMPT: trial.user_attrs.get(ATTEMPT, 1) + (trial.user_attrs.get(REASON) != INTERRUPTED),
    }
    if params:  # otherwise it chooses anew, which is another training
        attributes[RESUMES] = trial.user_attrs.get(RESUMES, trial.number)
        if CHECKPOINT in trial.user_attrs:
            attributes[CHECKPOINT] = trial.user_attrs[CHECKPOINT]
    study.enqueue_trial(params, user_attrs=attributes)


def reap_dead_trials(study: Study, alone: bool = False) -> None:
    """Fail the running trials of processes that are gone, and enqueue their parameters again.

    Args:
        study: With trials that an earlier `run` may have left behind.
        alone: No other process runs this study; otherwise only processes of this machine are looked up.
    """
    host = socket.gethostname()
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = str(trial.user_attrs.get(WORKER, ""))
        if worker and (alone or (worker.startswith(f"{host}:") and not _alive(worker))):
            fail_dead(study, trial)
    if alone:
        requeue_interrupted(study)


def fail_dead(study: Study, trial: FrozenTrial) -> None:
    """Fail a running trial whose process is gone, and enqueue it again unless it was tried too often."""
    storage, attempt = study._storage, trial.user_attrs.get(ATTEMPT, 1)
    reason = f"the process that ran it is gone, attempt {attempt} of {MOST_ATTEMPTS}"
    with suppress(UpdateFinishedTrialError, ValueError):  # another worker was faster
        storage.set_trial_user_attr(trial._trial_id, REASON, reason)
        if attempt < MOST_ATTEMPTS:
            storage.set_trial_user_attr(trial._trial_id, REQUEUED, True)
        study.tell(trial.number, state=TrialState.FAIL)
        if attempt < MOST_ATTEMPTS:
            _requeue(study, study._storage.get_trial(trial._trial_id))


def fail_stale(study: Study) -> None:
    """Fail and retry the trials of workers that have given no sign of life for long; Optuna does so before a trial."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)


class Silent:
    """Running trials whose workers died before their first sign of life, which Optuna leaves running for ever.

    A trial counts as dead when this process has seen it for so many of its own seconds: no clock of another machine,
    and none that may be set, decides.
    """

    def __init__(self, study: Study, grace: float) -> None:
        self._study, self._grace = study, grace
        self._seen: dict[int, float] = {}

    def reap(self, on_dead: Callable[[Study, FrozenTrial], None] = lambda study, trial: None) -> None:
        """Fail and requeue those that were silent for too long."""
        if (backend := backend_of(self._study)) is None or backend.heartbeat_interval is None:
            return
        now = time.monotonic()
        silent = backend.without_heartbeat(self._study._study_id)
        self._seen = {trial_id: self._seen.get(trial_id, now) for trial_id in silent}
        dead = [trial_id for trial_id, since in self._seen.items() if now - since > self._grace]
        for trial_id in dead:
            fail_dead(self._study, self._study._storage.get_trial(trial_id))
            on_dead(self._study, self._study._storage.get_trial(trial_id))


@contextmanager
def presence(file: Path) -> Iterator[bool]:
    """Hold a shared lock on a file inside the block; the value tells whether nobody else held one before."""
    try:
        import fcntl
    except ImportError:  # not on Windows, where only process ids tell
        yield False
        return
    with open(file, "w") as handle:
        alone = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            alone = False
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield alone


_TOKENS: dict[int, str] = {}


def this_worker() -> str:
    """Return what names this process: its host, its number, and what tells it from a later one of that number."""
    token = _TOKENS.setdefault(os.getpid(), secrets.token_hex(4))  # a forked process has one of its own
    return f"{socket.gethostname()}:{os.getpid()}:{token}"


def _alive(worker: str) -> bool:
    """Tell whether a worker of this machine still runs; a new process under its old number is not it."""
    process = int(worker.split(":")[1])
    if process == os.getpid():
        return worker == this_worker()
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

"""Trials whose processes are gone: find them, fail them, try their parameters again.

Whoever finds a dead trial - this package on one machine, Optuna by a missing heartbeat, the next `run` after an
interruption - hands it to the same `try_again`, and one number counts the attempts: `ATTEMPT`, on the trial that tries
again. Parameters are given up after three attempts that died at the same point. An attempt that got further than all
before it, by a reported step or by a checkpoint, is the first at a new point; one that was stopped on purpose does not
count. So a training longer than the machine's leases ends, and parameters that kill their process do not run for ever.
"""

from __future__ import annotations

import socket
import time
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.trial import TrialState

from optuna_nas.storage.attributes import (
    ATTEMPT,
    CHECKPOINT,
    CHECKPOINTED,
    FAILED_TRIAL,
    FIXED_PARAMS,
    FURTHEST,
    REASON,
    REQUEUED,
    RESUMES,
    RETRY_HISTORY,
    RETRY_OF,
    WORKER,
    attribute,
    given_params,
    has_attribute,
    is_own,
)
from optuna_nas.storage.optuna_rdb import StorageError, backend_of
from optuna_nas.storage.presence import is_alive

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

MAX_ATTEMPTS = 3
"""Attempts at the parameters of a trial that may die at the same point."""
INTERRUPTED = "interrupted"
"""Reason of trials that were stopped on purpose."""


# -- the count --------------------------------------------------------------------------------------------------------


def attempt_of(trial: FrozenTrial) -> int:
    """Return the number of a trial's attempt at its parameters, counted from 1 since they last got further.

    >>> [attempt_of(optuna.create_trial(value=1.0, user_attrs=known)) for known in ({}, {ATTEMPT: 2})]
    [1, 2]

    Retries by Optuna's own callback (a storage of the user's) and those in older studies count too: they lengthen
    Optuna's history beyond the trial that this package has last tried again.
    """
    last = int(attribute(trial.user_attrs, RETRY_OF, -1))
    others = [number for number in trial.system_attrs.get(RETRY_HISTORY, ()) if number > last]
    return int(attribute(trial.user_attrs, ATTEMPT, 1)) + len(others)


def reached(trial: FrozenTrial) -> tuple[float | None, float]:
    """Return how far an attempt got: the last reported step, None without reports, and the fraction in a checkpoint.

    >>> reached(optuna.create_trial(value=1.0, intermediate_values={1: 0.5, 2: 0.6}, user_attrs={CHECKPOINTED: 0.1}))
    (2, 0.1)
    """
    return trial.last_step, float(attribute(trial.user_attrs, CHECKPOINTED, 0.0))


class CheckpointNotes:
    """Notes on a running trial how much of its training the newest checkpoint holds, for who counts attempts.

    Epochs may be longer than the time between two checkpoints, and studies of several objectives take no reports.

    Args:
        trial: Running.
        file: Its checkpoint, perhaps one of an earlier attempt, perhaps not there yet.
    """

    def __init__(self, trial: Trial, file: Path) -> None:
        self._trial, self._file = trial, file
        self._written, self._fraction = self._time(), 0.0

    def after_step(self, fraction: float) -> None:
        """Look whether the step before this one was followed by a checkpoint.

        Args:
            fraction: Of the training that is done, in [0, 1].
        """
        if (written := self._time()) != self._written:
            self._written = written
            with suppress(*StorageError):  # no reason to end a training
                self._trial.set_user_attr(CHECKPOINTED, round(self._fraction, 6))
                if (backend := backend_of(self._trial.study)) is not None:
                    backend.flush(self._trial._trial_id)  # a process that is killed loses what waits
        self._fraction = fraction

    def _time(self) -> int:
        try:
            return self._file.stat().st_mtime_ns
        except OSError:
            return 0


def _next_attempt(trial: FrozenTrial) -> tuple[int, list[float | None]]:
    """Return what the next attempt bears: its number, and how far all before it got."""
    step, fraction = reached(trial)
    before_step, before_fraction = attribute(trial.user_attrs, FURTHEST, (None, 0.0))
    further = _is_further(step, before_step) or fraction > before_fraction
    attempt = 1 if further else attempt_of(trial)
    is_counted = attribute(trial.user_attrs, REASON) != INTERRUPTED  # else nothing is wrong with the parameters
    furthest = step if _is_further(step, before_step) else before_step
    return attempt + is_counted, [furthest, max(fraction, before_fraction)]


def _is_further(step: float | None, before: float | None) -> bool:
    return step is not None and (before is None or step > before)


def is_given_up(trial: FrozenTrial) -> bool:
    """Return whether a dead trial was the last of its attempts.

    >>> [is_given_up(optuna.create_trial(value=1.0, user_attrs={ATTEMPT: attempt})) for attempt in (1, 2, 3)]
    [False, False, True]
    """
    return _next_attempt(trial)[0] > MAX_ATTEMPTS


def replaced_by(trial: FrozenTrial) -> list[int]:
    """Return the numbers of the trials that a trial tries again."""
    ours = [trial.user_attrs[RETRY_OF]] if RETRY_OF in trial.user_attrs else []
    return [*ours, *trial.system_attrs.get(RETRY_HISTORY, ())]


# -- trying again -----------------------------------------------------------------------------------------------------


def try_again(study: Study, trial: FrozenTrial) -> None:
    """Enqueue the parameters of a failed trial, with the number of the attempt and where its checkpoint is.

    The attributes that the user's objective has set go along, as in Optuna's own retries, and so does Optuna's history
    of retries (`RetryHeartbeatStaleTrialCallback.retry_history`).

    >>> study = optuna.create_study()
    >>> trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
    >>> study.tell(trial, state=TrialState.FAIL).number
    0
    >>> try_again(study, study.trials[0])
    >>> attempt_of(study.trials[1]), study.ask().suggest_float("x", 0, 1) == trial.params["x"]
    (2, True)
    """
    params = given_params(trial)
    attempt, furthest = _next_attempt(trial)
    attributes: dict[str, Any] = {RETRY_OF: trial.number, ATTEMPT: attempt, FURTHEST: furthest}
    if params:  # otherwise it chooses anew, which is another training
        attributes |= {name: value for name, value in trial.user_attrs.items() if not is_own(name)}
        attributes[RESUMES] = attribute(trial.user_attrs, RESUMES, trial.number)
        if has_attribute(trial.user_attrs, CHECKPOINT):
            attributes[CHECKPOINT] = attribute(trial.user_attrs, CHECKPOINT)
    system = {
        FIXED_PARAMS: params,
        FAILED_TRIAL: trial.system_attrs.get(FAILED_TRIAL, trial.number),
        RETRY_HISTORY: [*trial.system_attrs.get(RETRY_HISTORY, ()), trial.number],
    }
    study.add_trial(optuna.create_trial(state=TrialState.WAITING, user_attrs=attributes, system_attrs=system))


class TryAgain:
    """Callback for trials that Optuna has failed because their worker gave no sign of life for long.

    Args:
        on_dead: Called with every such trial, once its retry waits.
    """

    def __init__(self, on_dead: Callable[[Study, FrozenTrial], None] | None = None) -> None:
        self._on_dead = on_dead

    def __call__(self, study: Study, trial: FrozenTrial) -> None:
        if not is_given_up(trial):
            try_again(study, trial)
        if self._on_dead is not None:
            self._on_dead(study, trial)


def requeue_interrupted(study: Study, worker: str | None = None) -> None:
    """Enqueue the parameters of every interrupted trial that no other trial tries again yet.

    Args:
        study: With interrupted trials.
        worker: Only of trials that it ran: others do the same for theirs at this moment.
    """
    trials = study.get_trials(deepcopy=False)
    taken = {number for trial in trials for number in replaced_by(trial)}
    for trial in trials:
        is_ours = worker is None or attribute(trial.user_attrs, WORKER) == worker
        if is_ours and trial.state == TrialState.FAIL and REQUEUED in trial.user_attrs and trial.number not in taken:
            try_again(study, trial)


# -- finding the dead -------------------------------------------------------------------------------------------------


def reap_dead_trials(study: Study, alone: bool = False) -> None:
    """Fail the running trials of processes that are gone, and enqueue their parameters again.

    Args:
        study: With trials that an earlier `run` may have left behind.
        alone: No other process runs this study; otherwise only processes of this machine are looked up.
    """
    host = socket.gethostname()
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = str(attribute(trial.user_attrs, WORKER, ""))
        if worker and (alone or (worker.startswith(f"{host}:") and not is_alive(worker))):
            fail_dead(study, trial)
    if alone:
        requeue_interrupted(study)


def fail_dead(study: Study, trial: FrozenTrial) -> None:
    """Fail a running trial whose process is gone, and enqueue it again unless it was tried too often."""
    storage, given_up = study._storage, is_given_up(trial)
    with suppress(UpdateFinishedTrialError, ValueError):  # another worker was faster
        if attribute(trial.user_attrs, REASON) != INTERRUPTED:
            attempt = _next_attempt(trial)[0] - 1
            reason = f"the process that ran it is gone, attempt {attempt} of {MAX_ATTEMPTS}"
            storage.set_trial_user_attr(trial._trial_id, REASON, reason)
        if not given_up:
            storage.set_trial_user_attr(trial._trial_id, REQUEUED, True)
        study.tell(trial.number, state=TrialState.FAIL)
        if not given_up:
            try_again(study, study._storage.get_trial(trial._trial_id))


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

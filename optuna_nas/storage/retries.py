"""Retries of trials whose processes died.

Dead trials are found by this package on the same machine, by Optuna through missing heartbeats, or by the next `run`
after an interruption. All are retried by `try_again`, and one attribute of the new trial counts the attempts:
`ATTEMPT`. Parameters are given up after three attempts that died at the same point. An attempt that got further than
all before it, by a reported step or a checkpoint, counts as the first at a new point; an attempt that was interrupted
on purpose does not count. Trainings longer than the time a machine is available thus finish, and parameters that crash
their process are not retried forever.
"""

from __future__ import annotations

import time
import warnings
from contextlib import suppress
from math import inf
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
from optuna_nas.storage.presence import has_ended

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

MAX_ATTEMPTS = 3
"""Attempts that may die at the same point before parameters are given up."""
INTERRUPTED = "interrupted"
"""Reason of trials that were interrupted on purpose."""


# -- number of attempts -----------------------------------------------------------------------------------------------


def attempt_of(trial: FrozenTrial) -> int:
    """Return the number of a trial's attempt at its parameters, from 1, since an attempt last got further.

    Retries by Optuna's own callback, as in storages of the user and in older studies, count too: they extend Optuna's
    retry history beyond the trial that this package retried last.

    Example:
        >>> import optuna
        >>> from optuna_nas.storage.attributes import ATTEMPT
        >>> from optuna_nas.storage.retries import attempt_of
        >>> [attempt_of(optuna.create_trial(value=1.0, user_attrs=attrs)) for attrs in ({}, {ATTEMPT: 2})]
        [1, 2]
    """
    last: int = attribute(trial.user_attrs, RETRY_OF, -1)
    others = [number for number in attribute(trial.system_attrs, RETRY_HISTORY, ()) if number > last]
    return int(attribute(trial.user_attrs, ATTEMPT, 1)) + len(others)


def reached(trial: FrozenTrial) -> tuple[float | None, float]:
    """Return how far an attempt got: the last reported step, None without reports, and the fraction in a checkpoint.

    Example:
        >>> import optuna
        >>> from optuna_nas.storage.attributes import CHECKPOINTED
        >>> from optuna_nas.storage.retries import reached
        >>> attrs = {CHECKPOINTED: 0.1}
        >>> reached(optuna.create_trial(value=1.0, intermediate_values={1: 0.5, 2: 0.6}, user_attrs=attrs))
        (2, 0.1)
    """
    return trial.last_step, float(attribute(trial.user_attrs, CHECKPOINTED, 0.0))


class CheckpointNotes:
    """Store the fraction of the training in the newest checkpoint as an attribute of a running trial.

    Attempts are counted by it in addition to reported steps, since an epoch may take longer than the time between two
    checkpoints and trials of several objectives cannot report.

    Args:
        trial: Running trial.
        file: Checkpoint file of the trial; may be missing, or left by an earlier attempt.
    """

    def __init__(self, trial: Trial, file: Path) -> None:
        self._trial, self._file = trial, file
        self._written, self._fraction = self._time(), 0.0

    def after_step(self, fraction: float) -> None:
        """Update the attribute if a checkpoint was written after the step before this one.

        Args:
            fraction: Fraction of the training that is done, in [0, 1].
        """
        if (written := self._time()) != self._written:
            self._written = written
            with suppress(*StorageError):  # not worth failing a training
                self._trial.set_user_attr(CHECKPOINTED, round(self._fraction, 6))
                if (backend := backend_of(self._trial.study)) is not None:
                    backend.flush(self._trial._trial_id)  # a process that is killed would lose the delayed write
        self._fraction = fraction

    def _time(self) -> int:
        try:
            return self._file.stat().st_mtime_ns
        except OSError:
            return 0


def _next_attempt(trial: FrozenTrial) -> tuple[int, list[float | None]]:
    """Return the number of the next attempt, and how far all attempts before it got."""
    step, fraction = reached(trial)
    before_step, before_fraction = attribute(trial.user_attrs, FURTHEST, (None, 0.0))
    further = _is_further(step, before_step) or fraction > before_fraction
    attempt = 1 if further else attempt_of(trial)
    is_counted = attribute(trial.user_attrs, REASON) != INTERRUPTED  # interruptions are not due to the parameters
    furthest = step if _is_further(step, before_step) else before_step
    return attempt + is_counted, [furthest, max(fraction, before_fraction)]


def _is_further(step: float | None, before: float | None) -> bool:
    return step is not None and (before is None or step > before)


def is_given_up(trial: FrozenTrial) -> bool:
    """Return whether a dead trial was the last attempt at its parameters.

    Example:
        >>> import optuna
        >>> from optuna_nas.storage.attributes import ATTEMPT
        >>> from optuna_nas.storage.retries import is_given_up
        >>> [is_given_up(optuna.create_trial(value=1.0, user_attrs={ATTEMPT: attempt})) for attempt in (1, 2, 3)]
        [False, False, True]
    """
    return _next_attempt(trial)[0] > MAX_ATTEMPTS


def replaced_by(trial: FrozenTrial) -> list[int]:
    """Return the numbers of the trials that a trial retries; all are of earlier trials."""
    retried = attribute(trial.user_attrs, RETRY_OF)
    noted = [*([] if retried is None else [retried]), *attribute(trial.system_attrs, RETRY_HISTORY, ())]
    return [number for number in noted if number < trial.number]


# -- retries ----------------------------------------------------------------------------------------------------------


def try_again(study: Study, trial: FrozenTrial) -> None:
    """Enqueue the parameters of a failed trial, with the number of the attempt and the location of its checkpoint.

    User attributes set by the objective and Optuna's retry history are copied, as by Optuna's own
    `RetryHeartbeatStaleTrialCallback`.

    Args:
        study: Study of the trial.
        trial: Failed trial.

    Example:
        >>> import optuna
        >>> from optuna.trial import TrialState
        >>> from optuna_nas.storage.retries import attempt_of, try_again
        >>> study = optuna.create_study()
        >>> trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
        >>> study.tell(trial, state=TrialState.FAIL).number
        0
        >>> try_again(study, study.trials[0])
        >>> attempt_of(study.trials[1]), study.ask().suggest_float("x", 0, 1) == trial.params["x"]
        (2, True)
    """
    study.add_trial(retry_of(trial))


def retry_of(trial: FrozenTrial) -> FrozenTrial:
    """Return the waiting trial that tries the parameters of a trial again; see `try_again`."""
    params = given_params(trial)
    attempt, furthest = _next_attempt(trial)
    attributes: dict[str, Any] = {RETRY_OF: trial.number, ATTEMPT: attempt, FURTHEST: furthest}
    if params:  # without parameters the retry suggests new ones, which is another training
        attributes |= {name: value for name, value in trial.user_attrs.items() if not is_own(name)}
        attributes[RESUMES] = attribute(trial.user_attrs, RESUMES, trial.number)
        if has_attribute(trial.user_attrs, CHECKPOINT):
            attributes[CHECKPOINT] = attribute(trial.user_attrs, CHECKPOINT)
    system = {
        FIXED_PARAMS: params,
        FAILED_TRIAL: attribute(trial.system_attrs, FAILED_TRIAL, trial.number),
        RETRY_HISTORY: [*attribute(trial.system_attrs, RETRY_HISTORY, ()), trial.number],
    }
    return optuna.create_trial(state=TrialState.WAITING, user_attrs=attributes, system_attrs=system)


class TryAgain:
    """Callback for trials that Optuna fails because of missing heartbeats; their parameters are enqueued again.

    A `BatchingStorage` adds the `retry` in the transaction that fails the trial.

    Args:
        on_dead: Callback for each such trial after its retry is enqueued.
    """

    def __init__(self, on_dead: Callable[[Study, FrozenTrial], None] | None = None) -> None:
        self._on_dead = on_dead

    def retry(self, trial: FrozenTrial) -> FrozenTrial | None:
        """Return the retry of a trial, None if its parameters are given up."""
        return None if is_given_up(trial) else retry_of(trial)

    def __call__(self, study: Study, trial: FrozenTrial) -> None:
        if self._on_dead is not None:
            self._on_dead(study, trial)


def retry_on_fail(trial: Trial) -> None:
    """Let the storage try a running trial of this process again once it fails, if it can do so in one transaction."""
    if (backend := backend_of(trial.study)) is not None:
        backend.retry_on_fail(trial._trial_id, retry_of)


def requeue_interrupted(study: Study, worker: str | None = None, most: float = inf) -> None:
    """Enqueue the parameters of interrupted trials that no other trial retries yet.

    Args:
        study: Study with interrupted trials.
        worker: Name of the worker whose trials are enqueued; None for those of all workers. Workers that are
            interrupted together each enqueue their own trials.
        most: Largest number of trials to enqueue; more would wait for ever in a study that has its total.
    """
    trials = study.get_trials(deepcopy=False)
    taken = {number for trial in trials for number in replaced_by(trial)}
    for trial in trials:
        is_selected = worker is None or attribute(trial.user_attrs, WORKER) == worker
        is_interrupted = trial.state == TrialState.FAIL and attribute(trial.user_attrs, REQUEUED, False)
        if is_selected and is_interrupted and trial.number not in taken and most > 0:
            try_again(study, trial)
            most -= 1


# -- detection of dead trials -----------------------------------------------------------------------------------------


def reap_dead_trials(study: Study, alone: bool = False) -> None:
    """Fail the running trials of processes that have ended, and enqueue their parameters again.

    A trial without the name of a worker is of another program, which may tell its end later. In storages that are not
    of this package a process may also die before it has written its name: without parameters, such a trial is dead if
    this process is alone.

    Args:
        study: Study in which an earlier `run` may have left running trials.
        alone: Whether no other process runs this study; if False, only trials of this machine are checked.
    """
    is_named_later = backend_of(study) is None
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = str(attribute(trial.user_attrs, WORKER, ""))
        if (alone or has_ended(worker)) if worker else (alone and is_named_later and not trial.params):
            fail_dead(study, trial)


def fail_dead(study: Study, trial: FrozenTrial) -> None:
    """Fail a running trial whose process has ended, and enqueue its parameters unless they are given up."""
    storage, given_up, backend = study._storage, is_given_up(trial), backend_of(study)
    with suppress(UpdateFinishedTrialError, ValueError):  # another worker was faster
        if attribute(trial.user_attrs, REASON) != INTERRUPTED:
            attempt = _next_attempt(trial)[0] - 1
            reason = f"its process has ended, attempt {attempt} of {MAX_ATTEMPTS}"
            storage.set_trial_user_attr(trial._trial_id, REASON, reason)
        if not given_up:
            storage.set_trial_user_attr(trial._trial_id, REQUEUED, True)
            if backend is not None:
                backend.retry_on_fail(trial._trial_id, retry_of)
        study.tell(trial.number, state=TrialState.FAIL)
        if not given_up and backend is None:
            try_again(study, study._storage.get_trial(trial._trial_id))


def fail_stale(study: Study) -> None:
    """Fail and retry trials with stale heartbeats, as Optuna does before each trial."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)


class Silent:
    """Detection of running trials whose workers died before their first heartbeat, which Optuna never fails.

    A trial counts as dead once this process has seen it without a heartbeat for `grace` seconds of its own monotonic
    clock. Clocks of other machines, and changes of the system time, have no effect.

    Args:
        study: Study that workers share.
        grace: Seconds without a first heartbeat after which a trial counts as dead, larger than 0.
    """

    def __init__(self, study: Study, grace: float) -> None:
        self._study, self._grace = study, grace
        self._seen: dict[int, float] = {}

    def reap(self, on_dead: Callable[[Study, FrozenTrial], None] = lambda study, trial: None) -> None:
        """Fail and retry the trials without a heartbeat for longer than `grace` seconds.

        Args:
            on_dead: Callback for each such trial after its retry is enqueued.
        """
        if (backend := backend_of(self._study)) is None or backend.heartbeat_interval is None:
            return
        now = time.monotonic()
        silent = backend.without_heartbeat(self._study._study_id)
        self._seen = {trial_id: self._seen.get(trial_id, now) for trial_id in silent}
        dead = [trial_id for trial_id, since in self._seen.items() if now - since > self._grace]
        for trial_id in dead:
            fail_dead(self._study, self._study._storage.get_trial(trial_id))
            on_dead(self._study, self._study._storage.get_trial(trial_id))

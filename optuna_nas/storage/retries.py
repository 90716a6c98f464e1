"""What keeps a study whole while processes come and go: who takes a trial, whose is dead, who tries it again."""

from __future__ import annotations

import socket
import time
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING

import optuna
from optuna import Study
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from optuna_nas.storage.attributes import (
    ATTEMPT,
    CHECKPOINT,
    REASON,
    REQUEUED,
    RESUMES,
    RETRY_HISTORY,
    RETRY_OF,
    WORKER,
)
from optuna_nas.storage.database import MOST_ATTEMPTS, backend_of
from optuna_nas.storage.presence import is_alive

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna import Study
    from optuna.trial import FrozenTrial


INTERRUPTED = "interrupted"


def replaced_by(trial: FrozenTrial) -> list[int]:
    """Return the numbers of the trials that a trial goes on with."""
    ours = [trial.user_attrs[RETRY_OF]] if RETRY_OF in trial.user_attrs else []
    return [*ours, *trial.system_attrs.get(RETRY_HISTORY, ())]


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
        if worker and (alone or (worker.startswith(f"{host}:") and not is_alive(worker))):
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

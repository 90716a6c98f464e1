"""A study as who starts workers sees it: made ready, watched while they work, summed up when they have ended."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import optuna
from optuna.trial import TrialState

from optuna_nas.objective.protocol import metric_of
from optuna_nas.search.opening import open_study
from optuna_nas.search.results import SearchResult, shown_in_mlflow, summarise
from optuna_nas.storage.artifacts import artifact_store
from optuna_nas.storage.database import SQLITE, connect
from optuna_nas.storage.finished import FinishedTrials
from optuna_nas.storage.optuna_rdb import StorageError
from optuna_nas.storage.own_postgres import MOVED, POSTGRESQL, own_database
from optuna_nas.storage.quota import Quota
from optuna_nas.storage.retries import requeue_interrupted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.trial import FrozenTrial

    from optuna_nas.search.config import Search, SearchListener
    from optuna_nas.workers.worker import Job

logger = logging.getLogger(__name__)


class SharedStudy:
    """The study of several workers.

    Without an address of a storage, it lives in a PostgreSQL of its own in `runs/NAME/postgresql`; one that began in an
    sqlite file is copied there.

    Args:
        job: What workers are told; `job` of this object is what to tell them.
        listener: Hears of all trials, by looking at the study.

    Raises:
        UsageError, ValueError, ConnectionError: As `Job.search` and `open_study`.
    """

    def __init__(self, job: Job, listener: SearchListener | None) -> None:
        search = job.search()
        if search.artifacts is not None:
            artifact_store(search.artifacts)  # it can be written to, or all workers would say so
        if search.storage is None:
            job = replace(job, storage=_own_storage(search))
            search = replace(search, storage=job.storage)
        elif not isinstance(search.storage, str):
            raise ValueError(
                "`storage` must be an address for several workers, which each connect to it, but is a "
                f"{type(search.storage).__name__}; pass --storage postgresql://..., or leave it out of the study."
            )
        elif search.storage.startswith("sqlite"):
            logger.warning(
                "Several workers write to an sqlite file, which is slow and may fail; use a database server."
            )
        self.search, self.job, self._listener = search, replace(job, closes=False), listener
        self.study = open_study(search)
        if search.tracking is not None:  # makes the experiment and the study's run, for which workers would race
            search.tracking.start(self.study, **shown_in_mlflow(search))
            search.tracking.finish(self.study, None)
        self._quota = Quota(self.study, search.trials)
        self._known = FinishedTrials()
        self._known.take(self.study.get_trials(deepcopy=False))
        self._metric = metric_of(search.resolved_objective)
        self._epochs: dict[int, int] = {}  # that the listener has heard of, of running trials
        self.n_succeeded = 0
        """Trials that have ended otherwise than by an error, since this object was made."""

    def missing(self) -> int:
        """Return how many trials are missing; all, while the storage does not answer."""
        try:
            return self._quota.missing()
        except StorageError:
            return self.search.trials

    def look(self) -> None:
        """Tell the listener what has happened in the study."""
        try:
            trials = self.study.get_trials(deepcopy=False)
        except StorageError:
            return  # the workers say so
        finished = self._known.take(trials)
        self.n_succeeded += sum(trial.state != TrialState.FAIL for trial in finished)
        if self._listener is None:
            return
        with suppress(*StorageError):  # which listeners may ask too
            self._tell(self._listener, [trials[place] for place in self._known.unfinished], finished)

    def _tell(
        self, listener: SearchListener, unfinished: Sequence[FrozenTrial], finished: Sequence[FrozenTrial]
    ) -> None:
        for trial in unfinished:
            if trial.state != TrialState.RUNNING:
                continue
            if trial.number not in self._epochs:
                self._epochs[trial.number] = -1
                listener.trial_started(trial, {})
            step = trial.last_step
            if step is not None and step > self._epochs[trial.number]:
                self._epochs[trial.number] = step
                listener.epoch(trial.number, step, {self._metric: trial.intermediate_values[step]})
        for trial in finished:
            self._epochs.pop(trial.number, None)
            listener.trial_finished(self.study, trial)

    def conclude(self, interrupted: bool) -> SearchResult:
        """Write to MLflow what is missing there, and sum the study up, once all workers have ended."""
        self.look()
        with suppress(*StorageError):
            requeue_interrupted(self.study)
        missing = self.missing()
        if self.search.tracking is not None:
            if self._listener is not None:
                self._listener.closing()
            try:
                self.search.tracking.rebuild(self.study, **shown_in_mlflow(self.search))
            except ConnectionError as error:
                logger.warning("MLflow lacks part of the study: %s `optuna-nas mirror` writes it later.", error)
        result = summarise(self.search, self.study, judge=not missing)
        return replace(result, interrupted=interrupted or missing > 0, missing=missing)


def _own_storage(search: Search) -> str:
    """Start the study's own database; copy what an earlier search left in its sqlite file."""
    folder = search.resolved_folder()
    before, moved = folder / "study.db", folder / MOVED
    address = own_database(folder / POSTGRESQL)
    if not before.exists() or moved.exists():
        return address
    old, new = connect(f"{SQLITE}{before}"), connect(address)
    with suppress(KeyError):
        optuna.load_study(study_name=search.name, storage=old)
        with suppress(KeyError):  # what a copy that was cut off has left
            optuna.delete_study(study_name=search.name, storage=new)
        optuna.copy_study(from_study_name=search.name, from_storage=old, to_storage=new)
        logger.warning("The study of %s was copied to a PostgreSQL beside it, where it goes on.", before)
    moved.touch()
    return address

"""Study of several workers in the process that starts them: created, watched and summarised."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import optuna
from optuna.trial import TrialState

from optuna_nas.objective.protocol import metric_of
from optuna_nas.search.events import Events
from optuna_nas.search.opening import note_run, open_study
from optuna_nas.search.results import SearchResult, shown_in_mlflow, summarise
from optuna_nas.search.stopping import stopping_of
from optuna_nas.storage.artifacts import artifact_store
from optuna_nas.storage.database import connect, sqlite_address
from optuna_nas.storage.finished import FinishedTrials
from optuna_nas.storage.identity import keep_identity
from optuna_nas.storage.optuna_rdb import StorageError
from optuna_nas.storage.own_postgres import MOVED, POSTGRESQL, own_database
from optuna_nas.storage.quota import Quota

if TYPE_CHECKING:
    from optuna_nas.search.config import Search, SearchListener
    from optuna_nas.workers.worker import Job

logger = logging.getLogger(__name__)


class SharedStudy:
    """Study of several workers.

    Without a storage, the study is kept in a PostgreSQL server of its own in `runs/NAME/postgresql`; a study in an
    sqlite file is copied there.

    Args:
        job: Study and settings. The attribute `job` holds those to pass to workers, with the storage.
        listener: Listener to all trials, which this process reads from the study.

    Raises:
        UsageError, ValueError, ConnectionError: As `Job.search` and `open_study`.
    """

    def __init__(self, job: Job, listener: SearchListener | None) -> None:
        search = job.search()
        if search.artifacts is not None:
            artifact_store(search.artifacts)  # checked once here, instead of by every worker
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
        self.search, self.job, self._events = search, replace(job, closes=False), Events(None, listener)
        self.study = open_study(search)
        if search.tracking is not None:  # creates the experiment and the study's run, for which workers would compete
            search.tracking.start(self.study, **shown_in_mlflow(search))
            search.tracking.finish(self.study, None)
        self._quota = Quota(self.study, search.total)
        self._trials = FinishedTrials()
        self._trials.take(self.study.get_trials(deepcopy=False))
        self._metric = metric_of(search.resolved_objective)
        self._epochs: dict[int, int] = {}  # last epoch of running trials that the listener was notified of
        self.n_succeeded = 0
        """Number of trials that completed or were pruned since this object was made."""

    def missing(self) -> int:
        """Return the number of missing trials; the total while the storage does not answer."""
        try:
            return self._quota.missing()
        except StorageError:
            return self.search.total

    def look(self) -> None:
        """Read the study and notify the listener of new epochs and finished trials."""
        try:
            trials = self.study.get_trials(deepcopy=False)
        except StorageError:
            return  # workers report the error
        finished = self._trials.take(trials)
        self.n_succeeded += sum(trial.state != TrialState.FAIL for trial in finished)
        for trial in (trials[place] for place in self._trials.unfinished):
            if trial.state != TrialState.RUNNING:
                continue
            if trial.number not in self._epochs:
                self._epochs[trial.number] = -1
                self._events.trial_started(trial, {})
            step = trial.last_step
            if step is not None and step > self._epochs[trial.number]:
                self._epochs[trial.number] = step
                self._events.epoch(trial.number, step, {self._metric: trial.intermediate_values[step]})
        for trial in finished:
            self._epochs.pop(trial.number, None)
            self._events.trial_finished(self.study, trial)

    def conclude(self, interrupted: bool, ended: str | None = None) -> SearchResult:
        """Complete the mirror in MLflow and summarise the study, after all workers have ended.

        Args:
            interrupted: Whether a signal interrupted the workers.
            ended: Reason why the search has ended before its total number of trials; None if it has not.
        """
        self.look()
        with suppress(*StorageError):
            self._quota.requeue_interrupted()
        missing = self.missing()
        if missing and not interrupted:
            ended = ended or stopping_of(self.search).reason(self.study)
            missing = 0 if ended is not None else missing
        if ended is not None:
            note_run(self.study, self.search, ended)
        result = summarise(self.search, self.study, judge=not missing)
        if self.search.tracking is not None:
            self._events.closing()
            shown = shown_in_mlflow(self.search)
            try:
                self.search.tracking.rebuild(self.study, network=result.network, **shown)
            except ConnectionError as error:
                logger.warning("MLflow lacks part of the study: %s `optuna-nas mirror` writes it later.", error)
        return replace(result, interrupted=interrupted or missing > 0, missing=missing, ended=ended)


def _own_storage(search: Search) -> str:
    """Start the PostgreSQL server of a study, and copy the study from its sqlite file if there is one."""
    folder = search.resolved_folder()
    before, moved = folder / "study.db", folder / MOVED
    address = own_database(folder / POSTGRESQL)
    if not before.exists() or moved.exists():
        return address
    old, new = connect(sqlite_address(before)), connect(address)
    with suppress(KeyError):
        optuna.load_study(study_name=search.name, storage=old)
        with suppress(KeyError):  # an interrupted copy
            optuna.delete_study(study_name=search.name, storage=new)
        optuna.copy_study(from_study_name=search.name, from_storage=old, to_storage=new)
        keep_identity(optuna.load_study(study_name=search.name, storage=new))
        logger.warning(
            "The study in %s was copied to a PostgreSQL database beside it, which is used from now on.", before
        )
    moved.touch()
    return address

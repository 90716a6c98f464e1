"""Optuna's relational storage with batched writes and a constant cost per trial.

This is the only module that imports private modules of Optuna (written for version 5.0); other modules import these
names from here. If Optuna changes them:

- `optuna.storages._rdb`, `_cached_storage`: run `tests/storage/test_optuna_rdb.py`, which runs Optuna's storage test
  suite on these classes and compares what they read with what Optuna reads. Until it passes, return
  `optuna.storages.get_storage(address)` in `database.connect`; everything works, with more transactions per trial.
- `LazyRandomState`: random stream of Optuna's samplers, through which `ArchitectureSampler` seeds inner samplers.
  Replace it by any class with `rng.seed(int)`.
- `ArtifactStore`: protocol of artifact stores (`open_reader`, `write`, `remove`), used in annotations only.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import threading
import weakref
from collections import defaultdict
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import optuna
from optuna.artifacts._protocol import ArtifactStore as ArtifactStore
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.samplers._lazy_random_state import LazyRandomState as LazyRandomState
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import func, or_, select, update
from sqlalchemy.exc import SQLAlchemyError

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Mapping, Sequence

    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

logger = logging.getLogger(__name__)

MAX_INCLUDED = 500
"""Largest number of unfinished trials that are queried by id; more are rare, and read by Optuna's own query."""

StorageError = (StorageInternalError, SQLAlchemyError)
"""Errors raised if a database does not answer."""


class Surplus(BaseException):
    """Raised if a trial exceeds the total of its study, before it starts or put back; not an error of the objective."""


class _Delayed(NamedTuple):
    """Delayed writes of a running trial."""

    params: dict[str, tuple[float, BaseDistribution]]
    attributes: dict[str, Any]


class _Limit(NamedTuple):
    """Limit of the trials of a study that may start, and user attributes of those that do."""

    started: int
    attributes: Mapping[str, Any]


class BatchingStorage(RDBStorage):
    """Optuna's relational storage with fewer transactions per trial.

    Of trials that `delay` was called for, user attributes are delayed until the next report, system attribute,
    heartbeat, change of state or reading, and then written in one transaction. With heartbeats, parameters are delayed
    likewise, until the first user attribute at the latest. A process that is killed loses its delayed writes. All other
    trials are written at once, as by Optuna, since they may be asked for here and told elsewhere.

    A trial that fails and is tried again becomes both in one transaction (`retry_on_fail`), and no trial starts beyond
    a limit that is checked in the transaction of its start (`limited`): a process may be killed at any moment, and
    others may ask at the same time.

    Connections are closed when the storage is garbage collected, and at the end of the process; Optuna's own storage
    does not close them reliably.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        with self._opened():
            super().__init__(*arguments, **options)
        self._init_state()

    @contextmanager
    def _opened(self) -> Iterator[None]:
        """Close the connections that a block opens on garbage collection, or at once if opening fails."""
        try:
            yield
            weakref.finalize(self, _close, self.engine, os.getpid())
        except BaseException:
            if (engine := getattr(self, "engine", None)) is not None:  # an invalid URL makes no engine
                engine.dispose()
            raise

    def _init_state(self) -> None:
        self._running: set[int] = set()  # running trials of this process whose writes are delayed
        self._delayed: dict[int, _Delayed] = {}
        self._retries: dict[int, Callable[[FrozenTrial], FrozenTrial | None]] = {}
        self._limits: dict[int, _Limit] = {}  # by study
        self._flushing = threading.RLock()

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        own = ("_running", "_delayed", "_retries", "_limits", "_flushing")
        return {name: value for name, value in state.items() if name not in own}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        self._init_state()
        with self._opened():
            super().__setstate__(state)

    # -- delayed writes -------------------------------------------------------------------------------------------

    def delay(self, trial_id: int) -> None:
        """Delay the writes of a trial that this process has begun and will tell the end of."""
        self._running.add(trial_id)

    def _waiting(self, trial_id: int) -> _Delayed:
        return self._delayed.setdefault(trial_id, _Delayed({}, {}))

    def _set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None,
    ) -> None:
        if previous_distribution is None or trial_id not in self._running or self.heartbeat_interval is None:
            # The first parameter of a name in this process is checked against the study. Without heartbeats, nothing
            # would write the delayed parameters of an objective without reports and attributes before its end.
            super()._set_trial_param(trial_id, param_name, param_value_internal, distribution, previous_distribution)
            return
        optuna.distributions.check_distribution_compatibility(previous_distribution, distribution)
        with self._flushing:
            self._waiting(trial_id).params[param_name] = (param_value_internal, distribution)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        if trial_id not in self._running:
            super().set_trial_user_attr(trial_id, key, value)
            return
        value = json.loads(json.dumps(value))  # copies the value, and raises here if it is not JSON
        with self._flushing:
            waiting = self._waiting(trial_id)
            waiting.attributes[key] = value
            if waiting.params:
                self.flush(trial_id)

    def flush(self, trial_id: int) -> None:
        """Write the delayed parameters and attributes of a trial."""
        with self._flushing:
            if (delayed := self._delayed.pop(trial_id, None)) is None:
                return
            try:
                with _create_scoped_session(self.scoped_session) as session:
                    self._write(session, trial_id, delayed)
            except StorageError:
                self._delayed[trial_id] = delayed  # the next flush tries again, since callers may ignore the error
                raise

    def _flush_to_read(self, trial_id: int | None = None) -> None:
        """Write delayed values before reading; drop those of trials that another worker has failed."""
        for waiting in [trial_id] if trial_id is not None else list(self._delayed):
            with suppress(UpdateFinishedTrialError):
                self.flush(waiting)

    def _write(self, session: Session, trial_id: int, delayed: _Delayed) -> None:
        trial = models.TrialModel.find_or_raise_by_id(trial_id, session)
        self.check_trial_is_updatable(trial_id, trial.state)  # type: ignore[arg-type] # annotated as a Column
        # A commit whose answer was lost may have written some of the parameters.
        query = select(models.TrialParamModel.param_name).where(models.TrialParamModel.trial_id == trial_id)
        written = set(session.execute(query).scalars()) if delayed.params else set()
        session.add_all(
            models.TrialParamModel(
                trial_id=trial_id,
                param_name=name,
                param_value=value,
                distribution_json=optuna.distributions.distribution_to_json(distribution),
            )
            for name, (value, distribution) in delayed.params.items()
            if name not in written
        )
        for key, value in delayed.attributes.items():
            self._set_trial_attr_without_commit(session, models.TrialUserAttributeModel, trial_id, key, value)

    # -- starts and ends ------------------------------------------------------------------------------------------

    @contextmanager
    def limited(self, study_id: int, started: int, attributes: Mapping[str, Any]) -> Iterator[None]:
        """Let no trial of a study start inside the block if more than so many have started, by whatever process.

        Args:
            study_id: Id of the study.
            started: Largest number of trials of the study that do not wait.
            attributes: User attributes that a trial has from the moment at which it starts inside the block.

        Raises:
            Surplus: In the block, where a trial is asked for; it stays in the queue, or is not created.
        """
        self._limits[study_id] = _Limit(started, attributes)
        try:
            yield
        finally:
            del self._limits[study_id]

    def _start(self, session: Session, study_id: int, trial_id: int) -> None:
        """Check the limit of a study of which a trial is set running, and write the attributes of the trial."""
        if (limit := self._limits.get(study_id)) is None:
            return
        started = models.TrialModel.state != TrialState.WAITING
        query = select(func.count()).where(models.TrialModel.study_id == study_id, started)
        if session.execute(query).scalar_one() > limit.started:
            raise Surplus
        for key, value in limit.attributes.items():
            self._set_trial_attr_without_commit(session, models.TrialUserAttributeModel, trial_id, key, value)

    def _get_prepared_new_trial(self, study_id: int, template_trial: FrozenTrial | None, session: Session) -> Any:
        """Create a trial; the study's row is locked by the caller."""
        trial: Any = super()._get_prepared_new_trial(study_id, template_trial, session)
        if template_trial is None:
            self._start(session, study_id, trial.trial_id)
        return trial

    def retry_on_fail(self, trial_id: int, retry: Callable[[FrozenTrial], FrozenTrial | None]) -> None:
        """Add what a function returns for a running trial when this process sets it failed, in the same transaction.

        Args:
            trial_id: Id of the running trial.
            retry: Function of the trial that returns the trial to add, or None.
        """
        self._retries[trial_id] = retry

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        stale: list[int] = super()._get_stale_trial_ids(study_id)
        if (retry := getattr(self.heartbeat_stale_trial_callback, "retry", None)) is not None:
            for trial_id in stale:  # which Optuna sets failed one by one
                self.retry_on_fail(trial_id, retry)
        return stale

    def _fail(self, trial_id: int) -> None:
        """Set a running trial failed and add its retry."""
        retry = self._retries[trial_id](self.get_trial(trial_id))
        model = models.TrialModel
        with _create_scoped_session(self.scoped_session) as session:
            study_id: Any = model.find_or_raise_by_id(trial_id, session).study_id
            models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
            running = update(model).where(model.trial_id == trial_id, model.state == TrialState.RUNNING)
            failed = running.values(state=TrialState.FAIL, datetime_complete=datetime.now())
            done: Any = session.execute(failed.execution_options(synchronize_session=False))
            if done.rowcount == 0:
                del self._retries[trial_id]
                raise UpdateFinishedTrialError(f"Trial id {trial_id} is not running any more.")
            if retry is not None:
                self._get_prepared_new_trial(study_id, retry, session)
        del self._retries[trial_id]

    # -- immediate writes and reads -------------------------------------------------------------------------------

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self.flush(trial_id)
        super().set_trial_system_attr(trial_id, key, value)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self.flush(trial_id)
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        self.flush(trial_id)
        self._running.discard(trial_id)
        if state == TrialState.RUNNING and self.heartbeat_interval is not None:
            # The trial may have an old heartbeat of an earlier attempt, by which other workers would declare it dead.
            super().record_heartbeat(trial_id)
        if state == TrialState.RUNNING:
            return self._take(trial_id)
        if state == TrialState.FAIL and trial_id in self._retries:
            self._fail(trial_id)
            return True
        self._retries.pop(trial_id, None)
        return super().set_trial_state_values(trial_id, state, values)

    def _take(self, trial_id: int) -> bool:
        """Set a waiting trial running in one statement; return False if it does not wait.

        Optuna reads the state first and locks the row for that, which sqlite can't: two threads would take one trial.
        """
        trial = models.TrialModel
        waiting = update(trial).where(trial.trial_id == trial_id, trial.state == TrialState.WAITING)
        with _create_scoped_session(self.scoped_session) as session:
            if self._limits:
                study_id: Any = trial.find_or_raise_by_id(trial_id, session).study_id
                models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
            statement = waiting.values(state=TrialState.RUNNING, datetime_start=datetime.now())
            taken: Any = session.execute(statement.execution_options(synchronize_session=False))
            if taken.rowcount == 0:
                found = trial.find_or_raise_by_id(trial_id, session)
                self.check_trial_is_updatable(trial_id, found.state)  # type: ignore[arg-type] # annotated as a Column
            elif self._limits:
                self._start(session, study_id, trial_id)
            return bool(taken.rowcount)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        self._flush_to_read(trial_id)
        return super().get_trial(trial_id)

    def get_trial_user_attrs(self, trial_id: int) -> dict[str, Any]:
        self._flush_to_read(trial_id)
        return super().get_trial_user_attrs(trial_id)

    def get_trial_param(self, trial_id: int, param_name: str) -> float:
        self._flush_to_read(trial_id)
        return super().get_trial_param(trial_id, param_name)

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """Read trials as Optuna does, but from rows instead of objects: measured three times as fast for thousands."""
        self._flush_to_read()
        if states is not None or len(included_trial_ids) > MAX_INCLUDED:
            return super()._get_trials(study_id, states, included_trial_ids, trial_id_greater_than)
        trial_model = models.TrialModel
        selected = trial_model.trial_id > trial_id_greater_than
        if earlier := [trial_id for trial_id in included_trial_ids if trial_id <= trial_id_greater_than]:
            selected = or_(selected, trial_model.trial_id.in_(earlier))
        with _create_scoped_session(self.scoped_session) as session:
            models.StudyModel.find_or_raise_by_id(study_id, session)
            query = select(trial_model).where(trial_model.study_id == study_id, selected).order_by(trial_model.trial_id)
            trials: Sequence[Any] = session.execute(query).scalars().all()
            if not trials:
                return []

            def rows(model: Any, *columns: Any) -> dict[int, list[Any]]:
                """Return the rows of a table by trial, in the order in which they were written."""
                by_trial: dict[int, list[Any]] = defaultdict(list)
                query = select(model.trial_id, *columns).join(trial_model)
                query = query.where(trial_model.study_id == study_id, selected).order_by(
                    next(iter(model.__table__.primary_key))
                )
                for trial_id, *values in session.execute(query):
                    by_trial[trial_id].append(values)
                return by_trial

            value, step = models.TrialValueModel, models.TrialIntermediateValueModel
            param = models.TrialParamModel
            values = rows(value, value.objective, value.value, value.value_type)
            params = rows(param, param.param_name, param.param_value, param.distribution_json)
            steps = rows(step, step.step, step.intermediate_value, step.intermediate_value_type)
            users, systems = (
                rows(model, model.key, model.value_json)
                for model in (models.TrialUserAttributeModel, models.TrialSystemAttributeModel)
            )
            return [
                FrozenTrial(
                    number=trial.number,
                    state=trial.state,
                    value=None,
                    values=[value.stored_repr_to_value(*stored) for _, *stored in sorted(values[trial.trial_id])]
                    or None,
                    datetime_start=trial.datetime_start,
                    datetime_complete=trial.datetime_complete,
                    params={
                        name: _distribution(text).to_external_repr(number)
                        for name, number, text in params[trial.trial_id]
                    },
                    distributions={name: _distribution(text) for name, _, text in params[trial.trial_id]},
                    user_attrs={key: _value_of(text) for key, text in users[trial.trial_id]},
                    system_attrs={key: _value_of(text) for key, text in systems[trial.trial_id]},
                    intermediate_values={
                        number: step.stored_repr_to_intermediate_value(*stored)
                        for number, *stored in steps[trial.trial_id]
                    },
                    trial_id=trial.trial_id,
                )
                for trial in trials
            ]

    # -- heartbeats -----------------------------------------------------------------------------------------------

    def record_heartbeat(self, trial_id: int) -> None:
        self.delay(trial_id)
        try:
            self.flush(trial_id)
            super().record_heartbeat(trial_id)
        except Exception:  # the database is unreachable or the trial was failed; its own thread raises the error
            logger.debug("No heartbeat of trial id %d.", trial_id, exc_info=True)

    def without_heartbeat(self, study_id: int) -> list[int]:
        """Return the ids of the running trials of a study without any heartbeat."""
        query = (
            select(models.TrialModel.trial_id)
            .outerjoin(models.TrialHeartbeatModel)
            .where(models.TrialModel.study_id == study_id)
            .where(models.TrialModel.state == TrialState.RUNNING, models.TrialHeartbeatModel.trial_id.is_(None))
        )
        with _create_scoped_session(self.scoped_session) as session:
            return list(session.execute(query).scalars())


def _close(engine: Engine, opened_by: int) -> None:
    """Close connections, but not those of a parent process that this process was forked from."""
    engine.dispose(close=os.getpid() == opened_by)


@lru_cache(10_000)
def _distribution(text: str) -> BaseDistribution:
    """Return the distribution with a JSON form; cached, since the trials of a study share distributions."""
    return optuna.distributions.json_to_distribution(text)


class FlatStorage(_CachedStorage):
    """Optuna's cache of finished trials, with a cost per access that does not grow with the study."""

    def __init__(self, backend: BatchingStorage) -> None:
        super().__init__(backend)
        self._by_number: dict[int, list[FrozenTrial]] = {}

    def _add_trials_to_cache(self, study_id: int, trials: list[FrozenTrial]) -> None:
        super()._add_trials_to_cache(study_id, trials)
        cached = self._by_number.setdefault(study_id, [])
        for trial in trials:
            if trial.number < len(cached):
                cached[trial.number] = trial
            elif trial.number == len(cached):
                cached.append(trial)
            else:  # trials with lower numbers follow in a later read
                self._by_number[study_id] = cached = sorted(self._studies[study_id].trials.values(), key=_number)

    def delete_study(self, study_id: int) -> None:
        super().delete_study(study_id)
        self._by_number.pop(study_id, None)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        self._read_trials_from_remote_storage(study_id)
        with self._lock:
            trials = self._by_number.get(study_id, [])
            if states is not None and not any(state in states for state in TrialState if state.is_finished()):
                places = (
                    self._trial_id_to_study_id_and_number[i] for i in self._studies[study_id].unfinished_trial_ids
                )
                trials = [trials[place] for place in sorted(number for _, number in places)]
            trials = [trial for trial in trials if states is None or trial.state in states]
            return copy.deepcopy(trials) if deepcopy else trials


def _number(trial: FrozenTrial) -> int:
    return trial.number


def database_address(storage: BaseStorage | str) -> str | None:
    """Return the URL of the database of a storage, None for other storages, such as in memory or a journal.

    Example:
        >>> import optuna
        >>> from optuna_nas.storage.optuna_rdb import database_address
        >>> database_address(optuna.storages.InMemoryStorage()), database_address("sqlite:///study.db")
        (None, 'sqlite:///study.db')
    """
    if isinstance(storage, str):
        return storage
    backend = getattr(storage, "_backend", storage)  # the storage may be a cache around the database
    return str(backend.url) if isinstance(backend, RDBStorage) else None


def has_heartbeats(study: Study) -> bool:
    """Return whether running trials of a study have heartbeats, by which Optuna finds dead workers."""
    backend = getattr(study._storage, "_backend", study._storage)
    return getattr(backend, "heartbeat_interval", None) is not None


def backend_of(study: Study) -> BatchingStorage | None:
    """Return the database behind a study's storage if `database.connect` made it, else None."""
    backend = getattr(study._storage, "_backend", None)
    return backend if isinstance(backend, BatchingStorage) else None


def _value_of(text: str) -> Any:
    """Return the value of an attribute, or its text where that is no JSON: a bad row costs no more than itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text

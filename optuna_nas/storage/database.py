"""Connections to the databases of studies, with heartbeats and readable errors.

Dead workers are detected by missing heartbeats, as in Optuna, and their trials are retried (see `retries`). Writes of
running trials are batched (see `optuna_rdb`).
"""

from __future__ import annotations

import random
import re
import time
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlsplit

from optuna.exceptions import ExperimentalWarning, StorageInternalError
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError

from optuna_nas.storage.optuna_rdb import BatchingStorage, FlatStorage, StorageError, backend_of, database_address
from optuna_nas.storage.own_postgres import hold
from optuna_nas.storage.retries import TryAgain
from optuna_nas.storage.secrets import login_of, without_password, without_secrets
from optuna_nas.training.disk import FULL, unwritable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial


AUTOFLUSH = (
    "(raised as a result of Query-invoked autoflush; consider using a session.no_autoflush block if this flush is "
    "occurring prematurely)"
)
"""What SQLAlchemy says before the reason of some errors."""
TABLE_ATTEMPTS = 2
"""Attempts at creating the tables of a new database, which another process may be creating."""


class Heartbeat(NamedTuple):
    """Heartbeat of running trials, by which other workers detect that their process died.

    Args:
        interval: Seconds between two heartbeats, at least 1.
        grace: Seconds without a heartbeat after which a trial counts as dead; several times `interval`, and longer
            than pauses of the machine.

    Example:
        >>> from optuna_nas import Heartbeat
        >>> Heartbeat(interval=5).grace
        90
    """

    interval: int = 15
    grace: int = 90


def connect(
    address: str | BaseStorage,
    heartbeat: Heartbeat | None = None,
    on_dead: Callable[[Study, FrozenTrial], None] | None = None,
) -> BaseStorage:
    """Return the storage at the URL of a database.

    Args:
        address: URL as in SQLAlchemy; `postgresql://` without a driver uses psycopg. A storage object of Optuna is
            returned unchanged, with its own heartbeats and retries.
        heartbeat: Heartbeat of running trials, None for none; ignored for sqlite.
        on_dead: Callback for each trial that a dead worker left, after its retry is enqueued.

    Raises:
        ConnectionError: The database does not answer.
    """
    if not isinstance(address, str):
        return address
    hold(address)
    if address.startswith("postgresql://"):
        address = address.replace("postgresql", "postgresql+psycopg", 1)
    options: dict[str, Any] = {}
    if not address.startswith("sqlite"):
        # PostgreSQL accepts 100 connections by default. A worker keeps two, for trials and heartbeats, and opens more
        # only while its threads need them.
        options["engine_kwargs"] = {"pool_pre_ping": True, "pool_size": 2, "max_overflow": 8}
        if heartbeat is not None:
            options |= {"heartbeat_interval": heartbeat.interval, "grace_period": heartbeat.grace}
            options["heartbeat_stale_trial_callback"] = TryAgain(on_dead)
    try:
        make_url(address)
    except ArgumentError:
        pass  # Optuna raises it, too
    except ValueError as error:
        raise ConnectionError(
            f"`storage` must be the address of a database but {without_password(address)!r} is none "
            f"({without_secrets(one_line(error), address)}); correct its port."
        ) from None
    with clear_errors(address), warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        for _ in range(TABLE_ATTEMPTS):
            with suppress(DatabaseError):  # another process creates the same tables
                return FlatStorage(BatchingStorage(address, **options))
            time.sleep(random.random())
        return FlatStorage(BatchingStorage(address, **options))


def sqlite_file(storage: str | BaseStorage) -> Path | None:
    """Return the file of an sqlite database, None for other storages and for databases in memory.

    Example:
        >>> from optuna_nas.storage.database import sqlite_file
        >>> sqlite_file("sqlite:///runs/study.db").name, sqlite_file("sqlite:///:memory:")
        ('study.db', None)
    """
    address = database_address(storage) or ""
    if not address.startswith("sqlite"):
        return None
    try:
        url = make_url(address)
    except (ArgumentError, ValueError):
        return None
    file = url.database or ""
    if url.query.get("uri") in ("true", "1") and file.startswith("file:"):  # sqlite's own form of addresses
        file = "" if url.query.get("mode") == "memory" else unquote(urlsplit(file).path)
    return None if file in ("", ":memory:") else Path(file)


def local_file(storage: str | BaseStorage) -> Path | None:
    """Return the file that a storage is: of an sqlite database or of a journal; None for others.

    Example:
        >>> from optuna.storages import JournalStorage
        >>> from optuna.storages.journal import JournalFileBackend
        >>> from optuna_nas.storage.database import local_file
        >>> local_file(JournalStorage(JournalFileBackend("study.log"))).name
        'study.log'
    """
    journal = getattr(getattr(storage, "_backend", None), "_file_path", None)
    return Path(journal) if isinstance(journal, str) else sqlite_file(storage)


def sqlite_address(file: Path | str) -> str:
    """Return the URL of an sqlite file; characters that mean something in a URL are escaped.

    Example:
        >>> from optuna_nas.storage.database import sqlite_address, sqlite_file
        >>> sqlite_address("runs/a%20b?/study.db")
        'sqlite:///runs/a%2520b%3F/study.db'
        >>> sqlite_file(sqlite_address("runs/a%20b?/study.db"))
        PosixPath('runs/a%20b?/study.db')
    """
    return URL.create("sqlite", database=str(file)).render_as_string()


def is_server(storage: str | BaseStorage) -> bool:
    """Return whether a storage is a database server, which supports many writing processes.

    Example:
        >>> from optuna_nas.storage.database import is_server
        >>> is_server("postgresql://host/studies"), is_server("sqlite:///study.db")
        (True, False)
    """
    address = database_address(storage)
    return address is not None and not address.startswith("sqlite")


@contextmanager
def closing(study: Study) -> Iterator[None]:
    """Close the database connections of a study at the end of the block; later access opens them again.

    Raises:
        ValueError: The block has failed, and the study was deleted meanwhile.
    """
    name = study.study_name
    try:
        yield
    except Exception as error:  # any: storages, Optuna and objectives meet missing records each in their own way
        if not _is_deleted(study):
            raise
        raise ValueError(
            f"`study` must stay in its storage while it is in use but {name!r} was deleted; run it again to begin anew."
        ) from error
    finally:
        if (backend := backend_of(study)) is not None:
            backend.engine.dispose()


def _is_deleted(study: Study) -> bool:
    try:
        study._storage.get_study_name_from_id(study._study_id)
    except KeyError:
        return True
    except Exception:  # a storage that does not answer says nothing of its studies
        pass
    return False


@contextmanager
def clear_errors(storage: str | BaseStorage) -> Iterator[None]:
    """Turn errors of an unreachable database into a ConnectionError of one sentence."""
    try:
        yield
    except (*StorageError, OSError, ImportError) as error:
        if isinstance(error, ConnectionError):
            raise
        address = database_address(storage) or ""
        reason = without_secrets(storage_reason(error), address)
        if (login := login_of(address))[0] and re.search(r"[@/?#]", login[1]):
            reason += " (in a user name or password, @ is written %40, / %2F and ? %3F)"
        way_out = "start the database, or correct the address"
        if (why := unwritable(error)) is not None:
            full = "make room on its disk, then run the same again"
            way_out = full if why is FULL else "give `storage` a place that can be written"
        raise ConnectionError(
            f"`storage` must be the address of a database that answers but {shown_storage(storage)!r} does not: "
            f"{reason}; {way_out}."
        ) from error


def storage_reason(error: BaseException) -> str:
    """Return the reason of a database error in one line."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
    return one_line(getattr(cause, "orig", None) or cause)


def shown_storage(storage: str | BaseStorage) -> str:
    """Return the name of a storage in messages: its URL without password, or its class.

    Example:
        >>> from optuna_nas.storage.database import shown_storage
        >>> shown_storage("postgresql://me:secret@host/studies")
        'postgresql://host/studies'
    """
    return without_password(database_address(storage) or type(storage).__name__)


def one_line(error: BaseException) -> str:
    """Return the first line of an error's message, or else the name of its class."""
    said = str(error).strip().removeprefix(AUTOFLUSH).strip()
    return (said or type(error).__name__).splitlines()[0]

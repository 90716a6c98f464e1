"""Tables of MLflow in an SQLite file, which appear whole or not at all.

MLflow makes them in some forty steps. Killed in between, it leaves a file that it can neither use nor mend.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
import time
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_logger = logging.getLogger("optuna_nas.tracking")


def make_tables(file: Path, open_database: Callable[[Path], None]) -> None:
    """Make MLflow's tables in a new or empty file, in another file that then takes its name.

    Args:
        file: SQLite file.
        open_database: Function that lets MLflow open an SQLite file, make its tables, and close it.
    """
    if _is_made(file):
        return
    with _locked(file):
        if not _is_made(file):  # by another process meanwhile
            _new(file, open_database).replace(file)


def make_anew(file: Path, open_database: Callable[[Path], None]) -> bool:
    """Make the tables of a file anew that were never finished, and keep a copy; return False if it holds runs.

    Args:
        file: SQLite file that MLflow can't open. It stays the same file, since MLflow may hold connections to it.
        open_database: As for `make_tables`.
    """
    if not _is_made(file) or _holds_runs(file):
        return False
    with _locked(file):
        aside = file.with_name(f"{file.name}.unfinished-{time.time_ns()}")
        shutil.copyfile(file, aside)
        new = _new(file, open_database)
        with closing(sqlite3.connect(new)) as whole, closing(sqlite3.connect(file)) as unfinished:
            whole.backup(unfinished)
        new.unlink()
    _logger.warning("MLflow was ended while it made the tables of %s; they are made anew. As it was: %s.", file, aside)
    return True


def _new(file: Path, open_database: Callable[[Path], None]) -> Path:
    """Make the tables in another file, after what a kill has left of one, and return it."""
    new = file.with_name(f".{file.name}.new")
    for left in (new, new.with_name(f"{new.name}-journal")):
        left.unlink(missing_ok=True)
    open_database(new)
    return new


def _holds_runs(file: Path) -> bool:
    with suppress(sqlite3.OperationalError), closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
        return bool(database.execute("SELECT count(*) FROM runs").fetchone()[0])
    return False


def _is_made(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Lock an empty file inside the block; SQLite's own locks are others."""
    try:
        import fcntl
    except ImportError:  # Windows has none
        yield
        return
    with open(file, "a") as handle:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield

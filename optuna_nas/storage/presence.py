"""Names of workers, and whether they are alive."""

from __future__ import annotations

import os
import secrets
import socket
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def presence(file: Path) -> Iterator[bool]:
    """Hold a shared lock on a file inside the block; the value is True if no other process holds one."""
    try:
        import fcntl
    except ImportError:  # Windows has no fcntl; there, only process ids identify dead workers
        yield False
        return
    with open(file, "w") as handle:
        alone = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            alone = False
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield alone


_TOKENS: dict[int, str] = {}
MAX_DIGITS = 19
"""Longest number of a process that is looked for."""


def this_worker() -> str:
    """Return the name of this process, `HOST:PID:TOKEN`; the token is another one if the process id is reused."""
    token = _TOKENS.setdefault(os.getpid(), secrets.token_hex(4))  # a forked process gets its own token
    return f"{socket.gethostname()}:{os.getpid()}:{token}"


def has_ended(worker: str) -> bool | None:
    """Return whether a worker's process has ended; None for one of another machine, or what names no worker.

    Example:
        >>> has_ended(this_worker()), has_ended("elsewhere:7:1f"), has_ended("nonsense")
        (False, None, None)
    """
    parts = worker.split(":")
    if len(parts) != 3 or parts[0] != socket.gethostname() or not parts[1].isdecimal() or len(parts[1]) > MAX_DIGITS:
        return None
    process = int(parts[1])
    if process == os.getpid():
        return worker != this_worker()
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # of another user, and alive
        return False
    return False

"""Which workers are alive."""

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
    """Hold a shared lock on a file inside the block; the value tells whether nobody else held one before."""
    try:
        import fcntl
    except ImportError:  # not on Windows, where only process ids tell
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


def this_worker() -> str:
    """Return what names this process: its host, its number, and what tells it from a later one of that number."""
    token = _TOKENS.setdefault(os.getpid(), secrets.token_hex(4))  # a forked process has one of its own
    return f"{socket.gethostname()}:{os.getpid()}:{token}"


def is_alive(worker: str) -> bool:
    """Tell whether a worker of this machine still runs; a new process under its old number is not it."""
    process = int(worker.split(":")[1])
    if process == os.getpid():
        return worker == this_worker()
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

"""Disks that take nothing, told from other errors; files that are written whole or not at all."""

from __future__ import annotations

import errno
import glob
import os
import re
import secrets
import shutil
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ABANDONED_SECONDS = 3600
"""Age after which a temporary file counts as left by a process that was killed."""
MAX_NAME = 50
"""Letters of a file's name that stand in that of its temporary file, too: a system allows 255 bytes."""


class Unwritable(NamedTuple):
    """Why a disk takes nothing, as parts of a sentence.

    Args:
        must: What the disk must be.
        is_: What it is.
        way_out: What to do.
    """

    must: str
    is_: str
    way_out: str


FULL = Unwritable("with free space", "full", "free some")
READ_ONLY = Unwritable("that can be written to", "read-only", "mount it for writing, or name another folder")
_KINDS = (
    (FULL, (errno.ENOSPC, errno.EDQUOT), r"no space left|disk is full|disk quota exceeded|os error (28|122)\b"),
    (READ_ONLY, (errno.EROFS,), r"read-?only (file ?system|database)|os error 30\b"),
)
"""What packages say that raise errors of their own: SQLite, safetensors, PostgreSQL."""


def unwritable(error: BaseException | None) -> Unwritable | None:
    """Return why a disk takes nothing, if that is what an error, or one behind it, means; else None.

    Example:
        >>> import errno
        >>> from optuna_nas.training.disk import unwritable
        >>> unwritable(OSError(errno.ENOSPC, "No space left on device")).is_
        'full'
        >>> unwritable(OSError("no such file")) is None
        True
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        number = error.errno if isinstance(error, OSError) else None
        for kind, numbers, says in _KINDS:
            if number in numbers or re.search(says, str(error), re.IGNORECASE):
                return kind
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a file to write, which takes the place of another at the end of the block.

    If the block raises, as on a full disk, or the process is killed in it, what was there before stays as it was.

    Args:
        path: File to write, in an existing folder. A link stays one, to the new file.

    Example:
        >>> from pathlib import Path
        >>> from optuna_nas.training.disk import whole_file
        >>> with whole_file(Path("note.txt")) as file:
        ...     _ = file.write_text("all of it")
        >>> Path("note.txt").read_text()
        'all of it'
    """
    path = path.resolve()
    begins = f".{path.name[:MAX_NAME]}."
    temporary = path.with_name(f"{begins}{secrets.token_hex(8)}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        with suppress(OSError):
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    finally:
        with suppress(OSError):  # a disk that takes nothing has none
            temporary.unlink(missing_ok=True)
        for unfinished in path.parent.glob(f"{glob.escape(begins)}*"):
            with suppress(OSError):
                if time.time() - unfinished.stat().st_mtime > ABANDONED_SECONDS:
                    unfinished.unlink()  # left by a process that was killed while writing

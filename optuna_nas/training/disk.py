"""A disk without free space, or one that is read-only, told from other errors."""

from __future__ import annotations

import errno
import re

FULL = re.compile(r"no space left|disk is full|disk quota exceeded|os error (28|122)\b", re.IGNORECASE)
"""What packages say that raise errors of their own: SQLite, safetensors, PostgreSQL."""

READ_ONLY = re.compile(r"read-?only (file system|database)|os error 30\b", re.IGNORECASE)
"""What they say of a disk that is mounted for reading."""


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether an error, or one behind it, means that a disk is full or a quota used up.

    Example:
        >>> import errno
        >>> from optuna_nas.training.disk import is_disk_full
        >>> is_disk_full(OSError(errno.ENOSPC, "No space left on device")), is_disk_full(OSError("no such file"))
        (True, False)
    """
    return _is_of(error, (errno.ENOSPC, errno.EDQUOT), FULL)


def is_read_only(error: BaseException | None) -> bool:
    """Return whether an error, or one behind it, means that a disk can only be read.

    Example:
        >>> import errno
        >>> from optuna_nas.training.disk import is_read_only
        >>> is_read_only(OSError(errno.EROFS, "Read-only file system")), is_read_only(OSError("no such file"))
        (True, False)
    """
    return _is_of(error, (errno.EROFS,), READ_ONLY)


def _is_of(error: BaseException | None, numbers: tuple[int, ...], says: re.Pattern[str]) -> bool:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        number = error.errno if isinstance(error, OSError) else None
        if number in numbers or says.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False

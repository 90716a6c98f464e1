"""A disk without free space, told from other errors."""

from __future__ import annotations

import errno
import re

FULL = re.compile(r"no space left|disk is full|disk quota exceeded|os error (28|122)\b", re.IGNORECASE)
"""What packages say that raise errors of their own: SQLite, safetensors, PostgreSQL."""


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether an error, or one behind it, means that a disk is full or a quota used up.

    Example:
        >>> import errno
        >>> from optuna_nas.training.disk import is_disk_full
        >>> is_disk_full(OSError(errno.ENOSPC, "No space left on device")), is_disk_full(OSError("no such file"))
        (True, False)
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT) or FULL.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False

"""Names of folders for studies, whose own may be any text."""

from __future__ import annotations

import hashlib
import re

MAX_FOLDER_BYTES = 200
"""Largest number of bytes of a folder that is named like its study."""


def folder_name(name: str) -> str:
    """Return the name of a study's folder: its own, or its beginning and a hash where that can be no file.

    Example:
        >>> from optuna_nas.storage.folder_names import folder_name
        >>> folder_name("digits"), len(folder_name("x" * 255)), folder_name("../etc")
        ('digits', 61, '.._etc-f922cd081f456e6b')
    """
    if len(name.encode()) <= MAX_FOLDER_BYTES and not re.search(r"[/\\\x00]", name) and name not in ("", ".", ".."):
        return name
    beginning = re.sub(r"[/\\\x00]", "_", name[:44])
    return f"{beginning}-{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}"

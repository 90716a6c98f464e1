"""Home folder of a user whom the system does not know."""

from __future__ import annotations

import os
from pathlib import Path


def have_home() -> None:
    """Set `HOME` to a folder that does not exist where the system knows none, since MLflow can't be imported then.

    Containers run as any user id, of which there need not be an entry in `/etc/passwd`.
    """
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/nonexistent"

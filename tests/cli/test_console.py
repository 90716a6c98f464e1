"""Errors in a terminal are one sentence each."""

import errno

import pytest
import typer
from optuna.exceptions import StorageInternalError

from optuna_nas.cli.console import shown_errors


def stored(text):
    """Return an error as Optuna raises it, with that of the database behind it."""
    error = StorageInternalError("An exception is raised during the commit.")
    error.__cause__ = RuntimeError(text)
    return error


@pytest.mark.parametrize(
    ("error", "must"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "report.html"), "with free space but one is full"),
        (stored("(sqlite3.OperationalError) database or disk is full"), "with free space but one is full"),
        (OSError(errno.EROFS, "Read-only file system", "report.html"), "that can be written to but one is read-only"),
        (stored("attempt to write a readonly database"), "that can be written to but one is read-only"),
    ],
)
def test_a_disk_that_takes_nothing_is_named(error, must, capsys):
    with pytest.raises(typer.Exit) as ended, shown_errors(False, {}):
        raise error
    said = " ".join(capsys.readouterr().err.split())
    assert ended.value.exit_code == 2
    assert said.startswith("Error: Files and database of a study must be on a disk " + must)
    assert said.endswith("then run this again: what is finished is kept.")
    assert "An exception is raised" not in said

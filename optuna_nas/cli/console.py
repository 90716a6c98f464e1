"""Output and error messages of the command line."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.logging import RichHandler

from optuna_nas.results.plain import visible
from optuna_nas.search.study_file import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.text import Text

# rich would wrap output to a file at 80 columns.
_WIDTH = None if sys.stdout.isatty() else 120
MAX_SUMMARY = 300
"""Largest number of characters of an architecture in the leaderboard; enough for DARTS' cells and for blocks."""


class PlainConsole(Console):
    """Console that shows control characters of texts as what they are: names and reasons may come from anybody."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)


console = PlainConsole(width=_WIDTH)
errors = PlainConsole(stderr=True, width=None if sys.stderr.isatty() else 1000)


class _PlainFormatter(logging.Formatter):
    """Formats messages without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


@contextmanager
def shown_errors(debug: bool) -> Iterator[None]:
    """Turn errors into one sentence and an exit code: 2 for invalid input, 1 for all others.

    Args:
        debug: Whether to print tracebacks, too.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # hides its tracebacks; the display shows reasons of failures
    logging.basicConfig(
        level=logging.WARNING,
        # rich would write lines of a fixed width to a file.
        handlers=[
            RichHandler(console=errors, show_time=False, show_path=False, show_level=False)
            if errors.is_terminal
            else logging.StreamHandler()
        ],
    )
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_PlainFormatter("%(message)s"))
    try:
        yield
    except (UsageError, ValueError, ConnectionError) as error:
        if debug:
            traceback.print_exc()
        errors.print(f"[bold red]Error:[/] {escaped(str(error))}")
        raise typer.Exit(2) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        if debug:
            traceback.print_exc()
        origin = traceback.extract_tb(error.__traceback__)[-1]
        errors.print(
            f"[bold red]Failed:[/] {type(error).__name__}: {escaped(str(error))} "
            f"({Path(origin.filename).name}, line {origin.lineno}); see --debug. Finished trials are kept."
        )
        raise typer.Exit(1) from None


def escaped(text: str) -> str:
    """Return a text with its brackets escaped for rich."""
    from rich.markup import escape

    return escape(text)


def shortened(summary: str) -> str:
    """Return the summary of an architecture, truncated if it is long; picture and file show all of it."""
    return summary if len(summary) <= MAX_SUMMARY else summary[: MAX_SUMMARY - 4] + " ..."


def print_line(name: str, text: str) -> None:
    """Print one line of a result, name and text, without wrapping."""
    console.print(f"{name:<20}{text}", markup=False, highlight=False, soft_wrap=True)

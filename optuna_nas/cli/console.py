"""Output and error messages of the command line."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import TextColumn
from rich.text import Text

from optuna_nas.search.signals import handled
from optuna_nas.search.study_file import UsageError
from optuna_nas.storage.plain import visible

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.progress import Task

# rich would wrap output to a file at 80 columns.
_WIDTH = None if sys.stdout.isatty() else 120


class PlainConsole(Console):
    """Console that shows texts as what they are: names and reasons may come from anybody.

    Neither their control characters nor rich's own `[bold]` have an effect, unless `markup=True` asks for the latter.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)


console = PlainConsole(markup=False, width=_WIDTH)
errors = PlainConsole(markup=False, stderr=True, width=None if sys.stderr.isatty() else 1000)


class PlainColumn(TextColumn):
    """Column of a progress bar that shows its text as what it is."""

    def __init__(self, text: str) -> None:
        super().__init__(text, markup=False)

    def render(self, task: Task) -> Text:
        return Text(visible(self.text_format.format(task=task)))


class _PlainFormatter(logging.Formatter):
    """Formats messages without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


@contextmanager
def shown_errors(debug: bool, given: Mapping[str, str]) -> Iterator[None]:
    """Turn errors into one sentence and an exit code: 2 for invalid input, 1 for all others.

    Args:
        debug: Whether to print tracebacks, too.
        given: Flags of the options that were given, by the name that messages have for them.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # hides its tracebacks; the display shows reasons of failures
    logging.basicConfig(
        level=logging.WARNING,
        # rich would write lines of a fixed width to a file.
        handlers=[
            # Through the console of the bars, if there are any, so that a message is above them and whole.
            RichHandler(
                console=console if console.is_terminal else errors, show_time=False, show_path=False, show_level=False
            )
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
        errors.print(f"[bold red]Error:[/] {escape(with_flags(str(error), given))}", markup=True)
        raise typer.Exit(2) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        if debug:
            traceback.print_exc()
        if (why := _why_not_written(error)) is not None:
            errors.print(f"[bold red]Error:[/] {escape(why)}", markup=True)
            raise typer.Exit(2) from None
        origin = traceback.extract_tb(error.__traceback__)[-1]
        errors.print(
            f"[bold red]Failed:[/] {type(error).__name__}: {escape(str(error))} "
            f"({escape(Path(origin.filename).name)}, line {origin.lineno}); see --debug. Finished trials are kept.",
            markup=True,
        )
        raise typer.Exit(1) from None


def _why_not_written(error: Exception) -> str | None:
    """Return a sentence for an error that means that a disk takes nothing; None for other errors."""
    from optuna_nas.storage.database import storage_reason
    from optuna_nas.training.disk import unwritable

    if (why := unwritable(error)) is None:
        return None
    return (
        f"Files and database of a study must be on a disk {why.must} but one is {why.is_} ({storage_reason(error)}); "
        f"{why.way_out}, then run this again: what is finished is kept."
    )


def with_flags(message: str, given: Mapping[str, str]) -> str:
    """Return a message in which the argument that it begins with is called by the flag that a person gave.

    A message that begins with a place in a file is about what stands there.

    Args:
        message: Message with names in backticks.
        given: Flags by name.

    Example:
        >>> from optuna_nas.cli.console import with_flags
        >>> with_flags("`trials` must be an integer of at least 1 but got 0.", {"trials": "--trials"})
        '`--trials` must be an integer of at least 1 but got 0.'
    """
    return re.sub(r"^`(\w+)`", lambda found: f"`{given.get(found[1], found[1])}`", message)


@contextmanager
def collected(*signals: str) -> Iterator[list[int]]:
    """Collect signals, such as SIGINT of Ctrl-C, in a list inside the block; systems lack some, which are left out."""
    received: list[int] = []
    known = [signal.Signals[name] for name in signals if name in signal.Signals.__members__]
    with handled(dict.fromkeys(known, lambda number, frame: received.append(number))):
        yield received


def print_line(name: str, text: str) -> None:
    """Print one line of a result, name and text, without wrapping."""
    console.print(f"{name:<20}{text}", markup=False, highlight=False, soft_wrap=True)

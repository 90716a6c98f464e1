"""What a command says: progress, lines of its result, and in the end one command to copy; or JSON."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, NamedTuple

from optuna_nas.cli.console import console, print_line
from optuna_nas.cli.display import Display
from optuna_nas.cli.json_lines import JSONLines, print_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from optuna_nas.search.config import Search


class Output(NamedTuple):
    """How a command speaks.

    Args:
        quiet: Whether to show no progress, only the result.
        as_json: Whether to print JSON, one object a line, instead of lines to read.

    Example:
        >>> from optuna_nas.cli.output import Output
        >>> Output().end("Run it", "optuna-nas run study.yaml")
        Run it              optuna-nas run study.yaml
        >>> Output(as_json=True).end("Run it", "optuna-nas run study.yaml", study="digits")
        {"event": "result", "study": "digits", "next": "optuna-nas run study.yaml"}
    """

    quiet: bool = False
    as_json: bool = False

    @property
    def silent(self) -> bool:
        """Whether nothing is said before the result, unless it is JSON."""
        return self.quiet or self.as_json

    def doing(self, what: str) -> AbstractContextManager[object]:
        """Show in a terminal what is done inside the block, such as `Loading PyTorch`."""
        return nullcontext() if self.silent else console.status(f"{what} ...")

    def line(self, name: str, text: str) -> None:
        """Print a line of the result, unless it is JSON."""
        if not self.as_json:
            print_line(name, text)

    def end(self, name: str, command: str, event: str = "result", /, **values: object) -> None:
        """End with one command to copy, as the last line, or with the result as JSON, in which the command is `next`.

        Args:
            name: What the command is for.
            command: Command that a shell runs as it is.
            event: Name of the JSON object.
            **values: Result, which only JSON shows here.
        """
        if self.as_json:
            print_json(event, **values, next=command)
        else:
            print_line(name, command)

    @contextmanager
    def progress(
        self, study: str, total: int | None, strategy: str | None = None, of: str = "trials"
    ) -> Iterator[Display | JSONLines | None]:
        """Yield who shows the progress inside the block: bars or lines, JSON, or nobody.

        Args:
            study: Name of the study.
            total: Number of trials or epochs; None if another condition ends it.
            strategy: What its strategy will do, in a sentence; None without one.
            of: What the total is of.
        """
        if self.quiet:
            yield None
        elif self.as_json:
            yield JSONLines(study, total, strategy, of)
        else:
            with Display(total) as display:
                yield display

    def search_progress(self, search: Search) -> AbstractContextManager[Display | JSONLines | None]:
        """Yield who shows the progress of a search inside the block."""
        made = search.made_strategy
        return self.progress(search.name, search.shown_total, None if made is None else made.explanation)


class Consecutive:
    """Progress of searches one after another, such as the runs of a comparison.

    Args:
        output: How the command speaks.
    """

    def __init__(self, output: Output) -> None:
        self._output, self._shown = output, ExitStack()

    def __enter__(self) -> Consecutive:
        return self

    def __exit__(self, *unused: object) -> None:
        self._shown.close()

    def next(self, title: str, search: Search) -> Display | JSONLines | None:
        """End the progress of the last search, and begin that of the next under a title."""
        self._shown.close()
        if not self._output.silent:
            console.print(title, highlight=False)
        return self._shown.enter_context(self._output.search_progress(search))

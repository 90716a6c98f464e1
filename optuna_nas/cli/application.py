"""The program `optuna-nas`: its commands, errors in one sentence, and what it says without a command."""

from __future__ import annotations

import re
import shlex
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from optuna_nas import __version__
from optuna_nas.cli.console import console, errors, shown_errors
from optuna_nas.cli.options import program
from optuna_nas.cli.output import Output
from optuna_nas.search.checks import similar
from optuna_nas.storage.secrets import quoted, without_password

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAME = "optuna-nas"
WORDS = "optuna_nas.words"
"""Key of the words after the command in typer's context, for messages."""
WrongUse: Any = typer.BadParameter.__base__
"""Base class of typer's errors in arguments, which typer does not export."""


class Command(TyperCommand):
    """A command that fails with one sentence, in which arguments are the flags that were given."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[WORDS] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        given = {
            parameter.name: parameter.opts[0]
            for parameter in self.params
            if parameter.param_type_name == "option" and ctx.get_parameter_source(parameter.name).name == "COMMANDLINE"
        }
        with shown_errors(ctx.params.get("debug", False), given):
            return super().invoke(ctx)


class Commands(TyperGroup):
    """All commands; wrong use of one is one sentence, too."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with _in_one_sentence():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        with _in_one_sentence():
            return super().invoke(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands and not args[0].startswith("-") and not ctx.resilient_parsing:
            known = ", ".join(self.commands)
            way = similar(args[0], self.commands) or f"; known: {known}."
            raise WrongUse(f"`{NAME}` must be followed by a command but {quoted(args[0])} is none{way}")
        return super().resolve_command(ctx, args)


@contextmanager
def _in_one_sentence() -> Iterator[None]:
    try:
        yield
    except WrongUse as error:
        command = getattr(error.ctx, "command_path", NAME)
        errors.print(f"[bold red]Error:[/] {escape(_sentence(error, command))}", markup=True, highlight=False)
        raise typer.Exit(2) from None


def _sentence(error: Any, command: str) -> str:
    """Return argument, rule, value and way out of an error that typer has found."""
    helps = f"see `{command} --help`."
    parameter = getattr(error, "param", None)
    name = "" if parameter is None else getattr(parameter, "metavar", None) or parameter.name.upper()
    if parameter is not None and parameter.param_type_name == "option":
        name = parameter.opts[0]
    text: str = error.format_message()
    kind = type(error).__name__
    if kind == "MissingParameter":
        return f"`{name}` must be given to `{command}` but is missing; add it, or {helps}"
    if kind == "NoSuchOption":
        close = similar(error.option_name, error.possibilities or ())
        shown = without_password(error.option_name)
        return f"`{shown}` must be an option of `{command}` but is none{close or '; ' + helps}"
    if kind == "BadOptionUsage":
        return f"`{error.option_name}` must be followed by one value but is not: {text.rstrip('.')}; {helps}"
    if parameter is not None:
        rule = text.rpartition("': ")[2].removeprefix("Input should be ").partition(", unable")[0].rstrip(".")
        return f"`{name}` must be {rule} but got {quoted(_given(error.ctx, parameter))}; {helps}"
    if (extra := re.search(r"unexpected extra argument(?:s|\(s\))? \((.*)\)", text, re.DOTALL)) is not None:
        return f"`{command}` must be given no more arguments but got {quoted(extra[1])}; leave it out, or {helps}"
    return text


def _given(context: Any, parameter: Any) -> str:
    """Return the word that was given for an option or argument."""
    words: list[str] = context.meta.get(WORDS, [])
    for place, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag in parameter.opts:
            return value if equals else words[place + 1]
    return " ".join(words)


app = typer.Typer(
    cls=Commands,
    help="Neural architecture search as an ordinary Optuna study.",
    pretty_exceptions_enable=False,
)


def command(name: str | None = None) -> Callable[[Any], Any]:
    """Return a decorator that makes a function a command of the program."""
    return app.command(name, cls=Command)


@app.callback(invoke_without_command=True)
def _without_command(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False
) -> None:
    if version:
        console.print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print_first_steps()


def print_first_steps() -> None:
    """Print what to do first, from the files of the working folder."""
    written = next((path for path in ("study.yaml", "study.py") if Path(path).is_file()), None)
    study = written or "study.yaml"
    console.print("Neural architecture search as an ordinary Optuna study. What to do first:\n")
    steps = {
        "init": "write a commented study, study.yaml, to begin with",
        f"run {study}": "search; Ctrl-C ends, and the same command goes on",
        f"report {study}": "who won, by how much, at which cost, as one page",
        f"view {study}": "the same in MLflow, with every trial",
        "list": "the studies of this folder: state, best, how to go on",
        "--help": "all commands",
    }
    width = max(map(len, steps))
    for words, does in steps.items():
        console.print(f"  {NAME} {words:<{width}}   {does}", highlight=False)
    now = shlex.join([program(), *(["init"] if written is None else ["run", study])])
    console.print()
    Output().end("Now", now)

"""Arguments and options that several commands have, and commands to copy."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optuna_nas.search.checks import STRATEGIES
from optuna_nas.storage.secrets import holds_secret

if TYPE_CHECKING:
    from collections.abc import Iterable


def strategies() -> list[str]:
    """Return the names of strategies, which shells complete."""
    return list(STRATEGIES)


StudyFile = Annotated[
    Path, typer.Argument(help="Python file with a function `search()` that returns a `Search`, or YAML file.")
]
Name = Annotated[str | None, typer.Option(help="Name of the study, and of its folder in `runs`, instead of its own.")]
Strategy = Annotated[
    str | None,
    typer.Option(
        help=f"{', '.join(strategies())}: instead of the study's sampler and pruner.", autocompletion=strategies
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Argument of the file's `search` function, or a.b=VALUE of a YAML file."
    ),
]
Storage = Annotated[str | None, typer.Option(help="URL of the Optuna storage, instead of the study's.")]
MLflow = Annotated[str | None, typer.Option(help="Tracking URI of MLflow, instead of the study's.")]
NoMLflow = Annotated[bool, typer.Option("--no-mlflow", help="Do not mirror the study to MLflow.")]
Artifacts = Annotated[
    str | None, typer.Option(help="Folder or s3://BUCKET in which workers share trained models and checkpoints.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress, only the result.")]
AsJSON = Annotated[
    bool, typer.Option("--json", help="Print JSON, one object a line; the last is the result. --quiet prints no other.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def renamed(settings: list[str] | None, name: str | None) -> list[str]:
    """Return the settings of a study file with the name that `--name` gives."""
    return [*(settings or []), *([] if name is None else [f"name={name}"])]


def program() -> str:
    """Return the command that calls this program again, with its path if it is not on the search path."""
    called = Path(sys.argv[0])
    return str(called) if called.name == "optuna-nas" and shutil.which(called.name) is None else "optuna-nas"


def python(*words: str) -> str:
    """Return a command for the Python of this program, which is given by its path unless `python` starts it."""
    return shlex.join(["python" if _is_on_path() else sys.executable, *words])


def on_path() -> str:
    """Return what puts the programs beside this one's Python on the search path of a command; empty if they are."""
    return "" if _is_on_path() else f"PATH={shlex.quote(str(Path(sys.executable).absolute().parent))}:$PATH "


def _is_on_path() -> bool:
    """Return whether `python` starts the Python of this program."""
    found = shutil.which("python")
    return found is not None and Path(found).absolute() == Path(sys.executable).absolute()


def same_command() -> str:
    """Return the command that this process was started with, without its secrets."""
    return shlex.join([program(), *(shown_address(word) for word in sys.argv[1:])])


def to_copy(command: str, target: str | Path, **options: str | Path | Iterable[str] | None) -> str:
    """Return a command that goes on with a study.

    Args:
        command: Command of the program.
        target: Its argument.
        **options: Values by the name of the option; None leaves it out, `settings` are those of `--set`.
    """
    words = [program(), command, str(target)]
    for name, given in options.items():
        flag = "--set" if name == "settings" else f"--{name.replace('_', '-')}"
        values = [given] if isinstance(given, str | Path) else given or ()
        for value in values:
            words += [flag, shown_address(str(value))]
    return shlex.join(words)


def shown_address(address: str) -> str:
    """Return an address as a command may show it: three dots where it holds a password or a token."""
    return "..." if holds_secret(address) else address

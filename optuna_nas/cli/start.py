"""To begin with, and to find again: `optuna-nas init` and `list`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.prompt import Prompt
from rich.table import Table

from optuna_nas.cli.application import command
from optuna_nas.cli.console import console
from optuna_nas.cli.json_lines import print_json
from optuna_nas.cli.options import AsJSON, Debug, program, strategies, to_copy
from optuna_nas.cli.output import Output
from optuna_nas.search.new_study import DATA, SKELETONS, STRATEGIES_OF, NewStudy
from optuna_nas.search.study_file import YAML_SUFFIXES, UsageError
from optuna_nas.storage.secrets import without_password

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna_nas.results.listing import StudySummary

RUNS = Path("runs")


@command()
def init(
    study: Annotated[Path | None, typer.Argument(help="New file, .yaml or .py; by default study.yaml.")] = None,
    data: Annotated[
        str | None, typer.Option(help=f"{', '.join(DATA)}; by default digits.", autocompletion=lambda: list(DATA))
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(SKELETONS)}; by default nasbench201_space.", autocompletion=lambda: list(SKELETONS)
        ),
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(help=f"{', '.join(strategies())}; by default auto.", autocompletion=strategies)
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the study; by default that of the file.")] = None,
    trials: Annotated[int | None, typer.Option(help="Total number of trials; by default 30.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Seconds of all trials together.")] = None,
    python: Annotated[bool, typer.Option("--python", help="Write Python instead of YAML.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    debug: Debug = False,
) -> None:
    """Write a commented study that runs as it is, to begin with; in a terminal, asks what no option says."""
    path = study or Path("study.py" if python else "study.yaml")
    if path.suffix not in (".py",) if python else path.suffix not in (*YAML_SUFFIXES, ".py"):
        ends = ".py, with --python," if python else f"{', '.join(YAML_SUFFIXES)} or .py"
        raise UsageError(
            f"`study` must be a file that ends with {ends} but is {without_password(str(path))}; give another name."
        )
    if data is space is strategy is None and sys.stdin.isatty() and console.is_terminal:
        if path.exists() and not force:  # before anything is asked
            raise _is_there(path)
        data = Prompt.ask("Data", console=console, choices=list(DATA), default=DATA[0])
        space = Prompt.ask(
            "What may be chosen", console=console, choices=list(SKELETONS), default=next(iter(SKELETONS))
        )
        strategy = Prompt.ask("Strategy", console=console, choices=list(STRATEGIES_OF[space]), default=strategies()[0])
    given = {"data": data, "space": space, "strategy": strategy}
    chosen = {key: value for key, value in given.items() if value is not None}
    new = NewStudy(name or path.stem, trials=trials, seconds=seconds, **chosen)
    new.check()
    run_it = to_copy("run", path)
    text = new.python(run_it) if path.suffix == ".py" else new.yaml(run_it)
    if path.exists() and not force:
        raise _is_there(path)
    from optuna_nas.training.disk import whole_file

    try:
        with whole_file(path) as file:
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"`study` must be a file to write but {without_password(str(path))} is not: {error.strerror}; "
            "give another path."
        ) from None
    Output().line("Study", str(path))
    Output().end("Run it", run_it)


def _is_there(path: Path) -> UsageError:
    return UsageError(f"{path} is there already; pass --force to overwrite it, or give another path.")


@command("list")
def list_studies(
    folder: Annotated[Path, typer.Argument(help="Folder of studies, searched with all below it.")] = RUNS,
    storage: Annotated[str | None, typer.Option(help="URL of an Optuna storage, instead of a folder.")] = None,
    as_json: AsJSON = False,
    debug: Debug = False,
) -> None:
    """List studies: state, trials, best value, last change, and the command that goes on with the last one."""
    if storage is None and folder == RUNS and not folder.exists():
        found = []
    else:
        from optuna_nas.results import listing  # which loads Optuna

        found = listing.studies_in(folder) if storage is None else listing.studies_of(storage)
    if as_json:
        for one in found:
            print_json("study", **{name: value for name, value in one._asdict().items() if name != "storage"})
    elif found:
        table = Table()
        for heading in ("study", "state", "trials", "best", "last change", "in"):
            table.add_column(heading, justify="right" if heading in ("trials", "best") else "left", overflow="fold")
        for one in found:
            table.add_row(*_cells(one))
        console.print(table)
    else:
        console.print(f"No study in {folder if storage is None else 'the storage'} yet.")
    Output(as_json=as_json).end(*_next(found), studies=len(found))


def _next(found: Sequence[StudySummary]) -> tuple[str, str]:
    """Return what to do after a list of studies, the newest first, and the command for it."""
    if not found:
        return "Begin with one", shlex.join([program(), "init"])
    newest = found[0]
    if newest.command:
        return "Go on" if newest.state != "finished" else "Run again", newest.command
    return "In MLflow", to_copy("mirror", newest.name, storage=newest.storage)  # of another program, or of before


def _cells(one: StudySummary) -> list[str]:
    best = "" if one.best is None else f"{one.best:.4f} (trial {one.trial})"
    return [
        one.name,
        one.state if one.ended is None else f"{one.state}: {one.ended}",
        str(one.trials) if one.total is None else f"{one.trials}/{one.total}",
        best,
        "" if one.changed is None else f"{one.changed:%Y-%m-%d %H:%M}",
        one.place,
    ]

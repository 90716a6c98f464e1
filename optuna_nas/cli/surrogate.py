"""How good are the best by score: `optuna-nas surrogate`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from optuna_nas.cli.application import command
from optuna_nas.cli.console import console, print_line
from optuna_nas.cli.display import Displays
from optuna_nas.cli.json_lines import JSONLines, print_json
from optuna_nas.cli.options import (
    AsJSON,
    Debug,
    MLflow,
    Name,
    NoMLflow,
    Quiet,
    Settings,
    Storage,
    Strategy,
    StudyFile,
    renamed,
    same_command,
)
from optuna_nas.search.study_file import load

if TYPE_CHECKING:
    from optuna_nas.results import SurrogateResult, SurrogateSearch
    from optuna_nas.search.config import Search, SearchListener


@command()
def surrogate(
    study: StudyFile,
    protocols: Annotated[
        list[str] | None,
        typer.Option("--protocol", help="top, top-best or random; repeatable, by default all three."),
    ] = None,
    pool_size: Annotated[
        int | None, typer.Option(help="Architectures that are sampled and scored; by default the sampler's.")
    ] = None,
    n_best: Annotated[int, typer.Option(help="Best ones by score that are trained.")] = 10,
    n_random: Annotated[int, typer.Option(help="Random architectures that are trained.")] = 10,
    n_repeats: Annotated[int, typer.Option(help="Full trainings of the best one, with other seeds.")] = 5,
    brief_epochs: Annotated[
        int | None, typer.Option(help="Epochs of a brief training; by default a tenth of a full one.")
    ] = None,
    name: Name = None,
    strategy: Strategy = None,
    storage: Storage = None,
    mlflow: MLflow = None,
    no_mlflow: NoMLflow = False,
    settings: Settings = None,
    quiet: Quiet = False,
    as_json: AsJSON = False,
    debug: Debug = False,
) -> None:
    """Score many architectures without training, train the best and random ones, and compare; resumes."""
    with console.status("Loading PyTorch and the study ..."):
        from optuna_nas.results.surrogate_search import PROTOCOLS, SurrogateSearch

        search = load(study, renamed(settings, name), storage, mlflow, strategy=strategy)
        search = replace(search, command=same_command(), tracking=None if no_mlflow else search.tracking)
        planned = SurrogateSearch(
            search, tuple(protocols or PROTOCOLS), pool_size, n_best, n_random, n_repeats, brief_epochs
        )
    with Displays() as displays:

        def listener(title: str, stage: Search) -> SearchListener | None:
            if as_json:
                return None if quiet else JSONLines(stage)
            return None if quiet else displays.titled(title, stage)

        result = planned.run(listener)
    if as_json:
        found = {} if result is None else result.to_dict()
        print_json("result", study=search.name, interrupted=result is None, next=same_command(), **found)
    elif result is None:
        console.print()
        print_line("Interrupted", "finished trainings are kept.")
        print_line("To resume", same_command())
    else:
        _show(planned, result)
    if result is None:
        raise typer.Exit(130)


def _show(planned: SurrogateSearch, result: SurrogateResult) -> None:
    """Print table and files of a surrogate search."""
    table = Table(title=f"{planned.search.name}: mean and standard deviation of full trainings")
    for heading in result.headings:
        table.add_column(heading, justify="left" if heading == "protocol" else "right")
    for row in result.protocols:
        table.add_row(*row.cells())
    console.print(table)
    print_line("Best architecture", result.best.summary)
    if result.network is not None:
        print_line("Best network", f"{result.network}, read it with optuna_nas.load_network")
    print_line("Files", str(planned.folder / "surrogate.json"))
    if planned.search.tracking is not None:
        print_line("In MLflow", f"study {result.study.study_name} and its run `surrogate search`")

"""How good are the best by score: `optuna-nas surrogate`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from optuna_nas.cli.application import command
from optuna_nas.cli.console import console
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
    to_copy,
)
from optuna_nas.cli.output import Consecutive, Output
from optuna_nas.search.study_file import load

if TYPE_CHECKING:
    from optuna_nas.results import SurrogateResult, SurrogateSearch


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
    settings, output = renamed(settings, name), Output(quiet, as_json)
    with output.doing("Loading PyTorch and the study"):
        from optuna_nas.results.surrogate_search import PROTOCOLS, SurrogateSearch

        search = load(study, settings, storage, mlflow, strategy=strategy)
        search = replace(search, command=same_command(), tracking=None if no_mlflow else search.tracking)
        planned = SurrogateSearch(
            search, tuple(protocols or PROTOCOLS), pool_size, n_best, n_random, n_repeats, brief_epochs
        )
    with Consecutive(output) as shown:
        result = planned.run(shown.next)
    if result is None:
        output.line("Interrupted", "finished trainings are kept.")
        output.end("To resume", same_command(), study=search.name, interrupted=True)
        raise typer.Exit(130)
    if not as_json:
        _show(planned, result, output)
    options = {"strategy": strategy, "storage": storage, "settings": settings}
    found = {"study": search.name, "interrupted": False, **result.to_dict()}
    full, kept_in = result.study.study_name, search.resolved_storage()
    if search.tracking is not None:
        output.line("In MLflow", f"study {full} and its run `surrogate search`")
    if search.tracking is not None and isinstance(kept_in, str):
        output.end("See it in MLflow", to_copy("view", full, storage=kept_in, mlflow=mlflow), **found)
    elif result.network is not None:
        output.end("Export the best", to_copy("export", study, network=result.network, **options), **found)
    else:
        output.end("Its studies", to_copy("list", planned.folder), **found)


def _show(planned: SurrogateSearch, result: SurrogateResult, output: Output) -> None:
    """Print table and files of a surrogate search."""
    table = Table(title=f"{planned.search.name}: mean and standard deviation of full trainings")
    for heading in result.headings:
        table.add_column(heading, justify="left" if heading == "protocol" else "right")
    for row in result.protocols:
        table.add_row(*row.cells())
    console.print(table)
    output.line("Best architecture", result.best.summary)
    if result.network is not None:
        output.line("Best network", f"{result.network}, read it with optuna_nas.load_network")
    output.line("Files", str(planned.folder / "surrogate.json"))

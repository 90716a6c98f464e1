"""Which strategy is better: `optuna-nas compare`."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from optuna_nas.cli.application import command
from optuna_nas.cli.console import console
from optuna_nas.cli.options import (
    AsJSON,
    Debug,
    MLflow,
    NoMLflow,
    Quiet,
    Settings,
    same_command,
    strategies,
    to_copy,
)
from optuna_nas.cli.output import Consecutive, Output
from optuna_nas.search.study_file import UsageError, load

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna_nas.results.comparison import Budget, Comparison
    from optuna_nas.search.config import Search
    from optuna_nas.tracking import MLflowTracker
    from optuna_nas.tracking.comparison import Compared


@command()
def compare(
    studies: Annotated[
        list[Path], typer.Argument(help="YAML files, or Python files whose function `search` has an argument `seed`.")
    ],
    budget: Annotated[
        str, typer.Option(help="Budget of each run: trials=30, seconds=600 or epochs=200.")
    ] = "trials=30",
    seeds: Annotated[int, typer.Option(help="Number of runs of each strategy.")] = 3,
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            help="Strategy to compare, such as auto or snas, on the one study that is given; repeatable.",
            autocompletion=strategies,
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the comparison; by default the names of the studies.")
    ] = None,
    mlflow: MLflow = None,
    no_mlflow: NoMLflow = False,
    settings: Settings = None,
    quiet: Quiet = False,
    as_json: AsJSON = False,
    debug: Debug = False,
) -> None:
    """Compare studies, random search and TPE with equal budgets and several seeds."""
    output = Output(quiet, as_json)
    with output.doing("Loading PyTorch and the studies"):
        from optuna_nas.results import comparison
        from optuna_nas.search.checks import check_name
        from optuna_nas.storage.folder_names import folder_name
        from optuna_nas.tracking import MLflowTracker
        from optuna_nas.tracking.comparison import PREFIX

        spending = comparison.Budget.parse(budget)
        if strategy and len(studies) > 1:
            raise UsageError(f"`--strategy` must go with one study but there are {len(studies)}; leave out the others.")

        def make(seed: int) -> list[Search]:
            loaded = (load(study, [*(settings or []), f"seed={seed}"]) for study in studies)
            searches = [replace(search, command=same_command()) for search in loaded]
            return comparison.by_strategies(searches[0], strategy, spending) if strategy else searches

        first = make(0)
    title = name or "-".join([studies[0].stem, *strategy] if strategy else [search.name for search in first])
    experiment = f"{PREFIX}{title}"
    check_name(experiment)
    folder = Path("runs") / folder_name(experiment)

    def tracker(tags: Mapping[str, str]) -> MLflowTracker | None:
        return None if no_mlflow else MLflowTracker(mlflow, experiment, tags=tags)

    with Consecutive(output) as shown:
        compared = comparison.compare(
            make,
            spending,
            seeds,
            folder,
            tracker,
            listener=lambda strategy, seed, search: shown.next(f"{strategy}, seed {seed}", search),
        )
    if compared is None:
        output.line("Interrupted", "finished runs are kept.")
        output.end("To resume", same_command(), name=title, interrupted=True)
        raise typer.Exit(130)
    from optuna_nas.storage.database import closing

    with ExitStack() as connections:  # of the studies, which are read again for tables and pictures
        for study in compared.studies:
            connections.enter_context(closing(study))
        found = _show_comparison(compared, spending, title, seeds, folder, output)
        mlflow_tracker = tracker({})
        if mlflow_tracker is not None:
            from optuna_nas.tracking.comparison import save_comparison

            address = save_comparison(mlflow_tracker, compared.studies, _shown(compared, spending, seeds))
            found["address"] = address
            if mlflow_tracker.served:
                output.line("In MLflow", address)
    if no_mlflow:
        output.end("Its studies", to_copy("list", folder), **found)
    else:
        output.end("See it in MLflow", to_copy("view", experiment, mlflow=mlflow), **found)


def _shown(compared: Comparison, budget: Budget, seeds: int) -> Compared:
    """Return what MLflow shows of a comparison."""
    from optuna_nas.results import comparison
    from optuna_nas.tracking.comparison import Compared

    by_second = compared.figure_by_second(budget) if budget.kind != comparison.SECONDS else None
    return Compared(
        compared.metric,
        compared.headings,
        [comparison.cells(row) for row in compared.rows],
        compared.finding,
        compared.headlines,
        compared.leader,
        f"{seeds} {'seed' if seeds == 1 else 'seeds'} of every strategy, {budget} each. {compared.told}",
        compared.table(),
        [compared.figure(budget), *([] if by_second is None else [by_second])],
        compared.by_second(budget),
    )


def _show_comparison(
    compared: Comparison, budget: Budget, title: str, seeds: int, folder: Path, output: Output
) -> dict[str, object]:
    """Print the table of a comparison, write table and picture to files, and return all as JSON values."""
    from optuna_nas.results import comparison
    from optuna_nas.training.disk import whole_file

    runs = f"{seeds} {'seed' if seeds == 1 else 'seeds'}, {budget} each"
    table = Table(title=f"{title}: {runs}")
    for heading in compared.headings:
        table.add_column(heading, justify="left" if heading == "strategy" else "right")
    for row in compared.rows:
        table.add_row(*comparison.cells(row))
    if not output.as_json:
        console.print(table)
        console.print(compared.told, soft_wrap=True)
    with whole_file(folder / "comparison.png") as file:
        compared.figure(budget).savefig(file)
    with whole_file(folder / "comparison.json") as file:
        file.write_text(comparison.as_json(compared))
    files = [str(folder / name) for name in ("comparison.png", "comparison.json")]
    output.line("Files", ", ".join(files))
    setting = {"name": title, "interrupted": False, "metric": compared.metric, "seeds": seeds, "budget": str(budget)}
    return {**setting, "rows": comparison.as_values(compared), "told": compared.told, "files": files}

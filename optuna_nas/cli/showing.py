"""What came of a search: `optuna-nas report`, `view` and `mirror`."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optuna_nas.cli.application import command
from optuna_nas.cli.console import collected, console
from optuna_nas.cli.json_lines import result_values
from optuna_nas.cli.options import (
    AsJSON,
    Debug,
    MLflow,
    Name,
    Quiet,
    Settings,
    Storage,
    Strategy,
    StudyFile,
    renamed,
    to_copy,
)
from optuna_nas.cli.output import Output
from optuna_nas.cli.result import print_result
from optuna_nas.search.study_file import UsageError, load
from optuna_nas.storage.secrets import quoted, without_password

if TYPE_CHECKING:
    from optuna import Study

    from optuna_nas.search.config import Search
    from optuna_nas.search.results import SearchResult
    from optuna_nas.tracking import MLflowTracker


@command()
def report(
    study: StudyFile,
    output: Annotated[Path | None, typer.Option(help="Folder of the report, instead of the study's.")] = None,
    name: Name = None,
    strategy: Strategy = None,
    storage: Storage = None,
    settings: Settings = None,
    as_json: AsJSON = False,
    debug: Debug = False,
) -> None:
    """Show the leaderboard of an existing study, and write its report as HTML and Markdown."""
    settings, output_ = renamed(settings, name), Output(as_json=as_json)
    with output_.doing("Loading PyTorch and the study"):
        search = load(study, settings, storage, strategy=strategy)
        from optuna_nas.results.report import write_report
        from optuna_nas.search.opening import read_study
        from optuna_nas.search.results import summarise

        opened = read_study(search)
    result = summarise(search, opened)
    if not as_json:
        print_result(search, result)
    options = {"strategy": strategy, "storage": storage, "settings": settings}
    with output_.doing("Writing the report"):
        files = write_report(search, output, to_copy("run", study, **options))
    output_.line("Report", f"{files.page}, and as Markdown {files.markdown}")
    does, command_ = _after_report(search, result)
    pages = {"report": str(files.page), "markdown": str(files.markdown)}
    output_.end(does, to_copy(command_, study, **options), **result_values(search, result), **pages)


def _after_report(search: Search, result: SearchResult) -> tuple[str, str]:
    """Return what to do after a report, and the command for it: train the best, see it in MLflow, or go on."""
    from optuna_nas.search.results import architecture_of
    from optuna_nas.storage.attributes import MLFLOW, has_attribute, user_attributes

    if result.best is None:
        return "Go on", "run"
    data = getattr(search.resolved_objective, "data", search.data)
    if data is not None and architecture_of(search, result.best) is not None:
        return "Train the best", "train"
    if has_attribute(user_attributes(result.study), MLFLOW):
        return "See it in MLflow", "view"
    return "Show it in MLflow", "mirror"


@command()
def mirror(
    study: Annotated[str, typer.Argument(help="Python or YAML file of a study, or name of any study in --storage.")],
    name: Name = None,
    strategy: Strategy = None,
    storage: Storage = None,
    mlflow: MLflow = None,
    settings: Settings = None,
    quiet: Quiet = False,
    as_json: AsJSON = False,
    debug: Debug = False,
) -> None:
    """Write to MLflow everything that it lacks of an existing study, also of one by other programs."""
    from optuna_nas.tracking import MLflowTracker

    settings, output = renamed(settings, name), Output(quiet, as_json)
    if Path(study).is_file():
        from optuna_nas.search.opening import read_study
        from optuna_nas.search.results import network_of, shown_in_mlflow
        from optuna_nas.storage.leaderboard import best_trial

        with output.doing("Loading PyTorch and the study"):
            search = load(Path(study), settings, storage, mlflow, strategy=strategy)
            opened, tracker = read_study(search), search.tracking or MLflowTracker()
            best = best_trial(opened)
            network = None if best is None else network_of(search, opened, best)
            shown: dict[str, Any] = {**shown_in_mlflow(search), "network": network}
    else:
        opened, tracker, shown = _named_study(study, storage), MLflowTracker(mlflow), {}
    total = sum(trial.state.is_finished() for trial in opened.get_trials(deepcopy=False))
    with output.progress(opened.study_name, total) as shows:
        address = tracker.rebuild(opened, on_progress=None if shows is None else shows.mirrored, **shown)
    output.line("In MLflow", f"{total} trials of {opened.study_name}" + (f", {address}" if tracker.served else ""))
    seen = to_copy("view", study, strategy=strategy, storage=storage, mlflow=mlflow, settings=settings)
    output.end("See it", seen, study=opened.study_name, trials=total, address=address)


def _named_study(name: str, storage: str | None) -> Study:
    """Return an existing study of a storage."""
    import optuna

    from optuna_nas.storage.database import clear_errors, connect, sqlite_file

    if storage is None:
        raise UsageError(f"`--storage` must be given if `study` is a name but {quoted(name)} is no file; add it.")
    try:
        if (file := sqlite_file(storage)) is not None and not file.exists():
            raise KeyError(name)  # Optuna would create the file
        with clear_errors(storage):
            return optuna.load_study(study_name=name, storage=connect(storage))
    except KeyError:
        raise UsageError(
            f"`study` must exist but {without_password(storage)} has none named {quoted(name)}; "
            "give another name or storage."
        ) from None


@command()
def view(
    study: Annotated[
        str,
        typer.Argument(
            help="Python or YAML file of a study, name of a study in --storage, or `compare-...` of a comparison."
        ),
    ],
    port: Annotated[int, typer.Option(help="Port of the MLflow server that is started.", min=1, max=65535)] = 5000,
    name: Name = None,
    strategy: Strategy = None,
    storage: Storage = None,
    mlflow: MLflow = None,
    settings: Settings = None,
    debug: Debug = False,
) -> None:
    """Open a study or a comparison in MLflow; starts MLflow's server if the tracking URI is a database."""
    with console.status("Loading PyTorch and the study ..."):
        address, tracker = _view(study, renamed(settings, name), strategy, storage, mlflow, f"http://127.0.0.1:{port}")
    import webbrowser

    from optuna_nas.cli.mlflow_server import mlflow_server  # which loads clients of HTTP, as a browser does

    with (
        collected("SIGINT", "SIGTERM", "SIGHUP") as ends,  # an exception raised while the browser opens may be lost
        nullcontext() if tracker.served else mlflow_server(tracker.store_uri, port, ends) as server,
    ):
        if ends:
            return
        console.print(f"Opening {address}", soft_wrap=True)
        webbrowser.open(address)
        if server is not None:
            console.print("MLflow runs until you press Ctrl-C.")
            while not ends and server.poll() is None:
                time.sleep(0.1)


def _view(
    study: str, settings: list[str], strategy: str | None, storage: str | None, mlflow: str | None, local_server: str
) -> tuple[str, MLflowTracker]:
    """Return the address of what is to be seen, and who knows where it is."""
    from optuna_nas.search.opening import noted_mlflow, read_study, where_mirrored
    from optuna_nas.tracking import MLflowTracker
    from optuna_nas.tracking.comparison import PREFIX, find_comparison

    if not Path(study).is_file():
        if storage is None and study.startswith(PREFIX):
            tracker = MLflowTracker(mlflow, study)
            return find_comparison(tracker, local_server), tracker
        if storage is not None:
            named = _named_study(study, storage)
            tracker = MLflowTracker(mlflow or noted_mlflow(named))
            return tracker.find_view(named, local_server), tracker
    search = load(Path(study), settings, storage, mlflow, strategy=strategy)
    opened = read_study(search)
    if mlflow is None:
        search = where_mirrored(search, opened)
    if search.tracking is None:
        raise UsageError(f"`tracking` of {study} must not be None to view MLflow; remove it from the study.")
    from optuna_nas.objective.protocol import metric_of

    metric = metric_of(search.resolved_objective)
    return search.tracking.find_view(opened, local_server, metric), search.tracking

"""Commands of the command line: `optuna-nas run`, `report`, `view`, `train`, `export` and others."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
import webbrowser
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from optuna_nas import __version__
from optuna_nas.cli.console import console, print_line, shown_errors
from optuna_nas.cli.display import Display, Displays
from optuna_nas.cli.mlflow_server import program, start_mlflow
from optuna_nas.cli.result import print_result
from optuna_nas.search.signals import handled
from optuna_nas.search.study_file import UsageError, load

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from optuna import Study

    from optuna_nas.networks.files import NetworkFile
    from optuna_nas.results.comparison import Budget, Comparison
    from optuna_nas.results.final_training import FinalTraining
    from optuna_nas.search.config import Search
    from optuna_nas.workers import Job


app = typer.Typer(
    help="Neural architecture search as an ordinary Optuna study.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

StudyFile = Annotated[
    Path, typer.Argument(help="Python file with a function `search()` that returns a `Search`, or YAML file.")
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
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def main() -> None:
    """Run the command line with the arguments of the process.

    Example:
        >>> import sys
        >>> from optuna_nas.cli import main
        >>> sys.argv = ["optuna-nas", "run", "study.py", "--trials", "20"]  # doctest: +SKIP
        >>> main()  # doctest: +SKIP
    """
    from optuna_nas.tracking.records import have_home

    have_home()
    app()


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        console.print(__version__)
        raise typer.Exit


@app.command()
def run(
    study: StudyFile,
    trials: Annotated[int | None, typer.Option(help="Total number of trials, instead of the study's.")] = None,
    strategy: Annotated[
        str | None,
        typer.Option(help="auto, free, snas, ghn, hmnas, tpe or random, instead of the study's sampler and pruner."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Seconds of all trials together at which the search ends.")
    ] = None,
    storage: Storage = None,
    mlflow: MLflow = None,
    no_mlflow: NoMLflow = False,
    workers: Annotated[
        int | None, typer.Option(help="Processes on this machine; the study is then kept in its own PostgreSQL server.")
    ] = None,
    gpus_per_trial: Annotated[
        float | None, typer.Option(help="GPUs per worker, such as 0.5; by default all GPUs are shared evenly.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help="Run the workers on Ray: `local`, or the address of a cluster such as `auto`.")
    ] = None,
    artifacts: Artifacts = None,
    settings: Settings = None,
    debug: Debug = False,
) -> None:
    """Run or resume a study until its total number of trials; with --workers, in several processes."""
    with shown_errors(debug):
        with console.status("Loading PyTorch and the study ..."):
            job = _job(study, settings, trials, storage, mlflow, no_mlflow, artifacts)
            job = replace(job, strategy=strategy, seconds=seconds)
            search = job.search()
        for name, option in (("gpus-per-trial", gpus_per_trial), ("ray", ray)):
            if option is not None and workers is None:
                raise UsageError(f"`--{name}` must go with --workers but there is none; add --workers 1 or more.")
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise UsageError(
                "`torchrun` must start `optuna-nas worker` but started `run`; create the study, then start workers."
            )
        started = time.monotonic()
        if search.made_strategy is not None:
            print_line("Strategy", search.made_strategy.explanation)
        with Display(search.shown_total) as display:
            if workers is None:
                from optuna_nas.search.runner import run as run_search

                result = run_search(search, display)
            elif ray is not None:
                from optuna_nas.workers import run_on_ray

                result = run_on_ray(job, workers, gpus_per_trial, ray, display)
            else:
                from optuna_nas.workers import run_workers

                result = run_workers(job, workers, gpus_per_trial, display)
        print_result(search, result)
        if result.ended is not None:
            print_line("Ended", result.ended)
        print_line("Time", f"{time.monotonic() - started:.1f} s")
        if search.tracking is not None:
            options = [("--storage", storage), ("--mlflow", mlflow), *(("--set", text) for text in settings or [])]
            options = [(option, _shown(value)) for option, value in options]
            arguments = [word for option, value in options if value is not None for word in (option, value)]
            print_line("See it in MLflow", shlex.join([program(), "view", str(study), *arguments]))
        if result.interrupted:
            again = shlex.join([program(), *sys.argv[1:]])
            print_line("\nInterrupted", f"with {result.missing} of {search.total} trials to go. To resume: {again}")
            raise typer.Exit(130)


@app.command()
def init(
    study: Annotated[Path | None, typer.Argument(help="New file, .yaml or .py; by default study.yaml.")] = None,
    data: Annotated[str, typer.Option(help="digits, mnist, fashion_mnist, cifar10 or cifar100.")] = "digits",
    space: Annotated[
        str, typer.Option(help="nasbench201_space, darts_space, hmnas_space or ghn_space.")
    ] = "nasbench201_space",
    strategy: Annotated[str, typer.Option(help="auto, free, snas, ghn, hmnas, tpe or random.")] = "auto",
    name: Annotated[str | None, typer.Option(help="Name of the study; by default that of the file.")] = None,
    trials: Annotated[int | None, typer.Option(help="Total number of trials; by default 30.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Seconds of all trials together.")] = None,
    python: Annotated[bool, typer.Option("--python", help="Write Python instead of YAML.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    debug: Debug = False,
) -> None:
    """Write a commented study that runs as it is, to begin with."""
    with shown_errors(debug):
        from optuna_nas.search.new_study import NewStudy
        from optuna_nas.search.study_yaml import SUFFIXES

        path = study or Path("study.py" if python else "study.yaml")
        if path.suffix not in (".py",) if python else path.suffix not in (*SUFFIXES, ".py"):
            ends = ".py, with --python," if python else f"{', '.join(SUFFIXES)} or .py"
            raise UsageError(f"`study` must be a file that ends with {ends} but is {path}.")
        with console.status("Loading PyTorch ..."):
            new = NewStudy(name or path.stem, data, space, strategy, trials, seconds)
            new.check()
        command = shlex.join([program(), "run", str(path)])
        text = new.python(command) if path.suffix == ".py" else new.yaml(command)
        try:
            with path.open("w" if force else "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise UsageError(f"{path} is there already; pass --force to overwrite it, or give another path.") from None
        except OSError as error:
            raise UsageError(f"`study` must be a file to write but {path} is not: {error.strerror}.") from None
        print_line("Study", str(path))
        print_line("Run it", command)


def _job(
    study: Path,
    settings: list[str] | None,
    trials: int | None,
    storage: str | None,
    mlflow: str | None,
    no_mlflow: bool,
    artifacts: str | None,
) -> Job:
    """Return study and settings of a worker."""
    from optuna_nas.workers import Job

    return Job(str(study), tuple(settings or ()), trials, storage, mlflow, not no_mlflow, artifacts=artifacts)


@app.command()
def create(
    study: StudyFile,
    storage: Storage = None,
    settings: Settings = None,
    debug: Debug = False,
) -> None:
    """Create a study without running it, for workers that start at the same time; no effect if it exists."""
    with shown_errors(debug):
        from optuna_nas.search.opening import open_study

        with console.status("Loading PyTorch and the study ..."):
            search = load(study, settings, storage)
            open_study(search)
        print_line("Study", f"{search.name} is ready for workers: optuna-nas worker {study} --storage ...")


@app.command()
def worker(
    study: StudyFile,
    storage: Storage = None,
    trials: Annotated[
        int | None, typer.Option(help="Total number of trials of all workers, instead of the study's.")
    ] = None,
    mlflow: MLflow = None,
    no_mlflow: NoMLflow = False,
    artifacts: Artifacts = None,
    gpu_share: Annotated[float, typer.Option(help="Fraction of the GPU memory that this worker may use.")] = 1.0,
    settings: Settings = None,
    debug: Debug = False,
) -> None:
    """Run one more worker of an existing study until its total number of trials: a Slurm task, a pod, a terminal."""
    # Set before loading: the first process of a container ignores signals without a handler.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(130))
    with shown_errors(debug):
        with console.status("Loading PyTorch and the study ..."):
            from optuna_nas.workers import be_worker

            search = _job(study, settings, trials, storage, mlflow, no_mlflow, artifacts).search()
        with Display(search.shown_total) as display:
            missing = be_worker(search, gpu_share, display)
        if os.environ.get("RANK", "0") != "0":  # rank 0 of `torchrun` prints for all ranks
            raise typer.Exit(130 if missing else 0)
        if missing:
            print_line("Interrupted", f"with {missing} of {search.total} trials to go; other workers continue.")
            raise typer.Exit(130)
        print_line("Total reached", f"{search.total} trials. To see them: optuna-nas report {study} --storage ...")


@app.command()
def report(
    study: StudyFile,
    output: Annotated[Path | None, typer.Option(help="Folder of the report, instead of the study's.")] = None,
    storage: Storage = None,
    settings: Settings = None,
    debug: Debug = False,
) -> None:
    """Show the leaderboard of an existing study, and write its report as HTML and Markdown."""
    with shown_errors(debug):
        with console.status("Loading PyTorch and the study ..."):
            search = load(study, settings, storage)
            from optuna_nas.results.report import write_report
            from optuna_nas.search.opening import read_study
            from optuna_nas.search.results import summarise

            opened = read_study(search)
        print_result(search, summarise(search, opened))
        options = [("--storage", _shown(storage)), *(("--set", text) for text in settings or [])]
        arguments = [word for option, value in options if value is not None for word in (option, value)]
        with console.status("Writing the report ..."):
            files = write_report(search, output, shlex.join(["optuna-nas", "run", str(study), *arguments]))
        print_line("Report", f"{files.page}, and as Markdown {files.markdown}")


@app.command()
def mirror(
    study: Annotated[str, typer.Argument(help="Python or YAML file of a study, or name of any study in --storage.")],
    storage: Storage = None,
    mlflow: MLflow = None,
    settings: Settings = None,
    debug: Debug = False,
) -> None:
    """Write to MLflow everything that it lacks of an existing study, also of one by other programs."""
    with shown_errors(debug):
        from optuna_nas.tracking import MLflowTracker

        if Path(study).is_file():
            from optuna_nas.search.opening import read_study
            from optuna_nas.search.results import shown_in_mlflow

            with console.status("Loading PyTorch and the study ..."):
                search = load(Path(study), settings, storage, mlflow)
                opened, tracker = read_study(search), search.tracking or MLflowTracker()
                shown: dict[str, Any] = dict(shown_in_mlflow(search))
        elif storage is None:
            raise UsageError(f"`--storage` must be given if `study` is a name but {study!r} is no file; add it.")
        else:
            opened, tracker, shown = _named_study(study, storage), MLflowTracker(mlflow), {}
        total = sum(trial.state.is_finished() for trial in opened.get_trials(deepcopy=False))
        with Display(total) as display:
            address = tracker.rebuild(opened, on_progress=display.mirrored, **shown)
        print_line("In MLflow", f"{total} trials of {opened.study_name}")
        print_line("See it", address if tracker.served else f"mlflow ui --backend-store-uri {tracker.tracking_uri}")
        if not tracker.served:
            print_line("", address)


def _named_study(name: str, storage: str) -> Study:
    """Return an existing study of a storage."""
    import optuna

    from optuna_nas.storage.database import clear_errors, connect, sqlite_file, without_password

    try:
        if (file := sqlite_file(storage)) is not None and not file.exists():
            raise KeyError(name)  # Optuna would create the file
        with clear_errors(storage):
            return optuna.load_study(study_name=name, storage=connect(storage))
    except KeyError:
        raise UsageError(f"`study` must exist but {without_password(storage)} has none named {name!r}.") from None


@app.command()
def view(
    study: StudyFile,
    port: Annotated[int, typer.Option(help="Port of the MLflow server that is started.")] = 5000,
    storage: Storage = None,
    mlflow: MLflow = None,
    settings: Settings = None,
    debug: Debug = False,
) -> None:
    """Open the study's comparison view in MLflow; starts MLflow's server if the tracking URI is a database."""
    with shown_errors(debug):
        search = load(study, settings, storage, mlflow)
        if search.tracking is None:
            raise UsageError(f"`tracking` of {study} must not be None to view MLflow; remove it from the study.")
        from optuna_nas.objective.protocol import metric_of
        from optuna_nas.search.opening import read_study

        address = search.tracking.find_view(
            read_study(search), f"http://127.0.0.1:{port}", metric_of(search.resolved_objective)
        )
        server = start_mlflow(search.tracking.store_uri, port) if not search.tracking.served else None
        with _ctrl_c() as pressed:  # an exception raised while the browser opens may be lost
            console.print(f"Opening {address}", soft_wrap=True)
            webbrowser.open(address)
            if server is not None:
                console.print("MLflow runs until you press Ctrl-C.")
                while not pressed and server.poll() is None:
                    time.sleep(0.1)
                server.terminate()


@app.command()
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
        typer.Option(help="Strategy to compare, such as auto or snas, on the one study that is given; repeatable."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the comparison; by default the names of the studies.")
    ] = None,
    mlflow: MLflow = None,
    no_mlflow: NoMLflow = False,
    settings: Settings = None,
    debug: Debug = False,
) -> None:
    """Compare studies, random search and TPE with equal budgets and several seeds."""
    with shown_errors(debug):
        with console.status("Loading PyTorch and the studies ..."):
            from optuna_nas.results import comparison
            from optuna_nas.tracking import MLflowTracker

            spending = comparison.Budget.parse(budget)

            if strategy and len(studies) > 1:
                raise UsageError(
                    f"`--strategy` must go with one study but there are {len(studies)}; leave out the others."
                )

            def make(seed: int) -> list[Search]:
                searches = [load(study, [*(settings or []), f"seed={seed}"]) for study in studies]
                return comparison.by_strategies(searches[0], strategy, spending) if strategy else searches

            first = make(0)
        title = name or "-".join([studies[0].stem, *strategy] if strategy else [search.name for search in first])
        folder = Path("runs") / f"compare-{title}"

        def tracker(tags: Mapping[str, str]) -> MLflowTracker | None:
            return None if no_mlflow else MLflowTracker(mlflow, f"compare-{title}", tags=tags)

        with Displays() as displays:
            compared = comparison.compare(make, spending, seeds, folder, tracker, listener=displays.next)
        if compared is None:
            again = shlex.join([program(), *sys.argv[1:]])
            print_line("\nInterrupted", f"To resume: {again}")
            raise typer.Exit(130)
        _show_comparison(compared, spending, title, seeds, folder)
        mlflow_tracker = tracker({})
        if mlflow_tracker is not None:
            from optuna_nas.tracking.comparison import save_comparison

            address = save_comparison(
                mlflow_tracker,
                compared.studies,
                first[0].space,
                compared.metric,
                compared.headings,
                [comparison.cells(row) for row in compared.rows],
                compared.figure(spending),
                f"{seeds} seeds of every strategy, {budget} each; best first.",
            )
            uri = mlflow_tracker.tracking_uri
            serve = "" if mlflow_tracker.served else f"mlflow ui --backend-store-uri {uri}; then "
            print_line("See it in MLflow", serve + address)


def _show_comparison(compared: Comparison, budget: Budget, title: str, seeds: int, folder: Path) -> None:
    """Print the table of a comparison, and write table and picture to files."""
    from optuna_nas.results import comparison

    runs = f"{seeds} {'seed' if seeds == 1 else 'seeds'}, {budget.kind}={budget.amount:g} each"
    table = Table(title=f"{title}: {runs}")
    for heading in compared.headings:
        table.add_column(heading, justify="left" if heading == "strategy" else "right")
    for row in compared.rows:
        table.add_row(*comparison.cells(row))
    console.print(table)
    compared.figure(budget).savefig(folder / "comparison.png")
    (folder / "comparison.json").write_text(comparison.as_json(compared))
    print_line("Files", f"{folder / 'comparison.png'}, {folder / 'comparison.json'}")


@app.command()
def train(
    study: StudyFile,
    architecture: Annotated[
        str | None, typer.Option(help="JSON file of an architecture, or a published cell such as DARTS_V2.")
    ] = None,
    skeleton: Annotated[
        str | None,
        typer.Option(help="JSON file of a skeleton, or a name such as darts_cifar:n_cells=20,channels=36."),
    ] = None,
    recipe: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Field of the recipe, such as epochs=600.")
    ] = None,
    device: Annotated[str, typer.Option(help="Torch device; auto for a GPU if there is one.")] = "auto",
    storage: Storage = None,
    settings: Settings = None,
    debug: Debug = False,
) -> None:
    """Train the best architecture of a study, or another one, from scratch; resumes an interrupted training."""
    with shown_errors(debug):
        with console.status("Loading PyTorch and the study ..."):
            search = load(study, settings, storage)
            from optuna_nas.results import final_training as final
            from optuna_nas.training.loop import TrainingStopped

            trial, chosen = (None, final.read_architecture(architecture)) if architecture else final.best_of(search)
            data = final.data_of(search)
            larger = final.read_skeleton(skeleton, data) if skeleton else None
            space = final.space_of(search, larger, chosen)
            chosen = space.adopt(chosen)
            final_recipe = final.read_recipe(final.recipe_of(search, trial), recipe or [])
        epochs = final_recipe.epochs
        console.print(f"{chosen.cost().params:,} parameters, {epochs} epochs on {data.name}", highlight=False)
        with Display(epochs) as display, _ctrl_c() as pressed:
            try:
                result = final.train_in_full(
                    search,
                    chosen,
                    final_recipe,
                    space,
                    device=device,
                    on_epoch=display.final_epoch,
                    should_stop=lambda: bool(pressed),
                )
            except TrainingStopped:
                again = shlex.join([program(), *sys.argv[1:]])
                print_line("Interrupted", f"a checkpoint is kept. To resume: {again}")
                raise typer.Exit(130) from None
        print_line(f"Validation {result.metric}", f"{result.validation_metric:.4f}")
        if result.test_metric is not None:
            print_line(f"Test {result.metric}", f"{result.test_metric:.4f} on the test split")
        print_line("Network", f"{result.network}, read it with optuna_nas.load_network")
        _log_final(search, result)


@app.command()
def export(
    study: StudyFile,
    format: Annotated[  # noqa: A002
        str,
        typer.Option(
            help="pt2 (torch.export), onnx, state-dict (safetensors), or mlflow (a model of the trial's run)."
        ),
    ] = "pt2",
    network: Annotated[Path | None, typer.Option(help="File of a network, instead of the study's.")] = None,
    output: Annotated[Path | None, typer.Option(help="Output file; by default beside the network.")] = None,
    register: Annotated[str | None, typer.Option(help="Name in MLflow's model registry, with --format mlflow.")] = None,
    alias: Annotated[str | None, typer.Option(help="Alias of the registered version, such as champion.")] = None,
    storage: Storage = None,
    mlflow: MLflow = None,
    settings: Settings = None,
    debug: Debug = False,
) -> None:
    """Export the newest final network of a study, or that of its best trial, and check its predictions."""
    with shown_errors(debug):
        with console.status("Loading PyTorch and the study ..."):
            search = load(study, settings, storage, mlflow)
            from optuna_nas.networks.export import export_network
            from optuna_nas.networks.files import read_network
            from optuna_nas.results import final_training as final

            if register is not None and format != "mlflow":
                raise UsageError(f"`--register` must go with --format mlflow but the format is {format!r}.")
            file = network or final.network_to_export(search)
            read = read_network(file)
        if format == "mlflow":
            _log_model(search, file, read, register, alias)
            return
        with console.status(f"Exporting {file} ..."):
            target = output or file.parent.parent / "exported" / file.stem
            exported = export_network(read.network, target, format, read.architecture, read.deployment)
        print_line("Exported", f"{file} to {exported.path}, {exported.path.stat().st_size / 1e6:.1f} MB")
        print_line("Largest difference", f"{exported.max_difference:.2g} of an output, over several batches")


def _log_final(search: Search, result: FinalTraining) -> None:
    """Write a final training to the MLflow of its study, if there is one."""
    from optuna_nas.results import final_training as final
    from optuna_nas.search.opening import read_study

    if search.tracking is None or final.is_alone(result.network):
        return
    try:
        with console.status("Writing the training to MLflow ..."):
            run_id = final.run_in_mlflow(search, read_study(search), result.network)
    except ConnectionError as error:
        print_line("Not in MLflow", f"{error} The next `optuna-nas train` writes it.")
    else:
        print_line("In MLflow", f"run {run_id}, beside the trials of the study")


def _log_model(search: Search, file: Path, read: NetworkFile, register: str | None, alias: str | None) -> None:
    """Log a network to the run of what it is: a trial, or a final training."""
    from optuna_nas.results import final_training as final
    from optuna_nas.search.opening import read_study
    from optuna_nas.tracking import MLflowTracker
    from optuna_nas.tracking.model import log_model

    with console.status("Logging the network to MLflow ..."):
        tracker = search.tracking or MLflowTracker()
        run_id = final.run_in_mlflow(search, read_study(search), file)
        model = log_model(tracker, run_id, read.network, read.architecture, read.deployment, register, alias)
    version = f", version {model.version} of {register}" if model.version else ""
    print_line("In MLflow", f"{model.uri}, of run {run_id}{version}")
    print_line("Largest difference", f"{model.max_difference:.2g} of an output, over several batches")


@contextmanager
def _ctrl_c() -> Iterator[list[int]]:
    """Collect the signals of Ctrl-C in a list instead of raising KeyboardInterrupt."""
    pressed: list[int] = []
    with handled({signal.SIGINT: lambda number, frame: pressed.append(number)}):
        yield pressed


def _shown(address: str | None) -> str | None:
    """Return an address as a command may show it: three dots where it holds a password or a token."""
    if address is None:
        return None
    from optuna_nas.storage.database import without_password

    return address if without_password(address) == address or address.startswith("sqlite") else "..."


if __name__ == "__main__":
    main()

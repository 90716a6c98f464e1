"""The terminal: `optuna-nas run`, `report`, `view`, `train` and `export` of a study."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.request
import webbrowser
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from optuna_nas import __version__
from optuna_nas.signals import handled
from optuna_nas.study_file import UsageError, load

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

    from optuna_nas.networks import DiscreteNetwork
    from optuna_nas.search import Search, SearchResult
    from optuna_nas.training import EpochResult
    from optuna_nas.workers import Job

app = typer.Typer(
    help="Neural architecture search as an ordinary Optuna study.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# Where output goes to a file, rich would fold everything to 80 columns.
_WIDTH = None if sys.stdout.isatty() else 120
LONGEST_SUMMARY = 300
"""Characters of an architecture in the leaderboard; DARTS' cells and blocks fit."""
console = Console(width=_WIDTH)
errors = Console(stderr=True, width=None if sys.stderr.isatty() else 1000)

StudyFile = Annotated[Path, typer.Argument(help="Python file with a function `search()` that returns a `Search`.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Argument of the file's `search` function.")
]
Storage = Annotated[str | None, typer.Option(help="Optuna storage address instead of the study's.")]
MLflow = Annotated[str | None, typer.Option(help="MLflow address instead of the study's.")]
NoMLflow = Annotated[bool, typer.Option("--no-mlflow", help="Do not mirror the study to MLflow.")]
Artifacts = Annotated[
    str | None, typer.Option(help="Folder or s3://BUCKET where workers share trained models and checkpoints.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")]


SLOW_EPOCH_SECONDS = 5.0


def main() -> None:
    """Run the command line."""
    app()


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        console.print(__version__)
        raise typer.Exit


@app.command()
def run(
    study: StudyFile,
    trials: Annotated[int | None, typer.Option(help="Total of trials instead of the study's.")] = None,
    storage: Storage = None,
    mlflow: MLflow = None,
    no_mlflow: NoMLflow = False,
    workers: Annotated[
        int | None, typer.Option(help="Processes on this machine; the study then lives in a PostgreSQL of its own.")
    ] = None,
    gpus_per_trial: Annotated[
        float | None, typer.Option(help="GPUs of each worker, such as 0.5; by default all are shared.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help="Start the workers on Ray: `local`, or the address of a cluster such as `auto`.")
    ] = None,
    artifacts: Artifacts = None,
    settings: Settings = None,
    debug: Debug = False,
) -> None:
    """Run a study, or go on with it, to its total of trials; with --workers, in many processes."""
    with _shown_errors(debug):
        with console.status("Loading PyTorch and the study ..."):
            job = _job(study, settings, trials, storage, mlflow, no_mlflow, artifacts)
            search = job.search()
        for name, option in (("gpus-per-trial", gpus_per_trial), ("ray", ray)):
            if option is not None and workers is None:
                raise UsageError(f"`--{name}` must go with --workers but there is none; add --workers 1 or more.")
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise UsageError(
                "`torchrun` must start `optuna-nas worker` but started `run`; create the study, then start workers."
            )
        started = time.monotonic()
        with _Display(search.trials) as display:
            if workers is None:
                from optuna_nas.running import run as run_search

                result = run_search(search, display)
            elif ray is not None:
                from optuna_nas.workers import run_on_ray

                result = run_on_ray(job, workers, gpus_per_trial, ray, display)
            else:
                from optuna_nas.workers import run_workers

                result = run_workers(job, workers, gpus_per_trial, display)
        _print_result(search, result)
        _print_line("Time", f"{time.monotonic() - started:.1f} s")
        if search.tracking is not None:
            options = [("--storage", storage), ("--mlflow", mlflow), *(("--set", text) for text in settings or [])]
            given = [word for option, value in options if value is not None for word in (option, value)]
            _print_line("See it in MLflow", shlex.join([_program(), "view", str(study), *given]))
        if result.interrupted:
            again = shlex.join([_program(), *sys.argv[1:]])
            _print_line("\nInterrupted", f"with {result.missing} of {search.trials} trials to go. To go on: {again}")
            raise typer.Exit(130)


def _job(
    study: Path,
    settings: list[str] | None,
    trials: int | None,
    storage: str | None,
    mlflow: str | None,
    no_mlflow: bool,
    artifacts: str | None,
) -> Job:
    """Return what a worker is told."""
    from optuna_nas.workers import Job

    return Job(str(study), tuple(settings or ()), trials, storage, mlflow, not no_mlflow, artifacts=artifacts)


@app.command()
def create(
    study: StudyFile,
    storage: Storage = None,
    settings: Settings = None,
    debug: Debug = False,
) -> None:
    """Create a study without running it, for workers that begin at once; does nothing where it exists."""
    with _shown_errors(debug):
        from optuna_nas.search import open_study

        with console.status("Loading PyTorch and the study ..."):
            search = load(study, settings, storage)
            open_study(search)
        _print_line("Study", f"{search.name} is ready for workers: optuna-nas worker {study} --storage ...")


@app.command()
def worker(
    study: StudyFile,
    storage: Storage = None,
    trials: Annotated[int | None, typer.Option(help="Total of trials of all workers, instead of the study's.")] = None,
    mlflow: MLflow = None,
    no_mlflow: NoMLflow = False,
    artifacts: Artifacts = None,
    gpu_share: Annotated[float, typer.Option(help="Share of its GPU's memory that this worker may use.")] = 1.0,
    settings: Settings = None,
    debug: Debug = False,
) -> None:
    """Be one more worker of a study that exists, to its total of trials: a Slurm task, a pod, a second terminal."""
    # Even while it loads: the first process of a container hears of no signal that it does not ask for.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(130))
    with _shown_errors(debug):
        with console.status("Loading PyTorch and the study ..."):
            from optuna_nas.workers import be_worker

            search = _job(study, settings, trials, storage, mlflow, no_mlflow, artifacts).search()
        with _Display(search.trials) as display:
            missing = be_worker(search, gpu_share, display)
        if os.environ.get("RANK", "0") != "0":  # rank 0 of `torchrun` speaks for all
            raise typer.Exit(130 if missing else 0)
        if missing:
            _print_line("Interrupted", f"with {missing} of {search.trials} trials to go; other workers go on.")
            raise typer.Exit(130)
        _print_line("Total reached", f"{search.trials} trials. To see them: optuna-nas report {study} --storage ...")


@app.command()
def report(
    study: StudyFile,
    output: Annotated[Path | None, typer.Option(help="Folder of the report instead of the study's.")] = None,
    storage: Storage = None,
    settings: Settings = None,
    debug: Debug = False,
) -> None:
    """Show the leaderboard of a study that exists, and write its report as HTML and Markdown."""
    with _shown_errors(debug):
        with console.status("Loading PyTorch and the study ..."):
            search = load(study, settings, storage)
            from optuna_nas.report import write_report
            from optuna_nas.search import open_study, summarise

            opened = open_study(search, create=False)
        _print_result(search, summarise(search, opened))
        options = [("--storage", storage), *(("--set", text) for text in settings or [])]
        given = [word for option, value in options if value is not None for word in (option, value)]
        with console.status("Drawing the report ..."):
            written = write_report(search, output, shlex.join(["optuna-nas", "run", str(study), *given]))
        _print_line("Report", f"{written.page}, and as Markdown {written.markdown}")


@app.command()
def mirror(
    study: Annotated[str, typer.Argument(help="A study's Python file, or the name of any study in --storage.")],
    storage: Storage = None,
    mlflow: MLflow = None,
    settings: Settings = None,
    debug: Debug = False,
) -> None:
    """Write to MLflow all that it misses of a study that exists, also one of other programs."""
    with _shown_errors(debug):
        from optuna_nas.tracking import MLflowTracker

        if Path(study).is_file():
            from optuna_nas.search import open_study, shown_in_mlflow

            with console.status("Loading PyTorch and the study ..."):
                search = load(Path(study), settings, storage, mlflow)
                opened, tracker = open_study(search, create=False), search.tracking or MLflowTracker()
                shown: dict[str, Any] = dict(shown_in_mlflow(search))
        elif storage is None:
            raise UsageError(f"`--storage` must be given where `study` is a name but {study!r} is no file; add it.")
        else:
            opened, tracker, shown = _named_study(study, storage), MLflowTracker(mlflow, metric="value"), {}
        total = sum(trial.state.is_finished() for trial in opened.get_trials(deepcopy=False))
        with _Display(total) as display:
            address = tracker.rebuild(opened, on_progress=display.mirrored, **shown)
        _print_line("In MLflow", f"{total} trials of {opened.study_name}")
        _print_line("See it", address if tracker.served else f"mlflow ui --backend-store-uri {tracker.tracking_uri}")
        if not tracker.served:
            _print_line("", address)


def _named_study(name: str, storage: str) -> Study:
    """Return an existing study of a storage."""
    import optuna

    from optuna_nas.environment import without_password
    from optuna_nas.storage import clear_errors, connect

    try:
        if storage.startswith("sqlite:///") and not Path(storage.removeprefix("sqlite:///")).exists():
            raise KeyError(name)  # before Optuna makes the file
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
    """Open MLflow on the study's comparison view; starts MLflow's own server where its store is a database."""
    with _shown_errors(debug):
        search = load(study, settings, storage, mlflow)
        if search.tracking is None:
            raise UsageError(f"`tracking` of {study} must not be None to be seen in MLflow; remove it from the study.")
        from optuna_nas.search import open_study

        address = search.tracking.find_view(open_study(search, create=False), f"http://127.0.0.1:{port}")
        server = _start_mlflow(search.tracking.store_uri, port) if not search.tracking.served else None
        with _ctrl_c() as pressed:  # an exception may be lost on its way out of a browser that is being opened
            console.print(f"Opening {address}", soft_wrap=True)
            webbrowser.open(address)
            if server is not None:
                console.print("MLflow runs until you press Ctrl-C.")
                while not pressed and server.poll() is None:
                    time.sleep(0.1)
                server.terminate()


@app.command()
def compare(
    studies: Annotated[list[Path], typer.Argument(help="Study files; their `search` takes a `seed`.")],
    budget: Annotated[str, typer.Option(help="Of every run: trials=30, seconds=600 or epochs=200.")] = "trials=30",
    seeds: Annotated[int, typer.Option(help="Runs of each strategy.")] = 3,
    name: Annotated[str | None, typer.Option(help="Of the comparison; by default the studies'.")] = None,
    mlflow: MLflow = None,
    no_mlflow: NoMLflow = False,
    settings: Settings = None,
    debug: Debug = False,
) -> None:
    """Run studies, random search and TPE under one budget with several seeds, and show who wins."""
    with _shown_errors(debug):
        with console.status("Loading PyTorch and the studies ..."):
            from optuna_nas import comparison
            from optuna_nas.tracking import MLflowTracker

            spending = comparison.Budget.parse(budget)

            def make(seed: int) -> list[Search]:
                return [load(study, [*(settings or []), f"seed={seed}"]) for study in studies]

            first = make(0)
        title = name or "-".join(search.name for search in first)
        folder = Path("runs") / f"compare-{title}"

        def tracker(tags: Mapping[str, str]) -> MLflowTracker | None:
            return None if no_mlflow else MLflowTracker(mlflow, f"compare-{title}", tags=tags)

        with _Displays() as displays:
            found = comparison.compare(make, spending, seeds, folder, tracker, listener=displays.next)
        if found is None:
            again = shlex.join([_program(), *sys.argv[1:]])
            _print_line("\nInterrupted", f"To go on: {again}")
            raise typer.Exit(130)
        table = Table(title=f"{title}: {seeds} {'seed' if seeds == 1 else 'seeds'}, {budget} each")
        rows = [comparison.cells(row) for row in found.rows]
        for heading in comparison.HEADINGS:
            table.add_column(heading, justify="left" if heading == "strategy" else "right")
        for row in rows:
            table.add_row(*map(_escaped, row))
        console.print(table)
        figure = found.figure(spending)
        figure.savefig(folder / "comparison.png")
        (folder / "comparison.json").write_text(comparison.as_json(found))
        _print_line("Files", f"{folder / 'comparison.png'}, {folder / 'comparison.json'}")
        used = tracker({})
        if used is not None:
            from optuna_nas.tracking.comparison import save_comparison

            note = f"{seeds} seeds of every strategy, {budget} each; best first."
            address = save_comparison(used, found.studies, first[0].space, comparison.HEADINGS, rows, figure, note)
            serve = "" if used.served else f"mlflow ui --backend-store-uri {used.tracking_uri}; then "
            _print_line("See it in MLflow", serve + address)


@app.command()
def train(
    study: StudyFile,
    architecture: Annotated[
        str | None, typer.Option(help="JSON file of an architecture, or a published cell such as DARTS_V2.")
    ] = None,
    skeleton: Annotated[
        str | None,
        typer.Option(help="JSON file, or such as darts_cifar:n_cells=20,channels=36."),
    ] = None,
    recipe: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Of the recipe, such as epochs=600.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto is a GPU if there is one.")] = "auto",
    storage: Storage = None,
    settings: Settings = None,
    debug: Debug = False,
) -> None:
    """Train the best architecture of a study, or another one, in full; goes on where it was interrupted."""
    with _shown_errors(debug):
        with console.status("Loading PyTorch and the study ..."):
            search = load(study, settings, storage)
            from optuna_nas import final
            from optuna_nas.training import TrainingStopped

            trial, chosen = (None, final.read_architecture(architecture)) if architecture else final.best_of(search)
            data = final.data_of(search)
            frame = final.read_skeleton(skeleton, data) if skeleton else final.skeleton_of(search)
            how = final.read_recipe(final.recipe_of(search, trial), recipe or [])
        console.print(f"{chosen.cost(frame).params:,} parameters, {how.epochs} epochs on {data.name}", highlight=False)
        with _Display(how.epochs) as display, _ctrl_c() as pressed:
            try:
                found = final.train_in_full(
                    search,
                    chosen,
                    frame,
                    how,
                    device=device,
                    on_epoch=display.final_epoch,
                    should_stop=lambda: bool(pressed),
                )
            except TrainingStopped:
                again = shlex.join([_program(), *sys.argv[1:]])
                _print_line("Interrupted", f"a checkpoint is kept. To go on: {again}")
                raise typer.Exit(130) from None
        _print_line("Report accuracy", f"{found.report_accuracy:.4f}")
        if found.test_accuracy is not None:
            _print_line("Test accuracy", f"{found.test_accuracy:.4f} on images that no training saw")
        _print_line("Network", f"{found.network}, read it with optuna_nas.load_network")


@app.command()
def export(
    study: StudyFile,
    format: Annotated[  # noqa: A002
        str, typer.Option(help="pt2 (torch.export), onnx, state-dict (safetensors), or mlflow (a model of its run).")
    ] = "pt2",
    network: Annotated[Path | None, typer.Option(help="File of a network instead of the study's.")] = None,
    output: Annotated[Path | None, typer.Option(help="Where to; by default beside the network.")] = None,
    register: Annotated[str | None, typer.Option(help="Name in MLflow's registry, with --format mlflow.")] = None,
    storage: Storage = None,
    mlflow: MLflow = None,
    settings: Settings = None,
    debug: Debug = False,
) -> None:
    """Write the newest final network of a study, or that of its best trial, to one file, and check its scores."""
    with _shown_errors(debug):
        with console.status("Loading PyTorch and the study ..."):
            search = load(study, settings, storage, mlflow)
            from optuna_nas import final
            from optuna_nas.export import export_network
            from optuna_nas.objective import load_network

            if register is not None and format != "mlflow":
                raise UsageError(f"`--register` must go with --format mlflow but the format is {format!r}.")
            loaded, file = (load_network(network), network) if network else final.network_to_export(search)
        if format == "mlflow":
            _log_model(search, loaded, register)
            return
        with console.status(f"Exporting {file} ..."):
            target = output or file.parent.parent / "exported" / file.stem
            found = export_network(loaded, target, format)
        _print_line("Exported", f"{file} to {found.path}, {found.path.stat().st_size / 1e6:.1f} MB")
        _print_line("Largest difference", f"{found.max_difference:.2g} of a class score, over several batches")


def _log_model(search: Search, network: DiscreteNetwork, register: str | None) -> None:
    """Log a network to the run of the study's best trial."""
    from optuna_nas import final
    from optuna_nas.search import open_study
    from optuna_nas.tracking import MLflowTracker
    from optuna_nas.tracking.model import log_model

    best, _ = final.best_of(search)
    with console.status("Logging the network to MLflow ..."):
        tracker = search.tracking or MLflowTracker()
        found = log_model(tracker, open_study(search, create=False), best.number, network, register)
    named = f", version {found.version} of {register}" if found.version else ""
    _print_line("In MLflow", f"{found.uri}, of the run of trial {best.number}{named}")
    _print_line("Largest difference", f"{found.max_difference:.2g} of a class score, over several batches")


@contextmanager
def _ctrl_c() -> Iterator[list[int]]:
    """Collect what Ctrl-C sends instead of raising it."""
    pressed: list[int] = []
    with handled({signal.SIGINT: lambda number, frame: pressed.append(number)}):
        yield pressed


def _start_mlflow(store_uri: str, port: int) -> subprocess.Popen[bytes]:
    """Start MLflow's server on a database and wait until it answers."""
    arguments = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store_uri, "--port", str(port)]
    arguments += ["--workers", "1"]  # one person looks; four would take four times as long to start
    said = tempfile.TemporaryFile()  # noqa: SIM115 # the server's own; a pipe that nobody reads would stop it
    server = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=said)
    with console.status("Starting MLflow ..."):
        for _ in range(600):
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                if server.poll() is None:
                    return server
            if server.poll() is not None:
                break
            time.sleep(0.1)
    server.terminate()
    said.seek(0)
    last = said.read().decode(errors="replace").strip().splitlines()[-1:]
    raise UsageError(f"`--port` must be free for MLflow but it did not start on {port} {last}; try another.")


def _program() -> str:
    """Return how to call this program again: by its path where it is not on the search path (`make study`)."""
    called = Path(sys.argv[0])
    return str(called) if called.name == "optuna-nas" and shutil.which(called.name) is None else "optuna-nas"


@contextmanager
def _shown_errors(debug: bool) -> Iterator[None]:
    """Turn errors into one sentence and an exit code: 2 where the input is wrong, 1 where the program failed."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # its tracebacks; the display shows what failed and why
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        # Into a file rich would write lines of a fixed width.
        handlers=[
            RichHandler(console=errors, show_time=False, show_path=False, show_level=False)
            if errors.is_terminal
            else logging.StreamHandler()
        ],
    )
    try:
        yield
    except (UsageError, ValueError, ConnectionError) as error:
        if debug:
            traceback.print_exc()
        errors.print(f"[bold red]Error:[/] {_escaped(str(error))}")
        raise typer.Exit(2) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        if debug:
            traceback.print_exc()
        frame = traceback.extract_tb(error.__traceback__)[-1]
        errors.print(
            f"[bold red]Failed:[/] {type(error).__name__}: {_escaped(str(error))} "
            f"({Path(frame.filename).name}, line {frame.lineno}); see --debug. Finished trials are kept."
        )
        raise typer.Exit(1) from None


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


# -- what is shown ------------------------------------------------------------------------------------------------


class _Display:
    """Progress of a search: bars in a terminal, a line a trial elsewhere."""

    def __init__(self, trials: int | None) -> None:
        self._trials = trials  # in all; None where something else ends the search
        self._lock = threading.Lock()
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._running: dict[int, TaskID] = {}
        self._models: dict[str, TaskID] = {}
        self._told = time.monotonic()

    def model_progress(self, name: str, fraction: float) -> None:
        """Show a bar while a one-shot model trains; where there are no bars, a line now and then."""
        with self._lock:
            if console.is_terminal:
                if name not in self._models:
                    self._models[name] = self._bars.add_task(f"{name} trains", total=100, note="")
                self._bars.update(self._models[name], completed=round(100 * fraction))
                if fraction >= 1:
                    self._bars.remove_task(self._models.pop(name))
            elif time.monotonic() - self._told > SLOW_EPOCH_SECONDS:
                self._told = time.monotonic()
                console.print(f"{name} trains: {100 * fraction:.0f} %", markup=False, highlight=False)

    def closing(self) -> None:
        """Say that the last records go to MLflow."""
        if console.is_terminal:
            self._bars.add_task("writing to MLflow", total=None, note="")
        else:
            console.print("Writing the last records to MLflow ...")

    def __enter__(self) -> _Display:
        self._bars.start()
        self._total = self._bars.add_task("trials", total=self._trials, note="opening the study")
        return self

    def __exit__(self, *unused: object) -> None:
        self._bars.stop()

    def trial_started(self, trial: Trial | FrozenTrial, metrics: Mapping[str, float]) -> None:
        """Add a bar for the trial."""
        with self._lock:
            self._running[trial.number] = self._bars.add_task(f"trial {trial.number}", total=100, note="")

    def epoch(self, trial_number: int, step: int, metrics: Mapping[str, float]) -> None:
        """Show the newest accuracy; where there are no bars, a line for an epoch that takes its time."""
        note = f"epoch {step}, accuracy {metrics.get('accuracy', float('nan')):.4f}"
        task = self._running.get(trial_number)
        if task is not None:
            self._bars.update(task, note=note)
        if not console.is_terminal and metrics.get("epoch_seconds", 0) > SLOW_EPOCH_SECONDS:
            console.print(f"trial {trial_number}: {note}", markup=False, highlight=False)

    def mirrored(self, n_done: int) -> None:
        """Move the bar of trials that are in MLflow, or print a line now and then."""
        if console.is_terminal:
            self._bars.update(self._total, completed=n_done, description="to MLflow", note="")
        elif time.monotonic() - self._told > SLOW_EPOCH_SECONDS:
            self._told = time.monotonic()
            console.print(f"{n_done} of {self._trials} trials are in MLflow", markup=False, highlight=False)

    def final_epoch(self, result: EpochResult) -> None:
        """Move the bar of a final training, or print a line an epoch."""
        note = f"accuracy {result.report_accuracy:.4f}, loss {result.train_loss:.4f}, {result.seconds:.1f} s"
        if console.is_terminal:
            self._bars.update(self._total, completed=result.epoch, description="epochs", note=note)
        else:
            console.print(f"[{result.epoch}/{self._trials}] {note}", markup=False, highlight=False)

    def progress(self, trial_number: int, fraction: float) -> None:
        """Move the trial's bar."""
        task = self._running.get(trial_number)
        if task is not None:
            self._bars.update(task, completed=round(100 * fraction))

    def trial_finished(self, study: Study, trial: FrozenTrial) -> None:
        """Move the bar of all trials, or print a line."""
        from optuna_nas.objective import REASON
        from optuna_nas.recovery import counted_trials
        from optuna_nas.search import best_trial

        done, best = counted_trials(study), best_trial(study)
        with self._lock:
            task = self._running.pop(trial.number, None)
            if task is not None:
                self._bars.remove_task(task)
            note = f"best {best.values[0]:.4f} (trial {best.number})" if best else ""
            if console.is_terminal:
                self._bars.update(self._total, completed=done, note=note)
                return
        outcome = (
            f"{trial.values[0]:.4f}" if trial.values and trial.state.name == "COMPLETE" else trial.state.name.lower()
        )
        unknown = "the objective gave no valid value" if trial.state.name == "FAIL" else ""
        reason = trial.user_attrs.get(REASON, unknown)
        reason = f" ({reason})" if reason else ""
        total = "" if self._trials is None else f"/{self._trials}"
        console.print(
            f"[{done}{total}] trial {trial.number}: {outcome}{reason}; {note}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


class _Displays:
    """One display after the other, one a run of a comparison."""

    def __init__(self) -> None:
        self._shown: _Display | None = None

    def __enter__(self) -> _Displays:
        return self

    def __exit__(self, *unused: object) -> None:
        if self._shown is not None:
            self._shown.__exit__()

    def next(self, strategy: str, seed: int, search: Search) -> _Display:
        """Close the display of the last run and show that of the next."""
        self.__exit__()
        console.print(f"{strategy}, seed {seed}", highlight=False)
        from optuna_nas.comparison import MOST_TRIALS

        self._shown = _Display(None if search.trials == MOST_TRIALS else search.trials).__enter__()
        return self._shown


def _print_result(search: Search, result: SearchResult) -> None:
    from optuna_nas.recovery import counted_trials
    from optuna_nas.search import architecture_of, feasible, ranking

    ranked = ranking(result.study)
    if not ranked:
        console.print("No trial has finished yet; nothing to rank.")
        return
    table = Table(title=f"{search.name}: the best of {counted_trials(result.study)} trials")
    for name in ("rank", "trial", "accuracy", "params", "multiply-adds", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("architecture", overflow="fold")
    for rank, trial in enumerate(ranked[:10], 1):
        attrs, architecture = trial.user_attrs, architecture_of(search, trial)
        table.add_row(
            str(rank) if feasible(trial) else "breaks a constraint",
            str(trial.number),
            f"{trial.values[0]:.4f}",
            f"{attrs['params']:,}" if "params" in attrs else "",
            f"{attrs['multiply_adds']:,}" if "multiply_adds" in attrs else "",
            f"{attrs['train_seconds']:.1f}" if "train_seconds" in attrs else "",
            _escaped(_shortened(architecture.summary) if architecture else ""),
        )
    console.print(table)

    if result.best is None:
        _print_line("Best architecture", "none: every trial breaks a constraint")
        return
    seen = f", picture in {result.picture}" if result.picture else ""
    _print_line("Best architecture", f"trial {result.best.number}{seen}")
    if result.network is not None:
        _print_line("Best network", f"{result.network}, read it with optuna_nas.load_network")
    if result.test_accuracy is not None:
        _print_line("Test accuracy", f"{result.test_accuracy:.4f} on images that the search never saw")


def _shortened(summary: str) -> str:
    """Cut the line of a large architecture; its picture and its file have all of it."""
    return summary if len(summary) <= LONGEST_SUMMARY else summary[: LONGEST_SUMMARY - 4] + " ..."


def _print_line(name: str, text: str) -> None:
    console.print(f"{name:<20}{text}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()

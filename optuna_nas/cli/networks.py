"""The network that a search has found: `optuna-nas train` and `export`."""

from __future__ import annotations

import shlex
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from optuna_nas.cli.application import command
from optuna_nas.cli.console import collected, console, print_line
from optuna_nas.cli.display import Display
from optuna_nas.cli.options import (
    Debug,
    MLflow,
    Name,
    Settings,
    Storage,
    Strategy,
    StudyFile,
    renamed,
    same_command,
    shown_address,
    to_copy,
)
from optuna_nas.search.checks import check_one_of
from optuna_nas.search.study_file import UsageError, load

if TYPE_CHECKING:
    from optuna_nas.networks.files import NetworkFile
    from optuna_nas.results.final_training import FinalTraining
    from optuna_nas.search.config import Search

MLFLOW = "mlflow"
"""Format of a network that becomes a model in MLflow."""


@command()
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
    name: Name = None,
    strategy: Strategy = None,
    storage: Storage = None,
    settings: Settings = None,
    debug: Debug = False,
) -> None:
    """Train the best architecture of a study, or another one, from scratch; resumes an interrupted training."""
    settings = renamed(settings, name)
    with console.status("Loading PyTorch and the study ..."):
        search = load(study, settings, storage, strategy=strategy)
        from optuna_nas.results import final_training as final
        from optuna_nas.training.loop import TrainingStopped

        trial, chosen = (None, final.read_architecture(architecture)) if architecture else final.best_of(search)
        data = final.data_of(search, trial)
        larger = final.read_skeleton(skeleton, data) if skeleton else None
        space = final.space_of(search, larger, chosen)
        chosen = space.adopt(chosen)
        final_recipe = final.read_recipe(final.recipe_of(search, trial), recipe or [])
    epochs = final_recipe.epochs
    console.print(f"{chosen.cost().params:,} parameters, {epochs} epochs on {data.name}", highlight=False)
    with Display(epochs) as display, collected("SIGINT") as pressed:
        try:
            result = final.train_in_full(
                search,
                chosen,
                final_recipe,
                space,
                trial=trial,
                device=device,
                on_epoch=display.final_epoch,
                should_stop=lambda: bool(pressed),
            )
        except TrainingStopped:
            print_line("Interrupted", "a checkpoint is kept.")
            print_line("To resume", same_command())
            raise typer.Exit(130) from None
    print_line(f"Validation {result.metric}", f"{result.validation_metric:.4f}")
    if result.test_metric is not None:
        print_line(f"Test {result.metric}", f"{result.test_metric:.4f} on the test split")
    print_line("Network", f"{result.network}, read it with optuna_nas.load_network")
    _log_final(search, result)
    print_line("Export it", to_copy("export", study, strategy=strategy, storage=storage, settings=settings))


@command()
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
    name: Name = None,
    strategy: Strategy = None,
    storage: Storage = None,
    mlflow: MLflow = None,
    settings: Settings = None,
    debug: Debug = False,
) -> None:
    """Export the newest final network of a study, or that of its best trial, and check its predictions."""
    settings = renamed(settings, name)
    with console.status("Loading PyTorch and the study ..."):
        search = load(study, settings, storage, mlflow, strategy=strategy)
        from optuna_nas.networks.export import SUFFIXES, export_network
        from optuna_nas.networks.files import read_network
        from optuna_nas.results import final_training as final

        if register is not None and format != MLFLOW:
            raise UsageError(f"`--register` must go with --format mlflow but the format is {format!r}; add it.")
        check_one_of("format", format, (*SUFFIXES, MLFLOW))
        if network is not None and not network.is_file():
            raise UsageError(f"`network` must be the file of a network but {network} is not there; give its path.")
        file = network or final.network_to_export(search)
        read = read_network(file)
    if format == MLFLOW:
        _log_model(search, file, read, register, alias)
        return
    with console.status(f"Exporting {file} ..."):
        target = output or file.parent.parent / "exported" / file.stem
        exported = export_network(read.network, target, format, read.architecture, read.deployment)
    print_line("Exported", f"{file} to {exported.path}, {exported.path.stat().st_size / 1e6:.1f} MB")
    print_line("Largest difference", f"{exported.max_difference:.2g} of an output, over several batches")
    print_line("Use it", _use(format, exported.path))


def _use(format: str, path: Path) -> str:  # noqa: A002
    """Return a command that loads an exported network."""
    python = {
        "pt2": f"import torch; print(torch.export.load({str(path)!r}).module())",
        "onnx": f"import onnxruntime; print(onnxruntime.InferenceSession({str(path)!r}).get_inputs())",
        "state-dict": f"import safetensors.torch; print(safetensors.torch.load_file({str(path)!r}).keys())",
    }
    return shlex.join(["python", "-c", python[format]])


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
    serve = ["mlflow", "models", "serve", "--env-manager", "local", "-m", model.uri]
    print_line(
        "Serve it", f"MLFLOW_TRACKING_URI={shlex.quote(shown_address(tracker.tracking_uri))} {shlex.join(serve)}"
    )

"""The network that a search has found: `optuna-nas train` and `export`."""

from __future__ import annotations

import shlex
from contextlib import suppress
from dataclasses import replace
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from optuna_nas.cli.application import command
from optuna_nas.cli.console import collected, console
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
    on_path,
    python,
    renamed,
    same_command,
    shown_address,
    to_copy,
)
from optuna_nas.cli.output import Output
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
    mlflow: MLflow = None,
    no_mlflow: NoMLflow = False,
    settings: Settings = None,
    quiet: Quiet = False,
    as_json: AsJSON = False,
    debug: Debug = False,
) -> None:
    """Train the best architecture of a study, or another one, from scratch; resumes an interrupted training."""
    settings, output = renamed(settings, name), Output(quiet, as_json)
    with output.doing("Loading PyTorch and the study"):
        search = load(study, settings, storage, mlflow, strategy=strategy)
        search = replace(search, tracking=None) if no_mlflow else search
        from optuna_nas.results import final_training as final
        from optuna_nas.training.loop import TrainingStopped

        trial, chosen = (None, final.read_architecture(architecture)) if architecture else final.best_of(search)
        data = final.data_of(search, trial)
        larger = final.read_skeleton(skeleton, data) if skeleton else None
        space = final.space_of(search, larger, chosen)
        chosen = space.adopt(chosen)
        final_recipe = final.read_recipe(final.recipe_of(search, trial), recipe or [])
    epochs, result = final_recipe.epochs, None
    if not output.silent:
        console.print(f"{chosen.cost().params:,} parameters, {epochs} epochs on {data.name}", highlight=False)
    with (
        output.progress(search.name, epochs, of="epochs") as shows,
        collected("SIGINT") as pressed,
        suppress(TrainingStopped),
    ):
        result = final.train_in_full(
            search,
            chosen,
            final_recipe,
            space,
            trial=trial,
            device=device,
            on_epoch=None if shows is None else shows.final_epoch,
            should_stop=lambda: bool(pressed),
        )
    if result is None:
        output.line("Interrupted", "a checkpoint is kept.")
        output.end("To resume", same_command(), study=search.name, interrupted=True)
        raise typer.Exit(130)
    output.line(f"Validation {result.metric}", f"{result.validation_metric:.4f}")
    if result.test_metric is not None:
        output.line(f"Test {result.metric}", f"{result.test_metric:.4f} on the test split")
    output.line("Network", f"{result.network}, read it with optuna_nas.load_network")
    options = {"strategy": strategy, "storage": storage, "settings": settings}
    mirror = to_copy("mirror", study, mlflow=mlflow, **options)
    shown = {"run": None, "not_in_mlflow": None} if no_mlflow else _log_final(search, result, mlflow, mirror, output)
    found = {name: value for name, value in result._asdict().items() if name not in ("curve", "settings")}
    export_it = to_copy("export", study, mlflow=mlflow, **options)
    output.end("Export it", export_it, study=search.name, interrupted=False, **found, **shown)


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
    quiet: Quiet = False,
    as_json: AsJSON = False,
    debug: Debug = False,
) -> None:
    """Export the newest final network of a study, or that of its best trial, and check its predictions."""
    settings, output_ = renamed(settings, name), Output(quiet, as_json)
    with output_.doing("Loading PyTorch and the study"):
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
        _log_model(search, file, read, register, alias, mlflow, output_)
        return
    with output_.doing(f"Exporting {file}"):
        target = output or file.parent.parent / "exported" / file.stem
        exported = export_network(read.network, target, format, read.architecture, read.deployment)
    n_bytes = exported.path.stat().st_size
    output_.line("Exported", f"{file} to {exported.path}, {n_bytes / 1e6:.1f} MB")
    output_.line("Largest difference", f"{exported.max_difference:.2g} of an output, over several batches")
    found = {"network": str(file), "exported": str(exported.path), "bytes": n_bytes}
    output_.end("Use it", _use(format, exported.path), **found, max_difference=exported.max_difference)


def _use(format: str, path: Path) -> str:  # noqa: A002
    """Return a command that loads an exported network."""
    code = {
        "pt2": f"import torch; print(torch.export.load({str(path)!r}).module())",
        "onnx": f"import onnxruntime; print(onnxruntime.InferenceSession({str(path)!r}).get_inputs())",
        "state-dict": f"import safetensors.torch; print(safetensors.torch.load_file({str(path)!r}).keys())",
    }
    return python("-c", code[format])


def _log_final(
    search: Search, result: FinalTraining, mlflow: str | None, mirror: str, output: Output
) -> dict[str, str | None]:
    """Write a final training to the MLflow of its study; return the id of its run, and why there is none, for JSON.

    Args:
        search: Search, whose study may be in MLflow without a tracker of its own.
        result: The training.
        mlflow: Address that the user gave, instead of the one at which the study is.
        mirror: Command that writes the study to MLflow.
        output: Who says where the training is, or why it is not.
    """
    from optuna_nas.results import final_training as final
    from optuna_nas.search.opening import read_study, where_mirrored
    from optuna_nas.tracking.final_run import NotMirrored

    run_id, absent = None, None
    try:
        with output.doing("Writing the training to MLflow"):
            if not final.is_alone(result.network):
                study = read_study(search)
                search = where_mirrored(search, study) if mlflow is None else search
                run_id = None if search.tracking is None else final.run_in_mlflow(search, study, result.network)
    except ConnectionError as error:
        absent = f"{error} The next `optuna-nas train` writes it."
    except NotMirrored as error:
        absent = f"{error.reason}; write it with `{mirror}`, then the next `train` adds this."
    if absent is not None:
        output.line("Not in MLflow", absent)
    if run_id is not None:
        output.line("In MLflow", f"run {run_id}, beside the trials of the study; `export --format mlflow` adds a model")
    return {"run": run_id, "not_in_mlflow": absent}


def _log_model(
    search: Search,
    file: Path,
    read: NetworkFile,
    register: str | None,
    alias: str | None,
    mlflow: str | None,
    output: Output,
) -> None:
    """Log a network to the run of what it is: a trial, or a final training."""
    from optuna_nas.results import final_training as final
    from optuna_nas.search.opening import read_study, where_mirrored
    from optuna_nas.tracking import MLflowTracker
    from optuna_nas.tracking.model import log_model

    with output.doing("Logging the network to MLflow"):
        study = read_study(search)
        search = where_mirrored(search, study) if mlflow is None else search
        tracker = search.tracking or MLflowTracker()
        run_id = final.run_in_mlflow(search, study, file)
        model = log_model(tracker, run_id, read.network, read.architecture, read.deployment, register, alias)
    version = f", version {model.version} of {register}" if model.version else ""
    output.line("In MLflow", f"{model.uri}, of run {run_id}{version}")
    output.line("Largest difference", f"{model.max_difference:.2g} of an output, over several batches")
    address = shlex.quote(shown_address(tracker.tracking_uri))
    serve = python("-m", "mlflow", "models", "serve", "--env-manager", "local", "-m", model.uri)
    found = {"network": str(file), "model": model.uri, "version": model.version, "run": run_id}
    serve_it = f"{on_path()}MLFLOW_TRACKING_URI={address} {serve}"  # MLflow starts `uvicorn` by its name alone
    output.end("Serve it", serve_it, **found, max_difference=model.max_difference)

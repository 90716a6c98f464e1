"""Trained network as an MLflow model of the run of what it is, with signature, example, metrics and requirements."""

from __future__ import annotations

import json
import logging
import warnings
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import mlflow
import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec
from torch import Tensor

with warnings.catch_warnings():  # MLflow warns of its own type hints when it is imported
    warnings.filterwarnings("ignore", ".*Any type hint is inferred as AnyType")
    import mlflow.pyfunc

from optuna_nas.data import arranging
from optuna_nas.networks.export import (
    CHECKED_BATCHES,
    MAX_DIFFERENCE,
    difference,
    for_programs,
    for_raw_inputs,
    random_like,
    raw_example,
    write_pt2,
)
from optuna_nas.space.model_space import ModelSpace
from optuna_nas.tracking.client import connected
from optuna_nas.tracking.records import unusable
from optuna_nas.tracking.winner import give_metrics

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from optuna_nas.data.preprocessing import Preprocessing
    from optuna_nas.networks.deployment import Deployment
    from optuna_nas.space import Architecture
    from optuna_nas.tracking.tracker import MLflowTracker

NAME = "network"
SERVED_MODEL = Path(__file__).with_name("served_model.py")
"""Code that MLflow copies into the model."""
ARRANGING = Path(arranging.__file__)
"""Code that is copied beside it."""


class LoggedModel(NamedTuple):
    """Logged model.

    Args:
        uri: URI of the model.
        version: Version in the model registry; None if the model is not registered.
        max_difference: Largest absolute difference of an output after loading.
    """

    uri: str
    version: str | None
    max_difference: float


def log_model(
    tracker: MLflowTracker,
    run_id: str,
    network: nn.Module,
    architecture: Architecture,
    deployment: Deployment | None = None,
    register: str | None = None,
    alias: str | None = None,
) -> LoggedModel:
    """Log a network to a run, load it with `mlflow.pyfunc`, and compare the predictions.

    The model takes raw inputs, as the data had them, and returns labels; with `params={"output": "probabilities"}` a
    table of probabilities, with `"outputs"` what the network returns. It belongs to the experiment of the run, and has
    the run's metrics. It is a program of `torch.export`, so that loading it unpickles nothing.

    Args:
        tracker: Tracker of the study.
        run_id: Id of the run of what the network is: a trial or a final training.
        network: Trained network, in any mode.
        architecture: Its architecture.
        deployment: Preprocessing of raw inputs, and labels of classes; None: inputs are normalised ones.
        register: Name in MLflow's model registry; None to not register it.
        alias: Alias of the registered version, such as `champion`.

    Raises:
        ConnectionError: MLflow cannot be used at the tracking URI.
        ValueError: The network takes more than one tensor, or an alias has no registered model.
        ArithmeticError: An output differs by more than 1e-4.
    """
    if alias is not None and register is None:
        raise ValueError(f"`alias` must go with a registered model but `register` is None; name it for {alias!r}.")
    space = architecture.space
    assert isinstance(space, ModelSpace)
    program, raw = for_raw_inputs(for_programs(network), deployment)
    example = raw_example(space, 2, raw)
    one_tensor = isinstance(example, Tensor)
    if one_tensor:
        with torch.no_grad():
            one_tensor = isinstance(program(example), Tensor)
    if not one_tensor:
        raise ValueError(
            "`architecture` must be of modules that take and return one tensor to be logged in MLflow but these take "
            "or return more; export it as a file instead."
        )
    classes = () if deployment is None else deployment.classes
    with TemporaryDirectory() as folder, connected(tracker.store_uri, registry=register is not None) as client:
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            raise unusable(tracker.tracking_uri, error) from error
        artifacts = _artifacts(Path(folder), program, example, deployment)
        model = client.create_logged_model(
            run.info.experiment_id, NAME, run_id, params=run.data.params, model_type="pyfunc"
        )
        with _used_by_mlflow(tracker.store_uri):
            info = Model.log(
                None,
                mlflow.pyfunc,
                register,
                name=NAME,
                run_id=run_id,
                model_id=model.model_id,
                python_model=str(SERVED_MODEL),
                code_paths=[str(ARRANGING)],
                artifacts=artifacts,
                signature=_signature(example, classes),
                input_example=example.numpy(),
                metadata={"shape": list(example.shape[1:]), "dtype": str(example.numpy().dtype)},
                pip_requirements=[f"torch=={torch.__version__.split('+')[0]}", "numpy", "pandas"],
            )
            loaded = mlflow.pyfunc.load_model(info.model_uri)
        worst = _worst_difference(loaded, program, space, raw)
        if not worst <= MAX_DIFFERENCE:
            raise ArithmeticError(f"`format` 'mlflow' must keep the outputs but differs by {worst:.3g}; report it.")
        give_metrics(client, run, model.model_id)
        version = info.registered_model_version
        if alias is not None and register is not None:
            client.set_registered_model_alias(register, alias, str(version))
    return LoggedModel(info.model_uri, None if version is None else str(version), worst)


def _artifacts(folder: Path, program: nn.Module, example: Tensor, deployment: Deployment | None) -> dict[str, str]:
    """Write what the model is loaded from: the program, and what goes into it and comes out of it."""
    write_pt2(program, example, folder / "network.pt2", {})
    dtype = str(example.numpy().dtype)
    described = {} if deployment is None else deployment.to_dict()
    about = {"classes": [], **described, "shape": list(example.shape[1:]), "dtype": dtype}
    (folder / "about.json").write_text(json.dumps(about))
    return {"program": str(folder / "network.pt2"), "about": str(folder / "about.json")}


def _signature(example: Tensor, classes: Sequence[str | int]) -> ModelSignature:
    """Return what the model takes and gives.

    Inputs of several dimensions are left out: MLflow would insist on one layout, where the model takes images with
    channels first or last, and rows, as `mlflow.models.evaluate` passes them. The model's metadata name the shape.
    """
    output = np.dtype("float32")
    if classes:
        output = np.dtype("str" if isinstance(classes[0], str) else "int64")
    return ModelSignature(
        Schema([TensorSpec(example.numpy().dtype, (-1, *example.shape[1:]))]) if example.ndim == 2 else None,
        Schema([TensorSpec(output, (-1,) if classes else (-1, -1))]),
        ParamSchema([ParamSpec("output", "string", "label")]),
    )


@contextmanager
def _used_by_mlflow(uri: str) -> Iterator[None]:
    """Set the tracking URI of the whole process, which `Model.log` uses, and hide MLflow's advice; both restored."""
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    level = logging.getLogger("mlflow").level
    mlflow.set_tracking_uri(uri)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*[Tt]ype hint")  # a wish of MLflow that arrays can't fulfil
            yield
    finally:
        mlflow.set_tracking_uri(before)
        logging.getLogger("mlflow").setLevel(level)


def _worst_difference(loaded: Any, program: nn.Module, space: ModelSpace, raw: Preprocessing | None) -> float:
    """Return the largest difference of the outputs of a loaded model, over several batches."""
    draw, worst = torch.Generator().manual_seed(0), 0.0
    for size in CHECKED_BATCHES:
        inputs = random_like(raw_example(space, size, raw), draw)
        outputs = torch.from_numpy(loaded.predict(inputs.numpy(), params={"output": "outputs"}))
        with torch.no_grad():
            worst = max(worst, difference(outputs, program(inputs).float()))
    return worst

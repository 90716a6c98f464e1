"""Trained network as an MLflow model in the run of its trial, with signature, example and requirements."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import mlflow
import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import Tensor

with warnings.catch_warnings():  # MLflow warns of its own type hints when it is imported
    warnings.filterwarnings("ignore", ".*Any type hint is inferred as AnyType")
    import mlflow.pyfunc

from optuna_nas.networks.export import CHECKED_BATCHES, MAX_DIFFERENCE, difference, for_programs, random_like
from optuna_nas.space.model_space import ModelSpace
from optuna_nas.storage.attributes import UID_ATTRIBUTE, attribute
from optuna_nas.storage.database import one_line
from optuna_nas.tracking.client import connected
from optuna_nas.tracking.records import unreachable

if TYPE_CHECKING:
    import optuna
    from torch import nn

    from optuna_nas.space import Architecture
    from optuna_nas.tracking.tracker import MLflowTracker

NAME = "network"


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
    study: optuna.Study,
    trial_number: int,
    network: nn.Module,
    architecture: Architecture,
    register: str | None,
) -> LoggedModel:
    """Log a network to the run of a trial, load it with `mlflow.pyfunc`, and compare the predictions.

    The model is a program of `torch.export`, so that loading it does not unpickle anything.

    Args:
        tracker: Tracker of the study.
        study: Study that was tracked before.
        trial_number: Number of the trial.
        network: Trained network, in any mode.
        architecture: Its architecture.
        register: Name in MLflow's model registry; None to not register it.

    Raises:
        ConnectionError: MLflow cannot be used at the tracking URI.
        ValueError: MLflow has no run of the trial.
        ArithmeticError: An output differs by more than 1e-4.
    """
    with connected(tracker.store_uri, registry=register is not None) as client:
        try:
            experiment = client.get_experiment_by_name(tracker.experiment)
            condition = f"tags.`optuna_nas.study_uid` = '{attribute(study.user_attrs, UID_ATTRIBUTE, '')}'"
            condition += f" and tags.`optuna.trial_number` = '{trial_number}'"
            runs = client.search_runs([experiment.experiment_id], condition) if experiment else []
        except MlflowException as error:
            raise unreachable(tracker.tracking_uri, one_line(error)) from error
        if not runs:
            raise ValueError(
                f"`study` must be in MLflow to log its network there but trial {trial_number} of {study.study_name!r} "
                "is not; run `optuna-nas mirror` first."
            )
        space, program = architecture.space, for_programs(network)
        assert isinstance(space, ModelSpace)
        example = space.example_inputs(2)
        if not isinstance(example, Tensor):
            raise ValueError(
                "`architecture` must be of modules that take one tensor to be logged in MLflow but takes more; export "
                "it as a file instead."
            )
        shape, kind = example.shape[1:], example.numpy().dtype
        with torch.no_grad():
            outputs = program(example).shape[1:]
        signature = ModelSignature(
            Schema([TensorSpec(kind, (-1, *shape))]),
            Schema([TensorSpec(np.dtype("float32"), (-1, *outputs))]),
        )
        before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
        level = logging.getLogger("mlflow").level
        mlflow.set_tracking_uri(tracker.store_uri)  # a setting of the whole process, which is restored below
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        try:
            info = Model.log(
                None,
                mlflow.pytorch,
                register,
                name=NAME,
                run_id=runs[0].info.run_id,
                pytorch_model=program,
                signature=signature,
                input_example=example.numpy(),
                pip_requirements=[f"torch=={torch.__version__.split('+')[0]}", "numpy"],
                serialization_format="pt2",
            )
            loaded = mlflow.pyfunc.load_model(info.model_uri)
        finally:
            mlflow.set_tracking_uri(before)
            logging.getLogger("mlflow").setLevel(level)
    worst = _worst_difference(loaded, program, space)
    if not worst <= MAX_DIFFERENCE:
        raise ArithmeticError(f"`format` 'mlflow' must keep the outputs but differs by {worst:.3g}; report it.")
    version = info.registered_model_version
    return LoggedModel(info.model_uri, None if version is None else str(version), worst)


def _worst_difference(loaded: Any, program: nn.Module, space: ModelSpace) -> float:
    """Return the largest difference of the outputs of a loaded model, over several batches."""
    draw, worst = torch.Generator().manual_seed(0), 0.0
    for size in CHECKED_BATCHES:
        inputs = random_like(space.example_inputs(size), draw)
        with torch.no_grad():
            worst = max(worst, difference(torch.from_numpy(loaded.predict(inputs.numpy())), program(inputs)))
    return worst

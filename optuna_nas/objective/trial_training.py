"""Training of a trial: initial weights, reports, masks, checkpoints, files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

from optuna import Trial, TrialPruned
from optuna.exceptions import UpdateFinishedTrialError

from optuna_nas.data.arrays import ImageData
from optuna_nas.data.splits import REPORT
from optuna_nas.networks.deployment import Deployment
from optuna_nas.networks.discrete import DiscreteNetwork
from optuna_nas.networks.files import save_network
from optuna_nas.objective.shared_checkpoint import SharedCheckpoint
from optuna_nas.storage.artifacts import store_file
from optuna_nas.storage.attributes import (
    ANYTIME_CURVE,
    BATCH_HALVED,
    GPU_SECONDS,
    MASKED,
    METRIC,
    NETWORK,
    PEAK_MEMORY_BYTES,
    REASON,
    RESUMES,
    SHARED_NETWORK,
    SKIPPED_STEPS,
    TRAIN_SECONDS,
    TRAINED_EPOCHS,
    VALIDATION_LOSS,
    attribute,
)
from optuna_nas.storage.identity import study_uid
from optuna_nas.storage.optuna_rdb import StorageError
from optuna_nas.storage.retries import CheckpointNotes
from optuna_nas.storage.spending import Meter
from optuna_nas.training.checkpoints import set_aside_if_damaged
from optuna_nas.training.described import PLAIN, attributes_of
from optuna_nas.training.device import gpu_share, is_out_of_memory, release_memory
from optuna_nas.training.disk import unwritable
from optuna_nas.training.evaluation import evaluate
from optuna_nas.training.loop import EpochResult, TrainingDiverged, TrainingResult, TrainingStopped, train
from optuna_nas.training.process_group import RankLost, current_ranks
from optuna_nas.training.task import LOSS, EarlyExits, Task

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from optuna_nas.data.splits import Data
    from optuna_nas.objective.train_objective import TrainObjective
    from optuna_nas.space import Architecture
    from optuna_nas.training.recipe import Recipe


logger = logging.getLogger(__name__)


class OutOfMemory(MemoryError):
    """Raised if a network fits the memory neither with whole nor with half batches."""


class Candidate(NamedTuple):
    """Architecture and settings of a trial.

    Args:
        architecture: Suggested architecture.
        recipe: Recipe with the trial's values.
        task: Task with the trial's values.
        data: Data on the training device, augmented with the trial's values.
        digest: Hash of the canonical graph of the architecture.
        numbers: Costs, predicted ones among them, by name.
    """

    architecture: Architecture
    recipe: Recipe
    task: Task
    data: Data
    digest: str
    numbers: dict[str, float]


class TrialTraining:
    """Training of the network of a trial.

    Args:
        objective: Objective of the trial.
        trial: Running trial.
        candidate: Architecture and settings of the trial.
    """

    def __init__(self, objective: TrainObjective, trial: Trial, candidate: Candidate) -> None:
        self._objective, self._trial, self._candidate = objective, trial, candidate
        self._run = objective.run
        self._trained = 0  # epochs of this trial, without those before it was resumed
        self._has_stepped = False  # before that, epochs are those of a checkpoint

    def run(self) -> tuple[nn.Module, TrainingResult]:
        """Train the network of the trial; return the network and the result of the training.

        Raises:
            TrialPruned: The pruner stopped the trial after an epoch.
            TrainingStopped: The search stopped the training; the checkpoint is kept.
            TrainingDiverged: The loss was not finite for ten steps in a row.
            OutOfMemory: The network fits the memory neither with whole nor with half batches.
        """
        trial, candidate, run = self._trial, self._candidate, self._run
        architecture, recipe, data = candidate.architecture, candidate.recipe, candidate.data
        network = self._initial_network()
        checkpoint, shared = None, None
        if run.folder is not None:
            checkpoint = checkpoint_path(run.folder, attribute(trial.user_attrs, RESUMES, trial.number))
            if run.store is not None:
                shared = SharedCheckpoint(run.store, checkpoint, trial)
                shared.fetch()
            set_aside_if_damaged(checkpoint)
        notes = None if checkpoint is None else CheckpointNotes(trial, checkpoint)

        def on_step(fraction: float) -> None:
            self._has_stepped = True
            if notes is not None:
                notes.after_step(fraction)
            if run.listener:
                run.listener.progress(trial.number, fraction)

        keep_checkpoint = False
        if run.lead is not None:
            run.lead(_plan(network, candidate))
        ranks = current_ranks()
        gpus, earlier = ranks.size * gpu_share(data.device), 0.0
        if gpus:  # the storage has those of a one-shot model that the sampler trained in this trial
            attributes = trial.study._storage.get_trial_user_attrs(trial._trial_id)
            earlier = attribute(attributes, GPU_SECONDS, 0.0)
        meter = Meter(TRAIN_SECONDS, gpus, earlier, trial.set_user_attr)
        try:
            with ranks.together():
                result = train(
                    network,
                    data,
                    recipe,
                    candidate.task,
                    on_epoch=lambda result: self._after_epoch(shared, meter, result),
                    on_step=on_step,
                    adapt=None
                    if self._objective.masks is None
                    else (lambda result: self._apply_masks(network, result)),
                    checkpoint=checkpoint,
                    configuration={"architecture": architecture.to_dict()},
                    should_stop=run.should_stop,
                )
        except (TrainingStopped, KeyboardInterrupt, RankLost):
            keep_checkpoint = True
            if shared is not None:
                shared.publish()
            raise
        except (*StorageError, UpdateFinishedTrialError):
            keep_checkpoint = True  # another worker resumes the trial, or has resumed it
            raise
        except TrainingDiverged as error:
            trial.set_user_attr(REASON, str(error))
            raise
        except Exception as error:
            keep_checkpoint = unwritable(error) is not None
            if not (isinstance(error, RuntimeError) and is_out_of_memory(error)):
                raise
            reason = (
                f"`batch_size` must fit the memory but {recipe.batch_size} did not, nor did {recipe.batch_size // 2} "
                "examples at a time; use fewer, or a narrower network"
            )
            raise _out_of_memory(trial, reason) from None  # the traceback would keep the tensors in memory
        finally:
            if checkpoint is not None and not keep_checkpoint:
                checkpoint.unlink(missing_ok=True)
                if shared is not None:
                    shared.remove()
            with suppress(*StorageError, UpdateFinishedTrialError):  # its own error says more
                meter.store()
            release_memory(data.device)
        return network, result

    def _initial_network(self) -> nn.Module:
        """Return the network with its initial weights."""
        objective, candidate = self._objective, self._candidate
        try:
            start = objective.weights_source.of(candidate.architecture, objective.device_data)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            release_memory(objective.device_data.device)
            reason = "`scoring_images` of the GHN must fit the memory, for statistics of its weights; use fewer"
            raise _out_of_memory(self._trial, reason) from None
        if start is None or isinstance(start, Mapping):
            return objective.space.build(candidate.architecture, start, candidate.recipe.seed)
        return start

    def _after_epoch(self, shared: SharedCheckpoint | None, meter: Meter, result: EpochResult) -> None:
        """Report an epoch to listener and pruner; stop if the pruner decides so."""
        trial, epochs = self._trial, self._candidate.recipe.epochs
        meter.store()  # before the report, with which it is written: a process may be killed
        self._trained += self._has_stepped
        reports = len(trial.study.directions) == 1  # Optuna accepts none with several objectives
        if not reports or result.epoch > self._trained:
            trial.set_user_attr(TRAINED_EPOCHS, self._trained)
        if self._run.listener:
            self._run.listener.epoch(trial.number, result.epoch, self._curves(result))
        if shared is not None:
            shared.publish()
        if not reports:
            return
        trial.report(self._objective.value_of(result), result.epoch)
        if result.epoch < epochs and trial.should_prune():
            prune(trial, f"{pruner_name(trial)} stopped it after epoch {result.epoch} of {epochs}")

    def _curves(self, result: EpochResult) -> dict[str, float]:
        """Return the learning curves at an epoch, that of the objective first."""
        name = self._candidate.task.metric
        return {
            self._objective.metric: self._objective.value_of(result),
            name: result.validation_metric,
            "validation_loss": result.validation_loss,
            **({} if result.train_metric is None else {f"train_{name}": result.train_metric}),
            "train_loss": result.train_loss,
            "learning_rate": result.learning_rate,
            "epoch_seconds": result.seconds,
        }

    def _apply_masks(self, network: nn.Module, result: EpochResult) -> None:
        """Remove ops and weights whose masks are zero by now; append the effect to the attribute `masked`."""
        trial, candidate, objective = self._trial, self._candidate, self._objective
        masks, metric = objective.masks, objective.task.metric
        assert masks is not None
        assert isinstance(network, DiscreteNetwork)
        parameters = dict(network.named_parameters())
        weight_masks = masks.weight_masks() if callable(objective.initial_weights) else {}
        before = network.remaining, network.params_left
        network.remove(
            masks.fallen(network.remaining), {n: mask for n, mask in weight_masks.items() if n in parameters}
        )
        if (network.remaining, network.params_left) == before:
            return
        data, precision = objective.device_data, candidate.recipe.precision
        after = evaluate(network, data, REPORT, candidate.task, precision=precision).metric
        row = {
            "epoch": result.epoch,
            "params": network.params_left,
            "multiply_adds": network.remaining.cost().multiply_adds,
            f"{metric}_before": result.validation_metric,
            f"{metric}_after": after,
        }
        trial.set_user_attr(MASKED, [*attribute(trial.user_attrs, MASKED, ()), row])
        if self._run.listener:
            curves = {f"masked_{metric}": after, "params": row["params"], "multiply_adds": row["multiply_adds"]}
            self._run.listener.epoch(trial.number, result.epoch, curves)

    def keep(self, network: nn.Module, result: TrainingResult) -> None:
        """Set the attributes of a finished training, and write its network."""
        trial, run = self._trial, self._run
        if self._objective.metric == LOSS:
            trial.set_user_attr(METRIC, result.last.validation_metric)
        loss, error = result.last.validation_loss, result.last.validation_loss_error
        if isfinite(loss):
            n_examples = int(self._candidate.data.size([REPORT]))
            noted = [float(loss), float(error) if isfinite(error) else None, n_examples]
            trial.set_user_attr(VALIDATION_LOSS, noted)
        for key, number in ((PEAK_MEMORY_BYTES, result.peak_memory_bytes), (SKIPPED_STEPS, result.skipped_steps)):
            if number:
                trial.set_user_attr(key, number)
        if result.accumulation > 1:
            trial.set_user_attr(BATCH_HALVED, True)
        if isinstance(network, EarlyExits) and network.budget:
            metrics = [round(value, 6) for value in result.last.exit_metrics]
            columns = {"multiply_adds": list(network.exit_costs), self._candidate.task.metric: metrics}
            trial.set_user_attr(ANYTIME_CURVE, {**columns, "budget": network.budget})
        if run.folder is None:
            return
        file = network_path(run.folder, trial.number)
        kept = network.compact() if isinstance(network, DiscreteNetwork) else network
        owner = {"study": study_uid(trial.study), "trial": trial.number}
        deployment = Deployment.of(self._objective.data, self._candidate.task)
        save_network(file, kept, self._candidate.architecture, owner, deployment)
        trial.set_user_attr(NETWORK, str(file))
        if run.store is not None:
            try:
                trial.set_user_attr(SHARED_NETWORK, store_file(trial.study, run.store, file))
            except Exception as error:  # artifact stores raise errors of their own types
                logger.warning("The network of trial %d could not be shared (%s).", trial.number, error)


def _plan(network: nn.Module, candidate: Candidate) -> dict[str, Any]:
    """Return the plan for `TrainObjective.follow` on other ranks, as JSON values."""
    return {
        "architecture": candidate.architecture.to_dict(),
        "mixing": getattr(network, "mixing", None),
        "recipe": asdict(candidate.recipe),
        "task": {name: value for name, value in attributes_of(candidate.task).items() if type(value) in PLAIN},
        "augmentation": asdict(candidate.data.augmentation) if isinstance(candidate.data, ImageData) else None,
    }


def _out_of_memory(trial: Trial, reason: str) -> OutOfMemory:
    trial.set_user_attr(REASON, reason)
    return OutOfMemory(reason)


def prune(trial: Trial, reason: str) -> None:
    """Set the trial's attribute of the reason, and raise `TrialPruned`."""
    trial.set_user_attr(REASON, reason)
    raise TrialPruned(reason)


def pruner_name(trial: Trial) -> str:
    """Return the name of the pruner's class."""
    return type(trial.study.pruner).__name__


def network_path(folder: Path, number: int) -> Path:
    """Return the file of a trial's network."""
    return folder / "networks" / f"trial-{number:05d}.safetensors"


def checkpoint_path(folder: Path, number: int) -> Path:
    """Return the file of a trial's checkpoint."""
    return folder / "checkpoints" / f"trial-{number:05d}.safetensors"

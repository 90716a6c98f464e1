"""Training loop: epochs, mixed precision, resumable checkpoints, recovery from out-of-memory errors, early stop."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from optuna_nas.data.batches import batch_length, every_nth, split_batch
from optuna_nas.data.splits import REPORT, TRAIN, Data, seeded_generator
from optuna_nas.training.checkpoints import (
    check_configuration,
    check_tensors,
    is_finite,
    load_tensors,
    prefixed,
    reading_checkpoint,
    save_tensors,
    without_prefix,
)
from optuna_nas.training.device import autocast, is_out_of_memory, release_memory
from optuna_nas.training.evaluation import evaluate
from optuna_nas.training.finite_steps import Verdicts, step_where
from optuna_nas.training.optimizers import cosine, load_optimizer_tensors, make_optimizer, optimizer_tensors
from optuna_nas.training.process_group import Packed, Ranks, current_ranks, is_agreed, pack
from optuna_nas.training.recipe import EXPONENTIAL, Recipe
from optuna_nas.training.rules import (
    Rule,
    at_least,
    between,
    checked,
    fields_of,
    items,
    not_negative,
    number,
    optional,
    row,
    settings_of,
    text,
)
from optuna_nas.training.task import ImageClassification, Task, step_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

MAX_SKIPPED_IN_A_ROW = 10
"""Number of consecutive steps with a non-finite loss after which a training counts as diverged."""


@dataclass(frozen=True)
class EpochResult:
    """Loss and metric after an epoch.

    Args:
        epoch: Number of the epoch, counted from 1.
        train_loss: Mean loss of the augmented training batches of the epoch.
        train_metric: The task's metric on these batches; None if the task does not compute it.
        validation_loss: Mean loss on the validation split (`report`).
        validation_metric: The task's metric on the validation split.
        learning_rate: Learning rate of the last step.
        seconds: Wall-clock time of the epoch.
        exit_metrics: Metric on the validation split of every classifier of a network with early exits, the cheapest
            first.
        validation_loss_error: Standard error of the validation loss; NaN if it is not known.

    Example:
        >>> from optuna_nas.training import EpochResult
        >>> EpochResult(1, 0.9, 0.6, 0.8, 0.7, learning_rate=0.025, seconds=12.0).validation_metric
        0.7
    """

    epoch: int
    train_loss: float
    train_metric: float | None
    validation_loss: float
    validation_metric: float
    learning_rate: float
    seconds: float
    exit_metrics: tuple[float, ...] = ()
    validation_loss_error: float = math.nan


@dataclass(frozen=True)
class TrainingResult:
    """Result of a training.

    Args:
        last: Result of the last epoch.
        seconds: Wall-clock time of the training, without interruptions.
        peak_memory_bytes: Peak memory of the GPU; 0 on a CPU.
        skipped_steps: Number of steps that were skipped since loss or gradient was not finite.
        accumulation: Number of parts of a batch whose gradients are accumulated: 2 if a whole batch did not fit the
            memory, otherwise 1.
        history: Results of all epochs, also of those before an interruption.

    Example:
        >>> from optuna_nas.training import EpochResult, TrainingResult
        >>> last = EpochResult(1, 0.9, 0.6, 0.8, 0.7, learning_rate=0.025, seconds=12.0)
        >>> TrainingResult(last, 12.0, peak_memory_bytes=0, skipped_steps=0, accumulation=1).last.epoch
        1
    """

    last: EpochResult
    seconds: float
    peak_memory_bytes: int
    skipped_steps: int
    accumulation: int
    history: tuple[EpochResult, ...] = ()


@runtime_checkable
class Shrinking(Protocol):
    """Protocol of networks from which parts can be removed during training, such as `DiscreteNetwork`."""

    def shrunk(self) -> dict[str, Any]:
        """Return the removed parts as JSON values; empty if there are none."""

    def shrink_again(self, shrunk: Mapping[str, Any]) -> None:
        """Repeat the removals that `shrunk` returned, before the state dictionary of a checkpoint is loaded."""


class TrainingStopped(Exception):
    """Raised by `train` if `should_stop` ended the training; its checkpoint, if there is one, has been written.

    Example:
        >>> from torch import nn
        >>> from optuna_nas import Recipe, digits, train
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> train(network, digits(), Recipe(), should_stop=lambda: True)
        Traceback (most recent call last):
            ...
        optuna_nas.training.loop.TrainingStopped
    """


class TrainingDiverged(ArithmeticError):
    """Raised by `train` if loss or gradient was not finite for ten steps in a row.

    Example:
        >>> from torch import nn
        >>> from optuna_nas import Recipe, digits, train
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> train(network, digits(), Recipe(learning_rate=1e38))
        Traceback (most recent call last):
            ...
        optuna_nas.training.loop.TrainingDiverged: `learning_rate` must keep the loss finite but 10 steps in a row ...
    """


def train(
    network: nn.Module,
    data: Data,
    recipe: Recipe,
    task: Task | None = None,
    *,
    splits: Sequence[str] = TRAIN,
    on_epoch: Callable[[EpochResult], None] | None = None,
    on_step: Callable[[float], None] | None = None,
    adapt: Callable[[EpochResult], None] | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 30.0,
    configuration: Mapping[str, Any] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrainingResult:
    """Train a network on the device of the data, and evaluate it on the validation split after every epoch.

    If the file `checkpoint` exists, training is resumed from it. On a CPU the results are bitwise equal to those of an
    uninterrupted training.

    In a process group of several ranks, all ranks must call this function with the same arguments. They train one
    network with data parallelism: each rank takes its part of every batch, gradients are summed, and batch norms see
    the part of their rank. All ranks start from the weights of rank 0, which alone reads and writes the checkpoint.
    Every rank calls its own `on_epoch`, `on_step` and `should_stop`; if one of them ends the training, all ranks end.

    Args:
        network: Module for which the task can compute a loss. A method `step_context(progress, generator)`, if it has
            one, is the context of every step, for example for stochastic depth.
        data: Data set.
        recipe: Hyperparameters of the training.
        task: Loss and metric; by default image classification.
        splits: Names of the training splits.
        on_epoch: Callback after every epoch; a resumed training calls it for earlier epochs, too. It may raise to end
            the training.
        on_step: Callback after every step, with the fraction of the training that is done, in (0, 1].
        adapt: Callback between epochs, after `on_epoch`, for epochs that are trained here. It may remove parts of the
            network (`DiscreteNetwork.remove`); checkpoints store the removals.
        checkpoint: File to resume from, and to write.
        checkpoint_seconds: Minimum seconds between two checkpoints; 0 writes one after every step.
        configuration: JSON values for the checkpoint, which can only be resumed with equal ones.
        should_stop: Callback after every step; True writes a checkpoint and raises `TrainingStopped`.

    Raises:
        TrainingStopped: `should_stop` returned True.
        TrainingDiverged: The loss was not finite for ten steps in a row.
        torch.OutOfMemoryError: Neither a batch nor half of it fits the memory.
        RankFailed: Another rank failed, or its callback ended the training.
        ValueError: The checkpoint has another configuration, a split is empty, or `adapt` is given with several ranks.

    Example:
        >>> from torch import nn
        >>> from optuna_nas import Recipe, digits, train
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> result = train(network, digits(), Recipe(epochs=1, batch_size=128))
        >>> result.last.epoch, 0 <= result.last.validation_metric <= 1
        (1, True)
    """
    ranks = current_ranks()
    if adapt is not None and ranks.size > 1:
        raise ValueError(f"`adapt` must be None for a training over several ranks but there are {ranks.size}; use one.")
    with ranks.together():
        return _Training(network, data, recipe, task or ImageClassification(), splits, configuration, ranks).run(
            on_epoch or (lambda result: None),
            on_step or (lambda fraction: None),
            adapt or (lambda result: None),
            checkpoint if ranks.rank == 0 else None,
            checkpoint_seconds,
            should_stop or (lambda: False),
        )


EPOCH: dict[str, Rule] = {
    "epoch": at_least(1),
    **dict.fromkeys(("train_loss", "validation_loss", "validation_metric", "learning_rate"), number()),
    "train_metric": optional(number()),
    "seconds": not_negative(),
    "exit_metrics": items(number()),
    "validation_loss_error": number(),
}


def _epoch(name: str, value: Any) -> Any:
    """Return the result of an epoch; those of before have no standard error."""
    return fields_of(EPOCH)(name, {"validation_loss_error": math.nan, **value} if isinstance(value, dict) else value)


PROGRESS: dict[str, Rule] = {
    **dict.fromkeys(("epoch", "step", "skipped", "skipped_in_a_row"), at_least(0)),
    **dict.fromkeys(("seconds", "epoch_started"), not_negative()),
    "accumulation": between(1, 2, "[]", int),
    "history": items(_epoch),
}
SHRUNK: dict[str, Rule] = {"removed": items(row(text(), text())), "masked": items(text())}
"""Rules of what a checkpoint holds beside its tensors."""


class _Training:
    """A training and its state, which is the content of a checkpoint."""

    def __init__(
        self,
        network: nn.Module,
        data: Data,
        recipe: Recipe,
        task: Task,
        splits: Sequence[str],
        configuration: Mapping[str, Any] | None,
        ranks: Ranks,
    ) -> None:
        self._device, self._ranks = data.device, ranks
        self._network = network.to(self._device)
        self._forward = cast("nn.Module", torch.compile(network)) if recipe.compile else network
        self._data, self._recipe, self._task, self._splits = data, recipe, task, splits
        n_examples = data.size(splits)
        if n_examples == 0:
            raise ValueError(f"`splits` must hold examples but {tuple(splits)} of {data.name!r} are empty.")
        if data.size([REPORT]) == 0:
            raise ValueError(
                f"`data` must have examples in the validation split 'report' but {data.name!r} has none; set its "
                "fraction."
            )
        if min(n_examples, recipe.batch_size) < 2 and any(map(needs_a_batch, network.modules())):
            raise ValueError(
                "`batch_size` must be at least 2 for a network with batch norms, which take statistics of a batch, but "
                f"is {recipe.batch_size} for {n_examples} examples; raise it."
            )
        self._steps_per_epoch = max(1, n_examples // recipe.batch_size)
        self._optimizer = make_optimizer(network, recipe)
        self._configuration = {
            **(configuration or {}),
            "recipe": settings_of(recipe),
            "task": task.describe(),
            "splits": list(splits),
            "data": data.describe(),
        }
        self._epoch = 0  # number of finished epochs
        self._step = 0  # number of finished steps of the current epoch
        self._sums: Tensor | None = None  # sums of the current epoch, see `Task.training_step`
        self._history: list[EpochResult] = []
        self._seconds = 0.0
        self._epoch_started = 0.0
        self._skipped = 0
        self._skipped_in_a_row = 0
        self._verdicts = Verdicts()
        self._resumed: Path | None = None  # the checkpoint that it goes on from
        self._accumulation = 1

    def run(
        self,
        on_epoch: Callable[[EpochResult], None],
        on_step: Callable[[float], None],
        adapt: Callable[[EpochResult], None],
        checkpoint: Path | None,
        checkpoint_seconds: float,
        should_stop: Callable[[], bool],
    ) -> TrainingResult:
        if checkpoint is not None and checkpoint.exists():
            self._load(checkpoint)
        if self._ranks.size > 1:
            self._share_state()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        started = saved = time.monotonic()
        before = self._seconds
        for result in list(self._history):
            on_epoch(result)
        while self._epoch < self._recipe.epochs:
            self._network.train()
            for batch in self._data.batches(
                self._splits, self._recipe.batch_size, seed=self._recipe.seed, epoch=self._epoch, start=self._step
            ):
                self._train_step(batch)
                self._step += 1
                now = time.monotonic()
                self._seconds = before + now - started
                on_step((self._epoch + self._step / self._steps_per_epoch) / self._recipe.epochs)
                is_due = checkpoint is not None and now - saved >= checkpoint_seconds
                votes = self._ranks.vote(stop=should_stop(), save=is_due)
                if votes.stop or votes.save:
                    self._count_skipped(wait=True)
                    self._average_statistics()
                    if checkpoint is not None:
                        self._save(checkpoint)
                        saved = time.monotonic()
                if votes.stop:
                    raise TrainingStopped
            self._count_skipped(wait=True)
            self._average_statistics()
            validation = evaluate(
                self._network, self._data, REPORT, self._task, precision=self._recipe.precision, ranks=self._ranks
            )
            curves = {} if self._sums is None else self._task.training_curves(self._sums.cpu())
            self._seconds = before + time.monotonic() - started
            result = EpochResult(
                self._epoch + 1,
                float(curves.get("loss", 0.0)),
                float(curves[self._task.metric]) if self._task.metric in curves else None,
                validation.loss,
                validation.metric,
                self._learning_rate(self._epoch * self._steps_per_epoch + self._step - 1),
                self._seconds - self._epoch_started,
                validation.exit_metrics,
                validation.loss_error,
            )
            self._history.append(result)
            self._epoch, self._step, self._epoch_started = self._epoch + 1, 0, self._seconds
            self._sums = None
            on_epoch(result)
            if self._epoch < self._recipe.epochs:
                adapt(result)
        peak = torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else 0
        last, history = self._history[-1], tuple(self._history)
        return TrainingResult(last, self._seconds, peak, self._skipped, self._accumulation, history)

    def _train_step(self, batch: Any) -> None:
        """Do one step; if the batch does not fit the memory, halve this and all later batches."""
        step = self._epoch * self._steps_per_epoch + self._step
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate(step)
        out_of_memory = False
        try:
            self._backward(batch, step)
        except RuntimeError as error:
            if self._accumulation > 1 or batch_length(batch) < 4 * self._ranks.size or not is_out_of_memory(error):
                raise
            if self._ranks.size > 1 and not is_agreed(error):
                raise  # the other ranks have applied the step
            out_of_memory = True
        # Outside of `except`, where the error's traceback would keep the tensors in memory.
        if out_of_memory:
            self._accumulation = 2
            release_memory(self._device)
            self._backward(batch, step)

    def _backward(self, batch: Any, step: int) -> None:
        with self._ranks.together():
            sums = self._gradients(batch, step)
            packed: Packed = []
            if self._ranks.size > 1:
                gradients = [parameter.grad for parameter in self._network.parameters() if parameter.grad is not None]
                packed = pack([*gradients, sums])
        self._ranks.sum_packed(packed)
        self._update(sums)

    def _gradients(self, batch: Any, step: int) -> Tensor:
        """Compute this rank's part of the gradient of a batch, and return its part of the sums."""
        recipe, ranks = self._recipe, self._ranks
        self._optimizer.zero_grad(set_to_none=True)
        key = (recipe.seed, step) if ranks.size == 1 else (recipe.seed, step, ranks.rank)
        generator = seeded_generator(self._device, *key)
        n_examples = batch_length(batch)  # over all ranks
        repeats = 1
        if ranks.size > 1 and n_examples >= 2 * ranks.size:
            batch = every_nth(batch, ranks.rank, ranks.size)
        elif ranks.size > 1:  # every rank takes the whole batch, since a batch norm needs two examples
            repeats = ranks.size
        total: Tensor | None = None
        with step_of(self._network, self._epoch / recipe.epochs, generator):
            for part in split_batch(batch, -(-batch_length(batch) // self._accumulation)):
                with autocast(self._device, recipe.precision):
                    loss, sums = self._task.training_step(self._forward, part)
                (loss * (batch_length(part) / (n_examples * repeats))).backward()
                total = sums if total is None else total + sums
        assert total is not None
        return total / repeats if repeats > 1 else total

    def _update(self, sums: Tensor) -> None:
        """Apply a step if the gradient of the batch is finite."""
        parameters = [parameter for parameter in self._network.parameters() if parameter.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, self._recipe.clip_norm or math.inf)
        finite = torch.isfinite(sums[0]) & torch.isfinite(norm)
        step_where(finite, self._optimizer)
        applied_sums = torch.where(finite, sums, 0.0)
        if self._sums is not None and (self._sums.shape, self._sums.dtype) != (sums.shape, sums.dtype):
            raise ValueError(
                f"`checkpoint` must hold the sums of this task but those in {self._resumed} are of another; delete it "
                "to start anew."
            )
        self._sums = applied_sums if self._sums is None else self._sums + applied_sums
        self._verdicts.put(finite)
        self._count_skipped(wait=self._ranks.size > 1)  # all ranks must know the same decisions

    def _count_skipped(self, wait: bool) -> None:
        """Count the skipped steps whose decision is available; with `wait`, all of them."""
        for finite in self._verdicts.take(wait):
            if finite:
                self._skipped_in_a_row = 0
                continue
            self._skipped += 1
            self._skipped_in_a_row += 1
            for module in self._network.modules():
                # The forward pass has updated running statistics: reset those that are not finite.
                if isinstance(module, nn.modules.batchnorm._NormBase):
                    statistics = (module.running_mean, module.running_var)
                    if not all(bool(torch.isfinite(part).all()) for part in statistics if part is not None):
                        module.reset_running_stats()
            if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
                raise TrainingDiverged(
                    f"`learning_rate` must keep the loss finite but {self._skipped_in_a_row} steps in a row it was "
                    f"not, at {self._recipe.learning_rate}; lower it, or use precision='float32'."
                )

    def _average_statistics(self) -> None:
        """Average the running statistics of batch norms over ranks.

        Their updates are linear, so it is enough to average before an evaluation or a checkpoint.
        """
        if self._ranks.size > 1:
            norms = [m for m in self._network.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
            statistics = (part for norm in norms for part in (norm.running_mean, norm.running_var) if part is not None)
            self._ranks.mean_(list(statistics))

    def _share_state(self) -> None:
        """Copy the state of rank 0 to all ranks."""
        with self._ranks.together():
            state = self._state()
        tensors, progress = self._ranks.share(*state, self._device)
        if self._ranks.rank > 0:
            self._restore(tensors, progress)

    def _learning_rate(self, step: int) -> float:
        """Return the learning rate of a step of this epoch: linear warm-up, then the decay of the recipe's schedule."""
        recipe = self._recipe
        steps = self._steps_per_epoch * recipe.epochs
        warmup = round(recipe.warmup_fraction * steps)
        if step < warmup:
            return recipe.learning_rate * (step + 1) / warmup
        if recipe.schedule == EXPONENTIAL:
            epochs = self._epoch - warmup // self._steps_per_epoch
            return max(recipe.final_learning_rate, recipe.learning_rate * recipe.decay_per_epoch**epochs)
        progress = (step - warmup) / max(1, steps - warmup)
        return cosine(recipe.learning_rate, recipe.final_learning_rate, progress)

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the content of a checkpoint: tensors and JSON values."""
        tensors = {
            **prefixed("network/", self._network.state_dict()),
            **prefixed("optimizer/", optimizer_tensors(self._optimizer)),
        }
        if self._sums is not None:
            tensors["sums"] = self._sums
        progress = {
            "epoch": self._epoch,
            "step": self._step,
            "seconds": self._seconds,
            "epoch_started": self._epoch_started,
            "skipped": self._skipped,
            "skipped_in_a_row": self._skipped_in_a_row,
            "accumulation": self._accumulation,
            "history": [asdict(result) for result in self._history],
        }
        if isinstance(self._network, Shrinking):
            progress["shrunk"] = self._network.shrunk()
        return tensors, progress

    def _save(self, path: Path) -> None:
        tensors, progress = self._state()
        save_tensors(path, tensors, {"configuration": self._configuration, "progress": progress})

    def _load(self, path: Path) -> None:
        tensors, description = load_tensors(path, self._device)
        self._resumed = path
        check_configuration(path, description.get("configuration"), self._configuration)
        with reading_checkpoint(path):
            self._restore(tensors, {**description["progress"], **checked(description["progress"], PROGRESS)})

    def _restore(self, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """Restore the result of `_state`."""
        epoch, step, history = progress["epoch"], progress["step"], progress["history"]
        if epoch > self._recipe.epochs or step > self._steps_per_epoch or len(history) != epoch:
            raise ValueError(f"it can't stand at epoch {epoch} and step {step}, after {len(history)} epochs")
        if isinstance(self._network, Shrinking) and progress.get("shrunk"):
            self._network.shrink_again(checked(progress["shrunk"], SHRUNK))
        weights, sums = without_prefix("network/", tensors), tensors.get("sums")
        unknown = tensors.keys() - {f"network/{name}" for name in weights} - {"sums"}
        if foreign := [name for name in unknown if not name.startswith("optimizer/")]:
            raise ValueError(f"tensor {min(foreign)!r} must not be there")
        if (sums is None) != (step == 0) or (sums is not None and not is_finite(sums)):
            raise ValueError(f"tensor 'sums' must be finite sums of {step} steps but is not")
        check_tensors(weights, self._network.state_dict(), "network/")
        load_optimizer_tensors(self._optimizer, without_prefix("optimizer/", tensors))
        self._network.load_state_dict(weights)
        self._sums = None if sums is None else sums.to(self._device)
        self._epoch, self._step, self._seconds = progress["epoch"], progress["step"], progress["seconds"]
        self._epoch_started = progress["epoch_started"]
        self._skipped, self._skipped_in_a_row = progress["skipped"], progress["skipped_in_a_row"]
        self._accumulation = progress["accumulation"]
        self._history = [EpochResult(**{**result, "exit_metrics": tuple(result["exit_metrics"])}) for result in history]


def needs_a_batch(module: nn.Module) -> bool:
    """Return whether a layer takes statistics of a batch, so that one example may not do.

    Example:
        >>> from torch import nn
        >>> from optuna_nas.training.loop import needs_a_batch
        >>> needs_a_batch(nn.BatchNorm2d(3)), needs_a_batch(nn.LayerNorm(3))
        (True, False)
    """
    return isinstance(module, nn.modules.batchnorm._BatchNorm)

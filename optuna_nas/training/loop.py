"""One training loop: epochs, mixed precision, checkpoints that go on to the same numbers, out-of-memory, stop."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from optuna_nas.data.batches import batch_length, every_nth, split_batch
from optuna_nas.data.splits import REPORT, TRAIN, Data, seeded_generator
from optuna_nas.training.checkpoints import check_configuration, load_tensors, prefixed, save_tensors, without_prefix
from optuna_nas.training.device import autocast, is_out_of_memory, release_memory
from optuna_nas.training.evaluation import evaluate
from optuna_nas.training.finite_steps import Verdicts, step_where
from optuna_nas.training.optimizers import cosine, load_optimizer_tensors, make_optimizer, optimizer_tensors
from optuna_nas.training.process_group import Packed, Ranks, current_ranks, is_agreed, pack
from optuna_nas.training.task import ImageClassification, Task, step_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from optuna_nas.training.recipe import Recipe

MAX_SKIPPED_IN_A_ROW = 10


@dataclass(frozen=True)
class EpochResult:
    """Loss and metric after one epoch.

    Args:
        epoch: Counted from 1.
        train_loss: Mean over the augmented batches of the epoch.
        train_metric: The task's metric over them; None where the task does not tell.
        validation_loss: Mean over the split `report`.
        validation_metric: The task's metric on the split `report`.
        learning_rate: Of the last step.
        seconds: Wall-clock time of the epoch.
        exit_metrics: Metric on the split `report` of every classifier of a network with early exits, the cheapest
            first.
    """

    epoch: int
    train_loss: float
    train_metric: float | None
    validation_loss: float
    validation_metric: float
    learning_rate: float
    seconds: float
    exit_metrics: tuple[float, ...] = ()


@dataclass(frozen=True)
class TrainingResult:
    """The last epoch, and what the training took.

    `seconds` sums over interruptions; `peak_memory_bytes` is the GPU's (0 on a CPU); `skipped_steps` counts steps whose
    loss or gradient was not finite; `accumulation` is 2 where memory ran out once and batches were halved.
    """

    last: EpochResult
    seconds: float
    peak_memory_bytes: int
    skipped_steps: int
    accumulation: int


@runtime_checkable
class Shrinking(Protocol):
    """A network that may be made smaller while it trains, as `DiscreteNetwork.remove` does."""

    def shrunk(self) -> dict[str, Any]:
        """Return what was taken out, as JSON values; empty where nothing was."""

    def shrink_again(self, shrunk: Mapping[str, Any]) -> None:
        """Take out what `shrunk` told, before the weights of a checkpoint are loaded."""


class TrainingStopped(Exception):
    """The training was asked to stop; its checkpoint, if it has one, is written."""


class TrainingDiverged(ArithmeticError):
    """Loss or gradient was not finite for too many steps in a row."""


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
    """Train a network on the device of the data and report on a split it never trains on.

    With `checkpoint` and an existing file of that name, training goes on where the file was written; on a CPU the
    numbers equal those of a run that was never interrupted, to the bit.

    In a process group of several ranks (`optuna_nas.ranks`), all ranks must call this alike and train one network: each
    takes its part of every batch, gradients are summed, and batch norms see their rank's part. All start from the
    weights of rank 0, which alone reads and writes the checkpoint. Every rank calls its own `on_epoch`, `on_step` and
    `should_stop`; where one of them ends the training, all ranks end it.

    Args:
        network: Any module that the task can compute a loss of. One with a method `step_context(progress, generator)`
            hears at every step how far its training is (stochastic depth).
        data: Batches and splits.
        recipe: How to train.
        task: Loss and metric; image classification by default.
        splits: What to train on.
        on_epoch: Called after every epoch, also with those a resumed run had finished; may raise to end training.
        on_step: Called after every step with the fraction done.
        adapt: Called between epochs, once for each that is trained here, after `on_epoch`; may make the network smaller
            (`DiscreteNetwork.remove`), which a checkpoint then keeps.
        checkpoint: File to go on from and to write.
        checkpoint_seconds: Write when so long has passed since the last time; 0 writes after every step.
        configuration: JSON values kept in the checkpoint; a checkpoint of another configuration is refused.
        should_stop: Asked after every step; True writes a checkpoint and raises `TrainingStopped`.

    Raises:
        TrainingStopped: `should_stop` said so.
        TrainingDiverged: Too many steps in a row had no finite loss.
        torch.OutOfMemoryError: A batch did not fit, nor did its halves.
        RankFailed: Another rank failed, or its `on_epoch` or `on_step` ended the training.
        ValueError: The checkpoint is of another configuration, the data do not fit the recipe, or several ranks are to
            `adapt`.
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


class _Training:
    """State of one training; all that a checkpoint holds."""

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
                f"`data` must have examples in the split 'report' but {data.name!r} has none; set its share."
            )
        self._steps_per_epoch = max(1, n_examples // recipe.batch_size)
        self._optimizer = make_optimizer(network, recipe)
        self._configuration = {
            **(configuration or {}),
            "recipe": asdict(recipe),
            "task": task.describe(),
            "splits": list(splits),
            "data": data.describe(),
        }
        self._epoch = 0  # finished epochs
        self._step = 0  # finished steps of the running epoch
        self._sums: Tensor | None = None  # of the running epoch, see `Task.training_step`
        self._history: list[EpochResult] = []
        self._seconds = 0.0
        self._epoch_started = 0.0
        self._skipped = 0
        self._skipped_in_a_row = 0
        self._verdicts = Verdicts()
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
            self._meet()
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
            report = evaluate(
                self._network, self._data, REPORT, self._task, precision=self._recipe.precision, ranks=self._ranks
            )
            curves = {} if self._sums is None else self._task.training_curves(self._sums.cpu())
            self._seconds = before + time.monotonic() - started
            result = EpochResult(
                self._epoch + 1,
                float(curves.get("loss", 0.0)),
                float(curves[self._task.metric]) if self._task.metric in curves else None,
                report.loss,
                report.metric,
                self._learning_rate(self._epoch * self._steps_per_epoch + self._step - 1),
                self._seconds - self._epoch_started,
                report.exit_metrics,
            )
            self._history.append(result)
            self._epoch, self._step, self._epoch_started = self._epoch + 1, 0, self._seconds
            self._sums = None
            on_epoch(result)
            if self._epoch < self._recipe.epochs:
                adapt(result)
        peak = torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else 0
        return TrainingResult(self._history[-1], self._seconds, peak, self._skipped, self._accumulation)

    def _train_step(self, batch: Any) -> None:
        """Do one step; halve the batch once if it does not fit the memory."""
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
                raise  # the others have made the step
            out_of_memory = True
        # Outside of `except`: there the error's traceback would still hold the tensors that must be freed.
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
        """Compute this rank's part of the gradient of a batch; return that of its sums, see `Task.training_step`."""
        recipe, ranks = self._recipe, self._ranks
        self._optimizer.zero_grad(set_to_none=True)
        key = (recipe.seed, step) if ranks.size == 1 else (recipe.seed, step, ranks.rank)
        generator = seeded_generator(self._device, *key)
        n_examples = batch_length(batch)  # of all ranks
        repeats = 1
        if ranks.size > 1 and n_examples >= 2 * ranks.size:
            batch = every_nth(batch, ranks.rank, ranks.size)
        elif ranks.size > 1:  # a batch norm may need two examples: every rank takes all
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
        """Make a step along the gradient of a batch, if it is finite."""
        parameters = [parameter for parameter in self._network.parameters() if parameter.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, self._recipe.clip_norm or math.inf)
        finite = torch.isfinite(sums[0]) & torch.isfinite(norm)
        step_where(finite, self._optimizer)
        kept = torch.where(finite, sums, 0.0)
        self._sums = kept if self._sums is None else self._sums + kept
        self._verdicts.put(finite)
        self._count_skipped(wait=self._ranks.size > 1)  # ranks go on alike

    def _count_skipped(self, wait: bool) -> None:
        """Count the steps that were left out, as far as that is known."""
        for finite in self._verdicts.take(wait):
            if finite:
                self._skipped_in_a_row = 0
                continue
            self._skipped += 1
            self._skipped_in_a_row += 1
            for module in self._network.modules():
                # The forward pass has moved running statistics already; those that broke begin anew.
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
        """Let all ranks have the mean of their batch norms' running statistics.

        These change linearly, so it does not matter how often this is done: only before they are used or kept.
        """
        if self._ranks.size > 1:
            norms = [m for m in self._network.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
            known = (part for norm in norms for part in (norm.running_mean, norm.running_var) if part is not None)
            self._ranks.mean_(list(known))

    def _meet(self) -> None:
        """Let all ranks begin where rank 0 is."""
        with self._ranks.together():
            state = self._state()
        tensors, progress = self._ranks.share(*state, self._device)
        if self._ranks.rank > 0:
            self._restore(tensors, progress)

    def _learning_rate(self, step: int) -> float:
        """Return the rate of a step: linear warm-up, then a cosine (Loshchilov and Hutter 2017, without restarts)."""
        recipe = self._recipe
        steps = self._steps_per_epoch * recipe.epochs
        warmup = round(recipe.warmup_fraction * steps)
        if step < warmup:
            return recipe.learning_rate * (step + 1) / warmup
        progress = (step - warmup) / max(1, steps - warmup)
        return cosine(recipe.learning_rate, recipe.final_learning_rate, progress)

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that a checkpoint holds: tensors and JSON values."""
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
        check_configuration(path, description.get("configuration"), self._configuration)
        self._restore(tensors, description["progress"])

    def _restore(self, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """Go on where `_state` was asked for."""
        if isinstance(self._network, Shrinking) and progress.get("shrunk"):
            self._network.shrink_again(progress["shrunk"])
        self._network.load_state_dict(without_prefix("network/", tensors))
        load_optimizer_tensors(self._optimizer, without_prefix("optimizer/", tensors))
        self._sums = tensors["sums"].to(self._device) if "sums" in tensors else None
        self._epoch, self._step, self._seconds = progress["epoch"], progress["step"], progress["seconds"]
        self._epoch_started = progress["epoch_started"]
        self._skipped, self._skipped_in_a_row = progress["skipped"], progress["skipped_in_a_row"]
        self._accumulation = progress["accumulation"]
        self._history = [
            EpochResult(**{**result, "exit_metrics": tuple(result["exit_metrics"])}) for result in progress["history"]
        ]

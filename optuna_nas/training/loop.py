"""One training loop: epochs, mixed precision, checkpoints that go on to the same numbers, out-of-memory, stop."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optuna_nas.data.splits import REPORT, TRAIN, Data, seeded_generator
from optuna_nas.networks import DiscreteNetwork
from optuna_nas.training.checkpoints import check_configuration, load_tensors, prefixed, save_tensors, without_prefix
from optuna_nas.training.device import autocast, is_out_of_memory, release_memory
from optuna_nas.training.evaluation import evaluate_exits, summary_of
from optuna_nas.training.finite_steps import Verdicts, step_where
from optuna_nas.training.optimizers import cosine, load_optimizer_tensors, make_optimizer, optimizer_tensors
from optuna_nas.training.process_group import Packed, Ranks, current_ranks, is_agreed, pack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from optuna_nas.training.recipe import Recipe

MOST_SKIPPED_IN_A_ROW = 10


@dataclass(frozen=True)
class EpochResult:
    """What one epoch brought; losses in nats, accuracies as fractions in [0, 1].

    `epoch` counts from 1; `train_*` are means over the augmented batches seen, `report_*` over the report split;
    `accuracies` are those on the report split of all classifiers, the cheapest first.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    report_loss: float
    report_accuracy: float
    learning_rate: float
    seconds: float
    accuracies: tuple[float, ...] = ()


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


class TrainingStopped(Exception):
    """The training was asked to stop; its checkpoint, if it has one, is written."""


class TrainingDiverged(ArithmeticError):
    """Loss or gradient was not finite for too many steps in a row."""


def train(
    network: nn.Module,
    data: Data,
    recipe: Recipe,
    *,
    drop_path: float = 0.0,
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
        network: Maps images (B, C, H, W) to class scores (B, classes); `DiscreteNetwork` may add auxiliary scores.
        data: Images and splits.
        recipe: How to train.
        drop_path: Probability at the end of training; rises linearly by epoch from 0. Needs a `DiscreteNetwork`.
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
        return _Training(network, data, recipe, drop_path, splits, configuration, ranks).run(
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
        drop_path: float,
        splits: Sequence[str],
        configuration: Mapping[str, Any] | None,
        ranks: Ranks,
    ) -> None:
        self._device, self._ranks = data.device, ranks
        self._network = network.to(self._device)
        self._forward = torch.compile(network) if recipe.compile else network
        self._has_exits = isinstance(network, DiscreteNetwork) and len(network.graph.exits) > 1
        self._data, self._recipe, self._drop_path, self._splits = data, recipe, drop_path, splits
        n_images = data.size(splits)
        if n_images == 0:
            raise ValueError(f"`splits` must hold images but {tuple(splits)} of {data.name!r} are empty.")
        if data.size([REPORT]) == 0:
            raise ValueError(
                f"`data` must have images in the split 'report' but {data.name!r} has none; set its share."
            )
        self._steps_per_epoch = max(1, n_images // recipe.batch_size)
        self._optimizer = make_optimizer(network, recipe)
        self._configuration = {
            **(configuration or {}),
            "recipe": asdict(recipe),
            "drop_path": drop_path,
            "splits": list(splits),
            "data": data.describe(),
        }
        self._epoch = 0  # finished epochs
        self._step = 0  # finished steps of the running epoch
        self._sums = torch.zeros(3, dtype=torch.float64, device=self._device)  # loss, correct, images
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
            for images, labels in self._data.batches(
                self._splits, self._recipe.batch_size, seed=self._recipe.seed, epoch=self._epoch, start=self._step
            ):
                self._train_step(images, labels)
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
            losses, accuracies = evaluate_exits(
                self._network, self._data, REPORT, self._recipe.precision, ranks=self._ranks
            )
            report_loss, report_accuracy = summary_of(self._network, losses, accuracies)
            loss, correct, images_seen = self._sums.tolist()
            self._seconds = before + time.monotonic() - started
            result = EpochResult(
                self._epoch + 1,
                loss / max(images_seen, 1),
                correct / max(images_seen, 1),
                report_loss,
                report_accuracy,
                self._learning_rate(self._epoch * self._steps_per_epoch + self._step - 1),
                self._seconds - self._epoch_started,
                tuple(accuracies),
            )
            self._history.append(result)
            self._epoch, self._step, self._epoch_started = self._epoch + 1, 0, self._seconds
            self._sums.zero_()
            on_epoch(result)
            if self._epoch < self._recipe.epochs:
                adapt(result)
        peak = torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else 0
        return TrainingResult(self._history[-1], self._seconds, peak, self._skipped, self._accumulation)

    def _train_step(self, images: Tensor, labels: Tensor) -> None:
        """Do one step; halve the batch once if it does not fit the memory."""
        step = self._epoch * self._steps_per_epoch + self._step
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate(step)
        out_of_memory = False
        try:
            self._backward(images, labels, step)
        except RuntimeError as error:
            if self._accumulation > 1 or len(images) < 4 * self._ranks.size or not is_out_of_memory(error):
                raise
            if self._ranks.size > 1 and not is_agreed(error):
                raise  # the others have made the step
            out_of_memory = True
        # Outside of `except`: there the error's traceback would still hold the tensors that must be freed.
        if out_of_memory:
            self._accumulation = 2
            release_memory(self._device)
            self._backward(images, labels, step)

    def _backward(self, images: Tensor, labels: Tensor, step: int) -> None:
        with self._ranks.together():
            sums = self._gradients(images, labels, step)
            packed: Packed = []
            if self._ranks.size > 1:
                found = [parameter.grad for parameter in self._network.parameters() if parameter.grad is not None]
                packed = pack([*found, sums])
        self._ranks.sum_packed(packed)
        self._update(sums)

    def _gradients(self, images: Tensor, labels: Tensor, step: int) -> Tensor:
        """Compute this rank's part of the gradient of a batch; return that of the sums of loss, correct and images."""
        recipe, ranks = self._recipe, self._ranks
        self._optimizer.zero_grad(set_to_none=True)
        key = (recipe.seed, step) if ranks.size == 1 else (recipe.seed, step, ranks.rank)
        generator = seeded_generator(self._device, *key)
        sums = torch.zeros_like(self._sums)
        n_images = len(images)  # of all ranks
        repeats = 1
        if ranks.size > 1 and n_images >= 2 * ranks.size:
            images, labels = images[ranks.rank :: ranks.size], labels[ranks.rank :: ranks.size]
        elif ranks.size > 1:  # a batch norm may need two images: every rank takes all
            repeats = ranks.size
        size = -(-len(images) // self._accumulation)
        for part, wanted in zip(images.split(size), labels.split(size), strict=True):
            with autocast(self._device, recipe.precision):
                if self._drop_path > 0:
                    probability = self._drop_path * self._epoch / recipe.epochs
                    scores = self._forward(part, probability, generator)
                else:
                    scores = self._forward(part)
                scores, *others = scores if isinstance(scores, tuple) else (scores,)
                loss, *other_losses = (
                    F.cross_entropy(output, wanted, label_smoothing=recipe.label_smoothing)
                    for output in (scores, *others)
                )
                if self._has_exits:
                    loss = total = torch.stack([loss, *other_losses]).mean()
                else:
                    total = sum((recipe.auxiliary_weight * other for other in other_losses), loss)
            (total * (len(part) / (n_images * repeats))).backward()
            with torch.no_grad():
                sums[0] += loss * len(part)
                sums[1] += (scores.argmax(1) == wanted).sum()
                sums[2] += len(part)
        return sums / repeats if repeats > 1 else sums

    def _update(self, sums: Tensor) -> None:
        """Make a step along the gradient of a batch, if it is finite."""
        parameters = [parameter for parameter in self._network.parameters() if parameter.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, self._recipe.clip_norm or math.inf)
        finite = torch.isfinite(sums[0]) & torch.isfinite(norm)
        step_where(finite, self._optimizer)
        self._sums += torch.where(finite, sums, 0.0)
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
            if self._skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
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
            "sums": self._sums,
        }
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
        if isinstance(self._network, DiscreteNetwork) and self._network.changed:
            progress["removed"], progress["masked"] = self._network.removed, list(self._network.masks_by_name())
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
        if isinstance(self._network, DiscreteNetwork) and "removed" in progress:
            masks = {name: torch.ones_like(self._network.get_parameter(name)) for name in progress["masked"]}
            self._network.remove([(path, op) for path, op in progress["removed"]], masks)
        self._network.load_state_dict(without_prefix("network/", tensors))
        load_optimizer_tensors(self._optimizer, without_prefix("optimizer/", tensors))
        self._sums.copy_(tensors["sums"])
        self._epoch, self._step, self._seconds = progress["epoch"], progress["step"], progress["seconds"]
        self._epoch_started = progress["epoch_started"]
        self._skipped, self._skipped_in_a_row = progress["skipped"], progress["skipped_in_a_row"]
        self._accumulation = progress["accumulation"]
        self._history = [
            EpochResult(**{**result, "accuracies": tuple(result["accuracies"])}) for result in progress["history"]
        ]

"""Evaluation of networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from optuna_nas.data.batches import batch_length, every_nth, map_tensors
from optuna_nas.training.device import autocast, is_out_of_memory, release_memory
from optuna_nas.training.process_group import Ranks
from optuna_nas.training.task import Evaluation, ImageClassification, SummedTask, Task

if TYPE_CHECKING:
    from optuna_nas.data.splits import Data

EVALUATION_BATCH = 512


def evaluate(
    network: nn.Module,
    data: Data,
    split: str,
    task: Task | None = None,
    *,
    precision: str = "auto",
    batch_size: int = EVALUATION_BATCH,
    ranks: Ranks | None = None,
) -> Evaluation:
    """Return loss and metric of a network on a split, in evaluation mode.

    Args:
        network: Network on the device of the data; its mode is restored afterwards.
        data: Data set.
        split: Name of the split.
        task: Loss and metric; by default image classification.
        precision: `auto` (bfloat16 on GPUs that support it), `float32` or `bfloat16`.
        batch_size: Number of examples per batch, at least 1; halved until a batch fits the memory.
        ranks: Process group that divides the examples; all ranks must call this function, and all get the same result.

    Raises:
        ValueError: The split is empty.
        torch.OutOfMemoryError: A single example does not fit the memory.

    Example:
        >>> from torch import nn
        >>> from optuna_nas import digits
        >>> from optuna_nas.training import evaluate
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> 0 <= evaluate(network, digits(), "report").metric <= 1
        True
    """
    task, ranks = task or ImageClassification(), ranks or Ranks()
    if data.size([split]) == 0:
        raise ValueError(f"`split` must hold examples but {split!r} of {data.name!r} is empty.")
    training = network.training
    network.eval()
    try:
        while True:
            try:
                with ranks.together():
                    return _evaluation(network, data, split, task, precision, batch_size, ranks)
            except RuntimeError as error:
                if batch_size == 1 or not is_out_of_memory(error):
                    raise
            batch_size //= 2
            release_memory(data.device)
    finally:
        network.train(training)


@torch.no_grad()
def _evaluation(
    network: nn.Module, data: Data, split: str, task: Task, precision: str, batch_size: int, ranks: Ranks
) -> Evaluation:
    batches = data.batches([split], batch_size)
    with autocast(data.device, precision):
        if not isinstance(task, SummedTask):  # its metric can't be added up: every rank evaluates all examples
            return task.evaluation(network, batches)
        sums = [_sums(network, task, batch, ranks) for batch in batches]
    ranks.sum_(sums)
    return task.evaluation_of(sums, network)


def _sums(network: nn.Module, task: SummedTask, batch: object, ranks: Ranks) -> Tensor:
    """Return the sums over this rank's part of a batch."""
    if ranks.size == 1:
        return task.sums(network, batch)
    part = every_nth(batch, ranks.rank, ranks.size)
    if batch_length(part) > 0:
        return task.sums(network, part)
    return 0 * task.sums(network, map_tensors(batch, lambda tensor: tensor[:1]))

"""Loss and accuracy of a network on a split."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optuna_nas.networks import DiscreteNetwork
from optuna_nas.space import anytime_accuracy
from optuna_nas.training.device import autocast, is_out_of_memory, release_memory
from optuna_nas.training.process_group import Ranks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna_nas.data.splits import Data

EVALUATION_BATCH = 512


def evaluate(
    network: nn.Module, data: Data, split: str, precision: str = "auto", batch_size: int = EVALUATION_BATCH
) -> tuple[float, float]:
    """Return mean cross-entropy (nats) and accuracy (fraction) on a split, with the network's running statistics.

    With early exits: the mean over them, and the accuracy of an anytime prediction, see `anytime_accuracy`.
    `batch_size` is halved until it fits the memory; no result depends on it.
    """
    return summary_of(network, *evaluate_exits(network, data, split, precision, batch_size))


def summary_of(network: nn.Module, losses: Sequence[float], accuracies: Sequence[float]) -> tuple[float, float]:
    """Return the one loss and accuracy that stand for those of all classifiers."""
    if (anytime := _anytime(network)) is None:
        return losses[0], accuracies[0]
    accuracy = anytime_accuracy(anytime.graph.exit_costs, accuracies, anytime.skeleton.budget)
    return sum(losses) / len(losses), accuracy


def _anytime(network: nn.Module) -> DiscreteNetwork | None:
    """Return the network if its predictions have a budget, also where it drew no early exit."""
    return network if isinstance(network, DiscreteNetwork) and network.skeleton.budget else None


def evaluate_exits(
    network: nn.Module,
    data: Data,
    split: str,
    precision: str = "auto",
    batch_size: int = EVALUATION_BATCH,
    *,
    ranks: Ranks | None = None,
) -> tuple[list[float], list[float]]:
    """Return losses and accuracies, see `evaluate`, of all classifiers of a network, the cheapest first.

    With `ranks`, all of them must call this, each computes its part, and all return the same.
    """
    ranks = ranks or Ranks()
    if data.size([split]) == 0:
        raise ValueError(f"`split` must hold images but {split!r} of {data.name!r} is empty.")
    training = network.training
    network.eval()
    try:
        while True:
            try:
                with ranks.together():
                    sums, n_images = _evaluate(network, data, split, precision, batch_size, ranks)
                break
            except RuntimeError as error:
                if batch_size == 1 or not is_out_of_memory(error):
                    raise
            batch_size //= 2
            release_memory(data.device)
    finally:
        network.train(training)
    ranks.sum_([sums])
    losses, accuracies = (sums / n_images).T.tolist()
    return losses, accuracies


@torch.no_grad()
def _evaluate(
    network: nn.Module, data: Data, split: str, precision: str, batch_size: int, ranks: Ranks
) -> tuple[Tensor, int]:
    """Return sums of losses and right answers of every classifier over this rank's images; and how many all have."""
    anytime = _anytime(network)
    n_outputs = 1 if anytime is None else len(anytime.graph.exits)
    sums = torch.zeros((n_outputs, 2), dtype=torch.float64, device=data.device)
    n_images = 0
    for images, labels in data.batches([split], batch_size):
        n_images += len(labels)
        if ranks.size > 1:
            images, labels = images[ranks.rank :: ranks.size], labels[ranks.rank :: ranks.size]
            if len(images) == 0:
                continue
        with autocast(data.device, precision):
            outputs = [network(images)] if anytime is None else anytime.anytime(images)
        for sum_, scores in zip(sums, outputs, strict=True):
            sum_[0] += F.cross_entropy(scores.float(), labels, reduction="sum")
            sum_[1] += (scores.argmax(1) == labels).sum()
    return sums, n_images

"""The network of one architecture."""

from __future__ import annotations

import math
import time
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from optuna_nas.networks.graph_network import GraphNetwork

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna_nas.space.architecture import Architecture
    from optuna_nas.space.skeleton import Skeleton


class DiscreteNetwork(GraphNetwork):
    """An architecture in a skeleton, as a module.

    Ops that lead nowhere have weights (they count as kept) and are not computed.

    Args:
        architecture: What to build.
        skeleton: Frame around the cells.
        weights: State to start from, such as `Supernet.weights_of(architecture)`; must fit exactly.
        seed: Makes the initial weights reproducible; None draws from torch's global generator.
        blank: Build it without weights, quickly, for `torch.func.functional_call(..., tie_weights=False)`.

    Raises:
        ValueError: A cell cannot reach its output, or the skeleton does not fit.
    """

    def __init__(
        self,
        architecture: Architecture,
        skeleton: Skeleton,
        weights: Mapping[str, Tensor] | None = None,
        seed: int | None = None,
        *,
        blank: bool = False,
    ) -> None:
        if not architecture.connected:
            raise ValueError(
                "`architecture` must connect an input of every kind of cell with its output but does not: "
                f"{architecture}; keep an op on some path, 'skip_connect' suffices."
            )
        super().__init__(architecture.graph(skeleton), seed, blank)
        self.architecture, self.skeleton = architecture, skeleton
        if weights is not None:
            self.load_state_dict(dict(weights))

    def forward(
        self, images: Tensor, drop_path: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """Return class scores, shape (B, classes).

        In training mode, a skeleton with an auxiliary head gives (scores, auxiliary scores), a network with early exits
        (scores, scores of the first exit, of the second, ...).

        Args:
            images: Shape (B, C, H, W).
            drop_path: Probability of dropping an op's output for an image, in [0, 1); only in training mode.
            generator: Source of randomness of drop-path, on the device of the images.
        """
        live = set(self.graph.live)
        if not self.training:
            live.difference_update(self.graph.outputs[1:])
        outputs = self._run(images, live, drop_path=drop_path if self.training else 0.0, generator=generator)
        scores, *others = (output for output in outputs if output is not None)
        return (scores, *others) if others else scores

    def anytime(self, images: Tensor, budget: float = math.inf) -> list[Tensor]:
        """Return the class scores of every classifier within a budget, the cheapest first, each of shape (B, classes).

        Nothing more is computed than they need; the last of them is the answer. `graph.exit_costs` has their costs.

        Args:
            images: Shape (B, C, H, W).
            budget: Multiply-adds that an image may take.

        Raises:
            ValueError: The budget is too small for the first of them.
        """
        ends = [end for end, cost in zip(self.graph.exits, self.graph.exit_costs, strict=True) if cost <= budget]
        if not ends:
            raise ValueError(
                f"`budget` must be enough for the first classifier, {self.graph.exit_costs[0]} multiply-adds, but is "
                f"{budget}; a network with earlier exits answers sooner."
            )
        outputs = dict(zip(self.graph.outputs, self._run(images, self.graph.needed(ends)), strict=True))
        return [scores for end in ends if (scores := outputs[end]) is not None]


def use_batch_statistics(network: torch.nn.Module) -> None:
    """Make batch norms use the statistics of the batch alone; in training mode, running ones are left untouched."""
    for module in _norms(network):
        module.track_running_stats = False


def recompute_statistics(network: torch.nn.Module, images: Tensor) -> None:
    """Set the running statistics of batch norms to those of a batch, shape (B, C, H, W); leaves training mode on."""
    norms = _norms(network)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
    with torch.no_grad():
        network.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _norms(network: torch.nn.Module) -> list[torch.nn.modules.batchnorm._NormBase]:
    return [module for module in network.modules() if isinstance(module, torch.nn.modules.batchnorm._NormBase)]


def measure_latency(network: torch.nn.Module, images: Tensor, repeats: int = 20) -> float:
    """Return the median seconds of a forward pass on the device of `images`, without gradients, after a warm-up.

    Args:
        network: Any module; put into evaluation mode for the measurement.
        images: Shape (B, C, H, W); the latency is that of the whole batch.
        repeats: Timed passes, at least 1.
    """
    if repeats < 1:
        raise ValueError(f"`repeats` must be at least 1 but got {repeats}.")
    training = network.training
    network.eval()
    seconds = []
    with torch.inference_mode():
        for _ in range(2 + repeats):
            _wait(images.device)
            start = time.perf_counter()
            network(images)
            _wait(images.device)
            seconds.append(time.perf_counter() - start)
    network.train(training)
    return median(seconds[2:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

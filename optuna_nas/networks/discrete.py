"""The network of one architecture."""

from __future__ import annotations

import math
import time
from statistics import median
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from optuna_nas.networks.graph_network import GraphNetwork, Weight

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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
        weights, drop_path = self._input_weights(), drop_path if self.training else 0.0
        outputs = self._run(images, live, weights, drop_path, generator)
        scores, *others = (output for output in outputs if output is not None)
        return (scores, *others) if others else scores

    def _input_weights(self) -> Callable[[int], list[Weight]] | None:
        """Return what `_run` multiplies the inputs of a node with; None for ones everywhere."""
        return None

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
        found = self._run(images, self.graph.needed(ends), self._input_weights())
        outputs = dict(zip(self.graph.outputs, found, strict=True))
        return [scores for end in ends if (scores := outputs[end]) is not None]


class MixedNetwork(DiscreteNetwork):
    """An architecture whose ops are added by weight, and whose kernels stay zero where a mask cut them (HM-NAS).

    Args:
        architecture: What to build.
        skeleton: Frame around the cells.
        mixing: For every path, what the output of each of its ops is multiplied with.
        masks: By the name of a parameter what it is multiplied with, ones and zeros; also while it is trained.
        weights: State to start from, without that of the masks.
        seed: Makes the initial weights reproducible where no state is given.

    Raises:
        ValueError: A cell cannot reach its output, or an op has no weight.
    """

    def __init__(
        self,
        architecture: Architecture,
        skeleton: Skeleton,
        mixing: Mapping[str, Mapping[str, float]],
        masks: Mapping[str, Tensor] = MappingProxyType({}),
        weights: Mapping[str, Tensor] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(architecture, skeleton, weights, seed)
        self.mixing = {path: dict(mixing.get(path, {})) for path in architecture}
        for path, kept in architecture.choices:
            for op in kept:
                if op not in self.mixing[path]:
                    raise ValueError(f"`mixing` must weigh every op that is kept but lacks {op!r} at {path!r}.")
        self.masks = torch.nn.Module()
        parameters = dict(self.named_parameters())
        self._masked = {name: f"mask{number}" for number, name in enumerate(masks)}
        for name, buffer in self._masked.items():
            self.masks.register_buffer(buffer, masks[name].to(parameters[name]))
        self._weights: list[list[Weight]] = [
            [self.mixing[source.path][source.op] if source.path else 1.0 for source in sources]
            if node.op == "sum"
            else [1.0] * len(sources)
            for node in self.graph
            for sources in [[self.graph.nodes[position] for position in node.inputs]]
        ]

    def forward(
        self, images: Tensor, drop_path: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """Return class scores, see `DiscreteNetwork`; what masks cut is cut again, whatever a training made of it."""
        self.cut()
        return super().forward(images, drop_path, generator)

    def masks_by_name(self) -> dict[str, Tensor]:
        """Return by the name of a parameter what cuts it."""
        return {name: self.masks.get_buffer(buffer) for name, buffer in self._masked.items()}

    def cut(self) -> None:
        """Set to zero what the masks cut."""
        with torch.no_grad():
            for name, mask in self.masks_by_name().items():
                self.get_parameter(name).mul_(mask)

    def _input_weights(self) -> Callable[[int], list[Weight]] | None:
        return lambda position: self._weights[position]


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

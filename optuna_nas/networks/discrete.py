"""The network of one architecture."""

from __future__ import annotations

import math
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor

from optuna_nas.networks.graph_network import GraphNetwork, Weight

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from optuna_nas.networks.network_space import NetworkSpace
    from optuna_nas.space.architecture import Architecture
    from optuna_nas.space.skeleton import Skeleton


class DiscreteNetwork(GraphNetwork):
    """The network of one architecture: its cells in a skeleton, as a module.

    Ops that lead nowhere have weights (they count as kept) and are not computed.

    Args:
        architecture: What to build, of a `NetworkSpace`.
        weights: State to start from, such as `Supernet.weights_of(architecture)`; must fit exactly.
        seed: Makes the initial weights reproducible; None draws from torch's global generator.
        mixing: For every path what the output of each of its ops is multiplied with (HM-NAS); None adds them as they
            are.
        masks: By the name of a parameter what it is multiplied with, ones and zeros; also while it is trained.
        blank: Build it without weights, quickly, for `torch.func.functional_call(..., tie_weights=False)`.

    Raises:
        ValueError: A cell cannot reach its output, the weights do not fit, or an op has no mixing weight.
    """

    def __init__(
        self,
        architecture: Architecture,
        weights: Mapping[str, Tensor] | None = None,
        seed: int | None = None,
        *,
        mixing: Mapping[str, Mapping[str, float]] | None = None,
        masks: Mapping[str, Tensor] = MappingProxyType({}),
        blank: bool = False,
    ) -> None:
        if not architecture.connected:
            raise ValueError(
                "`architecture` must connect an input of every kind of cell with its output but does not: "
                f"{architecture}; keep an op on some path, 'skip_connect' suffices."
            )
        super().__init__(architecture.graph(), seed, blank)
        self.architecture, self.space = architecture, cast("NetworkSpace", architecture.space)
        self.left = architecture
        """What `remove` has left of the architecture."""
        self._live = self.graph.live
        self._drop_path = 0.0
        self._generator: torch.Generator | None = None
        if weights is not None:
            self.load_state_dict(dict(weights))
        self.masks = torch.nn.Module()
        self._masked: dict[str, str] = {}
        self._add_masks(masks)
        self.mixing = None if mixing is None else {path: dict(mixing.get(path, {})) for path in architecture}
        self._weights = None if self.mixing is None else self._mixing_weights(self.mixing)

    @property
    def skeleton(self) -> Skeleton:
        """Frame around the cells."""
        return self.space.skeleton

    def _mixing_weights(self, mixing: Mapping[str, Mapping[str, float]]) -> list[list[Weight]]:
        """Return what the inputs of every node are multiplied with."""
        for path, kept in self.architecture.choices:
            for op in kept:
                if op not in mixing[path]:
                    raise ValueError(f"`mixing` must weigh every op that is kept but lacks {op!r} at {path!r}.")
        return [
            [mixing[source.path][source.op] if source.path else 1.0 for source in sources]
            if node.op == "sum"
            else [1.0] * len(sources)
            for node in self.graph
            for sources in [[self.graph.nodes[position] for position in node.inputs]]
        ]

    @contextmanager
    def step_context(self, progress: float, generator: torch.Generator) -> Iterator[None]:
        """Drop paths inside the block, as often as the skeleton says for this share of the training.

        Args:
            progress: Share of the epochs done, in [0, 1); the probability is that share of `skeleton.drop_path`.
            generator: Source of randomness, on the device of the images.
        """
        self._drop_path, self._generator = self.skeleton.drop_path * progress, generator
        try:
            yield
        finally:
            self._drop_path, self._generator = 0.0, None

    @property
    def exit_costs(self) -> tuple[int, ...]:
        """Multiply-adds of one image up to every classifier, the cheapest first."""
        return self.graph.exit_costs

    @property
    def budget(self) -> float:
        """Most multiply-adds that a prediction may take; 0 for a network without early exits."""
        return self.skeleton.budget

    def forward(
        self, images: Tensor, drop_path: float | None = None, generator: torch.Generator | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """Return class scores, shape (B, classes).

        In training mode, a skeleton with an auxiliary head gives (scores, auxiliary scores), a network with early exits
        (scores, scores of the first exit, of the second, ...).

        Args:
            images: Shape (B, C, H, W).
            drop_path: Probability of dropping an op's output for an image, in [0, 1); only in training mode. None takes
                that of `step_context`.
            generator: Source of randomness of drop-path, on the device of the images.
        """
        if self.training:
            self.cut()
        live = set(self._live)
        if not self.training:
            live.difference_update(self.graph.outputs[1:])
        if drop_path is None:
            drop_path, generator = self._drop_path, self._generator
        weights, drop_path = self._input_weights(), drop_path if self.training else 0.0
        outputs = self._run(images, live, weights, drop_path, generator)
        scores, *others = (output for output in outputs if output is not None)
        return (scores, *others) if others else scores

    def _input_weights(self) -> Callable[[int], list[Weight]] | None:
        """Return what `_run` multiplies the inputs of a node with; None for ones everywhere."""
        return None if self._weights is None else self._weights.__getitem__

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
        found = self._run(images, self.graph.needed(ends) & self._live, self._input_weights())
        outputs = dict(zip(self.graph.outputs, found, strict=True))
        return [scores for end in ends if (scores := outputs[end]) is not None]

    # -- growing smaller ------------------------------------------------------------------------------------------

    def remove(self, ops: Collection[tuple[str, str]], masks: Mapping[str, Tensor] = MappingProxyType({})) -> None:
        """Take ops out, and cut weights: from now on they take no time, get no gradient and do not count.

        Parameters stay where they are, so that an optimizer goes on; `compact` leaves them behind.

        Args:
            ops: (path, op) of each.
            masks: By the name of a parameter ones and zeros; what was cut before stays so.

        Raises:
            ValueError: What is left would not reach the output.
        """
        gone = set(ops)
        left = self.architecture.space.architecture(
            {path: tuple(op for op in kept if (path, op) not in gone) for path, kept in self.left.choices}
        )
        if not left.connected:
            raise ValueError(
                "`ops` must leave a way from an input of every kind of cell to its output but would cut the last one; "
                "keep an op of it."
            )
        if left != self.left:
            graph = left.graph()
            names = {graph.nodes[position].name for position in graph.live}
            self.left = left
            self._live = frozenset(position for position in self._live if self.graph.nodes[position].name in names)
        self._add_masks(masks)

    @property
    def removed(self) -> list[tuple[str, str]]:
        """What `remove` took out: (path, op) of each."""
        return [(path, op) for path, kept in self.architecture.choices for op in kept if op not in self.left[path]]

    def shrunk(self) -> dict[str, Any]:
        """Return what was taken out, as JSON values for a checkpoint; empty where nothing was."""
        return {"removed": self.removed, "masked": list(self.masks_by_name())} if self.changed else {}

    def shrink_again(self, shrunk: Mapping[str, Any]) -> None:
        """Take out what `shrunk` told; values of masks come with the weights."""
        masks = {name: torch.ones_like(self.get_parameter(name)) for name in shrunk["masked"]}
        self.remove([(path, op) for path, op in shrunk["removed"]], masks)

    @property
    def changed(self) -> bool:
        """Whether it holds more than its architecture tells: ops that are gone, masks."""
        return bool(self._masked) or self.left != self.architecture

    def compact(self) -> DiscreteNetwork:
        """Return the network of what is left, with the same outputs; itself where nothing was removed."""
        if self.left == self.architecture:
            return self
        names = {node.name for node in self.left.graph()}
        parts = {
            name: tensor
            for name, tensor in self.state_dict().items()
            if name.startswith("parts.") and name.split(".")[1] in names
        }
        masks = {name: mask for name, mask in self.masks_by_name().items() if name in parts}
        smaller = DiscreteNetwork(self.left, parts, mixing=self.mixing, masks=masks)
        return smaller.to(next(self.parameters()).device).train(self.training)

    def _add_masks(self, masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items():
            parameter = self.get_parameter(name)
            if name in self._masked:
                self.masks.get_buffer(self._masked[name]).mul_(mask.to(parameter))
            else:
                self._masked[name] = f"mask{len(self._masked)}"
                self.masks.register_buffer(self._masked[name], mask.to(parameter, copy=True))

    def masks_by_name(self) -> dict[str, Tensor]:
        """Return by the name of a parameter what cuts it."""
        return {name: self.masks.get_buffer(buffer) for name, buffer in self._masked.items()}

    @property
    def params_left(self) -> int:
        """Parameters that neither `remove` nor masks took away."""
        names = {node.name for node in self.left.graph()}
        cut = sum(
            mask.numel() - int(mask.sum()) for name, mask in self.masks_by_name().items() if name.split(".")[1] in names
        )
        return self.left.cost().params - cut

    def train(self, mode: bool = True) -> Self:
        """Choose training or evaluation; what masks cut is zero in both."""
        self.cut()
        return super().train(mode)

    def cut(self) -> None:
        """Set to zero what the masks cut, whatever a training made of it; done at every step of one, and after it."""
        if self._masked:
            with torch.no_grad():
                for name, mask in self.masks_by_name().items():
                    self.get_parameter(name).mul_(mask)

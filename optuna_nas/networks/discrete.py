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
    """Network of one architecture: its cells in a skeleton.

    What leads nowhere (an op that nothing reads, or that reads nothing) is not built and costs nothing, so that every
    parameter learns. Tensors for it among `weights` and `masks` are left out.

    Args:
        architecture: Architecture of a `NetworkSpace`.
        weights: State dictionary to start from, such as `Supernet.weights_of(architecture)`; None for random initial
            weights.
        seed: Seed of the initial weights; None draws from torch's global generator.
        mixing: Factor of the output of every op, by path and op (HM-NAS); None for plain sums.
        masks: Masks of zeros and ones by the name of a parameter, in the parameter's shape. They also apply while the
            network is trained.
        blank: Build the modules without weights, for `torch.func.functional_call(..., tie_weights=False)`; some twenty
            times faster.

    Raises:
        ValueError: An output depends on no input, the weights do not fit, or an op has no factor in `mixing`.

    Example:
        >>> import torch
        >>> from optuna_nas import DiscreteNetwork, NetworkSpace, nasbench201_skeleton, nasbench201_space
        >>> space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(repeats=1, channels=4))
        >>> architecture = space.architecture({"cell_0_3": ["nor_conv_3x3", "skip_connect"]})
        >>> network = DiscreteNetwork(architecture, seed=0).eval()
        >>> network(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
        >>> network.remove([("cell_0_3", "nor_conv_3x3")])
        >>> network.compact().architecture["cell_0_3"]
        ('skip_connect',)
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
        self.remaining = architecture
        """Architecture without the ops that `remove` took out."""
        self._live = self.graph.live
        self._drop_path = 0.0
        self._generator: torch.Generator | None = None
        if weights is not None:
            self.load_state_dict(self.own_tensors(weights))
        self.masks = torch.nn.Module()
        self._masked: dict[str, str] = {}
        self._add_masks(self.own_tensors(masks))
        self.mixing = None if mixing is None else {path: dict(mixing.get(path, {})) for path in architecture}
        self._weights = None if self.mixing is None else self._mixing_weights(self.mixing)

    @property
    def skeleton(self) -> Skeleton:
        """Skeleton around the cells."""
        return self.space.skeleton

    def own_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors by the names of parameters without those of what leads nowhere, which files of before have."""
        unknown = {name for name in tensors if name.startswith("parts.") and name.split(".")[1] not in self.parts}
        if not unknown:
            return dict(tensors)
        whole = self.space.cells.network_graph(self.architecture, self.skeleton, whole=True)
        unread = {node.name for node in whole} - {node.name for node in self.graph}
        return {name: t for name, t in tensors.items() if name not in unknown or name.split(".")[1] not in unread}

    def _mixing_weights(self, mixing: Mapping[str, Mapping[str, float]]) -> list[list[Weight]]:
        """Return the factors of the inputs of every node."""
        for path, chosen in self.architecture.choices:
            for op in chosen:
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
        """Apply drop-path inside the block, with the skeleton's probability at this point of the training.

        Args:
            progress: Fraction of the epochs done, in [0, 1); the probability is `progress * skeleton.drop_path`.
            generator: Random generator on the device of the images.
        """
        self._drop_path, self._generator = self.skeleton.drop_path * progress, generator
        try:
            yield
        finally:
            self._drop_path, self._generator = 0.0, None

    @property
    def exit_costs(self) -> tuple[int, ...]:
        """Multiply-adds of one image up to every classifier, in ascending order."""
        return self.graph.exit_costs

    @property
    def budget(self) -> float:
        """Maximum number of multiply-adds of a prediction; 0 for a network without early exits."""
        return self.skeleton.budget

    def forward(
        self, images: Tensor, drop_path: float | None = None, generator: torch.Generator | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """Return class scores, shape (B, classes).

        In training mode, a network with an auxiliary head returns (scores, auxiliary scores), a network with early
        exits returns (scores, scores of the first exit, scores of the second exit, ...).

        Args:
            images: Shape (B, C, H, W).
            drop_path: Probability of dropping an op's output for an image, in [0, 1), in training mode only; None for
                that of `step_context`.
            generator: Random generator of drop-path, on the device of the images.
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
        """Return a function from the position of a node to the factors of its inputs; None if all are 1."""
        return None if self._weights is None else self._weights.__getitem__

    def anytime(self, images: Tensor, budget: float = math.inf) -> list[Tensor]:
        """Return the class scores of every classifier within a budget, each of shape (B, classes).

        They are in the order of `exit_costs`; the last one is the prediction. Only nodes that they depend on are
        computed.

        Args:
            images: Shape (B, C, H, W).
            budget: Maximum number of multiply-adds of an image.

        Raises:
            ValueError: The budget is smaller than the cost of the first classifier.
        """
        ends = [end for end, cost in zip(self.graph.exits, self.graph.exit_costs, strict=True) if cost <= budget]
        if not ends:
            raise ValueError(
                f"`budget` must be enough for the first classifier, {self.graph.exit_costs[0]} multiply-adds, but is "
                f"{budget}; increase it, or choose a network with earlier exits."
            )
        values = self._run(images, self.graph.needed(ends) & self._live, self._input_weights())
        outputs = dict(zip(self.graph.outputs, values, strict=True))
        return [scores for end in ends if (scores := outputs[end]) is not None]

    # -- removing ops and weights ---------------------------------------------------------------------------------

    def remove(self, ops: Collection[tuple[str, str]], masks: Mapping[str, Tensor] = MappingProxyType({})) -> None:
        """Remove ops and mask weights: removed ops are not computed and get no gradient.

        The parameters stay in the module, so that an optimizer can continue; `compact` returns a network without them.

        Args:
            ops: (path, op) of every op to remove.
            masks: Masks of zeros and ones by the name of a parameter, multiplied with earlier masks.

        Raises:
            ValueError: An output would depend on no input.
        """
        removed = set(ops)
        remaining = self.architecture.space.architecture(
            {path: tuple(op for op in chosen if (path, op) not in removed) for path, chosen in self.remaining.choices}
        )
        if not remaining.connected:
            raise ValueError(
                "`ops` must leave a way from an input of every kind of cell to its output but would cut the last one; "
                "keep an op of it."
            )
        if remaining != self.remaining:
            graph = remaining.graph()
            names = {graph.nodes[position].name for position in graph.live}
            self.remaining = remaining
            self._live = frozenset(position for position in self._live if self.graph.nodes[position].name in names)
        self._add_masks(masks)

    @property
    def removed(self) -> list[tuple[str, str]]:
        """(path, op) of every op that `remove` took out."""
        pairs = [(path, op) for path, chosen in self.architecture.choices for op in chosen]
        return [(path, op) for path, op in pairs if op not in self.remaining[path]]

    def shrunk(self) -> dict[str, Any]:
        """Return removed ops and masked parameters as JSON values for a checkpoint; empty if there are none."""
        return {"removed": self.removed, "masked": list(self.masks_by_name())} if self.changed else {}

    def shrink_again(self, shrunk: Mapping[str, Any]) -> None:
        """Repeat the removals that `shrunk` returned; the values of masks are in the state dictionary to load next."""
        masks = {name: torch.ones_like(self.get_parameter(name)) for name in shrunk["masked"]}
        self.remove([(path, op) for path, op in shrunk["removed"]], masks)

    @property
    def changed(self) -> bool:
        """Whether ops were removed or parameters are masked."""
        return bool(self._masked) or self.remaining != self.architecture

    def compact(self) -> DiscreteNetwork:
        """Return a network without the removed ops, with the same outputs; itself if none were removed."""
        if self.remaining == self.architecture:
            return self
        names = {node.name for node in self.remaining.graph()}
        parts = {
            name: tensor
            for name, tensor in self.state_dict().items()
            if name.startswith("parts.") and name.split(".")[1] in names
        }
        masks = {name: mask for name, mask in self.masks_by_name().items() if name in parts}
        smaller = DiscreteNetwork(self.remaining, parts, mixing=self.mixing, masks=masks)
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
        """Return the masks by the name of their parameter."""
        return {name: self.masks.get_buffer(buffer) for name, buffer in self._masked.items()}

    @property
    def params_left(self) -> int:
        """Number of parameters of the remaining ops that no mask sets to zero."""
        names = {node.name for node in self.remaining.graph()}
        n_masked = sum(
            mask.numel() - int(mask.sum()) for name, mask in self.masks_by_name().items() if name.split(".")[1] in names
        )
        return self.remaining.cost().params - n_masked

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; masked weights are zero in both."""
        self.cut()
        return super().train(mode)

    def cut(self) -> None:
        """Set masked weights to zero, since an optimizer's step may have changed them."""
        if self._masked:
            with torch.no_grad():
                for name, mask in self.masks_by_name().items():
                    self.get_parameter(name).mul_(mask)

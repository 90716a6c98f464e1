"""Supernet: all architectures of a space in one network, mixed by given weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from optuna_nas.networks.graph_network import GraphNetwork, Weight
from optuna_nas.space.block_space import NodeSpace
from optuna_nas.space.ops import NONE
from optuna_nas.space.ways import live_positions

if TYPE_CHECKING:
    from optuna_nas.networks.network_space import NetworkSpace
    from optuna_nas.space.architecture import Architecture
    from optuna_nas.space.cellular import CellularSpace

ChoiceWeights = Mapping[str, Tensor]
"""Weights of the names of every path, shape (n_names,) each, in the order of `Supernet.names`."""


class Supernet(GraphNetwork):
    """Network with all ops on every edge, mixed by given weights: soft, one-hot or masked.

    It has the weights of the network only; logits, masks and distributions belong to the one-shot method. The names of
    its parameters are those of the discrete networks of its space.

    Args:
        space: Space of cells in a skeleton, which usually has `affine=False`.
        seed: Seed of the initial weights; None draws from torch's global generator.

    Raises:
        ValueError: Nodes of the space choose scales or exits, which cannot be mixed.

    Example:
        >>> import torch
        >>> from optuna_nas import NetworkSpace, Supernet, nasbench201_skeleton, nasbench201_space
        >>> space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(repeats=1, channels=4))
        >>> supernet = Supernet(space, seed=0)
        >>> uniform = {path: torch.full((len(names),), 1 / len(names)) for path, names in supernet.names.items()}
        >>> supernet(torch.zeros(2, 3, 32, 32), uniform).shape
        torch.Size([2, 10])
        >>> architecture = space.architecture({"cell_0_3": ["nor_conv_3x3"]})
        >>> network = architecture.build(supernet.weights_of(architecture))
    """

    def __init__(self, space: NetworkSpace, seed: int | None = None) -> None:
        cells = space.cells
        if isinstance(cells, NodeSpace) and (cells.has_exits or len(cells.scales) > 1):
            raise ValueError("`space` must not let nodes choose scales or exits, which do not mix; use a `GHN`.")
        super().__init__(space.supernet_graph(), seed)
        self.space = space
        self.names = cells.mixed_names()

    def forward(
        self,
        images: Tensor,
        weights: ChoiceWeights,
        active: Mapping[str, Collection[str]] | None = None,
        ones: bool = False,
    ) -> Tensor:
        """Return class scores, shape (B, classes).

        Ops with a constant weight of zero (in a vector that needs no gradient) are skipped, and so are nodes that only
        they read; `none` is never computed. Of a vector that needs a gradient all ops are computed, unless `active`
        excludes them.

        Args:
            images: Shape (B, C, H, W).
            weights: Vector of every path, in the order of `names[path]`.
            active: Names to compute at a path; a path left out computes all.
            ones: Whether all weights in use equal 1, as those of a sampled path: they get gradients, but products are
                skipped.

        Raises:
            ValueError: A path is missing, or a vector has the wrong length.
        """
        used = self._used_weights(weights, active)
        edges = [self._input_weights(position, used) for position in range(len(self.graph))]
        outputs = self._run(images, self._live(edges), edges.__getitem__, ones=ones)
        scores = outputs[0]
        if scores is None:
            # The classifier depends on no input: return its output for zeros, which is its bias.
            bias = self.get_parameter("parts.classifier.linear.bias")
            scores = bias.expand(len(images), -1)
        return scores

    def weights_of(self, architecture: Architecture) -> dict[str, Tensor]:
        """Return the state dictionary of an architecture's network, for `space.build(architecture, weights)`.

        The tensors are those of the supernet, not copies.
        """
        return self.parts_of(architecture, self.state_dict())

    def parts_of(self, architecture: Architecture, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return those of some tensors that an architecture's network has, by the names of parameters."""
        names = {node.name for node in self.space.graph(architecture)}
        return {key: value for key, value in tensors.items() if key.split(".")[1] in names}

    def _used_weights(
        self, weights: ChoiceWeights, active: Mapping[str, Collection[str]] | None
    ) -> dict[tuple[str, str], Weight]:
        """Return the weight of every (path, name) to compute."""
        constant = []
        for path, names in self.names.items():
            if path not in weights:
                raise ValueError(f"`weights` must hold every path of the space but lacks {path!r}.")
            if weights[path].shape != (len(names),):
                raise ValueError(
                    f"`weights[{path!r}]` must have shape ({len(names)},), one for each of {names}, but has "
                    f"{tuple(weights[path].shape)}."
                )
            if not weights[path].requires_grad:
                constant.append(path)
        # One transfer from the device for all constants, since each transfer waits for a GPU.
        sizes = [len(self.names[path]) for path in constant]
        flat = torch.cat([weights[path].detach() for path in constant]).cpu().split(sizes) if constant else ()
        values = {path: vector.tolist() for path, vector in zip(constant, flat, strict=True)}
        used: dict[tuple[str, str], Weight] = {}
        for path, names in self.names.items():
            for i, name in enumerate(names):
                constant_weight = values[path][i] if path in values else None
                skipped = active is not None and path in active and name not in active[path]
                if name != NONE and constant_weight != 0 and not skipped:
                    used[path, name] = weights[path][i] if constant_weight is None else constant_weight
        return used

    def _input_weights(self, position: int, used: Mapping[tuple[str, str], Weight]) -> list[Weight]:
        """Return the factors of a node's inputs; 0.0 for an input that is not read."""
        node = self.graph.nodes[position]
        sources = [self.graph.nodes[source] for source in node.inputs]
        if node.op == "sum":
            if any(source.path for source in sources):
                return [used.get((source.path, source.op), 0.0) for source in sources]
            return self._ends(len(sources), used)
        if f"{node.path}_inputs" in self.names:
            return [used.get((f"{node.path}_inputs", str(i)), 0.0) for i in range(len(sources))]
        return [1.0] * len(sources)

    def _ends(self, n_nodes: int, used: Mapping[tuple[str, str], Weight]) -> list[Weight]:
        """Return the weight of each node in a block's output: the product of (1 - weight) over all later readers."""
        cells = cast("NodeSpace", self.space.cells)
        kind = cells.kinds[0].name
        weights = []
        for node in range(1, n_nodes + 1):
            unread: Weight = 1.0
            for later in range(node + 1, n_nodes + 1):
                unread = unread * (1.0 - used.get((f"{cells.path(kind, later)}_inputs", str(node)), 0.0))
            weights.append(unread)
        return weights

    def _live(self, edges: list[list[Weight]]) -> set[int]:
        """Return the nodes between image and classifier, over edges with weights that are not zero."""
        reads = [
            [
                source
                for source, weight in zip(node.inputs, weights, strict=True)
                if not (isinstance(weight, float) and weight == 0)
            ]
            for node, weights in zip(self.graph.nodes, edges, strict=True)
        ]
        inputs = {position for position, node in enumerate(self.graph.nodes) if node.op == "input"}
        return live_positions(reads, inputs, self.graph.outputs[:1])


def one_hot(architecture: Architecture) -> dict[str, Tensor]:
    """Return the weights with which a supernet computes one architecture: 1 for its choices, 0 for the rest.

    `none` has the weight 1 where the choice is empty.

    Args:
        architecture: Any architecture with different ops at each path.

    Raises:
        ValueError: A path has an op twice; a supernet has it once.

    Example:
        >>> from optuna_nas import nasbench201_space
        >>> from optuna_nas.networks import one_hot
        >>> one_hot(nasbench201_space().architecture({"cell_0_3": ["nor_conv_3x3"]}))["cell_0_3"]
        tensor([0., 0., 0., 1., 0.])
    """
    weights = {}
    for path, names in cast("CellularSpace", architecture.space.core).mixed_names().items():
        chosen = architecture[path] or (NONE,)
        if len(set(chosen)) < len(chosen):
            raise ValueError(
                f"`architecture` must keep an op once at a place but keeps {chosen} at {path!r}; build it by itself."
            )
        weights[path] = torch.tensor([1.0 if name in chosen else 0.0 for name in names], dtype=torch.float32)
    return weights

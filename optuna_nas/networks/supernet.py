"""All architectures of a space in one network: every op on every edge, mixed by weights from outside."""

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
"""For every path of the space a vector with a weight for each name it may keep (see `Supernet.names`)."""


class Supernet(GraphNetwork):
    """Mixes, on every edge, the outputs of all ops by given weights: soft, one-hot or masked.

    Holds the network's weights only; logits, masks and distributions belong to the method that uses it. The names of
    its parameters are those of the discrete networks of its space.

    Args:
        space: Cells in a skeleton; for a search usually one with `affine=False`.
        seed: Makes the initial weights reproducible; None draws from torch's global generator.

    Raises:
        ValueError: The space's nodes choose scales or exits, or the skeleton does not fit.
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

        An op is left out where its weight is a constant zero (a vector that needs no gradient holds 0 there), and so
        is whatever only feeds ops left out; `none` is never computed. A vector that needs a gradient is computed in
        full unless `active` says otherwise.

        Args:
            images: Shape (B, C, H, W).
            weights: For every path, a vector in the order of `names[path]`.
            active: For every path given, the only names to compute, whatever their weight.
            ones: The weights of all that is computed are 1, as those of a sampled path: they take gradients, but no
                product is computed.

        Raises:
            ValueError: A path is missing or a vector has the wrong length.
        """
        used = self._used_weights(weights, active)
        edges = [self._input_weights(position, used) for position in range(len(self.graph))]
        outputs = self._run(images, self._live(edges), edges.__getitem__, ones=ones)
        scores = outputs[0]
        if scores is None:
            # Nothing reaches the classifier: the scores of an image of zeros, that is its bias.
            bias = self.get_parameter("parts.classifier.linear.bias")
            scores = bias.expand(len(images), -1)
        return scores

    def weights_of(self, architecture: Architecture) -> dict[str, Tensor]:
        """Return the state that `space.build(architecture, weights)` inherits; shared, no copy."""
        from_supernet = self.state_dict()
        wanted = {node.name for node in self.space.graph(architecture)}
        return {key: value for key, value in from_supernet.items() if key.split(".")[1] in wanted}

    def _used_weights(
        self, weights: ChoiceWeights, active: Mapping[str, Collection[str]] | None
    ) -> dict[tuple[str, str], Weight]:
        """(path, name) of everything to compute, with its weight."""
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
        # One transfer from the device for all constants together.
        sizes = [len(self.names[path]) for path in constant]
        flat = torch.cat([weights[path].detach() for path in constant]).cpu().split(sizes) if constant else ()
        values = {path: vector.tolist() for path, vector in zip(constant, flat, strict=True)}
        used: dict[tuple[str, str], Weight] = {}
        for path, names in self.names.items():
            for i, name in enumerate(names):
                known = values[path][i] if path in values else None
                skipped = active is not None and path in active and name not in active[path]
                if name != NONE and known != 0 and not skipped:
                    used[path, name] = weights[path][i] if known is None else known
        return used

    def _input_weights(self, position: int, used: Mapping[tuple[str, str], Weight]) -> list[Weight]:
        """Return what the inputs of a node are multiplied with; 0.0 where an input is not read."""
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
        """Return how much each node of a block is an end of it: the product over later nodes of not reading it."""
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
        """Positions that depend on the image and reach the classifier over edges that are not zero."""
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
    """Return constant weights that choose exactly this architecture: 1 for what is kept, 0 for the rest.

    `none` gets 1 where nothing is kept. With them, a supernet computes the discrete network.

    Raises:
        ValueError: An op is kept twice at one place; a supernet holds each once.
    """
    weights = {}
    for path, names in cast("CellularSpace", architecture.space.core).mixed_names().items():
        kept = architecture[path] or (NONE,)
        if len(set(kept)) < len(kept):
            raise ValueError(
                f"`architecture` must keep an op once at a place but keeps {kept} at {path!r}; build it by itself."
            )
        weights[path] = torch.tensor([1.0 if name in kept else 0.0 for name in names])
    return weights

"""Runs a computation graph: what the discrete network and the supernet share."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optuna_nas.networks.ops import build_op
from optuna_nas.space.graph import AUXILIARY, ComputationGraph
from optuna_nas.space.ops import STRUCTURAL, get_op

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

Weight: TypeAlias = Tensor | float
"""What a sum multiplies a term with: a scalar tensor, or a constant (0.0 leaves the term out, 1.0 costs no product)."""

_BUILDING = threading.Lock()


class GraphNetwork(nn.Module):
    """One module a node of the graph, under the node's name, so that networks of one space share parameter names.

    A ReLU is computed once for all ops that read the same tensor, tensors are dropped after their last use, and images
    and kernels are laid out `channels_last`.
    """

    def __init__(self, graph: ComputationGraph, seed: int | None = None) -> None:
        """Build the modules; with `seed`, initial weights are the same whatever else draws random numbers."""
        super().__init__()
        self.graph = graph
        self.parts = nn.ModuleDict()
        # Modules initialise themselves from the global generator; the lock keeps trials in other threads out of it.
        with _BUILDING, torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.default_generator.manual_seed(seed)
            for node in graph:
                if node.op not in STRUCTURAL and not (get_op(node.op).identity and node.site.stride == 1):
                    self.parts[node.name] = build_op(node.op, node.site)
        self.to(memory_format=torch.channels_last)
        self._relu_first = [node.op not in STRUCTURAL and get_op(node.op).relu_first for node in graph]

    def _run(
        self,
        images: Tensor,
        live: Collection[int],
        input_weights: Callable[[int], list[Weight]] | None = None,
        drop_path: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> list[Tensor | None]:
        """Compute the live nodes and return the values of the outputs.

        Args:
            images: Shape (B, C, H, W).
            live: Positions to compute; all others are nothing, and a sum passes over them.
            input_weights: For the node at a position, what its inputs (of a sum) or its results on each of its
                inputs (of an op) are multiplied with; None for ones everywhere.
            drop_path: Probability of dropping an op's output for an image; kept ones are scaled up.
            generator: Source of randomness of drop-path.
        """
        values: list[Tensor | None] = [None] * len(self.graph)
        rectified: dict[int, Tensor] = {}
        last_use = {source: position for position in sorted(live) for source in self.graph.nodes[position].inputs}
        outputs = set(self.graph.outputs)
        for position in sorted(live):
            node = self.graph.nodes[position]
            if node.op == "input":
                values[position] = images.contiguous(memory_format=torch.channels_last)
            elif node.op == "concat":
                values[position] = self._concatenate([values[source] for source in node.inputs], node.inputs, images)
            else:
                weights = input_weights(position) if input_weights else [1.0] * len(node.inputs)
                terms = []
                for source, weight in zip(node.inputs, weights, strict=True):
                    value = values[source]
                    if value is None or (isinstance(weight, float) and weight == 0):
                        continue
                    if node.op != "sum":
                        if self._relu_first[position]:
                            if source not in rectified:
                                rectified[source] = F.relu(value)
                            value = rectified[source]
                        value = self._compute(position, value, drop_path, generator)
                    terms.append((value, weight))
                values[position] = _weighted_sum(terms)
            for source in node.inputs:
                if last_use[source] == position and source not in outputs:
                    values[source] = None
                    rectified.pop(source, None)
        return [values[output] for output in self.graph.outputs]

    def _compute(self, position: int, value: Tensor, drop_path: float, generator: torch.Generator | None) -> Tensor:
        node = self.graph.nodes[position]
        if node.name not in self.parts:
            return value
        value = self.parts[node.name](value)
        if drop_path > 0 and node.path:
            keep = torch.empty((len(value), 1, 1, 1), device=value.device, dtype=value.dtype)
            value = value * (keep.bernoulli_(1 - drop_path, generator=generator) / (1 - drop_path))
        return value

    def _concatenate(self, parts: list[Tensor | None], sources: tuple[int, ...], images: Tensor) -> Tensor | None:
        """Join the channels; a part that is nothing contributes zeros, so that the channels stay."""
        like = next((part for part in parts if part is not None), None)
        if like is None or len(parts) == 1:
            return like
        filled = [
            like.new_zeros((len(images), *self.graph.nodes[source].site.out_shape)) if part is None else part
            for part, source in zip(parts, sources, strict=True)
        ]
        return torch.cat(filled, dim=1)

    @property
    def auxiliary(self) -> int | None:
        """Position of the auxiliary head, None without."""
        return self.graph.index(AUXILIARY) if AUXILIARY in self.parts else None


def _weighted_sum(terms: list[tuple[Tensor, Weight]]) -> Tensor | None:
    """Add the weighted terms; None when there are none."""
    total: Tensor | None = None
    fresh = False  # whether `total` is ours to add into
    for value, weight in terms:
        scaled = value if isinstance(weight, float) and weight == 1 else value * weight
        if total is None:
            total = scaled
        elif fresh:
            total += scaled
        else:
            total, fresh = total + scaled, True
    return total

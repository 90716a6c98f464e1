"""Messages along the edges of a graph: what turns ops into embeddings that know the network around them.

Zhang, Ren and Urtasun 2019 (arXiv 1810.05749), sections 4.1, 4.4 and 5.1.1; virtual edges: Knyazev et al. 2021.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from optuna_nas.oneshot.ghn.graph import all_at_once

if TYPE_CHECKING:
    from optuna_nas.oneshot.ghn.graph import Level, ModuleBatch

PROPAGATIONS = ("forward_backward", "synchronous")


class Propagation(nn.Module):
    """`h_v <- GRU(h_v, sum of M(h_u) over the nodes u that v reads)`, level by level, there and back.

    The same weights serve both directions and all modules. M is an MLP of two layers.

    Args:
        hidden: Size of an embedding.
        phases: T: passes from the inputs to the output and back, or synchronous steps.
        kind: `forward_backward` (section 4.4) or `synchronous` (all nodes at once, T times).
        virtual_edges: Add messages of nodes near and far, `M'(h_u) / length of the shortest path`.
    """

    def __init__(self, hidden: int, phases: int, kind: str, virtual_edges: bool) -> None:
        super().__init__()
        self.phases, self.kind = phases, kind
        self.message = _two_layers(hidden)
        self.far_message = _two_layers(hidden) if virtual_edges else None
        self.update = nn.GRUCell(hidden, hidden)

    def forward(self, embeddings_NH: Tensor, module: ModuleBatch) -> Tensor:
        """Return the embeddings after all phases, shape (N, H)."""
        levels = (*module.forward, *module.backward)
        if self.kind == "synchronous":
            levels = (all_at_once(module.forward),)
        for _ in range(self.phases):
            for level in levels:
                embeddings_NH = self._updated(embeddings_NH, level)
        return embeddings_NH

    def receive(self, embeddings_NH: Tensor, nodes: Tensor, messages_RH: Tensor) -> Tensor:
        """Return the embeddings after some nodes were sent embeddings of modules that they read (section 4.3)."""
        return embeddings_NH.index_copy(0, nodes, self.update(self.message(messages_RH), embeddings_NH[nodes]))

    def _updated(self, embeddings_NH: Tensor, level: Level) -> Tensor:
        old = embeddings_NH[level.nodes]
        received = torch.zeros_like(old)
        if len(level.sources):
            received = received.index_add(0, level.targets, self.message(embeddings_NH[level.sources]))
        if self.far_message is not None and len(level.far_sources):
            far = self.far_message(embeddings_NH[level.far_sources]) * level.far_weights[:, None]
            received = received.index_add(0, level.far_targets, far)
        return embeddings_NH.index_copy(0, level.nodes, self.update(received, old))


def _two_layers(hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden))

"""Weights and masks of the edges, ops and convolution weights of a supernet (HM-NAS, sections 3.1 and 3.3).

E edges (paths of the space), O ops of an edge (`none` is not among them), N names of the supernet's ops.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from optuna_nas.space import NONE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from optuna_nas.networks import Supernet
    from optuna_nas.oneshot.hmnas.recipe import HMNASRecipe
    from optuna_nas.space import CellSpace


class Masks:
    """What HM-NAS learns beside the weights of its supernet: public tensors, and what follows from them.

    A real mask keeps what it stands for while it is above a threshold. Read and change the tensors freely, under
    `torch.no_grad()`, while nothing is being trained.

    Attributes:
        ops: Names of the O ops, without `none`.
        op_logits_EO: Logits of the ops of every edge.
        edge_logits_E: Logits of the edges.
        op_masks_EO: Real masks of the ops.
        edge_masks_E: Real masks of the edges.
        weight_masks: Real masks of the convolutions' weights, by the name of the supernet's parameter.

    Args:
        space: Space of cells with ops on edges.
        supernet: The supernet whose weights are masked.
        recipe: How its edges are normalised, where masks start, what the threshold is, and the seed.
    """

    def __init__(self, space: CellSpace, supernet: Supernet, recipe: HMNASRecipe) -> None:
        self.paths = space.paths
        self.ops = tuple(op for op in space.ops if op != NONE)
        self.threshold = recipe.threshold
        self._supernet = supernet
        n_edges, n_ops = len(self.paths), len(self.ops)
        # Which normalisation an edge takes part in: that of its node, or of its kind of cell.
        places = [(kind.name, target) for kind, target, _ in map(space.places.__getitem__, self.paths)]
        groups = places if recipe.edge_softmax == "node" else [kind for kind, _ in places]
        numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
        self._groups_E = torch.tensor([numbers[group] for group in groups])
        names = supernet.names[self.paths[0]]
        self._columns_O = torch.tensor([names.index(op) for op in self.ops])
        draw = torch.Generator().manual_seed(recipe.seed)
        self.op_logits_EO = nn.Parameter(1e-3 * torch.randn(n_edges, n_ops, generator=draw))
        self.edge_logits_E = nn.Parameter(1e-3 * torch.randn(n_edges, generator=draw))
        start = recipe.mask_start
        self.op_masks_EO = nn.Parameter(torch.full((n_edges, n_ops), start))
        self.edge_masks_E = nn.Parameter(torch.full((n_edges,), start))
        self.weight_masks = {
            name: nn.Parameter(torch.full_like(weight, start, memory_format=torch.preserve_format))
            for name, weight in supernet.named_parameters()
            if weight.ndim == 4
        }

    # -- state ----------------------------------------------------------------------------------------------------

    @property
    def logits(self) -> list[nn.Parameter]:
        """Logits of ops and edges."""
        return [self.op_logits_EO, self.edge_logits_E]

    @property
    def masks(self) -> list[nn.Parameter]:
        """All real masks: of ops, of edges, of weights."""
        return [self.op_masks_EO, self.edge_masks_E, *self.weight_masks.values()]

    def tensors(self) -> dict[str, Tensor]:
        """Return all that is learned, by name; not copied."""
        return {
            "op_logits": self.op_logits_EO.data,
            "edge_logits": self.edge_logits_E.data,
            "op_masks": self.op_masks_EO.data,
            "edge_masks": self.edge_masks_E.data,
            **{f"weight_masks/{name}": mask.data for name, mask in self.weight_masks.items()},
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the values of what `tensors` returned."""
        own = self.tensors()
        for name, tensor in tensors.items():
            own[name].copy_(tensor)

    def move(self, device: torch.device) -> None:
        """Move to another device."""
        for parameter in (*self.logits, *self.masks):
            parameter.data = parameter.data.to(device)
        self._groups_E, self._columns_O = self._groups_E.to(device), self._columns_O.to(device)

    # -- weights of edges and ops ---------------------------------------------------------------------------------

    def edge_weights(self) -> Tensor:
        """Return the softmax of the edges' logits over their node, or their kind of cell; shape (E,)."""
        raised_E = (self.edge_logits_E - self.edge_logits_E.detach().max()).exp()
        sums = raised_E.new_zeros(len(self.paths)).index_add(0, self._groups_E, raised_E)
        return raised_E / sums[self._groups_E]

    def op_weights(self) -> Tensor:
        """Return the softmax of every edge's ops (eq. 1), shape (E, O)."""
        return self.op_logits_EO.softmax(-1)

    def mixing(self, masked: bool) -> dict[str, Tensor]:
        """Return what the supernet mixes the ops of every edge with (eq. 1 and 2), shape (N,) for every path.

        Masks multiply the normalised weights: a masked logit would keep its share of the softmax.

        Args:
            masked: Whether masks act.
        """
        edges_E, ops_EO = self.edge_weights(), self.op_weights()
        if masked:
            edges_E, ops_EO = edges_E * self.binary(self.edge_masks_E), ops_EO * self.binary(self.op_masks_EO)
        mixed_EO = edges_E[:, None] * ops_EO
        width = len(self._supernet.names[self.paths[0]])
        mixed_EN = mixed_EO.new_zeros(len(self.paths), width).index_copy(1, self._columns_O, mixed_EO)
        return dict(zip(self.paths, mixed_EN.unbind(), strict=True))

    def masked_weights(self) -> dict[str, Tensor]:
        """Return the supernet's masked weights by name; their gradient goes to the masks only."""
        weights = dict(self._supernet.named_parameters())
        return {name: weights[name].detach() * self.binary(mask) for name, mask in self.weight_masks.items()}

    def binary(self, mask: Tensor) -> Tensor:
        """Return ones and zeros whose gradient goes straight through to the real mask (section 3.3)."""
        return (mask.detach() > self.threshold).to(mask.dtype) + (mask - mask.detach())

    # -- what masks keep ------------------------------------------------------------------------------------------

    def kept(self, threshold: float | None = None) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return whether the masks of edges and ops are above a threshold, shapes (E,) and (E, O)."""
        limit = self.threshold if threshold is None else threshold
        edges_E, ops_EO = ((mask.detach() > limit).cpu().numpy() for mask in (self.edge_masks_E, self.op_masks_EO))
        return edges_E, ops_EO

    def kept_weights(self, threshold: float | None = None) -> dict[str, Tensor]:
        """Return ones where masks keep a weight and zeros where they cut it, by the name of the parameter."""
        limit = self.threshold if threshold is None else threshold
        return {name: (mask.detach() > limit).to(mask.dtype) for name, mask in self.weight_masks.items()}

    def lowest(self) -> NDArray[np.float64]:
        """Return for every op the lower of its own mask and its edge's, shape (E, O)."""
        lowest_EO = torch.minimum(self.op_masks_EO.detach(), self.edge_masks_E.detach()[:, None])
        return lowest_EO.cpu().double().numpy()

    def count_weights(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return how many convolution weights the masks keep, and how many there are; both of shape (E, O)."""
        kept, total = (np.zeros((len(self.paths), len(self.ops)), dtype=np.int64) for _ in range(2))
        places = {(path, op): (e, o) for e, path in enumerate(self.paths) for o, op in enumerate(self.ops)}
        for name, mask in self.weight_masks.items():
            node = self._supernet.graph[name.split(".")[1]]
            if (node.path, node.op) in places:
                place = places[node.path, node.op]
                kept[place] += int((mask.detach() > self.threshold).sum())
                total[place] += mask.numel()
        return kept, total

    def shares(self) -> dict[str, float]:
        """Return the shares of all `edges`, `ops` and `weights` that the masks keep, fractions in [0, 1]."""
        edges_E, ops_EO = self.kept()
        kept = sum(int((mask.detach() > self.threshold).sum()) for mask in self.weight_masks.values())
        total = sum(mask.numel() for mask in self.weight_masks.values())
        return {
            "edges": float((edges_E & ops_EO.any(1)).mean()),
            "ops": float((ops_EO & edges_E[:, None]).mean()),
            "weights": kept / max(1, total),
        }

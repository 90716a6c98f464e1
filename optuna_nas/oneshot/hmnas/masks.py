"""Weights and masks of the edges, ops and weights of a supernet (HM-NAS, sections 3.1 and 3.3).

E edges (paths of the space), O ops of an edge (`none` is not among them), N names of the supernet's ops.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

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


class BaseMasks(ABC):
    """Real masks of the names of choices and of weights, and what follows from them.

    A real mask keeps what it stands for while it is above a threshold.

    Args:
        paths: Names of the E choices.
        names: What each may keep, O names at most.
        supernet: The supernet whose weights are masked.
        recipe: Its threshold.
    """

    op_masks_EO: nn.Parameter  # noqa: N815 - shape, as in `Masks`
    weight_masks: dict[str, nn.Parameter]

    def __init__(
        self, paths: tuple[str, ...], names: tuple[tuple[str, ...], ...], supernet: nn.Module, recipe: HMNASRecipe
    ) -> None:
        self.paths, self.names, self.threshold = paths, names, recipe.threshold
        self._supernet: Any = supernet
        sizes = np.array([len(of_path) for of_path in names])
        self.valid_EO: NDArray[np.bool_] = np.arange(sizes.max()) < sizes[:, None]
        """Whether a choice has so many names, shape (E, O)."""

    @property
    @abstractmethod
    def logits(self) -> list[nn.Parameter]:
        """All logits."""

    @property
    @abstractmethod
    def choice_masks(self) -> list[nn.Parameter]:
        """Real masks of what is chosen."""

    @property
    def masks(self) -> list[nn.Parameter]:
        """All real masks: of what is chosen, then of weights."""
        return [*self.choice_masks, *self.weight_masks.values()]

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return all that is learned, by name; not copied."""

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the values of what `tensors` returned."""
        own = self.tensors()
        for name, tensor in tensors.items():
            own[name].copy_(tensor)

    def move(self, device: torch.device) -> None:
        """Move to another device."""
        for parameter in (*self.logits, *self.masks):
            parameter.data = parameter.data.to(device)

    @abstractmethod
    def edge_weights(self) -> Tensor:
        """Return the normalised weight of every choice, shape (E,)."""

    @abstractmethod
    def op_weights(self) -> Tensor:
        """Return the normalised weights of the names of every choice, shape (E, O)."""

    @abstractmethod
    def mixing(self, masked: bool) -> dict[str, Tensor]:
        """Return what the supernet mixes the names of every path with.

        Args:
            masked: Whether masks act.
        """

    @abstractmethod
    def only(self, chosen: Mapping[str, tuple[str, ...]], mixing: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return mixing weights without what an architecture did not choose."""

    def masked_weights(self) -> dict[str, Tensor]:
        """Return the supernet's masked weights by name; their gradient goes to the masks only."""
        weights = dict(self._supernet.named_parameters())
        return {name: weights[name].detach() * self.binary(mask) for name, mask in self.weight_masks.items()}

    def binary(self, mask: Tensor) -> Tensor:
        """Return ones and zeros whose gradient goes straight through to the real mask (section 3.3)."""
        return (mask.detach() > self.threshold).to(mask.dtype) + (mask - mask.detach())

    def binary_ops(self) -> Tensor:
        """Return ones and zeros of the names of every choice, shape (E, O), as `binary`."""
        return self.binary(self.op_masks_EO)

    def kept_share(self) -> Tensor:
        """Return the share of all names that masks keep, a scalar whose gradient goes to the real masks."""
        valid_EO = torch.from_numpy(self.valid_EO).to(self.op_masks_EO.device)
        return self.binary_ops()[valid_EO].mean()

    # -- what masks keep ------------------------------------------------------------------------------------------

    @abstractmethod
    def kept_edges(self, threshold: float | None = None) -> NDArray[np.bool_]:
        """Return whether the masks of whole choices are above a threshold, shape (E,)."""

    def kept(self, threshold: float | None = None) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return whether the masks of choices and of their names are above a threshold, shapes (E,) and (E, O)."""
        limit = self.threshold if threshold is None else threshold
        ops_EO = (self.op_masks_EO.detach() > limit).cpu().numpy() & self.valid_EO
        return self.kept_edges(threshold), ops_EO

    def kept_weights(self, threshold: float | None = None) -> dict[str, Tensor]:
        """Return ones where masks keep a weight and zeros where they cut it, by the name of the parameter."""
        limit = self.threshold if threshold is None else threshold
        return {name: (mask.detach() > limit).to(mask.dtype) for name, mask in self.weight_masks.items()}

    @abstractmethod
    def lowest(self) -> NDArray[np.float64]:
        """Return for every name the lower of its own mask and its choice's, shape (E, O)."""

    @abstractmethod
    def count_weights(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return how many weights the masks keep, and how many there are; both of shape (E, O)."""

    def shares(self) -> dict[str, float]:
        """Return the shares of all `edges`, `ops` and `weights` that the masks keep, fractions in [0, 1]."""
        edges_E, ops_EO = self.kept()
        kept = sum(int((mask.detach() > self.threshold).sum()) for mask in self.weight_masks.values())
        total = sum(mask.numel() for mask in self.weight_masks.values())
        return {
            "edges": float((edges_E & ops_EO.any(1)).mean()),
            "ops": float((ops_EO & edges_E[:, None])[self.valid_EO].mean()),
            "weights": kept / max(1, total),
        }


class Masks(BaseMasks):
    """What HM-NAS learns beside the weights of a supernet of cells: public tensors, and what follows from them.

    A real mask keeps what it stands for while it is above a threshold. Read and change the tensors freely, under
    `torch.no_grad()`, while nothing is being trained.

    E edges, O ops of an edge (`none` is not among them), N names of the supernet's ops.

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
        self.ops = tuple(op for op in space.ops if op != NONE)
        super().__init__(space.paths, (self.ops,) * len(space.paths), supernet, recipe)
        n_edges, n_ops = len(self.paths), len(self.ops)
        # Which normalisation an edge takes part in: that of its node, or of its kind of cell.
        places = [(kind.name, target) for kind, target, _ in map(space.places.__getitem__, self.paths)]
        groups = places if recipe.edge_softmax == "node" else [kind for kind, _ in places]
        numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
        self._groups_E = torch.tensor([numbers[group] for group in groups])
        names = supernet.names[self.paths[0]]
        self._columns_O = torch.tensor([names.index(op) for op in self.ops])
        draw = torch.Generator().manual_seed(recipe.seed)
        self.op_logits_EO = nn.Parameter(1e-3 * torch.randn(n_edges, n_ops, generator=draw, dtype=torch.float32))
        self.edge_logits_E = nn.Parameter(1e-3 * torch.randn(n_edges, generator=draw, dtype=torch.float32))
        start = recipe.mask_start
        self.op_masks_EO = nn.Parameter(torch.full((n_edges, n_ops), start, dtype=torch.float32))
        self.edge_masks_E = nn.Parameter(torch.full((n_edges,), start, dtype=torch.float32))
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

    def tensors(self) -> dict[str, Tensor]:
        """Return all that is learned, by name; not copied."""
        return {
            "op_logits": self.op_logits_EO.data,
            "edge_logits": self.edge_logits_E.data,
            "op_masks": self.op_masks_EO.data,
            "edge_masks": self.edge_masks_E.data,
            **{f"weight_masks/{name}": mask.data for name, mask in self.weight_masks.items()},
        }

    @property
    def choice_masks(self) -> list[nn.Parameter]:
        """Real masks of ops and edges."""
        return [self.op_masks_EO, self.edge_masks_E]

    def move(self, device: torch.device) -> None:
        super().move(device)
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

    def binary_ops(self) -> Tensor:
        """Return ones and zeros of the ops of every edge, zeros where the edge's own mask fell; shape (E, O)."""
        return self.binary(self.op_masks_EO) * self.binary(self.edge_masks_E)[:, None]

    # -- what masks keep ------------------------------------------------------------------------------------------

    def only(self, chosen: Mapping[str, tuple[str, ...]], mixing: dict[str, Tensor]) -> dict[str, Tensor]:
        names = self._supernet.names
        return {
            path: vector
            * torch.tensor([float(name in chosen[path]) for name in names[path]], dtype=torch.float32).to(vector.device)
            for path, vector in mixing.items()
        }

    def kept_edges(self, threshold: float | None = None) -> NDArray[np.bool_]:
        limit = self.threshold if threshold is None else threshold
        edges_E: NDArray[np.bool_] = (self.edge_masks_E.detach() > limit).cpu().numpy()
        return edges_E

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

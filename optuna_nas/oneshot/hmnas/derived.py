"""What survives the masks of HM-NAS: of the supernet (section 3.4), and of any architecture.

E edges (paths of the space), O ops of an edge (`none` is not among them).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from optuna_nas.networks import DiscreteNetwork
from optuna_nas.space.ways import cheapest_way

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from optuna_nas.networks import NetworkSpace, Supernet
    from optuna_nas.oneshot.hmnas.masks import Masks
    from optuna_nas.space import Architecture, CellSpace

logger = logging.getLogger(__name__)


class Survival(NamedTuple):
    """What masks keep of an architecture, fractions in [0, 1].

    Args:
        share: Share of its ops, weighted by their weight in the supernet; an op survives where its mask and its edge's
            do.
        edges: Share of its edges, weighted by theirs.
        ops: Share of its ops, weighted, whatever becomes of their edges.
        weights: Share of the convolution weights of its ops.
    """

    share: float
    edges: float
    ops: float
    weights: float


class Derived(NamedTuple):
    """The network that survives the masks.

    Args:
        architecture: Its ops and edges, any number of them.
        mixing: Factor of the output of every op, by path and op.
        weights: State of its network, zero where masks cut.
        masks: Ones and zeros, by the name of a parameter.
        params: Parameters that survive; those that masks set to zero are not counted.
        threshold: Threshold of the masks.
    """

    architecture: Architecture
    mixing: Mapping[str, Mapping[str, float]]
    weights: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    params: int
    threshold: float

    def build(self) -> DiscreteNetwork:
        """Return the network with inherited weights; training it updates only what survived."""
        return DiscreteNetwork(self.architecture, self.weights, mixing=self.mixing, masks=self.masks)

    @property
    def kept_weights(self) -> float:
        """Share of the network's convolution weights that survived."""
        total = sum(mask.numel() for mask in self.masks.values())
        return sum(float(mask.sum()) for mask in self.masks.values()) / max(1, total)


# -- of the supernet ----------------------------------------------------------------------------------------------


def kept_ops(masks: Masks, threshold: float | None = None) -> dict[str, tuple[str, ...]]:
    """Return the ops that masks keep on every edge; none where the edge's own mask fell."""
    edges_E, ops_EO = masks.kept(threshold)
    return {
        path: tuple(op for op, stays in zip(masks.ops, row, strict=True) if stays and edge)
        for path, edge, row in zip(masks.paths, edges_E.tolist(), ops_EO.tolist(), strict=True)
    }


def derive(space: NetworkSpace, supernet: Supernet, masks: Masks, threshold: float) -> Derived:
    """Return what survives at a threshold; see `HMNAS.derive`."""
    removed = set(fallen(space, masks, space.full_architecture(), threshold))
    kept = {path: tuple(op for op in masks.ops if (path, op) not in removed) for path in masks.paths}
    architecture = space.architecture(kept)
    edges, ops = weights_by_name(masks)
    mixing = {path: {op: edges[path] * ops[path][op] for op in names} for path, names in kept.items()}
    state = {name: t.detach().clone() for name, t in supernet.weights_of(architecture).items()}
    cuts = {name: mask for name, mask in masks.kept_weights(threshold).items() if name in state}
    params = architecture.cost().params - sum(mask.numel() - int(mask.sum()) for mask in cuts.values())
    weights = {name: tensor * cuts[name] if name in cuts else tensor for name, tensor in state.items()}
    return Derived(architecture, mixing, weights, cuts, params, threshold)


def weights_by_name(masks: Masks) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return the normalised weights of edges and of ops by path and name, masks aside."""
    edges_E, ops_EO = masks.edge_weights().tolist(), masks.op_weights().tolist()
    edges = dict(zip(masks.paths, edges_E, strict=True))
    return edges, {p: dict(zip(masks.ops, row, strict=True)) for p, row in zip(masks.paths, ops_EO, strict=True)}


# -- of an architecture -------------------------------------------------------------------------------------------


def fallen(
    space: NetworkSpace, masks: Masks, architecture: Architecture, threshold: float | None = None
) -> list[tuple[str, str]]:
    """Return the (edge, op) of an architecture that masks cut; see `HMNAS.fallen`."""
    kept = kept_ops(masks, threshold)
    stays = {path: tuple(op for op in ops if op in kept[path]) for path, ops in architecture.choices}
    left = space.architecture(stays)
    if architecture.connected and not left.connected:
        edges, ops = weights_by_name(masks)
        score_EO = np.log([list(row.values()) for row in ops.values()]) + np.log(list(edges.values()))[:, None]
        score_EO[[[op not in architecture[path] for op in masks.ops] for path in masks.paths]] = -np.inf
        cells = left.cells
        for number, kind in enumerate(space.cells.kinds):
            if cells.outputs[number] not in cells.live:
                for edge in cheapest_way(cast("CellSpace", space.cells), kind, -score_EO.max(axis=1)):
                    path = masks.paths[edge]
                    stays[path] = (*stays[path], masks.ops[int(score_EO[edge].argmax())])
        logger.warning("The masks cut every way through a cell; its heaviest way is kept.")
    return [(path, op) for path, ops in architecture.choices for op in ops if op not in stays[path]]


def survivals(masks: Masks, architectures: Sequence[Architecture]) -> list[Survival]:
    """Return what the masks keep of architectures; see `HMNAS.survivals`."""
    edges_E, ops_EO = masks.kept()
    weight_E = masks.edge_weights().detach().cpu().double().numpy()
    worth_EO = weight_E[:, None] * masks.op_weights().detach().cpu().double().numpy()
    kept_EO, total_EO = masks.count_weights()
    survived = []
    for architecture in architectures:
        if not architecture.connected:
            survived.append(Survival(0.0, 0.0, 0.0, 0.0))
            continue
        chosen_EO = np.array([[op in architecture[path] for op in masks.ops] for path in masks.paths])
        used_E, own_EO, total = weight_E * chosen_EO.any(1), worth_EO * chosen_EO, (total_EO * chosen_EO).sum()
        survived.append(
            Survival(
                float((own_EO * ops_EO * edges_E[:, None]).sum() / own_EO.sum()),
                float((used_E * edges_E).sum()) / float(used_E.sum()),
                float((own_EO * ops_EO).sum() / own_EO.sum()),
                float((kept_EO * chosen_EO).sum() / total) if total else 1.0,
            )
        )
    return survived


def endurance(masks: Masks, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
    """Return how long architectures survive while the threshold rises; see `HMNAS.endurance`."""
    from scipy.stats import rankdata  # learning does without it

    lowest_EO = masks.lowest()
    rank_EO = rankdata(lowest_EO).reshape(lowest_EO.shape) / lowest_EO.size
    columns = {op: number for number, op in enumerate(masks.ops)}
    return np.array(
        [
            np.mean(
                [
                    np.mean([rank_EO[e, columns[op]] for op in architecture[path]]) if architecture[path] else 0.0
                    for e, path in enumerate(masks.paths)
                ]
            )
            for architecture in architectures
        ],
        dtype=np.float64,
    )


def weakest(masks: Masks, architecture: Architecture) -> list[tuple[str, str]]:
    """Return the (edge, op) of an architecture, lowest masks first; see `HMNAS.weakest`."""
    lowest_EO = masks.lowest()
    places = [(path, op) for path, ops in architecture.choices for op in ops]
    return sorted(places, key=lambda place: float(lowest_EO[masks.paths.index(place[0]), masks.ops.index(place[1])]))


def cut(masks: Masks, architecture: Architecture) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the edges and the (edge, op) of an architecture whose own masks fell; see `HMNAS.cut`."""
    edges_E, ops_EO = masks.kept()
    edges = [path for path, stays in zip(masks.paths, edges_E, strict=True) if architecture[path] and not stays]
    ops = [
        (path, op)
        for path, row in zip(masks.paths, ops_EO, strict=True)
        for op, stays in zip(masks.ops, row, strict=True)
        if op in architecture[path] and not stays
    ]
    return edges, ops

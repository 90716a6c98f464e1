"""What survives the masks of HM-NAS: of the supernet (section 3.4), and of any architecture.

E edges (paths of the space), O ops of an edge (`none` is not among them).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from optuna_nas.modules import ModuleSpace
from optuna_nas.networks import DiscreteNetwork
from optuna_nas.networks.sums import restrict
from optuna_nas.oneshot.hmnas.choice_masks import ChoiceMasks
from optuna_nas.oneshot.hmnas.masks import Masks
from optuna_nas.space.ways import cheapest_way

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from optuna_nas.oneshot.hmnas.masks import BaseMasks
    from optuna_nas.space import Architecture, CellSpace, ModelSpace

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
        mixing: Factor of the output of every op or input that is added up, by path and name.
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

    def build(self) -> nn.Module:
        """Return the network with inherited weights; training it updates only what survived."""
        if isinstance(self.architecture.space, ModuleSpace):
            return restrict(self.architecture.build(self.weights), self.mixing, self.masks)
        return DiscreteNetwork(self.architecture, self.weights, mixing=self.mixing, masks=self.masks)

    @property
    def kept_weights(self) -> float:
        """Share of the network's convolution weights that survived."""
        total = sum(mask.numel() for mask in self.masks.values())
        return sum(float(mask.sum()) for mask in self.masks.values()) / max(1, total)


# -- of the supernet ----------------------------------------------------------------------------------------------


def kept_ops(masks: BaseMasks, threshold: float | None = None) -> dict[str, tuple[str, ...]]:
    """Return the ops that masks keep on every edge; none where the edge's own mask fell."""
    edges_E, ops_EO = masks.kept(threshold)
    return {
        path: tuple(name for name, stays in zip(names, row, strict=False) if stays and edge)
        for path, names, edge, row in zip(masks.paths, masks.names, edges_E.tolist(), ops_EO.tolist(), strict=True)
    }


def derive(space: ModelSpace, supernet: Any, masks: BaseMasks, threshold: float) -> Derived:
    """Return what survives at a threshold; see `HMNAS.derive`."""
    full, decided = space.full_architecture(), {}
    if isinstance(masks, ChoiceMasks):
        decided = masks.decided()
        full = space.architecture({**decided, **dict(zip(masks.paths, masks.names, strict=True))})
    removed = set(fallen(space, masks, full, threshold))
    kept = {
        path: tuple(name for name in names if (path, name) not in removed)
        for path, names in zip(masks.paths, masks.names, strict=True)
    }
    architecture = space.architecture({**decided, **kept})
    edges, ops = weights_by_name(masks)
    mixing = {path: {op: edges[path] * ops[path][op] for op in names} for path, names in kept.items()}
    state = {name: t.detach().clone() for name, t in supernet.weights_of(architecture).items()}
    cuts = supernet.parts_of(architecture, masks.kept_weights(threshold))
    params = space.params(architecture) - sum(mask.numel() - int(mask.sum()) for mask in cuts.values())
    weights = {name: tensor * cuts[name] if name in cuts else tensor for name, tensor in state.items()}
    return Derived(architecture, mixing, weights, cuts, params, threshold)


def weights_by_name(masks: BaseMasks) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return the normalised weights of edges and of ops by path and name, masks aside."""
    edges_E, ops_EO = masks.edge_weights().tolist(), masks.op_weights().tolist()
    edges = dict(zip(masks.paths, edges_E, strict=True))
    rows = zip(masks.paths, masks.names, ops_EO, strict=True)
    return edges, {path: dict(zip(names, row, strict=False)) for path, names, row in rows}


# -- of an architecture -------------------------------------------------------------------------------------------


def fallen(
    space: ModelSpace, masks: BaseMasks, architecture: Architecture, threshold: float | None = None
) -> list[tuple[str, str]]:
    """Return the (edge, op) of an architecture that masks cut; see `HMNAS.fallen`."""
    kept = kept_ops(masks, threshold)
    stays = {path: tuple(name for name in architecture[path] if name in kept[path]) for path in masks.paths}
    if isinstance(masks, ChoiceMasks):
        for path in masks.paths:
            if len(kept_names := masks.with_least(path, architecture[path], stays[path])) > len(stays[path]):
                stays[path] = kept_names
                logger.warning("The masks cut all of %s; its heaviest is kept.", path)
        return [(path, name) for path in masks.paths for name in architecture[path] if name not in stays[path]]
    assert isinstance(masks, Masks)
    cells = cast("CellSpace", space.core)
    left = space.architecture(stays)
    if architecture.connected and not left.connected:
        edges, ops = weights_by_name(masks)
        score_EO = np.log([list(row.values()) for row in ops.values()]) + np.log(list(edges.values()))[:, None]
        score_EO[[[op not in architecture[path] for op in masks.ops] for path in masks.paths]] = -np.inf
        graph = left.cells
        for number, kind in enumerate(cells.kinds):
            if graph.outputs[number] not in graph.live:
                for edge in cheapest_way(cells, kind, -score_EO.max(axis=1)):
                    path = masks.paths[edge]
                    stays[path] = (*stays[path], masks.ops[int(score_EO[edge].argmax())])
        logger.warning("The masks cut every way through a cell; its heaviest way is kept.")
    return [(path, op) for path, ops in architecture.choices for op in ops if op not in stays[path]]


def survivals(masks: BaseMasks, architectures: Sequence[Architecture]) -> list[Survival]:
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
        chosen_EO = _chosen(masks, architecture)
        used_E, own_EO, total = weight_E * chosen_EO.any(1), worth_EO * chosen_EO, (total_EO * chosen_EO).sum()
        if not chosen_EO.any():  # nothing that masks know
            survived.append(Survival(1.0, 1.0, 1.0, 1.0))
            continue
        survived.append(
            Survival(
                float((own_EO * ops_EO * edges_E[:, None]).sum() / own_EO.sum()),
                float((used_E * edges_E).sum()) / float(used_E.sum()),
                float((own_EO * ops_EO).sum() / own_EO.sum()),
                float((kept_EO * chosen_EO).sum() / total) if total else 1.0,
            )
        )
    return survived


def _chosen(masks: BaseMasks, architecture: Architecture) -> NDArray[np.bool_]:
    """Return which names of every choice an architecture has a part of, shape (E, O)."""
    asked = set(architecture.space.asked(architecture)) if isinstance(masks, ChoiceMasks) else set(masks.paths)
    chosen_EO = np.zeros(masks.valid_EO.shape, dtype=bool)
    for row, path, names in zip(chosen_EO, masks.paths, masks.names, strict=True):
        if path in asked:
            row[: len(names)] = [name in architecture[path] for name in names]
    return chosen_EO


def endurance(masks: BaseMasks, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
    """Return how long architectures survive while the threshold rises; see `HMNAS.endurance`."""
    from scipy.stats import rankdata  # learning does without it

    lowest_EO, valid_EO = masks.lowest(), masks.valid_EO
    rank_EO = np.zeros(lowest_EO.shape)
    rank_EO[valid_EO] = rankdata(lowest_EO[valid_EO]) / valid_EO.sum()
    scores = []
    for architecture in architectures:
        chosen_EO = _chosen(masks, architecture)
        asked = chosen_EO.any(axis=1) if isinstance(masks, ChoiceMasks) else np.ones(len(chosen_EO), dtype=bool)
        means = [float(np.mean(row[own])) if own.any() else 0.0 for row, own in zip(rank_EO, chosen_EO, strict=True)]
        scores.append(float(np.mean(np.array(means)[asked])) if asked.any() else 1.0)
    return np.array(scores, dtype=np.float64)


def weakest(masks: BaseMasks, architecture: Architecture) -> list[tuple[str, str]]:
    """Return the (edge, op) of an architecture, lowest masks first; see `HMNAS.weakest`."""
    of_paths = zip(masks.paths, masks.names, masks.lowest(), strict=True)
    rows = {path: dict(zip(names, row, strict=False)) for path, names, row in of_paths}
    places = [(path, op) for path in masks.paths for op in architecture[path]]
    return sorted(places, key=lambda place: float(rows[place[0]][place[1]]))


def cut(masks: BaseMasks, architecture: Architecture) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the edges and the (edge, op) of an architecture whose own masks fell; see `HMNAS.cut`."""
    edges_E, ops_EO = masks.kept()
    edges = [path for path, stays in zip(masks.paths, edges_E, strict=True) if architecture[path] and not stays]
    ops = [
        (path, op)
        for path, names, row in zip(masks.paths, masks.names, ops_EO, strict=True)
        for op, stays in zip(names, row, strict=False)
        if op in architecture[path] and not stays
    ]
    return edges, ops

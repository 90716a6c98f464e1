"""Plots of HM-NAS: masked cells, weights of edges over seeds, and metric against size of derived networks."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from math import inf
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from optuna_nas.plots.cell_layout import CellDrawing, cell_drawing
from optuna_nas.plots.cells import draw_drawings
from optuna_nas.plots.style import BLUE, GREY, INK, LEGEND_FONT, label_axes, new_figure, new_plot
from optuna_nas.storage import plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from optuna_nas.oneshot.hmnas.model import HMNAS
    from optuna_nas.space import Space

MIN_WIDTH, MAX_WIDTH = 0.6, 4.5  # points


class Member(NamedTuple):
    """Network derived at a threshold of the masks, before fine-tuning.

    Args:
        params: Number of parameters that survive.
        metric: Metric of the task on the scoring batch.
    """

    params: int
    metric: float


def masked_drawing(
    space: Space, kept: Mapping[str, Sequence[str]], edge_weights: Mapping[str, float], kind: int
) -> CellDrawing:
    """Return the drawing of the full cell of a kind, with removed ops struck through and line widths by edge weights.

    Args:
        space: Space of cells with ops on edges.
        kept: Ops that the masks keep, by path.
        edge_weights: Normalised weight of each edge, by path.
        kind: Number of the kind of cell, from 0.
    """
    graph = space.full_architecture().cells
    masked = space.architecture(kept).cells
    live = {masked.nodes[position].name for position in masked.live}
    drawing = cell_drawing(graph, kind)
    heaviest = max(edge_weights.values())
    edges = []
    for edge in drawing.edges:
        if not edge.ops:
            dead = not {edge.source, edge.target} <= live
            edges.append(replace(edge, dead=dead))
            continue
        ops = [graph[name] for name in edge.ops]
        path = ops[0].path
        words = tuple(
            word._replace(struck=node.op not in kept[path]) for node, word in zip(ops, edge.words, strict=True)
        )
        dead = not kept[path] or not {edge.source, edge.target} <= live
        width = MIN_WIDTH + (MAX_WIDTH - MIN_WIDTH) * edge_weights[path] / heaviest
        edges.append(replace(edge, words=words, dead=dead, width=width))
    nodes = tuple(replace(node, dead=node.name not in live) for node in drawing.nodes)
    return replace(drawing, nodes=nodes, edges=tuple(edges))


def plot_masks(hmnas: HMNAS, threshold: float | None = None) -> Figure:
    """Plot the cells with the ops that the masks keep.

    Line widths show the weights of edges in the supernet. Ops that the masks remove are struck through. Edges without
    any op, and parts without an effect on the output, are pale and dashed.

    Args:
        hmnas: Model with masks.
        threshold: Threshold of the masks, in [0, 1]; by default that of the recipe.

    Returns:
        Figure of matplotlib.

    Example:
        >>> from optuna_nas import HMNAS, NetworkSpace, Skeleton, hmnas_space
        >>> from optuna_nas.plots import plot_masks
        >>> skeleton = Skeleton(("normal", "reduction"), 4, (1, 8, 8), 10, affine=False)
        >>> figure = plot_masks(HMNAS(NetworkSpace(hmnas_space(), skeleton)))
        >>> len(figure.axes)  # a normal and a reduction cell
        2
    """
    return draw_masks(hmnas.space, hmnas.kept(threshold), hmnas.edge_weights)


def draw_masks(space: Space, kept: Mapping[str, Sequence[str]], edge_weights: Mapping[str, float]) -> Figure:
    """Plot the ops kept by masks; see `plot_masks`."""
    return draw_drawings(
        [masked_drawing(space, kept, edge_weights, kind) for kind in range(space.full_architecture().cells.n_cells)]
    )


def plot_edge_weights(models: Sequence[HMNAS]) -> Figure:
    """Plot the weight of every edge, with a point per model and a bar for their mean (Yan et al. 2019, figure 7).

    Args:
        models: Models of one space, such as fits with several seeds; at least one.

    Returns:
        Figure of matplotlib.

    Raises:
        ValueError: There are no models, or they differ in space.

    Example:
        >>> from optuna_nas import HMNAS, NetworkSpace, Skeleton, hmnas_space
        >>> from optuna_nas.plots import plot_edge_weights
        >>> skeleton = Skeleton(("normal", "reduction"), 4, (1, 8, 8), 10, affine=False)
        >>> figure = plot_edge_weights([HMNAS(NetworkSpace(hmnas_space(), skeleton))])
        >>> len(figure.axes)  # a normal and a reduction cell
        2
    """
    if not models or any(model.space != models[0].space for model in models):
        raise ValueError("`models` must be one or more HMNAS of the same space; pass fits with several seeds.")
    return draw_edge_weights(models[0].space, [model.edge_weights for model in models])


def draw_edge_weights(space: Space, weights: Sequence[Mapping[str, float]]) -> Figure:
    """Plot weights of edges, one mapping from paths to weights per model; see `plot_edge_weights`."""
    kinds = [list(paths) for _, paths in groupby(weights[0], key=space.group)]
    width = max(4.5, 0.42 * max(map(len, kinds)) + 1.2)
    figure = new_figure(width, 2.6 * len(kinds), layout="constrained")
    top = max(max(by_path.values()) for by_path in weights) * 1.08
    for number, paths in enumerate(kinds):
        axes = figure.add_subplot(len(kinds), 1, number + 1)
        table_MP = np.array([[by_path[path] for path in paths] for by_path in weights])
        places = np.arange(len(paths))
        axes.bar(places, table_MP.mean(0), width=0.62, color=BLUE, alpha=0.35, linewidth=0)
        for row in table_MP:
            axes.plot(places, row, "o", color=BLUE, markersize=3.2, markeredgewidth=0)
        axes.set_ylim(0, top)
        axes.set_xticks(places, [plain.label(space.label(path)) for path in paths])
        label_axes(axes, space.group(paths[0]), "edge: node read \u2192 node", "weight")
        _add_grid(axes)
    return figure


def family_members(hmnas: HMNAS, members: int = 8) -> list[Member]:
    """Return sizes and metrics of the networks of `hmnas.family`, after the unmasked supernet.

    Raises:
        ValueError: Neither `fit` nor `attach` was called with data that have a validation split.
    """
    family = [hmnas.derive(-inf), *hmnas.family(members)]
    return [Member(derived.params, hmnas.metric_of(derived)) for derived in family]


def plot_family(hmnas: HMNAS, members: int = 8) -> Figure:
    """Plot the metric against the size of networks derived at rising thresholds, before fine-tuning.

    Args:
        hmnas: Model that was fitted or attached to data; the metric is that on its scoring batch.
        members: Number of thresholds, at least 1.

    Returns:
        Figure of matplotlib.

    Raises:
        ValueError: Neither `fit` nor `attach` was called with data that have a validation split.

    Example:
        >>> from optuna_nas import HMNAS, HMNASRecipe, NetworkSpace, Skeleton, digits, nasbench201_space
        >>> from optuna_nas.plots import plot_family
        >>> space = NetworkSpace(nasbench201_space(), Skeleton(("cell",), 4, (1, 8, 8), 10, affine=False))
        >>> hmnas = HMNAS(space)
        >>> hmnas.attach(digits())
        >>> plot_family(hmnas, members=1).axes[0].get_ylabel()
        'accuracy'
    """
    return draw_family(family_members(hmnas, members), hmnas.task.metric)


def draw_family(members: Sequence[Member], metric: str) -> Figure:
    """Plot derived networks; see `plot_family`.

    Args:
        members: Networks: first the unmasked supernet, then that at the threshold of the recipe.
        metric: Name of the metric.
    """
    figure, axes = new_plot(5.4, 3.6)
    rest = members[1:]
    axes.plot([m.params for m in rest], [m.metric for m in rest], "-o", color=BLUE, markersize=4, linewidth=1.2)
    named = ((members[0], "supernet", INK, "s"), (members[1], "the recipe's threshold", BLUE, "D"))
    for member, label, colour, marker in named:
        axes.plot(member.params, member.metric, marker, color=colour, markersize=7, label=label)
    axes.set_xlim(0, 1.05 * members[0].params)
    axes.legend(frameon=False, loc="lower right", prop=LEGEND_FONT)
    label_axes(axes, "before fine-tuning", "parameters that survive", metric, engineering=True)
    _add_grid(axes)
    return figure


def _add_grid(axes: Axes) -> None:
    axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)

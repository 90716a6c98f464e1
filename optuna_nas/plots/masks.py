"""What HM-NAS learned: the cells that its masks leave, what edges weigh from seed to seed, size against metric."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from math import inf
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from optuna_nas.plots.cell_layout import CellDrawing, cell_drawing
from optuna_nas.plots.cells import draw_drawings
from optuna_nas.plots.style import BLUE, GREY, INK, LEGEND_FONT, label_axes, new_figure, new_plot

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from optuna_nas.oneshot.hmnas.model import HMNAS
    from optuna_nas.space import Space

MIN_WIDTH, MAX_WIDTH = 0.6, 4.5  # points


class Member(NamedTuple):
    """A network of a family, before fine-tuning: parameters that survive, the task's metric on the scoring batch."""

    params: int
    metric: float


def masked_drawing(
    space: Space, kept: Mapping[str, Sequence[str]], edge_weights: Mapping[str, float], kind: int
) -> CellDrawing:
    """Return one kind of cell with everything it may have: what is cut struck out, arrows as thick as edges weigh.

    Args:
        space: Of cells with ops on edges.
        kept: For every path the ops that masks keep.
        edge_weights: For every path its normalised weight.
        kind: Number of the kind of cell.
    """
    graph = space.full_architecture().cells
    left = space.architecture(kept).cells
    reaches = {left.nodes[position].name for position in left.live}
    drawing = cell_drawing(graph, kind)
    heaviest = max(edge_weights.values())
    edges = []
    for edge in drawing.edges:
        if not edge.ops:
            dead = not {edge.source, edge.target} <= reaches
            edges.append(replace(edge, dead=dead))
            continue
        nodes = [graph[name] for name in edge.ops]
        path = nodes[0].path
        words = tuple(
            word._replace(struck=node.op not in kept[path]) for node, word in zip(nodes, edge.words, strict=True)
        )
        dead = not kept[path] or not {edge.source, edge.target} <= reaches
        width = MIN_WIDTH + (MAX_WIDTH - MIN_WIDTH) * edge_weights[path] / heaviest
        edges.append(replace(edge, words=words, dead=dead, width=width))
    nodes_drawn = tuple(replace(node, dead=node.name not in reaches) for node in drawing.nodes)
    return replace(drawing, nodes=nodes_drawn, edges=tuple(edges))


def plot_masks(hmnas: HMNAS, threshold: float | None = None) -> Figure:
    """Draw the cells as the masks leave them.

    Arrows are as thick as edges weigh in the supernet; ops that masks cut are struck out; edges without any op, and
    what leads nowhere, are pale and dashed.

    Args:
        hmnas: The model.
        threshold: Of the masks, another than the recipe's, such as that of a member of `hmnas.family()`.
    """
    return draw_masks(hmnas.space, hmnas.kept(threshold), hmnas.edge_weights)


def draw_masks(space: Space, kept: Mapping[str, Sequence[str]], edge_weights: Mapping[str, float]) -> Figure:
    """Draw what masks keep; see `plot_masks`."""
    return draw_drawings(
        [masked_drawing(space, kept, edge_weights, kind) for kind in range(space.full_architecture().cells.n_cells)]
    )


def plot_edge_weights(models: Sequence[HMNAS]) -> Figure:
    """Draw what every edge weighs, each model a point, their mean a bar (Yan et al. 2019, figure 7: several seeds).

    Args:
        models: Of one space, such as fits with several seeds.

    Raises:
        ValueError: There are none, or they differ in space.
    """
    if not models or any(model.space != models[0].space for model in models):
        raise ValueError("`models` must be one or more HMNAS of the same space; pass fits with several seeds.")
    return draw_edge_weights(models[0].space, [model.edge_weights for model in models])


def draw_edge_weights(space: Space, weights: Sequence[Mapping[str, float]]) -> Figure:
    """Draw weights by path, one mapping a model; see `plot_edge_weights`."""
    kinds = [list(paths) for _, paths in groupby(weights[0], key=space.group)]
    width = max(4.5, 0.42 * max(map(len, kinds)) + 1.2)
    figure = new_figure(width, 2.6 * len(kinds), layout="constrained")
    top = max(max(found.values()) for found in weights) * 1.08
    for number, paths in enumerate(kinds):
        axes = figure.add_subplot(len(kinds), 1, number + 1)
        table_MP = np.array([[found[path] for path in paths] for found in weights])
        places = np.arange(len(paths))
        axes.bar(places, table_MP.mean(0), width=0.62, color=BLUE, alpha=0.35, linewidth=0)
        for row in table_MP:
            axes.plot(places, row, "o", color=BLUE, markersize=3.2, markeredgewidth=0)
        axes.set_ylim(0, top)
        axes.set_xticks(places, [space.label(path) for path in paths])
        label_axes(axes, space.group(paths[0]), "edge: node read \u2192 node", "weight")
        _add_grid(axes)
    return figure


def family_members(hmnas: HMNAS, members: int = 8) -> list[Member]:
    """Return sizes and metrics of `hmnas.family`, the unmasked supernet first.

    Raises:
        ValueError: Neither `fit` nor `attach` has seen data with a report split.
    """
    family = [hmnas.derive(-inf), *hmnas.family(members)]
    return [Member(derived.params, hmnas.metric_of(derived)) for derived in family]


def plot_family(hmnas: HMNAS, members: int = 8) -> Figure:
    """Draw metric against size of what survives at rising thresholds, before fine-tuning, on the scoring batch."""
    return draw_family(family_members(hmnas, members), hmnas.task.metric)


def draw_family(members: Sequence[Member], metric: str) -> Figure:
    """Draw members, the unmasked supernet first, then that of the recipe's threshold; see `plot_family`.

    Args:
        members: Networks of a family.
        metric: Name of their metric.
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

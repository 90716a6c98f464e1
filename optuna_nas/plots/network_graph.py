"""The graph of a whole network: its layers and functions in the order of computation, and what each reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optuna_nas.plots.style import BLUE, FONT, FONT_SIZE, GREY, INK, PAPER, SLATE, new_figure, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from optuna_nas.space import Architecture, ComputationGraph

LINE, GAP, EDGE = 0.32, 0.25, 0.3
"""Height of a level, space between two nodes of a level, and margin, inches."""
BEND = 0.6
"""Curvature of arrows past several levels."""
MAX_NODES = 400
"""Largest number of nodes that are drawn."""


def plot_graph(architecture: Architecture) -> Figure:
    """Plot the graph of an architecture's whole network from its inputs, at the top, to its outputs.

    A node is a layer or a function, under the name of its part in the module. Nodes with parameters are blue. Arrows
    past several levels are bent.

    Args:
        architecture: Architecture of a `ModelSpace`; a `ModuleSpace` traces its module, see `modules.tracing.traced`.

    Raises:
        ValueError: The graph has more than 400 nodes.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from optuna_nas import ModuleSpace, choose_op
        >>> from optuna_nas.plots import plot_graph
        >>> net = lambda: nn.Sequential(nn.Linear(3, 4), choose_op("act", {"relu": nn.ReLU, "tanh": nn.Tanh}))
        >>> space = ModuleSpace(net, example=torch.zeros(1, 3), name="plotted")
        >>> [text.get_text() for text in plot_graph(space.architecture({"act": "tanh"})).axes[0].texts]
        ['input', 'Linear  0', 'Tanh  1', 'output']
    """
    graph = architecture.graph()
    if len(graph) > MAX_NODES:
        raise ValueError(
            f"`architecture` must have a graph of at most {MAX_NODES} nodes to be drawn but has {len(graph)}; draw its "
            "choices by `plot_architecture`."
        )
    levels = _levels(graph)
    labels = [_label(node.op, node.name) for node in graph.nodes]
    rows: list[list[int]] = [[] for _ in range(1 + max(levels))]
    for position, level in enumerate(levels):
        rows[level].append(position)
    widths = [sum(text_width(labels[i]) + GAP for i in row) for row in rows]
    width, height = max(widths) + 2 * EDGE + 0.6, len(rows) * LINE + EDGE
    figure = new_figure(width, height, dpi=120)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    places: dict[int, tuple[float, float]] = {}
    for level, row in enumerate(rows):
        x = (width - widths[level]) / 2
        for position in row:
            own = text_width(labels[position]) + GAP
            places[position] = x + own / 2, height - EDGE / 2 - (level + 0.5) * LINE
            x += own
    for position, node in enumerate(graph.nodes):
        for source in node.inputs:
            _arrow(axes, places[source], places[position], levels[position] - levels[source])
    for position, node in enumerate(graph.nodes):
        has_weights = node.site.out_shape[0] > 1 or node.op[:1].isupper()
        colour = BLUE if has_weights else INK if node.op in ("input", "output") else SLATE
        box: dict[str, Any] = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.5}
        axes.text(
            *places[position],
            labels[position],
            color=colour,
            bbox=box,
            family=FONT,
            size=FONT_SIZE,
            ha="center",
            va="center",
            parse_math=False,
        )
    return figure


def _levels(graph: ComputationGraph) -> list[int]:
    """Return the length of the longest way to every node."""
    levels: list[int] = []
    for node in graph.nodes:
        levels.append(1 + max((levels[source] for source in node.inputs), default=-1))
    return levels


def _label(op: str, name: str) -> str:
    """Return an op with the name of its part, where it has one."""
    if op == "input":  # of a tensor, or a parameter that is read by itself
        return name.lstrip("_").removesuffix("_1")  # torch.fx numbers names of Python's own functions
    return f"{op}  {name.lstrip('_')}" if op[:1].isupper() and name.lower() != op.lower() else op


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], levels: int) -> None:
    from matplotlib.patches import FancyArrowPatch

    bend = 0.0 if levels == 1 else BEND if start[0] <= end[0] else -BEND
    arrow = FancyArrowPatch(
        (start[0], start[1] - 0.08),
        (end[0], end[1] + 0.08),
        arrowstyle="-|>",
        mutation_scale=6,
        linewidth=0.8,
        color=GREY,
        connectionstyle=f"arc3,rad={bend}",
        shrinkA=0,
        shrinkB=0,
    )
    axes.add_patch(arrow)

"""Drawings of cells in two steps: numbers (`cell_drawing`), then a figure (`plot_architecture`).

The layout is a layered one (Sugiyama, Tagawa and Toda 1981) in which a label is a vertex like a node. Vertices stand in
columns; within a column they are kept apart and arrows run level, between columns arrows bend and may cross. So no
arrow crosses a label or a node, however dense the cell. An op's label stands in the column before the node that it
feeds: what a node sums is read off to its left.

Lengths are inches, x to the right, y upwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optuna_nas.plots.cell_layout import CellDrawing, cell_drawing
from optuna_nas.plots.cell_render import draw_cell
from optuna_nas.plots.style import FONT, GREY, INK, PANEL_GAP, TITLE_SIZE, new_figure
from optuna_nas.space import CellularSpace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from optuna_nas.space import Architecture


LETTER, LINE = 0.11, 0.22
"""Inches of a letter and of a line in a table of choices."""


def plot_architecture(architecture: Architecture) -> Figure:
    """Draw the cells of an architecture, one panel for every kind of cell, the first on top.

    Of a space without cells, draw the table of its choices.

    Ops are written out (`sep_conv_3x3`), or by their short labels in a cell where an edge keeps more than two. Colour
    tells the family: blue has weights, orange has none, green is the identity. Grey arrows hand a value on. What has no
    share in the output is pale and dashed. Touches no state of matplotlib, so threads may draw at once; the figure has
    an Agg canvas: `figure.savefig("cells.png")`, or `.pdf`, `.svg`.

    Args:
        architecture: Of any space; need not be connected.
    """
    if not isinstance(architecture.space.core, CellularSpace):
        return draw_choices(architecture)
    graph = architecture.cells
    return draw_drawings([cell_drawing(graph, cell) for cell in range(graph.n_cells)])


def draw_choices(architecture: Architecture) -> Figure:
    """Draw the choices of an architecture as a table, a row for every path."""
    rows = [(path, " + ".join(chosen) or "none") for path, chosen in architecture.choices]
    widths = [max(map(len, column)) * LETTER for column in zip(*rows, strict=True)]
    width, height = sum(widths) + 3 * LETTER, (len(rows) + 1) * LINE
    figure = new_figure(width, height, dpi=150)
    for number, row in enumerate(rows, 1):
        for text, left, colour in zip(row, (LETTER, widths[0] + 2 * LETTER), (GREY, INK), strict=True):
            place = (left / width, 1 - number * LINE / height)
            figure.text(*place, text, family=FONT, size=TITLE_SIZE, color=colour, va="center")
    return figure


def draw_drawings(drawings: Sequence[CellDrawing]) -> Figure:
    """Draw cells one below the other, see `plot_architecture`."""
    width = max(drawing.width for drawing in drawings)
    height = sum(drawing.height for drawing in drawings) + PANEL_GAP * (len(drawings) - 1)
    figure = new_figure(width, height, dpi=150)
    top = height
    for drawing in drawings:
        top -= drawing.height
        axes = figure.add_axes((0, top / height, drawing.width / width, drawing.height / height))
        draw_cell(drawing, axes)
        top -= PANEL_GAP
    return figure

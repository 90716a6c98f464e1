"""Plots of cells in two steps: layout (`cell_drawing`), then rendering (`plot_architecture`).

The layout is layered (Sugiyama, Tagawa and Toda 1981), with labels as vertices like nodes. Vertices are arranged in
columns. Within a column they are kept apart and arrows are horizontal; between columns arrows bend and may cross. No
arrow thus crosses a label or a node, however dense the cell. The label of an op is in the column before its target, so
that the ops that a node sums are to its left.

Lengths are in inches, x to the right, y upwards.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from optuna_nas.plots.cell_layout import CellDrawing, cell_drawing
from optuna_nas.plots.cell_render import LEGEND_ROW, draw_cell, draw_legend, legend_rows
from optuna_nas.plots.style import (
    FONT,
    FONT_SIZE,
    INK,
    MARGIN,
    PANEL_GAP,
    ROW,
    SLATE,
    TITLE_SIZE,
    new_figure,
    text_width,
)
from optuna_nas.space import CellularSpace
from optuna_nas.storage.plain import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from optuna_nas.space import Architecture


MIN_WIDTH = 3.2
"""Smallest width of cells with their legend, inches."""
LETTER, LINE = 0.11, 0.22
"""Width of a letter and height of a line in a table of choices, inches."""
CARD_WIDTH, CARD_DPI = 5.0, 96
"""Width in inches and dots per inch of a card: 480 pixels, of which letters have eleven."""
CARD_LETTERS = 7.0
"""Smallest size of letters of a drawing in a card, pixels; a drawing that would have smaller ones is left out."""


def plot_architecture(architecture: Architecture, *, names: bool = False) -> Figure:
    """Plot the cells of an architecture, one panel per kind of cell.

    A space without cells is shown as a table of its choices.

    Ops are shown by their short labels (`sep3` for `sep_conv_3x3`), as in `architecture.summary`. Colours and shapes
    show their family: ops with weights are blue and rounded, ops without orange and angular, the identity is green and
    oval. Grey arrows pass a value on. Nodes and arrows without an effect on the output are pale and dashed. A legend
    below says so.

    The function does not use matplotlib's global state and is thread-safe.

    Args:
        architecture: Architecture of any space; need not be connected.
        names: Whether ops are written with their names (`sep_conv_3x3`) instead of their short labels.

    Returns:
        Figure of matplotlib with an Agg canvas, for `figure.savefig("cells.png")`, or `.pdf`, `.svg`.

    Example:
        >>> from optuna_nas import published_cell
        >>> from optuna_nas.plots import plot_architecture
        >>> figure = plot_architecture(published_cell("DARTS_V2"))
        >>> len(figure.axes)  # a normal and a reduction cell
        2
    """
    if not isinstance(architecture.space.core, CellularSpace):
        return draw_choices(architecture)
    graph = architecture.cells
    return draw_drawings([cell_drawing(graph, cell, names=names) for cell in range(graph.n_cells)])


def draw_choices(architecture: Architecture) -> Figure:
    """Plot the choices of an architecture as a table with one row per path; nested choices are indented."""
    rows = [("  " * level + name, chosen) for level, name, chosen in architecture.space.outline(architecture)]
    widths = [max(map(len, column)) * LETTER for column in zip(*rows, strict=True)]
    width, height = sum(widths) + 3 * LETTER, (len(rows) + 1) * LINE
    figure = new_figure(width, height, dpi=150)
    for number, row in enumerate(rows, 1):
        for text, left, colour in zip(row, (LETTER, widths[0] + 2 * LETTER), (SLATE, INK), strict=True):
            place = (left / width, 1 - number * LINE / height)
            figure.text(
                *place, visible(text), family=FONT, size=TITLE_SIZE, color=colour, va="center", parse_math=False
            )
    return figure


def draw_card(architecture: Architecture) -> Figure:
    """Plot the choices of an architecture for a card: a table in as many columns as fit, in the parameters' words.

    Args:
        architecture: Architecture whose choices are options of its space.
    """
    space = architecture.space
    if isinstance(space.core, CellularSpace):
        rows = list(space.encode(architecture).items())
    else:
        rows = [
            ("\N{NO-BREAK SPACE}" * 2 * level + name, chosen) for level, name, chosen in space.outline(architecture)
        ]
    rows = [(visible(name), visible(chosen)) for name, chosen in rows]
    names, values = (max(map(text_width, column)) + MARGIN for column in zip(*rows, strict=True))
    n_columns = max(1, int((CARD_WIDTH - MARGIN) / (names + values)))
    n_lines = ceil(len(rows) / n_columns)
    width, height = max(CARD_WIDTH, MARGIN + names + values), n_lines * ROW + 2 * MARGIN
    figure = new_figure(width, height, dpi=CARD_DPI)
    for number, row in enumerate(rows):
        column, line = divmod(number, n_lines)
        left, y = MARGIN + column * (names + values), height - MARGIN - (line + 0.5) * ROW
        for text, x, colour in zip(row, (left, left + names), (SLATE, INK), strict=True):
            place = (x / width, y / height)
            figure.text(*place, text, family=FONT, size=FONT_SIZE, color=colour, va="center", parse_math=False)
    return figure


def fits_card(figure: Figure) -> bool:
    """Return whether a drawing of cells is legible in a card."""
    return FONT_SIZE / 72 * CARD_DPI * CARD_WIDTH / figure.get_figwidth() >= CARD_LETTERS


def draw_drawings(drawings: Sequence[CellDrawing]) -> Figure:
    """Draw cells one below the other, and a legend of the signs in them; see `plot_architecture`."""
    width = max(MIN_WIDTH, *(drawing.width for drawing in drawings))
    legend = legend_rows(drawings, width)
    height = sum(drawing.height for drawing in drawings) + PANEL_GAP * len(drawings) + LEGEND_ROW * len(legend)
    figure = new_figure(width, height, dpi=150)
    draw_legend(legend, figure)
    top = height
    for drawing in drawings:
        top -= drawing.height
        axes = figure.add_axes((0, top / height, drawing.width / width, drawing.height / height))
        draw_cell(drawing, axes)
        top -= PANEL_GAP
    return figure

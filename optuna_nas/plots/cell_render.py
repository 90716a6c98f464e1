"""Rendering of laid-out cells with matplotlib."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path

from optuna_nas.plots.style import (
    FAMILY_COLOURS,
    FONT,
    FONT_SIZE,
    GREY,
    HEAD,
    INK,
    MARGIN,
    PAPER,
    SLATE,
    TITLE_SIZE,
    text_width,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from optuna_nas.plots.cell_layout import Box, CellDrawing, DrawnEdge, Word


# -- the figure --------------------------------------------------------------------------------------------------------


def draw_cell(drawing: CellDrawing, axes: Axes) -> None:
    """Draw a cell into axes of its size."""
    axes.set_xlim(0, drawing.width)
    axes.set_ylim(0, drawing.height)
    axes.axis("off")
    axes.text(
        MARGIN,
        drawing.height - 0.08,
        drawing.title,
        family=FONT,
        size=TITLE_SIZE,
        weight="bold",
        color=INK,
        va="top",
        parse_math=False,
        usetex=False,
    )
    with_ops = {node.name for node in drawing.nodes if node.ops}
    # Arrows with ops are drawn over those without, live arrows over dead ones.
    for edge in sorted(drawing.edges, key=lambda edge: (bool(edge.ops), not edge.dead)):
        _draw_edge(edge, axes, reads=edge.target in with_ops)
    for node in drawing.nodes:
        families = {word.family for word in node.words if word.family}
        colour = FAMILY_COLOURS[families.pop()] if len(families) == 1 else INK
        _draw_box(node.box, axes, colour, node.dead, "#f3f3f3" if not node.ops else PAPER, 1.0)
        _draw_words(node.words, axes, node.dead)


def _draw_edge(edge: DrawnEdge, axes: Axes, reads: bool) -> None:
    families = {word.family for word in edge.words}
    colour = FAMILY_COLOURS[families.pop()] if len(families) == 1 else SLATE if families or reads else GREY
    line = _pale(colour) if edge.dead else colour
    width = edge.width or (1.2 if edge.ops else 1.0 if reads else 0.8)
    points = [*edge.route[:-1], (edge.route[-1][0] - HEAD[0] * 0.8, edge.route[-1][1])]
    corners = [points[0]]
    codes = [Path.MOVETO]
    for i, ((x0, y0), (x1, y1)) in enumerate(pairwise(points)):
        if i % 2:
            corners.append((x1, y1))
            codes.append(Path.LINETO)
        else:
            middle = (x0 + x1) / 2
            corners += [(middle, y0), (middle, y1), (x1, y1)]
            codes += [Path.CURVE4] * 3
    axes.add_patch(
        PathPatch(
            Path(corners, codes),
            fill=False,
            edgecolor=line,
            linewidth=width,
            linestyle=(0, (4, 2.5)) if edge.dead else "solid",
            capstyle="butt",
        )
    )
    x, y = edge.route[-1]
    length, half = HEAD
    axes.add_patch(Polygon([(x, y), (x - length, y + half), (x - length, y - half)], facecolor=line, linewidth=0))
    if edge.box:
        _draw_box(edge.box, axes, colour, edge.dead, PAPER, 0.8)
        _draw_words(edge.words, axes, edge.dead)


def _draw_box(box: Box, axes: Axes, colour: str, dead: bool, fill: str, linewidth: float) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (box.x - box.width / 2, box.y - box.height / 2),
            box.width,
            box.height,
            boxstyle="round,pad=0,rounding_size=0.05",
            facecolor=PAPER if dead else fill,
            edgecolor=_pale(colour) if dead else colour,
            linewidth=linewidth,
            linestyle=(0, (4, 2.5)) if dead else "solid",
        )
    )


def _draw_words(words: Sequence[Word], axes: Axes, dead: bool) -> None:
    for word in words:
        colour = FAMILY_COLOURS.get(word.family, INK)
        pale = dead or word.struck
        if word.struck:
            end = word.x + text_width(word.text.removesuffix(" +"))
            axes.plot([word.x, end], [word.y, word.y], color=_pale(colour), linewidth=0.9, solid_capstyle="butt")
        axes.text(
            word.x,
            word.y - 0.36 * FONT_SIZE / 72,  # half the height of a digit, from the centre of the row to its baseline
            word.text,
            family=FONT,
            size=FONT_SIZE,
            color=_pale(colour) if pale else colour,
            va="baseline",
            ha="left",
            parse_math=False,
            usetex=False,
        )


def _pale(colour: str) -> str:
    """Return the colour mixed half and half with white."""
    return "#" + "".join(f"{(int(colour[i : i + 2], 16) + 255) // 2:02x}" for i in (1, 3, 5))

"""Rendering of laid-out cells and of their legend with matplotlib."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path
from matplotlib.text import Text

from optuna_nas.plots.cell_layout import Box
from optuna_nas.plots.style import (
    FAMILY_COLOURS,
    FONT,
    FONT_SIZE,
    GREY,
    HEAD,
    INK,
    MARGIN,
    PAPER,
    ROW,
    SLATE,
    SPACE,
    TITLE_SIZE,
    text_width,
)
from optuna_nas.space.ops import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from optuna_nas.plots.cell_layout import CellDrawing, DrawnEdge, DrawnNode, Word

DASHES: tuple[float, Sequence[float]] = (0, (4, 2.5))
PASSED, DEAD, STRUCK, WIDTH = "passed", "dead", "struck", "width"
SIGNS = {
    **FAMILIES,
    PASSED: "value passed on",
    DEAD: "no effect on the output",
    STRUCK: "cut by the masks",
    WIDTH: "thicker: a heavier edge",
}
"""What the legend says of the families of ops, and of other signs."""
SIGN_WIDTH, SIGN_GAP, LEGEND_ROW = 0.34, 0.22, 0.22
"""Width of a sign, space before the next one, height of a row of the legend, inches."""


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
        family = families.pop() if len(families) == 1 else ""
        axes.add_patch(_box(node.box, family, node.dead, "#f3f3f3" if not node.ops else PAPER, 1.0, INK))
        _draw_words(node.words, axes, node.dead)


def _draw_edge(edge: DrawnEdge, axes: Axes, reads: bool) -> None:
    families = {word.family for word in edge.words}
    mixed = SLATE if families or reads else GREY
    family = families.pop() if len(families) == 1 else ""
    colour = FAMILY_COLOURS.get(family, mixed)
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
            linestyle=DASHES if edge.dead else "solid",
            capstyle="butt",
        )
    )
    x, y = edge.route[-1]
    length, half = HEAD
    axes.add_patch(Polygon([(x, y), (x - length, y + half), (x - length, y - half)], facecolor=line, linewidth=0))
    if edge.box:
        axes.add_patch(_box(edge.box, family, edge.dead, PAPER, 0.8, mixed))
        _draw_words(edge.words, axes, edge.dead)


def _box(box: Box, family: str, dead: bool, fill: str, linewidth: float, other: str) -> FancyBboxPatch:
    """Return the box of a family of ops, told apart by shape as well as by colour; `other` is that without one."""
    colour = FAMILY_COLOURS.get(family, other)
    rounding = {"free": 0.0, "identity": box.height / 2}.get(family, 0.03)
    return FancyBboxPatch(
        (box.x - box.width / 2, box.y - box.height / 2),
        box.width,
        box.height,
        boxstyle=f"round,pad=0,rounding_size={rounding}" if rounding else "square,pad=0",
        facecolor=PAPER if dead else fill,
        edgecolor=_pale(colour) if dead else colour,
        linewidth=linewidth,
        linestyle=DASHES if dead else "solid",
    )


def _draw_words(words: Sequence[Word], axes: Axes, dead: bool) -> None:
    for word in words:
        colour = FAMILY_COLOURS.get(word.family, INK)
        pale = dead or word.struck
        if word.struck:
            end = word.x + text_width(word.text.removesuffix(" +"))
            axes.plot([word.x, end], [word.y, word.y], color=_pale(colour), linewidth=0.9, solid_capstyle="butt")
        axes.add_artist(_text(word.x, word.y, word.text, _pale(colour) if pale else colour))


def _text(x: float, y: float, text: str, colour: str) -> Text:
    return Text(
        x,
        y - 0.36 * FONT_SIZE / 72,  # half the height of a digit, from the centre of the row to its baseline
        text,
        family=FONT,
        size=FONT_SIZE,
        color=colour,
        va="baseline",
        ha="left",
        parse_math=False,
        usetex=False,
    )


def _pale(colour: str) -> str:
    """Return the colour mixed half and half with white."""
    return "#" + "".join(f"{(int(colour[i : i + 2], 16) + 255) // 2:02x}" for i in (1, 3, 5))


# -- the legend --------------------------------------------------------------------------------------------------------


def signs_of(drawings: Sequence[CellDrawing]) -> list[str]:
    """Return the signs that drawings use, keys of `SIGNS`, in its order.

    Example:
        >>> from optuna_nas import published_cell
        >>> from optuna_nas.plots.cell_layout import cell_drawing
        >>> from optuna_nas.plots.cell_render import signs_of
        >>> signs_of([cell_drawing(published_cell("DARTS_V2").cells, 0)])
        ['weights', 'identity', 'passed']
    """
    edges = [edge for drawing in drawings for edge in drawing.edges]
    parts: list[DrawnNode | DrawnEdge] = [*edges, *(node for drawing in drawings for node in drawing.nodes)]
    used = {word.family for part in parts for word in part.words}
    used |= {
        sign
        for sign, is_used in (
            (PASSED, any(not edge.ops for edge in edges)),
            (DEAD, any(part.dead for part in parts)),
            (STRUCK, any(word.struck for edge in edges for word in edge.words)),
            (WIDTH, any(edge.width for edge in edges)),
        )
        if is_used
    }
    return [sign for sign in SIGNS if sign in used]


def legend_rows(drawings: Sequence[CellDrawing], width: float) -> list[list[tuple[float, str]]]:
    """Return rows of pairs (left end in inches, sign) of a legend of a width in inches."""
    rows: list[list[tuple[float, str]]] = []
    x = width
    for sign in signs_of(drawings):
        own = SIGN_WIDTH + SPACE + text_width(SIGNS[sign])
        if x + own > width - MARGIN:
            rows.append([])
            x = MARGIN
        rows[-1].append((x, sign))
        x += own + SIGN_GAP
    return rows


def draw_legend(rows: Sequence[Sequence[tuple[float, str]]], figure: Figure) -> None:
    """Draw the rows of a legend at the bottom of a figure, without axes."""
    for number, row in enumerate(reversed(rows)):
        y = MARGIN / 2 + (number + 0.5) * LEGEND_ROW
        for x, sign in row:
            middle = x + SIGN_WIDTH / 2
            text = _text(x + SIGN_WIDTH + SPACE, y, SIGNS[sign], INK)
            artists: list[Artist] = [text]
            if sign in FAMILY_COLOURS:
                artists.append(_box(Box(middle, y, SIGN_WIDTH - SPACE, ROW), sign, False, PAPER, 0.8, INK))
            elif sign == STRUCK:
                artists.append(_text(x, y, "op", _pale(INK)))
                artists.append(Line2D([x, x + text_width("op")], [y, y], color=_pale(INK), linewidth=0.9))
            else:
                width, colour = {PASSED: (0.8, GREY), DEAD: (1.2, _pale(SLATE)), WIDTH: (3.5, SLATE)}[sign]
                line = DASHES if sign == DEAD else (0, ())
                artists.append(
                    Line2D([x, x + SIGN_WIDTH - SPACE], [y, y], color=colour, linewidth=width, linestyle=line)
                )
            for artist in artists:
                figure.add_artist(artist)
                artist.set_transform(figure.dpi_scale_trans)

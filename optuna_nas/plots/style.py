"""Fonts, sizes and colours of plots, and empty figures with them; imports matplotlib on first use."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from optuna_nas.storage.plain import label

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


FONT = "DejaVu Sans"  # part of matplotlib, so that drawings have the same size on every machine
FONT_SIZE = 8.5  # points
TITLE_SIZE = 11.0
LEGEND_FONT = {"family": FONT, "size": TITLE_SIZE - 2}

# Lengths in inches:
ROW = 0.165  # height of a row of text
SPACE = 0.045  # space between two words
PADDING = 0.06  # space between a text and the edge of its box
BETWEEN = 0.1  # space between two vertices of a column
PORT = 0.1  # space between two arrows at a node
BEND = 0.32, 0.3  # space between two columns: minimum, and addition per inch of an arrow's vertical extent
MARGIN, TITLE_ROOM, PANEL_GAP = 0.12, 0.32, 0.12
HEAD = 0.09, 0.035  # length and half the width of an arrowhead

INK, SLATE, GREY, PAPER = "#333333", "#5c5c5c", "#a0a0a0", "#ffffff"
BLUE, VERMILION, GREEN = "#0064a4", "#b84a00", "#007a5a"
"""Colours of data: those of Okabe and Ito's colour-blind-safe palette, darkened for text on white. In grey they are
alike, so that a second sign (shape, dashes, marker) always goes with them."""
FAMILY_COLOURS = {"weights": BLUE, "free": VERMILION, "identity": GREEN}


# -- text --------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def text_width(text: str) -> float:
    """Return the width of a text in inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=FONT, size=FONT_SIZE)
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return float(width) / 72


def row_width(row: Sequence[tuple[str, str]]) -> float:
    """Return the width of a row of words in inches, including the spaces between them."""
    return sum(text_width(text) + SPACE for text, _ in row) - SPACE


# -- figures -----------------------------------------------------------------------------------------------------------


def new_figure(width: float, height: float, dpi: float = 120, layout: Literal["constrained"] | None = None) -> Figure:
    """Return an empty figure with its own Agg canvas, independent of matplotlib's global state and thus thread-safe.

    Args:
        width: Width in inches.
        height: Height in inches.
        dpi: Pixels per inch on a screen.
        layout: `constrained` to make space for labels; None to keep the positions of axes.

    Example:
        >>> from optuna_nas.plots.style import new_figure
        >>> new_figure(4.0, 3.0).get_size_inches().tolist()
        [4.0, 3.0]
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, facecolor=PAPER, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def new_plot(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure with one pair of axes and space for its labels.

    Args:
        width: Width in inches.
        height: Height in inches.

    Example:
        >>> from optuna_nas.plots.style import label_axes, new_plot
        >>> figure, axes = new_plot(4.0, 3.0)
        >>> label_axes(axes, "accuracy", "epoch", "fraction")
        >>> axes.get_xlabel()
        'epoch'
    """
    figure = new_figure(width, height, layout="constrained")
    return figure, figure.add_subplot()


def label_axes(axes: Axes, title: str | None, x: str, y: str, *, engineering: bool = False) -> None:
    """Set title and labels of axes, and remove the lines above and to the right.

    Args:
        axes: Axes to label.
        title: Title above the axes, None for none.
        x: Label of the horizontal axis.
        y: Label of the vertical axis.
        engineering: Whether large numbers of the horizontal axis are written as 10k, 2M.
    """
    axes.set_facecolor(PAPER)
    if title is not None:
        axes.set_title(label(title), color=INK, family=FONT, size=TITLE_SIZE, loc="left")
    if engineering:
        from matplotlib.ticker import EngFormatter

        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel(label(x), color=INK, family=FONT)
    axes.set_ylabel(label(y), color=INK, family=FONT)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)

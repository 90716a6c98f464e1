"""Fonts, sizes and colours of drawings."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

if TYPE_CHECKING:
    from collections.abc import Sequence


FONT = "DejaVu Sans"  # comes with matplotlib, so that a drawing has the same size on every machine
FONT_SIZE = 8.5  # points
TITLE_SIZE = 11.0

ROW = 0.165  # height of a row of text
SPACE = 0.045  # between two words
PADDING = 0.06  # between the text and the edge of its box
BETWEEN = 0.1  # between two vertices of a column
PORT = 0.1  # between two arrows at a node
BEND = 0.32, 0.3  # width of the room between two columns: at least, and for each inch that an arrow climbs there
MARGIN, TITLE_ROOM, PANEL_GAP = 0.12, 0.32, 0.12
HEAD = 0.09, 0.035  # length and half the width of an arrowhead

INK, SLATE, GREY, PAPER = "#333333", "#5c5c5c", "#a0a0a0", "#ffffff"
FAMILY_COLOURS = {"weights": "#0064a4", "free": "#b84a00", "identity": "#007a5a"}
"""Blue, vermilion and green of Okabe and Ito's colour-blind-safe palette, darkened until text is read well on white."""


# -- text --------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def text_width(text: str) -> float:
    """Return the width of a text in inches."""
    font = FontProperties(family=FONT, size=FONT_SIZE)
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return float(width) / 72


def row_width(row: Sequence[tuple[str, str]]) -> float:
    """Return the width of a row of words in inches, spaces between them included."""
    return sum(text_width(text) + SPACE for text, _ in row) - SPACE

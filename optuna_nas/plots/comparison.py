"""Plot of the best value of several strategies against the spent budget."""

from __future__ import annotations

import warnings
from itertools import accumulate
from textwrap import wrap
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.lines import Line2D
from optuna.study import StudyDirection

from optuna_nas.plots.style import (
    FONT,
    FONT_SIZE,
    GREY,
    INK,
    LEGEND_FONT,
    MARGIN,
    SLATE,
    TITLE_SIZE,
    label_axes,
    new_figure,
    new_plot,
    text_width,
)
from optuna_nas.storage.plain import label, visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#555555")
"""Okabe and Ito's colour-blind-safe palette."""
LINES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 3)))
"""Line styles beside the colours, for prints in grey."""

GAP, LINE, TITLE_LINE, TITLE_LETTER = 0.07, 0.19, 0.24, 0.1
"""Space beside a number, heights of a row and of a line of the title, width of a letter of the title, inches."""
HEADING_LETTERS, TABLE_DPI = 9, 100


class AnytimeBand(NamedTuple):
    """Best value so far of a strategy, for S seeds at T amounts of budget.

    Args:
        strategy: Name of the strategy.
        spent: Spent budgets, ascending, shape (T,).
        best: Best values, shape (S, T); NaN before the first trial.
    """

    strategy: str
    spent: NDArray[np.float64]
    best: NDArray[np.float64]

    def mean_and_error(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the mean over seeds and its standard error, shape (T,) each; NaN where no seed has a value."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # numpy warns of columns without any value
            mean, spread = np.nanmean(self.best, 0), np.nanstd(self.best, 0)
        return mean, spread / np.sqrt(np.maximum(1, np.isfinite(self.best).sum(0)))


def draw_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Figure:
    """Draw a table of strategies: names to the left, numbers to the right, as wide as a tile of MLflow's grid takes.

    Args:
        title: Sentence above the table, broken into lines.
        headings: Headings of the columns, which are broken into lines.
        rows: Texts of the rows, best first.
    """
    broken = [wrap(label(heading, parse_math=False), HEADING_LETTERS) for heading in headings]
    texts = [[label(text, parse_math=False) for text in row] for row in rows]
    widths = [
        max(map(text_width, [*words, *(row[place] for row in texts)])) + 2 * GAP for place, words in enumerate(broken)
    ]
    ends = [MARGIN + end for end in accumulate(widths)]
    width = ends[-1] + MARGIN
    title_lines = wrap(visible(title), max(20, int(width / TITLE_LETTER)))
    n_heading = max(map(len, broken))
    height = 2 * MARGIN + TITLE_LINE * len(title_lines) + LINE * (n_heading + len(rows)) + 2 * GAP
    figure = new_figure(width, height, dpi=TABLE_DPI)

    def write(text: str, x: float, y: float, **style: Any) -> None:
        style = {"size": FONT_SIZE, "color": INK, "family": FONT, "va": "center", **style}
        figure.text(x / width, 1 - y / height, text, parse_math=False, **style)

    def write_row(row: Sequence[str], y: float, **style: Any) -> None:
        for place, text in enumerate(row):
            x, side = (MARGIN, "left") if place == 0 else (ends[place], "right")
            write(text, x, y, ha=side, **style)

    y = MARGIN
    for line in title_lines:
        write(line, MARGIN, y + TITLE_LINE / 2, size=TITLE_SIZE, weight="bold")
        y += TITLE_LINE
    for number in range(n_heading):  # short headings stand on the last line
        write_row(
            [["", *lines][max(0, number + 1 - n_heading + len(lines))] for lines in broken], y + LINE / 2, color=SLATE
        )
        y += LINE
    y += GAP
    figure.add_artist(Line2D([MARGIN / width, 1 - MARGIN / width], [1 - y / height] * 2, color=GREY, linewidth=0.8))
    y += GAP
    for row in texts:
        write_row(row, y + LINE / 2)
        y += LINE
    return figure


def draw_bands(
    bands: Sequence[AnytimeBand], spent_name: str, value_name: str, direction: StudyDirection = StudyDirection.MAXIMIZE
) -> Figure:
    """Plot the mean of every strategy with a band of one standard error.

    Args:
        bands: Strategies, best first.
        spent_name: Unit of the budget: `trials`, `seconds` or `epochs`.
        value_name: Label of the vertical axis.
        direction: Direction of the values; the worst 5 % at the start are cut off.
    """
    figure, axes = new_plot(6.4, 4.0)
    shown: list[float] = []
    for number, band in enumerate(bands):
        look, (mean, error) = number % len(COLOURS), band.mean_and_error()
        colour, line = COLOURS[look], LINES[look]
        axes.step(band.spent, mean, where="post", color=colour, linestyle=line, linewidth=2, label=label(band.strategy))
        axes.fill_between(band.spent, mean - error, mean + error, color=colour, alpha=0.18, linewidth=0, step="post")
        shown += mean[np.isfinite(mean)].tolist()
    if shown:
        is_maximized = direction == StudyDirection.MAXIMIZE
        low, high = np.quantile(shown, (0.05, 1) if is_maximized else (0, 0.95))
        below, above = (0.05, 0.1) if is_maximized else (0.1, 0.05)
        axes.set_ylim(low - below * (high - low + 1e-9), high + above * (high - low + 1e-9))
    columns = min(4, max(1, len(bands)))
    figure.legend(frameon=False, loc="outside lower center", ncols=columns, prop=LEGEND_FONT)
    label_axes(axes, None, f"{spent_name} spent", value_name, engineering=True)
    return figure

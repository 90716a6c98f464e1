"""Plots of a learned distribution over architectures: curves, heat map, and the most likely cells.

E edges (paths of the space), O options of an edge, T steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle

from optuna_nas.oneshot.snas.distribution import architecture_of
from optuna_nas.plots.cell_layout import cell_drawing
from optuna_nas.plots.cell_render import LEGEND_ROW, draw_cell, draw_legend, legend_rows
from optuna_nas.plots.progress import COST_NAMES
from optuna_nas.plots.style import BLUE, FONT, GREEN, GREY, INK, SLATE, TITLE_SIZE, VERMILION, new_figure, text_width
from optuna_nas.space import CellularSpace
from optuna_nas.space.cost import COSTS
from optuna_nas.space.ops import NONE, choosable_ops, get_op
from optuna_nas.storage.plain import label, shortened

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from optuna_nas.oneshot.snas.distribution import DistributionRecord
    from optuna_nas.space import Architecture, Space

MAX_ROWS = 8  # largest number of options of an edge that are shown, those most probable at the end
MAX_OPTION = 18  # largest number of characters of an option
SIZE = 8.0  # points of all labels; a page of 7.5 inches shows the figure without making it smaller
WIDTH, PAGE = 7.5, 9.3  # inches
ROW, GAP, SCALE, HEADER = (
    0.125,
    0.1,
    2.4,
    1.35,
)  # height of a row, space beside a panel, width of the colour scale, inches; name of an edge, rows
CURVE_WIDTH, CURVE_HEIGHT = 3.05, 1.15
COLOUR_MAP, LOWEST = "Blues", 1 / 32
"""Colours go with the logarithm of a probability, so that 1/8 and 1/4 are as far apart as 1/4 and 1/2; what is below
1/32 is as pale as that."""


@dataclass(frozen=True)
class HeatMap:
    """Probabilities over time of the options of one kind of cell.

    Args:
        kind: Name of the kind of cell.
        rows: Pair (path, option) of every row, with edges in the order of the space.
        steps: Steps of the records, shape (T,).
        probabilities: Probabilities in [0, 1], shape (rows, T).
    """

    kind: str
    rows: tuple[tuple[str, str], ...]
    steps: NDArray[np.int64]
    probabilities: NDArray[np.float64]


def heat_maps(space: Space, records: Sequence[DistributionRecord]) -> list[HeatMap]:
    """Return the heat map of every kind of cell, with at most the 8 options of an edge most probable at the end."""
    steps = np.array([record.step for record in records])
    table = np.stack([record.probabilities for record in records], axis=-1)  # (E, O, T)
    maps = []
    edges = enumerate((path, list(options)) for path, options in space.options().items())
    for kind, group in groupby(edges, key=lambda edge: space.group(edge[1][0])):
        rows, values = [], []
        for number, (path, options) in group:
            likeliest = np.argsort(-table[number, : len(options), -1], kind="stable")[:MAX_ROWS]
            for option in sorted(likeliest.tolist()):
                rows.append((path, options[option]))
                values.append(table[number, option])
        maps.append(HeatMap(kind, tuple(rows), steps, np.array(values)))
    return maps


def likeliest_over_time(
    space: Space, records: Sequence[DistributionRecord]
) -> list[tuple[DistributionRecord, Architecture]]:
    """Return the records at which the most likely architecture changed, without records of a uniform distribution."""
    changes: list[tuple[DistributionRecord, Architecture]] = []
    sizes = [len(options) for options in space.options().values()]
    for record in records:
        if all(np.ptp(row[:size]) < 1e-6 for row, size in zip(record.probabilities, sizes, strict=True)):
            continue
        architecture = architecture_of(space, record.probabilities.argmax(axis=1))
        if not changes or changes[-1][1] != architecture:
            changes.append((record, architecture))
    return changes


def plot_distribution(space: Space, records: Sequence[DistributionRecord]) -> Figure:
    """Plot entropy and expected costs over the steps, and a heat map of the probabilities below.

    The number at the end of a row is the probability at the last step.

    Args:
        space: Search space of the distribution.
        records: Records of the distribution, `snas.records` or `distribution_records(study)`; at least one.

    Returns:
        Figure of matplotlib.

    Raises:
        ValueError: There are no records.

    Example:
        >>> import optuna
        >>> from optuna_nas import SNASSampler, distribution_records, nasbench201_space
        >>> from optuna_nas.plots import plot_distribution
        >>> space = nasbench201_space()
        >>> study = optuna.create_study(direction="maximize", sampler=SNASSampler(space, seed=0))
        >>> study.optimize(lambda trial: str(space.suggest(trial)).count("conv"), n_trials=6)
        >>> figure = plot_distribution(space, distribution_records(study))
        >>> figure.axes[0].get_title(loc="left")
        'entropy of a choice, nats'
    """
    if not records:
        raise ValueError("`records` must hold at least one record but is empty; fit the SNAS, or run some trials.")
    return _figure([strip for _, strips in _parts(space, records) for strip in strips])


def distribution_pages(space: Space, records: Sequence[DistributionRecord]) -> list[tuple[str, Callable[[], Figure]]]:
    """Return `plot_distribution` in pages: what each shows and what draws it, the curves, then every kind of cell.

    Args:
        space: Search space of the distribution.
        records: Records of the distribution; at least one.
    """
    return [(shows, partial(_figure, strips)) for shows, strips in _parts(space, records)]


def plot_most_likely(space: Space, records: Sequence[DistributionRecord], moments: int = 6) -> Figure:
    """Plot the most likely cells over time, with one row per change.

    Args:
        space: Search space of the distribution.
        records: Records of the distribution, `snas.records` or `distribution_records(study)`; at least one.
        moments: Largest number of changes to show, at least 1; the last one is always shown.

    Returns:
        Figure of matplotlib.

    Raises:
        ValueError: There are no records, or `moments` is below 1.

    Example:
        >>> import optuna
        >>> from optuna_nas import SNASSampler, distribution_records, nasbench201_space
        >>> from optuna_nas.plots import plot_most_likely
        >>> space = nasbench201_space()
        >>> study = optuna.create_study(direction="maximize", sampler=SNASSampler(space, seed=0))
        >>> study.optimize(lambda trial: str(space.suggest(trial)).count("conv"), n_trials=6)
        >>> figure = plot_most_likely(space, distribution_records(study), moments=1)
        >>> len(figure.axes)
        1
    """
    if not records or moments < 1:
        raise ValueError(f"`records` and `moments` must not be empty but are {len(records)} and {moments}.")
    changes = likeliest_over_time(space, records)
    changes = changes or [(records[-1], architecture_of(space, records[-1].probabilities.argmax(axis=1)))]
    if len(changes) > moments:
        changes = [changes[i] for i in np.linspace(len(changes) - 1, 0, moments).round().astype(int)[::-1]]
    rows = [
        (record.step, [cell_drawing(architecture.cells, cell) for cell in range(len(architecture.cells.outputs))])
        for record, architecture in changes
    ]
    title = 0.3
    width = max(sum(drawing.width for drawing in drawings) for _, drawings in rows)
    legend = legend_rows([drawing for _, drawings in rows for drawing in drawings], width)
    height = sum(title + max(drawing.height for drawing in drawings) for _, drawings in rows) + LEGEND_ROW * len(legend)
    figure = new_figure(width, height)
    draw_legend(legend, figure)
    top = height
    for step, drawings in rows:
        figure.text(
            0.1 / width, (top - 0.06) / height, f"from step {step:,}", family=FONT, size=TITLE_SIZE, color=INK, va="top"
        )
        top -= title
        left = 0.0
        for drawing in drawings:
            bottom = (top - drawing.height) / height
            draw_cell(drawing, figure.add_axes((left / width, bottom, drawing.width / width, drawing.height / height)))
            left += drawing.width
        top -= max(drawing.height for drawing in drawings)
    return figure


# -- strips of a figure, one below the other ---------------------------------------------------------------------------


class _Strip(Protocol):
    """Part of a figure over its whole width, of a height in inches."""

    @property
    def height(self) -> float: ...

    def draw(self, place: _Place) -> None: ...


class _Place(NamedTuple):
    """Place of a strip: lengths are inches from its upper left corner."""

    figure: Figure
    top: float

    def panel(self, left: float, top: float, width: float, height: float) -> Axes:
        full_width, full_height = self.figure.get_size_inches()
        bottom = full_height - self.top - top - height
        return self.figure.add_axes((left / full_width, bottom / full_height, width / full_width, height / full_height))


def _parts(space: Space, records: Sequence[DistributionRecord]) -> list[tuple[str, list[_Strip]]]:
    parts: list[tuple[str, list[_Strip]]] = [("Entropy and expected costs over time", [_Curves(records)])]
    for heat in heat_maps(space, records):
        of = f" of {heat.kind}" if heat.kind else ""
        parts += [(f"Probabilities{of} over time", [_Map(space, page)]) for page in _pages(space, heat)]
    return parts


def _figure(strips: Sequence[_Strip]) -> Figure:
    figure = new_figure(WIDTH, sum(strip.height for strip in strips))
    top = 0.0
    for strip in strips:
        strip.draw(_Place(figure, top))
        top += strip.height
    return figure


@dataclass(frozen=True)
class _Curves:
    """Entropy on the left, expected costs on the right if all records have them."""

    records: Sequence[DistributionRecord]

    @property
    def costs(self) -> list[str]:
        return [name for name in COSTS if all(name in record.metrics for record in self.records)]

    @property
    def top(self) -> float:
        return 0.3 + 0.17 * len(self.costs)

    @property
    def height(self) -> float:
        return self.top + CURVE_HEIGHT + 0.5

    def draw(self, place: _Place) -> None:
        steps = np.array([record.step for record in self.records])
        axes = place.panel(0.45, self.top, CURVE_WIDTH, CURVE_HEIGHT)
        axes.plot(steps, [record.metrics["entropy"] for record in self.records], color=BLUE, linewidth=1.5)
        axes.set_ylim(bottom=0)
        _label_curve(axes, "entropy of a choice, nats", steps)
        if not self.costs:
            return
        axes = place.panel(WIDTH - CURVE_WIDTH - GAP, self.top, CURVE_WIDTH, CURVE_HEIGHT)
        for name, colour, line in zip(COSTS, (VERMILION, GREEN, SLATE), ("-", "--", ":"), strict=True):
            if name in self.costs:
                values = np.array([record.metrics[name] for record in self.records])
                says = f"{COST_NAMES[name]}, {_short(values[-1])} at the end"
                axes.plot(steps, values / values[0], color=colour, linestyle=line, linewidth=1.5, label=says)
        axes.legend(
            fontsize=SIZE, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, labelspacing=0.2
        )
        _label_curve(axes, "expected cost / first", steps, above=len(self.costs))


@dataclass(frozen=True)
class _Map:
    """Heat map with the edges in two columns, every edge under its name, and the colour scale above."""

    space: Space
    heat: HeatMap

    top = 0.62

    @property
    def columns(self) -> list[HeatMap]:
        edges = _edges(self.heat)
        half = -(-len(edges) // 2)
        return [_joined(self.heat, some) for some in (edges[:half], edges[half:]) if some]

    @property
    def height(self) -> float:
        return self.top + max(map(_column_height, self.columns)) + 0.45

    def draw(self, place: _Place) -> None:
        own = {op: get_op(op).label for op in choosable_ops() if op != NONE}
        names = own if isinstance(self.space.core, CellularSpace) else {}
        words = {option: shortened(names.get(option, str(option)), MAX_OPTION) for _, option in self.heat.rows}
        label_width = max(map(text_width, words.values())) * SIZE / 8.5 + 0.1
        for number, column in enumerate(self.columns):
            left = number * WIDTH / 2 + label_width + GAP
            width = WIDTH / 2 - label_width - 2 * GAP - 0.3
            axes = place.panel(left, self.top, width, _column_height(column))
            image = _draw_column(axes, column, words, label_width / width)
        scale = place.panel(GAP + 0.9, 0.27, SCALE, 0.1)
        bar = place.figure.colorbar(image, cax=scale, orientation="horizontal")
        ticks = [LOWEST * 2**power for power in range(6)]
        bar.set_ticks(ticks, labels=[f"\u2264{Fraction(LOWEST)}", *(str(Fraction(tick)) for tick in ticks[1:])])
        bar.ax.minorticks_off()
        bar.ax.tick_params(labelsize=SIZE, length=2, pad=1)
        bar.ax.text(-0.04, 0.5, "probability", transform=bar.ax.transAxes, fontsize=SIZE, ha="right", va="center")
        title = place.panel(0, 0, 1, 0.2)
        title.axis("off")
        title.text(
            GAP, 0.5, label(self.heat.kind), fontsize=TITLE_SIZE, weight="bold", family=FONT, va="center", color=INK
        )


def _edges(heat: HeatMap) -> list[list[int]]:
    """Return the rows of every edge."""
    return [[row for row, _ in rows] for _, rows in groupby(enumerate(heat.rows), key=lambda row: row[1][0])]


def _joined(heat: HeatMap, edges: Sequence[Sequence[int]]) -> HeatMap:
    """Return the heat map of some edges."""
    rows = [row for edge in edges for row in edge]
    return HeatMap(heat.kind, tuple(heat.rows[row] for row in rows), heat.steps, heat.probabilities[rows])


def _column_height(heat: HeatMap) -> float:
    return (len(heat.rows) + HEADER * len(_edges(heat))) * ROW


def _pages(space: Space, heat: HeatMap) -> list[HeatMap]:
    """Return the heat map in parts whose two columns fit a page."""
    pages: list[list[list[int]]] = [[]]
    for edge in _edges(heat):
        if pages[-1] and _Map(space, _joined(heat, [*pages[-1], edge])).height > PAGE:
            pages.append([])
        pages[-1].append(edge)
    return [_joined(heat, page) for page in pages]


def _label_curve(axes: Axes, title: str, steps: NDArray[np.int64], above: int = 0) -> None:
    """Label a panel of curves, with space for rows of a legend above it."""
    axes.set_xlim(steps[0] - 0.5, steps[-1] + 0.5)
    axes.set_title(title, fontsize=SIZE + 1, loc="left", pad=4 + 12 * above, color=INK)
    axes.set_xlabel("step", fontsize=SIZE, labelpad=1)
    axes.tick_params(labelsize=SIZE, length=2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _draw_column(axes: Axes, heat: HeatMap, words: Mapping[str, str], indent: float) -> QuadMesh:
    """Draw the edges of a column; `indent` is the width of the labels as a fraction of that of the axes."""
    steps = heat.steps
    borders = np.concatenate([[steps[0] - 0.5], (steps[1:] + steps[:-1]) / 2, [steps[-1] + 0.5]])
    blocks, names, places = [], [], []
    beside = axes.get_yaxis_transform()
    text: dict[str, Any] = {"fontsize": SIZE, "family": FONT, "va": "center", "color": INK, "transform": beside}
    heights: list[float] = []
    top = 0.0
    for rows in _edges(heat):
        axes.text(-indent, top + HEADER / 2, label(heat.rows[rows[0]][0]), weight="bold", **text)
        blocks += [np.full((1, len(steps)), np.nan), heat.probabilities[rows]]
        heights += [HEADER, *(1.0 for _ in rows)]
        for number, row in enumerate(rows):
            places.append(top + HEADER + number + 0.5)
            axes.text(1.02, places[-1], f"{heat.probabilities[row, -1]:.2f}", **text)
            names.append(label(words[heat.rows[row][1]]))
        frame: dict[str, Any] = {"fill": False, "edgecolor": GREY, "linewidth": 0.6, "clip_on": False, "zorder": 3}
        axes.add_patch(Rectangle((0, top + HEADER), 1, len(rows), transform=beside, **frame))
        top += HEADER + len(rows)
    image = axes.pcolormesh(
        borders,
        np.cumsum([0.0, *heights]),
        np.ma.masked_invalid(np.concatenate(blocks).clip(LOWEST, 1)),
        cmap=COLOUR_MAP,
        norm=LogNorm(LOWEST, 1),
        rasterized=True,
    )
    axes.set_ylim(top, 0)
    axes.set_xlim(borders[0], borders[-1])
    axes.set_yticks(places, names, fontsize=SIZE, family=FONT)
    axes.tick_params(axis="y", length=0, pad=2)
    axes.tick_params(axis="x", labelsize=SIZE, length=2)
    axes.set_xlabel("step", fontsize=SIZE, labelpad=1)
    axes.spines[:].set_visible(False)
    return image


def _short(value: float) -> str:
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.3g}"

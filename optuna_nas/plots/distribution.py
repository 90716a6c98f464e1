"""Plots of a learned distribution over architectures: curves, heat map, and the most likely cells.

E edges (paths of the space), O options of an edge, T steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import PowerNorm

from optuna_nas.oneshot.snas.distribution import architecture_of
from optuna_nas.plots.cell_layout import cell_drawing
from optuna_nas.plots.cell_render import draw_cell
from optuna_nas.plots.progress import COST_NAMES
from optuna_nas.plots.style import FONT, INK, PAPER, TITLE_SIZE, new_figure
from optuna_nas.space.cost import COSTS
from optuna_nas.storage.plain import label

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from optuna_nas.oneshot.snas.distribution import DistributionRecord
    from optuna_nas.space import Architecture, Space

MAX_ROWS = 8  # largest number of options of an edge that are shown, those most probable at the end
ROW, MARGIN = 0.115, 0.35  # inches
PANEL_WIDTH, CURVE_HEIGHT, CURVE_GAP = 5.2, 1.15, 0.45
COLOUR_MAP = "Blues"


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
    maps = heat_maps(space, records)
    costs = [name for name in COSTS if all(name in record.metrics for record in records)]
    n_curves = 1 + bool(costs)
    label_width = 1.75
    width = len(maps) * (PANEL_WIDTH + label_width) + MARGIN
    map_height = max(len(heat.rows) for heat in maps) * ROW
    height = map_height + n_curves * (CURVE_HEIGHT + CURVE_GAP) + 1.1
    figure = new_figure(width, height)

    def panel(left: float, top: float, panel_width: float, panel_height: float) -> Axes:
        return figure.add_axes(
            (left / width, 1 - (top + panel_height) / height, panel_width / width, panel_height / height)
        )

    steps = maps[0].steps
    limits = (float(steps[0]) - 0.5, float(steps[-1]) + 0.5)
    axes = panel(label_width, 0.35, PANEL_WIDTH, CURVE_HEIGHT)
    axes.plot(steps, [record.metrics["entropy"] for record in records], color="#0064a4", linewidth=1.5)
    axes.set_ylim(bottom=0)
    _label_curve(axes, "entropy of a choice, nats", limits)
    if costs:
        axes = panel(label_width, 0.35 + CURVE_HEIGHT + CURVE_GAP, PANEL_WIDTH, CURVE_HEIGHT)
        for name, colour, line in zip(COSTS, ("#b84a00", "#007a5a", "#5c5c5c"), ("-", "--", ":"), strict=True):
            if name in costs:
                values = np.array([record.metrics[name] for record in records])
                says = f"{COST_NAMES[name]}, {_short(values[-1])} at the end"
                axes.plot(steps, values / values[0], color=colour, linestyle=line, linewidth=1.5, label=says)
        axes.legend(fontsize=7, frameon=False, loc="best")
        _label_curve(axes, "expected cost / first", limits)
    top = 0.35 + n_curves * (CURVE_HEIGHT + CURVE_GAP) + 0.15
    for number, heat in enumerate(maps):
        left = number * (PANEL_WIDTH + label_width) + label_width
        image = _draw_heat_map(panel(left, top, PANEL_WIDTH, len(heat.rows) * ROW), heat, limits)
    bar = figure.colorbar(
        image, cax=panel(label_width + PANEL_WIDTH - 1.6, top - 0.17, 1.6, 0.07), orientation="horizontal"
    )
    bar.ax.tick_params(labelsize=6, length=2, pad=1, top=True, labeltop=True, bottom=False, labelbottom=False)
    bar.ax.set_ylabel("probability", fontsize=7, rotation=0, ha="right", va="center")
    return figure


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
    height = sum(title + max(drawing.height for drawing in drawings) for _, drawings in rows)
    figure = new_figure(width, height)
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


def _label_curve(axes: Axes, title: str, limits: tuple[float, float]) -> None:
    axes.set_xlim(limits)
    axes.set_title(title, fontsize=8, loc="left", pad=3, color=INK)
    axes.tick_params(labelsize=7, length=2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _draw_heat_map(axes: Axes, heat: HeatMap, limits: tuple[float, float]):  # type: ignore[no-untyped-def]  # noqa: ANN202
    n_rows = len(heat.rows)
    middles = (heat.steps[1:] + heat.steps[:-1]) / 2
    edges = np.concatenate([[limits[0]], middles, [limits[1]]])
    image = axes.pcolormesh(
        edges, np.arange(n_rows + 1), heat.probabilities, cmap=COLOUR_MAP, norm=PowerNorm(0.6, 0, 1), rasterized=True
    )
    axes.set_ylim(n_rows, 0)
    axes.set_xlim(limits)
    axes.set_yticks(np.arange(n_rows) + 0.5, [label(str(option)) for _, option in heat.rows], fontsize=5.5, family=FONT)
    axes.tick_params(axis="y", length=0, pad=2)
    axes.tick_params(axis="x", labelsize=7, length=2)
    place = 0
    for path, rows in groupby(heat.rows, key=lambda row: row[0]):
        n_options = len(list(rows))
        axes.text(
            -1.62 / PANEL_WIDTH,
            1 - (place + n_options / 2) / n_rows,
            label(path),
            transform=axes.transAxes,
            fontsize=7.5,
            family=FONT,
            va="center",
            color=INK,
        )
        place += n_options
        if place < n_rows:
            axes.axhline(place, color=PAPER, linewidth=2)
            axes.axhline(place, color="#a0a0a0", linewidth=0.5)
    axes.set_xlabel("step", fontsize=8)
    return image


def _short(value: float) -> str:
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.3g}"

"""Plots of a study: best value so far, value against cost."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, NamedTuple

from optuna_nas.plots.style import BLUE, LEGEND_FONT, SLATE, VERMILION, label_axes, new_figure, new_plot
from optuna_nas.space.cost import COSTS
from optuna_nas.storage.attributes import attribute, cost_key, has_attribute
from optuna_nas.storage.directions import better, oriented
from optuna_nas.storage.leaderboard import can_win
from optuna_nas.storage.spending import spending_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from optuna import Study
    from optuna.study import StudyDirection
    from optuna.trial import FrozenTrial

COST_NAMES = {"params": "parameters", "multiply_adds": "multiply-adds", "memory_access": "memory access"}


class Progress(NamedTuple):
    """Best value so far after each of T finished trials.

    Args:
        numbers: Numbers of the trials, ascending.
        seconds: Cumulated seconds of the trials.
        values: First value of each trial, which may be infinite; None for pruned, failed and infeasible trials.
        best: Best value so far, as Optuna has it; None before the first value. Plots leave out infinite ones.
    """

    numbers: tuple[int, ...]
    seconds: tuple[float, ...]
    values: tuple[float | None, ...]
    best: tuple[float | None, ...]


class Point(NamedTuple):
    """Completed trial by a cost and its first value.

    Args:
        number: Number of the trial.
        cost: Cost of its network.
        value: First value.
        on_front: Whether no cheaper trial is as good.
    """

    number: int
    cost: float
    value: float
    on_front: bool


def progress(trials: Sequence[FrozenTrial], direction: StudyDirection) -> Progress:
    """Return the best value so far after each finished trial; `trials` are ordered by number."""
    rows: list[tuple[int, float, float | None, float | None]] = []
    best: float | None = None
    spent = 0.0
    for trial in trials:
        if not trial.state.is_finished():
            continue
        value = float(trial.values[0]) if can_win(trial) else None
        spent += spending_of(trial).total
        if value is not None:
            best = value if best is None else better((best, value), direction)
        rows.append((trial.number, spent, value, best))
    numbers, seconds, values, bests = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Progress(numbers, seconds, values, bests)


def pareto(trials: Sequence[FrozenTrial], cost: str, direction: StudyDirection) -> list[Point]:
    """Return the completed trials with a cost, such as `params`, that satisfy their constraints, cheapest first."""
    rows = sorted(
        (
            float(attribute(trial.user_attrs, cost_key(cost))),
            -oriented(trial.values[0], direction),
            t,
        )
        for t, trial in enumerate(trials)
        if can_win(trial) and has_attribute(trial.user_attrs, cost_key(cost)) and isfinite(trial.values[0])
    )
    points: list[Point] = []
    lowest = float("inf")
    for expense, loss, place in rows:
        points.append(Point(trials[place].number, expense, float(trials[place].values[0]), loss < lowest))
        lowest = min(lowest, loss)
    return points


def plot_progress(study: Study) -> Figure:
    """Plot the best value so far against the number of trials and against their seconds.

    Args:
        study: Study with at least one completed trial.

    Returns:
        Figure of matplotlib.

    Raises:
        ValueError: No trial has completed.

    Example:
        >>> import optuna
        >>> from optuna_nas.plots import plot_progress
        >>> study = optuna.create_study(direction="maximize")
        >>> study.add_trials([optuna.create_trial(value=value) for value in (0.8, 0.7, 0.9)])
        >>> [axes.get_xlabel() for axes in plot_progress(study).axes]
        ['trial', 'seconds of trials']
    """
    return draw_progress(progress(study.get_trials(deepcopy=False), study.directions[0]))


def draw_progress(progress: Progress, value_name: str = "value") -> Figure:
    """Plot the progress of a study; see `plot_progress`."""
    if not any(best is not None for best in progress.best):
        raise ValueError("`study` must have completed trials but has none; run it first.")
    figure = new_figure(7.4, 3.3, layout="constrained")
    for place, (x, name) in enumerate(((progress.numbers, "trial"), (progress.seconds, "seconds of trials"))):
        axes = figure.add_subplot(1, 2, place + 1)
        values = [(a, b) for a, b in zip(x, progress.values, strict=True) if b is not None and isfinite(b)]
        _scatter(axes, values)
        best = [(a, b) for a, b in zip(x, progress.best, strict=True) if b is not None and isfinite(b)]
        axes.step(
            [a for a, _ in best], [b for _, b in best], where="post", color=BLUE, linewidth=2, label="best so far"
        )
        label_axes(axes, None, name, "" if place else value_name, engineering=place == 1)
    figure.legend(
        *axes.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2, prop=LEGEND_FONT
    )
    return figure


def _scatter(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Draw a circle for every trial; filled ones would hide the line that they lie on."""
    x, y = [a for a, _ in points], [b for _, b in points]
    axes.scatter(x, y, s=16, facecolors="none", edgecolors=SLATE, linewidths=0.9, label="a trial")


def plot_pareto(study: Study, cost: str = "params") -> Figure:
    """Plot the first value against a cost, with the Pareto front.

    Args:
        study: Study whose trials have costs as user attributes, as those of `TrainObjective`.
        cost: `params`, `multiply_adds` or `memory_access`.

    Returns:
        Figure of matplotlib.

    Raises:
        ValueError: The cost is unknown, or no completed trial within its constraints has it.

    Example:
        >>> import optuna
        >>> from optuna_nas.plots import plot_pareto
        >>> study = optuna.create_study(direction="maximize")
        >>> study.add_trial(optuna.create_trial(value=0.9, user_attrs={"optuna_nas:params": 1300}))
        >>> plot_pareto(study, "params").axes[0].get_xlabel()
        'parameters'
    """
    if cost not in COSTS:
        raise ValueError(f"`cost` must be one of {COSTS} but got {cost!r}.")
    return draw_pareto(pareto(study.get_trials(deepcopy=False), cost, study.directions[0]), COST_NAMES[cost])


def draw_pareto(points: Sequence[Point], cost_name: str, value_name: str = "value") -> Figure:
    """Plot trials by cost and value; see `plot_pareto`."""
    if not points:
        raise ValueError(
            "`study` must have completed trials with a cost, within their constraints, but has none; use "
            "`TrainObjective`, or wider constraints."
        )
    figure, axes = new_plot(5.4, 3.6)
    _scatter(axes, [(point.cost, point.value) for point in points])
    front = [(point.cost, point.value) for point in points if point.on_front]
    axes.step(
        *zip(*front, strict=True),
        "-o",
        where="post",
        color=VERMILION,
        markersize=4,
        linewidth=1.6,
        label="Pareto front",
    )
    figure.legend(frameon=False, loc="outside lower center", ncols=2, prop=LEGEND_FONT)
    label_axes(axes, None, cost_name, value_name, engineering=True)
    return figure

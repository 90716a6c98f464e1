"""What a study came to and when: the best value so far, which parameters mattered, value against cost."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, NamedTuple

import optuna
from optuna.trial import TrialState

from optuna_nas.plots.style import BLUE, GREY, ORANGE, label_axes, new_figure, new_plot
from optuna_nas.space.cost import COSTS
from optuna_nas.storage.attributes import attribute, cost_key, has_attribute
from optuna_nas.storage.directions import better, oriented
from optuna_nas.storage.leaderboard import can_win, spent_seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure
    from optuna import Study
    from optuna.study import StudyDirection
    from optuna.trial import FrozenTrial

MAX_BARS = 20
COST_NAMES = {"params": "parameters", "multiply_adds": "multiply-adds", "memory_access": "memory access"}


class Progress(NamedTuple):
    """The best value so far, after every finished trial by number, T of them.

    Args:
        numbers: Of the trials.
        seconds: Spent on trials so far, as if one ran after the other.
        values: First value of the trial; None where it has none (pruned, failed, beyond a constraint).
        best: So far; None before the first.
    """

    numbers: tuple[int, ...]
    seconds: tuple[float, ...]
    values: tuple[float | None, ...]
    best: tuple[float | None, ...]


class Point(NamedTuple):
    """A completed trial by a cost and its first value, and whether none is cheaper and as good."""

    number: int
    cost: float
    value: float
    on_front: bool


def progress(trials: Sequence[FrozenTrial], direction: StudyDirection) -> Progress:
    """Return the best value so far of trials, given by number; those that still run are left out."""
    rows: list[tuple[int, float, float | None, float | None]] = []
    best: float | None = None
    spent = 0.0
    for trial in trials:
        if not trial.state.is_finished():
            continue
        value = float(trial.values[0]) if can_win(trial) and isfinite(trial.values[0]) else None
        spent += spent_seconds(trial)
        if value is not None:
            best = value if best is None else better((best, value), direction)
        rows.append((trial.number, spent, value, best))
    numbers, seconds, values, bests = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Progress(numbers, seconds, values, bests)


def pareto(trials: Sequence[FrozenTrial], cost: str, direction: StudyDirection) -> list[Point]:
    """Return the completed trials by a cost (`params`, ...) and their first value, the cheapest first."""
    known = sorted(
        (
            float(attribute(trial.user_attrs, cost_key(cost))),
            -oriented(trial.values[0], direction),
            t,
        )
        for t, trial in enumerate(trials)
        if trial.state == TrialState.COMPLETE
        and has_attribute(trial.user_attrs, cost_key(cost))
        and isfinite(trial.values[0])
    )
    points: list[Point] = []
    lowest = float("inf")
    for expense, loss, place in known:
        points.append(Point(trials[place].number, expense, float(trials[place].values[0]), loss < lowest))
        lowest = min(lowest, loss)
    return points


def importances(study: Study) -> dict[str, float]:
    """Return how much of the values' variance each parameter explains (fANOVA), the largest first; {} where unknown."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    values = {trial.values[0] for trial in complete if isfinite(trial.values[0])}
    if len(complete) < 4 or len(values) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    target = None if len(study.directions) == 1 else (lambda trial: float(trial.values[0]))
    try:
        return dict(optuna.importance.get_param_importances(study, evaluator=evaluator, target=target))
    except (ValueError, RuntimeError):  # no parameter is in all trials, or none varies
        return {}


def plot_progress(study: Study) -> Figure:
    """Draw the best value so far against trials, and against the seconds spent on them.

    Raises:
        ValueError: No trial has completed.
    """
    return draw_progress(progress(study.get_trials(deepcopy=False), study.directions[0]))


def draw_progress(found: Progress, value_name: str = "value") -> Figure:
    """Draw progress; see `plot_progress`."""
    if not any(best is not None for best in found.best):
        raise ValueError("`study` must have completed trials but has none; run it first.")
    figure = new_figure(7.6, 3.2, layout="constrained")
    for place, (x, label) in enumerate(((found.numbers, "trial"), (found.seconds, "seconds of training"))):
        axes = figure.add_subplot(1, 2, place + 1)
        known = [(a, b) for a, b in zip(x, found.values, strict=True) if b is not None]
        axes.scatter([a for a, _ in known], [b for _, b in known], s=14, color=GREY, alpha=0.7, linewidths=0)
        best = [(a, b) for a, b in zip(x, found.best, strict=True) if b is not None]
        axes.step([a for a, _ in best], [b for _, b in best], where="post", color=BLUE, linewidth=2)
        title, y = ("best so far", value_name) if place == 0 else ("", "")
        label_axes(axes, title, label, y, engineering=place == 1)
    return figure


def plot_importances(study: Study) -> Figure:
    """Draw how much of the values' variance each parameter explains (Optuna's fANOVA), the 20 largest.

    Raises:
        ValueError: Too few trials have completed, or all came to the same value.
    """
    return draw_importances(importances(study))


def draw_importances(found: dict[str, float]) -> Figure:
    """Draw importances; see `plot_importances`."""
    if not found:
        raise ValueError("`study` must have four completed trials of different values to weigh parameters; run more.")
    shown = list(found.items())[:MAX_BARS]
    figure, axes = new_plot(5.4, 0.9 + 0.24 * len(shown))
    axes.barh([name for name, _ in shown][::-1], [share for _, share in shown][::-1], color=BLUE, height=0.62)
    label_axes(axes, "what mattered", "share of the values' variance", "")
    return figure


def plot_pareto(study: Study, cost: str = "params") -> Figure:
    """Draw the first value against a cost, with the front of what nothing cheaper reaches.

    Args:
        study: Whose trials know their cost, as those of `TrainObjective` do.
        cost: `params`, `multiply_adds` or `memory_access`.

    Raises:
        ValueError: The cost is unknown, or no completed trial has it.
    """
    if cost not in COSTS:
        raise ValueError(f"`cost` must be one of {COSTS} but got {cost!r}.")
    return draw_pareto(pareto(study.get_trials(deepcopy=False), cost, study.directions[0]), COST_NAMES[cost])


def draw_pareto(points: Sequence[Point], cost_name: str, value_name: str = "value") -> Figure:
    """Draw points; see `plot_pareto`."""
    if not points:
        raise ValueError("`study` must have completed trials that know their cost but has none; use `TrainObjective`.")
    figure, axes = new_plot(5.4, 3.6)
    axes.scatter([p.cost for p in points], [p.value for p in points], s=16, color=GREY, alpha=0.7, linewidths=0)
    front = [point for point in points if point.on_front]
    axes.step(
        [p.cost for p in front], [p.value for p in front], "-o", where="post", color=ORANGE, markersize=4, linewidth=1.6
    )
    label_axes(axes, "nothing cheaper is as good as the line", cost_name, value_name, engineering=True)
    return figure

"""Plot of the metric against the multiply-adds of networks with early exits."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from optuna.trial import TrialState

from optuna_nas.plots.style import BLUE, GREY, LEGEND_FONT, label_axes, new_plot
from optuna_nas.storage.attributes import ANYTIME_CURVE, attribute
from optuna_nas.storage.directions import oriented

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure
    from optuna import Study
    from optuna.study import StudyDirection
    from optuna.trial import FrozenTrial


class AnytimeCurve(NamedTuple):
    """Metric of a network with early exits at increasing budgets.

    Args:
        number: Number of the trial.
        value: First value of the trial; for classification the area under the curve.
        multiply_adds: Multiply-adds up to each exit, not decreasing.
        metrics: Metric of each exit, such as the accuracy in [0, 1].
        budget: Multiply-adds at which the area ends.
        metric: Name of the metric.
    """

    number: int
    value: float
    multiply_adds: tuple[float, ...]
    metrics: tuple[float, ...]
    budget: float
    metric: str = "value"

    def steps(self) -> tuple[list[float], list[float]]:
        """Return x and y of the corners of the curve: 0 before the first exit, then the metric of the last exit."""
        x, y = [self.multiply_adds[0]], [0.0]
        ends = [*self.multiply_adds[1:], max(self.budget, self.multiply_adds[-1])]
        for start, value, end in zip(self.multiply_adds, self.metrics, ends, strict=True):
            x += [start, end]
            y += [value, value]
        return x, y


def anytime_curves(trials: Sequence[FrozenTrial], direction: StudyDirection) -> list[AnytimeCurve]:
    """Return the curves of completed trials with early exits, best first."""
    curves = []
    for trial in trials:
        if trial.state == TrialState.COMPLETE and (stored := attribute(trial.user_attrs, ANYTIME_CURVE)):
            (metric,) = stored.keys() - {"multiply_adds", "budget"}
            columns = tuple(stored["multiply_adds"]), tuple(stored[metric])
            curves.append(AnytimeCurve(trial.number, trial.values[0], *columns, stored["budget"], metric))
    return sorted(curves, key=lambda curve: -oriented(curve.value, direction))


def plot_anytime(study: Study) -> Figure:
    """Plot the metric against the multiply-adds of the networks of all trials, with the best one highlighted.

    Args:
        study: Study of networks with early exits, such as those of `anytime_space()`.

    Returns:
        Figure of matplotlib.

    Raises:
        ValueError: No completed trial has early exits.

    Example:
        >>> import optuna
        >>> from optuna_nas.plots import plot_anytime
        >>> curve = {"multiply_adds": [1e6, 3e6], "accuracy": [0.8, 0.9], "budget": 4e6}
        >>> study = optuna.create_study(direction="maximize")
        >>> study.add_trial(optuna.create_trial(value=0.65, user_attrs={"optuna_nas:anytime_curve": curve}))
        >>> plot_anytime(study).axes[0].get_ylabel()
        'accuracy'
    """
    return draw_anytime(anytime_curves(study.get_trials(deepcopy=False), study.directions[0]))


def draw_anytime(curves: Sequence[AnytimeCurve]) -> Figure:
    """Plot curves, given best first; see `plot_anytime`."""
    if not curves:
        raise ValueError("`study` must have finished trials with early exits but has none; search `anytime_space()`.")
    figure, axes = new_plot(5.8, 4.2)
    best, *others = curves
    for place, curve in enumerate(reversed(others)):
        axes.plot(*curve.steps(), color=GREY, linewidth=0.9, alpha=0.55, label="other trials" if place == 0 else None)
    axes.plot(*best.steps(), color=BLUE, linewidth=2.2, label=f"trial {best.number}, the best")
    axes.set_xlim(0, max(curve.budget for curve in curves))
    lowest = min(min(curve.metrics) for curve in curves)
    highest = max(max(curve.metrics) for curve in curves)
    axes.set_ylim(max(0.0, lowest - 0.1 * (highest - lowest) - 0.01), highest + 0.1 * (highest - lowest) + 0.01)
    title = f"{best.value:.4f} on average over all budgets up to {best.budget:,.0f}"
    label_axes(axes, title, "multiply-adds of a prediction", best.metric, engineering=True)
    axes.legend(frameon=False, loc="lower right", prop=LEGEND_FONT)
    return figure

"""Plots of studies of several objectives: every further objective against the first, with the Pareto front."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING

from optuna_nas.plots.style import GREY, LEGEND_FONT, VERMILION, label_axes, new_figure
from optuna_nas.storage.attributes import objective_names
from optuna_nas.storage.leaderboard import can_win

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure
    from optuna import Study
    from optuna.trial import FrozenTrial

MAX_PANELS = 4
"""Largest number of further objectives that are drawn."""


def front_of(study: Study) -> list[FrozenTrial]:
    """Return the trials that no other is better than in all objectives, by number; infeasible trials are left out.

    Example:
        >>> import optuna
        >>> from optuna_nas.plots.objectives import front_of
        >>> study = optuna.create_study(directions=["maximize", "minimize"])
        >>> study.add_trials([optuna.create_trial(values=values) for values in ([0.9, 3], [0.8, 4], [0.7, 1])])
        >>> [trial.number for trial in front_of(study)]
        [0, 2]
    """
    return [trial for trial in study.best_trials if can_win(trial)]


def plot_objectives(study: Study, names: Sequence[str] | None = None) -> Figure:
    """Plot every further objective against the first, one panel each, with the trials of the Pareto front.

    With more than two objectives, a trial of the front may lie behind others in a panel.

    Args:
        study: Study of several objectives.
        names: Names of the objectives; by default the study's own.

    Returns:
        Figure of matplotlib.

    Raises:
        ValueError: The study has one objective only.

    Example:
        >>> import optuna
        >>> from optuna_nas.plots import plot_objectives
        >>> study = optuna.create_study(directions=["maximize", "minimize"])
        >>> study.add_trial(optuna.create_trial(values=[0.9, 1300]))
        >>> plot_objectives(study, ["accuracy", "params"]).axes[0].get_xlabel()
        'params'
    """
    if len(study.directions) < 2:
        raise ValueError("`study` must have several objectives but has one; use `plot_progress` and `plot_pareto`.")
    names = names or objective_names(study)
    complete = [
        trial for trial in study.get_trials(deepcopy=False) if can_win(trial) and all(map(isfinite, trial.values))
    ]
    front = {trial.number for trial in front_of(study)}
    n_panels = min(len(names) - 1, MAX_PANELS)
    figure = new_figure(4.2 * n_panels, 3.6, layout="constrained")
    for place, axes in enumerate(figure.subplots(1, n_panels, squeeze=False)[0], 1):
        for on_front, colour, size, label in ((False, GREY, 14, "trials"), (True, VERMILION, 30, "Pareto front")):
            points = [trial.values for trial in complete if (trial.number in front) == on_front]
            x, y = [values[place] for values in points], [values[0] for values in points]
            axes.scatter(x, y, s=size, color=colour, label=label, linewidths=0, marker="D" if on_front else "o")
        label_axes(axes, None, names[place], names[0], engineering=True)
    figure.axes[0].legend(frameon=False, prop=LEGEND_FONT)
    return figure

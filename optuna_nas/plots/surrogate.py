"""Plot of predicted scores against values of trials, with Kendall's tau and its confidence interval."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from optuna.trial import TrialState

from optuna_nas.plots.style import BLUE, LEGEND_FONT, VERMILION, label_axes, new_plot
from optuna_nas.pruners.base import RankCorrelation, rank_correlation
from optuna_nas.storage.architecture_notes import score_noted
from optuna_nas.storage.attributes import FLAGGED, SCORED_BY, attribute, has_attribute
from optuna_nas.storage.directions import oriented

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure
    from optuna import Study
    from optuna.study import StudyDirection
    from optuna.trial import FrozenTrial

    from optuna_nas.space import Space


class Scores(NamedTuple):
    """Predicted scores and values of N completed trials.

    Args:
        numbers: Numbers of the trials.
        scores: Predicted scores, larger is better.
        values: First values of the trials.
        flagged: Whether a pruner flagged the trial but exempted it from pruning.
        correlation: Rank correlation of scores and values, positive if larger scores predict better values.
        meaning: What the newest score is, in a few words; empty if the trials do not say.
    """

    numbers: tuple[int, ...]
    scores: tuple[float, ...]
    values: tuple[float, ...]
    flagged: tuple[bool, ...]
    correlation: RankCorrelation
    meaning: str = ""


def scores_of(trials: Sequence[FrozenTrial], direction: StudyDirection, space: Space | None = None) -> Scores:
    """Return scores and values of the completed trials with a `surrogate_score`; both are finite.

    Args:
        trials: Trials.
        direction: Direction of the first objective.
        space: Space of the architectures, by which the score of another architecture is told and left out.
    """
    names = None if space is None else space.options()
    found = [(trial, score_noted(trial, names)) for trial in trials if trial.state == TrialState.COMPLETE]
    pairs = [(trial, score) for trial, score in found if score is not None and isfinite(score)]
    pairs = [(trial, score) for trial, score in pairs if isfinite(trial.values[0])]
    scored, scores = [trial for trial, _ in pairs], tuple(score for _, score in pairs)
    values = tuple(float(trial.values[0]) for trial in scored)
    correlation = rank_correlation(list(scores), [oriented(value, direction) for value in values], confidence=0.975)
    return Scores(
        tuple(trial.number for trial in scored),
        scores,
        values,
        tuple(has_attribute(trial.user_attrs, FLAGGED) for trial in scored),
        correlation,
        attribute(scored[-1].user_attrs, SCORED_BY, "") if scored else "",
    )


def plot_surrogate(study: Study, space: Space | None = None) -> Figure:
    """Plot predicted scores against the first values of completed trials.

    Trials that a pruner flagged but exempted are highlighted. The axis says what the score is: a loss with the weights
    of a model, a share of random architectures that are beaten by ranks, a share of masks, or a function's name.

    Args:
        study: Study with predicted scores, as `GHNSampler`, `GHNPruner` and `HMNASPruner` store them.
        space: Space of the architectures, by which the score of another architecture is told and left out.

    Returns:
        Figure of matplotlib.

    Raises:
        ValueError: No completed trial has a predicted score.

    Example:
        >>> import optuna
        >>> from optuna_nas.plots import plot_surrogate
        >>> study = optuna.create_study(direction="maximize")
        >>> for value in (0.6, 0.7, 0.8):
        ...     study.add_trial(optuna.create_trial(value=value, user_attrs={"optuna_nas:surrogate_score": value / 2}))
        >>> plot_surrogate(study).axes[0].get_xlabel()
        'score before training, larger is better'
    """
    return draw_scores(scores_of(study.get_trials(deepcopy=False), study.directions[0], space))


def draw_scores(scored: Scores, value_name: str = "value") -> Figure:
    """Plot scores against values; see `plot_surrogate`."""
    if not scored.numbers:
        raise ValueError(
            "`study` must have finished trials with a surrogate score but has none; use a GHNSampler, a GHNPruner or "
            "`TrainObjective(score=...)`."
        )
    figure, axes = new_plot(5.2, 4.4)
    scores, values, flagged = (np.array(column) for column in (scored.scores, scored.values, scored.flagged))
    looks = ((~flagged, BLUE, "o", "passed"), (flagged, VERMILION, "X", "flagged, but exempt"))
    for chosen, colour, marker, label in looks:
        if chosen.any():
            x, y = scores[chosen], values[chosen]
            axes.scatter(x, y, s=24, color=colour, marker=marker, alpha=0.75, linewidths=0, label=label)
    if flagged.any():
        figure.legend(frameon=False, loc="outside lower center", ncols=2, prop=LEGEND_FONT)
    tau = scored.correlation
    title = (
        f"Kendall's tau {tau.tau:.2f} ({tau.lower:.2f} to {tau.upper:.2f}), {tau.n_trials} trials"
        if tau.lower > -1
        else f"too few trials for a correlation ({tau.n_trials})"
    )
    label_axes(axes, title, scored.meaning or "score before training, larger is better", value_name)
    return figure

"""How well a guess ranks what trials came to: scores against values, with Kendall's tau and its interval."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from optuna.trial import TrialState

from optuna_nas.plots.style import BLUE, LEGEND_FONT, ORANGE, label_axes, new_plot
from optuna_nas.pruners.base import RankCorrelation, rank_correlation
from optuna_nas.storage.attributes import FLAGGED, SURROGATE_SCORE, attribute, has_attribute
from optuna_nas.storage.directions import oriented

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure
    from optuna import Study
    from optuna.study import StudyDirection
    from optuna.trial import FrozenTrial


class Guesses(NamedTuple):
    """Finished trials of which something was guessed, N trials.

    Args:
        numbers: Of the trials.
        scores: What was guessed.
        values: What they came to, as the study has it.
        flagged: Whether a pruner flagged them and exempted them from being stopped.
        correlation: Of scores and values, larger values counting as better where the study maximises.
    """

    numbers: tuple[int, ...]
    scores: tuple[float, ...]
    values: tuple[float, ...]
    flagged: tuple[bool, ...]
    correlation: RankCorrelation


def guesses(trials: Sequence[FrozenTrial], direction: StudyDirection) -> Guesses:
    """Return what is known of the guesses: of trials that completed and have a `surrogate_score`."""
    known = [
        trial
        for trial in trials
        if trial.state == TrialState.COMPLETE
        and has_attribute(trial.user_attrs, SURROGATE_SCORE)
        and np.isfinite([attribute(trial.user_attrs, SURROGATE_SCORE), trial.values[0]]).all()
    ]
    scores = tuple(float(attribute(trial.user_attrs, SURROGATE_SCORE)) for trial in known)
    values = tuple(float(trial.values[0]) for trial in known)
    correlation = rank_correlation(list(scores), [oriented(value, direction) for value in values], confidence=0.975)
    return Guesses(
        tuple(trial.number for trial in known),
        scores,
        values,
        tuple(has_attribute(trial.user_attrs, FLAGGED) for trial in known),
        correlation,
    )


def plot_surrogate(study: Study) -> Figure:
    """Draw, for every finished trial, what was guessed of it against its first value.

    Trials that a pruner flagged and exempted stand out.

    Raises:
        ValueError: Nothing was guessed of any finished trial.
    """
    return draw_guesses(guesses(study.get_trials(deepcopy=False), study.directions[0]))


def draw_guesses(found: Guesses, value_name: str = "value") -> Figure:
    """Draw guesses; see `plot_surrogate`."""
    if not found.numbers:
        raise ValueError(
            "`study` must have finished trials with a surrogate score but has none; use a GHNSampler, a GHNPruner or "
            "`TrainObjective(score=...)`."
        )
    figure, axes = new_plot(5.2, 4.4)
    scores, values, flagged = (np.array(column) for column in (found.scores, found.values, found.flagged))
    for chosen, colour, label in ((~flagged, BLUE, "passed"), (flagged, ORANGE, "flagged, but exempt")):
        if chosen.any():
            axes.scatter(scores[chosen], values[chosen], s=22, color=colour, alpha=0.75, linewidths=0, label=label)
    if flagged.any():
        axes.legend(frameon=False, prop=LEGEND_FONT)
    tau = found.correlation
    title = (
        f"Kendall's tau {tau.tau:.2f}, 95 % interval {tau.lower:.2f} to {tau.upper:.2f} ({tau.n_trials} trials)"
        if tau.lower > -1
        else f"too few trials for a correlation ({tau.n_trials})"
    )
    label_axes(axes, title, "surrogate score", value_name)
    return figure

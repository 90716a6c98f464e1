"""Leaderboard: trials ranked by their value, with their costs, for terminal, report and MLflow."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, NamedTuple

from optuna.trial import TrialState

from optuna_nas.space.reading import is_number
from optuna_nas.storage.attributes import METRIC, PREFIX, attribute, constraints_of, shown_attributes
from optuna_nas.storage.directions import oriented
from optuna_nas.storage.spending import spending_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from optuna import Study
    from optuna.study import StudyDirection
    from optuna.trial import FrozenTrial


class LeaderboardRow(NamedTuple):
    """Row of a leaderboard.

    Args:
        rank: Rank, from 1.
        trial: Ranked trial.
        can_win: Whether the trial completed and satisfies its constraints.
        value: First value; None for a trial without one.
        metric: The task's metric, where the value is the loss; None where the value is the metric itself.
        seconds: Seconds of training; see `spending`.
        numbers: Numeric user attributes, such as `params` and `multiply_adds`, by display name.
    """

    rank: int
    trial: FrozenTrial
    can_win: bool
    value: float | None
    metric: float | None
    seconds: float
    numbers: Mapping[str, float]


def leaderboard(study: Study, states: Sequence[TrialState] = (TrialState.COMPLETE,)) -> list[LeaderboardRow]:
    """Return the trials of a study, best first, by the first objective.

    Infeasible and incomplete trials come after the trials that can win, trials without a value last.

    Args:
        study: Study of one or several objectives.
        states: States of the trials to rank.

    Example:
        >>> import optuna
        >>> from optuna_nas.storage.leaderboard import leaderboard
        >>> study = optuna.create_study(direction="maximize")
        >>> study.add_trials([optuna.trial.create_trial(value=value) for value in (0.8, 0.9)])
        >>> [(row.rank, row.trial.number, row.value) for row in leaderboard(study)]
        [(1, 1, 0.9), (2, 0, 0.8)]
    """
    ranked = rank_trials(study.get_trials(deepcopy=False, states=tuple(states)), study.directions[0])
    return [
        LeaderboardRow(
            rank,
            trial,
            can_win(trial),
            trial.values[0] if trial.values else None,
            attribute(trial.user_attrs, METRIC),
            spending_of(trial).training,
            numbers_of(trial),
        )
        for rank, trial in enumerate(ranked, 1)
    ]


def rank_trials(trials: Iterable[FrozenTrial], direction: StudyDirection) -> list[FrozenTrial]:
    """Return trials, best first, by their first value; trials that cannot win come last."""

    def key(trial: FrozenTrial) -> tuple[bool, float, int]:
        return not can_win(trial), -oriented(trial.values[0], direction) if trial.values else inf, trial.number

    return sorted(trials, key=key)


def ranking(study: Study) -> list[FrozenTrial]:
    """Return the completed trials, best first, by the first objective; infeasible trials come last."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return rank_trials(complete, study.directions[0])


def best_trial(study: Study) -> FrozenTrial | None:
    """Return the best feasible trial by the first objective, None if there is none."""
    return next((trial for trial in ranking(study) if feasible(trial)), None)


def feasible(trial: FrozenTrial) -> bool:
    """Return whether a trial satisfies all its constraints."""
    return all(excess <= 0 for excess in constraints_of(trial).values())


def can_win(trial: FrozenTrial) -> bool:
    """Return whether a trial can be the best trial: it completed and is feasible."""
    return trial.state == TrialState.COMPLETE and feasible(trial)


def numbers_of(trial: FrozenTrial) -> dict[str, float]:
    """Return the numeric user attributes by display name, without bookkeeping."""
    return {
        name: value
        for name, value in shown_attributes(trial.user_attrs).items()
        if is_number(value, finite=False) and not name.startswith(PREFIX)
    }

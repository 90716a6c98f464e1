"""Which of the best trials differ by less than what their validation examples leave open."""

from __future__ import annotations

from math import isfinite, sqrt
from typing import TYPE_CHECKING, NamedTuple

from optuna_nas.storage.attributes import VALIDATION_LOSS, attribute

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.trial import FrozenTrial

    from optuna_nas.storage.leaderboard import LeaderboardRow

ACCURACY = "accuracy"


class ValidationLoss(NamedTuple):
    """Validation loss at the end of a trial's training.

    Args:
        mean: Mean over the examples.
        error: Standard error of the mean; None if the task does not tell it.
        n_examples: Number of examples.
    """

    mean: float
    error: float | None
    n_examples: int


def validation_loss(trial: FrozenTrial) -> ValidationLoss | None:
    """Return the validation loss of a trial, None if there is none, as in studies of before.

    Example:
        >>> import optuna
        >>> from optuna_nas.storage.attributes import VALIDATION_LOSS
        >>> from optuna_nas.storage.noise import validation_loss
        >>> validation_loss(optuna.create_trial(value=0.9, user_attrs={VALIDATION_LOSS: [0.3, 0.02, 360]}))
        ValidationLoss(mean=0.3, error=0.02, n_examples=360)
    """
    noted = attribute(trial.user_attrs, VALIDATION_LOSS)
    return None if noted is None else ValidationLoss(*noted)


def told_apart(rows: Sequence[LeaderboardRow], metric: str, n_examples: int = 0) -> str | None:
    """Return a sentence on which of the best trials differ by less than one standard error of the best value.

    A loss has that of its examples, an accuracy that of its share; of other metrics, several objectives, a best value
    that is infinite, and where the number of examples is not known, there is nothing to say.

    Args:
        rows: Leaderboard.
        metric: Name of the value of trials.
        n_examples: Number of validation examples, where trials do not note it.
    """
    from optuna_nas.training.task import LOSS  # imported late: reading a study needs no PyTorch

    able = [row for row in rows if row.can_win and row.value is not None]
    if not able or not isfinite(best := float(able[0].value or 0.0)):
        return None
    able = [row for row in able if isfinite(float(row.value or 0.0))]
    if len(able) < 2 or len(able[0].trial.values) > 1:
        return None
    noted = validation_loss(able[0].trial)
    n_examples = n_examples if noted is None else noted.n_examples
    distances = [abs(best - float(row.value or 0.0)) for row in able]
    if metric == LOSS and noted is not None and noted.error is not None:
        error, scale, form = noted.error, 1.0, "{:.2g} of loss"
    elif metric == ACCURACY and n_examples and all(0 <= float(row.value or 0.0) <= 1 for row in able):
        share = (best * n_examples + 0.5) / (n_examples + 1)  # also of all examples the next may be wrong
        error, scale, form = sqrt(share * (1 - share) / n_examples), 100.0, "{:.1f} points"
    else:
        return None
    equal = sum(distance < error for distance in distances)
    of = f"one standard error: {form.format(scale * error)} on {n_examples:,} examples"
    if equal < 2:
        return f"Ranks {able[0].rank} and {able[1].rank} differ by {form.format(scale * distances[1])}, more than {of}."
    named = f"{able[0].rank} {'and' if equal == 2 else 'to'} {able[equal - 1].rank}"
    return f"Ranks {named} differ by less than {of}. This study can't tell which of them is best."

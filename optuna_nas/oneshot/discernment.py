"""Whether the scores of a trained model tell architectures apart."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from optuna_nas.data.batches import every_nth
from optuna_nas.oneshot.random_architectures import some_architectures

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optuna_nas.oneshot.base import OneShotModel

logger = logging.getLogger(__name__)

ARCHITECTURES = 24
"""Random architectures that are scored."""
SIGNIFICANT = 1.645
"""Standard deviations of an agreement by chance (5 % of them are larger) from which scores count as telling."""


class Discernment(NamedTuple):
    """How scores of random architectures differ.

    Args:
        spread: Standard deviation of the scores.
        agreement: Kendall's tau of the scores on two halves of the scoring examples; what differs only by chance does
            not agree.
        levelled: Whether that agreement may be by chance: all architectures are about equally good to the model, and
            its scores rank nothing.
        between: Share of the variance of generated kernels that is between architectures, of a hypernetwork; None of
            other models.

    Example:
        >>> from optuna_nas.oneshot.discernment import Discernment
        >>> str(Discernment(spread=0.1, agreement=0.9, levelled=False))
        'scores of random architectures spread by 0.1 and agree on two halves of the examples (tau 0.90)'
    """

    spread: float
    agreement: float
    levelled: bool
    between: float | None = None

    def __str__(self) -> str:
        agree = "do not agree" if self.levelled else "agree"
        weights = "" if self.between is None else f"; {self.between:.1%} of the weights' variance is between them"
        halves = f"{agree} on two halves of the examples (tau {self.agreement:.2f})"
        return f"scores of random architectures spread by {self.spread:.2g} and {halves}{weights}"


def discern(model: OneShotModel[Any]) -> Discernment:
    """Return how a model's scores of random architectures differ; see `OneShotModel.discern`."""
    random = np.random.default_rng([model.recipe.seed, 7])
    connected = some_architectures(model.space, random, ARCHITECTURES)
    batch = model.scoring_batch()
    halves = [model.scores_on(every_nth(batch, start, 2), connected) for start in (0, 1)]
    return discernment(np.stack(halves), model.variance_between(connected))


def tell(name: str, discerned: Discernment) -> None:
    """Log how far the scores of a model tell architectures apart: a warning where they do not."""
    if discerned.levelled:
        logger.warning("%s levels architectures: %s. Train it longer, or rank by another score.", name, discerned)
    else:
        logger.info("%s tells architectures apart: %s.", name, discerned)


def discernment(halves_2N: NDArray[np.float64], between: float | None = None) -> Discernment:
    """Return how scores on two halves of the examples differ.

    Args:
        halves_2N: Scores of N architectures on each half, shape (2, N).
        between: As `Discernment`.
    """
    finite_N = np.isfinite(halves_2N).all(axis=0)
    one_N, other_N = halves_2N[:, finite_N]
    if len(one_N) < 3 or np.ptp(one_N) == 0 or np.ptp(other_N) == 0:
        return Discernment(0.0, 0.0, True, between)
    tau, n = _kendall(one_N, other_N), len(one_N)
    deviation = math.sqrt(2 * (2 * n + 5) / (9 * n * (n - 1)))  # of tau where there is no relation (Kendall 1938)
    spread = float(((one_N + other_N) / 2).std())
    return Discernment(spread, tau, tau < SIGNIFICANT * deviation, between)


def _kendall(one_N: NDArray[np.float64], other_N: NDArray[np.float64]) -> float:
    """Return Kendall's tau-b; written out since models also train where SciPy is not installed."""
    signs = [np.sign(np.subtract.outer(values, values)) for values in (one_N, other_N)]
    return float((signs[0] * signs[1]).sum() / np.sqrt((signs[0] ** 2).sum() * (signs[1] ** 2).sum()))

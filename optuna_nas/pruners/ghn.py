"""Stops the clear bottom by a score that costs no training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optuna_nas.oneshot.ghn import GHN
from optuna_nas.pruners.base import QuantilePruner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from optuna.pruners import BasePruner

    from optuna_nas.oneshot.base import Score
    from optuna_nas.space import Architecture, Space


class GHNPruner(QuantilePruner):
    """Stops trials whose architecture scores below a quantile of random ones, before their first step.

    In public data, dropping the worst quarter by the score of a graph hypernetwork loses a seventh of the true top
    tenth, dropping the worse half loses two fifths (500 networks of Knyazev et al. 2021); hence a quarter at most
    unless told otherwise.

    Args:
        score: A fitted `GHN`, or a function of architectures; larger is better.
        space: What trials choose from; by default the GHN's.
        quantile: Share of random architectures below whose score a trial is stopped, in (0, 1).
        n_random: Random architectures that are scored to know that quantile, 100 with each of the first trials.
        pruner: Decides on the learning curve of what passes; by default nothing is stopped by it.
        exempt: Share of flagged trials that train anyway, so that it can be known who was right.
        n_startup_trials: Finished trials before the first is stopped.
        seed: Seed of the random architectures and of the choice of exempt trials.

    Raises:
        ValueError: An argument is out of range.
    """

    name = "ghn"

    def __init__(
        self,
        score: GHN | Score,
        space: Space | None = None,
        *,
        quantile: float = 0.25,
        n_random: int = 1000,
        pruner: BasePruner | None = None,
        exempt: float = 0.05,
        n_startup_trials: int = 15,
        seed: int = 0,
    ) -> None:
        if space is None:
            if not isinstance(score, GHN):
                raise ValueError("`space` must be given, unless `score` is a GHN, which has one.")
            space = score.space
        self._ghn = score if isinstance(score, GHN) else None
        self._score = score.score if isinstance(score, GHN) else score
        super().__init__(space, pruner, quantile, n_random, exempt, n_startup_trials, seed)

    def _scores(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        return np.asarray(self._score(architectures), dtype=np.float64)

    def _step(self) -> int:
        return 0 if self._ghn is None else self._ghn.step

    def _can_guess(self) -> bool:
        """A GHN guesses when its fit has ended."""
        return self._ghn is None or self._ghn.fitted

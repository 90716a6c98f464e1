"""Stops the clear bottom by a score that costs no training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from optuna_nas.oneshot.base import score_of
from optuna_nas.pruners.base import QuantilePruner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from optuna.pruners import BasePruner

    from optuna_nas.oneshot.base import OneShotModel, Score
    from optuna_nas.space import Architecture, Space


class GHNPruner(QuantilePruner):
    """Stops trials whose architecture scores below a quantile of random ones, before their first step.

    In public data, dropping the worst quarter by the score of a graph hypernetwork loses a seventh of the true top
    tenth, dropping the worse half loses two fifths (500 networks of Knyazev et al. 2021); hence a quarter at most
    by default.

    Args:
        model: A fitted `OneShotModel`, such as a `GHN`.
        space: What trials choose from; by default the model's.
        score: Instead of a model, a function of architectures; larger is better.
        quantile: Share of random architectures below whose score a trial is stopped, in (0, 1).
        n_random: Random architectures that are scored to know that quantile, 100 with each of the first trials.
        pruner: Decides on the learning curve of trials that pass; by default Optuna's median pruner.
        exempt: Share of flagged trials that train anyway, so that it can be known who was right.
        n_startup_trials: Finished trials before the first is stopped.
        seed: Seed of the random architectures and of the choice of exempt trials.

    Raises:
        ValueError: An argument is out of range.
    """

    name = "ghn"

    def __init__(
        self,
        model: OneShotModel[Any] | None = None,
        *,
        space: Space | None = None,
        score: Score | None = None,
        quantile: float = 0.25,
        n_random: int = 1000,
        pruner: BasePruner | None = None,
        exempt: float = 0.05,
        n_startup_trials: int = 15,
        seed: int = 0,
    ) -> None:
        self.model, self._scorer = model, score_of(model, score)
        if space is None:
            if model is None:
                raise ValueError("`space` must be given, unless there is a `model`, which has one.")
            space = model.space
        super().__init__(space, pruner, quantile, n_random, exempt, n_startup_trials, seed)

    def _scores(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        return np.asarray(self._scorer(architectures), dtype=np.float64)

    def _step(self) -> int:
        return 0 if self.model is None else self.model.step

    def _can_score(self) -> bool:
        """Tell whether the fit of the model has ended."""
        return self.model is None or self.model.fitted

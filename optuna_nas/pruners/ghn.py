"""Stops the clear bottom by a score that costs no training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optuna_nas.oneshot.ghn import GHN
from optuna_nas.pruners.base import SurrogatePruner
from optuna_nas.study_state import SURROGATE_SCORE

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.trial import FrozenTrial

    from optuna_nas.oneshot.model import Score
    from optuna_nas.space import Space


class GHNPruner(SurrogatePruner):
    """Stops trials whose architecture scores below a quantile of random ones, before their first step.

    In public data, dropping the worst quarter by the score of a graph hypernetwork loses a seventh of the true top
    tenth, dropping the worse half loses two fifths (500 networks of Knyazev et al. 2021); hence a quarter at most
    unless told otherwise.

    Args:
        score: A fitted `GHN`, or a function of architectures; larger is better.
        space: What trials choose from; by default the GHN's.
        quantile: Share of random architectures below whose score a trial is stopped, in (0, 1).
        n_random: Random architectures that are scored to know that quantile, at the first trial.
        pruner: Decides on the learning curve of what passes; by default nothing is stopped by it.
        spared: Share of condemned trials that live, so that it can be known who was right.
        n_startup_trials: Finished trials before the first is stopped.
        seed: Of the random architectures and of who is spared.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        score: GHN | Score,
        space: Space | None = None,
        *,
        quantile: float = 0.25,
        n_random: int = 200,
        pruner: BasePruner | None = None,
        spared: float = 0.1,
        n_startup_trials: int = 15,
        seed: int = 0,
    ) -> None:
        if space is None:
            if not isinstance(score, GHN):
                raise ValueError("`space` must be given, unless `score` is a GHN, which has one.")
            space = score.space
        if not 0 < quantile < 1:
            raise ValueError(f"`quantile` must be in (0, 1) but got {quantile}; scores are good for a quarter.")
        if n_random < 10:
            raise ValueError(f"`n_random` must be at least 10 to know a quantile but got {n_random}.")
        self._ghn = score if isinstance(score, GHN) else None
        self._score = score.score if isinstance(score, GHN) else score
        self._quantile, self._n_random = quantile, n_random
        super().__init__(space, pruner, spared, n_startup_trials, seed)

    def _forget(self) -> None:
        super()._forget()
        self._threshold: tuple[int, float] | None = None  # with the step of the GHN that it is of

    @property
    def threshold(self) -> float:
        """The score below which a trial is stopped."""
        with self._lock:
            step = 0 if self._ghn is None else self._ghn.step
            if self._threshold is None or self._threshold[0] != step:
                random = np.random.default_rng([self._seed, 0])
                sample = [self.space.sample(random) for _ in range(self._n_random)]
                scores = np.asarray(self._score(sample), dtype=np.float64)
                self._threshold = step, float(np.quantile(scores[np.isfinite(scores)], self._quantile))
            return self._threshold[1]

    def _can_guess(self) -> bool:
        """A GHN guesses when its fit has ended."""
        return self._ghn is None or 0 < self._ghn.total_steps <= self._ghn.step

    def _guess(self, trial: FrozenTrial) -> float:
        known = trial.user_attrs.get(SURROGATE_SCORE)
        if isinstance(known, int | float):
            return float(known)
        guess = float(np.asarray(self._score([self.space.decode(trial.params)]))[0])
        return guess if np.isfinite(guess) else -np.inf

    def _condemns(self, trial: FrozenTrial, guess: float) -> str | None:
        if guess >= self.threshold:
            return None
        return (
            f"its score of {guess:.4g} is below {self.threshold:.4g}, that of {self._quantile:.0%} of random "
            "architectures"
        )

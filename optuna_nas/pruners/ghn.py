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


SCORED_A_TRIAL = 100
"""Random architectures that a trial waits for at most."""


class GHNPruner(SurrogatePruner):
    """Stops trials whose architecture scores below a quantile of random ones, before their first step.

    In public data, dropping the worst quarter by the score of a graph hypernetwork loses a seventh of the true top
    tenth, dropping the worse half loses two fifths (500 networks of Knyazev et al. 2021); hence a quarter at most
    unless told otherwise.

    Args:
        score: A fitted `GHN`, or a function of architectures; larger is better.
        space: What trials choose from; by default the GHN's.
        quantile: Share of random architectures below whose score a trial is stopped, in (0, 1).
        n_random: Random architectures that are scored to know that quantile, 100 with every trial until all are.
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
        n_random: int = 1000,
        pruner: BasePruner | None = None,
        spared: float = 0.05,
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
        self._scores_at = -1, np.zeros(0)  # step of the GHN, and what random architectures score there

    @property
    def threshold(self) -> float:
        """The score below which a trial is stopped, once all random architectures are scored."""
        return self._threshold(self._n_random)

    def _threshold(self, more: int) -> float:
        """Return the threshold after so many more random architectures were scored, if there are any left."""
        with self._lock:
            step = 0 if self._ghn is None else self._ghn.step
            known = self._scores_at[1] if self._scores_at[0] == step else np.zeros(0)
            wanted = range(len(known), min(self._n_random, len(known) + more))
            if wanted:
                sample = [self.space.sample(np.random.default_rng([self._seed, number])) for number in wanted]
                known = np.append(known, np.asarray(self._score(sample), dtype=np.float64))
                self._scores_at = step, known
            return float(np.quantile(known[np.isfinite(known)], self._quantile))

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
        threshold = self._threshold(SCORED_A_TRIAL)
        if guess >= threshold:
            return None
        return (
            f"its score of {guess:.4g} is below {threshold:.4g}, that of {self._quantile:.0%} of random architectures"
        )

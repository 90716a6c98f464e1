"""Stops the clear bottom by a score that costs no training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optuna_nas.oneshot.ghn import GHN
from optuna_nas.pruners.base import SurrogatePruner
from optuna_nas.study_state import SURROGATE_SCORE, Unverified, find_trial, read_json, write_json

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from optuna import Study
    from optuna.pruners import BasePruner
    from optuna.trial import FrozenTrial

    from optuna_nas.oneshot.model import Score
    from optuna_nas.space import Space


RANDOM_SCORES = "ghn:random_scores"
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
        n_random: Random architectures that are scored to know that quantile, 100 with each of the first trials.
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
        self._known: tuple[int, list[NDArray[np.float64]]] = -1, []  # step of the GHN, and scores of random ones there

    def threshold(self, study: Study, number: int) -> float:
        """Return the score below which the trial of a number is stopped."""
        scores = np.concatenate(self._random_scores(study, number))
        return float(np.quantile(np.where(np.isfinite(scores), scores, -np.inf), self._quantile, method="lower"))

    def _random_scores(self, study: Study, number: int) -> list[NDArray[np.float64]]:
        """Return what random architectures score: a piece for every trial up to this one, until all are scored.

        So that no trial waits for more than a piece and all processes know the same, its trial publishes each.
        """
        with self._lock:
            step = 0 if self._ghn is None else self._ghn.step
            if self._known[0] != step:
                self._known = step, []
            pieces = self._known[1]
            n_pieces = -(-self._n_random // SCORED_A_TRIAL)
            for piece in range(len(pieces), min(number + 1, n_pieces)):
                scores = self._published(study, piece, step)
                if scores is None:
                    first, last = piece * SCORED_A_TRIAL, min(self._n_random, (piece + 1) * SCORED_A_TRIAL)
                    randoms = [np.random.default_rng([self._seed, place]) for place in range(first, last)]
                    scores = np.asarray(self._score([self.space.sample(random) for random in randoms]), np.float64)
                    trial = find_trial(study, piece)
                    if piece == number and trial is not None and not trial.state.is_finished():
                        write_json(study, trial, RANDOM_SCORES, {"step": step, "scores": scores.tolist()})
                pieces.append(scores)
            return pieces[: number + 1]

    def _published(self, study: Study, piece: int, step: int) -> NDArray[np.float64] | None:
        trial = find_trial(study, piece)
        try:
            value = None if trial is None else read_json(trial.system_attrs, RANDOM_SCORES)
        except Unverified:
            return None
        return np.array(value["scores"]) if value is not None and value["step"] == step else None

    def _can_guess(self) -> bool:
        """A GHN guesses when its fit has ended."""
        return self._ghn is None or self._ghn.fitted

    def _guess(self, trial: FrozenTrial) -> float:
        known = trial.user_attrs.get(SURROGATE_SCORE)
        if isinstance(known, int | float):
            return float(known)
        guess = float(np.asarray(self._score([self.space.decode(trial.params)]))[0])
        return guess if np.isfinite(guess) else -np.inf

    def _condemns(self, study: Study, trial: FrozenTrial, guess: float) -> str | None:
        threshold = self.threshold(study, trial.number)
        if guess >= threshold:
            return None
        share = f"{self._quantile:.0%} of random architectures"
        return f"its score of {guess:.4g} is below {threshold:.4g}, that of {share}"

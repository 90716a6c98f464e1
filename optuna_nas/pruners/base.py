"""A pruner that speaks before the first step, watches how often it is right, and keeps quiet when it guesses."""

from __future__ import annotations

import logging
import math
import threading
from abc import abstractmethod
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from optuna.pruners import BasePruner, NopPruner
from optuna.study import StudyDirection
from optuna.trial import TrialState
from scipy.stats import kendalltau, norm

from optuna_nas.study_state import CONDEMNED, SURROGATE_SCORE, FinishedTrials, Forgetful, hash_of

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

    from optuna_nas.space import Space

logger = logging.getLogger(__name__)

WATCHED = 200
"""Finished trials, the newest, from which a correlation is taken."""


class RankCorrelation(NamedTuple):
    """Kendall's tau between what was guessed and what came of it, with bounds, each held at the confidence asked for.

    The bounds are Fieller's (1957): atanh(tau) has about the variance 0.437 / (n - 4).
    """

    tau: float
    lower: float
    upper: float
    n_trials: int


def rank_correlation(guessed: list[float], came: list[float], confidence: float = 0.99) -> RankCorrelation:
    """Return Kendall's tau-b of two lists and its bounds, each at a confidence in (0.5, 1).

    Fewer than 5 pairs, or pairs of which one side is constant, tell nothing: tau 0 between -1 and 1.
    """
    n_pairs = len(guessed)
    if n_pairs < 5 or len(set(guessed)) == 1 or len(set(came)) == 1:
        return RankCorrelation(0.0, -1.0, 1.0, n_pairs)
    tau = float(kendalltau(guessed, came).statistic)
    z = math.atanh(min(max(tau, -0.999999), 0.999999))
    spread = float(norm.ppf(confidence)) * math.sqrt(0.437 / (n_pairs - 4))
    return RankCorrelation(tau, math.tanh(z - spread), math.tanh(z + spread), n_pairs)


class SurrogatePruner(Forgetful, BasePruner):
    """Stops trials before their first step by what a model guesses of their architecture.

    - It begins to stop when enough trials have finished, and only while the lower 99 % bound of Kendall's tau between
      guess and value is above 0; when it is not, it says so once and lets all pass.
    - A share of the condemned live, chosen by seed and number, so that the correlation can be known.
    - What it lets pass goes on to the wrapped pruner, which reads the learning curve.

    Args:
        space: What trials choose from.
        pruner: Decides on the learning curve; by default nothing is stopped by it.
        spared: Share of condemned trials that live, in (0, 1].
        n_startup_trials: Finished trials before the first is stopped.
        seed: Decides who is spared.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self, space: Space, pruner: BasePruner | None, spared: float, n_startup_trials: int, seed: int
    ) -> None:
        if not 0 < spared <= 1:
            raise ValueError(
                f"`spared` must be in (0, 1] but got {spared}; where nobody is spared, nobody knows who was right."
            )
        if n_startup_trials < 5:
            raise ValueError(f"`n_startup_trials` must be at least 5 to tell anything but got {n_startup_trials}.")
        self.space = space
        self._pruner = pruner or NopPruner()
        self._spared, self._n_startup_trials, self._seed = spared, n_startup_trials, seed
        super().__init__()

    def _can_guess(self) -> bool:
        """Tell whether there is a model that has learned."""
        return True

    @abstractmethod
    def _guess(self, trial: FrozenTrial) -> float:
        """Return what is guessed of a trial's architecture, larger is better; quick when asked again."""

    @abstractmethod
    def _condemns(self, study: Study, trial: FrozenTrial, guess: float) -> str | None:
        """Return why a trial is to be stopped, in one sentence; None to let it pass."""

    def _forget(self) -> None:
        super()._forget()
        self._lock = threading.RLock()
        self._watch: WeakKeyDictionary[BaseStorage, dict[int, _Watch]] = WeakKeyDictionary()

    def correlation(self, study: Study) -> RankCorrelation:
        """Return how well the guesses rank the trials that have finished so far, the newest 200."""
        with self._lock:
            watch = self._watch.setdefault(study._storage, {}).setdefault(study._study_id, _Watch())
            sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
            for trial in watch.finished.take(study._get_trials(deepcopy=False, use_cache=True)):
                if trial.state == TrialState.COMPLETE and np.isfinite(trial.values).all() and self._is_ours(trial):
                    watch.guessed.append(self._guess(trial))
                    watch.came.append(sign * trial.values[0])
            return rank_correlation(watch.guessed[-WATCHED:], watch.came[-WATCHED:])

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        if trial.intermediate_values or not self._is_ours(trial) or not self._can_guess():
            return self._pruner.prune(study, trial)
        guess = self._guess(trial)
        if SURROGATE_SCORE not in trial.user_attrs:
            study._storage.set_trial_user_attr(trial._trial_id, SURROGATE_SCORE, guess)
        reason = self._condemns(study, trial, guess)
        if reason is None or not self._may_speak(study):
            return False
        spared = self._is_spared(trial)
        text = f"{reason}; spared, to see whether that was right" if spared else reason
        study._storage.set_trial_user_attr(trial._trial_id, CONDEMNED, text)
        return not spared

    def _may_speak(self, study: Study) -> bool:
        correlation = self.correlation(study)
        if correlation.n_trials < self._n_startup_trials:
            return False
        if correlation.lower > 0:
            return True
        with self._lock:
            watch = self._watch[study._storage][study._study_id]
            if not watch.warned:
                watch.warned = True
                logger.warning(
                    "%s lets all trials pass: over %d finished trials its guess has a rank correlation of %.2f with "
                    "their values, with a lower bound of %.2f.",
                    type(self).__name__,
                    correlation.n_trials,
                    correlation.tau,
                    correlation.lower,
                )
        return False

    def _is_spared(self, trial: FrozenTrial) -> bool:
        return hash_of(f"{self._seed}/{trial.number}") / 2**64 < self._spared

    def _is_ours(self, trial: FrozenTrial) -> bool:
        return self.space.distributions().keys() <= trial.params.keys()


class _Watch:
    """What was guessed of the completed trials of a study, and what they came to."""

    def __init__(self) -> None:
        self.guessed: list[float] = []
        self.came: list[float] = []
        self.warned = False
        self.finished = FinishedTrials()

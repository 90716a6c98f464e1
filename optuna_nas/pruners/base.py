"""Prune by a predicted score before training; disabled while predictions do not rank finished trials significantly."""

from __future__ import annotations

import logging
import math
import threading
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
from optuna.pruners import BasePruner, MedianPruner
from optuna.trial import TrialState

from optuna_nas.storage.attributes import (
    FLAGGED,
    SURROGATE_SCORE,
    Unverified,
    attribute,
    find_trial,
    has_attribute,
    hash_of,
    random_scores_key,
    read_json,
    write_json,
)
from optuna_nas.storage.directions import oriented
from optuna_nas.storage.finished import FinishedTrials, PerStudy, PicklesSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

    from optuna_nas.space import Architecture, Space

logger = logging.getLogger(__name__)

SCORED_A_TRIAL = 100
"""Random architectures that a trial waits for at most."""
MAX_TRIALS = 200
"""Finished trials, the newest, from which a correlation is taken."""


class RankCorrelation(NamedTuple):
    """Kendall's tau between scores and values of trials, with bounds, each held at the confidence asked for.

    The bounds are Fieller's (1957): atanh(tau) has about the variance 0.437 / (n - 4).
    """

    tau: float
    lower: float
    upper: float
    n_trials: int


def rank_correlation(scores: list[float], values: list[float], confidence: float = 0.99) -> RankCorrelation:
    """Return Kendall's tau-b of two lists and its bounds, each at a confidence in (0.5, 1).

    Fewer than 5 pairs, or pairs of which one side is constant, tell nothing: tau 0 between -1 and 1.
    """
    n_pairs = len(scores)
    if n_pairs < 5 or len(set(scores)) == 1 or len(set(values)) == 1:
        return RankCorrelation(0.0, -1.0, 1.0, n_pairs)
    from scipy.stats import kendalltau, norm  # a second to import, for each process

    tau = float(kendalltau(scores, values).statistic)
    z = math.atanh(min(max(tau, -0.999999), 0.999999))
    spread = float(norm.ppf(confidence)) * math.sqrt(0.437 / (n_pairs - 4))
    return RankCorrelation(tau, math.tanh(z - spread), math.tanh(z + spread), n_pairs)


def should_prune(trial: Trial) -> bool:
    """Ask the pruner of a trial's study, as `trial.should_prune()` does, also where that refuses.

    In a study of several objectives Optuna's pruners have no curve to look at; the pruners of this package are asked
    about the architecture, before the first step.
    """
    study = trial.study
    if len(study.directions) == 1:
        return trial.should_prune()
    if not isinstance(study.pruner, SurrogatePruner):
        return False
    return study.pruner.prune(study, study._storage.get_trial(trial._trial_id))


class SurrogatePruner(PicklesSettings, BasePruner):
    """Prune trials before their first step by a predicted score of their architecture.

    - It begins to stop when enough trials have finished, and only while the lower 99 % bound of Kendall's tau between
      score and value is above 0; when it is not, it says so once and lets all pass.
    - A share of the flagged trials is exempt, chosen by seed and number, so that the correlation can be known.
    - What it lets pass goes on to the wrapped pruner, which reads the learning curve; trials of another space do so at
      once, and a warning says it.
    - In a study of several objectives, which take no reports, it judges by the first one; ask `should_prune(trial)`.

    Args:
        space: What trials choose from.
        pruner: Decides on the learning curve of trials that pass; by default Optuna's median pruner.
        exempt: Share of flagged trials that train anyway, in (0, 1].
        n_startup_trials: Finished trials before the first is stopped.
        seed: Seed of the choice of exempt trials.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self, space: Space, pruner: BasePruner | None, exempt: float, n_startup_trials: int, seed: int
    ) -> None:
        if not 0 < exempt <= 1:
            raise ValueError(
                f"`exempt` must be in (0, 1] but got {exempt}; where no trial is exempt, nobody knows who was right."
            )
        if n_startup_trials < 5:
            raise ValueError(f"`n_startup_trials` must be at least 5 to tell anything but got {n_startup_trials}.")
        self.space = space
        self._distributions = space.distributions()
        self.pruner = MedianPruner() if pruner is None else pruner
        self._exempt, self._n_startup_trials, self._seed = exempt, n_startup_trials, seed
        super().__init__()

    def _can_score(self) -> bool:
        """Tell whether there is a model that has learned."""
        return True

    @abstractmethod
    def _score(self, trial: FrozenTrial) -> float:
        """Return the score of a trial's architecture, larger is better; quick when asked again."""

    @abstractmethod
    def _flags(self, study: Study, trial: FrozenTrial, score: float) -> str | None:
        """Return why a trial is to be stopped, in one sentence; None to let it pass."""

    def _init_state(self) -> None:
        super()._init_state()
        self._lock = threading.RLock()
        self._warned_of_space = False
        self._watch = PerStudy(_Watch)

    def correlation(self, study: Study) -> RankCorrelation:
        """Return how well scores rank the trials that have finished so far, the newest 200."""
        with self._lock:
            watch = self._watch.of(study)
            for trial in watch.finished.take(study._get_trials(deepcopy=False, use_cache=True)):
                if trial.state == TrialState.COMPLETE and np.isfinite(trial.values).all() and self._is_ours(trial):
                    watch.scores.append(self._score(trial))
                    watch.values.append(oriented(trial.values[0], study.directions[0]))
            return rank_correlation(watch.scores[-MAX_TRIALS:], watch.values[-MAX_TRIALS:])

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        if not trial.intermediate_values and not self._is_ours(trial):
            self._warn_of(trial)
        if trial.intermediate_values or not self._is_ours(trial) or not self._can_score():
            return self._ask_wrapped(study, trial)
        score = self._score(trial)
        if not has_attribute(trial.user_attrs, SURROGATE_SCORE):
            study._storage.set_trial_user_attr(trial._trial_id, SURROGATE_SCORE, score)
        reason = self._flags(study, trial, score)
        if reason is None or not self._may_speak(study):
            return False
        exempt = self._is_exempt(trial)
        text = f"{reason}; exempt, to see whether that was right" if exempt else reason
        study._storage.set_trial_user_attr(trial._trial_id, FLAGGED, text)
        return not exempt

    def _ask_wrapped(self, study: Study, trial: FrozenTrial) -> bool:
        if len(study.directions) > 1:
            return False  # it would look for a curve
        try:
            return self.pruner.prune(study, trial)
        except Exception as error:
            raise RuntimeError(
                f"`pruner` must answer for every trial but {type(self.pruner).__name__} raised "
                f"{type(error).__name__} at trial {trial.number} ({error}); repair it, or leave it out."
            ) from error

    def _warn_of(self, trial: FrozenTrial) -> None:
        if not self._warned_of_space:
            self._warned_of_space = True
            logger.warning(
                "`space` of %s must be what trials choose from but trial %d chooses from another; such trials go to "
                "the wrapped pruner alone.",
                type(self).__name__,
                trial.number,
            )

    def _may_speak(self, study: Study) -> bool:
        correlation = self.correlation(study)
        if correlation.n_trials < self._n_startup_trials:
            return False
        if correlation.lower > 0:
            return True
        with self._lock:
            watch = self._watch.of(study)
            if not watch.warned:
                watch.warned = True
                logger.warning(
                    "%s lets all trials pass: over %d finished trials its score has a rank correlation of %.2f with "
                    "their values, with a lower bound of %.2f.",
                    type(self).__name__,
                    correlation.n_trials,
                    correlation.tau,
                    correlation.lower,
                )
        return False

    def _is_exempt(self, trial: FrozenTrial) -> bool:
        return hash_of(f"{self._seed}/{trial.number}") / 2**64 < self._exempt

    def _is_ours(self, trial: FrozenTrial) -> bool:
        ours = self._distributions
        return all(trial.distributions.get(name) == distribution for name, distribution in ours.items())


class QuantilePruner(SurrogatePruner):
    """Stops trials whose architecture scores below a quantile of random ones.

    Args:
        space: What trials choose from.
        pruner: Decides on the learning curve of trials that pass; by default Optuna's median pruner.
        quantile: Share of random architectures below whose score a trial is stopped, in (0, 1).
        n_random: Random architectures that are scored to know that quantile, 100 with each of the first trials.
        exempt: Share of flagged trials that train anyway, in (0, 1].
        n_startup_trials: Finished trials before the first is stopped.
        seed: Seed of the random architectures and of the choice of exempt trials.

    Raises:
        ValueError: An argument is out of range.
    """

    name: ClassVar[str]
    """Of the model that scores, in attributes."""

    def __init__(
        self,
        space: Space,
        pruner: BasePruner | None,
        quantile: float,
        n_random: int,
        exempt: float,
        n_startup_trials: int,
        seed: int,
    ) -> None:
        if not 0 < quantile < 1:
            raise ValueError(f"`quantile` must be in (0, 1) but got {quantile}; scores are good for a quarter.")
        if n_random < 10:
            raise ValueError(f"`n_random` must be at least 10 to know a quantile but got {n_random}.")
        self._quantile, self._n_random = quantile, n_random
        super().__init__(space, pruner, exempt, n_startup_trials, seed)

    @abstractmethod
    def _scores(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        """Return the scores of architectures, larger is better."""

    @abstractmethod
    def _step(self) -> int:
        """Return the step of the model; scores are of one step."""

    def _init_state(self) -> None:
        super()._init_state()
        self._known: tuple[int, list[NDArray[np.float64]]] = -1, []  # step of the model, what random ones score there

    def threshold(self, study: Study, number: int) -> float:
        """Return the score below which the trial of a number is stopped."""
        scores = np.concatenate(self._random_scores(study, number))
        return float(np.quantile(np.where(np.isfinite(scores), scores, -np.inf), self._quantile, method="lower"))

    def _random_scores(self, study: Study, number: int) -> list[NDArray[np.float64]]:
        """Return what random architectures score: a piece for every trial up to this one, until all are scored.

        So that no trial waits for more than a piece and all processes know the same, its trial publishes each.
        """
        with self._lock:
            step = self._step()
            if self._known[0] != step:
                self._known = step, []
            pieces = self._known[1]
            n_pieces = -(-self._n_random // SCORED_A_TRIAL)
            for piece in range(len(pieces), min(number + 1, n_pieces)):
                scores = self._published(study, piece, step)
                if scores is None:
                    first, last = piece * SCORED_A_TRIAL, min(self._n_random, (piece + 1) * SCORED_A_TRIAL)
                    randoms = [np.random.default_rng([self._seed, place]) for place in range(first, last)]
                    scores = self._scores([self.space.sample(random) for random in randoms])
                    trial = find_trial(study, piece)
                    if piece == number and trial is not None and not trial.state.is_finished():
                        value = {"step": step, "piece": piece, "scores": scores.tolist()}
                        write_json(study, trial, self._key, value)
                pieces.append(scores)
            return pieces[: number + 1]

    @property
    def _key(self) -> str:
        return random_scores_key(self.name)

    def _published(self, study: Study, piece: int, step: int) -> NDArray[np.float64] | None:
        trial = find_trial(study, piece)
        try:
            value = None if trial is None else read_json(trial.system_attrs, self._key)
        except Unverified:
            return None
        # A retried trial holds copies of what another one published.
        if value is None or (value["step"], value["piece"]) != (step, piece):
            return None
        return np.array(value["scores"])

    def _score(self, trial: FrozenTrial) -> float:
        known = attribute(trial.user_attrs, SURROGATE_SCORE)
        if isinstance(known, int | float):
            return float(known)
        score = float(self._scores([self.space.decode(trial.params)])[0])
        return score if np.isfinite(score) else -np.inf

    def _flags(self, study: Study, trial: FrozenTrial, score: float) -> str | None:
        threshold = self.threshold(study, trial.number)
        if score >= threshold:
            return None
        share = f"{self._quantile:.0%} of random architectures"
        return f"its score of {score:.4g} is below {threshold:.4g}, that of {share}"


class _Watch:
    """Scores and values of the completed trials of a study."""

    def __init__(self) -> None:
        self.scores: list[float] = []
        self.values: list[float] = []
        self.warned = False
        self.finished = FinishedTrials()

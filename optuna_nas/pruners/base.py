"""Prune by a predicted score before training; disabled while predictions do not rank finished trials significantly."""

from __future__ import annotations

import logging
import math
import threading
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple, cast

import numpy as np
from optuna.pruners import BasePruner, MedianPruner
from optuna.trial import TrialState

from optuna_nas.storage.architecture_notes import note_score, score_noted
from optuna_nas.storage.attributes import (
    FLAGGED,
    Unverified,
    find_trial,
    hash_of,
    random_scores_key,
    read_json,
    write_json,
)
from optuna_nas.storage.directions import oriented
from optuna_nas.storage.finished import FinishedTrials, PerStudy, PicklesSettings
from optuna_nas.storage.identity import study_uid
from optuna_nas.training.rules import at_least, fields_of, items, number, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from optuna import Study
    from optuna.trial import BaseTrial, FrozenTrial, Trial

    from optuna_nas.space import Architecture, Space

logger = logging.getLogger(__name__)

SCORED_A_TRIAL = 100
"""Random architectures that a trial scores at most."""
_PUBLISHED = fields_of({"step": at_least(0), "piece": at_least(0), "scores": items(number()), "study": text()})
"""Rule of scores of random architectures that a trial has published."""
MAX_TRIALS = 200
"""Newest finished trials over which the rank correlation is computed."""


class RankCorrelation(NamedTuple):
    """Kendall's tau between scores and values, with confidence bounds.

    The bounds are those of Fieller et al. (1957): atanh(tau) has a variance of about 0.437 / (n - 4).

    Args:
        tau: Kendall's tau-b, in [-1, 1].
        lower: Lower confidence bound, -1 if unknown.
        upper: Upper confidence bound, 1 if unknown.
        n_trials: Number of trials.
    """

    tau: float
    lower: float
    upper: float
    n_trials: int


def rank_correlation(scores: list[float], values: list[float], confidence: float = 0.99) -> RankCorrelation:
    """Return Kendall's tau-b of two lists with its confidence bounds.

    With fewer than 5 pairs, or if a list is constant, tau is 0 with the bounds -1 and 1.

    Args:
        scores: First list.
        values: Second list, of the same length.
        confidence: Confidence of each of the two bounds, in (0.5, 1).

    Example:
        >>> from optuna_nas.pruners.base import rank_correlation
        >>> correlation = rank_correlation([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 2.0, 4.0, 3.0, 5.0, 6.0])
        >>> round(correlation.tau, 2), correlation.lower > 0
        (0.87, True)
    """
    n_pairs = len(scores)
    if n_pairs < 5 or len(set(scores)) == 1 or len(set(values)) == 1:
        return RankCorrelation(0.0, -1.0, 1.0, n_pairs)
    from scipy.stats import kendalltau, norm  # importing scipy.stats was measured to take a second in each process

    tau = float(kendalltau(scores, values).statistic)
    z = math.atanh(min(max(tau, -0.999999), 0.999999))
    spread = float(norm.ppf(confidence)) * math.sqrt(0.437 / (n_pairs - 4))
    return RankCorrelation(tau, math.tanh(z - spread), math.tanh(z + spread), n_pairs)


def should_prune(trial: BaseTrial) -> bool:
    """Return whether a trial should be pruned; `trial.should_prune()` for studies with any number of objectives.

    With several objectives Optuna supports no pruning, since trials cannot report. The pruners of this package judge
    the architecture before its training and support it; with all other pruners the result is False.

    Args:
        trial: Running trial; a `FixedTrial` or a finished trial, with which an objective is called again, goes on.

    Example:
        >>> import optuna
        >>> from optuna_nas import should_prune
        >>> study = optuna.create_study(directions=["maximize", "minimize"])
        >>> should_prune(study.ask())
        False
    """
    study = getattr(trial, "study", None)
    if study is None or len(study.directions) == 1:
        return trial.should_prune()
    if not isinstance(study.pruner, SurrogatePruner):
        return False
    return study.pruner.prune(study, study._storage.get_trial(cast("Trial", trial)._trial_id))


class SurrogatePruner(PicklesSettings, BasePruner):
    """Base class of pruners that prune before training by a predicted score of the architecture.

    - Pruning starts after `n_startup_trials` finished trials, and only while the lower 99 % bound of Kendall's tau
      between scores and values is above 0. Otherwise all trials pass, with one warning.
    - A fraction of the flagged trials is exempt, chosen by seed and number, so that the correlation stays measurable.
    - Trials that pass are judged by the wrapped pruner, which reads the learning curve; so are trials of another space,
      with a warning.
    - With several objectives, trials report no learning curve; the first objective is used. Call `should_prune(trial)`.

    Args:
        space: Search space of the trials.
        pruner: Pruner that judges the learning curve of trials that pass; by default Optuna's median pruner.
        exempt: Fraction of flagged trials that are trained anyway, in (0, 1].
        n_startup_trials: Number of finished trials before the first one is pruned, at least 5.
        seed: Seed of the choice of exempt trials.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self, space: Space, pruner: BasePruner | None, exempt: float, n_startup_trials: int, seed: int
    ) -> None:
        if not 0 < exempt <= 1:
            raise ValueError(
                f"`exempt` must be in (0, 1] but got {exempt}; without exempt trials the predictions cannot be checked."
            )
        if n_startup_trials < 5:
            raise ValueError(f"`n_startup_trials` must be at least 5 for a correlation but got {n_startup_trials}.")
        self.space = space
        self._distributions = space.distributions()
        self.pruner = MedianPruner() if pruner is None else pruner
        self._exempt, self._n_startup_trials, self._seed = exempt, n_startup_trials, seed
        super().__init__()

    @property
    def meaning(self) -> str:
        """What the score is, in a few words, for the axes of plots."""
        return f"score of {type(self).__name__}"

    def _can_score(self) -> bool:
        """Return whether there are scores, which a model that is not fitted does not give."""
        return True

    @abstractmethod
    def _score(self, trial: FrozenTrial) -> float:
        """Return the score of a trial's architecture, larger is better; called repeatedly for a trial."""

    @abstractmethod
    def _flags(self, study: Study, trial: FrozenTrial, score: float) -> str | None:
        """Return the reason to prune a trial, one sentence; None to let it pass."""

    def _init_state(self) -> None:
        super()._init_state()
        self._lock = threading.RLock()
        self._warned_of_space = False
        self._watch = PerStudy(_Watch)

    def correlation(self, study: Study) -> RankCorrelation:
        """Return the rank correlation between scores and values of the newest 200 finished trials."""
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
        if score_noted(trial, self.space.options()) is None:
            note_score(study, trial, score, trial.params, self.space.options(), self.meaning)
        reason = self._flags(study, trial, score)
        if reason is None or not self._is_enabled(study):
            return False
        exempt = self._is_exempt(trial)
        text = f"{reason}; exempt, to check the predictions" if exempt else reason
        study._storage.set_trial_user_attr(trial._trial_id, FLAGGED, text)
        return not exempt

    def _ask_wrapped(self, study: Study, trial: FrozenTrial) -> bool:
        if len(study.directions) > 1:
            return False  # there is no learning curve to judge
        try:
            return self.pruner.prune(study, trial)
        except Exception as error:
            raise RuntimeError(
                f"`pruner` must answer for every trial but {type(self.pruner).__name__} raised "
                f"{type(error).__name__} at trial {trial.number} ({error}); fix it, or leave it out."
            ) from error

    def _warn_of(self, trial: FrozenTrial) -> None:
        if not self._warned_of_space:
            self._warned_of_space = True
            logger.warning(
                "`space` of %s must be that of the trials but trial %d has another; such trials are judged by the "
                "wrapped pruner alone.",
                type(self).__name__,
                trial.number,
            )

    def _is_enabled(self, study: Study) -> bool:
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
                    "%s lets all trials pass: over %d finished trials its scores have a rank correlation of %.2f with "
                    "the values, with a lower bound of %.2f.",
                    type(self).__name__,
                    correlation.n_trials,
                    correlation.tau,
                    correlation.lower,
                )
        return False

    def _is_exempt(self, trial: FrozenTrial) -> bool:
        return hash_of(f"{self._seed}/{trial.number}") / 2**64 < self._exempt

    def _is_ours(self, trial: FrozenTrial) -> bool:
        distributions = self._distributions.items()
        return all(trial.distributions.get(name) == distribution for name, distribution in distributions)


class QuantilePruner(SurrogatePruner):
    """Base class of pruners with a threshold at a quantile of the scores of random architectures.

    Args:
        space: Search space of the trials.
        pruner: Pruner that judges the learning curve of trials that pass; by default Optuna's median pruner.
        quantile: Quantile of the scores of random architectures below which trials are pruned, in (0, 1).
        n_random: Number of random architectures for the quantile, at least 10; each of the first trials scores 100.
        exempt: Fraction of flagged trials that are trained anyway, in (0, 1].
        n_startup_trials: Number of finished trials before the first one is pruned, at least 5.
        seed: Seed of the random architectures and of the choice of exempt trials.

    Raises:
        ValueError: An argument is out of range.
    """

    name: ClassVar[str]
    """Name of the scoring model in attributes."""

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
            raise ValueError(f"`quantile` must be in (0, 1) but got {quantile}; 0.25 suits most scores.")
        if n_random < 10:
            raise ValueError(f"`n_random` must be at least 10 for a quantile but got {n_random}.")
        self._quantile, self._n_random = quantile, n_random
        super().__init__(space, pruner, exempt, n_startup_trials, seed)

    @abstractmethod
    def _scores(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        """Return the scores of architectures, larger is better."""

    @abstractmethod
    def _step(self) -> int:
        """Return the training step of the model; only scores of the same step are compared."""

    def _init_state(self) -> None:
        super()._init_state()
        # Step of the model, and the scores of random architectures at that step, in pieces.
        self._random_pieces: tuple[int, list[NDArray[np.float64]]] = -1, []

    def threshold(self, study: Study, number: int) -> float:
        """Return the score below which the trial with a number is pruned."""
        scores = np.concatenate(self._random_scores(study, number))
        return float(np.quantile(np.where(np.isfinite(scores), scores, -np.inf), self._quantile, method="lower"))

    def _random_scores(self, study: Study, number: int) -> list[NDArray[np.float64]]:
        """Return scores of random architectures in pieces, one piece for each trial up to this one, until complete.

        Each piece is scored and published by its trial. No trial thus scores more than one piece, and all processes
        use the same scores.
        """
        with self._lock:
            step = self._step()
            if self._random_pieces[0] != step:
                self._random_pieces = step, []
            pieces = self._random_pieces[1]
            n_pieces = -(-self._n_random // SCORED_A_TRIAL)
            for piece in range(len(pieces), min(number + 1, n_pieces)):
                scores = self._published(study, piece, step)
                if scores is None:
                    first, last = piece * SCORED_A_TRIAL, min(self._n_random, (piece + 1) * SCORED_A_TRIAL)
                    randoms = [np.random.default_rng([self._seed, place]) for place in range(first, last)]
                    scores = self._scores([self.space.sample(random) for random in randoms])
                    trial = find_trial(study, piece)
                    if piece == number and trial is not None and not trial.state.is_finished():
                        value = {"step": step, "piece": piece, "scores": scores.tolist(), "study": study_uid(study)}
                        write_json(study, trial, self._key, value)
                pieces.append(scores)
            return pieces[: number + 1]

    @property
    def _key(self) -> str:
        return random_scores_key(self.name)

    def _published(self, study: Study, piece: int, step: int) -> NDArray[np.float64] | None:
        trial = find_trial(study, piece)
        try:
            value = None if trial is None else read_json(trial.system_attrs, self._key, _PUBLISHED)
        except Unverified:
            return None
        # A retried or copied trial holds copies of the attributes of an earlier trial.
        if value is None or (value["step"], value["piece"], value["study"]) != (step, piece, study_uid(study)):
            return None
        if len(value["scores"]) != min(self._n_random, (piece + 1) * SCORED_A_TRIAL) - piece * SCORED_A_TRIAL:
            return None
        return np.array(value["scores"])

    def _score(self, trial: FrozenTrial) -> float:
        stored = score_noted(trial, self.space.options())
        if stored is not None:
            return stored
        score = float(self._scores([self.space.decode(trial.params)])[0])
        return score if np.isfinite(score) else -np.inf

    def _flags(self, study: Study, trial: FrozenTrial, score: float) -> str | None:
        threshold = self.threshold(study, trial.number)
        if score >= threshold:
            return None
        return f"its score of {score:.4g} is below {threshold:.4g}, the {self._quantile:.0%} quantile of random ones"


class _Watch:
    """Scores and values of the completed trials of a study, in the order in which they were read."""

    def __init__(self) -> None:
        self.scores: list[float] = []
        self.values: list[float] = []
        self.warned = False
        self.finished = FinishedTrials()

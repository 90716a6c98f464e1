"""Propose architectures from a distribution that is learned with a supernet, from finished trials, or both."""

from __future__ import annotations

import base64
import logging
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.trial import TrialState

from optuna_nas.oneshot.free.prior import main_effects
from optuna_nas.oneshot.snas.distribution import DistributionRecord, draw, entropies, softmax
from optuna_nas.oneshot.snas.options import best_of
from optuna_nas.oneshot.snas.score_function import Outcome, ScoreFunction
from optuna_nas.samplers.base import ArchitectureSampler
from optuna_nas.space.choice_space import as_space
from optuna_nas.storage.architecture_notes import digest_noted
from optuna_nas.storage.attributes import (
    SNAS_RECORDS,
    Unverified,
    constraints_of,
    given_params,
    read_json,
    write_fit_records,
    write_json,
)
from optuna_nas.storage.directions import oriented
from optuna_nas.storage.finished import FinishedTrials, PerStudy
from optuna_nas.storage.in_study_fit import InStudyFit
from optuna_nas.training.rules import not_negative

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.study import StudyDirection
    from optuna.trial import FrozenTrial

    from optuna_nas.data.splits import Data
    from optuna_nas.oneshot import OneShotModel, Score
    from optuna_nas.space import Architecture, Space
    from optuna_nas.storage.model_rounds import Snapshot
    from optuna_nas.storage.optuna_rdb import ArtifactStore

logger = logging.getLogger(__name__)

RECORDS_A_ROUND = 10
"""Records of the distribution that a training round stores, about."""
TRIALS_A_RECORD = 5
"""Trials per stored record if nothing is trained in the study."""
MAX_DRAWS = 100
"""Draws per trial in search of a new, connected architecture."""
NOVELTY = 0.02
"""Weight of the uniform distribution that is mixed in after every draw of a duplicate."""


class SNASSampler(ArchitectureSampler):
    """Sampler that draws from the factorised distribution of SNAS (Xie et al. 2019, arXiv 1812.09926).

    - With a model and `data`, the distribution is learned by the paper's pathwise gradient during the study. The first
      of every `trials_per_round` trials trains the model for its part of the budget, publishes it and proposes the most
      likely architecture. All other trials, in any process, draw from the newest published distribution without
      waiting. The temperature falls with the number of the trial.
    - With a model but no `data`, the distribution is that of the model, which may be fitted elsewhere meanwhile.
    - Without a model, the distribution is learned from finished trials of any objective by the score function
      (REINFORCE with a rank baseline and natural gradient). With several objectives a trial is better than another if
      it dominates it. Infeasible trials rank below feasible ones, pruned trials below completed ones; failed trials do
      not count.
    - With a model and `learn_from_trials=True`, the two distributions are multiplied.

    The attribute `learning` names what is learned from. Random numbers depend only on the seed, the number of the trial
    and the name of the parameter.

    Args:
        space: Search space; of any kind if there is no model. Optuna distributions stand for a `ChoiceSpace` of those
            that are categorical; the others go to the independent sampler.
        model: `SNAS` of the same space, or another `OneShotModel` with `logits`, an array of shape (paths, options) in
            the order of the space's parameters and choices; rows of fewer options end with minus infinity.
        data: Data to train the model on during the study.
        budget: Epochs of that training in all, larger than 0. A round that is still trained by one process when another
            process starts the next round is trained by both, with equal results.
        budget_seconds: Seconds of that training, larger than 0, to which `budget` is lowered where it would take
            longer. None keeps it, so that what is learned does not depend on the clock.
        n_trials: Trials over which the budget is spent; by default the total of the search, or 100.
        trials_per_round: Trials per training round, at least 1.
        learn_from_trials: Whether to learn from finished trials; by default only without a model.
        learning_rate: Learning rate of the score function; see `ScoreFunction`.
        prior: Function that scores architectures, such as a `FreeScore`, by whose main effects the distribution is
            multiplied; larger is better. The first trial of a process computes them.
        prior_strength: Logits per standard deviation of the score that an option is worth, at least 0.
        independent_sampler: Sampler of parameters outside the space; by default Optuna's TPE.
        artifact_store: Artifact store of the rounds, reachable by all workers; by default the folder
            `runs/STUDY/artifacts`.
        avoid_duplicates: Whether to avoid architectures of finished trials, and with `TrainObjective` those that
            compute the same function, as long as the trial has no parameters outside the space.
        device: Device of the training: `auto` (a GPU if there is one), or a torch device.
        seed: Seed of the random numbers; None draws one.

    Raises:
        ValueError: An argument is out of range, or the model has another space.

    Example:
        >>> import optuna
        >>> from optuna_nas import SNASSampler, nasbench201_space
        >>> space = nasbench201_space()
        >>> study = optuna.create_study(direction="maximize", sampler=SNASSampler(space, seed=0))
        >>> study.optimize(lambda trial: str(space.suggest(trial)).count("conv"), n_trials=60)
        >>> study.best_value
        6.0
    """

    def __init__(
        self,
        space: Space | Mapping[str, BaseDistribution],
        model: OneShotModel[Any] | None = None,
        *,
        data: Data | None = None,
        budget: float | None = None,
        budget_seconds: float | None = None,
        n_trials: int | None = None,
        trials_per_round: int = 10,
        learn_from_trials: bool | None = None,
        learning_rate: float = 0.2,
        prior: Score | None = None,
        prior_strength: float = 2.0,
        independent_sampler: BaseSampler | None = None,
        artifact_store: ArtifactStore | None = None,
        avoid_duplicates: bool = True,
        device: str = "auto",
        seed: int | None = None,
    ) -> None:
        space = as_space(space)
        if model is not None and model.space.core != space.core:
            raise ValueError("`model` must have the sampler's space but has another; pass `model.space`.")
        if model is not None and not hasattr(model, "logits"):
            raise ValueError(
                f"`model` must have `logits` to draw from but a {model.name} has none; use GHNSampler to score a pool."
            )
        if learn_from_trials is None:
            learn_from_trials = model is None
        if not learn_from_trials and model is None:
            raise ValueError("`learn_from_trials` must not be False without `model`; nothing would be learned.")
        not_negative()("prior_strength", prior_strength)
        self.model, self._prior, self._prior_strength = model, prior, prior_strength
        self.learning = " and ".join(
            ["pathwise gradient of a supernet"] * (model is not None) + ["score function of trials"] * learn_from_trials
        )
        self._data, self._budget, self._budget_seconds, self._device = data, budget, budget_seconds, device
        self._n_trials, self._trials_per_round, self._given_store = n_trials, trials_per_round, artifact_store
        self._learn_from_trials, self._learning_rate = learn_from_trials, learning_rate
        self._avoid_duplicates = avoid_duplicates
        super().__init__(space, independent_sampler, seed)
        logger.info("SNASSampler learns by the %s.", self.learning)

    def _init_state(self) -> None:
        super()._init_state()
        self._lock = threading.RLock()
        self._prior_PO: NDArray[np.float64] | None = None
        sizes = [len(distribution.choices) for distribution in self._distributions.values()]
        self._folds = PerStudy(lambda: _Fold(ScoreFunction(sizes, self._learning_rate)))

    def _make_fit(self) -> InStudyFit[NDArray[np.float64]] | None:
        fit: InStudyFit[NDArray[np.float64]] = InStudyFit(
            self.model,
            self._data,
            self._budget,
            budget_seconds=self._budget_seconds,
            n_trials=self._n_trials,
            trials_per_round=self._trials_per_round,
            artifact_store=self._given_store,
            device=self._device,
            name="SNAS" if self.model is None else self.model.name,
            content=None if self.model is None else _Logits(self.model),
            passes_over=self._is_fixed,
            write_records=partial(_write_round, self.model.name) if self.model is not None else None,
        )
        return fit if fit.trains else None

    def catch_up(self, study: Study) -> OneShotModel[Any]:
        """Load the newest published state of a study into the model and return the model.

        Raises:
            ValueError: The sampler has no model.
        """
        if self.model is None:
            raise ValueError("`model` must be given to catch up but is None; this sampler learns from trials alone.")
        self._newest(study, len(study.get_trials(deepcopy=False)))
        return self.model

    # -- proposals ------------------------------------------------------------------------------------------------

    def probabilities(self, study: Study) -> dict[str, dict[str, float]]:
        """Return the probability of every option by path, as the next trial of the study would see it."""
        trials = study.get_trials(deepcopy=False)
        table = self._table(self._fold(study, trials), self._newest(study, len(trials)))
        return {
            path: {str(choice): float(row[position]) for choice, position in positions.items()}
            for (path, positions), row in zip(self._positions.items(), table, strict=True)
        }

    def n_outcomes(self, study: Study) -> int:
        """Return the number of finished trials of a study that the distribution has learned from."""
        fold = self._fold(study)
        return 0 if fold is None else fold.policy.n_outcomes

    def _propose(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        """Return the parameters of a new, connected architecture, if 100 draws contain one."""
        fold, snapshot = self._fold(study), self._newest(study, trial.number)
        table = self._table(fold, snapshot)
        self._record(study, trial, table)
        given = given_params(trial)
        fixed = {
            number: positions[given[path]]
            for number, (path, positions) in enumerate(self._positions.items())
            if path in given and given[path] in positions
        }
        is_taken = fold.is_taken if fold is not None and self._avoid_duplicates else _never
        if snapshot is not None and snapshot.number == trial.number and not fixed:
            best = self._most_likely(table)
            params = self._params(best)
            if not is_taken(best, self.space.decode(params)):
                return params
        random = self._random(trial, "architecture")
        uniform = (table > 0) / (table > 0).sum(axis=1, keepdims=True)
        last: dict[str, Any] | None = None
        for _ in range(MAX_DRAWS):
            chosen = draw(table, random)
            for position, option in fixed.items():
                chosen[position] = option
            params = self._params(chosen)
            architecture = self.space.decode(params)
            if is_taken(chosen, architecture):
                table = (1 - NOVELTY) * table + NOVELTY * uniform
                continue
            last = params
            if architecture.connected:
                break
        return last or params

    def _most_likely(self, table: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the most probable option of every path; for cells, the most probable connected architecture."""
        return best_of(self.space, np.log(table + 1e-300))

    def _table(self, fold: _Fold | None, snapshot: Snapshot[NDArray[np.float64]] | None) -> NDArray[np.float64]:
        """Return the distribution to draw from, shape (P, O)."""
        with self._lock:
            learned = fold.policy.probabilities if fold is not None and self._learn_from_trials else None
            if self._prior is not None and self._prior_PO is None:
                effects_PO = main_effects(self.space, self._prior)  # equal in all workers
                self._prior_PO = np.exp(self._prior_strength * effects_PO)
        if self.model is None:
            assert learned is not None
            return self._with_prior(np.asarray(learned))
        if self.in_study_fit is None:
            table = softmax(logits_of(self.model).astype(np.float64))
        elif snapshot is None:
            logits = logits_of(self.model).astype(np.float64)
            table = softmax(np.where(np.isneginf(logits), -np.inf, 0.0))  # padding of rows with fewer options stays
        else:
            table = softmax(snapshot.loaded)
        return self._with_prior(table if learned is None else table * learned)

    def _with_prior(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return a distribution multiplied by the prior, rows that sum to 1."""
        if self._prior_PO is not None:
            table = table * self._prior_PO
        probabilities: NDArray[np.float64] = table / table.sum(axis=1, keepdims=True)
        return probabilities

    def _fold(self, study: Study, trials: Sequence[FrozenTrial] | None = None) -> _Fold | None:
        """Return the state learned from the finished trials of a study; None if finished trials are not used.

        With Hyperband, trials of all brackets count: pruned trials are ranked by their last step.
        """
        if not self._learn_from_trials and not self._avoid_duplicates:
            return None
        if trials is None:
            trials = study._get_trials(deepcopy=False, use_cache=True)
        with self._lock:
            fold = self._folds.of(study)
            fold.update(trials, self._positions, study.directions)
            return fold

    def _record(self, study: Study, trial: FrozenTrial, table: NDArray[np.float64]) -> None:
        """Store a record of the distribution every few trials if no training round does."""
        if self.in_study_fit is None and trial.number % TRIALS_A_RECORD == 0:
            record = DistributionRecord(trial.number, {"entropy": float(entropies(table).mean())}, table)
            _write_records(study, trial, [record])

    def _newest(self, study: Study, number: int) -> Snapshot[NDArray[np.float64]] | None:
        """Return the logits of the newest verified round, and load that round into the model."""
        return None if self.in_study_fit is None else self.in_study_fit.newest(study, number)


class _Logits:
    """Content of a round: a copy of the logits, since the model may be trained further while trials draw."""

    def __init__(self, model: OneShotModel[Any]) -> None:
        self._model = model

    def make(
        self, study: Study, trial: FrozenTrial, number: int, before: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        return logits_of(self._model).astype(np.float64)

    def save(self, content: NDArray[np.float64], folder: Path) -> dict[str, Any]:
        logits = content.astype("<f4")
        return {"shape": list(logits.shape), "logits": base64.b64encode(logits.tobytes()).decode()}

    def load(self, value: dict[str, Any], fetch: Callable[[str], Path]) -> NDArray[np.float64]:
        try:
            own = logits_of(self._model)
            logits = np.frombuffer(base64.b64decode(value["logits"]), "<f4").reshape(own.shape)
            if value["shape"] != list(own.shape) or (np.isfinite(logits) != np.isfinite(own)).any():
                raise ValueError("they are of another space")
        except (KeyError, TypeError, ValueError) as error:
            raise Unverified(f"its logits can't be read: {error}") from error
        return logits.astype(np.float64)


def logits_of(model: OneShotModel[Any]) -> NDArray[np.float32]:
    """Return the logits of a model that has them, shape (paths, options); rows of fewer options end with -inf."""
    return np.asarray(model.logits, dtype=np.float32)  # type: ignore[attr-defined]  # checked by SNASSampler


class _Fold:
    """Distribution learned from the finished trials of a study, each read once.

    Trials are taken in the order in which they finished, so that all processes learn the same distribution.
    """

    def __init__(self, policy: ScoreFunction) -> None:
        self.policy = policy
        self._chosen: set[tuple[int, ...]] = set()
        self._digests: set[str] = set()
        self._finished = FinishedTrials()

    def update(
        self,
        trials: Sequence[FrozenTrial],
        positions: Mapping[str, Mapping[Any, int]],
        directions: Sequence[StudyDirection],
    ) -> None:
        for trial in sorted(self._finished.take(trials), key=_finished_at):
            if trial.state == TrialState.FAIL or not positions.keys() <= trial.params.keys():
                continue
            chosen = tuple(of_path.get(trial.params[path], -1) for path, of_path in positions.items())
            if min(chosen) < 0:
                path = list(positions)[chosen.index(-1)]
                raise ValueError(
                    f"`study` must search the sampler's space but trial {trial.number} has {trial.params[path]!r} at "
                    f"{path!r}; give the study another name, or the sampler its space."
                )
            if len(trial.params) == len(positions):
                self._chosen.add(chosen)
                if (digest := digest_noted(trial, positions)) is not None:
                    self._digests.add(digest)
            self.policy.learn(chosen, _outcome(trial, directions))

    def is_taken(self, chosen: NDArray[np.int64], architecture: Architecture) -> bool:
        """Return whether a finished trial had this architecture, or a functional duplicate if trials have digests."""
        if tuple(chosen.tolist()) in self._chosen:
            return True
        return bool(self._digests) and architecture.canonical().digest in self._digests


def _never(chosen: NDArray[np.int64], architecture: Architecture) -> bool:
    return False


def records_of(trial: FrozenTrial) -> list[DistributionRecord]:
    """Return the records of the distribution that a trial stores; most trials store none, and damaged ones none."""
    try:
        published = read_json(trial.system_attrs, SNAS_RECORDS)
    except Unverified:
        return []
    return [
        DistributionRecord(
            record["step"],
            record["metrics"],
            np.array(record["probabilities"], dtype=np.float64),
            None if record["credit"] is None else np.array(record["credit"], dtype=np.float64),
        )
        for record in published or ()
    ]


def distribution_records(study: Study) -> list[DistributionRecord]:
    """Return the history of the distribution of a study's `SNASSampler`, for `plot_distribution`.

    Args:
        study: Study with an `SNASSampler`; may still run.

    Returns:
        Records in increasing order of steps. Steps are training steps of a model that the study trains, or else numbers
        of trials.

    Example:
        >>> import optuna
        >>> from optuna_nas import SNASSampler, distribution_records, nasbench201_space
        >>> space = nasbench201_space()
        >>> study = optuna.create_study(direction="maximize", sampler=SNASSampler(space, seed=0))
        >>> study.optimize(lambda trial: str(space.suggest(trial)).count("conv"), n_trials=6)
        >>> [record.step for record in distribution_records(study)]
        [0, 5]
    """
    trials = study.get_trials(deepcopy=False)
    by_step = {record.step: record for trial in trials for record in records_of(trial)}
    return [by_step[step] for step in sorted(by_step)]


def records_of_space(space: Space, records: Iterable[DistributionRecord]) -> list[DistributionRecord]:
    """Return the records of a distribution over the options of a space; those of another are left out."""
    sizes = [len(options) for options in space.options().values()]
    shape = (len(sizes), max(sizes, default=0))
    return [record for record in records if record.probabilities.shape == shape]


def _write_round(name: str, study: Study, trial: FrozenTrial, records: Sequence[Any]) -> None:
    """Store records of a round in its trial: about 10 distributions, or the learning curve of another model."""
    if all(isinstance(record, DistributionRecord) for record in records):
        every = max(1, len(records) // RECORDS_A_ROUND)
        _write_records(study, trial, records[::-1][::every][::-1])
    else:
        write_fit_records(study, trial, name, [(record.step, record.metrics) for record in records])


def _write_records(study: Study, trial: FrozenTrial, records: Sequence[DistributionRecord]) -> None:
    plain = [
        {
            "step": record.step,
            "metrics": {name: float(f"{value:.6g}") for name, value in record.metrics.items()},
            "probabilities": record.probabilities.round(4).tolist(),
            "credit": None if record.credit is None else [float(f"{value:.3g}") for value in record.credit],
        }
        for record in records
    ]
    write_json(study, trial, SNAS_RECORDS, plain)


def _outcome(trial: FrozenTrial, directions: Sequence[StudyDirection]) -> Outcome:
    violation = sum(max(0.0, excess) for excess in constraints_of(trial).values())
    if trial.state == TrialState.COMPLETE:
        progress = float("inf")
    else:
        progress = float(-1 if trial.last_step is None else trial.last_step)
    values = trial.values or [0.0] * len(directions)  # pruned before its first report: ranked last by its progress
    return Outcome(violation, progress, tuple(map(oriented, values, directions)))


def _finished_at(trial: FrozenTrial) -> tuple[float, int]:
    return trial.datetime_complete.timestamp() if trial.datetime_complete else 0.0, trial.number

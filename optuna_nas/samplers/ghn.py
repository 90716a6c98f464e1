"""Propose the best candidates of a pool that is scored without training, each once across all workers."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from optuna.trial import TrialState

from optuna_nas.oneshot.base import meaning_of, score_of
from optuna_nas.oneshot.ghn.regression import regress_if_better
from optuna_nas.samplers.base import ArchitectureSampler
from optuna_nas.samplers.fronts import spread_out
from optuna_nas.samplers.known_costs import KnownCosts
from optuna_nas.space.choice_space import as_space
from optuna_nas.storage.architecture_notes import digest_noted, note_score, params_hash
from optuna_nas.storage.attributes import SCORED, Unverified, attribute, given_params, hash_of
from optuna_nas.storage.directions import oriented
from optuna_nas.storage.finished import FinishedIndex, PerStudy
from optuna_nas.storage.in_study_fit import FIT_FRACTION, InStudyFit
from optuna_nas.training.checkpoints import check_tensors, load_tensors, reading_checkpoint, save_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

    from optuna_nas.data.splits import Data
    from optuna_nas.oneshot.base import OneShotModel, Score
    from optuna_nas.space import Architecture, PredictedCost, Space
    from optuna_nas.storage.model_rounds import Snapshot
    from optuna_nas.storage.optuna_rdb import ArtifactStore

logger = logging.getLogger(__name__)

POOL = "pool.safetensors"
ROUNDS_BEHIND = 3
"""Rounds by which a worker may lag behind the newest pool and still never repeat the proposal of another worker."""
SCORED_AT_ONCE = 32
"""Architectures per call of the score function."""
RESERVED, RESERVED_PART = 64, 20
"""Largest number of random architectures that are reserved for trials before the first pool; at most 1 / RESERVED_PART
of the space. The first pools have none of them."""
RESERVED_LAST, RESERVED_LAST_WITHIN = 4, 2
"""They are the last of so many times as many draws: draws find simple functions most often and first, and those may be
what a front needs (of NAS-Bench-201's cells one skip from input to output)."""
RESERVED_WITHIN = 8
"""Largest number of them within bounds, which may leave few functions: of NAS-Bench-201's cells, the lower quartiles of
parameters and latency left 28 in 2,000 draws; with 60 kept out of the pool, 10 of 20 trials kept the bounds."""
DRAWS_A_CANDIDATE = 20
"""Failed draws in a row, per candidate of the pool, after which the space counts as exhausted."""


class Pool(NamedTuple):
    """Candidates of a round: M candidates, P paths.

    Args:
        chosen: Option index of every candidate and path, in the order of proposal, shape (M, P).
        scores: Scores of the candidates, shape (M,).
        taken: Candidates of earlier rounds that lagging workers may still propose, as rows (digest, round), shape
            (T, 2).
    """

    chosen: NDArray[np.int64]
    scores: NDArray[np.float64]
    taken: NDArray[np.int64]


class GHNSampler(ArchitectureSampler):
    """Sampler that scores a pool of architectures without training and proposes the best (Zhang et al. 2019).

    The first of every `trials_per_round` trials draws a new pool without earlier proposals and functional duplicates,
    scores it and publishes it. Each trial takes the candidate at its own place in the round, so that workers neither
    repeat a candidate nor wait. Trials that start before their pool is published take from the pool before, or from
    random architectures that are reserved for this. Pools that are scored at the same time do not know of each other:
    make a round longer than the scoring of a pool.

    If the model has a method `embed`, as `GHN` has, a regression on its embeddings, fitted to finished trials, replaces
    the score wherever it ranks better in cross-validation. With several objectives, each candidate is the one that adds
    most to the hypervolume of (score, -costs), in ranks, of those before it.

    Args:
        space: Search space, of any kind; Optuna distributions stand for a `ChoiceSpace`.
        model: `OneShotModel` that scores: a `GHN`, or a supernet with inherited weights.
        score: Function that scores architectures instead of a model, such as a zero-cost proxy; larger is better.
            Beside a model, it replaces the model's own scores: `SplitScore(model, data)`.
        data: Data to train the model on in the first trial; not needed for a fitted model.
        budget: Epochs of that training, larger than 0.
        budget_seconds: Seconds of that training, larger than 0, to which `budget` is lowered where it would take
            longer. None keeps it, so that what is learned does not depend on the clock.
        pool_size: Candidates per round, at least `trials_per_round`.
        pool_seconds: Seconds after which no further candidates of a pool are scored, larger than 0: where trainings are
            short, scores of many candidates would cost more than they save. Half as many end the draws. None draws and
            scores all, whatever it takes, so that a pool does not depend on the clock.
        prefilter: Cheaper function that scores `prefilter_size` architectures first, such as a `FreeScore`; its best
            `pool_size` are the candidates, those within the constraints first. Not for several objectives: what is
            small is rarely among its best. It has half of `pool_seconds`.
        prefilter_size: Architectures that the prefilter scores in a round, at least `pool_size`.
        exploration: Fraction of trials that take a random candidate of the pool instead of the best, in [0, 1].
        trials_per_round: Trials per pool, at least 1.
        candidates: Sampler that draws the pool; uniform by default.
        costs: Further objectives, all minimised: any of `params`, `multiply_adds`, `memory_access`, and predicted costs
            such as a `LatencyTable`.
        constraints: Upper bounds of such costs, as those of a `TrainObjective`. Candidates that keep all of them are
            drawn and proposed first; where 20 draws have none, one outside is a candidate and comes after the others,
            the least excess first. What only a trial tells (`trial.set_constraint`) is not known to a pool.
        independent_sampler: Sampler of parameters outside the space; by default Optuna's TPE.
        artifact_store: Artifact store of the pools, reachable by all workers; by default the folder
            `runs/STUDY/artifacts`.
        device: Device of the training: `auto` (a GPU if there is one), or a torch device.
        seed: Seed of the random numbers; None draws one.

    Raises:
        ValueError: An argument is out of range, or the model has another space.

    Example:
        >>> import tempfile
        >>> import numpy as np, optuna
        >>> from optuna.artifacts import FileSystemArtifactStore
        >>> from optuna_nas import GHNSampler, nasbench201_space
        >>> space = nasbench201_space()
        >>> def n_convolutions(architectures):
        ...     return np.array([float(str(architecture).count("conv")) for architecture in architectures])
        >>> store = FileSystemArtifactStore(tempfile.mkdtemp())
        >>> sampler = GHNSampler(space, score=n_convolutions, artifact_store=store, seed=0)
        >>> study = optuna.create_study(direction="maximize", sampler=sampler)
        >>> study.optimize(lambda trial: n_convolutions([space.suggest(trial)])[0], n_trials=3)
        >>> study.best_value
        6.0
    """

    def __init__(
        self,
        space: Space | Mapping[str, BaseDistribution],
        model: OneShotModel[Any] | None = None,
        *,
        score: Score | None = None,
        data: Data | None = None,
        budget: float | None = None,
        budget_seconds: float | None = None,
        pool_size: int = 1000,
        pool_seconds: float | None = None,
        prefilter: Score | None = None,
        prefilter_size: int = 1000,
        exploration: float = 0.1,
        trials_per_round: int = 100,
        candidates: BaseSampler | None = None,
        costs: Sequence[str | PredictedCost] = (),
        constraints: Mapping[str | PredictedCost, float] | None = None,
        independent_sampler: BaseSampler | None = None,
        artifact_store: ArtifactStore | None = None,
        device: str = "auto",
        seed: int | None = None,
    ) -> None:
        self.model, self.score = model, score_of(model if score is None else None, score)
        space = as_space(space)
        if model is not None and model.space.core != space.core:
            raise ValueError("`model` must have the sampler's space but has another; pass `model.space`.")
        for name, value in (("pool_size", pool_size), ("trials_per_round", trials_per_round)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1 but got {value}.")
        if pool_size < trials_per_round:
            raise ValueError(
                f"`pool_size` must be at least `trials_per_round`, one candidate per trial, but {pool_size} < "
                f"{trials_per_round}."
            )
        if prefilter is not None and prefilter_size < pool_size:
            raise ValueError(
                f"`prefilter_size` must be at least `pool_size`, which are kept of them, but {prefilter_size} < "
                f"{pool_size}."
            )
        if pool_seconds is not None and not pool_seconds > 0:
            raise ValueError(f"`pool_seconds` must be larger than 0 but got {pool_seconds}; None sets no limit.")
        if not 0 <= exploration <= 1:
            raise ValueError(f"`exploration` must be in [0, 1] but got {exploration}; 0.1 suits most studies.")
        self.known_costs = KnownCosts(space, costs, constraints)
        self._costs, self._constraints = self.known_costs.costs, self.known_costs.bounds  # settings that a study notes
        self.data, self._budget, self._device, self._given_store = data, budget, device, artifact_store
        self.pool_size, self._exploration, self._trials_per_round = pool_size, exploration, trials_per_round
        self._prefilter, self.n_drawn = prefilter, pool_size if prefilter is None else prefilter_size
        self._candidates, self._given_seed, self._has_one_pool = candidates, seed, False
        self._budget_seconds, self._pool_seconds = budget_seconds, pool_seconds
        super().__init__(space, independent_sampler, seed)

    def _init_state(self) -> None:
        super()._init_state()
        self._reserve: tuple[str, list[NDArray[np.int64]]] | None = None
        self._index = PerStudy(lambda: FinishedIndex[int](lambda trial: digest_of_trial(self.space, trial)))

    def _make_fit(self) -> InStudyFit[Pool]:
        return InStudyFit(
            self.model,
            self.data,
            self._budget,
            budget_seconds=self._budget_seconds,
            n_trials=self._trials_per_round,  # the first pool needs scores: the whole budget is spent in round 1
            trials_per_round=self._trials_per_round,
            artifact_store=self._given_store,
            device=self._device,
            name="GHN" if self.model is None else self.model.name,
            content=_Pools(
                [len(distribution.choices) for distribution in self._distributions.values()], self._make_pool
            ),
            passes_over=self._is_fixed,
        )

    def for_one_pool(self, score: Score, pool_size: int | None = None) -> GHNSampler:
        """Return a sampler with the same model, training and candidates that scores one pool, and explores nothing.

        All that is drawn is scored: a prefilter is left out. The pool depends on the seed alone: a trial that is tried
        again after its process was killed draws the same.

        Args:
            score: Function that scores.
            pool_size: Candidates of the pool; by default as many as are drawn for one.
        """
        size = pool_size or self.n_drawn
        sampler = GHNSampler(
            self.space,
            self.model,
            score=score,
            data=self.data,
            budget=self._budget,
            budget_seconds=self._budget_seconds,
            pool_size=size,
            exploration=0.0,
            trials_per_round=1,
            candidates=self._candidates,
            constraints=self.known_costs.constraints,
            artifact_store=self._given_store,
            device=self._device,
            seed=self._given_seed,
        )
        sampler._has_one_pool = True
        return sampler

    def to_score(self, n_trials: int | None) -> list[tuple[Score, int, float | None]]:
        """Return what scores the pools of so many trials, each with the number of architectures and the most seconds.

        Args:
            n_trials: Trials of a study; None for those of one pool.
        """
        n_pools = 1 if n_trials is None else -(-n_trials // self._trials_per_round)
        scores = [(self.score, self.pool_size)]
        if self._prefilter is not None:
            scores.insert(0, (self._prefilter, self.n_drawn))
        most = None if self._pool_seconds is None else n_pools * self._pool_seconds / len(scores)
        return [(score, n_pools * min(size, self.space.size), most) for score, size in scores]

    def scored(self, study: Study) -> list[tuple[Architecture, float]]:
        """Return the candidates of the newest pool and their scores, in the order of proposal; empty before the first.

        Args:
            study: Study whose trials have drawn the pool.
        """
        assert self.in_study_fit is not None
        newest: Snapshot[Pool] | None = self.in_study_fit.newest(study, len(study.get_trials(deepcopy=False)))
        if newest is None:
            return []
        pool = newest.loaded
        return [
            (self._architecture(chosen), float(score)) for chosen, score in zip(pool.chosen, pool.scores, strict=True)
        ]

    # -- proposals ------------------------------------------------------------------------------------------------

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        params = super().sample_relative(study, trial, search_space)
        candidate = self._candidate(study, trial) if params.keys() & self._distributions.keys() else None
        if candidate is not None:
            given = given_params(trial)
            if all(given.get(path, choice) == choice for path, choice in self._params(candidate[0]).items()):
                self._note(study, trial, candidate[1], self._params(candidate[0]))
        return params

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Replace the score of what was proposed where another sampler around this one has changed parameters."""
        noted = attribute(trial.user_attrs, SCORED)
        is_whole = self._distributions.keys() <= trial.params.keys()
        if noted is not None and is_whole and noted != params_hash(trial.params, self._distributions):
            (score,) = self.score([self.space.decode(trial.params)])
            self._note(study, trial, float(score), trial.params)
        super().after_trial(study, trial, state, values)

    def _note(self, study: Study, trial: FrozenTrial, score: float, params: Mapping[str, Any]) -> None:
        note_score(study, trial, score, params, self._distributions, meaning_of(self.score))

    def _propose(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        candidate = self._candidate(study, trial)
        if candidate is not None:
            return self._params(candidate[0])
        if trial.number < len(reserve := self._reserved(study)):
            return self._params(reserve[trial.number])
        return dict(self.space.encode(next(self._sampled(self._random(trial, "architecture")))))

    def _candidate(self, study: Study, trial: FrozenTrial) -> tuple[NDArray[np.int64], float] | None:
        """Return the candidate of the newest pool at the trial's place, with its score; None if there is none."""
        assert self.in_study_fit is not None
        newest: Snapshot[Pool] | None = self.in_study_fit.newest(study, trial.number)
        if newest is None:
            return None
        place = trial.number - newest.number // self._trials_per_round * self._trials_per_round
        if not 0 <= place < len(newest.loaded.chosen):
            return None
        return newest.loaded.chosen[place], float(newest.loaded.scores[place])

    def _reserved(self, study: Study) -> list[NDArray[np.int64]]:
        """Return distinct random architectures for trials that start before the first pool is published.

        All workers of a study get the same ones, even without a common seed.
        """
        if self._reserve is None or self._reserve[0] != study.study_name:
            random = np.random.default_rng(
                [self._seed if self._given_seed is not None else hash_of(study.study_name), 0]
            )
            most, times = RESERVED, RESERVED_LAST
            if self.known_costs.constraints:
                most, times = RESERVED_WITHIN, RESERVED_LAST_WITHIN
            most = min(most, max(1, self.space.size // RESERVED_PART))
            drawn = list(self._drawn(self._sampled(random), times * most, set()).values())
            number = min(ROUNDS_BEHIND * self._trials_per_round, max(1, len(drawn) // times))
            self._reserve = study.study_name, drawn[-number:]
        return self._reserve[1]

    def _sampled(self, random: np.random.Generator) -> Iterator[Architecture]:
        """Return random architectures within the bounds."""
        return self.known_costs.within(iter(lambda: self.space.sample(random), None))

    def _drawn(
        self, architectures: Iterator[Architecture], number: int, taken: set[int], seconds: float = math.inf
    ) -> dict[int, NDArray[np.int64]]:
        """Return up to `number` functionally distinct architectures by digest, one at least.

        They are fewer if the space is exhausted, or the seconds are over, as draws within narrow bounds may take long.
        """
        drawn: dict[int, NDArray[np.int64]] = {}
        n_failed, ends = 0, time.monotonic() + seconds
        while len(drawn) < number and n_failed < DRAWS_A_CANDIDATE * max(10, len(drawn)):
            if drawn and time.monotonic() >= ends:
                break
            architecture = next(architectures)
            digest = _digest(architecture) if architecture.connected else None
            if digest is None or digest in taken or digest in drawn:
                n_failed += 1
                continue
            params = self.space.encode(architecture)
            drawn[digest] = np.array([self._positions[path][params[path]] for path in self._distributions])
            n_failed = 0
        return drawn

    # -- pools ----------------------------------------------------------------------------------------------------

    def _make_pool(self, study: Study, trial: FrozenTrial, number: int, before: Pool | None) -> Pool:
        """Draw, score and order the pool of a round, without architectures that trials have or may still get."""
        taken: dict[int, int] = {}  # round whose workers may still propose the architecture, by digest
        if before is not None:
            taken = {digest: r for digest, r in before.taken.tolist() if r > number - ROUNDS_BEHIND}
            handed_out = before.chosen[: ROUNDS_BEHIND * self._trials_per_round]
            taken |= {_digest(self._architecture(chosen)): number - 1 for chosen in handed_out}
        reserved: set[int] = set()
        if number < 2 * ROUNDS_BEHIND and not self._has_one_pool:
            reserved = {_digest(self._architecture(chosen)) for chosen in self._reserved(study)}
        earlier = self._of_trials(study, trial)
        excluded, seconds = taken.keys() | reserved | earlier.keys(), (self._pool_seconds or math.inf) / 2
        candidates = self._drawn(self._draws(study, trial), self.n_drawn, excluded, seconds)
        digests = list(candidates)
        chosen_MP = np.array(list(candidates.values()), dtype=np.int64).reshape(-1, len(self._distributions))
        architectures = [self._architecture(chosen) for chosen in chosen_MP]
        if self._prefilter is not None and len(architectures) > self.pool_size:
            first_M = self._in_time(self._prefilter, architectures, "prefilter", done=0.0)
            excess_M = np.array([self.known_costs.excess(one) for one in architectures[: len(first_M)]])
            kept_M = np.lexsort((-first_M, excess_M))[: self.pool_size]
            chosen_MP, digests = chosen_MP[kept_M], [digests[i] for i in kept_M]
            architectures = [architectures[i] for i in kept_M]
        scores_M, ranking_M = self._scored(study, architectures, list(earlier.values()))
        chosen_MP, architectures = chosen_MP[: len(scores_M)], architectures[: len(scores_M)]
        order = self._order(ranking_M, architectures, self._random(trial, "order"))
        meanwhile = self._of_trials(study, trial).keys()  # other workers may have proposed some during the scoring
        order = order[[digests[i] not in meanwhile for i in order]]
        kept = np.array(sorted(taken.items()), dtype=np.int64).reshape(-1, 2)
        return Pool(chosen_MP[order], scores_M[order], kept)

    def _of_trials(self, study: Study, trial: FrozenTrial) -> dict[int, FrozenTrial]:
        """Return the other trials by the digest of their architecture, including all brackets of Hyperband.

        Of functional duplicates, the trial with the largest number stands at the place of the first one.
        """
        index = self._index.of(study)
        unfinished = index.update(study._get_trials(deepcopy=False, use_cache=False))
        by_digest = index.groups()
        for other in unfinished:
            if other.number != trial.number and (digest := digest_of_trial(self.space, other)) is not None:
                by_digest.setdefault(digest, []).append(other)
        groups = {digest: sorted(trials, key=_number) for digest, trials in by_digest.items()}
        return {digest: trials[-1] for digest, trials in sorted(groups.items(), key=lambda item: item[1][0].number)}

    def _random(self, trial: FrozenTrial, name: str) -> np.random.Generator:
        if self._has_one_pool and name == "pool":
            return np.random.default_rng([self._seed, 0, hash_of(name)])
        return super()._random(trial, name)

    def _draws(self, study: Study, trial: FrozenTrial) -> Iterator[Architecture]:
        if self._candidates is None:
            return self._sampled(self._random(trial, "pool"))
        return self.known_costs.within(self._asked(self._candidates, study, trial))

    def _asked(self, sampler: BaseSampler, study: Study, trial: FrozenTrial) -> Iterator[Architecture]:
        self._reseed(sampler, trial, "pool")
        while True:
            params = sampler.sample_relative(study, trial, dict(self._distributions))
            for name, distribution in self._distributions.items():
                if name not in params:
                    params[name] = sampler.sample_independent(study, trial, name, distribution)
            yield self.space.decode(params)

    def _in_time(
        self, score: Score, architectures: Sequence[Architecture], name: str, done: float
    ) -> NDArray[np.float64]:
        """Return scores of the first architectures, of all unless seconds are limited; progress goes on from `done`.

        With a prefilter, it and the score have half of the seconds each.
        """
        assert self.in_study_fit is not None
        seconds = math.inf if self._pool_seconds is None else self._pool_seconds
        share = 1.0 if self._prefilter is None else 0.5
        parts: list[NDArray[np.float64]] = []
        begun = time.monotonic()
        for start in range(0, len(architectures), SCORED_AT_ONCE):
            chunk = architectures[start : start + SCORED_AT_ONCE]
            part = np.asarray(score(chunk), dtype=np.float64)
            if part.shape != (len(chunk),):
                raise ValueError(f"`{name}` must return {len(chunk)} numbers but returned shape {part.shape}.")
            parts.append(part)
            scored = done + share * (start + len(chunk)) / len(architectures)
            self.in_study_fit.report(FIT_FRACTION + (1 - FIT_FRACTION) * scored, "candidates are scored")
            if time.monotonic() - begun >= share * seconds:
                break
        return np.concatenate(parts)

    def _scored(
        self, study: Study, architectures: Sequence[Architecture], trials: Sequence[FrozenTrial]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return scores and ranking values of the first candidates, of all unless seconds are limited.

        Non-finite scores count as the worst, with a warning.
        """
        if not architectures:
            return np.zeros(0), np.zeros(0)
        scores = self._in_time(self.score, architectures, "score", done=0.0 if self._prefilter is None else 0.5)
        architectures = architectures[: len(scores)]
        finite = np.isfinite(scores)
        if not finite.all():
            logger.warning("%d of %d scores are not finite; they count as the worst.", (~finite).sum(), len(scores))
            scores = np.where(finite, scores, float(np.min(scores[finite])) - 1.0 if finite.any() else 0.0)
        finished = [
            trial
            for trial in trials
            if trial.state == TrialState.COMPLETE
            and np.isfinite(trial.values[0])
            and self.space.decode(trial.params).connected
        ]
        embed = getattr(self.model, "embed", None)
        if embed is None or not finished or len(study.directions) > 1:
            return scores, scores
        trained = [self.space.decode(trial.params) for trial in finished]
        values = np.array([oriented(trial.values[0], study.direction) for trial in finished])
        ranking, kind = regress_if_better(embed(trained), self.score(trained), values, embed(architectures), scores)
        if kind != "score":
            logger.info("The pool is ranked by a %s of %d finished trials.", kind.replace("_", " "), len(finished))
        return scores, ranking

    def _order(
        self, scores_M: NDArray[np.float64], architectures: Sequence[Architecture], random: np.random.Generator
    ) -> NDArray[np.int64]:
        """Return the order of proposal: the best remaining candidate, or a random one with probability `exploration`.

        Args:
            scores_M: Ranking values, larger is better, shape (M,).
            architectures: Candidates.
            random: Random numbers of the trial.
        """
        if self.known_costs.costs and len(architectures):
            objectives = np.column_stack([scores_M, -self.known_costs.of(architectures)])
            ranked = spread_out(objectives, self._trials_per_round, np.random.default_rng(self._seed)).tolist()
        else:
            ranked = np.argsort(-scores_M, kind="stable").tolist()
        excess_M = [self.known_costs.excess(architecture) for architecture in architectures]
        remaining = [place for place in ranked if excess_M[place] <= 0]
        order = []
        while remaining:
            place = int(random.integers(len(remaining))) if random.random() < self._exploration else 0
            order.append(remaining.pop(place))
        outside = sorted((place for place in ranked if excess_M[place] > 0), key=lambda place: excess_M[place])
        return np.array([*order, *outside], dtype=np.int64)


class _Pools:
    """Content of a round: a pool, stored as a file."""

    def __init__(self, sizes: Sequence[int], make: Callable[[Study, FrozenTrial, int, Pool | None], Pool]) -> None:
        self._sizes, self.make = np.array(sizes, dtype=np.int64), make

    def save(self, content: Pool, folder: Path) -> dict[str, Any]:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in content._asdict().items()}
        save_tensors(folder / POOL, tensors, {"kind": "pool"})
        return {"done": False}  # rounds never end: there is always another pool

    def load(self, value: dict[str, Any], fetch: Callable[[str], Path]) -> Pool:
        tensors, _ = load_tensors(file := fetch(POOL), torch.device("cpu"))
        n_candidates, n_taken = (len(tensors.get(name, ())) for name in ("chosen", "taken"))
        like = Pool(
            np.zeros((n_candidates, len(self._sizes)), np.int64),
            np.zeros(n_candidates, np.float64),
            np.zeros((n_taken, 2), np.int64),
        )
        with reading_checkpoint(file):
            check_tensors(tensors, {name: torch.from_numpy(array) for name, array in like._asdict().items()})
        pool = Pool(*(tensors[name].numpy() for name in Pool._fields))
        if not ((pool.chosen >= 0) & (pool.chosen < self._sizes)).all():
            raise Unverified("its pool belongs to another space")
        return pool


def digest_of_trial(space: Space, trial: FrozenTrial) -> int | None:
    """Return the digest of a trial's architecture, None if the trial lacks parameters of the space."""
    if not space.distributions().keys() <= trial.params.keys():
        return None
    digest = digest_noted(trial, space.distributions())
    return _as_int(digest) if digest is not None else _digest(space.decode(trial.params))


def _digest(architecture: Architecture) -> int:
    return _as_int(architecture.canonical().digest)


def _number(trial: FrozenTrial) -> int:
    return trial.number


def _as_int(digest: str) -> int:
    return int(digest, 16) - (1 << 63)  # safetensors hold signed integers

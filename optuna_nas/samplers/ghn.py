"""The best of a pool that was scored without training, each once, whoever asks."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from optuna.trial import TrialState

from optuna_nas.oneshot.base import score_of
from optuna_nas.oneshot.ghn.regression import regress_if_better
from optuna_nas.samplers.base import ArchitectureSampler
from optuna_nas.space.cost import COSTS
from optuna_nas.space.model_space import ModelSpace
from optuna_nas.storage.attributes import (
    DIGEST,
    SURROGATE_SCORE,
    Unverified,
    attribute,
    given_params,
    hash_of,
)
from optuna_nas.storage.directions import oriented
from optuna_nas.storage.finished import FinishedIndex, PerStudy
from optuna_nas.storage.in_study_fit import FIT_FRACTION, InStudyFit
from optuna_nas.training.checkpoints import load_tensors, save_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

    from optuna_nas.data.splits import Data
    from optuna_nas.oneshot.base import OneShotModel, Score
    from optuna_nas.space import Architecture, Space
    from optuna_nas.storage.model_rounds import Snapshot
    from optuna_nas.storage.optuna_rdb import ArtifactStore

logger = logging.getLogger(__name__)

POOL = "pool.safetensors"
ROUNDS_BEHIND = 3
"""How many rounds a worker may be behind the newest without ever proposing what another proposes."""
SCORED_AT_ONCE = 64
RESERVED_PART = 20
"""The sequence kept free for the first trials is at most such a part of the space."""
DRAWS_A_CANDIDATE = 20
"""Draws after which a pool that should have one more candidate has all there are."""


class Pool(NamedTuple):
    """What one round hands out, M candidates, P paths.

    Args:
        chosen: Options of every candidate in the order in which they are handed out, shape (M, P).
        scores: Their scores, shape (M,).
        taken: What workers that are behind may still be given, and by which round: (digest, round), shape (T, 2).
    """

    chosen: NDArray[np.int64]
    scores: NDArray[np.float64]
    taken: NDArray[np.int64]


class GHNSampler(ArchitectureSampler):
    """Score a pool of architectures without training them; propose the best, each once (GHN, Zhang et al. 2019).

    Every `trials_per_round` trials, the first of them draws a new pool, leaves out what was handed out before and what
    computes the same function, scores it, and publishes it. A trial takes the candidate of its own number, so that any
    number of workers never repeat one and none waits: who comes before a pool is there takes from the pool before, or
    from a sequence of random architectures that is kept free for that. (Two pools that are being scored at once do not
    know of each other: rounds should be longer than the scoring of a pool.)

    With a model that has a method `embed` (`GHN`), finished trials may score better than it does: a regression on its
    embeddings takes over where it ranks better in cross-validation. With several objectives, candidates are ordered by
    the non-dominated rank of (score, -costs).

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

    Args:
        space: What may be chosen; any space.
        model: A `OneShotModel` that scores: a `GHN`, or a supernet by inherited weights.
        score: Instead of a model, a function of architectures (a proxy of your own); larger is better.
        data: Data to train the model on in the first trial; not needed if it is fitted.
        budget: Epochs of that training.
        pool_size: Candidates of a round.
        exploration: Share of trials that take a random candidate of the pool instead of the best left.
        trials_per_round: Trials from one pool to the next.
        candidates: Sampler that draws the pool; uniform by default.
        costs: Further objectives, out of `params`, `multiply_adds` and `memory_access`; all are minimised.
        independent_sampler: Sampler of parameters that are not of the space; by default Optuna's TPE.
        artifact_store: Where pools are published, reachable by all workers; by default the folder
            `runs/STUDY/artifacts`.
        device: Where the model is trained: `auto` (a GPU if there is one), or a torch device.
        seed: Seed of the random numbers; None draws one.

    Raises:
        ValueError: An argument is out of range, or the model is of another space.
    """

    def __init__(
        self,
        space: Space,
        model: OneShotModel[Any] | None = None,
        *,
        score: Score | None = None,
        data: Data | None = None,
        budget: float | None = None,
        pool_size: int = 1000,
        exploration: float = 0.1,
        trials_per_round: int = 100,
        candidates: BaseSampler | None = None,
        costs: Sequence[str] = (),
        independent_sampler: BaseSampler | None = None,
        artifact_store: ArtifactStore | None = None,
        device: str = "auto",
        seed: int | None = None,
    ) -> None:
        self.model, self.score = model, score_of(model, score)
        if model is not None and model.space.core != space.core:
            raise ValueError("`model` must be of the sampler's space but is of another; pass `model.space`.")
        for name, value in (("pool_size", pool_size), ("trials_per_round", trials_per_round)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1 but got {value}.")
        if pool_size < trials_per_round:
            raise ValueError(
                f"`pool_size` must be at least `trials_per_round`, one candidate a trial, but {pool_size} < "
                f"{trials_per_round}."
            )
        if not 0 <= exploration <= 1:
            raise ValueError(f"`exploration` must be in [0, 1] but got {exploration}; 0.1 suits most studies.")
        self._costs = tuple(costs)
        unknown = sorted(set(self._costs) - set(COSTS))
        if unknown:
            raise ValueError(f"`costs` must be among {COSTS} but got {unknown[0]!r}.")
        if self._costs and not isinstance(space, ModelSpace):
            raise ValueError(
                "`space` must be a `ModelSpace`, such as `NetworkSpace(space, skeleton)`, to count `costs`."
            )
        self._data, self._budget, self._device, self._given_store = data, budget, device, artifact_store
        self._pool_size, self._exploration, self._trials_per_round = pool_size, exploration, trials_per_round
        self._candidates = candidates
        self._seeded = seed is not None
        super().__init__(space, independent_sampler, seed)

    def _init_state(self) -> None:
        super()._init_state()
        self._reserve: tuple[str, list[NDArray[np.int64]]] | None = None
        self._index = PerStudy(lambda: FinishedIndex[int](lambda trial: digest_of_trial(self.space, trial)))

    def _make_fit(self) -> InStudyFit[Pool]:
        return InStudyFit(
            self.model,
            self._data,
            self._budget,
            n_trials=self._trials_per_round,  # the whole budget in the first round, for a pool needs its scores
            trials_per_round=self._trials_per_round,
            artifact_store=self._given_store,
            device=self._device,
            name="GHN" if self.model is None else self.model.name,
            content=_Pools(len(self._distributions), self._make_pool),
            passes_over=self._is_fixed,
        )

    # -- proposals ------------------------------------------------------------------------------------------------

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        params = super().sample_relative(study, trial, search_space)
        candidate = self._candidate(study, trial) if params.keys() & self._distributions.keys() else None
        if candidate is not None:
            given = given_params(trial)
            if all(given.get(path, choice) == choice for path, choice in self._params(candidate[0]).items()):
                study._storage.set_trial_user_attr(trial._trial_id, SURROGATE_SCORE, candidate[1])
        return params

    def _propose(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        candidate = self._candidate(study, trial)
        if candidate is not None:
            return self._params(candidate[0])
        if trial.number < len(reserve := self._reserved(study)):
            return self._params(reserve[trial.number])
        return dict(self.space.encode(self.space.sample(self._random(trial, "architecture"))))

    def _candidate(self, study: Study, trial: FrozenTrial) -> tuple[NDArray[np.int64], float] | None:
        """Return the candidate that the newest pool keeps for a trial, with its score; None where there is none."""
        assert self.in_study_fit is not None
        newest: Snapshot[Pool] | None = self.in_study_fit.newest(study, trial.number)
        if newest is None:
            return None
        place = trial.number - newest.number // self._trials_per_round * self._trials_per_round
        if not 0 <= place < len(newest.loaded.chosen):
            return None
        return newest.loaded.chosen[place], float(newest.loaded.scores[place])

    def _reserved(self, study: Study) -> list[NDArray[np.int64]]:
        """Return different random architectures, for the trials of the first rounds that come before any pool.

        The same for all workers of a study, also where each draws a seed of its own; a small part of the space.
        """
        if self._reserve is None or self._reserve[0] != study.study_name:
            random = np.random.default_rng([self._seed if self._seeded else hash_of(study.study_name), 0])
            number = min(ROUNDS_BEHIND * self._trials_per_round, max(1, self.space.size // RESERVED_PART))
            drawn = self._drawn(iter(lambda: self.space.sample(random), None), number, set())
            self._reserve = study.study_name, list(drawn.values())
        return self._reserve[1]

    def _drawn(
        self, architectures: Iterator[Architecture], number: int, taken: set[int]
    ) -> dict[int, NDArray[np.int64]]:
        """Return so many architectures of different functions by digest, or fewer where there are no more."""
        drawn: dict[int, NDArray[np.int64]] = {}
        in_vain = 0
        while len(drawn) < number and in_vain < DRAWS_A_CANDIDATE * max(10, len(drawn)):
            architecture = next(architectures)
            digest = _digest(architecture) if architecture.connected else None
            if digest is None or digest in taken or digest in drawn:
                in_vain += 1
                continue
            params = self.space.encode(architecture)
            drawn[digest] = np.array([self._positions[path][params[path]] for path in self._distributions])
            in_vain = 0
        return drawn

    # -- pools ----------------------------------------------------------------------------------------------------

    def _make_pool(self, study: Study, trial: FrozenTrial, number: int, before: Pool | None) -> Pool:
        """Draw, score and order the pool of a round; leave out what trials had, and what others may still be given."""
        taken: dict[int, int] = {}  # the round whose workers may be given it, by digest
        if before is not None:
            taken = {digest: r for digest, r in before.taken.tolist() if r > number - ROUNDS_BEHIND}
            handed_out = before.chosen[: ROUNDS_BEHIND * self._trials_per_round]
            taken |= {_digest(self._architecture(chosen)): number - 1 for chosen in handed_out}
        reserved: set[int] = set()
        if number < 2 * ROUNDS_BEHIND:
            reserved = {_digest(self._architecture(chosen)) for chosen in self._reserved(study)}
        earlier = self._of_trials(study, trial)
        candidates = self._drawn(self._draws(study, trial), self._pool_size, taken.keys() | reserved | earlier.keys())
        chosen_MP = np.array(list(candidates.values()), dtype=np.int64).reshape(-1, len(self._distributions))
        architectures = [self._architecture(chosen) for chosen in chosen_MP]
        scores_M, ranking_M = self._scored(study, architectures, list(earlier.values()))
        order = self._order(ranking_M, architectures, self._random(trial, "order"))
        meanwhile = self._of_trials(study, trial).keys()  # scoring takes its time
        digests = list(candidates)
        order = order[[digests[i] not in meanwhile for i in order]]
        kept = np.array(sorted(taken.items()), dtype=np.int64).reshape(-1, 2)
        return Pool(chosen_MP[order], scores_M[order], kept)

    def _of_trials(self, study: Study, trial: FrozenTrial) -> dict[int, FrozenTrial]:
        """Return the other trials by the digest of their architecture, those of all brackets.

        Of several trials of one function, the last by number, at the place of the first.
        """
        index = self._index.of(study)
        unfinished = index.update(study._get_trials(deepcopy=False, use_cache=False))
        by_digest = index.groups()
        for other in unfinished:
            if other.number != trial.number and (digest := digest_of_trial(self.space, other)) is not None:
                by_digest.setdefault(digest, []).append(other)
        groups = {digest: sorted(trials, key=_number) for digest, trials in by_digest.items()}
        return {digest: trials[-1] for digest, trials in sorted(groups.items(), key=lambda item: item[1][0].number)}

    def _draws(self, study: Study, trial: FrozenTrial) -> Iterator[Architecture]:
        random = self._random(trial, "pool")
        sampler = self._candidates
        if sampler is not None:
            self._reseed(sampler, trial, "pool")
        while True:
            if sampler is None:
                yield self.space.sample(random)
                continue
            params = sampler.sample_relative(study, trial, dict(self._distributions))
            for name, distribution in self._distributions.items():
                if name not in params:
                    params[name] = sampler.sample_independent(study, trial, name, distribution)
            yield self.space.decode(params)

    def _scored(
        self, study: Study, architectures: Sequence[Architecture], trials: Sequence[FrozenTrial]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the scores of candidates and what to rank them by; no number counts as the worst, and is said once."""
        if not architectures:
            return np.zeros(0), np.zeros(0)
        assert self.in_study_fit is not None
        parts = []
        for start in range(0, len(architectures), SCORED_AT_ONCE):
            chunk = architectures[start : start + SCORED_AT_ONCE]
            part = np.asarray(self.score(chunk), dtype=np.float64)
            if part.shape != (len(chunk),):
                raise ValueError(f"`score` must return {len(chunk)} numbers but returned shape {part.shape}.")
            parts.append(part)
            done = (start + len(chunk)) / len(architectures)
            self.in_study_fit.report(FIT_FRACTION + (1 - FIT_FRACTION) * done)
        scores = np.concatenate(parts)
        finite = np.isfinite(scores)
        if not finite.all():
            logger.warning("%d of %d scores are not finite; they count as the worst.", (~finite).sum(), len(scores))
            scores = np.where(finite, scores, scores[finite].min() - 1.0 if finite.any() else 0.0)
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
        theirs = [self.space.decode(trial.params) for trial in finished]
        values = np.array([oriented(trial.values[0], study.direction) for trial in finished])
        ranking, kind = regress_if_better(embed(theirs), self.score(theirs), values, embed(architectures), scores)
        if kind != "score":
            logger.info("The pool is ranked by a %s of %d finished trials.", kind.replace("_", " "), len(finished))
        return scores, ranking

    def _order(
        self, scores_M: NDArray[np.float64], architectures: Sequence[Architecture], random: np.random.Generator
    ) -> NDArray[np.int64]:
        """Return in which order candidates are handed out: the best left, or now and then any."""
        rank_M = np.zeros(len(scores_M), dtype=np.int64)
        if self._costs:
            costs = [architecture.cost() for architecture in architectures]
            table = np.array([[-getattr(cost, name) for name in self._costs] for cost in costs])
            rank_M = non_dominated_ranks(np.column_stack([scores_M, table]))
        left = list(np.lexsort((-scores_M, rank_M)))
        order = []
        while left:
            place = int(random.integers(len(left))) if random.random() < self._exploration else 0
            order.append(left.pop(place))
        return np.array(order, dtype=np.int64)


class _Pools:
    """The content of a round: a pool, in a file of its own."""

    def __init__(self, n_paths: int, make: Callable[[Study, FrozenTrial, int, Pool | None], Pool]) -> None:
        self._n_paths, self.make = n_paths, make

    def save(self, content: Pool, folder: Path) -> dict[str, Any]:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in content._asdict().items()}
        save_tensors(folder / POOL, tensors, {"kind": "pool"})
        return {"done": False}  # there is always another pool

    def load(self, value: dict[str, Any], fetch: Callable[[str], Path]) -> Pool:
        tensors, _ = load_tensors(fetch(POOL), torch.device("cpu"))
        pool = Pool(*(tensors[name].numpy() for name in Pool._fields))
        if pool.chosen.ndim != 2 or pool.chosen.shape[1] != self._n_paths:
            raise Unverified("its pool is of another space")
        return pool


def non_dominated_ranks(objectives_MK: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the front of every row, 0 for those that no other dominates; larger is better in every column."""
    no_worse: NDArray[np.bool_] = np.all(objectives_MK[:, None] >= objectives_MK[None], axis=-1)
    dominates = no_worse & ~no_worse.T
    ranks = np.zeros(len(objectives_MK), dtype=np.int64)
    left, front = np.arange(len(objectives_MK)), 0
    while len(left):
        best = ~np.any(dominates[left][:, left], axis=0)
        ranks[left[best]] = front
        left, front = left[~best], front + 1
    return ranks


def digest_of_trial(space: Space, trial: FrozenTrial) -> int | None:
    """Return the digest of a trial's architecture, None where it is not of this space."""
    if not space.distributions().keys() <= trial.params.keys():
        return None
    known = attribute(trial.user_attrs, DIGEST)
    return _as_int(known) if isinstance(known, str) else _digest(space.decode(trial.params))


def _digest(architecture: Architecture) -> int:
    return _as_int(architecture.canonical().digest)


def _number(trial: FrozenTrial) -> int:
    return trial.number


def _as_int(digest: str) -> int:
    return int(digest, 16) - (1 << 63)  # safetensors hold signed integers

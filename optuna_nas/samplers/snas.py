"""Architectures drawn from a distribution that learns from a supernet, from finished trials, or from both."""

from __future__ import annotations

import base64
import hashlib
import logging
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from optuna.samplers import BaseSampler, TPESampler
from optuna.samplers._lazy_random_state import LazyRandomState
from optuna.study import StudyDirection
from optuna.trial import TrialState

from optuna_nas.oneshot.distribution import DistributionRecord, connected_argmax, entropies
from optuna_nas.oneshot.score_function import Outcome, ScoreFunction
from optuna_nas.study_state import (
    DIGEST,
    Unverified,
    fetch_file,
    find_trial,
    folder_store,
    publish_file,
    read_json,
    write_json,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from optuna import Study
    from optuna.artifacts._protocol import ArtifactStore
    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

    from optuna_nas.data import Data
    from optuna_nas.oneshot import SNAS
    from optuna_nas.space import Architecture, Space

logger = logging.getLogger(__name__)

SNAPSHOT = "snas:snapshot"
RECORDS = "snas:records"
RECORDS_A_ROUND = 10
TRIALS_A_RECORD = 5
MOST_DRAWS = 100
NOVELTY = 0.02  # share of the uniform distribution that every draw of something known mixes in


class Snapshot(NamedTuple):
    """What the opener of a round has published.

    Args:
        number: Of the opener.
        step: Training steps done.
        done: Whether the budget is spent.
        logits: Shape (E, O).
        file: Where the SNAS is.
        previous: Artifact of the snapshot before it, empty for the first.
    """

    number: int
    step: int
    done: bool
    logits: NDArray[np.float64]
    file: Mapping[str, str]
    previous: str


class SNASSampler(BaseSampler):
    """Draws architectures from the factorised distribution of SNAS (Xie et al. 2019, arXiv 1812.09926).

    - With an `SNAS` and `data`, the distribution learns by the paper's pathwise gradient while the study goes on: every
      `trials_per_round` trials one trial trains the SNAS for its share of the budget, publishes it and proposes its
      most likely architecture; all others, in any process, draw from the newest one they can see and never wait. The
      temperature falls with the number of the trial.
    - With an `SNAS` alone, the distribution is taken as it is, also while somebody else fits it.
    - Without, it learns from finished trials by the score function (REINFORCE with a rank baseline, natural gradient):
      any objective will do. Several objectives: a trial is better than another if it dominates it. Trials that break
      constraints count as worse than all that keep them, pruned ones as worse than completed ones; failed ones do not
      count.
    - `learn_from_trials=True` with an `SNAS` multiplies the two distributions.

    Which is running, `learning` says. Random numbers depend on the seed, the trial's number and the parameter's name
    only. Parameters that are not of the space go to `inner`.

    Args:
        space: What may be chosen; any space without an `SNAS`.
        snas: The model; of the same space.
        data: Images to train the SNAS on while the study runs.
        budget: Epochs of that training in all. A round that one process still trains when another opens the next is
            trained by both, to the same numbers.
        trials: Number of trials over which the budget is spent.
        trials_per_round: Trials between two trainings.
        learn_from_trials: Learn from finished trials; by default only without an `SNAS`.
        learning_rate: Of the score function; see `ScoreFunction`.
        inner: Sampler of other parameters; by default Optuna's TPE.
        artifact_store: Where rounds are published, reachable by all workers; by default the folder
            `runs/STUDY/artifacts`.
        avoid_duplicates: Do not propose what a finished trial had (with `TrainObjective`: nor what computes the same
            function), as long as nothing else is searched for.
        seed: Of the random numbers; None draws one.

    Raises:
        ValueError: An argument is out of range, or the SNAS is of another space.
    """

    def __init__(
        self,
        space: Space,
        snas: SNAS | None = None,
        *,
        data: Data | None = None,
        budget: float | None = None,
        trials: int = 100,
        trials_per_round: int = 10,
        learn_from_trials: bool | None = None,
        learning_rate: float = 0.2,
        inner: BaseSampler | None = None,
        artifact_store: ArtifactStore | None = None,
        avoid_duplicates: bool = True,
        seed: int | None = None,
    ) -> None:
        if snas is not None and snas.space != space:
            raise ValueError("`snas` must be of the sampler's space but is of another; pass `snas.space`.")
        if (data is None) != (budget is None) or (data is not None and snas is None):
            raise ValueError("`snas`, `data` and `budget` must be given together to train while the study runs.")
        if budget is not None and not budget > 0:
            raise ValueError(f"`budget` must be a positive number of epochs but got {budget}.")
        for name, value in (("trials", trials), ("trials_per_round", trials_per_round)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1 but got {value}.")
        if learn_from_trials is None:
            learn_from_trials = snas is None
        if not learn_from_trials and snas is None:
            raise ValueError("`learn_from_trials` must not be False without `snas`; nothing would be learned.")
        self.space, self.snas = space, snas
        self.learning = " and ".join(
            ["pathwise gradient of a supernet"] * (snas is not None) + ["score function of trials"] * learn_from_trials
        )
        self._data, self._budget = data, budget
        self._rounds, self._trials_per_round = -(-trials // trials_per_round), trials_per_round
        self._learn_from_trials, self._learning_rate = learn_from_trials, learning_rate
        self._inner = inner or TPESampler()
        self._given_store = artifact_store
        self._avoid_duplicates = avoid_duplicates
        self._seed = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
        self._distributions = space.distributions()
        self._positions = {
            path: {choice: position for position, choice in enumerate(distribution.choices)}
            for path, distribution in self._distributions.items()
        }
        self._forget()
        logger.info("SNASSampler learns by the %s.", self.learning)

    _FORGOTTEN = (
        "_lock",
        "_inner_lock",
        "_training",
        "_attached",
        "_on_progress",
        "_should_stop",
        "_folder",
        "_known",
    )

    def _forget(self) -> None:
        """Drop what can be had again from the study, and what can't be pickled."""
        self._lock, self._inner_lock, self._training = threading.RLock(), threading.Lock(), threading.Lock()
        self._attached = False
        self._on_progress: Callable[[float], None] | None = None
        self._should_stop: Callable[[], bool] | None = None
        self._folder: Path | None = None
        # By storage, for a number names a study only there.
        self._known: WeakKeyDictionary[BaseStorage, dict[int, _Known]] = WeakKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        settings = set(self.__dict__) - set(self._FORGOTTEN)
        return {name: self.__dict__[name] for name in sorted(settings)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def prepare(
        self,
        folder: Path,
        on_progress: Callable[[float], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        """Take a folder to keep files in, whom to tell the share of a round that is done, and when to stop."""
        self._folder, self._on_progress, self._should_stop = folder, on_progress, should_stop

    # -- Optuna's side --------------------------------------------------------------------------------------------

    def reseed_rng(self) -> None:
        """Do nothing: random numbers depend on the trial's number, so streams of workers never overlap."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        with self._inner_lock:
            others = self._inner.infer_relative_search_space(study, trial)
        return {**self._distributions, **{name: d for name, d in others.items() if name not in self._distributions}}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        params: dict[str, Any] = {}
        others = {name: d for name, d in search_space.items() if name not in self._distributions}
        if len(others) < len(search_space):
            self._check_space(search_space)
            self._train_round(study, trial)
            proposed = self._propose(study, trial)
            params = {name: value for name, value in proposed.items() if name in search_space}
        if others:
            with self._inner_lock:
                self._reseed_inner(trial, "")
                params.update(self._inner.sample_relative(study, trial, others))
            for name, distribution in others.items():
                if name not in params:
                    params[name] = self.sample_independent(study, trial, name, distribution)
        return params

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if param_name in self._distributions:
            self._check_space({param_name: param_distribution})
            return self._propose(study, trial)[param_name]
        with self._inner_lock:
            self._reseed_inner(trial, param_name)
            return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._inner.before_trial(study, trial)
        if self._is_fixed(trial):  # nothing will be asked of us, but the objective may ask the SNAS
            self._newest(study, trial.number)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._inner.after_trial(study, trial, state, values)

    def catch_up(self, study: Study) -> SNAS:
        """Bring the SNAS to what the workers of a study have published, and return it.

        Raises:
            ValueError: The sampler has no SNAS.
        """
        if self.snas is None:
            raise ValueError("`snas` must be given to be caught up with but is None; it learns from trials alone.")
        self._newest(study, len(study.get_trials(deepcopy=False)))
        return self.snas

    # -- proposals ------------------------------------------------------------------------------------------------

    def probabilities(self, study: Study) -> dict[str, dict[str, float]]:
        """Return the probability of every option of every path, as the next trial of this study would see it."""
        trials = study.get_trials(deepcopy=False)
        table = self._table(self._fold(study, trials), self._newest(study, len(trials)))
        return {
            path: {str(choice): float(row[position]) for choice, position in known.items()}
            for (path, known), row in zip(self._positions.items(), table, strict=True)
        }

    def _propose(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        """Return parameters of a connected architecture that is new, if 100 draws find one."""
        fold, snapshot = self._fold(study), self._newest(study, trial.number)
        table = self._table(fold, snapshot)
        self._record(study, trial, table)
        given = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        fixed = {
            number: known[given[path]]
            for number, (path, known) in enumerate(self._positions.items())
            if path in given and given[path] in known
        }
        is_taken = fold.is_taken if fold is not None and self._avoid_duplicates else _never
        if self.snas is not None and snapshot is not None and snapshot.number == trial.number and not fixed:
            best = connected_argmax(self.snas.space, np.log(table + 1e-300))
            params = self._params(best)
            if not is_taken(best, self.space.decode(params)):
                return params
        random = self._random(trial, "architecture")
        uniform = (table > 0) / (table > 0).sum(axis=1, keepdims=True)
        last: dict[str, Any] | None = None
        for _ in range(MOST_DRAWS):
            cumulated = table.cumsum(axis=1)
            chosen = (cumulated < random.random((len(table), 1)) * cumulated[:, -1:]).sum(axis=1)
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

    def _params(self, chosen: NDArray[np.int64]) -> dict[str, Any]:
        return {
            path: distribution.choices[position]
            for (path, distribution), position in zip(self._distributions.items(), chosen.tolist(), strict=True)
        }

    def _table(self, fold: _Fold | None, snapshot: Snapshot | None) -> NDArray[np.float64]:
        """Return the distribution to draw from, shape (P, O)."""
        with self._lock:
            learned = fold.policy.probabilities if fold is not None and self._learn_from_trials else None
        if self.snas is None:
            assert learned is not None
            return np.asarray(learned)
        if self._data is None:
            logits = self.snas.logits.astype(np.float64)
        else:
            logits = np.zeros((len(self.snas.paths), len(self.snas.options))) if snapshot is None else snapshot.logits
        table = np.exp(logits - logits.max(axis=1, keepdims=True))
        if learned is not None:
            table = table * learned
        return table / table.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]

    def _fold(self, study: Study, trials: Sequence[FrozenTrial] | None = None) -> _Fold | None:
        """Return what was learned from the finished trials of a study; None where none is wanted.

        Under Hyperband from those of all brackets: pruned trials rank by how far they came.
        """
        if not self._learn_from_trials and not self._avoid_duplicates:
            return None
        if trials is None:
            trials = study._get_trials(deepcopy=False, use_cache=True)
        with self._lock:
            fold = self._known_of(study).fold
            signs = [1.0 if direction == StudyDirection.MAXIMIZE else -1.0 for direction in study.directions]
            fold.update(trials, self._positions, signs)
            return fold

    def _known_of(self, study: Study) -> _Known:
        with self._lock:
            studies = self._known.setdefault(study._storage, {})
            if study._study_id not in studies:
                sizes = [len(distribution.choices) for distribution in self._distributions.values()]
                studies[study._study_id] = _Known(_Fold(ScoreFunction(sizes, self._learning_rate)))
            return studies[study._study_id]

    def _record(self, study: Study, trial: FrozenTrial, table: NDArray[np.float64]) -> None:
        """Note now and then how the distribution stands where no training does."""
        if self._data is None and trial.number % TRIALS_A_RECORD == 0:
            record = DistributionRecord(trial.number, {"entropy": float(entropies(table).mean())}, table)
            _write_records(study, trial, [record])

    def _check_space(self, search_space: Mapping[str, BaseDistribution]) -> None:
        for name, distribution in search_space.items():
            if name in self._distributions and distribution != self._distributions[name]:
                raise ValueError(
                    f"`study` must search the sampler's space but asks {name!r} for {distribution}; "
                    "give the study another name, or the sampler its space."
                )

    def _random(self, trial: FrozenTrial, name: str) -> np.random.Generator:
        return np.random.default_rng([self._seed, trial.number, _hash(name)])

    def _reseed_inner(self, trial: FrozenTrial, name: str) -> None:
        """Give the inner sampler numbers of this trial and parameter, whatever other threads have drawn."""
        seed = int(self._random(trial, name).integers(2**32))
        samplers = [self._inner]
        while samplers:
            for value in vars(samplers.pop()).values():
                if isinstance(value, LazyRandomState):
                    value.rng.seed(seed)
                elif isinstance(value, BaseSampler):
                    samplers.append(value)

    # -- rounds of training ---------------------------------------------------------------------------------------

    def _train_round(self, study: Study, trial: FrozenTrial) -> None:
        """Train and publish if the round is this trial's to open; never wait for another thread that trains."""
        if self._data is None or self.snas is None or self._budget is None:
            return
        known = self._newest(study, trial.number)
        if (known is not None and known.done) or not self._opens(study, trial):
            return
        state = self._known_of(study)
        state.due = max(state.due, trial.number // self._trials_per_round)
        if not self._training.acquire(blocking=False):
            return  # the thread that trains makes up for this round
        try:
            self._newest(study, trial.number, load=True)
            trained = -1
            while trained < state.due:  # which other threads may raise meanwhile
                trained = state.due
                self._fit(self._share(trained), self._share(trained + 1))
            self._publish(study, trial)
        finally:
            self._training.release()

    def _share(self, rounds: int) -> float:
        return min(1.0, rounds / self._rounds)

    def _fit(self, first: float, until: float) -> None:
        """Train up to a share of the budget, from a checkpoint if an earlier attempt left one."""
        assert self.snas is not None
        assert self._data is not None
        assert self._budget is not None
        on_progress = self._on_progress

        def on_step(share: float) -> None:
            if on_progress is not None:
                on_progress(min(0.999, max(0.0, (share - first) / max(until - first, 1e-9))))

        self.snas.fit(
            self._data,
            self._budget,
            until=until,
            on_step=None if on_progress is None else on_step,
            checkpoint=None if self._folder is None else self._folder / "snas.safetensors",
            should_stop=self._should_stop,
        )
        if on_progress is not None:
            on_progress(1.0)

    def _opens(self, study: Study, trial: FrozenTrial) -> bool:
        """Tell whether a trial opens its round: it is the first, or those before it have failed or were fixed."""
        for number in range(trial.number - trial.number % self._trials_per_round, trial.number):
            earlier = find_trial(study, number)
            if earlier is None or _has_snapshot(earlier) or not self._is_passed_over(earlier):
                return False
        return True

    def _is_passed_over(self, trial: FrozenTrial) -> bool:
        return trial.state == TrialState.FAIL or self._is_fixed(trial)

    def _is_fixed(self, trial: FrozenTrial) -> bool:
        """Tell whether a trial was enqueued with all our parameters, so that nothing is asked of us."""
        return set(self._distributions) <= set(trial.system_attrs.get("fixed_params", ()))

    def _publish(self, study: Study, trial: FrozenTrial) -> None:
        assert self.snas is not None
        store, before = self._store(study), self._known_of(study).newest
        records = [record for record in self.snas.records if before is None or record.step > before.step]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "snas.safetensors"
            self.snas.save(path)
            file = publish_file(study, trial, store, path)
        logits = self.snas.logits.astype("<f4")
        every = max(1, len(records) // RECORDS_A_ROUND)
        _write_records(study, trial, records[::-1][::every][::-1])
        snapshot = {
            "step": self.snas.step,
            "done": self.snas.step >= self.snas.total_steps,
            "shape": list(logits.shape),
            "logits": base64.b64encode(logits.tobytes()).decode(),
            "file": file,
            "previous": "" if before is None else before.file["artifact"],
        }
        write_json(study, trial, SNAPSHOT, snapshot)
        if before is not None and before.previous:  # two are kept: the newest, and one to fall back on
            with suppress(Exception):  # each store has errors of its own
                store.remove(before.previous)

    def _newest(self, study: Study, number: int, load: bool = False) -> Snapshot | None:
        """Return the newest snapshot that verifies, from a trial up to `number`, and load it into the SNAS.

        With `load`, the caller holds the right to train; otherwise weights are loaded if nobody trains.
        """
        if self._data is None or self.snas is None:
            return None
        if not self._attached:
            self.snas.attach(self._data)
            self._attached = True
        state = self._known_of(study)
        for earlier in range(number // self._trials_per_round, -1, -1):
            first = earlier * self._trials_per_round
            if state.newest is not None and (state.newest.done or state.newest.number >= first):
                break
            found = self._snapshot_of_round(study, first, number)
            if found is None or found.number in state.refused:
                continue
            if not (load or self._training.acquire(blocking=False)):
                continue
            try:
                if self._load(study, found):
                    state.newest = found
                    break
            finally:
                if not load:
                    self._training.release()
        return state.newest

    def _snapshot_of_round(self, study: Study, first: int, last: int) -> Snapshot | None:
        for number in range(first, min(first + self._trials_per_round, last + 1)):
            trial = find_trial(study, number)
            if trial is None:
                return None
            try:
                published = read_json(trial.system_attrs, SNAPSHOT)
                if published is not None:
                    logits = np.frombuffer(base64.b64decode(published["logits"]), "<f4").reshape(published["shape"])
                    table, file = logits.astype(np.float64), published["file"]
                    return Snapshot(number, published["step"], published["done"], table, file, published["previous"])
            except (Unverified, KeyError, TypeError, ValueError) as error:
                self._refuse(study, number, error)
                return None
            if not self._is_passed_over(trial):
                return None
        return None

    def _load(self, study: Study, snapshot: Snapshot) -> bool:
        """Bring the SNAS to a snapshot, if it is behind; False where the snapshot does not verify."""
        assert self.snas is not None
        if self.snas.step >= snapshot.step:
            return True
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "snas.safetensors"
                fetch_file(self._store(study), snapshot.file, path)
                self.snas.load(path)
        except Unverified as error:
            self._refuse(study, snapshot.number, error)
            return False
        return True

    def _refuse(self, study: Study, number: int, error: Exception) -> None:
        """Say once that a snapshot is of no use."""
        refused = self._known_of(study).refused
        if number not in refused:
            refused.add(number)
            logger.warning("The SNAS of trial %d does not verify (%s); the one before it is used.", number, error)

    def _store(self, study: Study) -> ArtifactStore:
        if self._given_store is not None:
            return self._given_store
        return folder_store((self._folder or Path("runs") / study.study_name) / "artifacts")


class _Fold:
    """The finished trials of a study, learned from one after another.

    In the order in which they finished, so that every process comes to the same distribution; each is looked at once.
    """

    def __init__(self, policy: ScoreFunction) -> None:
        self.policy = policy
        self._chosen: set[tuple[int, ...]] = set()
        self._digests: set[str] = set()
        self._unfinished: list[int] = []  # places in the list of trials
        self._n_known = 0

    def update(
        self, trials: Sequence[FrozenTrial], positions: Mapping[str, Mapping[Any, int]], signs: Sequence[float]
    ) -> None:
        finished, unfinished = [], []
        for place in [*self._unfinished, *range(self._n_known, len(trials))]:
            # Another thread may have shown a longer list before.
            if place < len(trials) and trials[place].state.is_finished():
                finished.append(trials[place])
            else:
                unfinished.append(place)
        self._unfinished, self._n_known = unfinished, max(self._n_known, len(trials))
        for trial in sorted(finished, key=_finished_at):
            if trial.state == TrialState.FAIL or not positions.keys() <= trial.params.keys():
                continue
            chosen = tuple(known.get(trial.params[path], -1) for path, known in positions.items())
            if min(chosen) < 0:
                path = list(positions)[chosen.index(-1)]
                raise ValueError(
                    f"`study` must search the sampler's space but trial {trial.number} has {trial.params[path]!r} at "
                    f"{path!r}; give the study another name, or the sampler its space."
                )
            if len(trial.params) == len(positions):
                self._chosen.add(chosen)
                if DIGEST in trial.user_attrs:
                    self._digests.add(trial.user_attrs[DIGEST])
            self.policy.learn(chosen, _outcome(trial, signs))

    def is_taken(self, chosen: NDArray[np.int64], architecture: Architecture) -> bool:
        """Tell whether a finished trial had this architecture, or, where trials say so, one of the same function."""
        if tuple(chosen.tolist()) in self._chosen:
            return True
        return bool(self._digests) and architecture.canonical().digest in self._digests


def _never(chosen: NDArray[np.int64], architecture: Architecture) -> bool:
    return False


class _Known:
    """What the sampler knows of one study."""

    def __init__(self, fold: _Fold) -> None:
        self.fold = fold
        self.newest: Snapshot | None = None
        self.due = -1  # the highest round whose turn to be trained has come here
        self.refused: set[int] = set()  # trials whose snapshots did not verify


def records_of(trial: FrozenTrial) -> list[DistributionRecord]:
    """Return how the distribution stood while a trial trained it or drew from it; empty for most trials."""
    try:
        published = read_json(trial.system_attrs, RECORDS)
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
    """Return how the distribution of a study's `SNASSampler` stood, in order; for `plot_distribution`.

    Steps are training steps of an SNAS that the study trains, or else numbers of trials.
    """
    trials = study.get_trials(deepcopy=False)
    by_step = {record.step: record for trial in trials for record in records_of(trial)}
    return [by_step[step] for step in sorted(by_step)]


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
    write_json(study, trial, RECORDS, plain)


def _has_snapshot(trial: FrozenTrial) -> bool:
    try:
        return read_json(trial.system_attrs, SNAPSHOT) is not None
    except Unverified:
        return True  # it came so far


def _outcome(trial: FrozenTrial, signs: Sequence[float]) -> Outcome:
    violation = sum(max(0.0, excess) for excess in trial.constraints.values())
    if trial.state == TrialState.COMPLETE:
        progress = float("inf")
    else:
        progress = float(-1 if trial.last_step is None else trial.last_step)
    values = trial.values or [0.0] * len(signs)  # pruned before it reported: behind all others by its progress
    return Outcome(violation, progress, tuple(sign * value for sign, value in zip(signs, values, strict=True)))


def _finished_at(trial: FrozenTrial) -> tuple[float, int]:
    return trial.datetime_complete.timestamp() if trial.datetime_complete else 0.0, trial.number


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")

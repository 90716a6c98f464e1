"""The surrogate search of the GHN paper: sample many, score all, train the best few, and random ones beside them.

It is three studies, which are run one after another and resumed like any other:

| study | trials |
| --- | --- |
| `NAME-scores` | one, in which the model learns, and the pool is drawn and scored; its value is the best score |
| `NAME-brief` | the best by score, trained briefly (Top-Best); that of the lowest validation loss goes on |
| `NAME-full` | trainings to the end: the best by score, the best of the brief ones with several seeds, random ones |
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler

from optuna_nas.data.splits import digest_of
from optuna_nas.objective import TrainObjective, suggest_int
from optuna_nas.oneshot import SplitScore
from optuna_nas.oneshot.base import meaning_of
from optuna_nas.samplers import GHNSampler
from optuna_nas.search.checks import checked_count
from optuna_nas.search.opening import open_study
from optuna_nas.search.results import network_of
from optuna_nas.search.runner import run
from optuna_nas.storage.architecture_notes import params_hash, score_notes
from optuna_nas.storage.attributes import (
    PARAMS,
    TEST_METRICS,
    attribute,
    given_params,
    user_attributes,
)
from optuna_nas.storage.database import closing
from optuna_nas.storage.directions import oriented
from optuna_nas.storage.identity import study_uid
from optuna_nas.storage.leaderboard import can_win
from optuna_nas.storage.noise import validation_loss
from optuna_nas.storage.plain import json_text, markdown_table
from optuna_nas.storage.spending import spending_of
from optuna_nas.tracking.final_run import FinalRecord, NotMirrored, log_final
from optuna_nas.training.disk import whole_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

    from optuna_nas.oneshot.base import Score
    from optuna_nas.search.config import Search, SearchListener
    from optuna_nas.space import Architecture

logger = logging.getLogger(__name__)

TOP, TOP_BEST, RANDOM = PROTOCOLS = ("top", "top-best", "random")
SCORES, BRIEF, FULL = "scores", "brief", "full"
"""Ends of the names of the studies."""
SEED = "seed"
"""Parameter of the full trainings: the seed of the recipe."""
MAX_SEED = 2**31 - 1
BRIEF_PART = 10
"""By default a brief training has 1 / BRIEF_PART of the epochs of a full one."""
NOTED_AT_ONCE = 16
"""Architectures that are scored between two notes of scores; a killed process loses so many."""
DRAWS = 1000
"""Failed draws in a row after which there are no more random architectures."""


class ProtocolResult(NamedTuple):
    """Result of a protocol: n full trainings.

    Args:
        protocol: `top`, `top-best` or `random`.
        values: Metric of every training on the report split, best first, shape (n,).
        tested: Metric of the same networks on the test split, shape (n,); None without one.
        params: Parameters of the networks, shape (n,).
        n_failed: Trainings that failed, which are left out.
        search_seconds: Seconds of everything before the full trainings: model, scores, brief trainings.
        training_seconds: Seconds of the full trainings.

    Example:
        >>> import numpy as np
        >>> from optuna_nas.results import ProtocolResult
        >>> row = ProtocolResult("top", np.array([0.96, 0.94]), None, np.array([5e6, 5e6]), 0, 60.0, 90.0)
        >>> row.cells()[2]
        '0.9500 +- 0.0141'
    """

    protocol: str
    values: NDArray[np.float64]
    tested: NDArray[np.float64] | None
    params: NDArray[np.float64]
    n_failed: int
    search_seconds: float
    training_seconds: float

    def cells(self) -> list[str]:
        """Return a row of texts for the columns of `SurrogateResult.headings`."""
        params = _with_deviation(self.params / 1e6, 3)
        counts = f"{len(self.values)}" + (f", {self.n_failed} failed" if self.n_failed else "")
        tested = "" if self.tested is None else _with_deviation(self.tested, 4)
        seconds = [f"{self.search_seconds:.1f}", f"{self.training_seconds:.1f}"]
        return [self.protocol, counts, _with_deviation(self.values, 4), tested, params, *seconds]


class SurrogateResult(NamedTuple):
    """Result of a surrogate search.

    Args:
        protocols: Results of the protocols, in the order in which they were asked for.
        metric: Name of the metric.
        best: Architecture of the best training, leaving out random ones where there are others.
        network: File with its network, for `load_network`.
        study: Study of the full trainings.

    Example:
        >>> import optuna
        >>> from optuna_nas import SurrogateResult, nasbench201_space
        >>> cell = nasbench201_space().full_architecture()
        >>> result = SurrogateResult((), "accuracy", cell, None, optuna.create_study())
        >>> result.headings[:3]
        ('protocol', 'trainings', 'accuracy')
    """

    protocols: tuple[ProtocolResult, ...]
    metric: str
    best: Architecture
    network: Path | None
    study: Study

    @property
    def headings(self) -> tuple[str, ...]:
        """Headings of the table."""
        return ("protocol", "trainings", self.metric, "test", "params, M", "search s", "training s")

    def to_json(self) -> str:
        """Return the result as JSON, without the study."""
        return json_text(self.to_dict(), indent=1)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values, without the study."""
        rows = [
            {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in row._asdict().items()}
            for row in self.protocols
        ]
        network = None if self.network is None else str(self.network)
        return {"metric": self.metric, "protocols": rows, "best": self.best.to_dict(), "network": network}


@dataclass(frozen=True)
class SurrogateSearch:
    """The surrogate search of a hypernetwork, or of any score (Zhang, Ren and Urtasun 2019, section 5.1.1).

    Architectures are sampled and scored on the whole report split without being trained. Three protocols say how good
    the best of them are:

    - `top`: mean and standard deviation of the `n_best` best by score, each trained to the end. The paper's table 1:
      0.42 GPU-days of search for 95.7 +- 0.1 % on CIFAR-10.
    - `top-best`: the same are trained briefly, and the best of these, by their validation loss, to the end, `n_repeats`
      times with other seeds.
      Table 2: 0.84 GPU-days for 97.16 +- 0.07 %, with cutout.
    - `random`: mean and standard deviation of `n_random` random architectures trained to the end.

    Every training is a trial with checkpoints of an ordinary study: `NAME-scores`, `NAME-brief`, `NAME-full`. None is
    made twice: what two protocols need is shared. An interrupted or killed search goes on when it is run again, and
    ends with the same result. More protocols, repeats or random architectures may be asked for later.

    Args:
        search: Search with a `GHNSampler`, whose model learns and scores, or the strategy `ghn` or `free`. Its recipe
            is that of the full trainings; trials, seconds, pruner and patience are not used.
        protocols: Any of `top`, `top-best` and `random`.
        pool_size: Architectures that are sampled and scored, without a prefilter; by default as many as the sampler
            draws for a pool, 1,000 in the paper.
        n_best: Best ones by score that are trained, at least 1; 10 in the paper.
        n_random: Random architectures, at least 1; 10 in the paper.
        n_repeats: Full trainings of the best one, at least 1; 5 in the paper.
        brief_epochs: Epochs of a brief training, fewer than in the recipe; by default a tenth.
        whole_split: Whether the model of the sampler scores on the whole report split, see `SplitScore`; else on its
            scoring batch. A score of your own is taken as it is.

    Raises:
        ValueError: A value is out of range, or the search has no such sampler, or no objective that trains.

    Example:
        >>> import numpy as np
        >>> from optuna_nas import GHNSampler, ImageData, NetworkSpace, Recipe, Search, SurrogateSearch
        >>> from optuna_nas import nasbench201_skeleton, nasbench201_space
        >>> data = ImageData.from_arrays(np.random.rand(60, 4, 4), np.arange(60) % 2)
        >>> space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 2, data.input_shape, data.classes))
        >>> def few_params(architectures):
        ...     return np.array([-float(space.params(architecture)) for architecture in architectures])
        >>> sampler = GHNSampler(space, score=few_params, pool_size=20, trials_per_round=1, seed=0)
        >>> search = Search("few", space, data, Recipe(epochs=2), sampler=sampler, tracking=None, pictures=False)
        >>> result = SurrogateSearch(search, n_best=2, n_random=2, n_repeats=2).run()
        >>> [(row.protocol, len(row.values)) for row in result.protocols]
        [('top', 2), ('top-best', 2), ('random', 2)]
    """

    search: Search
    protocols: tuple[str, ...] = PROTOCOLS
    pool_size: int | None = None
    n_best: int = 10
    n_random: int = 10
    n_repeats: int = 5
    brief_epochs: int | None = None
    whole_split: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "protocols", tuple(dict.fromkeys(self.protocols)))
        if not self.protocols or not set(self.protocols) <= set(PROTOCOLS):
            raise ValueError(f"`protocols` must be of {', '.join(PROTOCOLS)} but got {self.protocols}.")
        for name in ("pool_size", "n_best", "n_random", "n_repeats", "brief_epochs"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, checked_count(name, value))
        epochs = self._objective.recipe.epochs
        if TOP_BEST in self.protocols:
            if self.brief_epochs is None:
                object.__setattr__(self, "brief_epochs", max(1, epochs // BRIEF_PART))
            if self.brief_epochs is not None and self.brief_epochs >= epochs:
                raise ValueError(
                    f"`brief_epochs` must be fewer than the {epochs} epochs of the recipe but are "
                    f"{self.brief_epochs}; train longer in full, or leave out the protocol {TOP_BEST!r}."
                )
        if set(self.protocols) == {RANDOM}:
            return
        sampler = self._sampler
        if not isinstance(sampler, GHNSampler):
            raise ValueError(
                f"`search` must have a GHNSampler, by whose scores architectures are chosen, but has "
                f"{type(sampler).__name__}; give it `sampler=GHNSampler(space, ghn, data=data, budget=...)`, or the "
                "strategy 'ghn' or 'free'."
            )
        if (size := self.pool_size or sampler.n_drawn) < self.n_best:
            raise ValueError(
                f"`pool_size` must be at least `n_best`, which are taken of it, but {size} < {self.n_best}; score more."
            )

    # -- parts ----------------------------------------------------------------------------------------------------

    @property
    def _sampler(self) -> object:
        """The sampler of the search, or the one that another sampler around it has."""
        sampler: object = self.search.resolved_sampler
        while not isinstance(sampler, GHNSampler) and hasattr(sampler, "sampler"):
            sampler = sampler.sampler
        return sampler

    @cached_property
    def _objective(self) -> TrainObjective:
        """The objective of the full trainings, which has one value."""
        search = self.search
        objective = search.objective or replace(search, strategy=None, directions=None).resolved_objective
        if not isinstance(objective, TrainObjective) or len(objective.objectives) > 1:
            raise ValueError(
                "`search` must have the default objective or a TrainObjective of one value, which trains what is "
                f"chosen, but has a {type(objective).__name__}."
            )
        for settings in (objective.recipe, objective.task):
            names = [name for name, value in vars(settings).items() if isinstance(value, BaseDistribution)]
            if names:
                raise ValueError(
                    f"`{names[0]}` must be a number, the same for all trainings, but is a suggestion; give it a value."
                )
        return objective

    @property
    def folder(self) -> Path:
        """Folder of all files: that of the search."""
        return self.search.resolved_folder()

    def _stage(self, stage: str, **changes: Any) -> Search:
        """Return the search of one of the studies."""
        search = self.search
        return replace(
            search,
            name=f"{search.name}-{stage}",
            folder=self.folder / stage,
            storage=search.resolved_storage(),
            strategy=None,
            pruner=NopPruner(),
            directions=None,
            seconds=None,
            patience=None,
            description=f"{_SAYS[stage]}\n\n{search.description}".rstrip(),
            **changes,
        )

    # -- the three studies ----------------------------------------------------------------------------------------

    def run(
        self, listener: Callable[[str, Search], SearchListener | None] = lambda title, search: None
    ) -> SurrogateResult | None:
        """Run or resume the three studies, and return what came out; None if it was interrupted.

        Ctrl-C ends after the running trial, SIGTERM at the next training step.

        Args:
            listener: Function of a title and one of the searches that returns a listener to it, such as a display.

        Raises:
            ValueError: A study exists with other settings, or nothing could be trained.
            ConnectionError: The storage or MLflow does not answer at the start.
        """
        asked: dict[str, list[_Asked]] = {}
        search_seconds = dict.fromkeys(PROTOCOLS, 0.0)
        recipe = self._objective.recipe
        if set(self.protocols) != {RANDOM}:
            chosen, seconds = self._choose(listener)
            if chosen is None:
                return None
            if TOP in self.protocols:
                asked[TOP] = [one.with_seed(recipe.seed) for one in chosen]
            search_seconds |= {TOP: seconds, TOP_BEST: seconds}
            if self.brief_epochs is not None and TOP_BEST in self.protocols:
                objective = replace(self._objective, recipe=replace(recipe, epochs=self.brief_epochs))
                study = self._train(BRIEF, objective, chosen, listener)
                if study is None:
                    return None
                search_seconds[TOP_BEST] += _seconds(study.get_trials(deepcopy=False))
                best = _best(study, chosen)
                asked[TOP_BEST] = [best.with_seed(recipe.seed + i) for i in range(self.n_repeats)]
        if RANDOM in self.protocols:
            asked[RANDOM] = [one.with_seed(recipe.seed) for one in self._random_ones()]
        seeded = replace(self._objective, recipe=replace(recipe, seed=suggest_int(0, MAX_SEED)))
        study = self._train(FULL, seeded, [one for ones in asked.values() for one in ones], listener)
        return None if study is None else self._result(study, asked, search_seconds)

    def _choose(self, listener: Callable[[str, Search], SearchListener | None]) -> tuple[list[_Asked] | None, float]:
        """Return the best architectures of the scored pool, best first, and the seconds that they took."""
        given = self._sampler
        assert isinstance(given, GHNSampler)
        data = self._objective.data if given.data is None else given.data
        whole = self.whole_split and given.model is not None and given.score == given.model.score
        score: Score = SplitScore(given.model, data) if whole and given.model is not None else given.score
        notes = self.folder / SCORES / "scores.jsonl"
        noted = _NotedScore(score, notes, given, data.describe())
        sampler = given.for_one_pool(noted, self.pool_size)
        settings = {
            "pool_size": self.pool_size,
            "whole_split": whole,
            "model": None if given.model is None else given.model.describe(),
            "budget": None if sampler.in_study_fit is None else sampler.in_study_fit.budget,
        }
        objective = _BestScore(given.space, noted, settings)
        search = self._stage(SCORES, objective=objective, sampler=sampler, trials=1)
        study = open_study(search)
        with closing(study):
            noted.owner = study_uid(study)
        result = run(search, listener("scores", search))
        if result.interrupted:
            return None, 0.0
        with closing(result.study):
            pool = sampler.scored(result.study)
            seconds = _seconds(result.study.get_trials(deepcopy=False))
        if not pool:
            raise ValueError("`search` must have a space of connected architectures but none was found to be scored.")
        encode = self.search.space.encode
        ranked = sorted(pool, key=lambda one: -one[1])[: self.n_best]  # a stable sort
        return [_Asked(dict(encode(architecture)), score) for architecture, score in ranked], seconds

    def _random_ones(self) -> list[_Asked]:
        """Return functionally distinct random architectures, the same in every call."""
        space, random = self.search.space, np.random.default_rng([self._objective.recipe.seed, 1])
        found: dict[str, _Asked] = {}
        n_failed = 0
        while len(found) < self.n_random and n_failed < DRAWS:
            architecture = space.sample(random)
            digest = architecture.canonical().digest if architecture.connected else ""
            n_failed = n_failed + 1 if not digest or digest in found else 0
            if digest:
                found.setdefault(digest, _Asked(dict(space.encode(architecture)), None))
        return list(found.values())

    def _train(
        self,
        stage: str,
        objective: TrainObjective,
        asked: Sequence[_Asked],
        listener: Callable[[str, Search], SearchListener | None],
    ) -> Study | None:
        """Train everything that is asked for and not there yet, as trials; None if it was interrupted."""
        names = sorted({name for one in asked for name in one.params})
        meaning = meaning_of(self._sampler.score) if isinstance(self._sampler, GHNSampler) else ""
        search = self._stage(
            stage, objective=objective, sampler=RandomSampler(0), trials=1, keep_networks=max(1, len(asked))
        )
        study = open_study(search)
        with closing(study):
            there = {params_hash(given_params(trial), names) for trial in study.get_trials(deepcopy=False)}
            for one in asked:
                if (key := params_hash(one.params, names)) in there:
                    continue
                there.add(key)
                paths = self.search.space.distributions()
                notes = {} if one.score is None else score_notes(one.score, one.params, paths, meaning)
                study.enqueue_trial(one.params, user_attrs=notes)
        search = replace(search, trials=len(there), keep_networks=len(there))
        result = run(search, listener(stage, search))
        return None if result.interrupted else result.study

    # -- the result -----------------------------------------------------------------------------------------------

    def _result(
        self, study: Study, asked: Mapping[str, Sequence[_Asked]], search_seconds: Mapping[str, float]
    ) -> SurrogateResult:
        search = self._stage(FULL, objective=self._objective, sampler=None, trials=1)
        with closing(study):
            trained = {one.key: _trial_of(study, one) for ones in asked.values() for one in ones}
            finished = {key: trial for key, trial in trained.items() if trial is not None}
            if not finished:
                raise ValueError(f"`search` must have a training that ends but all of {study.study_name!r} failed.")
            tested = self._tested(search, study, list(finished.values()))
            rows = []
            for protocol in filter(asked.__contains__, self.protocols):
                trials = [finished[one.key] for one in asked[protocol] if one.key in finished]
                trials.sort(key=lambda trial: -oriented(trial.values[0], study.direction))
                on_test = [tested[trial.number] for trial in trials if trial.number in tested]
                rows.append(
                    ProtocolResult(
                        protocol,
                        np.array([trial.values[0] for trial in trials]),
                        np.array(on_test) if tested and len(on_test) == len(trials) else None,
                        np.array([float(attribute(trial.user_attrs, PARAMS, 0)) for trial in trials]),
                        len(asked[protocol]) - len(trials),
                        search_seconds[protocol],
                        _seconds(trials),
                    )
                )
            chosen = [one for protocol, ones in asked.items() if protocol != RANDOM for one in ones]
            able = [finished[one.key] for one in chosen if one.key in finished] or list(finished.values())
            best = max(able, key=lambda trial: oriented(trial.values[0], study.direction))
            architecture = self.search.space.decode(best.params)
            network = network_of(search, study, best)
            result = SurrogateResult(tuple(rows), self._objective.metric, architecture, network, study)
            with whole_file(self.folder / "surrogate.json") as file:
                file.write_text(result.to_json())
            self._show_in_mlflow(result)
        return result

    def _tested(self, search: Search, study: Study, trials: Sequence[FrozenTrial]) -> dict[int, float]:
        """Return metrics on the test split by the number of the trial; each network is evaluated once."""
        known = {int(key): float(one) for key, one in attribute(user_attributes(study), TEST_METRICS, {}).items()}
        for trial in trials:
            network = None if trial.number in known else network_of(search, study, trial)
            metric = None if network is None else self._objective.judge(network)
            if metric is not None:
                known[trial.number] = metric
                study.set_user_attr(TEST_METRICS, {str(number): one for number, one in known.items()})
        return known

    def _show_in_mlflow(self, result: SurrogateResult) -> None:
        """Write the table to MLflow as a run beside the trials, once for every result."""
        if self.search.tracking is None:
            return
        metrics: dict[str, float] = {}
        for row in result.protocols:
            numbers = {result.metric: row.values, f"test_{result.metric}": row.tested, "params": row.params}
            for name, values in numbers.items():
                if values is not None and len(values):
                    metrics[f"{row.protocol}/{name}/mean"] = float(values.mean())
                    metrics[f"{row.protocol}/{name}/deviation"] = _deviation(values)
        metrics = {name: value for name, value in metrics.items() if np.isfinite(value)}
        name = hashlib.blake2b(json.dumps(metrics).encode(), digest_size=4).hexdigest()
        table = markdown_table(result.headings, [row.cells() for row in result.protocols])
        settings = {name: value for name, value in vars(self).items() if isinstance(value, int | tuple)}
        try:
            log_final(
                self.search.tracking, result.study, FinalRecord(name, [], metrics, settings, "surrogate search", table)
            )
        except (ConnectionError, NotMirrored) as error:
            logger.warning("The result is not in MLflow yet: %s Run this again to write it.", error)


_SAYS = {
    SCORES: "Surrogate search, first study: the model learns, and a pool of architectures is scored.",
    BRIEF: "Surrogate search, second study: the best by score are trained briefly.",
    FULL: "Surrogate search, third study: trainings to the end, of the best by score and of random architectures.",
}


@dataclass(frozen=True)
class _Asked:
    """Training that is asked for.

    Args:
        params: Parameters of its trial.
        score: Score of its architecture; None of a random one.
    """

    params: dict[str, Any]
    score: float | None

    @property
    def key(self) -> str:
        return params_hash(self.params, self.params)

    def with_seed(self, seed: int) -> _Asked:
        """Return this training with a seed."""
        return replace(self, params={**self.params, SEED: seed})


class _BestScore:
    """Objective of the study of scores: the score of what the sampler proposes first."""

    metric = "score"
    directions = ("maximize",)

    def __init__(self, space: Any, score: Score, settings: Mapping[str, Any]) -> None:
        self._space, self._score, self._settings = space, score, settings

    def __call__(self, trial: Trial) -> float:
        return float(self._score([self._space.suggest(trial)])[0])

    def describe(self) -> dict[str, Any]:
        return {"scoring": self._settings}


class _NotedScore:
    """Score that notes what it has scored in a file, so that a killed process goes on there.

    A note counts for the same study, data and weights of the model.

    Args:
        score: Function that scores.
        file: File with a note a line.
        sampler: Sampler whose model scores.
        data: Description of the data.
    """

    def __init__(self, score: Score, file: Path, sampler: GHNSampler, data: Mapping[str, Any]) -> None:
        self._score, self._file, self._sampler, self._data = score, file, sampler, data
        self.owner, self.meaning = "", meaning_of(score)

    def __call__(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        scored_by, paths = self._scored_by(), self._sampler.space.distributions()
        keys = [params_hash(self._sampler.space.encode(architecture), paths) for architecture in architectures]
        known = self._known(scored_by)
        missing = {key: one for key, one in zip(keys, architectures, strict=True) if key not in known}
        left = list(missing)
        for start in range(0, len(left), NOTED_AT_ONCE):
            part = left[start : start + NOTED_AT_ONCE]
            scores = np.asarray(self._score([missing[key] for key in part]), dtype=np.float64)
            if scores.shape != (len(part),):
                raise ValueError(f"`score` must return {len(part)} numbers but returned shape {scores.shape}.")
            found = dict(zip(part, scores.tolist(), strict=True))
            known |= found
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a") as file:
                file.writelines(json.dumps([scored_by, key, score]) + "\n" for key, score in found.items())
        return np.array([known[key] for key in keys], dtype=np.float64)

    def _scored_by(self) -> str:
        model = self._sampler.model
        modules = {} if model is None else model.modules
        weights = digest_of(*(tensor for module in modules.values() for tensor in module.state_dict().values()))
        parts = json.dumps([self.owner, self._data, weights], sort_keys=True)
        return hashlib.blake2b(parts.encode(), digest_size=8).hexdigest()

    def _known(self, scored_by: str) -> dict[str, float]:
        known: dict[str, float] = {}
        for line in self._file.read_text().splitlines() if self._file.exists() else ():
            try:
                by, key, score = json.loads(line)
            except ValueError:  # a process was killed while it wrote
                continue
            if by == scored_by and isinstance(key, str) and isinstance(score, float):
                known[key] = score
        return known


def _trial_of(study: Study, asked: _Asked) -> FrozenTrial | None:
    """Return the completed trial of a training; None if it has failed."""
    trials = study.get_trials(deepcopy=False)
    return next(
        (trial for trial in trials if can_win(trial) and params_hash(trial.params, asked.params) == asked.key), None
    )


def _best(study: Study, asked: Sequence[_Asked]) -> _Asked:
    """Return the training with the lowest validation loss, or the best value where not all note one.

    The loss tells short trainings apart that a metric does not. Of equal ones, it is that with the best score.
    """
    with closing(study):
        trials = {one.key: _trial_of(study, one) for one in asked}
    able = [(one, trial) for one in asked if (trial := trials[one.key]) is not None]
    if not able:
        raise ValueError(f"`search` must have a brief training that ends but all of {study.study_name!r} failed.")
    losses = [validation_loss(trial) for _, trial in able]
    known = [-loss.mean for loss in losses if loss is not None]
    values = known if len(known) == len(able) else [oriented(one.values[0], study.direction) for _, one in able]
    return able[int(np.argmax(values))][0]  # the first of equal ones


def _seconds(trials: Sequence[FrozenTrial]) -> float:
    return sum(spending_of(trial).total for trial in trials if trial.state.is_finished())


def _deviation(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def _with_deviation(values: NDArray[np.float64], digits: int) -> str:
    """Return mean and standard deviation as text; the mean alone of one value."""
    if not len(values):
        return ""
    deviation = f" +- {_deviation(values):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{deviation}"

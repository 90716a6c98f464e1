"""Ask another sampler now and then, and follow it where its trials are better."""

from __future__ import annotations

import logging
import math
from collections import deque
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import TrialState

from optuna_nas.samplers.around import AroundSampler
from optuna_nas.samplers.base import reseed
from optuna_nas.storage.attributes import PROMOTES, SECOND_OPINION, attribute, hash_of
from optuna_nas.storage.directions import oriented
from optuna_nas.storage.finished import FinishedTrials, PerStudy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.study import StudyDirection
    from optuna.trial import FrozenTrial

    from optuna_nas.samplers.base import ArchitectureSampler

logger = logging.getLogger(__name__)

REMEMBERED = 100
"""Last finished trials of each sampler that are compared."""
LEAST = 2
"""Finished trials of the second sampler before it can be followed."""


class SecondOpinionSampler(AroundSampler):
    """Sampler that asks a second sampler now and then, and follows it where its trials are better.

    A score that was never compared with a training may be wrong about a task: on few examples, say, small networks win,
    and indicators of untrained networks prefer large ones. From trial `first` on, every `every`-th trial is proposed by
    the second sampler. While the median of its trials is better than that of the first sampler's, they change places.
    Trials are compared after as many steps as all of them have reported. With several objectives, or where trials are
    promoted by a `PromotingSampler`, nothing is compared.

    Args:
        sampler: Sampler that proposes architectures.
        second: Sampler that learns from finished trials; by default Optuna's TPE, multivariate.
        first: Number of the first trial that the second sampler proposes, at least 1.
        every: Trials from one such trial to the next, at least 2.
        seed: Seed of the second sampler's random numbers, at least 0; None draws one.

    Raises:
        ValueError: `first` or `every` is out of range.

    Example:
        >>> from pathlib import Path
        >>> import numpy as np, optuna
        >>> from optuna_nas import GHNSampler, nasbench201_space
        >>> from optuna_nas.samplers import SecondOpinionSampler
        >>> from optuna_nas.storage.artifacts import folder_store
        >>> def n_convolutions(architectures):
        ...     return np.array([float(str(architecture).count("conv")) for architecture in architectures])
        >>> space, store = nasbench201_space(), folder_store(Path("artifacts"))
        >>> by_score = GHNSampler(space, score=n_convolutions, artifact_store=store, exploration=0.0, seed=0)
        >>> sampler = SecondOpinionSampler(by_score, first=3, every=3, seed=0)
        >>> study = optuna.create_study(direction="minimize", sampler=sampler)  # convolutions are bad here
        >>> study.optimize(lambda trial: n_convolutions([space.suggest(trial)])[0], n_trials=30)
        >>> [trial.value for trial in study.trials[:3]], study.best_value < 3
        ([6.0, 6.0, 6.0], True)
    """

    def __init__(
        self,
        sampler: ArchitectureSampler | AroundSampler,
        second: BaseSampler | None = None,
        *,
        first: int = 5,
        every: int = 6,
        seed: int | None = None,
    ) -> None:
        for name, value, least in (("first", first, 1), ("every", every, 2)):
            if value < least:
                raise ValueError(f"`{name}` must be at least {least} but got {value}.")
        self._given_second, self._first, self._every = second, first, every
        self._seed = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
        super().__init__(sampler)

    def _init_state(self) -> None:
        super()._init_state()
        self._opinions = PerStudy(_Opinions)
        self._own_second = PerStudy(lambda: TPESampler(multivariate=True, n_startup_trials=5))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        if not self._is_second(study, trial):
            return self.sampler.infer_relative_search_space(study, trial)
        with self._lock:
            return self._second(study).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not self._is_second(study, trial):
            return self.sampler.sample_relative(study, trial, search_space)
        with self._lock:
            self._reseed(study, trial, "")
            return self._second(study).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if not self._is_second(study, trial):
            return self.sampler.sample_independent(study, trial, param_name, param_distribution)
        with self._lock:
            self._reseed(study, trial, param_name)
            return self._second(study).sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        super().before_trial(study, trial)
        self._second(study).before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        super().after_trial(study, trial, state, values)
        self._second(study).after_trial(study, trial, state, values)

    def _second(self, study: Study) -> BaseSampler:
        return self._given_second or self._own_second.of(study)

    def _reseed(self, study: Study, trial: FrozenTrial, name: str) -> None:
        """Seed the second sampler for a trial and a parameter, so that threads and interruptions change nothing."""
        random = np.random.default_rng([self._seed, trial.number, hash_of(name)])
        reseed(self._second(study), int(random.integers(2**32)))

    def _is_second(self, study: Study, trial: FrozenTrial) -> bool:
        """Return whether the second sampler proposes a trial."""
        with self._lock:
            opinions = self._opinions.of(study)
            if trial.number not in opinions.decided:
                turn = trial.number >= self._first and (trial.number - self._first) % self._every == 0
                opinions.decided[trial.number] = second = turn != opinions.prefer_second(study)
                if second:
                    study._storage.set_trial_system_attr(trial._trial_id, SECOND_OPINION, True)
            return opinions.decided[trial.number]


class _Opinions:
    """Finished trials of both samplers; every one is read once."""

    def __init__(self) -> None:
        self.decided: dict[int, bool] = {}
        self._finished = FinishedTrials()
        self._trials: dict[bool, deque[FrozenTrial]] = {False: deque(maxlen=REMEMBERED), True: deque(maxlen=REMEMBERED)}
        self._preferred = False

    def prefer_second(self, study: Study) -> bool:
        """Return whether the median trial of the second sampler is better than that of the first."""
        if len(study.directions) > 1:
            return False
        for trial in self._finished.take(study.get_trials(deepcopy=False)):
            if trial.state != TrialState.FAIL and PROMOTES not in trial.system_attrs:
                self._trials[attribute(trial.system_attrs, SECOND_OPINION, False)].append(trial)
        if len(self._trials[True]) < LEAST or not self._trials[False]:
            return False
        reported = [trial for trials in self._trials.values() for trial in trials if trial.intermediate_values]
        step = min((max(trial.intermediate_values) for trial in reported), default=-1)
        direction = study.directions[0]
        first, second = (
            median(_value(trial, step, direction) for trial in self._trials[is_second]) for is_second in (False, True)
        )
        if (second > first) != self._preferred:
            self._preferred = second > first
            followed = "second" if self._preferred else "first"
            logger.info("The %s sampler is followed from now on: the median of its trials is better.", followed)
        return self._preferred


def _value(trial: FrozenTrial, step: int, direction: StudyDirection) -> float:
    """Return what a trial reported at a step, or its value, such that larger is better; the worst if it has none."""
    value = trial.intermediate_values.get(step, trial.values[0] if trial.values else math.nan)
    return -math.inf if math.isnan(value) else oriented(value, direction)

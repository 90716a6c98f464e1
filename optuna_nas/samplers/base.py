"""Base class of samplers that propose whole architectures, reproducibly in threads and processes."""

from __future__ import annotations

import threading
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.samplers import BaseSampler, TPESampler

from optuna_nas.storage.attributes import given_params, hash_of
from optuna_nas.storage.finished import PerStudy, PicklesSettings
from optuna_nas.storage.optuna_rdb import LazyRandomState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, TrialState

    from optuna_nas.space import Architecture, Space
    from optuna_nas.storage.in_study_fit import InStudyFit
    from optuna_nas.storage.optuna_rdb import ArtifactStore


class ArchitectureSampler(PicklesSettings, BaseSampler):
    """Base class of samplers that propose whole architectures; other parameters are left to an independent sampler.

    Random numbers depend only on the seed, the number of the trial and the name of the parameter. Proposals are thus
    independent of the number of threads and processes.

    Args:
        space: Search space.
        independent_sampler: Sampler of parameters outside the space; by default Optuna's TPE.
        seed: Seed of the random numbers; None draws one.
    """

    def __init__(self, space: Space, independent_sampler: BaseSampler | None, seed: int | None) -> None:
        self.space = space
        self._given_others = independent_sampler
        self._seed = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
        self._distributions = space.distributions()
        self._positions = {
            path: {choice: position for position, choice in enumerate(distribution.choices)}
            for path, distribution in self._distributions.items()
        }
        super().__init__()

    @abstractmethod
    def _propose(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        """Return all parameters of an architecture; the same ones if called again for the same trial."""

    def _init_state(self) -> None:
        super()._init_state()
        self._others_lock = threading.Lock()
        self._own_others = PerStudy(TPESampler)  # one remembers the parameters of one study

        self.in_study_fit = self._make_fit()

    def _make_fit(self) -> InStudyFit[Any] | None:
        """Return the in-study training of the model, or None if there is nothing to train or publish."""
        return None

    def prepare(
        self,
        folder: Path | None = None,
        on_progress: Callable[[str, float], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
        store: ArtifactStore | None = None,
        n_trials: int | None = None,
    ) -> None:
        """Receive the settings of a search; see `InStudyFit.prepare`."""
        if self.in_study_fit is not None:
            self.in_study_fit.prepare(folder, on_progress, should_stop, store, n_trials)

    def reseed_rng(self) -> None:
        """Do nothing: random numbers depend on the number of the trial, so workers never share a random stream."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        with self._others_lock:
            others = self._others(study).infer_relative_search_space(study, trial)
        return {**self._distributions, **{name: d for name, d in others.items() if name not in self._distributions}}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        params: dict[str, Any] = {}
        others = {name: d for name, d in search_space.items() if name not in self._distributions}
        if len(others) < len(search_space):
            self._check_space(search_space)
            if self.in_study_fit is not None:
                self.in_study_fit.before(study, trial)
            proposed = self._propose(study, trial)
            params = {name: value for name, value in proposed.items() if name in search_space}
        if others:
            with self._others_lock:
                self._reseed(self._others(study), trial, "")
                params.update(self._others(study).sample_relative(study, trial, others))
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
        with self._others_lock:
            self._reseed(self._others(study), trial, param_name)
            return self._others(study).sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._others(study).before_trial(study, trial)
        if self.in_study_fit is not None and self._is_fixed(trial):
            self.in_study_fit.newest(study, trial.number)  # a pruner or the objective may use the model

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._others(study).after_trial(study, trial, state, values)

    def _is_fixed(self, trial: FrozenTrial) -> bool:
        """Return whether all parameters of the space are fixed, as in enqueued trials; nothing is proposed then."""
        return self._distributions.keys() <= given_params(trial).keys()

    def _params(self, chosen: NDArray[np.int64]) -> dict[str, Any]:
        """Return the parameters for one option index per path."""
        return {
            path: distribution.choices[position]
            for (path, distribution), position in zip(self._distributions.items(), chosen.tolist(), strict=True)
        }

    def _architecture(self, chosen: NDArray[np.int64]) -> Architecture:
        """Return the architecture for one option index per path."""
        return self.space.decode(self._params(chosen))

    def _check_space(self, search_space: Mapping[str, BaseDistribution]) -> None:
        for name, distribution in search_space.items():
            if name in self._distributions and distribution != self._distributions[name]:
                raise ValueError(
                    f"`study` must search the sampler's space but asks {name!r} for {distribution}; "
                    "give the study another name, or the sampler its space."
                )

    def _random(self, trial: FrozenTrial, name: str) -> np.random.Generator:
        return np.random.default_rng([self._seed, trial.number, hash_of(name)])

    def _others(self, study: Study) -> BaseSampler:
        """Return the sampler of parameters outside the space."""
        return self._given_others or self._own_others.of(study)

    def _reseed(self, sampler: BaseSampler, trial: FrozenTrial, name: str) -> None:
        reseed(sampler, int(self._random(trial, name).integers(2**32)))


def reseed(sampler: BaseSampler, seed: int) -> None:
    """Seed a sampler, and those it wraps, whatever other threads have drawn.

    Args:
        sampler: One of Optuna's samplers.
        seed: Seed in [0, 2**32).

    Example:
        >>> import optuna
        >>> from optuna_nas.samplers.base import reseed
        >>> sampler, draws = optuna.samplers.RandomSampler(), []
        >>> study = optuna.create_study(sampler=sampler)
        >>> for _ in range(2):
        ...     reseed(sampler, 0)
        ...     draws.append(study.ask().suggest_float("x", 0, 1))
        >>> draws[0] == draws[1]
        True
    """
    samplers = [sampler]
    while samplers:
        for value in vars(samplers.pop()).values():
            if isinstance(value, LazyRandomState):
                value.rng.seed(seed)
            elif isinstance(value, BaseSampler):
                samplers.append(value)

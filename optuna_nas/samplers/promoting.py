"""Train the best again, longer: successive halving with whole trainings."""

from __future__ import annotations

from bisect import insort
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState

from optuna_nas.samplers.around import AroundSampler
from optuna_nas.storage.attributes import PROMOTES, attribute, given_params
from optuna_nas.storage.directions import oriented
from optuna_nas.storage.finished import FinishedTrials, PerStudy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    from optuna_nas.samplers.base import ArchitectureSampler


class PromotingSampler(AroundSampler):
    """Sampler that lets the best trials of another sampler be trained again from scratch, for longer.

    Short trainings favour what learns fast. After every `every` finished short trials, the best of those that were not
    promoted yet gets a long one, with a learning rate that falls over all of its epochs (a training that goes on from a
    rung of a longer schedule is judged at a high learning rate there). Long trials take the place of candidates of the
    other sampler. The best trial of a study is then a long one, if a longer training lowers the value.

    Args:
        sampler: Sampler that proposes architectures.
        parameter: Name of the parameter that is the length of a training, as the objective asks for it.
        short: Its value in most trials.
        long: Its value in the trials of the promoted.
        every: Number of finished short trials per long one, at least 2.

    Raises:
        ValueError: `every` is out of range.

    Example:
        >>> import optuna
        >>> from optuna_nas import SNASSampler, nasbench201_space
        >>> from optuna_nas.samplers import PromotingSampler
        >>> space = nasbench201_space()
        >>> sampler = PromotingSampler(SNASSampler(space, seed=0), short=5, long=15, every=4)
        >>> def objective(trial):
        ...     space.suggest(trial)
        ...     return trial.suggest_categorical("epochs", (5, 15)) + trial.number / 100
        >>> study = optuna.create_study(direction="maximize", sampler=sampler)
        >>> study.optimize(objective, n_trials=10)
        >>> [trial.params["epochs"] for trial in study.trials]
        [5, 5, 5, 5, 15, 5, 5, 5, 5, 15]
    """

    def __init__(
        self,
        sampler: ArchitectureSampler | AroundSampler,
        *,
        parameter: str = "epochs",
        short: int,
        long: int,
        every: int = 6,
    ) -> None:
        if every < 2:
            raise ValueError(f"`every` must be at least 2 but got {every}; 6 suits most budgets.")
        self._parameter, self._short, self._long, self._every = parameter, short, long, every
        super().__init__(sampler)

    def _init_state(self) -> None:
        super()._init_state()
        self._states = PerStudy(_Promotions)

    def upcoming(self, study: Study) -> tuple[str, int]:
        """Return the parameter that is the length of a training, and what it would be in a trial that begins now."""
        with self._lock:
            best = self._states.of(study).next(study, self._parameter, self._short, self._every)
        return self._parameter, self._short if best is None else self._long

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        best = self._promoted_by(study, trial)
        space = self.sampler.infer_relative_search_space(study, trial) if best is None else best.distributions
        return {name: distribution for name, distribution in space.items() if name != self._parameter}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        best = self._promoted_by(study, trial)
        if best is None:
            return self.sampler.sample_relative(study, trial, search_space)
        return {name: best.params[name] for name in search_space}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        best = self._promoted_by(study, trial)
        if param_name == self._parameter:
            return self._short if best is None else self._long
        if best is not None and param_name in best.params:
            return best.params[param_name]
        return self.sampler.sample_independent(study, trial, param_name, param_distribution)

    def _promoted_by(self, study: Study, trial: FrozenTrial) -> FrozenTrial | None:
        """Return the trial whose architecture this one trains for longer; None if this is a short trial."""
        with self._lock:
            promotions = self._states.of(study)
            if trial.number not in promotions.decided:
                best = promotions.next(study, self._parameter, self._short, self._every)
                if best is not None and not _agree(given_params(trial), best, self._parameter):
                    best = None  # it was enqueued with other parameters
                promotions.decided[trial.number] = best
                if best is not None:
                    promotions.promoted.add(best.number)
                    study._storage.set_trial_system_attr(trial._trial_id, PROMOTES, best.number)
            return promotions.decided[trial.number]


class _Promotions:
    """Short trials of a study, and which of them were promoted; every finished trial is read once."""

    def __init__(self) -> None:
        self.decided: dict[int, FrozenTrial | None] = {}
        self.promoted: set[int] = set()
        self._finished = FinishedTrials()
        self._n_short = 0
        self._complete: list[tuple[float, int, FrozenTrial]] = []

    def next(self, study: Study, parameter: str, short: int, every: int) -> FrozenTrial | None:
        """Return the trial to promote now; None if it is not yet time, or there is none."""
        trials = study.get_trials(deepcopy=False)
        for trial in self._finished.take(trials):
            self._read(study, trials, trial, parameter, short)
        running = [trials[number] for number in self._finished.unfinished if number < len(trials)]
        self.promoted |= {number for trial in running if (number := _promotes(trial)) is not None}
        if self._n_short // every <= len(self.promoted):
            return None
        return next((trial for _, number, trial in self._complete if number not in self.promoted), None)

    def _read(
        self, study: Study, trials: Sequence[FrozenTrial], trial: FrozenTrial, parameter: str, short: int
    ) -> None:
        promoted = _promotes(trial)
        if promoted is not None and promoted < trial.number and _agree(trial.params, trials[promoted], parameter):
            self.promoted.add(promoted)
        elif trial.params.get(parameter) == short and trial.state != TrialState.FAIL:
            self._n_short += 1
            if trial.state == TrialState.COMPLETE:
                insort(self._complete, (-oriented(trial.values[0], study.directions[0]), trial.number, trial))


def _promotes(trial: FrozenTrial) -> int | None:
    """Return the number of the trial that a trial trains again, None for most trials."""
    number: int | None = attribute(trial.system_attrs, PROMOTES)
    return number


def _agree(params: Mapping[str, Any], promoted: FrozenTrial, parameter: str) -> bool:
    """Return whether parameters, as far as they are given, are those of a trial, but for the length of the training."""
    return all(params.get(name, value) == value for name, value in promoted.params.items() if name != parameter)

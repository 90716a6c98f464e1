"""Searches replayed on a table of trainings that others have made: black-box baselines, and intervals."""

from collections.abc import Callable, Sequence
from math import inf, nan
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna import Study, Trial
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_nas import Space

REPLAYED_EPOCHS, RUNG = 10, 3
"""Epochs of a replayed training, and after how many of them halving lets the better third go on."""


class Training(NamedTuple):
    """What a table says of a training.

    Args:
        value: What the search sees in the end; larger is better.
        truth: What the architecture is judged by.
        cost: Cost of the whole training.
        early: What the search sees at the rung.
    """

    value: float
    truth: float
    cost: float
    early: float = nan


class Evolution(RandomSampler):
    """Regularised evolution (Real et al. 2019): a mutant of the best of a few of the last architectures."""

    def __init__(self, space: Space, seed: int, population: int = 20, tournament: int = 5) -> None:
        super().__init__(seed)
        self._space, self._random = space, np.random.default_rng(seed)
        self._population, self._tournament = population, tournament

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self._space.distributions())

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        done = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE][-self._population :]
        if len(done) < self._population:
            return {}
        drawn = [done[i] for i in self._random.choice(len(done), self._tournament, replace=False)]
        sign = 1 if study.direction == StudyDirection.MAXIMIZE else -1
        parent = max(drawn, key=lambda t: sign * t.value if t.value is not None else -inf)
        name = str(self._random.choice(list(search_space)))
        distribution = search_space[name]
        assert isinstance(distribution, CategoricalDistribution)
        others = [choice for choice in distribution.choices if choice != parent.params[name]]
        return {**parent.params, name: others[self._random.integers(len(others))]}


HALVING = "random, halving"
BASELINES: dict[str, Callable[[Space, int], BaseSampler]] = {
    "random": lambda space, seed: RandomSampler(seed),
    HALVING: lambda space, seed: RandomSampler(seed),
    "TPE": lambda space, seed: TPESampler(seed=seed),
    "TPE, multivariate": lambda space, seed: TPESampler(seed=seed, multivariate=True, n_startup_trials=5),
    "evolution": Evolution,
}


def pruner_of(name: str) -> BasePruner:
    """Return the pruner of a baseline."""
    return SuccessiveHalvingPruner(min_resource=RUNG, reduction_factor=3) if name == HALVING else NopPruner()


def replayed(
    sampler: BaseSampler,
    training: Callable[[Trial], Training],
    budgets: Sequence[float],
    pruner: BasePruner | None = None,
) -> list[float]:
    """Return the truth of the best architecture by its value when each budget is spent.

    Args:
        sampler: What proposes architectures.
        training: Function that suggests the architecture of a trial, and looks it up.
        budgets: Budgets in units of cost, ascending.
        pruner: What may end a training at the rung, for the part of its cost until there; by default nothing.
    """
    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner or NopPruner())
    spent, best, found = 0.0, -inf, nan
    reached: list[float] = []
    while len(reached) < len(budgets):
        trial = study.ask()
        looked_up = training(trial)
        stopped = False
        if pruner is not None and not np.isnan(looked_up.early):
            trial.report(looked_up.early, RUNG)
            stopped = trial.should_prune()
        spent += looked_up.cost * (RUNG / REPLAYED_EPOCHS if stopped else 1.0)
        while len(reached) < len(budgets) and spent > budgets[len(reached)]:
            reached.append(found)
        if stopped:
            study.tell(trial, state=TrialState.PRUNED)
            continue
        if looked_up.value > best:
            best, found = looked_up.value, looked_up.truth
        study.tell(trial, looked_up.value)
    return reached


def bootstrap(values: Sequence[float], draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % interval of a mean, by resampling."""
    random = np.random.default_rng(0)
    means = random.choice(np.asarray(values), (draws, len(values))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def with_interval(values: Sequence[float]) -> str:
    """Return a mean with its interval, as text; the mean alone of one value."""
    low, high = bootstrap(values)
    return f"{np.mean(values):.2f}" + (f" [{low:.2f}, {high:.2f}]" if len(values) > 1 else "")


def summary(budgets: Sequence[float], regrets: dict[str, list[list[float]]]) -> dict[str, Any]:
    """Return mean regrets and their intervals as JSON values.

    Args:
        budgets: Budgets.
        regrets: For every strategy a row a seed, with a regret a budget.
    """
    columns = {name: np.transpose(rows).tolist() for name, rows in regrets.items()}
    return {
        "budgets": list(budgets),
        "seeds": max(map(len, regrets.values())),
        "mean regrets": {name: [round(float(np.mean(c)), 3) for c in cs] for name, cs in columns.items()},
        "intervals": {name: [[round(end, 3) for end in bootstrap(c)] for c in cs] for name, cs in columns.items()},
    }

"""Strategies by name: sampler, pruner and objective that fit together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from optuna.pruners import MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import RandomSampler, TPESampler

from optuna_nas.modules import ModuleSpace
from optuna_nas.networks import Measure, NetworkSpace
from optuna_nas.objective.suggestions import suggest_categorical, without_suggestions
from optuna_nas.objective.train_objective import TrainObjective
from optuna_nas.oneshot import GHN, HMNAS, SNAS, FreeScore, GHNRecipe, HMNASRecipe, SNASRecipe
from optuna_nas.pruners import HMNASPruner
from optuna_nas.pruners.only_where import OnlyWhere
from optuna_nas.samplers import GHNSampler, PromotingSampler, SecondOpinionSampler, SNASSampler
from optuna_nas.search.checks import (
    AUTO,
    BY_GHN,
    BY_HMNAS,
    BY_SNAS,
    FREE,
    RANDOM,
    STRATEGIES,
    TPE,
    check_one_of,
)
from optuna_nas.search.config import NO_OBJECTIVE
from optuna_nas.space import CellSpace, ModelSpace
from optuna_nas.training.task import LOSS, Task

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

    from optuna_nas.data.splits import Data
    from optuna_nas.objective.protocol import Objective
    from optuna_nas.samplers.around import AroundSampler
    from optuna_nas.samplers.base import ArchitectureSampler
    from optuna_nas.space import PredictedCost, Space
    from optuna_nas.training.recipe import Recipe

POOL, SMALL_POOL, SHORT_SECONDS = 1000, 300, 300.0
"""Architectures of a pool, and of the pool of a search of fewer seconds."""
POOL_SHARE = 1 / 5
"""Largest share of the seconds of a search in which architectures are scored without training."""
MODEL_SHARE = {BY_SNAS: 1 / 2, BY_GHN: 2 / 5, BY_HMNAS: 2 / 5}
"""Largest share of the seconds of a search in which a one-shot model is trained."""
POOL_PER_TRIAL = 50
"""Largest number of architectures of a pool per trial, where the number of trials is given."""
ONE_SHOT_SHARE = {BY_SNAS: 1 / 2, BY_GHN: 1 / 3, BY_HMNAS: 11 / 24}
"""Epochs of a one-shot model per epoch of all trials: on NAS-Bench-201's cells an epoch of the supernet of SNAS costs
1.5 to 2 of a network, one of HM-NAS or of a GHN of four architectures a step some 3.5.
Epochs of HM-NAS's supernet are of the split for weights, two thirds of what trials train on: with those of its masks,
on the average eight elevenths."""
FILTERED = 10
"""Random architectures per candidate of a GHN, where trials leave so many: what it learns in minutes finds the better
half of them and does not order the best, and its scores take longer than those without training."""
TRIALS_PER_ROUND = 5
TPE_STARTUP_TRIALS = 5
"""Trials that TPE draws by chance before it learns."""
ASKED = "now and then TPE is asked, and followed where its trials are better"
LONGER = 3
"""Epochs of a long training per epoch of a short one."""
HALVED_AT, HALVED_AT_LEAST = 0.6, 3
"""Share of a training's epochs at which two thirds of the trainings end, and the least epochs for that."""


class Strategy(NamedTuple):
    """What a strategy consists of.

    Args:
        sampler: Sampler.
        pruner: Pruner.
        objective: Objective.
        explanation: One sentence that says what will happen.
    """

    sampler: BaseSampler
    pruner: BasePruner
    objective: Objective
    explanation: str


@dataclass(frozen=True)
class Setting:
    """What a strategy is made for: the fields of a search.

    Args:
        space: Search space.
        data: Data set; None where the objective is the user's own.
        recipe: Recipe of a trial.
        task: Loss and metric.
        objective: The user's own objective; None for a `TrainObjective` whose value is the validation loss.
        trials: Total number of trials; None where only `seconds` limit them.
        seconds: Seconds of all trials; None for no limit.
    """

    space: Space
    data: Data | None
    recipe: Recipe
    task: Task
    objective: Objective | None
    trials: int | None
    seconds: float | None

    @property
    def seed(self) -> int:
        """Seed of the recipe, or 0 where it is a suggestion."""
        return self.recipe.seed if isinstance(self.recipe.seed, int) else 0

    @property
    def model_task(self) -> Task:
        """Task of a model of all trials, with the defaults of fields that each trial suggests for itself."""
        return without_suggestions(self.task)

    def one_shot_epochs(self, strategy: str) -> float:
        """Return the epochs of a one-shot model, which then costs about as much as all trials.

        Raises:
            ValueError: The number of trials is not known.
        """
        if self.trials is None:
            raise ValueError(
                f"`trials` must be given for the strategy {strategy!r}, which plans the training of its model by them; "
                "`seconds` may end it earlier."
            )
        epochs = self.recipe.epochs if isinstance(self.recipe.epochs, int) else 1
        return max(1.0, ONE_SHOT_SHARE[strategy] * self.trials * epochs)

    @property
    def pool_size(self) -> int:
        """Architectures of a pool; of a few trials the scores would take longer than the trainings."""
        most = SMALL_POOL if self.seconds is not None and self.seconds <= SHORT_SECONDS else POOL
        return most if self.trials is None else min(most, POOL_PER_TRIAL * self.trials)

    @property
    def trials_in_pool(self) -> int:
        """Trials that take candidates of one pool."""
        return self.pool_size if self.trials is None else min(self.trials, self.pool_size)

    def part_of_seconds(self, share: float) -> float | None:
        """Return a share of the seconds of all trials; None where there is no limit."""
        return None if self.seconds is None else share * self.seconds

    @property
    def known_costs(self) -> tuple[str | PredictedCost, ...]:
        """Objectives beside the first one that are known before a training."""
        if not isinstance(self.objective, TrainObjective):
            return ()
        return tuple(cost for cost in self.objective.objectives[1:] if not isinstance(cost, Measure))

    @property
    def known_constraints(self) -> dict[str | PredictedCost, float]:
        """Upper bounds of the objective on costs that are known before a training."""
        if not isinstance(self.objective, TrainObjective):
            return {}
        return {cost: bound for cost, bound in self.objective.constraints.items() if not isinstance(cost, Measure)}

    def networks(self, strategy: str) -> tuple[ModelSpace, Data]:
        """Return space and data of a strategy that builds networks.

        Raises:
            ValueError: The space can't be built, or there are no data.
        """
        if not isinstance(self.space, ModelSpace) or self.data is None:
            raise ValueError(
                f"`strategy` must be {TPE!r} or {RANDOM!r} where space and data make no networks but is {strategy!r}; "
                "give the search a `ModelSpace`, such as `NetworkSpace(space, skeleton)`, and `data`."
            )
        return self.space, self.data

    def searched(self, strategy: str) -> tuple[ModelSpace, Data]:
        """Return the space of a supernet, without scale and shift of norms, and data."""
        space, data = self.networks(strategy)
        return (space.with_skeleton(affine=False) if isinstance(space, NetworkSpace) else space), data


def make_strategy(name: str, setting: Setting) -> Strategy:
    """Return the parts of a strategy.

    Args:
        name: One of `STRATEGIES`.
        setting: What it is made for.

    Raises:
        ValueError: The name is unknown, or the strategy does not fit the setting.

    Example:
        >>> from optuna_nas import Recipe, nasbench201_space
        >>> from optuna_nas.search.strategy import Setting, make_strategy
        >>> from optuna_nas.training import ImageClassification
        >>> space, task = nasbench201_space(), ImageClassification()
        >>> setting = Setting(space, None, Recipe(), task, lambda trial: 0.0, trials=50, seconds=None)
        >>> make_strategy("auto", setting).explanation
        'tpe: Optuna proposes architectures (multivariate TPE), since nothing is known of their networks'
    """
    check_one_of("strategy", name, STRATEGIES)
    return _MAKERS[name](setting)


def _auto(setting: Setting) -> Strategy:
    if isinstance(setting.space, ModelSpace) and setting.data is not None:
        sampler = SecondOpinionSampler(_pool(setting), seed=setting.seed)
        return _successive(setting, sampler, f"{_why(setting)}; {ASKED}")
    why = "tpe: Optuna proposes architectures (multivariate TPE), since nothing is known of their networks"
    return _tpe(setting)._replace(explanation=why)


def _free(setting: Setting) -> Strategy:
    return _successive(setting, _pool(setting), _why(setting))


def _why(setting: Setting) -> str:
    number = f"{setting.pool_size:,}" if setting.seconds is None else f"up to {setting.pool_size:,}"
    how = "scored without training, and the best are trained in that order"
    return f"free: {number} random architectures are {how} and chosen by their validation loss"


def _pool(setting: Setting) -> GHNSampler:
    """Return the sampler of a pool that is scored without training."""
    space, data = setting.networks(FREE)
    return GHNSampler(
        space,
        score=FreeScore(space, data, setting.model_task, seed=setting.seed),
        pool_size=setting.pool_size,
        pool_seconds=setting.part_of_seconds(POOL_SHARE),
        exploration=0.0,
        trials_per_round=setting.trials_in_pool,
        costs=setting.known_costs,
        constraints=setting.known_constraints,
        seed=setting.seed,
    )


def _snas(setting: Setting) -> Strategy:
    space, data = setting.searched(BY_SNAS)
    snas = SNAS(space, SNASRecipe(learning_rate=0.1, warmup_fraction=0.3, seed=setting.seed), setting.model_task)
    sampler = SNASSampler(
        space,
        snas,
        data=data,
        budget=setting.one_shot_epochs(BY_SNAS),
        budget_seconds=setting.part_of_seconds(MODEL_SHARE[BY_SNAS]),
        n_trials=setting.trials,
        trials_per_round=TRIALS_PER_ROUND,
        seed=setting.seed,
    )
    why = "snas: a supernet learns which options lower the loss while trials train what it draws"
    return Strategy(sampler, _halving(setting), _objective(setting), why)


def _ghn(setting: Setting) -> Strategy:
    space, data = setting.networks(BY_GHN)
    ghn = GHN(space, GHNRecipe(meta_batch=4, seed=setting.seed), setting.model_task)
    size = max(SMALL_POOL, setting.trials_in_pool)
    kept = size if setting.known_costs else max(size // FILTERED, setting.trials_in_pool)
    sampler = GHNSampler(
        space,
        ghn,
        data=data,
        budget=setting.one_shot_epochs(BY_GHN),
        budget_seconds=setting.part_of_seconds(MODEL_SHARE[BY_GHN]),
        pool_size=kept,
        prefilter=FreeScore(space, data, setting.model_task, seed=setting.seed) if kept < size else None,
        prefilter_size=size,
        pool_seconds=setting.part_of_seconds(POOL_SHARE),
        exploration=0.0,
        trials_per_round=setting.trials_in_pool,
        costs=setting.known_costs,
        constraints=setting.known_constraints,
        seed=setting.seed,
    )
    which = "random architectures" if kept == size else f"the {kept} that a score without training keeps of {size:,}"
    why = f"ghn: a hypernetwork generates weights of {which}, and the best by their loss are trained"
    return _successive(setting, sampler, why)


def _hmnas(setting: Setting) -> Strategy:
    space, data = setting.searched(BY_HMNAS)
    if not isinstance(space.core, CellSpace | ModuleSpace):
        raise ValueError(
            f"`strategy` {BY_HMNAS!r} needs ops on edges (CellSpace) or a ModuleSpace to mask; use {AUTO!r}."
        )
    hmnas = HMNAS(space, HMNASRecipe(batch_size=64, mask_fraction=2 / 11, seed=setting.seed), setting.model_task)
    pruner = HMNASPruner(
        hmnas,
        data=data,
        budget=setting.one_shot_epochs(BY_HMNAS),
        budget_seconds=setting.part_of_seconds(MODEL_SHARE[BY_HMNAS]),
        n_trials=setting.trials,
        trials_per_round=TRIALS_PER_ROUND,
        seed=setting.seed,
    )
    why = "hmnas: the best of a pool by a score without training are trained, unless masks know their ops to be weak"
    return Strategy(_pool(setting), pruner, _objective(setting), why)


def _tpe(setting: Setting) -> Strategy:
    why = "tpe: Optuna proposes architectures (multivariate TPE) and prunes below the median"
    return Strategy(_tpe_sampler(setting), MedianPruner(), _objective(setting), why)


def _random(setting: Setting) -> Strategy:
    why = "random: random architectures are trained in full"
    return Strategy(RandomSampler(setting.seed), NopPruner(), _objective(setting), why)


_MAKERS: dict[str, Callable[[Setting], Strategy]] = {
    AUTO: _auto, FREE: _free, BY_SNAS: _snas, BY_GHN: _ghn, BY_HMNAS: _hmnas, TPE: _tpe, RANDOM: _random,
}  # fmt: skip


def _successive(setting: Setting, sampler: ArchitectureSampler | AroundSampler, why: str) -> Strategy:
    """Return a strategy of short trainings: the worse ones end early, the best ones are made again, longer."""
    epochs = setting.recipe.epochs
    if not isinstance(epochs, int) or setting.objective is not None:
        return Strategy(sampler, _halving(setting), _objective(setting), why)
    lengths = epochs, LONGER * epochs
    recipe = replace(setting.recipe, epochs=suggest_categorical(lengths))
    promoting = PromotingSampler(sampler, short=lengths[0], long=lengths[1])
    pruner = OnlyWhere(_halving(setting), "epochs", epochs)
    return Strategy(
        promoting, pruner, _objective(replace(setting, recipe=recipe)), f"{why}; the best ones again, longer"
    )


def _halving(setting: Setting) -> BasePruner:
    """Return a pruner that lets the better third of trainings go on at three fifths of their epochs.

    Earlier, losses do not tell which training ends with the lowest: of 213 trainings of five epochs on CIFAR-10
    (none was stopped), the loss after the third has a rank correlation of .60 with the last one within a seed, that
    after the second of .35 (`BENCHMARKS.md`).
    """
    epochs = setting.recipe.epochs
    if not isinstance(epochs, int) or epochs < HALVED_AT_LEAST:
        return NopPruner()
    return SuccessiveHalvingPruner(min_resource=round(HALVED_AT * epochs), reduction_factor=3)


def _tpe_sampler(setting: Setting) -> BaseSampler:
    return TPESampler(multivariate=True, n_startup_trials=TPE_STARTUP_TRIALS, seed=setting.seed)


def _objective(setting: Setting) -> Any:
    if setting.objective is not None:
        return setting.objective
    if setting.data is None:
        raise ValueError(NO_OBJECTIVE)
    tells_loss = type(setting.task).evaluation is not Task.evaluation
    value = LOSS if tells_loss else setting.task.metric
    return TrainObjective(
        cast("ModelSpace", setting.space), setting.data, setting.recipe, setting.task, objectives=(value,)
    )

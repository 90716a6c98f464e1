"""Default objective: suggest an architecture, ask the pruner, build, train, report, return the task's metric."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from functools import cached_property
from math import isnan
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import torch
from optuna import Trial, TrialPruned
from optuna.trial import BaseTrial, TrialState

from optuna_nas.data.arrays import ImageData
from optuna_nas.data.augmentation import Augmentation
from optuna_nas.data.splits import TEST
from optuna_nas.networks.discrete import DiscreteNetwork
from optuna_nas.networks.files import read_network
from optuna_nas.networks.measures import Measure
from optuna_nas.objective.duplicates import Duplicates
from optuna_nas.objective.initial_weights import OWN, SCRATCH, FreshWeights, GivenWeights, InitialWeights
from optuna_nas.objective.protocol import TrialRun
from optuna_nas.objective.suggestions import names_suggested, resolve, resolve_augmentation
from optuna_nas.objective.trial_training import Candidate, OutOfMemory, TrialTraining, prune, pruner_name
from optuna_nas.oneshot.base import meaning_of
from optuna_nas.pruners import should_prune
from optuna_nas.space import Architecture, ModelSpace
from optuna_nas.space.cost import COSTS, PredictedCost, check_predicted
from optuna_nas.storage.architecture_notes import params_hash, score_notes
from optuna_nas.storage.attributes import (
    DIGEST,
    DIGESTED,
    DUPLICATE_OF,
    EPOCHS,
    METRIC,
    SHOWN_NAMES,
    START,
    SURROGATE_SCORE,
    TRAINING_DIGEST,
    VALIDATION_LOSS,
    attribute,
    cost_key,
)
from optuna_nas.training.described import code_digest, value_digest
from optuna_nas.training.device import choose_device, own_default_device, release_memory
from optuna_nas.training.evaluation import evaluate
from optuna_nas.training.loop import TrainingDiverged, train
from optuna_nas.training.process_group import current_ranks
from optuna_nas.training.recipe import Recipe
from optuna_nas.training.rules import settings_of
from optuna_nas.training.task import LOSS, MINIMIZE, ImageClassification, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from optuna_nas.data.splits import Data
    from optuna_nas.oneshot.base import Score
    from optuna_nas.oneshot.hmnas.model import HMNAS
    from optuna_nas.training.loop import EpochResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainObjective:
    """Objective that suggests an architecture, asks the pruner, builds, trains and evaluates it.

    The value of a trial is the task's metric on the validation split (`report`), which is reported after every epoch.
    An architecture whose output depends on no input is pruned before it is built. An architecture that computes the
    same function as that of a finished trial, with the same other parameters, gets the result of that trial. If a
    network does not fit the memory, its batches are halved once; then the trial fails, and an attribute has the reason.

    Args:
        space: Space of networks, such as a `NetworkSpace`.
        data: Data set; fields of the `Augmentation` of `ImageData` may be suggestions (`suggest_int`, ...).
        recipe: Hyperparameters of the training; fields may be suggestions, too.
        task: Loss and metric; by default image classification. Fields may be suggestions, too.
        objectives: Values to return. First the task's metric, or `loss`: the validation loss tells trainings apart
            that a metric of few examples does not, and the metric becomes an attribute of the trial. Then any of
            `params`, `multiply_adds`, `memory_access` (minimized), any `Measure`, such as `latency()`, and any
            predicted cost (minimized), such as a `LatencyTable`, for which nothing is measured in a trial. The study
            needs as many directions. With several objectives only `GHNPruner` and `HMNASPruner` can prune, since Optuna
            accepts no reports.
        constraints: Upper bounds of costs, measures or predicted costs, such as `{"params": 2e6, latency(): 0.01}`, as
            Optuna constraints.
        initial_weights: Initial weights of a training: None for random weights, `GeneratedWeights(ghn)`, or a function
            of the architecture that returns a state dictionary (`snas.weights`), a network (`hmnas.inherited`), or
            None.
        masks: HMNAS of this space whose masks are applied to the network between epochs: ops whose masks are zero are
            removed, so that training gets faster; weights, too, if `initial_weights` is a function. The attribute
            `masked` and the curve `masked_METRIC` show the effect.
        score: Function that predicts scores before the training, recorded as `surrogate_score`.
        reuse_duplicates: Whether to reuse the result of a trial that trained the same function.
        device: `auto` (a GPU if there is one), or a torch device.
        run: Folder of networks and checkpoints, listener and so on; set by a search.

    Raises:
        ValueError: An objective or a constraint is unknown, the data do not fit the space, or weights or masks are of
            another space.

    Example:
        >>> import numpy as np
        >>> import optuna
        >>> from optuna_nas import ImageData, NetworkSpace, Recipe, TrainObjective
        >>> from optuna_nas import nasbench201_skeleton, nasbench201_space
        >>> data = ImageData.from_arrays(np.random.rand(60, 4, 4), np.arange(60) % 2)
        >>> skeleton = nasbench201_skeleton(1, 2, data.input_shape, data.classes)
        >>> space = NetworkSpace(nasbench201_space(), skeleton)
        >>> objective = TrainObjective(space, data, Recipe(epochs=1))
        >>> study = optuna.create_study(directions=objective.directions)
        >>> study.optimize(objective, n_trials=1)
        >>> objective.metric, len(study.trials)
        ('accuracy', 1)
    """

    space: ModelSpace
    data: Data
    recipe: Recipe = field(default_factory=Recipe)
    task: Task = field(default_factory=ImageClassification)
    objectives: tuple[str | Measure | PredictedCost, ...] = ()
    constraints: Mapping[str | Measure | PredictedCost, float] = field(default_factory=dict)
    initial_weights: InitialWeights | Callable[[Architecture], Mapping[str, Tensor] | nn.Module | None] | None = None
    masks: HMNAS | None = None
    score: Score | None = None
    reuse_duplicates: bool = True
    device: str = "auto"
    run: TrialRun = field(default_factory=TrialRun)

    def __post_init__(self) -> None:
        if not isinstance(self.space, ModelSpace):
            raise ValueError(
                f"`space` must be a `ModelSpace`, whose architectures can be built, but is a "
                f"{type(self.space).__name__}; use `NetworkSpace(space, skeleton)`."
            )
        object.__setattr__(self, "objectives", tuple(self.objectives) or (self.task.metric,))
        if self.objectives[0] not in (self.task.metric, LOSS):
            raise ValueError(
                f"`objectives` must begin with {self.task.metric!r} or {LOSS!r} but got {self.objectives}."
            )
        for name, values in (("objectives", self.objectives[1:]), ("constraints", self.constraints)):
            names = [value for value in values if not isinstance(value, Measure | PredictedCost)]
            unknown = [value for value in names if value not in COSTS]
            if unknown:
                raise ValueError(f"`{name}` must name costs {COSTS} or be measures but got {unknown[0]!r}.")
            check_predicted(name, values, self.space)
        for cost, bound in self.constraints.items():
            if not isinstance(bound, int | float | np.number) or np.isnan(bound):
                raise ValueError(f"`constraints[{_name(cost)!r}]` must be a number but is {bound!r}.")
        if both := sorted(self.measures.keys() & self.predictions.keys()):
            raise ValueError(f"`objectives` and `constraints` must not both measure and predict {both[0]!r}.")
        taken = self.space.distributions().keys()
        augmentation = self.data.augmentation if isinstance(self.data, ImageData) else None
        for name, settings in (("recipe", self.recipe), ("task", self.task), ("data", augmentation)):
            if both := sorted(taken & names_suggested(settings)):
                raise ValueError(
                    f"`space` must not have a choice with the name of what `{name}` suggests but both have "
                    f"{both[0]!r}; rename the choice."
                )
        self.space.check_data(self.data)
        self.weights_source.check(self.space)
        if self.masks is not None and self.masks.space.core != self.space.core:
            raise ValueError("`masks` must be an HMNAS of the space of the objective but is of another.")

    @cached_property
    def weights_source(self) -> InitialWeights:
        """Source of initial weights: that of `initial_weights`."""
        if self.initial_weights is None:
            return FreshWeights()
        if callable(self.initial_weights):
            return GivenWeights(self.initial_weights)
        if not isinstance(self.initial_weights, InitialWeights):
            raise ValueError(
                "`initial_weights` must be None, `GeneratedWeights(ghn)` or a function of an architecture but got "
                f"{self.initial_weights!r}."
            )
        return self.initial_weights

    @cached_property
    def device_data(self) -> Data:
        """The data on the training device."""
        return self.data.to(choose_device(self.device))

    @property
    def metric(self) -> str:
        """Name of the first objective: the task's metric, or `loss`."""
        return str(self.objectives[0])

    @property
    def judged_metric(self) -> str:
        """Name of the metric on the test split: the task's."""
        return self.task.metric

    @property
    def measures(self) -> dict[str, Measure]:
        """Measures of objectives and constraints, by name."""
        return {m.name: m for m in (*self.objectives, *self.constraints) if isinstance(m, Measure)}

    @property
    def predictions(self) -> dict[str, PredictedCost]:
        """Predicted costs of objectives and constraints, by name."""
        return {p.name: p for p in (*self.objectives, *self.constraints) if isinstance(p, PredictedCost)}

    @property
    def objective_names(self) -> tuple[str, ...]:
        """Names of the values of a trial."""
        return tuple(map(_name, self.objectives))

    @property
    def directions(self) -> tuple[str, ...]:
        """Directions for a study: that of the first objective, followed by those of costs (`minimize`) and measures."""
        others = (m.direction if isinstance(m, Measure) else MINIMIZE for m in self.objectives[1:])
        return (MINIMIZE if self.metric == LOSS else self.task.direction, *others)

    # -- protocols of a search ------------------------------------------------------------------------------------

    def bind(self, run: TrialRun) -> TrainObjective:
        """Return the objective with the folder and the `lead` of a search, unless it has its own, and its listener.

        Raises:
            ValueError: Several ranks are to train it, and it has masks or a fixed GPU.
        """
        lead = self.run.lead or run.lead
        if lead is not None and self.masks is not None:
            raise ValueError(
                "`masks` must be None for a worker of several ranks but are given; use workers of one rank."
            )
        if lead is not None and self.device != "auto" and torch.device(self.device).index is not None:
            raise ValueError(
                f"`device` must leave open which GPU for a worker of several ranks but is {self.device!r}; "
                "use 'auto' or 'cuda'."
            )
        return replace(self, run=replace(run, folder=self.run.folder or run.folder, lead=lead))

    def describe(self) -> dict[str, Any]:
        """Return everything that determines a result, as JSON values."""
        described: dict[str, Any] = {
            "space": self.space.describe(),
            "data": self.data.describe(),
            "recipe": {name: as_json(value) for name, value in settings_of(self.recipe).items()},
            "task": {name: as_json(value) for name, value in self.task.describe().items()},
            "objectives": list(self.objective_names),
            "constraints": {_name(cost): bound for cost, bound in self.constraints.items()},
        }
        if costs := {_name(cost): how for cost in (*self.objectives, *self.constraints) if (how := _how(cost))}:
            described["costs"] = costs
        if self.weights_source.source != SCRATCH or self.initial_weights is not None:
            described["initial_weights"] = self.weights_source.describe()
        if self.masks is not None:
            described["masks"] = self.masks.describe()
        return described

    def judge(self, network: Path) -> float | None:
        """Return the metric of a network file on the test split, None if that is empty."""
        if not self.data.size([TEST]):
            return None
        data = self.device_data
        loaded = read_network(network, str(data.device), self.space).network
        return evaluate(loaded, data, TEST, self.task, precision=self.recipe.precision).metric

    def follow(self, plan: Mapping[str, Any]) -> None:
        """Train together with rank 0, which has called `lead` with this plan. Only rank 0 keeps the result."""
        try:
            with current_ranks().together():
                architecture = Architecture.from_dict(plan["architecture"])
                network = architecture.build(seed=0)  # its weights come from rank 0
                if plan["mixing"] is not None:
                    network = DiscreteNetwork(architecture, seed=0, mixing=plan["mixing"])
                task = replace(self.task, **plan["task"]) if is_dataclass(self.task) else self.task
                data = self.device_data
                if isinstance(data, ImageData):
                    data = data.with_augmentation(Augmentation(**plan["augmentation"]))
                train(network, data, Recipe(**plan["recipe"]), task)
        finally:
            release_memory(self.device_data.device)

    # -- a trial --------------------------------------------------------------------------------------------------

    @own_default_device()
    def __call__(self, trial: Trial) -> float | tuple[float, ...]:
        """Return the values of a trial; of a `FixedTrial` or a finished trial, its parameters are trained again."""
        if not hasattr(trial, "study"):
            return self._again(trial)
        self._check_directions(trial)
        candidate = self._candidate(trial)
        training_digest = self._announce(trial, candidate)
        if should_prune(trial):
            prune(trial, f"{pruner_name(trial)} stopped it before the first step")
        numbers = {**candidate.numbers, **self._measure(trial, candidate.architecture)}
        earlier = self._duplicates.of(trial, candidate.digest, training_digest) if self.reuse_duplicates else None
        if earlier is not None:
            trial.set_user_attr(DUPLICATE_OF, earlier.number)
            for key in (METRIC, VALIDATION_LOSS):
                if (result := attribute(earlier.user_attrs, key)) is not None:
                    trial.set_user_attr(key, result)
            if earlier.state == TrialState.PRUNED:
                prune(trial, f"it computes the same function as trial {earlier.number}, which was pruned")
            return self._values(earlier.values[0], numbers)
        training = TrialTraining(self, trial, candidate)
        network, result, failure = None, None, None
        try:
            network, result = training.run()
        except (TrialPruned, TrainingDiverged, OutOfMemory) as error:
            failure = type(error)(str(error))
        if network is None or result is None:
            # A new exception: Optuna keeps it, and the traceback of the first one would keep the network in memory.
            assert failure is not None
            raise failure
        training.keep(network, result)
        remaining = network.remaining if isinstance(network, DiscreteNetwork) else candidate.architecture
        return self._values(self.value_of(result.last), {**numbers, **self._costs(remaining)})

    def value_of(self, result: EpochResult) -> float:
        """Return the first value of an epoch: the metric, or the loss.

        Raises:
            ValueError: The value is the loss, which the task does not tell.
        """
        if self.metric != LOSS:
            return result.validation_metric
        if isnan(result.validation_loss):
            raise ValueError(
                f"`objectives` must not begin with {LOSS!r} for a task whose `evaluation` has no loss, as that of "
                f"{type(self.task).__name__}; use {self.task.metric!r}."
            )
        return result.validation_loss

    @cached_property
    def _duplicates(self) -> Duplicates:
        return Duplicates(self.space.distributions())

    def _again(self, trial: BaseTrial) -> float | tuple[float, ...]:
        """Train the parameters of a trial that belongs to no running study; leave the files of a search alone."""
        self.space.suggest(trial)
        resolve(self.recipe, trial)
        resolve(self.task, trial)
        resolve_augmentation(self.data, trial)
        study = optuna.create_study(directions=list(self.directions))  # type: ignore[arg-type]
        study.enqueue_trial(trial.params)
        again = study.ask()
        values = replace(self, run=TrialRun())(again)
        for key, value in again.user_attrs.items():
            trial.set_user_attr(key, value)
        return values

    def _check_directions(self, trial: Trial) -> None:
        directions = tuple(direction.name.lower() for direction in trial.study.directions)
        if directions != self.directions:
            raise ValueError(
                f"`directions` of the study must be {self.directions} for the objectives {self.objective_names} but "
                f"are {directions}; create the study with `directions=objective.directions`."
            )

    def _candidate(self, trial: Trial) -> Candidate:
        """Suggest architecture and settings; prune architectures whose output depends on no input."""
        architecture = self.space.suggest(trial)
        recipe, task = resolve(self.recipe, trial), resolve(self.task, trial)
        data = resolve_augmentation(self.device_data, trial)
        trial.set_user_attr(EPOCHS, recipe.epochs)
        if not architecture.connected:
            prune(trial, "the architecture does not reach its output: 'none' cuts every path of a cell")
        return Candidate(architecture, recipe, task, data, architecture.canonical().digest, self._costs(architecture))

    def _announce(self, trial: Trial, candidate: Candidate) -> str:
        """Set the attributes of costs, constraints, score and hashes; return the hash of the training's settings."""
        trial.set_user_attr(DIGEST, candidate.digest)
        trial.set_user_attr(DIGESTED, params_hash(trial.params, self.space.options()))
        if (source := self.weights_source.source) != OWN and self.initial_weights is not None:
            trial.set_user_attr(START, source)
            if source == SCRATCH:
                logger.warning("Trial %d starts from scratch: the GHN is not fitted yet.", trial.number)
        training_digest = self._training_digest(source)
        trial.set_user_attr(TRAINING_DIGEST, training_digest)
        metrics: dict[str, float] = dict(candidate.numbers)
        for name, value in candidate.numbers.items():
            trial.set_user_attr(cost_key(name), value)
        for cost, bound in self.constraints.items():
            if not isinstance(cost, Measure):
                trial.set_constraint(_name(cost), candidate.numbers[_name(cost)] - bound)
        if self.score is not None:
            metrics[SHOWN_NAMES[SURROGATE_SCORE]] = score = float(self.score([candidate.architecture])[0])
            for key, value in score_notes(score, trial.params, self.space.options(), meaning_of(self.score)).items():
                trial.set_user_attr(key, value)
        if self.run.listener:
            self.run.listener.trial_started(trial, metrics)
        return training_digest

    def _training_digest(self, source: str) -> str:
        """Return a hash of everything that determines a result besides architecture and suggested parameters."""
        weights = [SCRATCH] if source == SCRATCH else self.weights_source.describe()
        more: list[Any] = [] if self.masks is None else [self.masks.describe()]
        if code := self.space.code():
            more.append(code)
        parts = (self.space.describe(), self.recipe, self.task.describe(), self.data.describe(), weights, *more)
        return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()

    def _costs(self, architecture: Architecture) -> dict[str, float]:
        """Return the costs of an architecture that are known without building it, by name."""
        predicted = {name: cost.of(architecture) for name, cost in self.predictions.items()}
        return {**asdict(architecture.cost()), **predicted}

    def _measure(self, trial: Trial, architecture: Architecture) -> dict[str, float]:
        """Measure a network with random weights; set the attributes of measures and constraints."""
        if not self.measures:
            return {}
        network, inputs = self.space.build(architecture, seed=0), self.space.example_inputs()
        numbers = {name: measure(network, inputs) for name, measure in self.measures.items()}
        for name, value in numbers.items():
            trial.set_user_attr(cost_key(name), value)
        for measure, bound in self.constraints.items():
            if isinstance(measure, Measure):
                trial.set_constraint(measure.name, numbers[measure.name] - bound)
        return numbers

    def _values(self, metric: float, numbers: Mapping[str, float]) -> float | tuple[float, ...]:
        """Return the values of the objectives."""
        if len(self.objectives) == 1:
            return metric
        return (metric, *(float(numbers[name]) for name in self.objective_names[1:]))


def _name(objective: str | Measure | PredictedCost) -> str:
    return objective if isinstance(objective, str) else objective.name


def _how(cost: str | Measure | PredictedCost) -> str:
    """Return a digest of how a cost is measured or predicted; an empty text for one that is counted."""
    if isinstance(cost, Measure):
        return value_digest([cost.batch_size, cost.function, code_digest([cost.function])])
    if isinstance(cost, str):
        return ""
    own = getattr(cost, "digest", None)
    return own if isinstance(own, str) else value_digest([cost, code_digest([type(cost)])])


def as_json(value: object) -> object:
    """Return a value that JSON can hold: the value itself, or its `repr`."""
    return value if isinstance(value, str | int | float | bool) else repr(value)

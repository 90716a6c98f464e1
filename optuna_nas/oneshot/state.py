"""What a one-shot model has learned: saved, loaded, copied, moved between devices."""

from __future__ import annotations

import copy
import json
import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar, cast

from optuna_nas.oneshot.tally import StepTally
from optuna_nas.space.model_space import ModelSpace
from optuna_nas.training.checkpoints import (
    check_configuration,
    check_tensors,
    load_tensors,
    prefixed,
    reading_checkpoint,
    save_tensors,
    without_prefix,
)
from optuna_nas.training.optimizers import check_optimizer_tensors, load_optimizer_tensors, optimizer_tensors
from optuna_nas.training.rules import (
    Rule,
    anything,
    at_least,
    checked,
    items,
    mapping,
    not_negative,
    number,
    optional,
    positive,
    row,
    settings_of,
)
from optuna_nas.training.task import ImageClassification

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from optuna_nas.training.task import Task


class FitRecipe(Protocol):
    """Fields that the recipe of every one-shot model has; a frozen dataclass.

    Example:
        >>> from optuna_nas import SNASRecipe
        >>> recipe: FitRecipe = SNASRecipe(batch_size=32)
        >>> recipe.batch_size
        32
    """

    @property
    def batch_size(self) -> int:
        """Images a step."""

    @property
    def scoring_images(self) -> int:
        """Images of the report split on which architectures are scored, in one batch."""

    @property
    def learning_rate(self) -> float:
        """Learning rate of the weights."""

    @property
    def clip_norm(self) -> float:
        """Largest norm of the gradient; 0 for no clipping."""

    @property
    def precision(self) -> str:
        """`auto`, `float32` or `bfloat16`."""

    @property
    def seed(self) -> int:
        """Seed of everything random."""


class FitRecord(NamedTuple):
    """State of a fit after a step.

    Args:
        step: Training step.
        metrics: Mean `loss`, and the task's metric where it is known, of the steps since the last record.

    Example:
        >>> FitRecord(10, {"loss": 2.3, "accuracy": 0.1}).metrics["loss"]
        2.3
    """

    step: int
    metrics: dict[str, float]


Record = TypeVar("Record")


RECORD = row(at_least(0), mapping(number()))
"""Rule of a record in a checkpoint: step and metrics."""
PROGRESS: dict[str, Rule] = {
    **dict.fromkeys(("step", "total_steps", "budget_steps", "skipped"), at_least(0)),
    "planned_seconds": optional(positive()),
    "seconds": not_negative(),
    "records": items(RECORD),
}
DESCRIBED: dict[str, Rule] = {"configuration": mapping(anything()), "progress": mapping(anything())}
"""Rules of what a checkpoint holds beside its tensors."""

BEFORE = {"freeze_fraction": 0.0, "path_credit": "first_order"}
"""Values of fields of recipes that fits of an earlier version lack."""


class LearnedState(ABC, Generic[Record]):
    """What a `OneShotModel` has learned, and the hooks that say what that is.

    By default it is the modules in `self.modules` and the optimizers of `make_optimizers`. A subclass that learns other
    tensors extends `move`, `tensors`, `progress` and `restore`.

    Args:
        space: What may be chosen, and what it is built into.
        recipe: How to learn; a frozen dataclass with at least the fields of `FitRecipe`.
        task: Loss and metric; image classification by default.
        n_metrics: Metrics of a step beside loss and the task's.
    """

    name: ClassVar[str]
    """Name in progress bars, messages, attributes of studies, files and MLflow, such as `SNAS`."""
    uncopied: ClassVar[tuple[str, ...]] = ("lock", "_fitting")
    """Attributes left out of pickles and copies."""

    def __init__(self, space: ModelSpace, recipe: FitRecipe, task: Task | None = None, *, n_metrics: int = 0) -> None:
        if not isinstance(space, ModelSpace):
            raise ValueError(
                f"`space` must be one whose architectures can be built but is a {type(space).__name__}; use "
                "`NetworkSpace(space, skeleton)`."
            )
        self.space, self.recipe, self.task = space, recipe, task or ImageClassification()
        self.lock, self._fitting = threading.RLock(), threading.RLock()
        self.modules: dict[str, nn.Module] = {}
        self.tally = StepTally(2 + n_metrics)
        self.step = 0
        self.total_steps = 0
        self.budget_steps = 0  # of the whole budget, which `total_steps` are fewer than where seconds limit them
        self.seconds = 0.0
        self.planned_seconds: float | None = None  # what `total_steps` were planned for
        self.records: list[Record] = []
        self._scoring: Any = None
        self._made_optimizers: dict[str, torch.optim.Optimizer] | None = None
        self._configuration: dict[str, Any] | None = None

    # -- hooks ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return new optimizers of what is learned, by a name that is none of `modules`'.

        Called when first needed and after every move to another device.
        """

    def describe(self) -> dict[str, Any]:
        """Return what was fixed when it was made, for JSON; a checkpoint of another description is refused."""
        own = {"space": self.space.describe(), "recipe": settings_of(self.recipe), "task": self.task.describe()}
        return json.loads(json.dumps(own))  # type: ignore[no-any-return]

    def move(self, device: torch.device) -> None:
        """Move all that is learned to another device; move tensors of your own first, then call this."""
        for module in self.modules.values():
            module.to(device)
        self.tally.sums = self.tally.sums.to(device)
        before, self._made_optimizers = self._made_optimizers, None  # those hold other tensors than we do now
        for name, optimizer in (before or {}).items():
            load_optimizer_tensors(self.optimizers[name], optimizer_tensors(optimizer))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors with which a fit can go on, by a name in its checkpoint."""
        tensors = {"sums": self.tally.sums}
        for name, module in self.modules.items():
            tensors |= prefixed(f"{name}/", module.state_dict())
        for name, optimizer in self.optimizers.items():
            tensors |= prefixed(f"{name}/", optimizer_tensors(optimizer))
        return tensors

    def progress(self) -> dict[str, Any]:
        """Return what a fit needs beside `tensors` to go on, as JSON values."""
        return {"records": [[record.step, record.metrics] for record in cast("list[FitRecord]", self.records)]}

    def restore(self, tensors: dict[str, Tensor], progress: Mapping[str, Any]) -> None:
        """Take what `tensors` and `progress` returned.

        A subclass checks what is its own before it calls this, so that nothing is taken of a file that is refused.

        Raises:
            KeyError: They are of something else.
            ValueError: They are of something else.
        """
        records = items(RECORD)("records", progress["records"])
        check_tensors({"sums": tensors["sums"]}, {"sums": self.tally.sums})
        for name, module in self.modules.items():
            check_tensors(without_prefix(f"{name}/", tensors), module.state_dict(), f"{name}/")
        for name, optimizer in self.optimizers.items():
            check_optimizer_tensors(optimizer, without_prefix(f"{name}/", tensors))
        self.tally.sums.copy_(tensors["sums"])
        for name, module in self.modules.items():
            module.load_state_dict(without_prefix(f"{name}/", tensors))
        for name, optimizer in self.optimizers.items():
            load_optimizer_tensors(optimizer, without_prefix(f"{name}/", tensors))
        self.records = [cast("Record", FitRecord(step, metrics)) for step, metrics in records]

    # -- state ----------------------------------------------------------------------------------------------------

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimizers of `make_optimizers`, in use."""
        if self._made_optimizers is None:
            self._made_optimizers = self.make_optimizers()
            if clash := self._made_optimizers.keys() & self.modules.keys():
                raise ValueError(f"`make_optimizers` must use names unlike those of `modules` but both have {clash}.")
        return self._made_optimizers

    @property
    def device(self) -> torch.device:
        """Where it learns: the device of the data."""
        return self.tally.sums.device

    @property
    def fraction(self) -> float:
        """Share of the budget done, in [0, 1]; 0 before a fit."""
        return self.step / max(1, self.total_steps)

    @property
    def configuration(self) -> dict[str, Any]:
        """`describe()`, and since a fit has begun its data, splits and budget."""
        return self.describe() if self._configuration is None else self._configuration

    @property
    def skipped(self) -> int:
        """Steps left out because their numbers were not finite."""
        return self.tally.skipped

    def _count_skipped(self, wait: bool = False) -> None:
        self.tally.count(self.step, self.total_steps, self.recipe.learning_rate, wait)

    # -- copies ---------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        with self.lock:  # a copy of one moment, though somebody may train on
            self._count_skipped(wait=True)
            return copy.deepcopy({name: value for name, value in self.__dict__.items() if name not in self.uncopied})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.lock, self._fitting = threading.RLock(), threading.RLock()

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write all that a fit needs to go on to one safetensors file."""
        with self.lock:
            self._count_skipped(wait=True)
            progress = {
                "step": self.step,
                "total_steps": self.total_steps,
                "budget_steps": self.budget_steps,
                "planned_seconds": self.planned_seconds,
                "skipped": self.skipped,
                "seconds": self.seconds,
                **self.progress(),
            }
            description = {"kind": self.name, "configuration": self.configuration, "progress": progress}
            save_tensors(path, self.tensors(), description)

    def load(self, path: Path) -> None:
        """Take the state of a file that `save` wrote, unless this model is further. Executes nothing.

        Raises:
            ValueError: The file is damaged or of another space, recipe, task or data.
        """
        with self._fitting, self.lock:
            tensors, description = load_tensors(path, self.device)
            if description.get("kind") != self.name:
                raise ValueError(f"`path` must be a checkpoint of a {self.name} but {path} holds something else.")
            with reading_checkpoint(path):
                stored = checked(description, DESCRIBED)["configuration"]
                for name, value in BEFORE.items():  # what a field that a fit of before lacks was
                    if hasattr(self.recipe, name):
                        stored["recipe"].setdefault(name, value)
            # What neither has begun to train on can't disagree; a fit may go on with another budget.
            shared = (stored.keys() & self.configuration.keys() | self.describe().keys()) - {"budget"}
            check_configuration(
                path, {k: stored.get(k) for k in shared}, {k: self.configuration.get(k) for k in shared}
            )
            with reading_checkpoint(path):
                before = {"budget_steps": description["progress"].get("total_steps"), "planned_seconds": None}
                progress = {**before, **description["progress"]}
                progress |= checked(progress, PROGRESS)
                if self.step > progress["step"]:
                    return
                if progress["step"] > (progress["total_steps"] or self.total_steps) > 0:
                    raise ValueError(f"it can't stand at step {progress['step']} of {progress['total_steps']}")
                self.restore(tensors, progress)
            self._configuration = {**self.configuration, **stored}
            self.step, self.total_steps = progress["step"], progress["total_steps"] or self.total_steps
            self.budget_steps, self.planned_seconds = progress["budget_steps"], progress["planned_seconds"]
            self.tally.skipped, self.seconds = progress["skipped"], progress["seconds"]

"""What models trained once share: a fit that stops and goes on to the same numbers, and a fixed scoring batch."""

from __future__ import annotations

import copy
import json
import math
import threading
import time
from abc import ABC, abstractmethod
from contextlib import nullcontext
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from optuna_nas.data.splits import REPORT, TRAIN, Batch, Data
from optuna_nas.training.checkpoints import check_configuration, load_tensors, save_tensors
from optuna_nas.training.finite_steps import Verdicts
from optuna_nas.training.loop import TrainingDiverged, TrainingStopped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from optuna_nas.space import Architecture, Skeleton, Space


MOST_SKIPPED_FRACTION, FIRST_JUDGED_STEP = 0.05, 20
RECORDS = 200
"""Moments of a fit that are recorded."""


class Score(Protocol):
    """Guess how well architectures would do, without training them."""

    def __call__(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        """Return guessed accuracies, fractions in [0, 1], shape (len(architectures),)."""


class FitRecipe(Protocol):
    """What every recipe of a one-shot model says; a frozen dataclass."""

    @property
    def batch_size(self) -> int:
        """Images a step."""

    @property
    def scoring_images(self) -> int:
        """Images of the report split that architectures are scored on, all at once."""

    @property
    def learning_rate(self) -> float:
        """Of the weights."""

    @property
    def precision(self) -> str:
        """`auto`, `float32` or `bfloat16`."""

    @property
    def seed(self) -> int:
        """Of everything random."""


Record = TypeVar("Record")


class OneShotModel(ABC, Generic[Record]):
    """A model of all architectures of a space. Subclasses say what a step does and what a checkpoint holds.

    Methods may be called from several threads; a second `fit` or `load` waits for the first to end, all else only for
    a step.
    """

    name: ClassVar[str]
    """As the progress bar calls it."""
    _uncopied: ClassVar[tuple[str, ...]] = ("_lock", "_fitting")

    def __init__(self, space: Space, skeleton: Skeleton, recipe: FitRecipe) -> None:
        self.skeleton = skeleton
        self._space, self._recipe = space, recipe
        self._lock, self._fitting = threading.RLock(), threading.RLock()
        self._scoring: Batch | None = None
        self.step = 0
        self.total_steps = 0
        self.skipped = 0
        self.seconds = 0.0
        self.records: list[Record] = []
        self._verdicts = Verdicts()
        self._configuration: dict[str, Any] = self.describe()

    # -- what a subclass says -------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it learns: the device of the data."""

    @abstractmethod
    def _move(self, device: torch.device) -> None:
        """Move everything but the scoring batch."""

    @abstractmethod
    def _train_step(self, images: Tensor, labels: Tensor) -> Record | None:
        """Do one step, `self.step` included; return a record when it is time for one."""

    @abstractmethod
    def _tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a fit needs to go on."""

    @abstractmethod
    def _progress(self) -> dict[str, Any]:
        """Return what else it needs, for JSON."""

    @abstractmethod
    def _restore(self, tensors: dict[str, Tensor], progress: Mapping[str, Any]) -> None:
        """Take what `_tensors` and `_progress` returned.

        Raises:
            KeyError: They are of something else.
        """

    # -- copies ---------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:  # a copy of one moment, though somebody may train on
            self._count_skipped(wait=True)
            return copy.deepcopy({name: value for name, value in self.__dict__.items() if name not in self._uncopied})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock, self._fitting = threading.RLock(), threading.RLock()

    # -- learning -------------------------------------------------------------------------------------------------

    def fit(
        self,
        data: Data,
        budget: float,
        *,
        until: float = 1.0,
        splits: Sequence[str] = TRAIN,
        on_step: Callable[[float], None] | None = None,
        on_record: Callable[[Record], None] | None = None,
        checkpoint: Path | None = None,
        checkpoint_seconds: float = 30.0,
        should_stop: Callable[[], bool] | None = None,
        show_progress: bool = True,
    ) -> None:
        """Learn on the device of the data; go on where the last call ended.

        On a CPU, a fit that was interrupted and resumed ends with the same numbers, to the bit.

        Args:
            data: Images and splits.
            budget: Passes over `splits` in all; need not be whole.
            until: Share of the budget at which to return, for a fit in rounds.
            splits: What to learn from; single-level, so all that is learned learns from the same images.
            on_step: Called after every step with the share of the budget done.
            on_record: Called with every new record.
            checkpoint: File to go on from, if it is further, and to write.
            checkpoint_seconds: Write when so long has passed since the last time.
            should_stop: Asked after every step; True writes a checkpoint and raises `TrainingStopped`.
            show_progress: Show a progress bar on a terminal, unless `on_step` does.

        Raises:
            TrainingStopped: `should_stop` said so.
            TrainingDiverged: More than 5 % of the steps had no finite loss.
            ValueError: The budget is not positive, or data, splits or budget differ from those it began with.
        """
        if not 0 < budget < math.inf:
            raise ValueError(f"`budget` must be a positive number of epochs but got {budget}.")
        if not 0 <= until <= 1:
            raise ValueError(f"`until` must be a share of the budget, in [0, 1], but got {until}.")
        bar = _progress_bar() if show_progress and on_step is None else nullcontext()
        with self._fitting, bar as progress:
            with self._lock:
                self._begin(data, budget, splits)
                if checkpoint is not None and checkpoint.exists():
                    self.load(checkpoint)
            last = min(self.total_steps, round(until * self.total_steps))
            task = progress.add_task(self.name, total=last, completed=self.step) if progress else None
            saved = time.monotonic()
            for record in self._steps(data, splits, last):
                if record is not None and on_record is not None:
                    on_record(record)
                if on_step is not None:
                    on_step(self.step / self.total_steps)
                if progress is not None:
                    progress.update(task, completed=self.step)
                stopping = should_stop is not None and should_stop()
                if checkpoint is not None and (stopping or time.monotonic() - saved >= checkpoint_seconds):
                    self.save(checkpoint)
                    saved = time.monotonic()
                if stopping:
                    raise TrainingStopped
            if checkpoint is not None:
                self.save(checkpoint)

    def _steps(self, data: Data, splits: Sequence[str], last: int) -> Iterator[Record | None]:
        """Train up to a step; yield after each what there is to record."""
        started, before = time.monotonic(), self.seconds
        for images, labels in self._batches(data, splits, self.step, last):
            with self._lock:
                record = self._train_step(images, labels)
                self.seconds = before + time.monotonic() - started
            yield record
        with self._lock:
            self._count_skipped(wait=True)

    def _batches(self, data: Data, splits: Sequence[str], step: int, last: int) -> Iterator[Batch]:
        """Yield the batches of the steps from one to another; the first epoch begins at step 0."""
        batch_size, seed = self._recipe.batch_size, self._recipe.seed
        steps_per_epoch = max(1, data.size(splits) // batch_size)
        while step < last:
            epoch, start = divmod(step, steps_per_epoch)
            for batch in islice(data.batches(splits, batch_size, seed=seed, epoch=epoch, start=start), last - step):
                step += 1
                yield batch

    def _begin(self, data: Data, budget: float, splits: Sequence[str]) -> None:
        """Take the device of the data; check that a fit that goes on is the same fit."""
        n_images = data.size(splits)
        if n_images == 0:
            raise ValueError(f"`splits` must hold images but {tuple(splits)} of {data.name!r} are empty.")
        terms = {"data": data.describe(), "splits": list(splits), "budget": float(budget)}
        configuration = {**self.describe(), **json.loads(json.dumps(terms))}
        if self.step and configuration != self._configuration:
            changed = sorted(key for key in configuration if configuration[key] != self._configuration.get(key))
            raise ValueError(
                f"`{changed[0]}` must be that of the fit that goes on but is another; make a new {self.name} to begin "
                "anew."
            )
        self._configuration = configuration
        self.total_steps = max(1, round(budget * max(1, n_images // self._recipe.batch_size)))
        self.attach(data)

    def describe(self) -> dict[str, Any]:
        """Return what was fixed when it was made, for JSON, as a checkpoint tells it."""
        own = {"space": self._space.to_dict(), "skeleton": self.skeleton.to_dict(), "recipe": asdict(self._recipe)}  # type: ignore[call-overload]
        return json.loads(json.dumps(own))  # type: ignore[no-any-return]

    def _recording(self) -> bool:
        """Tell whether the step just done is one to record."""
        return self.step * RECORDS // self.total_steps > (self.step - 1) * RECORDS // self.total_steps

    def _made(self, finite: Tensor) -> None:
        """Take note of a step, already counted as a step, that was made where its numbers were finite.

        Raises:
            TrainingDiverged: There were too many steps without a finite loss.
        """
        self._verdicts.put(finite)
        self._count_skipped()

    def _count_skipped(self, wait: bool = False) -> None:
        for finite in self._verdicts.take(wait):
            self.skipped += not finite
            judged = self.step >= min(FIRST_JUDGED_STEP, self.total_steps)
            if not finite and judged and self.skipped > MOST_SKIPPED_FRACTION * self.step:
                raise TrainingDiverged(
                    f"`learning_rate` must keep the loss finite but {self.skipped} of {self.step} steps it was not, at "
                    f"{self._recipe.learning_rate}; lower it, or use precision='float32'."
                )

    @property
    def fitted(self) -> bool:
        """Whether a fit has gone through its budget."""
        return 0 < self.total_steps <= self.step

    # -- scoring --------------------------------------------------------------------------------------------------

    def attach(self, data: Data) -> None:
        """Take device and scoring batch from the data: the first images of the report split, the same in every call.

        Raises:
            ValueError: The data do not fit the skeleton.
        """
        expected = (*data.input_shape, data.classes)
        if expected != (*self.skeleton.input_shape, self.skeleton.classes):
            raise ValueError(
                f"`data` must fit the skeleton, input_shape={self.skeleton.input_shape} and classes="
                f"{self.skeleton.classes}, but has {data.input_shape} and {data.classes}."
            )
        with self._lock:
            index = data.device.index
            if self.device.type != data.device.type or (index is not None and self.device.index != index):
                self._move(data.device)
                if self._scoring is not None:
                    self._scoring = Batch(*(tensor.to(data.device) for tensor in self._scoring))
            if data.size([REPORT]):
                self._scoring = next(iter(data.batches([REPORT], self._recipe.scoring_images)))

    def _scoring_batch(self) -> Batch:
        if self._scoring is None:
            raise ValueError("`data` with a report split must be known to score; call `fit` or `attach(data)` first.")
        return self._scoring

    def _check_architecture(self, architecture: Architecture) -> None:
        if architecture.space != self._space:
            raise ValueError(f"`architecture` must be of the space of this {self.name} but comes from another.")

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write all that a fit needs to go on to one safetensors file."""
        with self._lock:
            self._count_skipped(wait=True)
            progress = {
                "step": self.step,
                "total_steps": self.total_steps,
                "skipped": self.skipped,
                "seconds": self.seconds,
                **self._progress(),
            }
            description = {"kind": self.name, "configuration": self._configuration, "progress": progress}
            save_tensors(path, self._tensors(), description)

    def load(self, path: Path) -> None:
        """Take the state of a file that `save` wrote, unless this model is further. Executes nothing.

        Raises:
            ValueError: The file is damaged or of another space, skeleton, recipe, data or budget.
        """
        with self._fitting, self._lock:
            tensors, description = load_tensors(path, self.device)
            if description.get("kind") != self.name:
                raise ValueError(f"`path` must be a checkpoint of a {self.name} but {path} holds something else.")
            theirs = description["configuration"]
            # What neither has begun to train on can't disagree.
            shared = theirs.keys() & self._configuration.keys() | self.describe().keys()
            check_configuration(
                path, {k: theirs.get(k) for k in shared}, {k: self._configuration.get(k) for k in shared}
            )
            progress = description["progress"]
            if self.step > progress["step"]:
                return
            self._configuration |= theirs
            self._restore(tensors, progress)
            self.step, self.total_steps = progress["step"], progress["total_steps"] or self.total_steps
            self.skipped, self.seconds = progress["skipped"], progress["seconds"]


def _progress_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("step {task.completed} of {task.total}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )

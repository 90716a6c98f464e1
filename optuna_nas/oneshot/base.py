"""The base class of models trained once and asked about many architectures: a resumable fit, and scores.

A method of one's own is a subclass of `OneShotModel`; `tests/oneshot/test_third_party.py` has one in 15 lines.
"""

from __future__ import annotations

import json
import logging
import math
import time
from abc import abstractmethod
from contextlib import nullcontext
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from optuna_nas.data.batches import batch_length, tensors_of, to_device
from optuna_nas.data.splits import REPORT, TRAIN, Data, seeded_generator
from optuna_nas.networks.statistics import recompute_statistics
from optuna_nas.oneshot.discernment import Discernment, discern, tell
from optuna_nas.oneshot.pace import Pace
from optuna_nas.oneshot.state import FitRecord, LearnedState, Record
from optuna_nas.training.checkpoints import completed
from optuna_nas.training.device import autocast, own_default_device, seeded_globally
from optuna_nas.training.finite_steps import step_where
from optuna_nas.training.loop import TrainingStopped
from optuna_nas.training.task import Calling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from optuna_nas.space import Architecture

logger = logging.getLogger(__name__)

MAX_RECORDS = 200
"""Records of a whole fit."""


class Score(Protocol):
    """Predict how well architectures would do, without training them.

    Example:
        >>> import numpy as np
        >>> from optuna_nas import GHNSampler, nasbench201_space
        >>> def many_ops(architectures):
        ...     return np.array([sum(map(len, dict(a.choices).values())) for a in architectures], dtype=float)
        >>> sampler = GHNSampler(nasbench201_space(), score=many_ops)
    """

    def __call__(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        """Return scores, larger is better, shape (len(architectures),)."""


class OneShotModel(LearnedState[Record]):
    """A model that is trained once and then asked about many architectures of a space.

    Subclass it for a method of your own. The subclass puts what it learns into `self.modules` in its constructor and
    has three methods: `make_optimizers`, `train_step` and `predict`. Everything else follows: a fit that is resumed to
    the same numbers, checkpoints, moves between devices, scores, and use by `GHNSampler`, `SNASSampler` (if it also has
    `logits`, of shape (paths, options)) and `InStudyFit` under its own `name`.

    Methods may be called from several threads: a second `fit` or `load` waits for the first to end, everything else
    only for a step. Take `self.lock` in methods of your own that read what is learned.

    Args:
        space: What may be chosen, and what it is built into.
        recipe: How to learn; a frozen dataclass with at least the fields of `FitRecipe`.
        task: Loss and metric; image classification by default.
        n_metrics: Metrics that `finish_step` is given beside loss and the task's.

    Example:
        Uniform single paths (Guo et al. 2020): every step trains the weights of one random architecture.

        >>> import numpy as np
        >>> import torch
        >>> from optuna_nas import OneShotModel, SNASRecipe, digits
        >>> from optuna_nas.networks import one_hot, use_batch_statistics
        >>> from optuna_nas.training.task import Calling
        >>> class SinglePaths(OneShotModel):
        ...     name = "SinglePaths"
        ...
        ...     def __init__(self, space, recipe):
        ...         super().__init__(space, recipe)
        ...         self.modules = {"supernet": space.supernet(recipe.seed)}
        ...         use_batch_statistics(self.modules["supernet"])
        ...
        ...     def make_optimizers(self):
        ...         weights = self.modules["supernet"].parameters()
        ...         return {"weights": torch.optim.SGD(weights, self.recipe.learning_rate)}
        ...
        ...     def train_step(self, batch):
        ...         architecture = self.space.sample(np.random.default_rng([self.recipe.seed, self.step]))
        ...         path = Calling(lambda inputs: self.predict(architecture, inputs))
        ...         return self.update(*self.task.training_step(path, batch))
        ...
        ...     def predict(self, architecture, inputs):
        ...         return self.modules["supernet"](inputs, one_hot(architecture))
        >>> from optuna_nas import NetworkSpace, nasbench201_skeleton, nasbench201_space
        >>> space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 2, (1, 8, 8), 10, affine=False))
        >>> model = SinglePaths(space, SNASRecipe())
        >>> model.fit(digits(), budget=0.2, show_progress=False)
        >>> model.step, model.records[-1].metrics.keys() == {"loss", "accuracy"}
        (3, True)
    """

    # -- hooks: what a subclass says ------------------------------------------------------------------------------

    @abstractmethod
    def train_step(self, batch: Any) -> Record | None:
        """Do one step; return what `finish_step` returns.

        Usually `loss, sums = self.task.training_step(module, batch)`, where the module may be a `Calling` of a function
        of the inputs, and `return self.update(loss, sums)`. Take random numbers from `self.generator()`, so that a
        resumed fit draws the same.

        Args:
            batch: What the data yield, on `self.device`.
        """

    @abstractmethod
    def predict(self, architecture: Architecture, inputs: Any) -> Any:
        """Return the outputs of an architecture with the weights learned here, such as class scores (B, classes).

        Called without gradients, under the lock and in the recipe's precision.
        """

    # -- hooks: what a subclass may say otherwise -------------------------------------------------------------------

    def step_loss(self, batch: Any) -> Tensor:
        """Return what a step lowers, for `loss`; parameters that do not learn in this step must have no part in it.

        Args:
            batch: What the data yield, on `self.device`.

        Raises:
            ValueError: The method does not say, since its steps are more than the descent of one loss.
        """
        raise ValueError(f"`loss` must be the loss of a step, which a {self.name} does not name; train it by `fit`.")

    def begin(self, data: Data, budget: float, splits: Sequence[str]) -> None:
        """Prepare a fit: take the device of the data, and check that a fit that goes on is the same fit.

        A fit may go on with another budget, to which its schedules stretch or shrink.

        Raises:
            ValueError: A split is empty, or data or splits differ from those that the fit began with.
        """
        n_examples = data.size(splits)
        if n_examples == 0:
            raise ValueError(f"`splits` must hold examples but {tuple(splits)} of {data.name!r} are empty.")
        terms = {"data": data.describe(), "splits": list(splits), "budget": float(budget)}
        configuration = json.loads(json.dumps({**self.describe(), **terms}))
        begun = completed(self.configuration, configuration)
        changed = sorted(key for key in configuration if configuration[key] != begun.get(key)) if self.step else []
        if others := [key for key in changed if key != "budget"]:
            raise ValueError(
                f"`{others[0]}` must be that of the fit that goes on but is another; make a new {self.name} to begin "
                "anew."
            )
        self._configuration = configuration
        if changed or not (self.step and self.total_steps):
            self.plan_epochs(data, budget, splits)
            self.plan_steps(max(self.total_steps, self.step))
            self.budget_steps = self.total_steps
        if changed:
            logger.info("%s goes on with a budget of %g epochs instead of %s.", self.name, budget, begun.get("budget"))
        self.attach(data)

    def plan_epochs(self, data: Data, budget: float, splits: Sequence[str]) -> None:
        """Set `total_steps` for a budget of epochs; called before the first step, and for another budget later."""
        self.total_steps = max(1, round(budget * self.steps_per_epoch(data, splits)))

    def plan_steps(self, total_steps: int) -> None:
        """Set `total_steps`, to which schedules stretch or shrink, at any time of a fit."""
        self.total_steps = total_steps

    def steps_per_epoch(self, data: Data, splits: Sequence[str]) -> int:
        """Return the number of steps of a pass over some splits."""
        return max(1, data.size(splits) // self.recipe.batch_size)

    def batches(self, data: Data, splits: Sequence[str], step: int, last: int) -> Iterator[Any]:
        """Yield the batches of the steps from `step` to `last`; the first epoch begins at step 0."""
        batch_size, seed = self.recipe.batch_size, self.recipe.seed
        steps_per_epoch = self.steps_per_epoch(data, splits)
        while step < last:
            epoch, start = divmod(step, steps_per_epoch)
            for batch in islice(data.batches(splits, batch_size, seed=seed, epoch=epoch, start=start), last - step):
                step += 1
                yield batch

    def share_after(self, rounds: int, n_rounds: int) -> float:
        """Return the share of the budget to have spent after so many of the rounds of a study, in [0, 1]."""
        return min(1.0, rounds / n_rounds)

    def step_after(self, share: float) -> int:
        """Return the step at which a share of the budget, in [0, 1], is spent."""
        return round(share * self.total_steps)

    def make_record(self, metrics: dict[str, float], means: NDArray[np.float64]) -> Record:
        """Return a record of the step just done.

        Args:
            metrics: Mean `loss` and the task's metric since the last record; empty if no step was finite.
            means: Means of the further metrics given to `finish_step`.
        """
        return cast("Record", FitRecord(self.step, metrics))

    # -- what a subclass uses -------------------------------------------------------------------------------------

    def generator(self, purpose: int = 1) -> torch.Generator:
        """Return a generator on the device, seeded by the recipe's seed, the step and a number for its purpose."""
        return seeded_generator(self.device, self.recipe.seed, self.step, purpose)

    def update(self, loss: Tensor, sums: Tensor) -> Record | None:
        """Step all optimizers along the clipped gradient of a loss, if it is finite; then `finish_step`.

        Loss and sums are those of `Task.training_step`.
        """
        optimizers = self.optimizers.values()
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.recipe.clip_norm or math.inf)
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        step_where(finite, *optimizers)
        return self.finish_step(finite, loss, self.step_metric(sums))

    def step_metric(self, sums: Tensor) -> Tensor:
        """Return the task's metric of a step, a float64 scalar; NaN where the task does not tell."""
        unknown = torch.full((), math.nan, dtype=torch.float64, device=sums.device)
        return self.task.training_curves(sums).get(self.task.metric, unknown)

    def finish_step(self, finite: Tensor, loss: Tensor, metric: Tensor, *further: Tensor) -> Record | None:
        """Count a step and its metrics; return a record when it is time for one, about 200 times in a fit.

        Args:
            finite: Whether the step was made, a boolean scalar.
            loss: Scalar.
            metric: The task's metric, a scalar; see `step_metric`.
            further: Metrics beside these, `n_metrics` in all.

        Raises:
            TrainingDiverged: More than 5 % of the steps were not made.
        """
        self.step += 1
        values = [value.detach().double().reshape(-1) for value in (loss, metric, *further)]
        self.tally.add(finite, torch.cat(values))
        self._count_skipped()
        if self.step * MAX_RECORDS // self.total_steps == (self.step - 1) * MAX_RECORDS // self.total_steps:
            return None
        n_steps, means = self.tally.take()
        mean_metrics = {"loss": float(means[0]), self.task.metric: float(means[1])} if n_steps else {}
        mean_metrics = {name: value for name, value in mean_metrics.items() if not math.isnan(value)}
        record = self.make_record(mean_metrics, means[2:])
        self.records.append(record)
        return record

    def scoring_batch(self) -> Any:
        """Return the batch on which architectures are scored: the first examples of the report split.

        Raises:
            ValueError: Neither `fit` nor `attach` has seen data with a report split.
        """
        if self._scoring is None:
            raise ValueError("`data` with a report split must be known to score; call `fit` or `attach(data)` first.")
        return self._scoring

    def scoring_inputs(self) -> Tensor:
        """Return the inputs of the scoring batch: its first tensor."""
        return next(tensors_of(self.scoring_batch()))

    def settle(self, network: nn.Module) -> None:
        """Set the statistics of a network's batch norms to those of the scoring batch; it is in training mode then."""
        batch = self.scoring_batch()
        with seeded_globally(self.generator(8)):
            recompute_statistics(network, lambda network: self.task.loss(network, batch))

    def check_architecture(self, architecture: Architecture) -> Architecture:
        """Return an architecture as one of this model's space; raise ValueError where it is of another."""
        if architecture.space.core != self.space.core:
            raise ValueError(f"`architecture` must be of the space of this {self.name} but comes from another.")
        return self.space.adopt(architecture)

    # -- learning -------------------------------------------------------------------------------------------------

    @own_default_device()
    def fit(
        self,
        data: Data,
        budget: float,
        *,
        until: float = 1.0,
        seconds: float | None = None,
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
            data: Batches and splits.
            budget: Passes over `splits` in all; need not be whole. A phase that learns from one split passes over that.
                Another than before makes schedules of learning rates end later or earlier.
            until: Share of the budget at which to return, for a fit in rounds.
            seconds: Seconds of the whole fit. Where its pace shows that the budget would take longer, the fit ends
                with what they hold, and all schedules with it; with more seconds it goes on. None keeps the budget, so
                that the fit does not depend on the clock.
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
            ValueError: Budget or seconds are not positive, or data or splits differ from those it began with.
        """
        if not 0 < budget < math.inf:
            raise ValueError(f"`budget` must be a positive number of epochs but got {budget}.")
        if not 0 <= until <= 1:
            raise ValueError(f"`until` must be a share of the budget, in [0, 1], but got {until}.")
        if seconds is not None and not seconds > 0:
            raise ValueError(f"`seconds` must be larger than 0 but got {seconds}; None keeps the whole `budget`.")
        bar = _progress_bar() if show_progress and on_step is None else nullcontext()
        with self._fitting, bar as progress:
            with self.lock:
                self.begin(data, budget, splits)
                if checkpoint is not None and checkpoint.exists():
                    self.load(checkpoint)
                    self.begin(data, budget, splits)  # whose budget may be another
            pace = Pace(self, seconds)
            last = min(self.total_steps, self.step_after(until))
            task = progress.add_task(self.name, total=last, completed=self.step) if progress else None
            saved = time.monotonic()
            while self.step < (last := min(self.total_steps, self.step_after(until))):
                for record in self._steps(data, splits, last):
                    if record is not None and on_record is not None:
                        on_record(record)
                    if on_step is not None:
                        on_step(self.fraction)
                    if progress is not None:
                        progress.update(task, completed=self.step, total=last)
                    stopping = should_stop is not None and should_stop()
                    if checkpoint is not None and (stopping or time.monotonic() - saved >= checkpoint_seconds):
                        self.save(checkpoint)
                        saved = time.monotonic()
                    if stopping:
                        raise TrainingStopped
                    if pace.changes_plan():
                        break
            with self.lock:
                self._count_skipped(wait=True)
            if checkpoint is not None:
                self.save(checkpoint)
            if self.fitted and self._scoring is not None and batch_length(self._scoring) >= 4:
                tell(self.name, self.discern())

    def parameters(self) -> list[nn.Parameter]:
        """Return all that is learned, such as weights and logits, for an optimizer of your own; see `loss`."""
        groups = [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]
        return [parameter for group in groups for parameter in group["params"]]

    def plan(self, total_steps: int, device: torch.device | str | None = None) -> None:
        """Prepare for a training loop of your own, which calls `loss` so often; see `loss`.

        Args:
            total_steps: Steps of the whole training; schedules end there.
            device: Device of the batches; by default that of before.

        Raises:
            ValueError: The steps are fewer than those done, or none.
        """
        if total_steps < max(1, self.step):
            raise ValueError(
                f"`total_steps` must be at least 1 and the {self.step} steps done but is {total_steps}; make a new "
                f"{self.name} to begin anew."
            )
        with self.lock:
            self.plan_steps(int(total_steps))
            if device is not None and torch.device(device) != self.device:
                self.move(torch.device(device))

    def loss(self, batch: Any) -> Tensor:
        """Return the loss of the next step, for a training loop of your own instead of `fit`.

        Call it once a step, between `plan(total_steps)` and the last step: `loss(batch).backward()`, then a step of an
        optimizer over `parameters()`. What `fit` changes with its progress changes with the number of calls: what is
        drawn, the temperature, warm-ups, which kernels are frozen, which phase it is. What learns nothing in a phase
        has no gradient. The loop's own are optimizer, learning rates, clipping, precision, and what to do about a loss
        that is not finite; there are no records. Ranks are not synchronised: use one process.

        Args:
            batch: What the data yield, such as (inputs, targets), on `self.device`.

        Raises:
            ValueError: `plan` was not called, or all its steps are done.

        Example:
            >>> import torch
            >>> from optuna_nas import NetworkSpace, SNAS, nasbench201_skeleton, nasbench201_space
            >>> space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 2, (1, 8, 8), 10, affine=False))
            >>> snas = SNAS(space)
            >>> optimizer = torch.optim.Adam(snas.parameters(), 0.01)
            >>> snas.plan(total_steps=2)
            >>> for _ in range(2):
            ...     optimizer.zero_grad()
            ...     snas.loss((torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 2, 3]))).backward()
            ...     optimizer.step()
            >>> snas.fitted, snas.most_likely().connected
            (True, True)
        """
        with self.lock:
            if self.step >= self.total_steps:
                raise ValueError(
                    f"`loss` must be called at most as often as planned but {self.step} of {self.total_steps} steps "
                    "are done; call `plan(total_steps)` first."
                )
            with seeded_globally(self.generator(7)):
                loss = self.step_loss(batch)
            self.step += 1
            return loss

    def _steps(self, data: Data, splits: Sequence[str], last: int) -> Iterator[Record | None]:
        """Train up to a step; yield after each what there is to record."""
        started, before = time.monotonic(), self.seconds
        for batch in self.batches(data, splits, self.step, last):
            with self.lock, seeded_globally(self.generator(7)):
                record = self.train_step(batch)
                self.seconds = before + time.monotonic() - started
            yield record

    @property
    def fitted(self) -> bool:
        """Whether a fit has gone through its budget."""
        return 0 < self.total_steps <= self.step

    # -- scoring --------------------------------------------------------------------------------------------------

    @own_default_device()
    def score(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        """Return scores of architectures with the weights learned here, shape (N,): negative losses (`Task.score`).

        Measured on the scoring batch, the first examples of the report split.

        Raises:
            ValueError: Neither `fit` nor `attach` has seen data with a report split, or an architecture is of another
                space.
        """
        return self.scores_on(self.scoring_batch(), list(map(self.check_architecture, architectures)))

    def scores_on(self, batch: Any, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        """Return scores of architectures of this space on a batch, shape (N,); see `score`."""
        scores = []
        for architecture in architectures:
            network = Calling(partial(self.predict, architecture))
            with self.lock, torch.no_grad(), autocast(self.device, self.recipe.precision):
                scores.append(self.task.score(network, [batch]))
        return np.array(scores, dtype=np.float64)

    def discern(self) -> Discernment:
        """Return how the scores of random architectures differ, and whether they rank anything; needs data."""
        return discern(self)

    def variance_between(self, architectures: Sequence[Architecture]) -> float | None:
        """Return the share of the variance of generated weights that is between architectures; None by default."""
        return None

    def attach(self, data: Data) -> None:
        """Take device and scoring batch from the data: the first examples of the report split, the same in every call.

        Raises:
            ValueError: The data do not fit the space.
        """
        self.space.check_data(data)
        with self.lock:
            index = data.device.index
            if self.device.type != data.device.type or (index is not None and self.device.index != index):
                self.move(data.device)
                if self._scoring is not None:
                    self._scoring = to_device(self._scoring, data.device)
            if data.size([REPORT]):
                self._scoring = next(iter(data.batches([REPORT], self.recipe.scoring_images)))


def score_of(model: OneShotModel[Any] | None, score: Score | None) -> Score:
    """Return the function that scores: the model's, or the one given instead.

    Raises:
        ValueError: There is neither or both.
    """
    if (model is None) == (score is None):
        raise ValueError("`model` or `score` must be given, and not both; a score is a function of architectures.")
    return model.score if model is not None else cast("Score", score)


def meaning_of(score: Score) -> str:
    """Return what a score is, in a few words: a loss, what its attribute `meaning` says, or the name of a function.

    Example:
        >>> from optuna_nas.oneshot.base import meaning_of
        >>> def n_convolutions(architectures): ...
        >>> meaning_of(n_convolutions)
        'n_convolutions'
    """
    model = getattr(score, "__self__", getattr(score, "model", None))
    if isinstance(model, OneShotModel):
        return f"minus the loss with the weights of {model.name}"
    return str(getattr(score, "meaning", getattr(score, "__name__", type(score).__name__)))


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

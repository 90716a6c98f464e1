"""Tasks: loss, metric and direction.

The training loop, the one-shot models and the objective use no other loss or metric.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import reduce
from math import isfinite, isnan, nan, sqrt
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optuna_nas.data.batches import batch_length
from optuna_nas.space.cost import anytime_accuracy
from optuna_nas.space.reading import plain
from optuna_nas.training.described import attributes_of, described
from optuna_nas.training.device import seeded_globally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

MAXIMIZE, MINIMIZE = DIRECTIONS = ("maximize", "minimize")
LOSS = "loss"
"""Name of the validation loss as an objective."""
LEAST_BATCHES = 10
"""Batches from whose losses a standard error is taken at least."""


class Evaluation(NamedTuple):
    """Loss and metric of a network on a split.

    Args:
        loss: Mean loss; NaN if the task does not compute it.
        metric: The task's metric.
        exit_metrics: Metric of every classifier of a network with early exits, the cheapest first.
        loss_error: Standard error of the mean loss, over examples or batches; NaN if it is not known.

    Example:
        >>> from optuna_nas.training import Evaluation
        >>> Evaluation(loss=0.8, metric=0.7).metric
        0.7
    """

    loss: float
    metric: float
    exit_metrics: tuple[float, ...] = ()
    loss_error: float = nan


@runtime_checkable
class EarlyExits(Protocol):
    """Protocol of networks with early exits, such as a `DiscreteNetwork` of an `AnytimeSpace`."""

    @property
    def exit_costs(self) -> Sequence[int]:
        """Multiply-adds up to every classifier, in ascending order."""

    @property
    def budget(self) -> float:
        """Maximum number of multiply-adds of a prediction; 0 for a network without exits."""

    def anytime(self, images: Tensor) -> list[Tensor]:
        """Return the outputs of every classifier, the cheapest first."""


class Task(ABC):
    """Base class of tasks. A subclass defines `metric`, `direction`, `loss` and `evaluate`.

    Training, one-shot models and objectives work with any task. A model is an `nn.Module`: a network, or a supernet or
    hypernetwork in its place. A batch is a value that the data yield.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from optuna_nas import Task
        >>> class NextToken(Task):
        ...     metric, direction = "perplexity", "minimize"
        ...
        ...     def loss(self, model, batch):
        ...         tokens = batch["tokens"]
        ...         return nn.functional.cross_entropy(model(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:])
        ...
        ...     def evaluate(self, model, batches):
        ...         losses = [self.loss(model, batch).item() for batch in batches]
        ...         return float(torch.tensor(losses).mean().exp())
        >>> task = NextToken()
        >>> model = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 5))
        >>> 4 < task.evaluate(model, [{"tokens": torch.tensor([[0, 1, 2, 3]])}]) < 9
        True
    """

    scores_classes: ClassVar[bool] = False
    """Whether the outputs of a network are scores of classes, of which the largest is the prediction."""

    @property
    @abstractmethod
    def metric(self) -> str:
        """Name of the metric that `evaluate` returns, such as `accuracy`; a Python identifier."""

    @property
    @abstractmethod
    def direction(self) -> str:
        """`maximize` if a larger metric is better, `minimize` otherwise."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean loss of a batch, a scalar to minimize."""

    @abstractmethod
    def evaluate(self, model: nn.Module, batches: Iterable[Any]) -> float:
        """Return the metric over batches; called in evaluation mode, without gradients."""

    # -- to be overridden by a subclass if needed -----------------------------------------------------------------

    def training_step(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch, and its sums for training curves.

        Returns:
            The loss, a scalar to minimize, and a float64 vector on its device: the loss times the number of examples,
            values for `training_curves`, and last the number of examples. Sums of several batches are added.
        """
        loss = self.loss(model, batch)
        n_examples = batch_length(batch)
        return loss, torch.stack([loss.detach().double() * n_examples, _count(n_examples, loss)])

    def training_curves(self, sums: Tensor) -> dict[str, Tensor]:
        """Return the training curves of added sums, scalars on their device: `loss` and, if computed, the metric."""
        return {"loss": sums[0] / sums[-1].clamp_min(1)}

    def evaluation(self, model: nn.Module, batches: Iterable[Any]) -> Evaluation:
        """Return loss and metric over batches; called in evaluation mode, without gradients."""
        return Evaluation(nan, self.evaluate(model, batches))

    def score(self, model: nn.Module, batches: Iterable[Any]) -> float:
        """Return the number by which models rank architectures, larger is better: the negative mean loss.

        On the same examples, a loss tells more architectures apart than a metric that counts right and wrong. Called in
        evaluation mode, without gradients.
        """
        total, n_examples = 0.0, 0
        for batch in batches:
            total += float(self.loss(model, batch)) * batch_length(batch)
            n_examples += batch_length(batch)
        return -total / n_examples

    def oriented(self, metric: float) -> float:
        """Return the metric with the sign for which larger is better."""
        return metric if self.direction == MAXIMIZE else -metric

    def describe(self) -> dict[str, Any]:
        """Return everything that determines a result, as JSON values; a study is only resumed with equal ones.

        By default the fields of a dataclass, or the attributes of another class, but those that begin with an
        underscore; functions by their names, tensors by their contents. See `described`.
        """
        own = {name: described(value) for name, value in attributes_of(self).items()}
        return {"task": type(self).__name__, "metric": self.metric, "direction": self.direction, **own}


class SummedTask(Task):
    """Base class of tasks whose loss and metric follow from sums over examples, which add up over batches and ranks.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from optuna_nas.training import Evaluation, SummedTask
        >>> class TopFive(SummedTask):
        ...     metric, direction = "top5", "maximize"
        ...
        ...     def loss(self, model, batch):
        ...         return nn.functional.cross_entropy(model(batch[0]), batch[1])
        ...
        ...     def sums(self, model, batch):
        ...         n_correct = (model(batch[0]).topk(5).indices == batch[1][:, None]).sum()
        ...         return torch.stack([n_correct, torch.tensor(len(batch[1]))]).double()[None]
        ...
        ...     def summarise(self, model, sums):
        ...         return Evaluation(float("nan"), float(sums[0, 0] / sums[0, 1]))
        >>> TopFive().evaluate(nn.Identity(), [(torch.eye(10), torch.arange(10))])
        1.0
    """

    @abstractmethod
    def sums(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the sums of a batch, shape (outputs, K), float64; the last column counts examples."""

    @abstractmethod
    def summarise(self, model: nn.Module, sums: Tensor) -> Evaluation:
        """Return loss and metric of added sums."""

    def evaluation(self, model: nn.Module, batches: Iterable[Any]) -> Evaluation:
        return self.evaluation_of([self.sums(model, batch) for batch in batches], model)

    def evaluation_of(self, sums: Sequence[Tensor], model: nn.Module) -> Evaluation:
        """Return loss and metric of the sums of batches.

        If `summarise` tells no standard error of the loss, it is that of the losses of the batches, if there are ten.
        """
        found = self.summarise(model, reduce(torch.add, sums))
        if isnan(found.loss) or not isnan(found.loss_error) or len(sums) < LEAST_BATCHES:
            return found
        with suppress(Exception):  # a metric that a single batch does not have, such as one of all classes
            losses = torch.tensor([float(self.summarise(model, one).loss) for one in sums], dtype=torch.float64)
            sizes = torch.stack([one.reshape(-1, one.shape[-1])[0, -1] for one in sums]).detach().double().cpu()
            deviations = sizes * (losses - found.loss) / sizes.sum()
            error = (deviations.square().sum() * len(sums) / (len(sums) - 1)).sqrt()
            return found._replace(loss_error=float(error))
        return found

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: Iterable[Any]) -> float:
        return self.evaluation(model, batches).metric

    @torch.no_grad()
    def score(self, model: nn.Module, batches: Iterable[Any]) -> float:
        batches = list(batches)
        loss = self.evaluation(model, batches).loss
        return super().score(model, batches) if isnan(loss) else -loss


@dataclass(frozen=True)
class ImageClassification(SummedTask):
    """Classification of images, or of any inputs, by cross-entropy. The metric is the accuracy, in [0, 1].

    In training mode a network may return more than one tensor of class scores: those of an auxiliary head have the
    weight `auxiliary_weight` in the loss, those of early exits have equal weights. The accuracy of a network with early
    exits is that of anytime prediction, the mean over all budgets (`anytime_accuracy`).

    Args:
        label_smoothing: Probability mass that is spread over all classes, in [0, 1).
        auxiliary_weight: Weight of the auxiliary head's loss, at least 0; 0.4 in DARTS.

    Raises:
        ValueError: A field is out of range.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from optuna_nas import ImageClassification
        >>> from optuna_nas.data import Batch
        >>> model = nn.Flatten()  # scores are the pixels
        >>> batch = Batch(torch.eye(4)[:, :, None, None], torch.tensor([0, 1, 2, 2]))
        >>> ImageClassification().evaluate(model, [batch])
        0.75
    """

    scores_classes: ClassVar[bool] = True
    metric: ClassVar[str] = "accuracy"
    direction: ClassVar[str] = MAXIMIZE

    label_smoothing: float = 0.0
    auxiliary_weight: float = 0.4

    def __post_init__(self) -> None:
        for name, high in (("label_smoothing", 1.0), ("auxiliary_weight", float("inf"))):
            value = plain(getattr(self, name))
            if isinstance(value, int | float) and not 0 <= value < high:
                raise ValueError(f"`{name}` must be in [0, {high}) but got {value}.")
            object.__setattr__(self, name, value)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return self.training_step(model, batch)[0]

    def training_step(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        inputs, targets = batch
        if targets.is_floating_point():
            raise ValueError(
                "`task` must be one for values, such as `Regression()`, where targets are no labels but floating-point "
                "numbers; give it, or make the labels integers."
            )
        outputs = model(inputs)
        scores, *others = outputs if isinstance(outputs, tuple) else (outputs,)
        loss, *other_losses = (
            F.cross_entropy(output, targets, label_smoothing=self.label_smoothing) for output in (scores, *others)
        )
        exits = _as_exits(model)
        if others and exits is not None and len(exits.exit_costs) > 1:
            loss = total = torch.stack([loss, *other_losses]).mean()
        else:
            total = sum((self.auxiliary_weight * other for other in other_losses), loss)
        with torch.no_grad():
            sums = torch.zeros(3, dtype=torch.float64, device=loss.device)
            sums[0] += loss * len(targets)
            sums[1] += (scores.argmax(1) == targets).sum()
            sums[2] += len(targets)
        return total, sums

    def training_curves(self, sums: Tensor) -> dict[str, Tensor]:
        loss, correct, n_examples = sums.unbind()
        return {"loss": loss / n_examples.clamp_min(1), self.metric: correct / n_examples.clamp_min(1)}

    def sums(self, model: nn.Module, batch: Any) -> Tensor:
        inputs, targets = batch
        exits = _exits(model)
        outputs = [model(inputs)] if exits is None else exits.anytime(inputs)
        sums = torch.zeros((len(outputs), 4), dtype=torch.float64, device=targets.device)
        losses = torch.zeros(len(targets), dtype=torch.float64, device=targets.device)  # of examples, over all exits
        for row, scores in zip(sums, outputs, strict=True):
            log_probabilities = F.log_softmax(scores.float(), dim=1)
            row[0] += F.nll_loss(log_probabilities, targets, reduction="sum")
            row[1] += (scores.argmax(1) == targets).sum()
            row[3] += len(targets)
            losses += _by_example(F.nll_loss(log_probabilities, targets, reduction="none")).sum(1)
        sums[:, 2] = (losses / len(outputs)).square().sum()
        return sums

    def summarise(self, model: nn.Module, sums: Tensor) -> Evaluation:
        losses, accuracies, squares = (sums[:, :3] / sums[:, 3:]).T.tolist()
        loss, exits = sum(losses) / len(losses), _exits(model)
        accuracy = accuracies[0]
        if exits is not None:
            accuracy = anytime_accuracy(exits.exit_costs, accuracies, exits.budget)
        return Evaluation(loss, accuracy, tuple(accuracies), standard_error(loss, squares[0], float(sums[0, 3])))


@dataclass(frozen=True)
class Regression(SummedTask):
    """Regression by mean squared error, with a choice of three metrics.

    Predictions and targets have the shape (B,), (B, 1) or (B, outputs).

    Args:
        metric: `r2`, the coefficient of determination over all outputs (1 is perfect, 0 equals predicting the mean of
            the targets); `rmse`, the root of the mean squared error; or `mae`, the mean absolute error. Errors are in
            units of the targets.

    Raises:
        ValueError: The metric is unknown.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from optuna_nas import Regression
        >>> from optuna_nas.data import Batch
        >>> batch = Batch(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1.0, 2.0, 5.0]))
        >>> round(Regression().evaluate(nn.Identity(), [batch]), 4)
        0.5385
        >>> Regression("mae").direction
        'minimize'
    """

    metric: str = "r2"

    def __post_init__(self) -> None:
        if self.metric not in ("r2", "rmse", "mae"):
            raise ValueError(f"`metric` must be one of ('r2', 'rmse', 'mae') but got {self.metric!r}.")

    @property
    def direction(self) -> str:
        """`maximize` for `r2`, `minimize` for errors."""
        return MAXIMIZE if self.metric == "r2" else MINIMIZE

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        predictions, targets = self._aligned(model, batch)
        return F.mse_loss(predictions, targets)

    def sums(self, model: nn.Module, batch: Any) -> Tensor:
        predictions, targets = (tensor.double() for tensor in self._aligned(model, batch))
        error, count = predictions - targets, torch.tensor(len(targets), device=targets.device)
        per_example = targets.numel() / max(1, len(targets))
        columns = [error.square().sum(), error.abs().sum(), targets.sum(), targets.square().sum(), count * per_example]
        squares = _by_example(error.square()).mean(1).square().sum()  # of the loss of each example
        return torch.stack([*columns, squares, count]).double()[None]

    def summarise(self, model: nn.Module, sums: Tensor) -> Evaluation:
        squared, absolute, total, total_squares, n_values, squares, n_examples = sums[0].tolist()
        variation = total_squares - total**2 / n_values
        metrics = {
            "r2": 1 - squared / variation if variation > 0 else 0.0,
            "rmse": (squared / n_values) ** 0.5,
            "mae": absolute / n_values,
        }
        loss, metric = squared / n_values, metrics[self.metric]
        return Evaluation(loss, metric, (metric,), standard_error(loss, squares / n_examples, n_examples))

    def _aligned(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        inputs, targets = batch
        predictions = model(inputs)
        if isinstance(predictions, tuple):
            raise ValueError(
                f"`space` must be of networks with one output for a regression but they have {len(predictions)}; "
                "return one tensor, or leave out auxiliary head and budget of the skeleton."
            )
        if predictions.ndim == targets.ndim + 1 and predictions.shape[-1] == 1:
            predictions = predictions[..., 0]
        if predictions.shape != targets.shape:
            raise ValueError(
                f"`targets` must have the shape of the predictions {tuple(predictions.shape)} but have "
                f"{tuple(targets.shape)}; give the network as many outputs as there are targets."
            )
        dtype = torch.promote_types(predictions.dtype, torch.float32)  # bfloat16 would round the targets
        return predictions.to(dtype), targets.to(dtype)


def standard_error(mean: float, mean_square: float, n_examples: float) -> float:
    """Return the standard error of a mean over examples; NaN of a single one, or of what is not finite.

    Args:
        mean: Mean of a number of each example.
        mean_square: Mean of its square.
        n_examples: Number of examples.

    Example:
        >>> from optuna_nas.training.task import standard_error
        >>> standard_error(2.0, 5.0, 2)  # of 1 and 3
        1.0
    """
    if n_examples <= 1 or not isfinite(mean_square):
        return nan
    return sqrt(max(0.0, mean_square - mean**2) / (n_examples - 1))


def _by_example(values: Tensor) -> Tensor:
    """Return numbers of examples in rows, shape (B, N)."""
    return values.flatten(1) if values.ndim > 1 else values[:, None]


def _count(n_examples: int, like: Tensor) -> Tensor:
    return torch.tensor(n_examples, dtype=torch.float64, device=like.device)


def _exits(model: nn.Module) -> EarlyExits | None:
    """Return the network if its predictions have a budget, even if it has no early exit; otherwise None."""
    exits = _as_exits(model)
    return exits if exits is not None and exits.budget > 0 else None


def _as_exits(model: nn.Module) -> EarlyExits | None:
    """Return the network if it has the attributes of `EarlyExits`, otherwise None.

    A module of `torch.compile` forwards attributes, but is not an instance of the protocol since Python 3.12.
    """
    has_all = all(hasattr(model, name) for name in ("exit_costs", "budget", "anytime"))
    return cast("EarlyExits", model) if has_all else None


class Arguments(NamedTuple):
    """Arguments of a module that does not take one value alone.

    Args:
        args: Positional arguments.
        kwargs: Arguments by name.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class MethodCall(NamedTuple):
    """Call of another method than `forward`.

    Args:
        name: Name of the method.
        args: Its arguments.
        attributes: Attributes of the module during the call, such as a function that logs.
    """

    name: str
    args: tuple[Any, ...]
    attributes: dict[str, Any]


def call(module: Callable[..., Any], inputs: Any) -> Any:
    """Return the result of a module for a value, for `Arguments`, or of a `MethodCall`.

    Example:
        >>> from optuna_nas.training.task import Arguments, call
        >>> call(max, Arguments((1, 3), {})), call(abs, -2)
        (3, 2)
    """
    if isinstance(inputs, MethodCall):
        before = {name: vars(module)[name] for name in inputs.attributes if name in vars(module)}
        vars(module).update(inputs.attributes)
        try:
            return getattr(module, inputs.name)(*inputs.args)
        finally:
            for name in inputs.attributes:
                del vars(module)[name]
            vars(module).update(before)
    return module(*inputs.args, **inputs.kwargs) if isinstance(inputs, Arguments) else module(inputs)


class Calling(nn.Module):
    """Module that calls a function, so that a task can train a supernet or a hypernetwork in place of a network.

    Args:
        function: Function of what `forward` is given: one value, or `Arguments` where it is given more.

    Example:
        >>> import torch
        >>> from optuna_nas.training.task import Calling
        >>> Calling(lambda inputs: 2 * inputs)(torch.ones(2))
        tensor([2., 2.])
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self._function = function

    def forward(self, *inputs: Any, **named_inputs: Any) -> Any:
        """Return what the function returns."""
        alone = len(inputs) == 1 and not named_inputs
        return self._function(inputs[0] if alone else Arguments(inputs, named_inputs))


@contextmanager
def step_of(model: nn.Module, progress: float, generator: torch.Generator) -> Iterator[None]:
    """Enter the context `model.step_context(progress, generator)` of a training step, if the model has one.

    Networks with stochastic depth, or with other settings that change during training, implement it. For others,
    PyTorch's global random numbers are seeded, so that a training with dropout goes on to the same numbers.

    Args:
        model: Any module.
        progress: Fraction of the epochs done, in [0, 1).
        generator: Random generator, seeded by the step.
    """
    hook = getattr(model, "step_context", None)
    if hook is None:
        with seeded_globally(generator):
            yield
        return
    with hook(progress, generator):
        yield

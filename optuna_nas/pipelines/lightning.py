"""PyTorch Lightning: a LightningModule with choices, its `training_step` and `validation_step` as the task.

Needs `pip install 'optuna_nas[lightning]'`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule
from torch import Tensor

from optuna_nas.data.batches import batch_length
from optuna_nas.training.task import DIRECTIONS, MethodCall, Task, call

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn


@dataclass(frozen=True)
class LightningTask(Task):
    """Task of a `ModuleSpace` whose modules are LightningModules.

    The loss is what `training_step` returns, the metric the mean over examples of a value that `validation_step` logs,
    or the result of a torchmetrics object that it logs. Optimizer and schedule are those of the `Recipe`: a supernet
    has other parameters than a module, and `configure_optimizers` is not called. A step must not ask for
    `self.trainer`.

    Args:
        metric: Name of the value that `validation_step` logs.
        direction: `maximize` or `minimize`.

    Raises:
        ValueError: The direction is unknown; in use, a module has no `validation_step`, or does not log the metric.

    Example:
        >>> import torch
        >>> from lightning.pytorch import LightningModule
        >>> from torch import nn
        >>> from optuna_nas import ModuleSpace, choose_op
        >>> from optuna_nas.pipelines.lightning import LightningTask
        >>> class Net(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.act = choose_op("act", {"relu": nn.ReLU, "tanh": nn.Tanh})
        ...         self.head = nn.Linear(4, 2)
        ...
        ...     def forward(self, x):
        ...         return self.head(self.act(x))
        ...
        ...     def training_step(self, batch, batch_idx):
        ...         return nn.functional.cross_entropy(self(batch[0]), batch[1])
        ...
        ...     def validation_step(self, batch, batch_idx):
        ...         self.log("accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())
        >>> space = ModuleSpace(Net, example=torch.zeros(1, 4))
        >>> task = LightningTask("accuracy")
        >>> batch = torch.eye(4), torch.tensor([0, 1, 0, 1])
        >>> 0 <= task.evaluate(space.full_architecture().build(), [batch]) <= 1
        True
    """

    metric: str = "val_loss"
    direction: str = "maximize"

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise ValueError(f"`direction` must be one of {DIRECTIONS} but got {self.direction!r}.")

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        result, _ = _step(model, "training_step", batch, 0)
        loss = result["loss"] if isinstance(result, dict) else result
        if not isinstance(loss, Tensor):
            raise ValueError(
                f"`training_step` must return a loss, or a dictionary with `loss`, but returns a {type(loss).__name__}."
            )
        return loss

    def evaluate(self, model: nn.Module, batches: Iterable[Any]) -> float:
        total, n_examples, last = 0.0, 0, None
        for number, batch in enumerate(batches):
            if number == 0:
                _check_validates(model)
            _, logged = _step(model, "validation_step", batch, number)
            if self.metric not in logged:
                raise ValueError(
                    f"`metric` must be logged by `validation_step` but {self.metric!r} is not among {sorted(logged)}."
                )
            last = logged[self.metric]
            if not hasattr(last, "compute"):
                total += float(last) * batch_length(batch)
            n_examples += batch_length(batch)
        if last is not None and hasattr(last, "compute"):  # a torchmetrics object, which has seen all batches
            value = float(last.compute())
            last.reset()
            return value
        return total / max(1, n_examples)


def _check_validates(model: nn.Module) -> None:
    """Raise ValueError where a LightningModule has no `validation_step`; Lightning's own does nothing."""
    module = _lightning(model)
    if module is not None and type(module).validation_step is LightningModule.validation_step:
        raise ValueError(
            f"`validation_step` must be a method of {type(module).__name__}, whose value it logs is the metric of a "
            "trial, but there is none; add one that calls `self.log`."
        )


def _lightning(model: nn.Module) -> LightningModule | None:
    """Return the LightningModule that a module is or wraps; None for what stands in its place, such as a supernet."""
    module = getattr(model, "module", None) if not isinstance(model, LightningModule) else model
    return module if isinstance(module, LightningModule) else None


def _step(model: nn.Module, name: str, batch: Any, number: int) -> tuple[Any, dict[str, Any]]:
    """Return the result of a step of a LightningModule, or of what stands in its place, and what it logs."""
    logged: dict[str, Any] = {}

    def log(name: str, value: Any, *_: Any, **__: Any) -> None:
        logged[name] = value

    def log_dict(values: dict[str, Any], *_: Any, **__: Any) -> None:
        logged.update(values)

    step = MethodCall(name, (batch, number), {"log": log, "log_dict": log_dict})
    module = _lightning(model)
    return (model(step) if module is None else call(module, step)), logged

"""Optimizers of recipes, their state as tensors, and the cosine schedule."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from optuna_nas.training.finite_steps import fused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna_nas.training.recipe import Recipe

ADAM = frozenset({"step", "exp_avg", "exp_avg_sq"})
STATES = {torch.optim.SGD: frozenset({"momentum_buffer"}), torch.optim.Adam: ADAM, torch.optim.AdamW: ADAM}
"""Names of what the optimizers of this package keep of a parameter."""


def make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the optimizer of a recipe."""
    parameters = list(network.parameters())
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, rate, weight_decay=decay, fused=fused(parameters))
    return torch.optim.SGD(parameters, rate, recipe.momentum, weight_decay=decay, fused=fused(parameters))


def cosine(first: float, last: float, progress: float) -> float:
    """Return the value of a cosine decay from `first` to `last`, at a progress in [0, 1].

    Example:
        >>> from optuna_nas.training.optimizers import cosine
        >>> cosine(0.1, 0.0, 0.5)
        0.05
    """
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * progress))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state of an optimizer as tensors named `PARAMETER_NUMBER/NAME`.

    Example:
        >>> import torch
        >>> from optuna_nas.training.optimizers import optimizer_tensors
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
        >>> weight.grad = torch.ones(1)
        >>> optimizer.step()
        >>> optimizer_tensors(optimizer)
        {'0/momentum_buffer': tensor([1.])}
    """
    return {
        f"{number}/{name}": torch.as_tensor(value)
        for number, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if value is not None
    }


def check_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Check that tensors can be the state of an optimizer: finite numbers in the shapes of its parameters.

    Raises:
        ValueError: They can't.

    Example:
        >>> import torch
        >>> from optuna_nas.training.optimizers import check_optimizer_tensors
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9)
        >>> check_optimizer_tensors(optimizer, {"0/momentum_buffer": torch.ones(2)})
        Traceback (most recent call last):
            ...
        ValueError: tensor '0/momentum_buffer' must be finite, of the shape of its parameter, but is not
    """
    parameters, names = _parameters(optimizer), STATES.get(type(optimizer))
    kept: dict[int, set[str]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition("/")
        if not number.isdecimal() or int(number) >= len(parameters) or "/" in name:
            raise ValueError(f"tensor {key!r} must be of an optimizer of {len(parameters)} parameters but is not")
        kept.setdefault(int(number), set()).add(name)
        like = parameters[int(number)]
        fits = names is None or (tensor.shape, tensor.dtype) == (
            ((), torch.float32) if name == "step" else (like.shape, like.dtype)
        )
        if not fits or not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"tensor {key!r} must be finite, of the shape of its parameter, but is not")
    for place, found in kept.items():
        if names is not None and found != names:
            raise ValueError(f"parameter {place} of the optimizer must have {sorted(names)} but has {sorted(found)}")


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load the result of `optimizer_tensors`, in the memory format of the parameters.

    Raises:
        ValueError: The tensors can't be those of this optimizer; see `check_optimizer_tensors`.
    """
    check_optimizer_tensors(optimizer, tensors)
    parameters = _parameters(optimizer)
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, name = key.split("/")
        like = parameters[int(number)]
        if tensor.shape == like.shape:
            tensor = torch.empty_like(like, requires_grad=False).copy_(tensor)
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]

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


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load the result of `optimizer_tensors`, in the memory format of the parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, name = key.split("/")
        like = parameters[int(number)]
        if tensor.shape == like.shape:
            tensor = torch.empty_like(like, requires_grad=False).copy_(tensor)
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

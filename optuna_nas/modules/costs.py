"""Costs of a module, counted without weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from optuna_nas.modules.probing import run_without_weights
from optuna_nas.space.cost import Cost

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


LONG = 4
"""Steps of a sequence from which on a recurrent layer is counted by its first ones."""


class _Traffic(TorchDispatchMode):
    """Counts the elements that ops read and write; views move none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not getattr(func, "is_view", False):
            moved = tree_leaves((args, kwargs, result))
            self.elements += sum(value.numel() for value in moved if isinstance(value, Tensor))
        return result


def n_parameters(module: nn.Module) -> int:
    """Return the number of parameters, frozen ones among them; tied ones count once."""
    return sum(parameter.numel() for parameter in module.parameters())


def cost_of(module: nn.Module, example: Any, device: str) -> Cost:
    """Return the cost of a module for example inputs.

    Multiply-adds are half of the floating-point operations that PyTorch counts in products of matrices, convolutions
    and attention. Memory access is the number of elements that all operations but views read and write.

    Args:
        module: Module on `device`.
        example: Example inputs of one example; None counts parameters only.
        device: `meta` or `cpu`.
    """
    if example is None:
        return Cost(n_parameters(module))
    module.requires_grad_(False)  # the counter would hook into parameters that are the input of a layer
    traffic, counter = _Traffic(), FlopCounterMode(display=False)
    # The fast paths of attention hide its products of matrices from the counter.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    for part in module.modules():
        if isinstance(part, nn.RNNBase):
            part.forward = _shortened(part, counter, traffic)
    try:
        with counter, traffic, sdpa_kernel(SDPBackend.MATH):
            run_without_weights(module, example, device)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return Cost(n_parameters(module), counter.get_total_flops() // 2, traffic.elements)


def _shortened(part: nn.RNNBase, counter: FlopCounterMode, traffic: _Traffic) -> Callable[..., Any]:
    """Return a forward pass of a recurrent layer that computes two steps, and counts as many as it was given.

    Costs are linear in the number of steps, and each is taken apart in Python.
    """
    whole = part.forward

    def spent() -> tuple[int, int]:
        return counter.get_total_flops(), traffic.elements

    def forward(inputs: Any, state: Any = None) -> Any:
        time = 1 if part.batch_first and getattr(inputs, "ndim", 0) == 3 else 0
        if not isinstance(inputs, Tensor) or inputs.shape[time] < LONG:  # a packed sequence is counted as it is
            return whole(inputs, state)
        marks = [spent()]
        for steps in (1, 2):
            outputs, after = whole(inputs.narrow(time, 0, steps), state)
            marks.append(spent())
        missing = []  # a step costs what two cost more than one; three are counted
        for before, after_one, after_two in zip(*marks, strict=True):
            first, both = after_one - before, after_two - after_one
            missing.append((inputs.shape[time] - 2) * (both - first) - first)
        counter.flop_counts["Global"]["recurrent"] += missing[0]
        traffic.elements += missing[1]
        shape = [inputs.shape[time] if place == time else -1 for place in range(outputs.ndim)]
        return outputs.narrow(time, 0, 1).expand(shape), after

    return forward

"""Sums of ops and inputs that stay in a user's module, their factors, and weights that stay zero (HM-NAS)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

Factor: TypeAlias = "Tensor | float"
STRUCTURES = (tuple, list, dict)
"""Outputs that hold several tensors; all others are added and multiplied as they are, so that `torch.fx` can trace."""


class Sum(nn.Module):
    """Adds up the outputs of ops.

    Args:
        choice: Name of the choice.
        ops: Ops by name.
    """

    def __init__(self, choice: str, ops: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.choice = choice
        for name, op in ops.items():
            self.add_module(name, op)
            leave_inputs(op)
        self.factors: dict[str, float] = {}
        """Factor of an op by its name (HM-NAS); 1 by default."""

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return the sum of the outputs; zeros like the first input without ops."""
        ops = ((name, op) for name, op in self._modules.items() if op is not None)
        outputs = outputs_of(self.choice, ops, inputs, named)
        terms = [(value, self.factors.get(name, 1.0)) for name, value in outputs]
        return added(terms) if terms else torch.zeros_like(inputs[0])


class Pick(nn.Module):
    """Adds up some of the tensors that it is given.

    Args:
        choice: Name of the choice.
        inputs: Numbers of the tensors.
    """

    def __init__(self, choice: str, inputs: tuple[int, ...]) -> None:
        super().__init__()
        self.choice, self.inputs = choice, inputs
        self.factors: dict[str, float] = {}
        """Factor of an input by its number as text (HM-NAS); 1 by default."""

    def forward(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return a tensor of their shape."""
        terms = [(tensors[number], self.factors.get(str(number), 1.0)) for number in self.inputs]
        return cast("Tensor", added(terms)) if terms else torch.zeros_like(tensors[0])

    def extra_repr(self) -> str:
        """Return the numbers for `print`."""
        return ", ".join(map(str, self.inputs))


def leave_inputs(module: nn.Module) -> None:
    """Let no part of a module work in place, since other ops read the same tensors."""
    for part in module.modules():
        if getattr(part, "inplace", False) is True:
            part.inplace = False  # type: ignore[assignment]


def outputs_of(
    choice: str, ops: Iterable[tuple[str, nn.Module]], inputs: tuple[Any, ...], named: Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:
    """Yield the outputs of ops for the same inputs, by name.

    Raises:
        ValueError: An op has changed an input, which the others read, too.
    """
    watched = () if torch.compiler.is_compiling() else inputs
    tensors = [value for value in watched if type(value) is Tensor and not value.is_inference()]
    before, last = [tensor._version for tensor in tensors], ""
    for name, op in ops:
        if [tensor._version for tensor in tensors] != before:
            raise ValueError(
                f"`choose` must have options that leave their inputs as they are but {last!r} of {choice!r} changes "
                "one in place, which others read; use another op, such as `relu` for `relu_`."
            )
        last = name
        yield name, op(*inputs, **named)


def added(terms: Sequence[tuple[Any, Factor]]) -> Any:
    """Return the weighed sum of outputs: tensors, or equal structures of them."""
    weighed = [_times(value, weight) for value, weight in terms]
    total = weighed[0]
    for other in weighed[1:]:
        if isinstance(total, STRUCTURES):
            total = tree_map(lambda one, two: one + two if isinstance(one, Tensor) else one, total, other)
        else:
            total = total + other
    return total


def _times(value: Any, weight: Factor) -> Any:
    if isinstance(weight, float) and weight == 1.0:
        return value
    if isinstance(value, STRUCTURES):
        return tree_map(lambda part: part * weight if isinstance(part, Tensor) else part, value)
    return value * weight


class Cut:
    """Forward pre-hook that sets masked weights to zero, since an optimizer's step may have changed them.

    Args:
        masks: Masks of zeros and ones by the name of a parameter.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        self.masks = dict(masks)

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        if torch.compiler.is_compiling():  # exports and compilers take the weights as they are
            return
        with torch.no_grad():
            for name, mask in self.masks.items():
                parameter = module.get_parameter(name)
                if mask.device != parameter.device:
                    self.masks[name] = mask = mask.to(parameter.device)
                parameter.mul_(mask)


def factors_of(module: nn.Module) -> dict[str, dict[str, float]]:
    """Return the factors of the sums in a module, by choice and name; empty if all are 1."""
    return {
        part.choice: dict(part.factors) for part in module.modules() if isinstance(part, Sum | Pick) and part.factors
    }


def weigh(module: nn.Module, factors: Mapping[str, Mapping[str, float]]) -> None:
    """Set the factors of the sums in a module, by choice and name.

    Raises:
        ValueError: A sum has an op without a factor.
    """
    for part in module.modules():
        if isinstance(part, Sum | Pick) and part.choice in factors:
            names = list(part._modules) if isinstance(part, Sum) else list(map(str, part.inputs))
            of_part = factors[part.choice]
            missing = [name for name in names if name not in of_part]
            if missing:
                raise ValueError(
                    f"`factors[{part.choice!r}]` must weigh every op that is kept but lacks {missing[0]!r}."
                )
            part.factors = {name: float(of_part[name]) for name in names}


def masks_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the masks of a module's weights, by the name of the parameter."""
    hooks = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, Cut)]
    return {name: mask for hook in hooks for name, mask in hook.masks.items()}


def restrict(module: nn.Module, factors: Mapping[str, Mapping[str, float]], masks: Mapping[str, Tensor]) -> nn.Module:
    """Give sums their factors, and let masked weights stay zero while the module is trained; return the module.

    Args:
        module: Module of an architecture.
        factors: Factor of every op and input that is added up, by choice and name.
        masks: Masks of zeros and ones by the name of a parameter.
    """
    weigh(module, factors)
    if masks:
        module.register_forward_pre_hook(Cut(masks))
    return module

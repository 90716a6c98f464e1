"""Parameters of a module that its outputs do not depend on, since a choice adds up other tensors than theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from optuna_nas.modules.choosing import INPUTS, OPS
from optuna_nas.modules.probing import run_without_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from optuna_nas.modules.choosing import Choice

Names = tuple[str, ...]


def reading_all(choices: Mapping[str, Choice], chosen: Mapping[str, Names]) -> dict[str, Names]:
    """Return what is chosen, with every tensor added up where a choice can leave some out.

    Args:
        choices: Choices of a space by name.
        chosen: Names chosen by choice.

    Example:
        >>> from optuna_nas.modules.choosing import Choice
        >>> from optuna_nas.modules.unread import reading_all
        >>> reads = Choice("reads", "inputs", ("0", "1"), (("0", ("0",)), ("1", ("1",))))
        >>> reading_all({"reads": reads}, {"reads": ("1",)})
        {'reads': ('0', '1')}
    """
    return {
        name: choices[name].names
        if choices[name].kind == INPUTS or (choices[name].kind == OPS and not names)
        else names
        for name, names in chosen.items()
    }


def learning(module: nn.Module, example: Any, device: str) -> frozenset[str]:
    """Return the names of the parameters that a gradient of the outputs reaches, in evaluation mode.

    The graph of the operations is walked; no gradient is computed.

    Args:
        module: Module on `device`.
        example: Example inputs.
        device: `meta` or `cpu`.

    Example:
        >>> import torch
        >>> from optuna_nas.modules.unread import learning
        >>> sorted(learning(torch.nn.Linear(2, 1), torch.zeros(1, 2), "cpu"))
        ['bias', 'weight']
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    outputs = run_without_weights(module, example, device, gradients=True)
    waiting = [value.grad_fn for value in tree_leaves(outputs) if isinstance(value, Tensor) and value.grad_fn]
    seen, reached = set(waiting), set()
    while waiting:
        step = waiting.pop()
        if isinstance(variable := getattr(step, "variable", None), torch.Tensor):
            reached.add(names.get(id(variable), ""))
        following = {function for function, _ in step.next_functions if function is not None} - seen
        seen |= following
        waiting.extend(following)
    return frozenset(reached & set(names.values()))

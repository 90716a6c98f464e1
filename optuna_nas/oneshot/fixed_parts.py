"""Fixed parts of a network, which no choice touches, and how they are kept from doing without the choices.

Stem, reductions and other fixed parts learn together with what can be chosen. Within minutes they solve the task alone,
and all architectures are about equally good. With random kernels there, which stay what they are, a network is only as
good as what is chosen. Norms and outputs always learn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from torch import nn


def freeze(module: nn.Module, kernels: Collection[str], frozen: bool) -> None:
    """Let kernels learn or keep their values from now on.

    Args:
        module: Supernet.
        kernels: Names of its parameters, see `ModelSpace.fixed_kernels`.
        frozen: Whether they keep their values.

    Example:
        >>> from optuna_nas import NetworkSpace, nasbench201_skeleton, nasbench201_space
        >>> from optuna_nas.oneshot.fixed_parts import freeze
        >>> space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(repeats=1, channels=4))
        >>> supernet = space.supernet()
        >>> freeze(supernet, space.fixed_kernels(), True)
        >>> supernet.parts["stem"][0].weight.requires_grad, supernet.parts["stem"][1].weight.requires_grad
        (False, True)
    """
    for name in kernels:
        parameter = module.get_parameter(name)
        if parameter.requires_grad == frozen:
            parameter.requires_grad_(not frozen)

"""Running statistics of batch norms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable


def use_batch_statistics(network: torch.nn.Module) -> None:
    """Make batch norms in training mode use batch statistics and leave their running statistics unchanged.

    Args:
        network: Any module; changed in place.

    Example:
        >>> import torch
        >>> from optuna_nas.networks import use_batch_statistics
        >>> norm = torch.nn.BatchNorm2d(3)
        >>> use_batch_statistics(norm)
        >>> _ = norm(torch.rand(4, 3, 8, 8))
        >>> norm.running_mean
        tensor([0., 0., 0.])
    """
    for module in _norms(network):
        module.track_running_stats = False


def recompute_statistics(network: torch.nn.Module, run: Tensor | Callable[[torch.nn.Module], Any]) -> None:
    """Set the running statistics of batch norms to those of a batch. The network is in training mode afterwards.

    Norms whose parameters are frozen belong to a pretrained part and keep their statistics.

    Args:
        network: Any module; changed in place.
        run: Inputs on the device of the network, or a function that runs the network on the batch.

    Example:
        >>> import torch
        >>> from optuna_nas.networks import recompute_statistics
        >>> norm = torch.nn.BatchNorm2d(3)
        >>> recompute_statistics(norm, torch.ones(4, 3, 8, 8))
        >>> norm.running_mean
        tensor([1., 1., 1.])
    """
    network.train()
    norms = _norms(network)
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative mean over batches instead of a moving average
    with torch.no_grad():
        network(run) if isinstance(run, Tensor) else run(network)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def is_pretrained(norm: torch.nn.Module) -> bool:
    """Return whether all parameters of a norm are frozen, so that its statistics belong to them.

    Example:
        >>> import torch
        >>> from optuna_nas.networks.statistics import is_pretrained
        >>> is_pretrained(torch.nn.BatchNorm2d(3)), is_pretrained(torch.nn.BatchNorm2d(3).requires_grad_(False))
        (False, True)
    """
    own = list(norm.parameters(recurse=False))
    return bool(own) and not any(parameter.requires_grad for parameter in own)


def _norms(network: torch.nn.Module) -> list[torch.nn.modules.batchnorm._NormBase]:
    norms = [module for module in network.modules() if isinstance(module, torch.nn.modules.batchnorm._NormBase)]
    return [norm for norm in norms if not is_pretrained(norm)]

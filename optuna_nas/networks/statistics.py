"""Running statistics of batch norms."""

from __future__ import annotations

import torch
from torch import Tensor


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


def recompute_statistics(network: torch.nn.Module, images: Tensor) -> None:
    """Set the running statistics of batch norms to those of a batch. The network is in training mode afterwards.

    Args:
        network: Any module; changed in place.
        images: Shape (B, C, H, W), on the device of the network.

    Example:
        >>> import torch
        >>> from optuna_nas.networks import recompute_statistics
        >>> norm = torch.nn.BatchNorm2d(3)
        >>> recompute_statistics(norm, torch.ones(4, 3, 8, 8))
        >>> norm.running_mean
        tensor([1., 1., 1.])
    """
    norms = _norms(network)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative mean over batches instead of a moving average
    with torch.no_grad():
        network.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _norms(network: torch.nn.Module) -> list[torch.nn.modules.batchnorm._NormBase]:
    return [module for module in network.modules() if isinstance(module, torch.nn.modules.batchnorm._NormBase)]

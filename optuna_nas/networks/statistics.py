"""Running statistics of batch norms."""

from __future__ import annotations

import torch
from torch import Tensor


def use_batch_statistics(network: torch.nn.Module) -> None:
    """Make batch norms use the statistics of the batch alone; in training mode, running ones are left untouched."""
    for module in _norms(network):
        module.track_running_stats = False


def recompute_statistics(network: torch.nn.Module, images: Tensor) -> None:
    """Set the running statistics of batch norms to those of a batch, shape (B, C, H, W); leaves training mode on."""
    norms = _norms(network)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
    with torch.no_grad():
        network.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _norms(network: torch.nn.Module) -> list[torch.nn.modules.batchnorm._NormBase]:
    return [module for module in network.modules() if isinstance(module, torch.nn.modules.batchnorm._NormBase)]

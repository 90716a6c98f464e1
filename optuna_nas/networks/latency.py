"""Measured latency of a network."""

from __future__ import annotations

import time
from statistics import median

import torch
from torch import Tensor


def measure_latency(network: torch.nn.Module, images: Tensor, repeats: int = 20) -> float:
    """Return the median seconds of a forward pass on the device of `images`, without gradients, after a warm-up.

    Args:
        network: Any module; put into evaluation mode for the measurement.
        images: Shape (B, C, H, W); the latency is that of the whole batch.
        repeats: Timed passes, at least 1.
    """
    if repeats < 1:
        raise ValueError(f"`repeats` must be at least 1 but got {repeats}.")
    training = network.training
    network.eval()
    seconds = []
    with torch.inference_mode():
        for _ in range(2 + repeats):
            _wait(images.device)
            start = time.perf_counter()
            network(images)
            _wait(images.device)
            seconds.append(time.perf_counter() - start)
    network.train(training)
    return median(seconds[2:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

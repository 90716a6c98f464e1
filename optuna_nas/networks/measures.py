"""Measures: numbers of a built network on a device, such as its latency."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from optuna_nas.training.device import choose_device

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Measure:
    """Number measured on a built network on a device, as an objective or a constraint.

    Args:
        name: Name in trials and tables, a Python identifier; it should contain what the number depends on.
        function: Function of a network in evaluation mode and a batch of inputs, both on the device.
        batch_size: Number of inputs in the batch, at least 1.
        device: `auto` (a GPU if there is one), or a torch device.
        direction: `minimize` or `maximize`.

    Raises:
        ValueError: The name is not an identifier, the direction is unknown, or `batch_size` is below 1.

    Example:
        >>> import torch
        >>> from optuna_nas.networks import Measure
        >>> size = Measure("largest_output", lambda network, inputs: float(network(inputs).abs().max()))
        >>> size(torch.nn.Identity(), torch.ones(1, 3))
        1.0
    """

    name: str
    function: Callable[[nn.Module, Tensor], float]
    batch_size: int = 1
    device: str = "auto"
    direction: str = "minimize"

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"`name` must be a Python identifier but got {self.name!r}; use letters and underscores.")
        if self.direction not in ("minimize", "maximize"):
            raise ValueError(f"`direction` must be 'minimize' or 'maximize' but got {self.direction!r}.")
        if self.batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1 but got {self.batch_size}.")

    def __call__(self, network: nn.Module, inputs: Tensor) -> float:
        """Measure a copy of a network on the measure's device.

        Args:
            network: Any module; it is not changed.
            inputs: Example inputs, shape (B, ...); `batch_size` of them are used, repeated if necessary.

        Raises:
            ValueError: The device does not exist.
        """
        device = choose_device(self.device)
        repeats = -(-self.batch_size // len(inputs))
        batch = torch.cat([inputs] * repeats)[: self.batch_size].to(device)
        with torch.inference_mode():
            return float(self.function(copy.deepcopy(network).to(device).eval(), batch))


def latency(batch_size: int = 1, device: str = "auto", repeats: int = 20) -> Measure:
    """Return a measure of latency: median seconds of a forward pass of a batch, after two passes to warm up.

    Args:
        batch_size: Number of inputs in the batch, at least 1; the latency is that of the whole batch.
        device: `auto` (a GPU if there is one), or a torch device.
        repeats: Number of timed passes, at least 1.

    Raises:
        ValueError: The device does not exist, or an argument is out of range.

    Example:
        >>> from optuna_nas.networks import latency
        >>> latency(batch_size=8, device="cpu").name
        'latency_cpu_8'
    """
    if repeats < 1:
        raise ValueError(f"`repeats` must be at least 1 but got {repeats}.")
    place = str(choose_device(device)).replace(":", "_")
    return Measure(
        f"latency_{place}_{batch_size}",
        lambda network, inputs: measure_latency(network, inputs, repeats),
        batch_size,
        device,
    )


def measure_latency(network: nn.Module, inputs: Tensor, repeats: int = 20) -> float:
    """Return the median seconds of a forward pass without gradients, after two passes to warm up.

    Args:
        network: Any module on the device of `inputs`; it is measured in evaluation mode.
        inputs: Shape (B, ...); the latency is that of the whole batch.
        repeats: Number of timed passes, at least 1.

    Raises:
        ValueError: `repeats` is below 1.

    Example:
        >>> import torch
        >>> from optuna_nas import measure_latency
        >>> 0 < measure_latency(torch.nn.Linear(4, 4), torch.zeros(2, 4), repeats=3) < 1
        True
    """
    if repeats < 1:
        raise ValueError(f"`repeats` must be at least 1 but got {repeats}.")
    training = network.training
    network.eval()
    seconds = []
    with torch.inference_mode():
        for _ in range(2 + repeats):
            _synchronize(inputs.device)
            start = time.perf_counter()
            network(inputs)
            _synchronize(inputs.device)
            seconds.append(time.perf_counter() - start)
    network.train(training)
    return median(seconds[2:])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

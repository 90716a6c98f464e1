"""Measures: numbers of a built network on a device, such as its latency."""

from __future__ import annotations

import copy
import sys
import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from optuna_nas.data.batches import map_tensors, tensors_of
from optuna_nas.training.device import choose_device
from optuna_nas.training.task import call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

WARM_UP = 2
"""Rounds that are not counted."""
SECONDS_BEFORE_BAR = 3.0
"""Waits shorter than this show no progress bar."""
clock: Callable[[], float] = time.perf_counter
"""Clock that times runs, in seconds."""


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
    function: Callable[[nn.Module, Any], float]
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

    def __call__(self, network: nn.Module, inputs: Any) -> float:
        """Measure a copy of a network on the measure's device.

        Args:
            network: Any module; it is not changed.
            inputs: Example inputs, shape (B, ...), or `Arguments` of such; `batch_size` of them are used, repeated if
                necessary.

        Raises:
            ValueError: The device does not exist.
        """
        device = choose_device(self.device)

        def repeated(value: Tensor) -> Tensor:
            repeats = -(-self.batch_size // len(value))
            return torch.cat([value] * repeats)[: self.batch_size].to(device)

        batch = map_tensors(inputs, repeated)
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
    return Measure(latency_name(choose_device(device), batch_size), _Latency(repeats), batch_size, device)


@dataclass(frozen=True)
class _Latency:
    """Function of `latency`; equal and picklable, as a lambda would not be."""

    repeats: int

    def __call__(self, network: nn.Module, inputs: Any) -> float:
        return measure_latency(network, inputs, self.repeats)


def latency_name(device: torch.device | str, batch_size: int) -> str:
    """Return the name under which trials and tables show a latency.

    Args:
        device: Where it is measured.
        batch_size: Number of inputs in the batch.

    Example:
        >>> from optuna_nas.networks.measures import latency_name
        >>> latency_name("cuda:1", 8)
        'latency_cuda_1_8'
    """
    return f"latency_{str(device).replace(':', '_')}_{batch_size}"


def measure_latency(network: nn.Module, inputs: Any, repeats: int = 20) -> float:
    """Return the median seconds of a forward pass without gradients, after two passes to warm up.

    Args:
        network: Any module on the device of `inputs`; it is measured in evaluation mode.
        inputs: Shape (B, ...), or `Arguments` of such tensors; the latency is that of the whole batch.
        repeats: Number of timed passes, at least 1.

    Raises:
        ValueError: `repeats` is below 1.

    Example:
        >>> import torch
        >>> from optuna_nas import measure_latency
        >>> 0 < measure_latency(torch.nn.Linear(4, 4), torch.zeros(2, 4), repeats=3) < 1
        True
    """
    training = network.training
    network.eval()
    device = next(tensors_of(inputs)).device
    (seconds,) = median_seconds([lambda: call(network, inputs)], device, repeats)
    network.train(training)
    return seconds


def median_seconds(
    runs: Sequence[Callable[[], object]], device: torch.device, repeats: int = 20, description: str = "Measuring"
) -> list[float]:
    """Return the median seconds of several functions, without gradients, after two rounds to warm up.

    The functions take turns, so that a machine that becomes slower meanwhile slows all of them alike. A wait of more
    than 3 seconds shows a progress bar, on a terminal only.

    Args:
        runs: Functions to time, such as forward passes.
        device: Device on which they compute; a GPU is waited for.
        repeats: Number of timed rounds, at least 1.
        description: Label of the progress bar.

    Raises:
        ValueError: `repeats` is below 1.

    Example:
        >>> import torch
        >>> from optuna_nas.networks.measures import median_seconds
        >>> matrix = torch.ones(4, 4)
        >>> seconds = median_seconds([lambda: matrix @ matrix, lambda: matrix + 1], matrix.device, repeats=3)
        >>> [value > 0 for value in seconds]
        [True, True]
    """
    if repeats < 1:
        raise ValueError(f"`repeats` must be at least 1 but got {repeats}.")
    seconds: list[list[float]] = [[] for _ in runs]
    with torch.inference_mode():
        for _ in _shown(WARM_UP + repeats, description):
            for run, taken in zip(runs, seconds, strict=True):
                _synchronize(device)
                start = clock()
                run()
                _synchronize(device)
                taken.append(clock() - start)
    return [median(taken[WARM_UP:]) for taken in seconds]


def _shown(n_rounds: int, description: str) -> Iterator[int]:
    """Yield the numbers of rounds; show a progress bar on a terminal once they have taken a while."""
    bar, started = None, time.monotonic()
    try:
        for number in range(n_rounds):
            if bar is None and time.monotonic() - started > SECONDS_BEFORE_BAR and sys.stderr and sys.stderr.isatty():
                from rich.console import Console
                from rich.progress import Progress

                # Drawn between rounds only: a thread that redraws would take its time from what is measured.
                bar = Progress(console=Console(stderr=True), auto_refresh=False)
                task = bar.add_task(description, total=n_rounds)
                bar.start()
            yield number
            if bar is not None:
                bar.update(task, completed=number + 1, refresh=True)
    finally:
        if bar is not None:
            bar.stop()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

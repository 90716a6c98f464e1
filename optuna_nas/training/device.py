"""Devices: choice, precision and memory."""

from __future__ import annotations

import os
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

DataLike = TypeVar("DataLike")


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Enable automatic mixed precision inside the block.

    Args:
        device: Device of the computation.
        precision: `bfloat16`, `float32`, or `auto` for bfloat16 on GPUs that support it.

    Example:
        >>> import torch
        >>> from optuna_nas.training.device import autocast
        >>> with autocast(torch.device("cpu"), "bfloat16"):
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.bfloat16
    """
    use_bfloat16 = precision == "bfloat16" or (
        precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    without_onednn = use_bfloat16 and device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    with torch.autocast(device.type, torch.bfloat16, enabled=use_bfloat16):
        if not without_onednn:
            yield
            return
        with _native_kernels:
            yield


@contextmanager
def own_default_device() -> Iterator[None]:
    """Let tensors without a device be made on the CPU inside the block, whatever `torch.set_default_device` says.

    Devices are chosen once, by arguments. Where the default is the CPU this does nothing, since PyTorch's own context
    costs time in every call of a function.

    Example:
        >>> import torch
        >>> from optuna_nas.training.device import own_default_device
        >>> with torch.device("meta"), own_default_device():
        ...     torch.zeros(1).device
        device(type='cpu')
    """
    if torch.get_default_device().type == "cpu":
        yield
        return
    with torch.device("cpu"):
        yield


class _NativeKernels:
    """Disables oneDNN while any thread is inside: its LSTM raises on a CPU without bfloat16; other layers avoid it."""

    def __init__(self) -> None:
        self._onednn: Any = torch.backends.mkldnn
        self._lock = Lock()
        self._inside = 0
        self._enabled = True

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._enabled = self._onednn.enabled
                self._onednn.enabled = False
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._onednn.enabled = self._enabled


_native_kernels = _NativeKernels()


@contextmanager
def seeded_globally(generator: torch.Generator) -> Iterator[None]:
    """Seed PyTorch's global random numbers inside the block, which layers such as dropout use; restored afterwards.

    Args:
        generator: Generator whose initial seed and device are taken.

    Example:
        >>> import torch
        >>> from optuna_nas.training.device import seeded_globally
        >>> drawn = []
        >>> for _ in range(2):
        ...     with seeded_globally(torch.Generator().manual_seed(0)):
        ...         drawn.append(torch.rand(1))
        >>> torch.equal(*drawn)
        True
    """
    on_cpu = generator.device.type == "cpu"
    with torch.random.fork_rng([] if on_cpu else [generator.device]):
        # `torch.manual_seed` seeds GPUs, too, and notes a traceback where there is none: a seventh of a small step.
        seed = torch.default_generator.manual_seed if on_cpu else torch.manual_seed
        seed(generator.initial_seed())
        yield


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that a GPU or the host ran out of memory.

    Example:
        >>> import torch
        >>> from optuna_nas.training.device import is_out_of_memory
        >>> is_out_of_memory(torch.OutOfMemoryError()), is_out_of_memory(ValueError())
        (True, False)
    """
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def release_memory(device: torch.device) -> None:
    """Release PyTorch's cached memory of a GPU; does nothing on other devices."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


GPU_SHARE = "OPTUNA_NAS_GPU_SHARE"
"""Environment variable with the fraction of a GPU that a worker may use, in (0, 1]."""


def choose_device(device: str) -> torch.device:
    """Return a torch device by name.

    Args:
        device: `auto` (a GPU if there is one), or the name of a torch device.

    Raises:
        ValueError: This machine has no such device.

    Example:
        >>> from optuna_nas.training.device import choose_device
        >>> choose_device("cpu")
        device(type='cpu')
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"`device` must be one of this machine but got {device!r} ({reason}); try 'auto'.") from None
    return torch.device(device)


def on_device(data: DataLike, device: torch.device) -> DataLike:
    """Return data whose batches come out on a device; data without a method `to` stay where they are."""
    move = getattr(data, "to", None)
    return data if move is None else cast("DataLike", move(device))


def gpu_share(device: torch.device) -> float:
    """Return the fraction of a GPU that trainings use: 0 on a CPU; on a GPU `OPTUNA_NAS_GPU_SHARE`, by default 1."""
    return float(os.environ.get(GPU_SHARE, "1")) if device.type == "cuda" else 0.0

"""Devices: which one trains, its precision, its memory."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar, cast

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

DataLike = TypeVar("DataLike")


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Run in bfloat16 where asked to, or where `auto` finds a GPU that supports it."""
    wanted = precision == "bfloat16" or (
        precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    with torch.autocast(device.type, torch.bfloat16, enabled=wanted):
        yield


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that a GPU or the host ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def release_memory(device: torch.device) -> None:
    """Give cached blocks back to the GPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


GPU_SHARE = "OPTUNA_NAS_GPU_SHARE"
"""Environment variable: share of its GPU that a worker has, in (0, 1]."""


def choose_device(device: str) -> torch.device:
    """Return the torch device of this name; `auto` is a GPU if there is one.

    Raises:
        ValueError: There is no such device here.
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
    """Return which share of a GPU trainings on a device have: 0 on a CPU, 1 unless a worker was told less."""
    return float(os.environ.get(GPU_SHARE, "1")) if device.type == "cuda" else 0.0

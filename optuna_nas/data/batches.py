"""Batches of any tensors: their size, and parts of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Inputs and targets of B examples.

    Args:
        inputs: Shape (B, ...); of images (B, C, H, W), normalised, float32.
        targets: Shape (B,) or (B, ...); of a classification labels, int64.
    """

    inputs: Tensor
    targets: Tensor


def tensors_of(batch: Any) -> Iterator[Tensor]:
    """Yield all tensors of a batch: a tensor, or nested tuples, lists and dictionaries of tensors.

    Example:
        >>> import torch
        >>> [tuple(tensor.shape) for tensor in tensors_of({"tokens": torch.zeros(4, 7), "labels": torch.zeros(4)})]
        [(4, 7), (4,)]
    """
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors_of(value)
    elif isinstance(batch, Sequence) and not isinstance(batch, str):
        for value in batch:
            yield from tensors_of(value)


def batch_length(batch: Any) -> int:
    """Return the number of examples in a batch: the length of its first tensor.

    Raises:
        ValueError: There is no tensor in it.
    """
    for tensor in tensors_of(batch):
        return len(tensor)
    raise ValueError(f"`batch` must hold a tensor but is a {type(batch).__name__}; return tensors from the data.")


def map_tensors(batch: Any, change: Any) -> Any:
    """Return a batch of the same structure with `change(tensor)` in place of every tensor."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: map_tensors(value, change) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(value, change) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(map_tensors(value, change) for value in batch)
    return batch


def split_batch(batch: Any, size: int) -> list[Any]:
    """Return the parts of a batch of at most `size` examples each, views of it."""
    starts = range(0, batch_length(batch), size)
    return [map_tensors(batch, lambda tensor, s=start: tensor[s : s + size]) for start in starts]


def every_nth(batch: Any, start: int, step: int) -> Any:
    """Return every `step`-th example from position `start` on: one rank's share of a batch."""
    return map_tensors(batch, lambda tensor: tensor[start::step])


def to_device(batch: Any, device: Any) -> Any:
    """Return a batch whose tensors are on a device."""
    return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))

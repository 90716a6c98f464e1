"""Batches: tensors, or nested tuples, lists and dictionaries of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Inputs and targets of B examples.

    Args:
        inputs: Shape (B, ...); images have shape (B, C, H, W) and are normalised float32.
        targets: Shape (B,) or (B, ...); labels of a classification are int64.

    Example:
        >>> import torch
        >>> from optuna_nas.data import Batch
        >>> inputs, targets = Batch(torch.zeros(4, 3, 32, 32), torch.tensor([0, 1, 2, 1]))
        >>> targets.shape
        torch.Size([4])
    """

    inputs: Tensor
    targets: Tensor


def tensors_of(batch: Any) -> Iterator[Tensor]:
    """Yield all tensors of a batch.

    Args:
        batch: A tensor, or nested tuples, lists and dictionaries of tensors.

    Example:
        >>> import torch
        >>> from optuna_nas.data.batches import tensors_of
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
    """Return the number of examples of a batch, which is the length of its first tensor.

    Args:
        batch: A tensor, or nested tuples, lists and dictionaries of tensors.

    Raises:
        ValueError: The batch has no tensor.

    Example:
        >>> import torch
        >>> from optuna_nas.data.batches import batch_length
        >>> batch_length({"tokens": torch.zeros(4, 7), "labels": torch.zeros(4)})
        4
    """
    for tensor in tensors_of(batch):
        return len(tensor)
    raise ValueError(f"`batch` must hold a tensor but is a {type(batch).__name__}; return tensors from the data.")


def map_tensors(batch: Any, change: Any) -> Any:
    """Return a batch of the same structure with `change(tensor)` for every tensor.

    Example:
        >>> import torch
        >>> from optuna_nas.data.batches import map_tensors
        >>> map_tensors((torch.ones(2), {"weight": torch.ones(1)}), lambda tensor: 2 * tensor)
        (tensor([2., 2.]), {'weight': tensor([2.])})
    """
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
    """Return views of a batch with at most `size` examples each.

    Example:
        >>> import torch
        >>> from optuna_nas.data.batches import split_batch
        >>> split_batch([torch.arange(3)], size=2)
        [[tensor([0, 1])], [tensor([2])]]
    """
    starts = range(0, batch_length(batch), size)
    return [map_tensors(batch, lambda tensor, s=start: tensor[s : s + size]) for start in starts]


def every_nth(batch: Any, start: int, step: int) -> Any:
    """Return every `step`-th example from position `start` on, which is one rank's part of a batch.

    Example:
        >>> import torch
        >>> from optuna_nas.data.batches import every_nth
        >>> every_nth([torch.arange(5)], start=1, step=2)
        [tensor([1, 3])]
    """
    return map_tensors(batch, lambda tensor: tensor[start::step])


def to_device(batch: Any, device: Any) -> Any:
    """Return a batch with its tensors on a device.

    Example:
        >>> import torch
        >>> from optuna_nas.data.batches import to_device
        >>> to_device([torch.zeros(2)], "meta")[0].device
        device(type='meta')
    """
    return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))

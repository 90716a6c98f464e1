"""Process groups: ranks that train one network together, as `torchrun` starts them. A single process has one rank.

Rank 0 asks for trials, writes files and reports. It sends JSON and plain tensors to the other ranks, so nothing is
unpickled.

Ranks that wait for each other would hang for ever if one of them failed. Therefore ranks vote before they exchange
tensors, nothing between the vote and the exchange can fail, and a rank that fails elsewhere reports it in its next
vote, see `Ranks.together`.
"""

from __future__ import annotations

import gc
import json
import os
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


PATIENCE = timedelta(days=30)
"""Timeout for another rank. It is long, since rank 0 may wait for a sampler or a database, and since `torchrun` ends
all ranks if one dies."""
AGREED = "agreed_among_ranks"
"""Attribute of exceptions that all ranks have raised."""

Packed = list[tuple[Tensor, list[Tensor]]]
"""Concatenated copies of tensors, and the tensors."""


class RankFailed(RuntimeError):
    """Raised if another rank failed in a common operation."""


class RankLost(RuntimeError):
    """Raised if the process of another rank has ended, after which no exchange is possible."""


@dataclass(frozen=True)
class Votes:
    """Result of a vote: what at least one rank asked for.

    Args:
        stop: Whether to stop the training.
        save: Whether to write a checkpoint.
    """

    stop: bool = False
    save: bool = False


@dataclass(frozen=True)
class Ranks:
    """Rank of this process in a process group. All ranks must call every method; a single process returns at once.

    Args:
        rank: Number of this process, from 0.
        size: Number of processes.

    Example:
        >>> from optuna_nas.training.process_group import Ranks
        >>> Ranks().any(True), Ranks().broadcast({"epoch": 3})
        (True, {'epoch': 3})
    """

    rank: int = 0
    size: int = 1

    def vote(self, *, stop: bool = False, save: bool = False) -> Votes:
        """Return what at least one rank asks for.

        Raises:
            RankFailed: Another rank failed.
            torch.OutOfMemoryError: Another rank ran out of memory.
            RankLost: The process of another rank has ended; all methods may raise this.
        """
        if self.size == 1:
            return Votes(stop, save)
        return self._vote(None, stop, save)

    def any(self, flag: bool) -> bool:
        """Return whether a flag is set on at least one rank."""
        return self.vote(stop=flag).stop

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise on all ranks at the end of the block if one rank fails inside it.

        Blocks may be nested. A rank that fails skips its inner blocks and votes; its vote is counted in the next vote
        of the other ranks. An exception that all ranks have raised passes through outer blocks without another vote.
        """
        if self.size == 1:
            yield
            return
        try:
            yield
        except Exception as error:
            if not is_agreed(error) and not isinstance(error, RankLost):
                self._vote(error)
            raise
        self._vote(None)

    def _vote(self, error: Exception | None, stop: bool = False, save: bool = False) -> Votes:
        severity = 0 if error is None else 1 if isinstance(error, torch.OutOfMemoryError) else 2
        votes = torch.tensor([severity, stop, save], dtype=torch.int64)
        with _raising_rank_lost():
            dist.all_reduce(votes, dist.ReduceOp.MAX)
        worst, wants_stop, wants_save = votes.tolist()
        if worst == 0:
            return Votes(bool(wants_stop), bool(wants_save))
        if error is None or severity < worst:
            # All ranks must raise the same type, since the caller decides by it how to go on.
            if worst == 1:
                error = torch.OutOfMemoryError("Another rank ran out of memory.")
            else:
                error = RankFailed("Another rank failed; its output has the reason.")
        error.__dict__[AGREED] = True
        raise error

    def broadcast(self, value: Any = None) -> Any:
        """Return the JSON value of rank 0 on all ranks; values of other ranks are ignored."""
        if self.size == 1:
            return value
        text = bytearray(json.dumps(value).encode()) if self.rank == 0 else bytearray()
        length = torch.tensor([len(text)])
        with _raising_rank_lost():
            dist.broadcast(length, 0)
            data = torch.frombuffer(text, dtype=torch.uint8) if text else torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(data, 0)
        return json.loads(bytes(data.tolist()))

    def share(self, tensors: Mapping[str, Tensor], description: Any, device: torch.device) -> tuple[Any, Any]:
        """Return the tensors and the description of rank 0 on all ranks.

        Args:
            tensors: Tensors by name; those of other ranks are ignored.
            description: JSON value; that of other ranks is ignored.
            device: Device for tensors that are on a GPU of rank 0; others are on the CPU.
        """
        if self.size == 1:
            return dict(tensors), description
        rows = [
            [name, str(tensor.dtype), list(tensor.shape), tensor.device.type != "cpu"]
            for name, tensor in tensors.items()
        ]
        rows, description = self.broadcast([rows, description])
        with self.together():
            if self.rank == 0:
                shared = {name: tensor.detach() for name, tensor in tensors.items()}
            else:
                shared = {
                    name: torch.empty(
                        shape,
                        dtype=getattr(torch, dtype.removeprefix("torch.")),
                        device=device if on_device else "cpu",
                    )
                    for name, dtype, shape, on_device in rows
                }
            packed = pack(list(shared.values()))
        for flat, alike in packed:
            with _raising_rank_lost():
                dist.broadcast(flat, 0)
            if self.rank != 0:
                _unpack(flat, alike)
        return shared, description

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace every tensor by its sum over all ranks, bitwise equal on each."""
        if self.size == 1:
            return
        with self.together():
            packed = pack(tensors)
        self.sum_packed(packed)

    def sum_packed(self, packed: Packed) -> None:
        """Replace packed tensors by their sums over all ranks; without the vote of `sum_`."""
        for flat, alike in packed:
            with _raising_rank_lost():
                dist.all_reduce(flat)
            _unpack(flat, alike)

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replace every tensor by its mean over all ranks."""
        if self.size == 1:
            return
        self.sum_(tensors)
        for tensor in tensors:
            tensor.div_(self.size)


def pack(tensors: Sequence[Tensor]) -> Packed:
    """Return concatenated copies of tensors, one per dtype and device, since every piece costs a round trip."""
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    return [(torch.cat([tensor.detach().reshape(-1) for tensor in alike]), alike) for alike in groups.values()]


def _unpack(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    for part, tensor in zip(flat.split([tensor.numel() for tensor in tensors]), tensors, strict=True):
        tensor.copy_(part.view(tensor.shape))


@contextmanager
def _raising_rank_lost() -> Iterator[None]:
    """Turn the errors of a broken connection into `RankLost`."""
    try:
        yield
    except RuntimeError as error:
        raise RankLost("Another rank has ended; its output, or that of torchrun, has the reason.") from error


def is_agreed(error: BaseException) -> bool:
    """Return whether all ranks have raised an exception."""
    return bool(error.__dict__.get(AGREED))


def current_ranks() -> Ranks:
    """Return the rank of this process; rank 0 of 1 without a process group.

    Example:
        >>> from optuna_nas.training.process_group import current_ranks
        >>> current_ranks()
        Ranks(rank=0, size=1)
    """
    if not dist.is_available() or not dist.is_initialized():
        return Ranks()
    return Ranks(dist.get_rank(), dist.get_world_size())


@contextmanager
def joined() -> Iterator[Ranks]:
    """Create a process group inside the block if `torchrun` started this process; each rank uses a GPU of its own.

    An existing process group is used, and not destroyed.

    Example:
        >>> from optuna_nas.training.process_group import joined
        >>> with joined() as ranks:
        ...     ranks.size
        1
    """
    existing = current_ranks()
    by_torchrun = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    if existing.size > 1 or not by_torchrun or int(os.environ["WORLD_SIZE"]) < 2:
        yield existing
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    gpus = torch.cuda.device_count()
    backend = "gloo"
    if gpus > 0:
        torch.cuda.set_device(local_rank % gpus)
        if int(os.environ.get("LOCAL_WORLD_SIZE", str(local_rank + 1))) <= gpus:
            backend = "cpu:gloo,cuda:nccl"  # votes stay on the CPU; NCCL needs a GPU for each rank
    # Imported before the group exists: its functions have the current group as a default, and would never release it.
    import_module("torch.distributed.nn.functional")
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield current_ranks()
    finally:
        dist.destroy_process_group()
        # The threads of a group end when nothing refers to it, so reference cycles (of exceptions, for example) are
        # collected. A thread that still releases a tensor while the interpreter shuts down aborts the process.
        gc.collect()

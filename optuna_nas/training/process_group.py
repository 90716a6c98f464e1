"""Processes that train one network together, as `torchrun` starts them; one process alone is a world of one rank.

Rank 0 is the one that speaks to everybody else: it asks for trials, writes files, reports. What it says to the other
ranks travels as JSON and plain tensors, so nobody unpickles anything.

Ranks that wait for each other hang for ever where one of them has left its way. Hence the one rule of this file: before
ranks exchange tensors they vote, and between the vote and the exchange nothing can fail; a rank that fails elsewhere
tells so by its next vote, see `Ranks.together`.
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
"""That a rank waits for another: rank 0 may wait for a sampler or a database for long, and `torchrun` ends all ranks
when one has died."""
AGREED = "agreed_among_ranks"
"""Attribute of an exception that all ranks know of."""

Packed = list[tuple[Tensor, list[Tensor]]]
"""Copies of tensors one after the other, and the tensors."""


class RankFailed(RuntimeError):
    """Another rank failed in what all do together."""


class RankLost(RuntimeError):
    """Another rank is gone, and this one can do nothing any more."""


@dataclass(frozen=True)
class Votes:
    """What at least one rank wants."""

    stop: bool = False
    save: bool = False


@dataclass(frozen=True)
class Ranks:
    """Which of several processes this is. Every method must be called by all ranks; alone, none costs anything.

    Args:
        rank: Number of this process, from 0.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    def vote(self, *, stop: bool = False, save: bool = False) -> Votes:
        """Return what at least one rank wants.

        Raises:
            RankFailed: Another rank failed meanwhile.
            torch.OutOfMemoryError: Another rank's memory did not suffice.
            RankLost: Another rank is gone; so may do all methods.
        """
        if self.size == 1:
            return Votes(stop, save)
        return self._vote(None, stop, save)

    def any(self, flag: bool) -> bool:
        """Tell whether a flag is set on at least one rank."""
        return self.vote(stop=flag).stop

    @contextmanager
    def together(self) -> Iterator[None]:
        """Do what may fail on one rank: where one does, all leave the block by an exception.

        Blocks may be nested, and the inner ones and votes need not be the same on a rank that fails: it casts its vote
        for the others' next one. An exception that all know of passes through outer blocks.
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
        ours = 0 if error is None else 1 if isinstance(error, torch.OutOfMemoryError) else 2
        votes = torch.tensor([ours, stop, save], dtype=torch.int64)
        with _heard():
            dist.all_reduce(votes, dist.ReduceOp.MAX)
        worst, wants_stop, wants_save = votes.tolist()
        if worst == 0:
            return Votes(bool(wants_stop), bool(wants_save))
        if error is None or ours < worst:
            # All must raise the same kind, since what follows depends on it.
            if worst == 1:
                error = torch.OutOfMemoryError("The memory of another rank did not suffice.")
            else:
                error = RankFailed("Another rank failed; its own output says why.")
        error.__dict__[AGREED] = True
        raise error

    def broadcast(self, value: Any = None) -> Any:
        """Return what rank 0 says, a value that JSON knows; the others' values do not matter."""
        if self.size == 1:
            return value
        text = bytearray(json.dumps(value).encode()) if self.rank == 0 else bytearray()
        length = torch.tensor([len(text)])
        with _heard():
            dist.broadcast(length, 0)
            data = torch.frombuffer(text, dtype=torch.uint8) if text else torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(data, 0)
        return json.loads(bytes(data.tolist()))

    def share(self, tensors: Mapping[str, Tensor], description: Any, device: torch.device) -> tuple[Any, Any]:
        """Return rank 0's tensors, a dictionary, and its description, a value that JSON knows.

        Tensors that rank 0 has on a GPU come to `device`, others to the CPU.
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
                found = {name: tensor.detach() for name, tensor in tensors.items()}
            else:
                found = {
                    name: torch.empty(
                        shape,
                        dtype=getattr(torch, dtype.removeprefix("torch.")),
                        device=device if on_device else "cpu",
                    )
                    for name, dtype, shape, on_device in rows
                }
            packed = pack(list(found.values()))
        for flat, alike in packed:
            with _heard():
                dist.broadcast(flat, 0)
            if self.rank != 0:
                _unpack(flat, alike)
        return found, description

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace every tensor by its sum over all ranks, the same to the bit on each."""
        if self.size == 1:
            return
        with self.together():
            packed = pack(tensors)
        self.sum_packed(packed)

    def sum_packed(self, packed: Packed) -> None:
        """Do as `sum_` for what was packed before the last vote; saves a vote."""
        for flat, alike in packed:
            with _heard():
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
    """Return copies of tensors in as few pieces as possible, since every piece costs a round."""
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    return [(torch.cat([tensor.detach().reshape(-1) for tensor in alike]), alike) for alike in groups.values()]


def _unpack(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    for part, tensor in zip(flat.split([tensor.numel() for tensor in tensors]), tensors, strict=True):
        tensor.copy_(part.view(tensor.shape))


@contextmanager
def _heard() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankLost("Another rank is gone; its own output, or that of torchrun, says why.") from error


def is_agreed(error: BaseException) -> bool:
    """Tell whether all ranks know of an exception."""
    return bool(error.__dict__.get(AGREED))


def current_ranks() -> Ranks:
    """Return which rank this process is; the only one, where no process group was made."""
    if not dist.is_available() or not dist.is_initialized():
        return Ranks()
    return Ranks(dist.get_rank(), dist.get_world_size())


@contextmanager
def joined() -> Iterator[Ranks]:
    """Meet the other ranks inside the block, where `torchrun` says that there are some; each on a GPU of its own.

    Where a process group exists already, it is used, and left as it is.
    """
    there = current_ranks()
    told = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    if there.size > 1 or not told or int(os.environ["WORLD_SIZE"]) < 2:
        yield there
        return
    place = int(os.environ.get("LOCAL_RANK", "0"))
    gpus = torch.cuda.device_count()
    backend = "gloo"
    if gpus > 0:
        torch.cuda.set_device(place % gpus)
        if int(os.environ.get("LOCAL_WORLD_SIZE", str(place + 1))) <= gpus:
            backend = "cpu:gloo,cuda:nccl"  # votes stay on the CPU; NCCL wants a GPU for each rank
    # Its functions take the group that exists when they are loaded as their default, and so keep it for ever.
    import_module("torch.distributed.nn.functional")
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield current_ranks()
    finally:
        dist.destroy_process_group()
        # Its threads end when nothing holds it any more, not even a cycle (an exception's, say). One that still has a
        # tensor to give back while the interpreter ends aborts the process.
        gc.collect()

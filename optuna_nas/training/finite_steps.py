"""Steps of optimisers that are left out where numbers are not finite, without waiting for a GPU to say so.

A GPU works through what it was given while the host prepares more; a host that asks it for a number after every step
makes it wait instead. So a GPU decides by itself whether a step is made, and the host reads later what it decided.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable


DECIDING = frozenset({"cuda"})
"""Types of devices that decide by themselves; of others, the host knows at once."""
MOST_PENDING = 32
"""Steps that the host may be ahead."""


def fused(parameters: Iterable[Tensor]) -> bool | None:
    """Return the argument `fused` of an optimiser: only its kernels can leave a step out."""
    return True if all(parameter.device.type in DECIDING for parameter in parameters) else None


def step_where(finite: Tensor, *optimizers: torch.optim.Optimizer) -> None:
    """Make a step of each optimiser if `finite`, a boolean scalar on the device of its parameters, is true.

    The host waits only for optimisers that are not fused.
    """
    if finite.device.type in DECIDING and all(optimizer.defaults.get("fused") for optimizer in optimizers):
        for optimizer in optimizers:
            _fill_momentum(optimizer)
            optimizer.found_inf = finite.logical_not().float()  # type: ignore[attr-defined]  # as GradScaler does
            optimizer.step()
    elif bool(finite):
        for optimizer in optimizers:
            optimizer.found_inf = None  # type: ignore[attr-defined]
            optimizer.step()


def _fill_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give parameters that move for the first time a momentum of zero, which changes no first step undampened.

    A fused SGD makes it for all or for none at once, where a sampled path moves some of the parameters; and it takes it
    for made in a first step that was left out.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            if parameter.grad is not None and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


class Verdicts:
    """Whether steps were made, in their order: at once, or from a GPU as soon as it has come so far."""

    def __init__(self) -> None:
        self._pending: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def put(self, finite: Tensor) -> None:
        """Remember to ask for a boolean scalar."""
        if finite.device.type != "cuda":
            self._pending.append((finite, None))
            return
        told = torch.empty((), dtype=torch.bool, pin_memory=True)
        told.copy_(finite, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(finite.device))
        self._pending.append((told, event))

    def take(self, wait: bool = False) -> list[bool]:
        """Return what is known and was not taken yet; with `wait`, of all steps."""
        known = []
        while self._pending and (wait or len(self._pending) > MOST_PENDING or self._is_known(self._pending[0][1])):
            told, event = self._pending.popleft()
            if event is not None:
                event.synchronize()
            known.append(bool(told))
        return known

    @staticmethod
    def _is_known(event: torch.cuda.Event | None) -> bool:
        return event is None or event.query()

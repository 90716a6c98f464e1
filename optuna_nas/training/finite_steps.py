"""Skip optimizer steps with non-finite gradients, without a host-device synchronisation.

Reading a number from a GPU after every step makes the host wait until the GPU has computed it, and then makes the GPU
wait for new kernels. Here the GPU decides by itself whether a step is applied, and the host reads the decision later.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable


DECIDING = frozenset({"cuda"})
"""Types of devices that decide by themselves; on others the host reads the number at once."""
MAX_PENDING = 32
"""Maximum number of steps that the host may be ahead of the GPU."""


def fused(parameters: Iterable[Tensor]) -> bool | None:
    """Return the argument `fused` of an optimizer, since only fused kernels can skip a step."""
    return True if all(parameter.device.type in DECIDING for parameter in parameters) else None


def step_where(finite: Tensor, *optimizers: torch.optim.Optimizer) -> None:
    """Apply a step of each optimizer if `finite` is true.

    The host waits for the device only if an optimizer is not fused.

    Args:
        finite: Boolean scalar on the device of the parameters.
        *optimizers: Optimizers with gradients.

    Example:
        >>> import torch
        >>> from optuna_nas.training.finite_steps import step_where
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = torch.optim.SGD([weight], lr=0.5)
        >>> weight.grad = torch.ones(1)
        >>> step_where(torch.tensor(False), optimizer)
        >>> step_where(torch.tensor(True), optimizer)
        >>> weight.item()
        0.5
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
    """Initialise missing momentum buffers with zeros, which does not change a first step without dampening.

    A fused SGD expects the buffers of all parameters or of none, but a sampled path gives gradients to some of them. It
    also counts a skipped first step as one that has initialised the buffers.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            if parameter.grad is not None and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


class Verdicts:
    """Queue of decisions whether steps were applied, read from a GPU as soon as it has made them.

    Example:
        >>> import torch
        >>> from optuna_nas.training.finite_steps import Verdicts
        >>> verdicts = Verdicts()
        >>> verdicts.put(torch.tensor(True))
        >>> verdicts.put(torch.tensor(False))
        >>> verdicts.take()
        [True, False]
    """

    def __init__(self) -> None:
        self._pending: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def put(self, finite: Tensor) -> None:
        """Append a decision, a boolean scalar on the device that makes it."""
        if finite.device.type != "cuda":
            self._pending.append((finite, None))
            return
        verdict = torch.empty((), dtype=torch.bool, pin_memory=True)
        verdict.copy_(finite, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(finite.device))
        self._pending.append((verdict, event))

    def take(self, wait: bool = False) -> list[bool]:
        """Return and remove the decisions that are available, in the order of the steps.

        Args:
            wait: Wait for all decisions.
        """
        verdicts = []
        while self._pending and (wait or len(self._pending) > MAX_PENDING or self._is_ready(self._pending[0][1])):
            verdict, event = self._pending.popleft()
            if event is not None:
                event.synchronize()
            verdicts.append(bool(verdict))
        return verdicts

    @staticmethod
    def _is_ready(event: torch.cuda.Event | None) -> bool:
        return event is None or event.query()

"""Gradients of choices at the weights after one more step of training (DARTS, Liu et al. 2019, eq. 7 and 8)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


DIFFERENCE = 0.01
"""How far, as a norm, the weights are moved to see how the logits' gradient changes (Liu et al. 2019, appendix)."""


class LossAt(Protocol):
    """The loss of a batch at given weights."""

    def __call__(self, batch: Any, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the loss, differentiable in the weights and in the logits."""


def gradients_ahead(
    loss: LossAt,
    weights: Mapping[str, Tensor],
    logits: Sequence[Tensor],
    choices: Any,
    train: Any,
    *,
    rate: float,
    weight_decay: float,
    velocity: Mapping[str, Tensor] | None = None,
) -> list[Tensor]:
    """Return the gradient of the logits at the weights after one step of SGD.

    The step is `w - rate * (velocity + gradient + weight_decay * w)`. The paper's has no velocity; the code of its
    authors takes the momentum buffers times the momentum, and so do users of HM-NAS who follow it.

    Args:
        loss: Loss of a batch at given weights.
        weights: Weights by name.
        logits: What the gradient is taken of.
        choices: Batch on which the logits are judged.
        train: Batch of the weights' step.
        rate: Learning rate of that step.
        weight_decay: Weight decay of that step.
        velocity: What momentum adds to the gradients, by name; those without an entry have none.
    """

    def gradients(values: Mapping[str, Tensor], batch: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
        slopes = torch.autograd.grad(loss(batch, values), inputs, allow_unused=True)
        return [torch.zeros_like(w) if g is None else g for w, g in zip(inputs, slopes, strict=True)]

    slope = gradients(weights, train, list(weights.values()))
    steps = {name: g + weight_decay * weight for (name, weight), g in zip(weights.items(), slope, strict=True)}
    for name, moving in (velocity or {}).items():
        steps[name] = steps[name] + moving
    ahead = {name: (weight - rate * steps[name]).detach().requires_grad_() for name, weight in weights.items()}
    both = gradients(ahead, choices, [*logits, *ahead.values()])
    direct, of_weights = both[: len(logits)], both[len(logits) :]
    size = DIFFERENCE / nn.utils.get_total_norm(of_weights).clamp_min(1e-12)
    sides = []
    for sign in (1, -1):
        moved = {n: (w + sign * size * g).detach() for (n, w), g in zip(weights.items(), of_weights, strict=True)}
        sides.append(gradients(moved, train, logits))
    return [d - rate * (up - down) / (2 * size) for d, up, down in zip(direct, *sides, strict=True)]

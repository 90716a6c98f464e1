"""What an op or a network costs, from its shapes alone.

Formulas: SNAS (Xie et al. 2019, arXiv 1812.09926), appendix F. Multiply-adds count convolutions and linear layers, as
NAS-Bench-201's own counter does; memory access counts the elements read and written by every op, plus its weights.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

Shape = tuple[int, int, int]
"""Channels, height, width of a feature map."""


class Site(NamedTuple):
    """Where an op stands: all that its module and its cost depend on.

    `affine` tells whether batch norms of ops and preprocessing learn scale and shift; `pool_norm` whether a pool is
    followed by a batch norm (as in DARTS' search network).
    """

    in_shape: Shape
    out_shape: Shape
    stride: int = 1
    affine: bool = True
    pool_norm: bool = False

    @property
    def in_channels(self) -> int:
        """Channels that come in."""
        return self.in_shape[0]

    @property
    def out_channels(self) -> int:
        """Channels that go out."""
        return self.out_shape[0]


@dataclass(frozen=True)
class Cost:
    """Parameters, multiply-adds and memory access (elements) of one forward pass of one image."""

    params: int = 0
    multiply_adds: int = 0
    memory_access: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.params + other.params,
            self.multiply_adds + other.multiply_adds,
            self.memory_access + other.memory_access,
        )

    def __sub__(self, other: Cost) -> Cost:
        return self + other.times(-1)

    def times(self, factor: int) -> Cost:
        """Return the cost of `factor` copies."""
        return Cost(factor * self.params, factor * self.multiply_adds, factor * self.memory_access)


COSTS = tuple(field.name for field in fields(Cost))
"""Names of the costs, in their order."""


def convolution_cost(
    in_shape: Shape, out_shape: Shape, kernel: tuple[int, int], groups: int = 1, bias: bool = False
) -> Cost:
    """Return the cost of one convolution between two feature maps (SNAS, appendix F).

    Multiply-adds are `H W k k I O / groups` on the *output's* height and width; memory access is what is read, what is
    written and the weights.
    """
    in_channels, in_height, in_width = in_shape
    out_channels, out_height, out_width = out_shape
    weights = kernel[0] * kernel[1] * in_channels * out_channels // groups
    return Cost(
        params=weights + (out_channels if bias else 0),
        multiply_adds=out_height * out_width * weights,
        memory_access=in_channels * in_height * in_width + out_channels * out_height * out_width + weights,
    )


def norm_cost(channels: int, affine: bool) -> Cost:
    """Return the parameters of a batch norm; its arithmetic is folded into its convolution and not counted."""
    return Cost(params=2 * channels if affine else 0)


def elementwise_cost(in_shape: Shape, out_shape: Shape) -> Cost:
    """Return the memory access of an op without weights: a pool, a skip."""
    read = in_shape[0] * in_shape[1] * in_shape[2]
    return Cost(memory_access=read + out_shape[0] * out_shape[1] * out_shape[2])


def linear_cost(in_features: int, out_features: int) -> Cost:
    """Return the cost of a linear layer with bias."""
    weights = in_features * out_features
    return Cost(weights + out_features, weights, weights + in_features + out_features)


def anytime_accuracy(costs: Sequence[float], accuracies: Sequence[float], budget: float) -> float:
    """Return the mean accuracy over all budgets up to `budget`: the area under the curve (GHN, section 5.2).

    For each budget the latest exit within it answers; where there is none, nothing is right. A network with one exit
    of cost c and accuracy a comes to `a * (1 - c / budget)`.

    Args:
        costs: Multiply-adds up to every exit, not falling.
        accuracies: Of the exits, fractions.
        budget: Largest number of multiply-adds, positive.
    """
    ends = [min(cost, budget) for cost in [*costs[1:], budget]]
    starts = [min(cost, budget) for cost in costs]
    return sum(a * (end - start) for a, start, end in zip(accuracies, starts, ends, strict=True)) / budget

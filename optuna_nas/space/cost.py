"""Cost of ops and networks, computed from shapes.

Formulas: SNAS (Xie et al. 2019, arXiv 1812.09926), appendix F. Multiply-adds (MACs) are those of convolutions and
linear layers, as in NAS-Bench-201. Memory access counts the elements that every op reads and writes, plus its weights.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from optuna_nas.space.architecture import Architecture
    from optuna_nas.space.base import Space

Shape = tuple[int, int, int]
"""Shape (channels, height, width) of a feature map."""


class Site(NamedTuple):
    """Shapes and settings of an op at its place in a network; its module and its cost depend on nothing else.

    Args:
        in_shape: Shape (channels, height, width) of one input.
        out_shape: Shape (channels, height, width) of the output.
        stride: Stride of the op; height and width are divided by it, rounded up.
        affine: Whether batch norms of ops and preprocessing learn scale and shift.
        pool_norm: Whether a pool is followed by a batch norm, as in DARTS' search network.

    Example:
        >>> from optuna_nas.networks import build_op
        >>> from optuna_nas.space import Site
        >>> site = Site(in_shape=(16, 32, 32), out_shape=(32, 16, 16), stride=2)
        >>> sum(weight.numel() for weight in build_op("nor_conv_3x3", site).parameters())
        4672
    """

    in_shape: Shape
    out_shape: Shape
    stride: int = 1
    affine: bool = True
    pool_norm: bool = False

    @property
    def in_channels(self) -> int:
        """Number of input channels."""
        return self.in_shape[0]

    @property
    def out_channels(self) -> int:
        """Number of output channels."""
        return self.out_shape[0]


@dataclass(frozen=True)
class Cost:
    """Cost of a forward pass of one image.

    Args:
        params: Number of parameters.
        multiply_adds: Multiply-adds (MACs) of convolutions and linear layers.
        memory_access: Elements read and written, plus weights.

    Example:
        >>> from optuna_nas import Cost
        >>> Cost(params=10, multiply_adds=100) + Cost(params=5).times(2)
        Cost(params=20, multiply_adds=100, memory_access=0)
    """

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
        """Return the cost multiplied by `factor`."""
        return Cost(factor * self.params, factor * self.multiply_adds, factor * self.memory_access)


COSTS = tuple(field.name for field in fields(Cost))
"""Names of the costs: `params`, `multiply_adds`, `memory_access`."""


@runtime_checkable
class PredictedCost(Protocol):
    """A number of an architecture that is known without building it, smaller is better, such as a `LatencyTable`.

    Example:
        >>> from dataclasses import dataclass
        >>> from optuna_nas import Architecture, Space, nasbench201_space
        >>> from optuna_nas.space import PredictedCost
        >>> @dataclass(frozen=True)
        ... class Convolutions:
        ...     space: Space
        ...     name: str = "convolutions"
        ...
        ...     def of(self, architecture: Architecture) -> float:
        ...         return float(architecture.summary.count("conv"))
        >>> convolutions = Convolutions(nasbench201_space())
        >>> convolutions.of(convolutions.space.architecture({"cell_0_3": ["nor_conv_1x1"]}))
        1.0
        >>> isinstance(convolutions, PredictedCost)
        True
    """

    @property
    def name(self) -> str:
        """Name in trials and tables, a Python identifier."""

    @property
    def space(self) -> Space:
        """Space whose architectures have this cost, in whatever skeleton."""

    def of(self, architecture: Architecture) -> float:
        """Return the cost of an architecture."""


def check_predicted(argument: str, costs: Iterable[object], space: Space) -> None:
    """Check that predicted costs are of a space and differ in their names.

    Args:
        argument: Name of the argument that holds them.
        costs: Predicted costs; others are passed over.
        space: Space of the architectures whose costs they are to predict.

    Raises:
        ValueError: One is of another space, or two have one name.
    """
    names = set(COSTS)
    for cost in costs:
        if not isinstance(cost, PredictedCost):
            continue
        if cost.space.core != space.core:
            raise ValueError(f"`{argument}` must be of the space in use but {cost.name!r} is of another.")
        if cost.name in names:
            raise ValueError(f"`{argument}` must differ in their names but {cost.name!r} stands twice.")
        names.add(cost.name)


def convolution_cost(
    in_shape: Shape, out_shape: Shape, kernel: tuple[int, int], groups: int = 1, bias: bool = False
) -> Cost:
    """Return the cost of a convolution (SNAS, Xie et al. 2019, appendix F).

    With I input and O output channels, a k x k kernel and an output of H x W, it has `k k I O / groups` weights and
    `H W k k I O / groups` multiply-adds. Memory access is input + output + weights.

    Args:
        in_shape: Shape (channels, height, width) of the input.
        out_shape: Shape (channels, height, width) of the output.
        kernel: Height and width of the kernel.
        groups: Number of groups; `in_shape[0]` for a depthwise convolution.
        bias: Whether every output channel has a bias.

    Example:
        >>> from optuna_nas.space import convolution_cost
        >>> convolution_cost((3, 32, 32), (16, 32, 32), (3, 3))
        Cost(params=432, multiply_adds=442368, memory_access=19888)
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
    """Return the cost of a batch norm: its parameters only, since its arithmetic can be folded into a convolution.

    Args:
        channels: Number of channels.
        affine: Whether it learns scale and shift.

    Example:
        >>> from optuna_nas.space import norm_cost
        >>> norm_cost(16, affine=True)
        Cost(params=32, multiply_adds=0, memory_access=0)
    """
    return Cost(params=2 * channels if affine else 0)


def elementwise_cost(in_shape: Shape, out_shape: Shape) -> Cost:
    """Return the cost of an op without weights, such as a pool or a skip: its memory access only.

    Args:
        in_shape: Shape (channels, height, width) of the input.
        out_shape: Shape (channels, height, width) of the output.

    Example:
        >>> from optuna_nas.space import elementwise_cost
        >>> elementwise_cost((16, 8, 8), (16, 4, 4)).memory_access
        1280
    """
    read = in_shape[0] * in_shape[1] * in_shape[2]
    return Cost(memory_access=read + out_shape[0] * out_shape[1] * out_shape[2])


def linear_cost(in_features: int, out_features: int) -> Cost:
    """Return the cost of a linear layer with bias.

    Args:
        in_features: Size of the input.
        out_features: Size of the output.

    Example:
        >>> from optuna_nas.space import linear_cost
        >>> linear_cost(64, 10)
        Cost(params=650, multiply_adds=640, memory_access=714)
    """
    weights = in_features * out_features
    return Cost(weights + out_features, weights, weights + in_features + out_features)


def anytime_accuracy(costs: Sequence[float], accuracies: Sequence[float], budget: float) -> float:
    """Return the accuracy of anytime prediction: the mean over all budgets from 0 to `budget` (GHN, section 5.2).

    A prediction within a budget is that of the last exit that fits; without one, it counts as wrong. A network with one
    exit of cost c and accuracy a has `a * (1 - c / budget)`.

    Args:
        costs: Multiply-adds up to every exit, in ascending order.
        accuracies: Accuracies of the exits, fractions in [0, 1].
        budget: Maximum number of multiply-adds of a prediction, positive.

    Example:
        >>> from optuna_nas import anytime_accuracy
        >>> anytime_accuracy([20, 60], [0.5, 0.9], budget=100)
        0.56
    """
    ends = [min(cost, budget) for cost in [*costs[1:], budget]]
    starts = [min(cost, budget) for cost in costs]
    return sum(a * (end - start) for a, start, end in zip(accuracies, starts, ends, strict=True)) / budget

"""Table of ops: their names, costs and properties in a graph.

The modules are in `optuna_nas.networks.ops`. This table imports no torch, since spaces, costs and drawings need none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from optuna_nas.space.cost import (
    Cost,
    Shape,
    Site,
    convolution_cost,
    elementwise_cost,
    linear_cost,
    norm_cost,
)

STRUCTURAL = frozenset({"input", "sum", "concat"})
"""Nodes of a graph that are not ops."""

RESIZING = frozenset({"downsample", "upsample"})
"""Ops that bring a value to the scale of its reader."""

FAMILIES = {"weights": "op with weights", "free": "op without weights", "identity": "identity"}
"""Families of ops, and what drawings and tables call them."""

CostRule = Callable[[Site], Cost]

NONE = "none"
"""Name of the empty choice: no module and no cost."""


@dataclass(frozen=True)
class Op:
    """A named op: its cost, and its properties in a graph.

    Args:
        name: Unique name in architectures and Optuna parameters.
        cost: Function from a `Site` to the cost of one image.
        label: Short name for drawings and for choices of several ops.
        parameter_free: Whether it has no weights at stride 1, so that two of them on one input are equal.
        relu_first: Whether it starts with a ReLU, which the network computes once for all ops on an input.
        identity: Whether it returns its input at stride 1; such an op is exempt from drop-path.

    Example:
        >>> from optuna_nas.space import Op, Site, elementwise_cost
        >>> op = Op("blur", lambda site: elementwise_cost(site.in_shape, site.out_shape), parameter_free=True)
        >>> op.cost(Site((4, 8, 8), (4, 8, 8))).memory_access
        512
    """

    name: str
    cost: CostRule
    label: str = ""
    parameter_free: bool = False
    relu_first: bool = False
    identity: bool = False

    @property
    def family(self) -> str:
        """Family in drawings and tables, a key of `FAMILIES`."""
        return "identity" if self.identity else "free" if self.parameter_free else "weights"

    def free_at(self, stride: int) -> bool:
        """Return whether the op has no weights at this stride; a strided skip is a factorized reduction."""
        return self.parameter_free and not (self.identity and stride > 1)


_OPS: dict[str, Op] = {}


def define_op(op: Op) -> None:
    """Add an op to the table.

    Raises:
        ValueError: The name or the label is taken, or has characters that are not allowed in a path.
    """
    label = op.label or op.name
    for field, text in (("name", op.name), ("label", label)):
        if not text or any(character in text for character in "/+.<|[], "):
            raise ValueError(
                f"`{field}` of an op must be non-empty and without any of '/+.<|[], ' but got {text!r}; "
                "use letters, digits and underscores."
            )
    names = {NONE, *STRUCTURAL, *_OPS}
    labels = {NONE, *(defined.label for defined in _OPS.values())}
    for field, text, taken in (("name", op.name, names), ("label", label, labels)):
        if text in taken:
            raise ValueError(f"`{field}` of an op must be new but {text!r} is taken; choose another.")
    _OPS[op.name] = replace(op, label=label)


def forget_op(name: str) -> None:
    """Remove an op from the table.

    Raises:
        ValueError: No op has this name, or it is part of the package.
    """
    get_op(name)
    if name in BUILT_IN:
        raise ValueError(f"`name` must be an op of your own but {name!r} is part of the package.")
    del _OPS[name]


def get_op(name: str) -> Op:
    """Return the op of this name.

    Raises:
        ValueError: No op has this name.
    """
    if name not in _OPS:
        raise ValueError(
            f"`op` must be a registered op but got {name!r}; known: {', '.join(choosable_ops())}; "
            "add your own with `optuna_nas.register_op`."
        )
    return _OPS[name]


def choosable_ops() -> list[str]:
    """Return the names of all ops that a space may offer, without the fixed parts of a skeleton."""
    return [NONE, *(name for name in _OPS if name not in FIXED_PARTS)]


def _sum(*costs: Cost) -> Cost:
    return sum(costs, Cost())


def _with_channels(shape: Shape, channels: int) -> Shape:
    return (channels, shape[1], shape[2])


def _separable(kernel: int, stacked: bool) -> CostRule:
    """Depthwise convolution, pointwise convolution, norm; twice if `stacked`, as in DARTS' sep_conv."""

    def rule(site: Site) -> Cost:
        channels = site.in_channels
        middle = _with_channels(site.out_shape, channels)
        depthwise = convolution_cost(site.in_shape, middle, (kernel, kernel), groups=channels)
        last = _sum(
            convolution_cost(middle, site.out_shape, (1, 1)),
            norm_cost(site.out_channels, site.affine),
        )
        if not stacked:
            return depthwise + last
        first_pointwise = convolution_cost(middle, middle, (1, 1)) + norm_cost(channels, site.affine)
        return _sum(
            depthwise,
            first_pointwise,
            convolution_cost(middle, middle, (kernel, kernel), groups=channels),
            last,
        )

    return rule


def _convolution(kernel: int) -> CostRule:
    """NAS-Bench-201's convolution, which has a bias if the norm learns no shift."""
    return lambda site: (
        convolution_cost(site.in_shape, site.out_shape, (kernel, kernel), bias=not site.affine)
        + norm_cost(site.out_channels, site.affine)
    )


def _preprocess(site: Site) -> Cost:
    return convolution_cost(site.in_shape, site.out_shape, (1, 1)) + norm_cost(site.out_channels, site.affine)


def _factored_convolution(kernel: int) -> CostRule:
    """1 x k convolution, k x 1 convolution, norm; each convolution is strided along one axis."""

    def rule(site: Site) -> Cost:
        middle = (site.out_channels, site.in_shape[1], site.out_shape[2])
        return _sum(
            convolution_cost(site.in_shape, middle, (1, kernel)),
            convolution_cost(middle, site.out_shape, (kernel, 1)),
            norm_cost(site.out_channels, site.affine),
        )

    return rule


def _pool(site: Site) -> Cost:
    return elementwise_cost(site.in_shape, site.out_shape)


def _factorized_reduction(site: Site) -> Cost:
    half = site.out_channels // 2
    first = convolution_cost(site.in_shape, _with_channels(site.out_shape, half), (1, 1))
    second = convolution_cost(site.in_shape, _with_channels(site.out_shape, site.out_channels - half), (1, 1))
    return first + second + norm_cost(site.out_channels, site.affine)


def _skip(site: Site) -> Cost:
    return elementwise_cost(site.in_shape, site.out_shape) if site.stride == 1 else _factorized_reduction(site)


def _classifier(site: Site) -> Cost:
    return linear_cost(site.in_channels, site.out_channels)


def _stem(site: Site) -> Cost:
    return convolution_cost(site.in_shape, site.out_shape, (3, 3)) + norm_cost(site.out_channels, True)


def _stem_stride4(site: Site) -> Cost:
    channels, height, width = site.in_shape
    middle = (site.out_channels // 2, -(-height // 2), -(-width // 2))
    return _sum(
        convolution_cost((channels, height, width), middle, (3, 3)),
        norm_cost(middle[0], True),
        convolution_cost(middle, site.out_shape, (3, 3)),
        norm_cost(site.out_channels, True),
    )


def _residual_reduction(site: Site) -> Cost:
    return _sum(
        convolution_cost(site.in_shape, site.out_shape, (3, 3)),
        convolution_cost(site.out_shape, site.out_shape, (3, 3)),
        norm_cost(site.out_channels, True).times(2),
        convolution_cost(_with_channels(site.out_shape, site.in_channels), site.out_shape, (1, 1)),
    )


def auxiliary_pooled_size(size: int, stride: int) -> int:
    """Return height or width of the auxiliary head's pooled map: a 5 x 5 window, padded if the map is smaller."""
    return (max(size, 5 + stride) - 5) // stride + 1


def _auxiliary_head(stride: int, last_norm: bool) -> CostRule:
    def rule(site: Site) -> Cost:
        height, width = (auxiliary_pooled_size(size, stride) for size in site.in_shape[1:])
        last = (768, height - 1, width - 1)
        return _sum(
            convolution_cost((site.in_channels, height, width), (128, height, width), (1, 1)),
            norm_cost(128, True),
            convolution_cost((128, height, width), last, (2, 2)),
            norm_cost(768, last_norm),
            linear_cost(768, site.out_channels),
        )

    return rule


for _op in (
    Op("skip_connect", _skip, "skip", parameter_free=True, identity=True),
    Op("avg_pool_3x3", _pool, "avg3", parameter_free=True),
    Op("max_pool_3x3", _pool, "max3", parameter_free=True),
    Op("sep_conv_3x3", _separable(3, True), "sep3", relu_first=True),
    Op("sep_conv_5x5", _separable(5, True), "sep5", relu_first=True),
    Op("sep_conv_7x7", _separable(7, True), "sep7", relu_first=True),
    Op("dil_conv_3x3", _separable(3, False), "dil3", relu_first=True),
    Op("dil_conv_5x5", _separable(5, False), "dil5", relu_first=True),
    Op("nor_conv_1x1", _convolution(1), "conv1", relu_first=True),
    Op("nor_conv_3x3", _convolution(3), "conv3", relu_first=True),
    Op("conv_3x1_1x3", _factored_convolution(3), "conv3x1", relu_first=True),
    Op("conv_7x1_1x7", _factored_convolution(7), "conv7x1", relu_first=True),
):
    define_op(_op)

_CHOOSABLE = set(_OPS)

# The fixed parts of a skeleton are nodes of the graph, too, and need the same properties.
for _op in (
    Op("stem", _stem),
    Op("stem_stride4", _stem_stride4),
    Op("stem_stride8", _stem, relu_first=True),
    Op("preprocess", _preprocess, "pre", relu_first=True),
    Op("factorized_reduction", _factorized_reduction, "reduce", relu_first=True),
    Op("residual_reduction", _residual_reduction, "residual"),
    Op("norm_relu", lambda site: norm_cost(site.out_channels, True)),
    Op("auxiliary_head", _auxiliary_head(3, True), relu_first=True),
    Op("auxiliary_head_imagenet", _auxiliary_head(2, False), relu_first=True),
    Op("classifier", _classifier),
    Op("exit", _classifier, relu_first=True),
    Op("downsample", _pool, parameter_free=True),
    Op("upsample", _pool, parameter_free=True),
):
    define_op(_op)

FIXED_PARTS = frozenset(set(_OPS) - _CHOOSABLE)
"""Names of the fixed parts around cells and between their nodes, which no space may offer as ops."""

BUILT_IN = frozenset(_OPS)
"""Names of all ops of the package."""

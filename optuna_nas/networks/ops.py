"""Modules of the ops in `optuna_nas.space.ops`.

Modules of ops with `relu_first` do not contain that ReLU: the network applies it once for all ops that read a tensor.
Definitions: DARTS (Liu et al. 2019, section 3.1.1) and NAS-Bench-201 (Dong and Yang 2020, section 2.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optuna_nas.networks.depthwise import DepthwiseConvolution
from optuna_nas.space.cost import Cost, Site
from optuna_nas.space.ops import STRUCTURAL, Op, auxiliary_pooled_size, define_op, forget_op, get_op
from optuna_nas.training.described import code_digest, simple_attributes, value_digest

ModuleFactory = Callable[[Site], nn.Module]


def _norm(site: Site) -> nn.Module:
    return nn.BatchNorm2d(site.out_channels, affine=site.affine)


def _separable(kernel: int, dilation: int, stacked: bool) -> ModuleFactory:
    def factory(site: Site) -> nn.Module:
        channels = site.in_channels
        last = [nn.Conv2d(channels, site.out_channels, 1, bias=False), _norm(site)]
        if not stacked:
            return nn.Sequential(DepthwiseConvolution(channels, kernel, site.stride, dilation), *last)
        return nn.Sequential(
            DepthwiseConvolution(channels, kernel, site.stride, dilation),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels, affine=site.affine),
            nn.ReLU(),
            DepthwiseConvolution(channels, kernel, 1, dilation),
            *last,
        )

    return factory


def _convolution(kernel: int) -> ModuleFactory:
    def factory(site: Site) -> nn.Module:
        convolution = PointwiseConvolution if kernel == 1 and site.stride > 1 else nn.Conv2d
        settings = kernel, site.stride, kernel // 2
        return nn.Sequential(
            convolution(site.in_channels, site.out_channels, *settings, bias=not site.affine), _norm(site)
        )

    return factory


def _preprocess(site: Site) -> nn.Module:
    return nn.Sequential(nn.Conv2d(site.in_channels, site.out_channels, 1, bias=False), _norm(site))


def _factored_convolution(kernel: int) -> ModuleFactory:
    def factory(site: Site) -> nn.Module:
        channels, padding = site.out_channels, kernel // 2
        return nn.Sequential(
            nn.Conv2d(site.in_channels, channels, (1, kernel), (1, site.stride), (0, padding), bias=False),
            nn.Conv2d(channels, channels, (kernel, 1), (site.stride, 1), (padding, 0), bias=False),
            _norm(site),
        )

    return factory


def _pool(pool: ModuleFactory) -> ModuleFactory:
    def factory(site: Site) -> nn.Module:
        module = pool(site)
        return nn.Sequential(module, nn.BatchNorm2d(site.out_channels, affine=False)) if site.pool_norm else module

    return factory


class PointwiseConvolution(nn.Conv2d):
    """A 1 x 1 convolution that leaves out rows and columns before it, instead of by its stride.

    The results are the same. With a stride and fewer than 8 channels, the gradients of oneDNN 3.12 write beyond their
    memory on a CPU with AVX2 but without AVX-512: the process dies later on.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return feature maps, shape (B, out_channels, H / stride, W / stride), rounded up."""
        step = self.stride[0]
        return F.conv2d(images[..., ::step, ::step], self.weight, self.bias)


class FactorizedReduction(nn.Module):
    """Two 1 x 1 convolutions of stride 2, the second shifted by one pixel, concatenated and normalised (DARTS).

    Args:
        site: Shapes and settings.
        relu: Whether to apply a ReLU first.
    """

    def __init__(self, site: Site, relu: bool) -> None:
        super().__init__()
        half = site.out_channels // 2
        self.relu = relu
        self.even = PointwiseConvolution(site.in_channels, half, 1, 2, bias=False)
        self.odd = PointwiseConvolution(site.in_channels, site.out_channels - half, 1, 2, bias=False)
        self.norm = _norm(site)

    def forward(self, images: Tensor) -> Tensor:
        """Return a feature map of half the height and width, rounded up."""
        if self.relu:
            images = F.relu(images)
        height, width = images.shape[-2:]
        shifted = F.pad(images[..., 1:, 1:], (0, width % 2, 0, height % 2))
        return self.norm(torch.cat([self.even(images), self.odd(shifted)], dim=1))  # type: ignore[no-any-return]


def _skip(site: Site) -> nn.Module:
    # A strided skip applies its own ReLU: the op has no `relu_first`, since an identity has no ReLU.
    return nn.Identity() if site.stride == 1 else FactorizedReduction(site, relu=True)


class ResidualReduction(nn.Module):
    """Residual block between the stages of NAS-Bench-201: two 3 x 3 convolutions, and a pooled 1 x 1 shortcut."""

    def __init__(self, site: Site) -> None:
        super().__init__()

        def convolution(in_channels: int, stride: int) -> nn.Module:
            return nn.Sequential(
                nn.ReLU(),
                nn.Conv2d(in_channels, site.out_channels, 3, stride, 1, bias=False),
                nn.BatchNorm2d(site.out_channels),
            )

        self.convolutions = nn.Sequential(convolution(site.in_channels, site.stride), convolution(site.out_channels, 1))
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, site.stride, ceil_mode=True, count_include_pad=False),
            nn.Conv2d(site.in_channels, site.out_channels, 1, bias=False),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return a feature map of half the height and width, rounded up."""
        return self.shortcut(images) + self.convolutions(images)  # type: ignore[no-any-return]


class AuxiliaryHead(nn.Module):
    """Auxiliary classifier on an intermediate feature map, after 5 x 5 average pooling.

    Feature maps that are too small for the window are pooled to 2 x 2.

    Args:
        site: Shapes and settings.
        pool_stride: Stride of the pooling; 3 for CIFAR, 2 for ImageNet.
        last_norm: Whether a batch norm follows the last convolution.
    """

    def __init__(self, site: Site, pool_stride: int, last_norm: bool) -> None:
        super().__init__()
        self.pool_stride = pool_stride
        self.features = nn.Sequential(
            nn.Conv2d(site.in_channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768) if last_norm else nn.Identity(),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(768, site.out_channels)

    def forward(self, images: Tensor) -> Tensor:
        """Return class scores, shape (B, classes)."""
        height, width = (auxiliary_pooled_size(side, self.pool_stride) for side in images.shape[-2:])
        if min(images.shape[-2:]) < 5 + self.pool_stride:
            images = F.adaptive_avg_pool2d(images, (height, width))
        else:
            images = F.avg_pool2d(images, 5, self.pool_stride, count_include_pad=False)
        return self.classifier(self.features(images).mean((2, 3)))  # type: ignore[no-any-return]


def _stem_stride4(site: Site) -> nn.Module:
    half = site.out_channels // 2
    return nn.Sequential(
        nn.Conv2d(site.in_channels, half, 3, 2, 1, bias=False),
        nn.BatchNorm2d(half),
        nn.ReLU(),
        nn.Conv2d(half, site.out_channels, 3, 2, 1, bias=False),
        nn.BatchNorm2d(site.out_channels),
    )


def _stem(site: Site) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(site.in_channels, site.out_channels, 3, site.stride, 1, bias=False),
        nn.BatchNorm2d(site.out_channels),
    )


class Classifier(nn.Module):
    """Global average pooling and a linear layer."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.linear = nn.Linear(site.in_channels, site.out_channels)

    def forward(self, images: Tensor) -> Tensor:
        """Return class scores, shape (B, classes)."""
        return self.linear(images.mean((2, 3)))  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Nearest-neighbour upsampling to the height and width of the site."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.size = site.out_shape[1:]

    def forward(self, images: Tensor) -> Tensor:
        """Return a larger feature map."""
        return F.interpolate(images, self.size, mode="nearest")


_FACTORIES: dict[str, ModuleFactory] = {
    "skip_connect": _skip,
    "avg_pool_3x3": _pool(lambda site: nn.AvgPool2d(3, site.stride, 1, count_include_pad=False)),
    "max_pool_3x3": _pool(lambda site: nn.MaxPool2d(3, site.stride, 1)),
    "sep_conv_3x3": _separable(3, 1, stacked=True),
    "sep_conv_5x5": _separable(5, 1, stacked=True),
    "sep_conv_7x7": _separable(7, 1, stacked=True),
    "dil_conv_3x3": _separable(3, 2, stacked=False),
    "dil_conv_5x5": _separable(5, 2, stacked=False),
    "nor_conv_1x1": _convolution(1),
    "nor_conv_3x3": _convolution(3),
    "conv_3x1_1x3": _factored_convolution(3),
    "conv_7x1_1x7": _factored_convolution(7),
    "stem": _stem,
    "stem_stride4": _stem_stride4,
    "stem_stride8": _stem,
    "preprocess": _preprocess,
    "factorized_reduction": lambda site: FactorizedReduction(site, relu=False),
    "residual_reduction": ResidualReduction,
    "norm_relu": lambda site: nn.Sequential(nn.BatchNorm2d(site.out_channels), nn.ReLU()),
    "auxiliary_head": lambda site: AuxiliaryHead(site, 3, last_norm=True),
    "auxiliary_head_imagenet": lambda site: AuxiliaryHead(site, 2, last_norm=False),
    "classifier": Classifier,
    "exit": Classifier,
    "downsample": lambda site: nn.AvgPool2d(site.stride, ceil_mode=True),
    "upsample": Upsample,
}
_BUILT_IN = frozenset(_FACTORIES)
_SMALL_SITE = Site((4, 8, 8), (4, 8, 8))


def has_module(name: str, site: Site) -> bool:
    """Return whether a node of this op has a module. Structural nodes and skips of stride 1 have none.

    Args:
        name: Name of an op, or of a structural node.
        site: Shapes and settings of the node.

    Raises:
        ValueError: No op has this name.

    Example:
        >>> from optuna_nas.networks import has_module
        >>> from optuna_nas.space import Site
        >>> site = Site((4, 8, 8), (4, 8, 8))
        >>> has_module("sum", site), has_module("skip_connect", site), has_module("nor_conv_3x3", site)
        (False, False, True)
    """
    return name not in STRUCTURAL and not (get_op(name).identity and site.stride == 1)


def build_op(name: str, site: Site) -> nn.Module:
    """Return a new module of an op. It does not contain the leading ReLU of ops with `relu_first`.

    Args:
        name: Name of an op.
        site: Shapes and settings of the module.

    Raises:
        ValueError: No op has this name.

    Example:
        >>> import torch
        >>> from optuna_nas.networks import build_op
        >>> from optuna_nas.space import Site
        >>> module = build_op("sep_conv_3x3", Site(in_shape=(4, 8, 8), out_shape=(8, 4, 4), stride=2))
        >>> module(torch.zeros(1, 4, 8, 8)).shape
        torch.Size([1, 8, 4, 4])
    """
    get_op(name)
    return _FACTORIES[name](site)


def blank_op(name: str, site: Site) -> nn.Module:
    """Return a module of an op without weights: its tensors are on the meta device and shared by equal modules.

    It is some twenty times faster than `build_op`, for weights that are passed with each call.
    """
    get_op(name)
    return _copied(_blank(_FACTORIES[name], site))


@lru_cache(maxsize=4096)
def _blank(factory: ModuleFactory, site: Site) -> nn.Module:
    with torch.device("meta"):
        return factory(site).to(memory_format=torch.channels_last)


def _copied(module: nn.Module) -> nn.Module:
    """Return a copy of a module that shares its tensors."""
    copied = object.__new__(type(module))
    # The dictionaries of tensors and hooks are copied, their values are not.
    copied.__dict__ = {
        name: value.copy() if isinstance(value, dict | set) else value for name, value in module.__dict__.items()
    }
    copied.__dict__["_modules"] = {name: part and _copied(part) for name, part in module._modules.items()}
    return copied


def register_op(
    name: str,
    factory: ModuleFactory,
    cost: Callable[[Site], Cost],
    *,
    label: str = "",
    parameter_free: bool = False,
    relu_first: bool = False,
) -> None:
    """Register your own op, so that spaces can use its name.

    Args:
        name: New name; letters, digits, underscores.
        factory: Function from a `Site` to a module that maps an input of shape (B, *site.in_shape) to (B,
            *site.out_shape); height and width are divided by `site.stride`, rounded up.
        cost: Function from a `Site` to the cost of one image; combine `convolution_cost`, `norm_cost`,
            `elementwise_cost`.
        label: Short name for drawings and for choices of several ops; by default the name.
        parameter_free: Whether the module has no parameters, so that two of them on one input are equal.
        relu_first: Whether the op starts with a ReLU, which the network applies instead of the module.

    Raises:
        ValueError: The name is taken, or has characters that are not allowed in a path.

    Example:
        >>> from torch import nn
        >>> from optuna_nas import CellSpace, register_op, unregister_op
        >>> from optuna_nas.space import elementwise_cost
        >>> register_op(
        ...     "max_pool_5x5",
        ...     factory=lambda site: nn.MaxPool2d(5, site.stride, padding=2),
        ...     cost=lambda site: elementwise_cost(site.in_shape, site.out_shape),
        ...     parameter_free=True,
        ... )
        >>> CellSpace(("max_pool_5x5", "nor_conv_3x3")).size == 2**28
        True
        >>> unregister_op("max_pool_5x5")
    """
    define_op(Op(name, cost, label, parameter_free, relu_first))
    _FACTORIES[name] = factory


def code_of_ops(names: Iterable[str]) -> str:
    """Return a digest of the code of ops that users have registered, and of what one has at a small site; else ''."""
    own = {name: _FACTORIES[name] for name in sorted(names) if name in _FACTORIES and name not in _BUILT_IN}
    if not own:
        return ""
    made = {}
    for name, factory in own.items():
        with suppress(Exception), torch.device("meta"):  # the factory is the user's
            parts = factory(_SMALL_SITE).named_modules()
            made[name] = {path: simple_attributes(part) for path, part in parts}
    return value_digest([code_digest(own.values()), made])


def unregister_op(name: str) -> None:
    """Remove an op that `register_op` added, for interactive work.

    Args:
        name: Name of your own op.

    Raises:
        ValueError: No op has this name, or it is part of the package.

    Example:
        >>> from torch import nn
        >>> from optuna_nas import Cost, register_op, unregister_op
        >>> register_op("blur", factory=lambda site: nn.AvgPool2d(3, site.stride, 1), cost=lambda site: Cost())
        >>> unregister_op("blur")
    """
    forget_op(name)
    del _FACTORIES[name]

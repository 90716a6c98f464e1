"""The modules behind the names of `optuna_nas.space.ops`: one library for every space.

A module whose op starts with a ReLU leaves it out: the network applies it once for all ops that read the same tensor.
Definitions: DARTS (Liu et al. 2019, section 3.1.1) and NAS-Bench-201 (Dong and Yang 2020, section 2.1).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optuna_nas.networks.depthwise import DepthwiseConvolution
from optuna_nas.space.cost import Cost, Site
from optuna_nas.space.ops import STRUCTURAL, Op, auxiliary_pooled_size, define_op, forget_op, get_op

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
    return lambda site: nn.Sequential(
        nn.Conv2d(site.in_channels, site.out_channels, kernel, site.stride, kernel // 2, bias=not site.affine),
        _norm(site),
    )


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


class FactorizedReduction(nn.Module):
    """Half the size by two 1 x 1 convolutions of stride 2, the second shifted by one pixel (DARTS)."""

    def __init__(self, site: Site, relu: bool) -> None:
        super().__init__()
        half = site.out_channels // 2
        self.relu = relu
        self.even = nn.Conv2d(site.in_channels, half, 1, 2, bias=False)
        self.odd = nn.Conv2d(site.in_channels, site.out_channels - half, 1, 2, bias=False)
        self.norm = _norm(site)

    def forward(self, images: Tensor) -> Tensor:
        """Return a map of half the height and width, rounded up."""
        if self.relu:
            images = F.relu(images)
        height, width = images.shape[-2:]
        shifted = F.pad(images[..., 1:, 1:], (0, width % 2, 0, height % 2))
        return self.norm(torch.cat([self.even(images), self.odd(shifted)], dim=1))  # type: ignore[no-any-return]


def _skip(site: Site) -> nn.Module:
    # A strided skip brings its own ReLU: at stride 1 it has none to share.
    return nn.Identity() if site.stride == 1 else FactorizedReduction(site, relu=True)


class ResidualReduction(nn.Module):
    """NAS-Bench-201's block between stages: two 3 x 3 convolutions and a pooled 1 x 1 shortcut."""

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
        """Return a map of half the height and width, rounded up."""
        return self.shortcut(images) + self.convolutions(images)  # type: ignore[no-any-return]


class AuxiliaryHead(nn.Module):
    """A second classifier on a middle map, 5 x 5 pooled; maps too small for the window are pooled to 2 x 2."""

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
    """Global average pool and a linear layer."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.linear = nn.Linear(site.in_channels, site.out_channels)

    def forward(self, images: Tensor) -> Tensor:
        """Return class scores, shape (B, classes)."""
        return self.linear(images.mean((2, 3)))  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Repeats every pixel, up to a given height and width."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.size = site.out_shape[1:]

    def forward(self, images: Tensor) -> Tensor:
        """Return a larger map."""
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


def has_module(name: str, site: Site) -> bool:
    """Tell whether a node of this op computes something: the structure of a graph and a plain skip do not."""
    return name not in STRUCTURAL and not (get_op(name).identity and site.stride == 1)


def build_op(name: str, site: Site) -> nn.Module:
    """Return a fresh module of the op at this site; a leading ReLU (`Op.relu_first`) is left to the caller.

    Raises:
        ValueError: No op has this name.
    """
    get_op(name)
    return _FACTORIES[name](site)


def blank_op(name: str, site: Site) -> nn.Module:
    """Return a module of the op without weights: its tensors are on torch's meta device, shared by all of its kind.

    Some twenty times faster than `build_op`; for weights that are passed in with each call.
    """
    get_op(name)
    return _copied(_blank(_FACTORIES[name], site))


@lru_cache(maxsize=4096)
def _blank(factory: ModuleFactory, site: Site) -> nn.Module:
    with torch.device("meta"):
        return factory(site).to(memory_format=torch.channels_last)


def _copied(module: nn.Module) -> nn.Module:
    """Return another module with the same tensors."""
    copied = object.__new__(type(module))
    # Tables of tensors and hooks are each module's own; what stands in them is shared.
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
    """Add an op of your own, for any space to name.

    Args:
        name: New name; letters, digits, underscores.
        factory: Makes the module from a `Site`; it must map `site.in_shape` to `site.out_shape` (height and width
            divided by `site.stride`, rounded up).
        cost: Cost of one image from a `Site`; combine `convolution_cost`, `norm_cost` and `elementwise_cost`.
        label: Short name for drawings and for choices of several ops; by default the name.
        parameter_free: The module has no parameters, so that two on one input are the same function.
        relu_first: The op starts with a ReLU that `factory` leaves out, for the network to share.

    Raises:
        ValueError: The name is taken or has characters that a parameter path can't hold.
    """
    define_op(Op(name, cost, label, parameter_free, relu_first))
    _FACTORIES[name] = factory


def unregister_op(name: str) -> None:
    """Take an op of your own out again; for interactive work."""
    forget_op(name)
    del _FACTORIES[name]

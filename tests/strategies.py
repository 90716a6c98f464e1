"""What tests are fed: spaces, small frames to put them in, generators of architectures, and the slow counter."""

from dataclasses import replace

import torch
from hypothesis import strategies as st
from torch import nn

from optuna_nas.data import ImageData, digits
from optuna_nas.networks import NetworkSpace
from optuna_nas.space import (
    AnytimeSpace,
    Architecture,
    BlockSpace,
    CellKind,
    CellSpace,
    ComputationGraph,
    Skeleton,
    Space,
    darts_space,
    ghn_space,
    hmnas_space,
    nasbench201_space,
)

TINY = CellSpace(("none", "skip_connect", "nor_conv_3x3", "avg_pool_3x3"), nodes=2)
TINY_MULTI = CellSpace(("skip_connect", "dil_conv_3x3", "max_pool_3x3"), nodes=2, max_ops=3)
TINY_BLOCK = BlockSpace(("skip_connect", "nor_conv_1x1", "sep_conv_3x3", "max_pool_3x3"), nodes=4)

TINY_ANYTIME = AnytimeSpace(("skip_connect", "nor_conv_1x1", "sep_conv_3x3"), nodes=(3, 2), scales=(1, 2))

SMALL_SPACES = {
    "tiny": TINY,
    "multi": TINY_MULTI,
    "block": TINY_BLOCK,
    "anytime": TINY_ANYTIME,
    "nasbench201": nasbench201_space(),
}
SMALL_SUPERNETS = {name: space for name, space in SMALL_SPACES.items() if not isinstance(space, AnytimeSpace)}
SPACES = {**SMALL_SPACES, "darts": darts_space(), "hmnas": hmnas_space(), "ghn": ghn_space()}

ALL_OPS = (
    "skip_connect",
    "avg_pool_3x3",
    "max_pool_3x3",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "sep_conv_7x7",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "nor_conv_1x1",
    "nor_conv_3x3",
    "conv_3x1_1x3",
    "conv_7x1_1x7",
)


def few_digits(n_images: int) -> ImageData:
    """Return the first images of every split of scikit-learn's digits."""
    data = digits()
    return replace(data, splits={split: positions[:n_images] for split, positions in data.splits.items()})


def small_skeleton(space: Space, **changes) -> Skeleton:
    """Return a frame of a few narrow cells with every kind of the space and one halving."""
    if isinstance(space, AnytimeSpace):
        fields = {"cells": ("cell1", "factorized_reduction", "cell2"), "budget": 2e4}
    elif isinstance(space, BlockSpace):
        fields = {"cells": (space.kind, "factorized_reduction", space.kind)}
    elif space.inputs == 1:
        fields = {"cells": ("cell", "residual_reduction", "cell"), "norm_before_head": True}
    else:
        fields = {"cells": ("normal", "reduction", "normal"), "stem_multiplier": 2}
    return Skeleton(**{**fields, "channels": 4, "input_shape": (3, 8, 8), "classes": 3, **changes})


def architectures(space: Space, connected: bool = True) -> st.SearchStrategy[Architecture]:
    """Generate architectures out of the options of a space."""
    params = st.fixed_dictionaries({path: st.sampled_from(list(options)) for path, options in space.options().items()})
    drawn = params.map(space.decode)
    return drawn.filter(lambda architecture: architecture.connected) if connected else drawn


@st.composite
def spaces(draw, anytime: bool = True) -> Space:
    """Generate spaces of a few ops and nodes, of all kinds; `anytime`: also those whose nodes choose a scale."""
    ops = tuple(draw(st.lists(st.sampled_from(ALL_OPS), min_size=1, max_size=4, unique=True)))
    nodes = draw(st.integers(1, 3))
    if draw(st.booleans()):
        return BlockSpace(ops, nodes=nodes, max_inputs=draw(st.integers(1, 3)))
    if anytime and draw(st.booleans()):
        scales = draw(st.sampled_from([(1,), (1, 2), (1, 2, 4), (1, 3)]))
        return AnytimeSpace(ops, (nodes, draw(st.integers(1, 3))), draw(st.integers(1, 3)), scales)
    max_ops = draw(st.integers(1, len(ops)))
    inputs = draw(st.integers(1, 2))
    if max_ops == 1 and draw(st.booleans()):
        ops = ("none", *ops)
    last = (inputs + nodes - 1,) if draw(st.booleans()) else ()
    kinds = [CellKind("normal", outputs=last), CellKind("reduction", stride=2, outputs=last)]
    return CellSpace(ops, nodes, inputs, tuple(kinds[: draw(st.integers(1, 2))]), max_ops)


def counted_multiply_adds(network: nn.Module, images: torch.Tensor, *inputs) -> int:
    """Return the multiply-adds of convolutions and linear layers in one forward pass of one image, by hooks."""
    total = 0

    def count(module, _, output):
        nonlocal total
        pixels = output.shape[2] * output.shape[3] if isinstance(module, nn.Conv2d) else 1
        total += pixels * module.weight.numel()

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    with torch.no_grad():
        network(images, *inputs)
    for hook in hooks:
        hook.remove()
    return total


def counted_parameters(module: nn.Module) -> int:
    """Return how many numbers a module learns."""
    return sum(parameter.numel() for parameter in module.parameters())


def placed(architecture: Architecture, skeleton: Skeleton) -> Architecture:
    """Return an architecture of cells as one of networks in a skeleton."""
    return NetworkSpace(architecture.space.core, skeleton).adopt(architecture)


def whole(architecture: Architecture) -> ComputationGraph:
    """Return the graph of a network with what leads nowhere, which published sizes and sums of costs count."""
    return architecture.space.cells.network_graph(architecture, architecture.space.skeleton, whole=True)

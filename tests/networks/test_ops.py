"""Every op at every stride and size: the shape, the price, and what it computes, written out plainly."""

import pytest
import torch
import torch.nn.functional as F
from strategies import ALL_OPS, counted_multiply_adds, counted_parameters
from torch import nn

from optuna_nas.networks import build_op
from optuna_nas.space import Site
from optuna_nas.space.ops import FIXED_PARTS, choosable_ops, get_op

STRIDES = {"preprocess": 1, "factorized_reduction": 2, "residual_reduction": 2, "stem_stride4": 4, "norm_relu": 1}


def site(stride=1, size=(8, 8), channels=4, affine=True, pool_norm=False):
    halved = tuple(-(-side // stride) for side in size)
    return Site((channels, *size), (channels, *halved), stride, affine, pool_norm)


def images(place):
    return torch.randn(3, *place.in_shape)


def built(op, place):
    """An op with a state that shows: random statistics, scales and shifts."""
    module = build_op(op, place).eval()
    for name, tensor in module.state_dict().items():
        if "running" in name or tensor.dim() == 1:
            tensor.copy_(0.5 + torch.rand(tensor.shape))
    return module


def test_all_ops_are_known_here():
    assert set(choosable_ops()) == {"none", *ALL_OPS}
    assert not FIXED_PARTS & set(choosable_ops())


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("stride", "size"), [(1, (8, 8)), (1, (15, 7)), (1, (1, 1)), (2, (8, 8)), (2, (15, 7)), (2, (2, 3))]
)
@pytest.mark.parametrize("op", ALL_OPS)
def test_an_op_has_the_shape_and_the_price_of_its_site(op, stride, size, affine):
    place = site(stride, size, 5, affine)
    module = build_op(op, place).eval()
    assert module(images(place)).shape == (3, *place.out_shape)
    cost = get_op(op).cost(place)
    assert cost.params == counted_parameters(module)
    assert cost.multiply_adds == counted_multiply_adds(module, images(place))
    assert get_op(op).free_at(stride) == (counted_parameters(build_op(op, site(stride, size, 5))) == 0)


@pytest.mark.parametrize(
    "op", ["preprocess", "factorized_reduction", "residual_reduction", "stem_stride4", "norm_relu"]
)
@pytest.mark.parametrize("size", [(8, 8), (9, 15)])
def test_a_fixed_part_has_the_shape_and_the_price_of_its_site(op, size):
    stride = STRIDES[op]
    out = tuple(-(-side // stride) for side in size)
    place = Site((6, *size), (6 if op == "norm_relu" else 10, *out), stride)
    module = build_op(op, place).eval()
    assert module(images(place)).shape == (3, *place.out_shape)
    assert get_op(op).cost(place).params == counted_parameters(module)
    assert get_op(op).cost(place).multiply_adds == counted_multiply_adds(module, images(place))


@pytest.mark.parametrize("side", [2, 3, 7, 8, 11, 14])
@pytest.mark.parametrize("op", ["auxiliary_head", "auxiliary_head_imagenet"])
def test_an_auxiliary_head_has_its_price_on_maps_of_any_size(op, side):
    place = Site((6, side, side + 1), (10, 1, 1))
    module = build_op(op, place).eval()
    assert module(images(place)).shape == (3, 10)
    assert get_op(op).cost(place).params == counted_parameters(module)
    assert get_op(op).cost(place).multiply_adds == counted_multiply_adds(module, images(place))


# -- what an op computes, with functions only ---------------------------------------------------------------------


def normed(maps, norm):
    """Batch norm in evaluation mode by its definition."""
    mean, variance, scale, shift = (
        tensor[:, None, None] for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (maps - mean) / (variance + norm.eps).sqrt() * scale + shift


def layers(module, kind):
    return [layer for layer in module.modules() if isinstance(layer, kind)]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("op", "kernel"), [("sep_conv_3x3", 3), ("sep_conv_5x5", 5), ("sep_conv_7x7", 7)])
def test_a_separable_convolution_is_depthwise_and_pointwise_twice(op, kernel, stride):
    place = site(stride)
    module, x = built(op, place), images(place)
    (depth1, point1, depth2, point2), (norm1, norm2) = layers(module, nn.Conv2d), layers(module, nn.BatchNorm2d)
    y = F.conv2d(x, depth1.weight, stride=stride, padding=kernel // 2, groups=4)
    y = normed(F.conv2d(y, point1.weight), norm1).relu()
    y = F.conv2d(y, depth2.weight, padding=kernel // 2, groups=4)
    torch.testing.assert_close(module(x), normed(F.conv2d(y, point2.weight), norm2))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("op", "kernel"), [("dil_conv_3x3", 3), ("dil_conv_5x5", 5)])
def test_a_dilated_convolution_looks_at_every_second_pixel(op, kernel, stride):
    place = site(stride)
    module, x = built(op, place), images(place)
    (depth, point), (norm,) = layers(module, nn.Conv2d), layers(module, nn.BatchNorm2d)
    y = F.conv2d(x, depth.weight, stride=stride, padding=kernel - 1, dilation=2, groups=4)
    torch.testing.assert_close(module(x), normed(F.conv2d(y, point.weight), norm))


@pytest.mark.parametrize(("op", "padding"), [("nor_conv_1x1", 0), ("nor_conv_3x3", 1)])
def test_a_plain_convolution_has_a_norm(op, padding):
    module, x = built(op, site(2)), images(site(2))
    (convolution,), (norm,) = layers(module, nn.Conv2d), layers(module, nn.BatchNorm2d)
    torch.testing.assert_close(module(x), normed(F.conv2d(x, convolution.weight, stride=2, padding=padding), norm))


@pytest.mark.parametrize(("op", "kernel"), [("conv_3x1_1x3", 3), ("conv_7x1_1x7", 7)])
def test_a_factored_convolution_goes_along_one_axis_after_the_other(op, kernel):
    module, x = built(op, site(2)), images(site(2))
    (wide, high), (norm,) = layers(module, nn.Conv2d), layers(module, nn.BatchNorm2d)
    y = F.conv2d(x, wide.weight, stride=(1, 2), padding=(0, kernel // 2))
    y = F.conv2d(y, high.weight, stride=(2, 1), padding=(kernel // 2, 0))
    torch.testing.assert_close(module(x), normed(y, norm))


def test_pools_leave_the_border_out():
    x = torch.arange(9.0).view(1, 1, 3, 3)
    place = site(1, (3, 3), 1)
    assert build_op("avg_pool_3x3", place)(x)[0, 0, 0, 0] == (0 + 1 + 3 + 4) / 4
    assert build_op("max_pool_3x3", place)(-x - 1)[0, 0, 0, 0] == -1
    assert build_op("avg_pool_3x3", site(2, (3, 3), 1))(x)[0, 0, 1, 1] == (4 + 5 + 7 + 8) / 4


def test_a_pool_has_a_norm_without_scale_in_the_search_network():
    place = site(pool_norm=True)
    module, x = build_op("max_pool_3x3", place).train(), images(place)
    y = F.max_pool2d(x, 3, 1, 1)
    mean, variance = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), keepdim=True, unbiased=False)
    torch.testing.assert_close(module(x), (y - mean) / (variance + 1e-5).sqrt())
    assert counted_parameters(module) == 0


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_a_strided_skip_is_a_factorized_reduction(size):
    place = site(2, size)
    module, x = built("skip_connect", place), images(place)
    (even, odd), (norm,) = layers(module, nn.Conv2d), layers(module, nn.BatchNorm2d)
    padded = F.pad(x.relu(), (0, 1, 0, 1))  # the odd pixels of an odd side end outside
    y = torch.cat([F.conv2d(x.relu(), even.weight, stride=2), F.conv2d(padded[..., 1:, 1:], odd.weight, stride=2)], 1)
    torch.testing.assert_close(module(x), normed(y, norm))
    assert isinstance(build_op("skip_connect", site()), nn.Identity)


def test_a_residual_reduction_is_two_convolutions_beside_a_pooled_one():
    place = Site((4, 8, 8), (8, 4, 4), 2)
    module, x = built("residual_reduction", place), images(place)
    (first, second, shortcut), (norm1, norm2) = layers(module, nn.Conv2d), layers(module, nn.BatchNorm2d)
    y = normed(F.conv2d(x.relu(), first.weight, stride=2, padding=1), norm1)
    y = normed(F.conv2d(y.relu(), second.weight, padding=1), norm2)
    torch.testing.assert_close(module(x), y + F.conv2d(F.avg_pool2d(x, 2), shortcut.weight))


def test_an_unknown_op_is_refused_with_one_sentence():
    with pytest.raises(ValueError, match=r"`op` must be a registered op but got 'moon'; known: none, .*; add your own"):
        build_op("moon", site())

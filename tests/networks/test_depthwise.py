"""Depthwise convolutions: PyTorch's own are the oracle, derivatives included; fast kernels are asked for by size."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from optuna_nas.networks.depthwise import DepthwiseConvolution


def plain(module, images):
    return F.conv2d(images, module.weight, None, module.stride, module.padding, module.dilation, module.groups)


@given(
    kernel=st.sampled_from([1, 3, 5, 7]),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
    size=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 12), st.integers(1, 12)),
    channels_last=st.booleans(),
)
def test_maps_and_gradients_are_those_of_pytorch(kernel, stride, dilation, size, channels_last):
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = torch.randn(size, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    module = DepthwiseConvolution(size[1], kernel, stride, dilation).double()
    ours, theirs = module(images), plain(module, images)
    assert ours.shape[2:] == tuple(-(-side // stride) for side in size[2:])
    torch.testing.assert_close(ours, theirs)
    grad = torch.randn_like(ours)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (images, module.weight), grad),
        torch.autograd.grad(theirs, (images, module.weight), grad),
    )


@pytest.mark.parametrize(("kernel", "dilation"), [(5, 1), (3, 2)])
def test_second_derivatives_are_right(kernel, dilation):
    module = DepthwiseConvolution(2, kernel, dilation=dilation).double()
    images = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)

    def maps(images, weight):
        return torch.func.functional_call(module, {"weight": weight}, (images,))

    assert torch.autograd.gradgradcheck(maps, (images, module.weight))


class Asked(TorchDispatchMode):
    """Remembers which convolutions a block asks for."""

    def __init__(self):
        super().__init__()
        self.forward, self.of_images, self.of_weight = [], [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name == "convolution":
            self.forward.append((args[1].shape[-1], args[5][0]))
        if name == "convolution_backward":
            wanted = args[-1]
            (self.of_images if wanted[0] else self.of_weight).append((args[2].shape[-1], args[6][0]))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("kernel", "dilation", "columns"),
    [(5, 1, [3, 2]), (7, 1, [3, 3, 1]), (3, 2, [3] * 4), (5, 2, [3, 2] * 4)],
)
def test_no_gradient_asks_for_a_wide_or_dilated_kernel(kernel, dilation, columns):
    module = DepthwiseConvolution(16, kernel, dilation=dilation)
    images = torch.randn(2, 16, 16, 16, requires_grad=True)
    with Asked() as asked:
        module(images).sum().backward()
    assert asked.forward == [(kernel, dilation)] * 2  # maps, and the gradient of the images
    assert asked.of_images == []
    assert asked.of_weight == [(column, 1) for column in columns]


def test_a_strided_and_dilated_kernel_reads_what_it_needs():
    module = DepthwiseConvolution(16, 3, stride=2, dilation=2)
    with Asked() as asked:
        module(torch.randn(2, 16, 16, 16))
    assert asked.forward == [(3, 1)]


def test_other_precisions_and_compilers_get_the_plain_convolution():
    module = DepthwiseConvolution(4, 5)
    images = torch.randn(2, 4, 8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        maps = module(images)
    assert maps.dtype == torch.bfloat16
    maps.float().sum().backward()
    with torch.no_grad():
        assert module(images).grad_fn is None

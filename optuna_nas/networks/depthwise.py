"""Depthwise convolutions with fast gradients on a CPU.

oneDNN, PyTorch's backend on a CPU, has fast kernels for the gradients of a depthwise convolution only without dilation,
and for the weight gradient only up to three columns. Other gradients were measured to take 10 to 50 times as long as
the convolution. Here they are computed by the fast kernels; results are equal up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

MAX_COLUMNS = 3
"""Maximum number of a kernel's columns in one call of oneDNN's fast weight gradient."""


class DepthwiseConvolution(nn.Conv2d):
    """Depthwise convolution with a square kernel, padded so that stride 1 keeps height and width.

    Args:
        channels: Number of channels.
        kernel: Height and width of the kernel; odd.
        stride: Stride; height and width are divided by it, rounded up.
        dilation: Spacing between the kernel's elements.
    """

    def __init__(self, channels: int, kernel: int, stride: int = 1, dilation: int = 1) -> None:
        padding = dilation * (kernel - 1) // 2
        super().__init__(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return feature maps; input shape (B, channels, H, W), output shape (B, channels, H / stride, W / stride)."""
        stride, padding, dilation = self.stride[0], int(self.padding[0]), self.dilation[0]
        if stride == dilation > 1:  # equals an undilated convolution of every `stride`-th row and column
            images = images[:, :, ::stride, ::stride].contiguous(memory_format=torch.channels_last)
            stride, padding, dilation = 1, padding // dilation, 1
        slow = stride == 1 and (dilation > 1 or self.kernel_size[1] > MAX_COLUMNS)
        large = images.shape[3] // dilation >= padding // dilation  # at least as wide as half the kernel
        if slow and large and images.device.type == "cpu" and _derives(images, self.weight):
            return _Depthwise.apply(images, self.weight, padding, dilation)  # type: ignore[no-any-return]
        return F.conv2d(images, self.weight, None, stride, padding, dilation, self.groups)


def _derives(images: Tensor, weight: Tensor) -> bool:
    """Return whether plain eager tensors of one dtype will need gradients."""
    return (
        torch.is_grad_enabled()
        and (images.requires_grad or weight.requires_grad)
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


class _Depthwise(torch.autograd.Function):
    """Depthwise convolution of stride 1 with fast gradients on a CPU."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, padding: int, dilation: int) -> Tensor:
        """Return the feature maps, shape (B, C, H, W)."""
        ctx.save_for_backward(images, weight)
        ctx.steps = padding, dilation
        return F.conv2d(images, weight, None, 1, padding, dilation, len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of images and kernels."""
        images, weight = ctx.saved_tensors
        padding, dilation = ctx.steps
        image_grad = weight_grad = None
        if ctx.needs_input_grad[0]:
            image_grad = F.conv2d(grad, weight.flip(2, 3), None, 1, padding, dilation, len(weight))
        if ctx.needs_input_grad[1]:
            # Every `dilation`-th row and column form a grid on which the convolution is not dilated.
            rows, columns = (range(min(dilation, side)) for side in images.shape[2:])
            grids = [
                (..., slice(row, None, dilation), slice(column, None, dilation)) for row in rows for column in columns
            ]
            parts = [_weight_gradient(images[grid], grad[grid], weight.shape, padding // dilation) for grid in grids]
            weight_grad = torch.stack(parts).sum(0)
        return image_grad, weight_grad, None, None


def _weight_gradient(images: Tensor, grad: Tensor, size: torch.Size, padding: int) -> Tensor:
    """Return the gradient of undilated kernels, computed a few columns at a time."""
    grad = grad.contiguous(memory_format=torch.channels_last)
    parts = []
    for first in range(0, size[-1], MAX_COLUMNS):
        part = torch.Size((*size[:-1], min(MAX_COLUMNS, size[-1] - first)))
        left_padding = padding - first
        shifted = F.pad(images, (left_padding, part[-1] - 1 - left_padding))
        shifted = shifted.contiguous(memory_format=torch.channels_last)
        parts.append(conv2d_weight(shifted, part, grad, 1, (padding, 0), 1, size[0]))
    return torch.cat(parts, -1)

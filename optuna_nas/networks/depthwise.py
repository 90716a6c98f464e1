"""Depthwise convolutions whose gradients take the fast kernels of a CPU too.

oneDNN, which PyTorch uses on a CPU, has fast kernels for the gradients of a depthwise convolution only where it is not
dilated, and for that of the weights only where kernels are at most three wide. Elsewhere they take ten to fifty times
as long as the convolution itself. All others can be put in terms of these; results are equal up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

WIDEST = 3
"""Columns of a kernel at a time."""


class DepthwiseConvolution(nn.Conv2d):
    """A convolution of every channel by itself, with a square kernel of odd size and an output of the input's size.

    Args:
        channels: Number of channels.
        kernel: Height and width of the kernel; odd.
        stride: Step of the output; the output has the input's size divided by it, rounded up.
        dilation: Distance of the kernel's elements.
    """

    def __init__(self, channels: int, kernel: int, stride: int = 1, dilation: int = 1) -> None:
        padding = dilation * (kernel - 1) // 2
        super().__init__(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the maps of images of shape (B, channels, H, W)."""
        stride, padding, dilation = self.stride[0], int(self.padding[0]), self.dilation[0]
        if stride == dilation > 1:  # of all rows and columns it sees every `stride`th only
            images = images[:, :, ::stride, ::stride].contiguous(memory_format=torch.channels_last)
            stride, padding, dilation = 1, padding // dilation, 1
        slow = stride == 1 and (dilation > 1 or self.kernel_size[1] > WIDEST)
        large = images.shape[3] // dilation >= padding // dilation  # not narrower than half the kernel
        if slow and large and images.device.type == "cpu" and _derives(images, self.weight):
            return _Depthwise.apply(images, self.weight, padding, dilation)  # type: ignore[no-any-return]
        return F.conv2d(images, self.weight, None, stride, padding, dilation, self.groups)


def _derives(images: Tensor, weight: Tensor) -> bool:
    """Tell whether gradients will be wanted, of plain tensors of one type."""
    return (
        torch.is_grad_enabled()
        and (images.requires_grad or weight.requires_grad)
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution of step 1."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, padding: int, dilation: int) -> Tensor:
        """Return the maps."""
        ctx.save_for_backward(images, weight)
        ctx.steps = padding, dilation
        return F.conv2d(images, weight, None, 1, padding, dilation, len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of images and kernels."""
        images, weight = ctx.saved_tensors
        padding, dilation = ctx.steps
        of_images = of_weight = None
        if ctx.needs_input_grad[0]:
            of_images = F.conv2d(grad, weight.flip(2, 3), None, 1, padding, dilation, len(weight))
        if ctx.needs_input_grad[1]:
            # All elements of a dilated kernel fall on one of its grids of rows and columns, where it is not dilated.
            rows, columns = (range(min(dilation, side)) for side in images.shape[2:])
            grids = [
                (..., slice(row, None, dilation), slice(column, None, dilation)) for row in rows for column in columns
            ]
            parts = [_weight_gradient(images[grid], grad[grid], weight.shape, padding // dilation) for grid in grids]
            of_weight = torch.stack(parts).sum(0)
        return of_images, of_weight, None, None


def _weight_gradient(images: Tensor, grad: Tensor, size: torch.Size, padding: int) -> Tensor:
    """Return the gradient of kernels that are not dilated, some columns after the others."""
    grad = grad.contiguous(memory_format=torch.channels_last)
    parts = []
    for first in range(0, size[-1], WIDEST):
        part = torch.Size((*size[:-1], min(WIDEST, size[-1] - first)))
        left = padding - first
        moved = F.pad(images, (left, part[-1] - 1 - left)).contiguous(memory_format=torch.channels_last)
        parts.append(conv2d_weight(moved, part, grad, 1, (padding, 0), 1, size[0]))
    return torch.cat(parts, -1)

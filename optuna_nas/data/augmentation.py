"""Augmentation of training images on their device.

B images of a batch, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Random crop, horizontal flip and cutout of training images.

    Args:
        crop_padding: Pixels of zero padding on every side before a random crop of the original size, at least 0.
        flip: Whether to flip images horizontally with probability 0.5.
        cutout: Side, in pixels, of a square at a random place that is set to zero (DeVries and Taylor 2017); 0 for
            none.

    Raises:
        ValueError: A size is negative.

    Example:
        >>> import torch
        >>> from optuna_nas import Augmentation
        >>> augmentation = Augmentation(crop_padding=4, flip=True, cutout=16)
        >>> augmentation(torch.rand(8, 3, 32, 32), torch.Generator().manual_seed(0)).shape
        torch.Size([8, 3, 32, 32])
    """

    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0

    def __post_init__(self) -> None:
        for name in ("crop_padding", "cutout"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative but got {getattr(self, name)}; 0 switches it off.")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return augmented images; every image is changed independently.

        Args:
            images: Shape (B, C, H, W).
            generator: Random generator on the device of the images.

        Returns:
            Images of the same shape.
        """
        n_images, _, height, width = images.shape
        device = images.device

        def draw(high: int) -> Tensor:
            return torch.randint(high, (n_images, 1), generator=generator, device=device)

        flipped = draw(2)[:, :, None, None] == 1 if self.flip else None
        if self.crop_padding:
            padding = self.crop_padding
            padded = torch.nn.functional.pad(images, (padding,) * 4)
            top, left = draw(2 * padding + 1)[:, 0], draw(2 * padding + 1)[:, 0]
            windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view of all crops
            images = windows[torch.arange(n_images, device=device), :, top, left]
        if flipped is not None:
            images = torch.where(flipped, images.flip(3), images)
        if self.cutout:
            top, left = draw(height) - self.cutout // 2, draw(width) - self.cutout // 2
            y, x = torch.arange(height, device=device), torch.arange(width, device=device)
            inside_y = (y >= top) & (y < top + self.cutout)
            inside_x = (x >= left) & (x < left + self.cutout)
            images = images * ~(inside_y[:, None, :, None] & inside_x[:, None, None, :])
        return images

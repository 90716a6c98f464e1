"""Random changes of training images, on the device that trains.

B images in a batch, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Random changes of every training image.

    Args:
        crop_padding: Pixels of zero padding of which a random crop of the old size is taken.
        flip: Mirror left and right with probability one half.
        cutout: Side in pixels of a square set to zero at a random place (DeVries and Taylor 2017); 0 for none.
    """

    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0

    def __post_init__(self) -> None:
        for name in ("crop_padding", "cutout"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative but got {getattr(self, name)}; 0 switches it off.")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return augmented images of the same shape (B, C, H, W); every image draws for itself."""
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

"""Augmentation of training images on their device.

B images of a batch, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Random crop, horizontal flip and cutout of training images.

    A field may be a suggestion, such as `suggest_int(0, 4)`: each trial has its own. Outside of trials, as in the
    training of a supernet, it is off.

    Args:
        crop_padding: Pixels of zero padding on every side before a random crop of the original size, at least 0.
        flip: Whether to flip images horizontally with probability 0.5.
        cutout: Side, in pixels, of a square at a random place that is set to zero (DeVries and Taylor 2017); 0 for
            none.

    Raises:
        ValueError: A size is negative, or a field is neither a number nor a suggestion.

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
        for name, value in list(vars(self).items()):
            if isinstance(value, np.generic):
                object.__setattr__(self, name, value := value.item())
            if not _is_fixed(value) and not hasattr(value, "to_internal_repr"):  # what an Optuna distribution has
                raise ValueError(f"`{name}` must be a number or a suggestion but got {value!r}.")
            if _is_fixed(value) and value < 0:
                raise ValueError(f"`{name}` must not be negative but got {value}; 0 switches it off.")

    def describe(self) -> dict[str, Any]:
        """Return the fields as JSON values; suggestions as their text."""
        return {name: value if _is_fixed(value) else repr(value) for name, value in vars(self).items()}

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return augmented images; every image is changed independently.

        Args:
            images: Shape (B, C, H, W).
            generator: Random generator on the device of the images.

        Returns:
            Images of the same shape.
        """
        padding, flip, cutout = (value if _is_fixed(value) else 0 for value in vars(self).values())
        n_images, _, height, width = images.shape
        device = images.device

        def draw(high: int) -> Tensor:
            return torch.randint(high, (n_images, 1), generator=generator, device=device)

        flipped = draw(2)[:, :, None, None] == 1 if flip else None
        if padding:
            padded = torch.nn.functional.pad(images, (padding,) * 4)
            top, left = draw(2 * padding + 1)[:, 0], draw(2 * padding + 1)[:, 0]
            windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view of all crops
            images = windows[torch.arange(n_images, device=device), :, top, left]
        if flipped is not None:
            images = torch.where(flipped, images.flip(3), images)
        if cutout:
            top, left = draw(height) - cutout // 2, draw(width) - cutout // 2
            y, x = torch.arange(height, device=device), torch.arange(width, device=device)
            inside_y = (y >= top) & (y < top + cutout)
            inside_x = (x >= left) & (x < left + cutout)
            images = images * ~(inside_y[:, None, :, None] & inside_x[:, None, None, :])
        return images


def _is_fixed(value: object) -> bool:
    return isinstance(value, bool | int | float)

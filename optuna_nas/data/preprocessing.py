"""Preprocessing: how raw inputs, as a user has them, become inputs of a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from optuna_nas.data.arranging import arranged

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

DTYPES = ("uint8", "float32", "int64")
"""Types of raw inputs: bytes of images, numbers, and tokens."""


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """Normalisation of raw inputs: divided by `divisor`, minus `mean`, divided by `std`.

    Args:
        shape: Shape of one raw input, such as (channels, height, width) or (features,).
        dtype: `uint8`, `float32`, or `int64` for tokens, which stay as they are.
        divisor: 255 for bytes, otherwise 1.
        mean: Mean, of a shape that broadcasts to `shape`; None for no normalisation.
        std: Standard deviation, of the same shape.

    Example:
        >>> import torch
        >>> from optuna_nas.data.preprocessing import Preprocessing
        >>> preprocessing = Preprocessing((1, 1, 2), "uint8", 255, torch.tensor([[[0.5]]]), torch.tensor([[[0.25]]]))
        >>> preprocessing(preprocessing.tensor([[0, 255]]))
        tensor([[[[-2.,  2.]]]])
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    divisor: float = 1.0
    mean: Tensor | None = None
    std: Tensor | None = None

    def __call__(self, raw: Tensor) -> Tensor:
        """Return normalised inputs of raw ones, shape (B, *shape), on the device of `mean`."""
        if self.dtype == "int64":
            return raw
        inputs = raw.float()
        if self.divisor != 1:
            inputs = inputs / self.divisor
        return inputs if self.mean is None or self.std is None else (inputs - self.mean) / self.std

    def tensor(self, raw: ArrayLike) -> Tensor:
        """Return raw inputs of any usual layout as a tensor of shape (B, *shape) and type `dtype`; see `arranged`.

        Raises:
            ValueError: Shape, type or values do not fit.
        """
        return torch.from_numpy(np.array(arranged(raw, self.shape, self.dtype)))

    def to(self, device: torch.device | str) -> Preprocessing:
        """Return the same on a device."""
        if self.mean is None or self.std is None:
            return self
        return Preprocessing(self.shape, self.dtype, self.divisor, self.mean.to(device), self.std.to(device))

"""Well-known image data sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optuna_nas.data.arrays import ImageData
from optuna_nas.data.augmentation import Augmentation

if TYPE_CHECKING:
    from pathlib import Path


def digits(seed: int = 0) -> ImageData:
    """Scikit-learn's 1,797 digits, 8 x 8, grey, 10 classes; nothing to download."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    return ImageData.from_arrays(
        (loaded.images / 16).astype(np.float32),
        loaded.target,
        name="digits",
        augmentation=Augmentation(crop_padding=1),
        seed=seed,
    )


def _from_torchvision(name: str, root: str | Path, download: bool, seed: int, augmentation: Augmentation) -> ImageData:
    import torchvision

    try:
        train, test = (
            getattr(torchvision.datasets, name)(str(root), part, download=download) for part in (True, False)
        )
    except RuntimeError as error:
        raise ValueError(
            f"`root` must hold {name} but {root} does not; set download=True, or put the files there ({error})"
        ) from error
    x, x_test = (np.asarray(part.data) for part in (train, test))
    y, y_test = (np.asarray(part.targets) for part in (train, test))
    return ImageData.from_arrays(x, y, x_test, y_test, name=name, augmentation=augmentation, seed=seed)


def cifar10(root: str | Path = "data", download: bool = True, seed: int = 0) -> ImageData:
    """CIFAR-10 by torchvision: 60,000 colour images of 32 x 32; crop, flip and cutout 16 as in DARTS."""
    return _from_torchvision("CIFAR10", root, download, seed, Augmentation(4, True, 16))


def cifar100(root: str | Path = "data", download: bool = True, seed: int = 0) -> ImageData:
    """CIFAR-100 by torchvision: 60,000 colour images of 32 x 32 in 100 classes; crop, flip and cutout 16."""
    return _from_torchvision("CIFAR100", root, download, seed, Augmentation(4, True, 16))


def fashion_mnist(root: str | Path = "data", download: bool = True, seed: int = 0) -> ImageData:
    """Fashion-MNIST by torchvision: 70,000 grey images of 28 x 28; crop and flip."""
    return _from_torchvision("FashionMNIST", root, download, seed, Augmentation(2, True))


def mnist(root: str | Path = "data", download: bool = True, seed: int = 0) -> ImageData:
    """MNIST by torchvision: 70,000 grey images of 28 x 28; crop only, since digits have a left and a right."""
    return _from_torchvision("MNIST", root, download, seed, Augmentation(2))

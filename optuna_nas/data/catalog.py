"""Public image data sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optuna_nas.data.arrays import ImageData
from optuna_nas.data.augmentation import Augmentation

if TYPE_CHECKING:
    from pathlib import Path


def digits(seed: int = 0, augmentation: Augmentation | None = None) -> ImageData:
    """Return scikit-learn's handwritten digits: 1,797 grey images of 8 x 8 pixels in 10 classes.

    They are part of scikit-learn; nothing is downloaded. Training images are cropped at random after padding by one
    pixel.

    Args:
        seed: Seed of the splits, at least 0.
        augmentation: Other random changes of training images.

    Example:
        >>> from optuna_nas import digits
        >>> data = digits()
        >>> data.input_shape, data.classes
        ((1, 8, 8), 10)
        >>> [data.size([split]) for split in ("weights", "choices", "report", "test")]
        [719, 359, 360, 359]
    """
    from sklearn.datasets import load_digits

    loaded = load_digits()
    return ImageData.from_arrays(
        (loaded.images / 16).astype(np.float32),
        loaded.target,
        name="digits",
        augmentation=augmentation or Augmentation(crop_padding=1),
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
    return ImageData.from_arrays(
        x, y, x_test, y_test, name=name, augmentation=augmentation, seed=seed, class_names=train.classes
    )


def cifar10(
    root: str | Path = "data", download: bool = True, seed: int = 0, augmentation: Augmentation | None = None
) -> ImageData:
    """Return torchvision's CIFAR-10: 60,000 colour images of 32 x 32 pixels in 10 classes.

    Training images are cropped, flipped and cut out as in DARTS (Liu, Simonyan and Yang 2019, section 3.2).

    Args:
        root: Folder of the files.
        download: Whether to download missing files (170 MB).
        seed: Seed of the splits, at least 0.
        augmentation: Other random changes of training images.

    Raises:
        ValueError: `root` does not have the files, and `download` is False.

    Example:
        >>> from optuna_nas import cifar10
        >>> cifar10("data", download=True).input_shape  # doctest: +SKIP
        (3, 32, 32)
    """
    return _from_torchvision("CIFAR10", root, download, seed, augmentation or Augmentation(4, True, 16))


def cifar100(
    root: str | Path = "data", download: bool = True, seed: int = 0, augmentation: Augmentation | None = None
) -> ImageData:
    """Return torchvision's CIFAR-100: 60,000 colour images of 32 x 32 pixels in 100 classes.

    Training images are cropped, flipped and cut out as those of `cifar10`.

    Args:
        root: Folder of the files.
        download: Whether to download missing files (169 MB).
        seed: Seed of the splits, at least 0.
        augmentation: Other random changes of training images.

    Raises:
        ValueError: `root` does not have the files, and `download` is False.

    Example:
        >>> from optuna_nas import cifar100
        >>> cifar100("data", download=True).classes  # doctest: +SKIP
        100
    """
    return _from_torchvision("CIFAR100", root, download, seed, augmentation or Augmentation(4, True, 16))


def fashion_mnist(
    root: str | Path = "data", download: bool = True, seed: int = 0, augmentation: Augmentation | None = None
) -> ImageData:
    """Return torchvision's Fashion-MNIST: 70,000 grey images of 28 x 28 pixels in 10 classes.

    Training images are cropped after padding by two pixels, and flipped.

    Args:
        root: Folder of the files.
        download: Whether to download missing files (31 MB).
        seed: Seed of the splits, at least 0.
        augmentation: Other random changes of training images.

    Raises:
        ValueError: `root` does not have the files, and `download` is False.

    Example:
        >>> from optuna_nas import fashion_mnist
        >>> fashion_mnist("data", download=True).input_shape  # doctest: +SKIP
        (1, 28, 28)
    """
    return _from_torchvision("FashionMNIST", root, download, seed, augmentation or Augmentation(2, True))


def mnist(
    root: str | Path = "data", download: bool = True, seed: int = 0, augmentation: Augmentation | None = None
) -> ImageData:
    """Return torchvision's MNIST: 70,000 grey images of 28 x 28 pixels in 10 classes.

    Training images are cropped after padding by two pixels; they are not flipped, since mirrored digits are not digits.

    Args:
        root: Folder of the files.
        download: Whether to download missing files (12 MB).
        seed: Seed of the splits, at least 0.
        augmentation: Other random changes of training images.

    Raises:
        ValueError: `root` does not have the files, and `download` is False.

    Example:
        >>> from optuna_nas import mnist
        >>> mnist("data", download=True).input_shape  # doctest: +SKIP
        (1, 28, 28)
    """
    return _from_torchvision("MNIST", root, download, seed, augmentation or Augmentation(2))

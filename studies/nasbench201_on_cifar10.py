"""What the studies on small CIFAR-10 images that a table of real trainings judges have in common."""

import csv
import gzip
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from optuna_nas import Architecture, Augmentation, ImageData, Skeleton, cifar10, nasbench201_skeleton, nasbench201_space

SPACE = nasbench201_space()
IMAGE_SIZE = 16
N_IMAGES = 10_000  # of 50,000, so that ten minutes see them often


def skeleton(data: ImageData, affine: bool = True) -> Skeleton:
    """Return the small network that stands for NAS-Bench-201's."""
    return nasbench201_skeleton(
        repeats=1, channels=16, input_shape=data.input_shape, classes=data.classes, affine=affine
    )


def small_cifar10(folder: str, seed: int) -> ImageData:
    """Return the first 10,000 training images of CIFAR-10, halved in height and width; a tenth to report on.

    Args:
        folder: With `train_00.webp` ... (1,000 images each in 25 rows of 40) and `labels.npz`; empty for torchvision's.
        seed: Draws the split.
    """
    if folder:
        x, y = read_sheets(folder, N_IMAGES)
    else:
        data = cifar10()
        train_images = torch.cat([data.splits[split] for split in ("weights", "choices", "report")]).sort().values
        x = data.images[train_images].permute(0, 2, 3, 1).numpy()
        y = data.labels[train_images].numpy()
    return ImageData.from_arrays(
        halved(x[:N_IMAGES]),
        y[:N_IMAGES],
        name=f"CIFAR-10 at {IMAGE_SIZE}x{IMAGE_SIZE}",
        channels="last",
        fractions={"choices": 0.0, "report": 0.1, "test": 0.0},
        augmentation=Augmentation(IMAGE_SIZE // 8, flip=True),
        seed=seed,
    )


def halved(x: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return images of shape (N, 32, 32, 3), from 0 to 255, as (N, 16, 16, 3) from 0 to 1."""
    factor = 32 // IMAGE_SIZE
    return x.reshape(len(x), IMAGE_SIZE, factor, IMAGE_SIZE, factor, 3).mean((2, 4)).astype(np.float32) / 255


def read_sheets(folder: str, n_images: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read the first training images, shape (N, 32, 32, 3), and their labels."""
    from PIL import Image

    files = sorted(Path(folder).glob("train_*.webp"))[: n_images // 1000]
    if not files:
        raise ValueError(f"`images` must be a folder with train_00.webp ... but {folder!r} has none.")
    sheets = [np.asarray(Image.open(file).convert("RGB")).reshape(25, 32, 40, 32, 3) for file in files]
    x = np.concatenate([sheet.transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3) for sheet in sheets])
    return x, np.load(Path(folder) / "labels.npz")["train"][: len(x)].astype(np.int64)


def whole_cifar10(folder: str, report: int = 5000) -> ImageData:
    """Return CIFAR-10's training images as they are, the last of them to report on; nothing but NumPy is needed."""
    x, y = read_sheets(folder, 50_000)
    images = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    learned, nothing = torch.arange(len(x) - report), torch.arange(0)
    splits = {"weights": learned, "choices": nothing, "report": torch.arange(len(x) - report, len(x)), "test": nothing}
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    return ImageData("CIFAR-10", images, torch.from_numpy(y), 10, splits, mean, std, Augmentation(4, flip=True))


def read_truth(path: str, column: str) -> dict[tuple[str, ...], float]:
    """Read the true accuracy of every cell, in %."""
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt", newline="") as file:
        return {tuple(row[f"op_{j}_{i}"] for j, i in SPACE.edges): float(row[column]) for row in csv.DictReader(file)}


def ops(architecture: Architecture) -> tuple[str, ...]:
    """Return the op of every edge, as the table names them."""
    return tuple((architecture[path] or ("none",))[0] for path in SPACE.paths)

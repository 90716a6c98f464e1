"""Images in folders, decoded during training."""

from __future__ import annotations

import hashlib
import os
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from optuna_nas.data.batches import Batch
from optuna_nas.data.examples import spread
from optuna_nas.data.preprocessing import Preprocessing
from optuna_nas.data.splits import (
    CHOICES,
    REPORT,
    SPLITS,
    checked_count,
    checked_seed,
    digest_of,
    digest_of_text,
    draw_splits,
    index_chunks,
    positions_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

MAX_OPENED, MAX_READ_BYTES = 256, 2**14
"""Largest number of files that a description reads, and of bytes of each."""


class ImageFolderData:
    """Labelled images in folders, such as ImageNet, decoded by worker processes during training.

    The splits `weights`, `choices` and `report` are drawn from `root/train/CLASS/*.jpg`; `root/val/CLASS/*.jpg` is the
    test split. Training images are cropped at random (8 to 100 % of the area; Szegedy et al. 2015) and flipped; others
    are resized and cropped at the centre.

    Args:
        root: Folder with `train` and `val`.
        size: Height and width of the images in a batch, in pixels.
        workers: Number of processes that decode images; 0 decodes in the training process.
        device: Device of the batches.
        fractions: Fractions of `choices` and `report` (validation); by default 0 and 0.1.
        seed: Seed of the splits, at least 0.

    Raises:
        ValueError: A folder is missing or empty, a class has too few images, or a number is no integer.

    Example:
        >>> import numpy as np
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from optuna_nas import ImageFolderData
        >>> for part, n_images in (("train", 10), ("val", 1)):
        ...     for name in ("cat", "dog"):
        ...         Path("pets", part, name).mkdir(parents=True)
        ...         for number in range(n_images):
        ...             Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(f"pets/{part}/{name}/{number}.png")
        >>> data = ImageFolderData("pets", size=4, workers=0)
        >>> data.classes, data.size(["weights"]), next(data.batches(["report"], 2)).inputs.shape
        (2, 18, torch.Size([2, 3, 4, 4]))
    """

    def __init__(
        self,
        root: str | Path,
        size: int = 224,
        workers: int = 4,
        device: torch.device | str = "cpu",
        fractions: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        from torchvision.datasets import ImageFolder

        self._root, self._size, self._seed = Path(root), checked_count("size", size, 1), checked_seed(seed)
        self._workers = checked_count("workers", workers, 0)
        self.device = torch.device(device)
        try:
            train, test = (ImageFolder(str(self._root / part)) for part in ("train", "val"))
        except FileNotFoundError as error:
            raise ValueError(
                f"`root` must hold train/CLASS/IMAGE and val/CLASS/IMAGE but {root} does not: {error}"
            ) from error
        if train.classes != test.classes:
            different = sorted(set(train.classes) ^ set(test.classes))
            raise ValueError(
                f"`root` must hold the same classes in train and val but {different[0]!r} is in one of them only; "
                "add or remove the folder."
            )
        self.name = self._root.name
        self.classes, self.class_names = len(train.classes), tuple(train.classes)
        self._samples: list[tuple[str, int]] = [*train.samples, *test.samples]
        labels = np.array([label for _, label in self._samples], dtype=np.int64)
        self.splits = draw_splits(labels, len(train), {CHOICES: 0.0, REPORT: 0.1, **(fractions or {})}, self._seed)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape (channels, height, width) of an image."""
        return 3, self._size, self._size

    @property
    def outputs(self) -> int:
        """Size of a prediction: number of classes."""
        return self.classes

    @property
    def preprocessing(self) -> Preprocessing:
        """Normalisation of raw images that have been resized and cropped."""
        mean, std = (torch.tensor(value, device=self.device)[:, None, None] for value in (IMAGENET_MEAN, IMAGENET_STD))
        return Preprocessing(self.input_shape, "uint8", 255, mean, std)

    def to(self, device: torch.device | str) -> ImageFolderData:
        """Return the same data with batches on a device."""
        if torch.device(device) == self.device:
            return self
        moved = copy(self)  # with the list of files, and the hashes that are known
        moved.device = torch.device(device)
        return moved

    def size(self, splits: Sequence[str]) -> int:
        """Return the number of images in these splits."""
        return len(positions_of(self.splits, splits))

    def batches(
        self, splits: Sequence[str], batch_size: int, *, seed: int = 0, epoch: int | None = None, start: int = 0
    ) -> Iterator[Batch]:
        """Yield normalised batches; see `ImageData.batches`."""
        positions = positions_of(self.splits, splits)
        chunks = [chunk.tolist() for chunk in index_chunks(positions, batch_size, seed, epoch)][start:]
        preprocessing, on_gpu = self.preprocessing, self.device.type == "cuda"
        loader = torch.utils.data.DataLoader(
            _DecodedImages(self._samples, self._size, seed, epoch),
            batch_sampler=chunks,
            num_workers=self._workers,
            pin_memory=on_gpu,
            generator=torch.Generator(),  # without one, the loader would draw from the global generator
        )
        for images, labels in loader:
            inputs = preprocessing(images.to(self.device, non_blocking=on_gpu))
            yield Batch(inputs, labels.to(self.device, non_blocking=on_gpu))

    def describe(self) -> dict[str, Any]:
        """Return name, shape and seed, and sizes and hashes of files and splits, as JSON values."""
        listing = "\n".join(f"{Path(path).relative_to(self._root)} {label}" for path, label in self._samples)
        return {
            "name": self.name,
            "input_shape": list(self.input_shape),
            "classes": self.classes,
            "seed": self._seed,
            "digest": digest_of_text(listing),
            "sizes": {split: len(self.splits[split]) for split in SPLITS},
            "split_digests": {split: digest_of(self.splits[split]) for split in SPLITS},
            "files": self._file_sizes,
            "examples": self._contents,
        }

    @cached_property
    def _file_sizes(self) -> str:
        """Hash of the sizes of all files."""
        return digest_of_text(" ".join(str(Path(path).stat().st_size) for path, _ in self._samples))

    @cached_property
    def _contents(self) -> str:
        """Hash of bytes from the middle of evenly spaced files, since to read all of them takes too long."""
        hashed = hashlib.blake2b(digest_size=8)
        for place in spread(len(self._samples), MAX_OPENED):
            path, _ = self._samples[place]
            try:
                with open(path, "rb") as file:
                    file.seek(max(0, os.fstat(file.fileno()).st_size - MAX_READ_BYTES) // 2)
                    hashed.update(file.read(MAX_READ_BYTES))
            except OSError as error:
                raise _unreadable(path, error) from error
        return hashed.hexdigest()


class _DecodedImages(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Decoded and cropped images; random numbers depend on (seed, epoch, position), not on the worker process."""

    def __init__(self, samples: Sequence[tuple[str, int]], size: int, seed: int, epoch: int | None) -> None:
        self._samples, self._size, self._seed, self._epoch = samples, size, seed, epoch

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        from PIL import Image
        from torchvision.transforms import v2

        path, label = self._samples[position]
        try:
            with Image.open(path) as file:
                image = v2.functional.pil_to_tensor(file.convert("RGB"))
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow says of damaged files
            raise _unreadable(path, error) from error
        if self._epoch is None:
            short = round(self._size * 256 / 224)
            image = v2.functional.resize(image, [short], antialias=True)
            return v2.functional.center_crop(image, [self._size, self._size]), label
        random = np.random.default_rng([self._seed, self._epoch, position])
        top, left, height, width = _random_crop(random, image.shape[1], image.shape[2])
        image = v2.functional.resized_crop(image, top, left, height, width, [self._size, self._size], antialias=True)
        return (image.flip(-1) if random.random() < 0.5 else image), label


def _unreadable(path: str, error: Exception) -> ValueError:
    return ValueError(f"`root` must hold images that can be read but {path} can't: {error}.")


def _random_crop(random: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    """Draw (top, left, height, width) with 8 to 100 % of the area and an aspect from 3/4 to 4/3 (Szegedy et al. 2015).

    After ten draws that do not fit the image, the crop is the whole image.
    """
    for _ in range(10):
        area = height * width * random.uniform(0.08, 1.0)
        aspect = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
        crop_width, crop_height = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(random.integers(height - crop_height + 1))
            return top, int(random.integers(width - crop_width + 1)), crop_height, crop_width
    return 0, 0, height, width

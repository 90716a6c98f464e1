"""Images read from a folder, decoded while training."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from optuna_nas.data.batches import Batch
from optuna_nas.data.splits import (
    CHOICES,
    REPORT,
    SPLITS,
    digest_of,
    draw_splits,
    index_chunks,
    positions_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageFolderData:
    """Images of ImageNet's size, read from folders by worker processes while training.

    `root/train/CLASS/*.jpg` gives `weights`, `choices` and `report`, `root/val/CLASS/*.jpg` gives `test`. Training
    images are cropped at random (area 0.08 to 1) and flipped, others resized and cropped at the centre.

    Args:
        root: Folder that holds `train` and `val`.
        size: Side of the images that come out, pixels.
        workers: Processes that decode; 0 decodes in this one.
        device: Where batches come out.
        fractions: Shares of `choices` and `report`; default 0 and 0.1.
        seed: Draws the splits.

    Raises:
        ValueError: A folder is missing or empty, or a class has too few images.
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

        self._root, self._size, self._workers, self._seed = Path(root), size, workers, seed
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
        self.classes = len(train.classes)
        self._samples: list[tuple[str, int]] = [*train.samples, *test.samples]
        labels = np.array([label for _, label in self._samples], dtype=np.int64)
        self.splits = draw_splits(labels, len(train), {CHOICES: 0.0, REPORT: 0.1, **(fractions or {})}, seed)
        self._fractions = dict(fractions or {})

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return 3, self._size, self._size

    @property
    def outputs(self) -> int:
        """Number of classes, which is the size of a prediction."""
        return self.classes

    def to(self, device: torch.device | str) -> ImageFolderData:
        """Return the same data with batches coming out on another device."""
        if torch.device(device) == self.device:
            return self
        return ImageFolderData(self._root, self._size, self._workers, device, self._fractions, self._seed)

    def size(self, splits: Sequence[str]) -> int:
        """Return the number of images in these splits."""
        return len(positions_of(self.splits, splits))

    def batches(
        self, splits: Sequence[str], batch_size: int, *, seed: int = 0, epoch: int | None = None, start: int = 0
    ) -> Iterator[Batch]:
        """Yield normalised batches; see `ImageData.batches`."""
        positions = positions_of(self.splits, splits)
        chunks = [chunk.tolist() for chunk in index_chunks(positions, batch_size, seed, epoch)][start:]
        mean, std = (torch.tensor(v, device=self.device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
        on_gpu = self.device.type == "cuda"
        loader = torch.utils.data.DataLoader(
            _DecodedImages(self._samples, self._size, seed, epoch),
            batch_sampler=chunks,
            num_workers=self._workers,
            pin_memory=on_gpu,
            generator=torch.Generator(),  # its workers' seeds are not used; without it the global state would move
        )
        for images, labels in loader:
            pixels = images.to(self.device, non_blocking=on_gpu).float() / 255
            yield Batch((pixels - mean) / std, labels.to(self.device, non_blocking=on_gpu))

    def describe(self) -> dict[str, Any]:
        """Return name, shape, seed, and size and digest of the list of files and of every split."""
        listing = "\n".join(f"{Path(path).relative_to(self._root)} {label}" for path, label in self._samples)
        return {
            "name": self.name,
            "input_shape": list(self.input_shape),
            "classes": self.classes,
            "seed": self._seed,
            "digest": hashlib.blake2b(listing.encode(), digest_size=8).hexdigest(),
            "sizes": {split: len(self.splits[split]) for split in SPLITS},
            "split_digests": {split: digest_of(self.splits[split]) for split in SPLITS},
        }


class _DecodedImages(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Decodes and crops one image; its random numbers depend on (seed, epoch, position), never on the worker."""

    def __init__(self, samples: Sequence[tuple[str, int]], size: int, seed: int, epoch: int | None) -> None:
        self._samples, self._size, self._seed, self._epoch = samples, size, seed, epoch

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        from PIL import Image
        from torchvision.transforms import v2

        path, label = self._samples[position]
        with Image.open(path) as file:
            image = v2.functional.pil_to_tensor(file.convert("RGB"))
        if self._epoch is None:
            short = round(self._size * 256 / 224)
            image = v2.functional.resize(image, [short], antialias=True)
            return v2.functional.center_crop(image, [self._size, self._size]), label
        random = np.random.default_rng([self._seed, self._epoch, position])
        top, left, height, width = _random_crop(random, image.shape[1], image.shape[2])
        image = v2.functional.resized_crop(image, top, left, height, width, [self._size, self._size], antialias=True)
        return (image.flip(-1) if random.random() < 0.5 else image), label


def _random_crop(random: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    """Draw (top, left, height, width): area 8 to 100 %, aspect 3/4 to 4/3 (Szegedy et al. 2015); the whole at worst."""
    for _ in range(10):
        area = height * width * random.uniform(0.08, 1.0)
        aspect = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
        crop_width, crop_height = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(random.integers(height - crop_height + 1))
            return top, int(random.integers(width - crop_width + 1)), crop_height, crop_width
    return 0, 0, height, width

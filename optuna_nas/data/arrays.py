"""Image data sets that fit the memory of the training device.

N images, B images of a batch, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from optuna_nas.data.augmentation import Augmentation
from optuna_nas.data.batches import Batch
from optuna_nas.data.preprocessing import Preprocessing
from optuna_nas.data.splits import (
    CHOICES,
    SPLITS,
    WEIGHTS,
    check_every_label,
    checked_count,
    checked_names,
    checked_seed,
    checked_text,
    digest_of,
    draw_splits,
    index_chunks,
    positions_of,
    seeded_generator,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from os import PathLike

    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, eq=False)
class ImageData:
    """Labelled images that fit the memory of the training device.

    Make one with `digits()`, `cifar10()`, ..., or `ImageData.from_arrays(x, y)`.

    Args:
        name: Name in records and tables.
        images: Shape (N, C, H, W), uint8 or float32.
        labels: Shape (N,), int64, from 0 to `classes - 1`.
        classes: Number of classes.
        splits: Positions of the images of every split (`weights`, `choices`, `report`, `test`), disjoint.
        mean: Mean of the pixels for normalisation, shape (C,).
        std: Standard deviation of the pixels for normalisation, shape (C,).
        augmentation: Random changes of training images.
        seed: Seed of the splits.
        class_names: Name of every class; empty for their numbers.

    Example:
        >>> import numpy as np
        >>> from optuna_nas import ImageData
        >>> generator = np.random.default_rng(0)
        >>> data = ImageData.from_arrays(generator.random((100, 8, 8)), np.arange(100) % 10)
        >>> data.input_shape, data.classes, data.size(["test"])
        ((1, 8, 8), 10, 20)
        >>> images, labels = next(data.batches(["weights"], 16, epoch=0))
        >>> images.shape, labels.shape
        (torch.Size([16, 1, 8, 8]), torch.Size([16]))
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: int
    splits: Mapping[str, Tensor]
    mean: Tensor
    std: Tensor
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0
    class_names: tuple[str, ...] = ()

    @staticmethod
    def from_arrays(
        x: ArrayLike,
        y: ArrayLike,
        x_test: ArrayLike | None = None,
        y_test: ArrayLike | None = None,
        *,
        name: str | PathLike[str] = "arrays",
        classes: int | None = None,
        channels: str | None = None,
        fractions: Mapping[str, float] | None = None,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        class_names: Sequence[str] = (),
    ) -> ImageData:
        """Return a data set of your own arrays. Splits are stratified by class.

        Args:
            x: Images, shape (N, H, W), (N, H, W, C) or (N, C, H, W), any integer or floating type.
            y: Labels, shape (N,), integers from 0.
            x_test: Images of the test split; None draws a test split from `x`.
            y_test: Labels of the test split.
            name: Name in records and tables.
            classes: Number of classes; by default the largest label plus one.
            channels: `first` or `last`, where the shape of `x` is ambiguous.
            fractions: Fractions of the splits, in [0, 1): `test` of all images (0.2 by default, without `x_test`), then
                `choices` and `report` (validation) of the others (0.25 each by default). The rest is `weights`.
            augmentation: Random changes of training images; by default none.
            seed: Seed of the splits.
            class_names: Name of every class, for predictions; by default their numbers.

        Raises:
            ValueError: Shapes differ, an image is not finite, a label is out of range, or a class has too few images
                for all splits.
        """
        images = _as_images(x, "x", channels)
        labels = _as_labels(y, "y", len(images))
        n_train = len(images)
        if (x_test is None) != (y_test is None):
            raise ValueError("`x_test` and `y_test` must be given together but one is None.")
        if x_test is not None and y_test is not None:
            test_images = _as_images(x_test, "x_test", channels)
            if test_images.shape[1:] != images.shape[1:]:
                raise ValueError(
                    f"`x_test` must have images like `x`, {tuple(images.shape[1:])}, but has "
                    f"{tuple(test_images.shape[1:])} (channels, height, width)."
                )
            if test_images.dtype != images.dtype:
                raise ValueError(
                    f"`x_test` must be of one kind with `x`, bytes (uint8) or other numbers, but they are "
                    f"{np.asarray(x_test).dtype} and {np.asarray(x).dtype}; bring both to one scale."
                )
            labels = np.concatenate([labels, _as_labels(y_test, "y_test", len(test_images))])
            images = torch.cat([images, test_images])
        lowest, highest = int(np.min(labels)), int(np.max(labels))
        n_classes = highest + 1 if classes is None else checked_count("classes", classes, 2)
        if n_classes < 2:
            raise ValueError(f"`classes` must be at least 2 but got {n_classes}; `y` needs two different labels.")
        if lowest < 0 or highest >= n_classes:
            worst = lowest if lowest < 0 else highest
            raise ValueError(
                f"`y` must hold labels from 0 to {n_classes - 1} but got {worst}; renumber the labels or set `classes`."
            )
        if classes is None:
            check_every_label(labels, "set `classes`")
        names = checked_names(class_names, n_classes)
        seed = checked_seed(seed)
        splits = draw_splits(labels, n_train, dict(fractions or {}), seed)
        train = torch.cat([splits[WEIGHTS], splits[CHOICES]])
        seen = images[train].double() / (255 if images.dtype == torch.uint8 else 1)
        std = seen.std((0, 2, 3))
        return ImageData(
            checked_text(name),
            images,
            torch.from_numpy(labels),
            n_classes,
            splits,
            seen.mean((0, 2, 3)).float(),
            torch.where(std > 0, std, 1).float(),
            augmentation or Augmentation(),
            seed,
            names,
        )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape (channels, height, width) of an image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def device(self) -> torch.device:
        """Device of the images."""
        return self.images.device

    @property
    def outputs(self) -> int:
        """Size of a prediction: number of classes."""
        return self.classes

    @property
    def preprocessing(self) -> Preprocessing:
        """Normalisation of raw images."""
        is_bytes = self.images.dtype == torch.uint8
        mean, std = self.mean[:, None, None], self.std[:, None, None]
        return Preprocessing(self.input_shape, "uint8" if is_bytes else "float32", 255 if is_bytes else 1, mean, std)

    def to(self, device: torch.device | str) -> ImageData:
        """Return the same data on a device; itself if it is there already."""
        if torch.device(device) == self.device:
            return self
        return replace(
            self,
            images=self.images.to(device),
            labels=self.labels.to(device),
            splits={split: positions.to(device) for split, positions in self.splits.items()},
            mean=self.mean.to(device),
            std=self.std.to(device),
        )

    def with_augmentation(self, augmentation: Augmentation) -> ImageData:
        """Return the same images with other random changes; hashes are not computed again."""
        changed = replace(self, augmentation=augmentation)
        changed.__dict__["_description"] = self._description
        return changed

    def size(self, splits: Sequence[str]) -> int:
        """Return the number of images in these splits."""
        return len(positions_of(self.splits, splits))

    def batches(
        self, splits: Sequence[str], batch_size: int, *, seed: int = 0, epoch: int | None = None, start: int = 0
    ) -> Iterator[Batch]:
        """Yield normalised batches of the images in some splits.

        Args:
            splits: Names of splits.
            batch_size: Number of images of a batch, at least 1.
            seed: Seed of order and augmentation, together with `epoch`.
            epoch: Number of the epoch, from 0: images are shuffled and augmented, and an incomplete last batch is
                dropped unless it is the only one. None yields every image once, in order, without augmentation.
            start: First step to yield, from 0; earlier ones are skipped without computing them.

        Raises:
            ValueError: A split is unknown, or `batch_size` is below 1.
        """
        positions, preprocessing = positions_of(self.splits, splits), self.preprocessing
        for step, chosen in enumerate(index_chunks(positions, batch_size, seed, epoch)):
            if step < start:
                continue
            images = preprocessing(self.images[chosen])
            if epoch is not None:
                images = self.augmentation(images, seeded_generator(self.device, seed, epoch, step))
            yield Batch(images, self.labels[chosen])

    def describe(self) -> dict[str, Any]:
        """Return name, shape, seed, normalisation and classes, sizes and hashes of data and splits, as JSON values."""
        return {**self._description, "name": self.name, "augmentation": self.augmentation.describe()}

    @cached_property
    def _description(self) -> dict[str, Any]:
        return {
            "input_shape": list(self.input_shape),
            "classes": self.classes,
            "class_names": list(self.class_names),
            "normalization": self._normalization,
            "seed": self.seed,
            "digest": digest_of(self.images, self.labels),
            "sizes": {split: len(self.splits[split]) for split in SPLITS},
            "split_digests": {split: digest_of(self.splits[split]) for split in SPLITS},
        }

    @property
    def _normalization(self) -> list[list[float]]:
        """Mean, in deviations, and deviation of every channel, rounded: sums of pixels differ between processors."""
        pairs = zip(self.mean.tolist(), self.std.tolist(), strict=True)
        return [[round(mean / max(std, 1e-30), 4) + 0.0, float(f"{std:.4g}")] for mean, std in pairs]


def _as_images(x: ArrayLike, name: str, channels: str | None) -> Tensor:
    array = np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x)
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4:
        if channels not in (None, "first", "last"):
            raise ValueError(f"`channels` must be 'first', 'last' or None but got {channels!r}.")
        first, last = array.shape[1] in (1, 3, 4), array.shape[3] in (1, 3, 4)
        if channels is None and first == last:
            raise ValueError(
                f"`channels` must say 'first' or 'last' where the shape of `{name}` leaves it open: {array.shape}."
            )
        if channels == "last" or (channels is None and last):
            array = array.transpose(0, 3, 1, 2)
    else:
        raise ValueError(f"`{name}` must have shape (N, H, W), (N, H, W, C) or (N, C, H, W) but has {array.shape}.")
    if len(array) == 0:
        raise ValueError(f"`{name}` must hold at least one image but has shape {array.shape}.")
    if array.dtype != np.uint8:
        if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool) or np.iscomplexobj(array):
            raise ValueError(f"`{name}` must be real numbers but has dtype {array.dtype}.")
        array = array.astype(np.float32)
        bad = np.flatnonzero(~np.isfinite(array).all(axis=(1, 2, 3)))
        if len(bad):
            raise ValueError(
                f"`{name}` must be finite but image {bad[0]} (and {len(bad) - 1} more) holds NaN or infinity; "
                "remove or repair them."
            )
    return torch.from_numpy(np.array(array, order="C"))  # a copy, since the caller may change the array


def _as_labels(y: ArrayLike, name: str, n_images: int) -> NDArray[np.int64]:
    labels = np.asarray(y)
    if labels.shape != (n_images,):
        raise ValueError(f"`{name}` must have shape ({n_images},), one label an image, but has {labels.shape}.")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"`{name}` must be integers but has dtype {labels.dtype}; use `y.astype(int)`.")
    return labels.astype(np.int64)

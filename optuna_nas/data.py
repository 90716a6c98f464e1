"""Images in, batches out: four fixed splits, augmentation on the training device, no hidden random state.

N images, B of them in a batch, C channels, H height, W width.

Every batch is a function of (seed, epoch, step): a training that was interrupted goes on with the very batches it would
have seen.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

WEIGHTS, CHOICES, REPORT, TEST = "weights", "choices", "report", "test"
SPLITS = (WEIGHTS, CHOICES, REPORT, TEST)
"""`weights` trains networks, `choices` trains what chooses (bilevel methods only), `report` is what a trial returns and
is never trained on, `test` is touched once, at the end."""

TRAIN = (WEIGHTS, CHOICES)
"""What an ordinary training learns from."""


class Batch(NamedTuple):
    """Normalised images, shape (B, C, H, W), float32, and their labels, shape (B,), int64."""

    images: Tensor
    labels: Tensor


class Data(Protocol):
    """What a training needs of its data; `ImageData` and `ImageFolderData` provide it."""

    @property
    def name(self) -> str:
        """What it is called in reports."""

    @property
    def classes(self) -> int:
        """Number of classes."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""

    @property
    def device(self) -> torch.device:
        """Where batches come out."""

    def size(self, splits: Sequence[str]) -> int:
        """Return the number of images in these splits."""

    def batches(
        self, splits: Sequence[str], batch_size: int, *, seed: int = 0, epoch: int | None = None, start: int = 0
    ) -> Iterator[Batch]:
        """Yield batches from step `start` on: shuffled and augmented for an `epoch`, plain and in order for None."""

    def describe(self) -> dict[str, Any]:
        """Return what makes a result repeatable: name, sizes and digests of the splits, seed."""


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


@dataclass(frozen=True, eq=False)
class ImageData:
    """A set of images small enough to live on the training device.

    Make one with `digits()`, `cifar10()`, ..., or `ImageData.from_arrays(x, y)`.

    Args:
        name: For records and tables.
        images: Shape (N, C, H, W), uint8 or float32.
        labels: Shape (N,), int64, from 0 to `classes - 1`.
        classes: Number of classes.
        splits: For each of `SPLITS` the positions of its images, disjoint.
        mean: Shape (C,), subtracted before training.
        std: Shape (C,), divided by.
        augmentation: Random changes while training.
        seed: Which seed drew the splits.
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

    @staticmethod
    def from_arrays(
        x: ArrayLike,
        y: ArrayLike,
        x_test: ArrayLike | None = None,
        y_test: ArrayLike | None = None,
        *,
        name: str = "arrays",
        classes: int | None = None,
        channels: str | None = None,
        fractions: Mapping[str, float] | None = None,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> ImageData:
        """Make a data set of your own arrays; splits are drawn per class, so every split has every class.

        Args:
            x: Images, shape (N, H, W), (N, H, W, C) or (N, C, H, W), any integer or floating type.
            y: Labels, shape (N,), integers from 0.
            x_test: Images of a given test split; without, one is drawn from `x`.
            y_test: Their labels.
            name: For records and tables.
            classes: Number of classes; by default the largest label plus one.
            channels: `first` or `last` where the shape of `x` leaves it open.
            fractions: Shares of `choices`, `report` and (without `x_test`) `test`; default a quarter, a quarter and a
                fifth of what the test split leaves, or of all. The rest is `weights`.
            augmentation: Random changes while training; none by default.
            seed: Draws the splits.

        Raises:
            ValueError: Shapes disagree, an image is not finite, a label is out of range, or a class has too few images
                for so many splits.
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
        n_classes = int(labels.max()) + 1 if classes is None else classes
        if n_classes < 2:
            raise ValueError(f"`classes` must be at least 2 but got {n_classes}; `y` needs two different labels.")
        if labels.min() < 0 or labels.max() >= n_classes:
            worst = int(labels.min() if labels.min() < 0 else labels.max())
            raise ValueError(
                f"`y` must hold labels from 0 to {n_classes - 1} but got {worst}; renumber the labels or set `classes`."
            )
        splits = _draw_splits(labels, n_train, dict(fractions or {}), seed)
        train = torch.cat([splits[WEIGHTS], splits[CHOICES]])
        seen = images[train].double() / (255 if images.dtype == torch.uint8 else 1)
        std = seen.std((0, 2, 3))
        return ImageData(
            name,
            images,
            torch.from_numpy(labels),
            n_classes,
            splits,
            seen.mean((0, 2, 3)).float(),
            torch.where(std > 0, std, 1).float(),
            augmentation or Augmentation(),
            seed,
        )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def device(self) -> torch.device:
        """Where the images live."""
        return self.images.device

    def to(self, device: torch.device | str) -> ImageData:
        """Return the same data on another device (itself where it is there already)."""
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

    def size(self, splits: Sequence[str]) -> int:
        """Return the number of images in these splits."""
        return len(_positions(self.splits, splits))

    def batches(
        self, splits: Sequence[str], batch_size: int, *, seed: int = 0, epoch: int | None = None, start: int = 0
    ) -> Iterator[Batch]:
        """Yield normalised batches of the images in `splits`.

        Args:
            splits: Names out of `SPLITS`.
            batch_size: Images in a batch.
            seed: With `epoch`, decides order and augmentation.
            epoch: Number of the epoch, shuffled and augmented, the last incomplete batch left out (unless it is the
                only one); None: every image once, in order, as it is.
            start: First step to yield; the others are skipped at no cost.

        Raises:
            ValueError: A split is unknown or `batch_size` is not positive.
        """
        positions = _positions(self.splits, splits)
        for step, chosen in enumerate(_chunks(positions, batch_size, seed, epoch)):
            if step < start:
                continue
            images = self.images[chosen].float()  # a copy of ours to change
            if self.images.dtype == torch.uint8:
                images.div_(255)
            images.sub_(self.mean[:, None, None]).div_(self.std[:, None, None])
            if epoch is not None:
                images = self.augmentation(images, seeded_generator(self.device, seed, epoch, step))
            yield Batch(images, self.labels[chosen])

    def describe(self) -> dict[str, Any]:
        """Return name, shape, seed, and size and digest of the data and of every split."""
        return {**self._description, "name": self.name}

    @cached_property
    def _description(self) -> dict[str, Any]:
        return {
            "input_shape": list(self.input_shape),
            "classes": self.classes,
            "seed": self.seed,
            "digest": _digest(self.images, self.labels),
            "sizes": {split: len(self.splits[split]) for split in SPLITS},
            "split_digests": {split: _digest(self.splits[split]) for split in SPLITS},
        }


def _digest(*tensors: Tensor) -> str:
    hashed = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        hashed.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
    return hashed.hexdigest()


def _positions(known: Mapping[str, Tensor], splits: Sequence[str]) -> Tensor:
    """Return the positions of all images in `splits`."""
    for split in splits:
        if split not in known:
            raise ValueError(f"`split` must be one of {SPLITS} but got {split!r}.")
    return torch.cat([known[split] for split in splits])


def _chunks(positions: Tensor, batch_size: int, seed: int, epoch: int | None) -> Sequence[Tensor]:
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1 but got {batch_size}.")
    if epoch is None:
        return list(positions.split(batch_size))
    order = torch.randperm(len(positions), generator=seeded_generator(torch.device("cpu"), seed, epoch))
    chunks = list(positions[order.to(positions.device)].split(batch_size))
    return chunks[:-1] if len(chunks) > 1 and len(chunks[-1]) < batch_size else chunks


def seeded_generator(device: torch.device, *key: int) -> torch.Generator:
    """Return a generator whose numbers depend on the key alone."""
    state = int(np.random.SeedSequence([len(key), *(abs(part) for part in key)]).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(state >> 1)


def _as_images(x: ArrayLike, name: str, channels: str | None) -> Tensor:
    array = np.asarray(x)
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
        if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
            raise ValueError(f"`{name}` must be numbers but has dtype {array.dtype}.")
        array = array.astype(np.float32)
        bad = np.flatnonzero(~np.isfinite(array).all(axis=(1, 2, 3)))
        if len(bad):
            raise ValueError(
                f"`{name}` must be finite but image {bad[0]} (and {len(bad) - 1} more) holds NaN or infinity; "
                "remove or repair them."
            )
    return torch.from_numpy(np.array(array, order="C"))  # a copy, for the caller may write into the array


def _as_labels(y: ArrayLike, name: str, n_images: int) -> NDArray[np.int64]:
    labels = np.asarray(y)
    if labels.shape != (n_images,):
        raise ValueError(f"`{name}` must have shape ({n_images},), one label an image, but has {labels.shape}.")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"`{name}` must be integers but has dtype {labels.dtype}; use `y.astype(int)`.")
    return labels.astype(np.int64)


def _draw_splits(labels: NDArray[np.int64], n_train: int, fractions: dict[str, float], seed: int) -> dict[str, Tensor]:
    """Draw disjoint splits class by class; images from `n_train` on are a given test split."""
    shares = {CHOICES: 0.25, REPORT: 0.25, TEST: 0.2, **fractions}
    given_test = n_train < len(labels)
    unknown = sorted(set(fractions) - {CHOICES, REPORT, TEST})
    if unknown:
        raise ValueError(f"`fractions` must use 'choices', 'report' and 'test' but got {unknown[0]!r}.")
    if seed < 0:
        raise ValueError(f"`seed` must not be negative but got {seed}.")
    if not min(shares.values()) >= 0 or not max(shares.values()) < 1 or shares[CHOICES] + shares[REPORT] >= 1:
        raise ValueError(f"`fractions` must not be negative and must leave images for 'weights' but are {shares}.")
    rest = np.arange(n_train)
    splits: dict[str, NDArray[np.int64]] = {}
    if given_test:
        splits[TEST] = np.arange(n_train, len(labels))
    else:
        rest, splits[TEST] = _part(rest, labels, shares[TEST], TEST, seed)
    report_share, choices_share = shares[REPORT], shares[CHOICES]
    rest, splits[REPORT] = _part(rest, labels, report_share, REPORT, seed)
    rest, splits[CHOICES] = _part(rest, labels, choices_share / (1 - report_share), CHOICES, seed)
    splits[WEIGHTS] = rest
    for split, positions in splits.items():
        missing = set(np.unique(labels).tolist()) - set(np.unique(labels[positions]).tolist())
        if missing and len(positions) and not (split == TEST and given_test):
            raise ValueError(
                f"`y` must have enough images of every class to draw the split {split!r} but class {min(missing)} has "
                f"{int((labels == min(missing)).sum())}; merge rare classes, or set the share of a split to 0."
            )
    return {split: torch.from_numpy(np.sort(splits[split])) for split in SPLITS}


def _part(
    positions: NDArray[np.int64], labels: NDArray[np.int64], share: float, name: str, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    n_part = round(share * len(positions))
    if n_part == 0:
        return positions, positions[:0]
    from sklearn.model_selection import train_test_split  # a second of import, spared where no split is drawn

    try:
        rest, part = train_test_split(positions, test_size=n_part, random_state=seed, stratify=labels[positions])
    except ValueError as error:
        raise ValueError(
            f"`y` must have enough images of every class to draw the split {name!r} but it fails: {error} "
            "Merge rare classes, or set the share of a split to 0."
        ) from error
    return rest, part


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
        self.splits = _draw_splits(labels, len(train), {CHOICES: 0.0, REPORT: 0.1, **(fractions or {})}, seed)
        self._fractions = dict(fractions or {})

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return 3, self._size, self._size

    def to(self, device: torch.device | str) -> ImageFolderData:
        """Return the same data with batches coming out on another device."""
        if torch.device(device) == self.device:
            return self
        return ImageFolderData(self._root, self._size, self._workers, device, self._fractions, self._seed)

    def size(self, splits: Sequence[str]) -> int:
        """Return the number of images in these splits."""
        return len(_positions(self.splits, splits))

    def batches(
        self, splits: Sequence[str], batch_size: int, *, seed: int = 0, epoch: int | None = None, start: int = 0
    ) -> Iterator[Batch]:
        """Yield normalised batches; see `ImageData.batches`."""
        positions = _positions(self.splits, splits)
        chunks = [chunk.tolist() for chunk in _chunks(positions, batch_size, seed, epoch)][start:]
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
            "split_digests": {split: _digest(self.splits[split]) for split in SPLITS},
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


if TYPE_CHECKING:

    def _provide(images: ImageData, folder: ImageFolderData) -> tuple[Data, Data]:
        return images, folder  # a type checker says so where one of them does not

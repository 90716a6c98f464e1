"""Splits of data sets, and the protocol of data.

Every batch is a function of (split, seed, epoch, step), so that a resumed training sees the same batches.
"""

from __future__ import annotations

import hashlib
import operator
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from optuna_nas.data.stratified import stratified_split

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray


WEIGHTS, CHOICES, REPORT, TEST = "weights", "choices", "report", "test"
SPLITS = (WEIGHTS, CHOICES, REPORT, TEST)
"""Names of the splits: `weights` trains networks, `choices` trains the choices of bilevel methods, `report` is the
validation split of a trial's value, `test` is evaluated once, at the end."""

TRAIN = (WEIGHTS, CHOICES)
"""Splits of an ordinary training."""


class Data(Protocol):
    """Protocol of data: splits, and batches of them on a device.

    `ImageData`, `ImageFolderData`, `TensorData`, `DatasetData` and `LoaderData` implement it.

    Example:
        >>> from optuna_nas import digits
        >>> from optuna_nas.data import Data
        >>> def n_batches(data: Data, split: str) -> int:
        ...     return len(list(data.batches([split], batch_size=64)))
        >>> n_batches(digits(), "report")
        6
    """

    @property
    def name(self) -> str:
        """Name in records and tables."""

    @property
    def device(self) -> torch.device:
        """Device of the batches."""

    def to(self, device: torch.device | str) -> Self:
        """Return the same data with batches on a device; itself if they are there already."""

    def size(self, splits: Sequence[str]) -> int:
        """Return the number of examples in these splits."""

    def batches(
        self, splits: Sequence[str], batch_size: int, *, seed: int = 0, epoch: int | None = None, start: int = 0
    ) -> Iterator[Any]:
        """Yield batches from step `start` on; see `ImageData.batches`."""

    def describe(self) -> dict[str, Any]:
        """Return everything that determines the batches, as JSON values: name, sizes and hashes of the splits, seed."""


def digest_of(*tensors: Tensor) -> str:
    """Return a hash of the values of tensors, 16 hexadecimal digits."""
    hashed = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        values = tensor.detach().cpu()
        bits = values.view(torch.int16) if values.dtype == torch.bfloat16 else values  # a type that NumPy lacks
        hashed.update(np.ascontiguousarray(bits.numpy()).data)
    return hashed.hexdigest()


def digest_of_text(text: str) -> str:
    """Return a hash of a text, 16 hexadecimal digits."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def check_every_label(labels: NDArray[np.int64], otherwise: str) -> None:
    """Check that every label from 0 to the highest occurs.

    Args:
        labels: Labels from 0, of any shape.
        otherwise: What else the caller can do, for the message.

    Raises:
        ValueError: A label is absent.

    Example:
        >>> import numpy as np
        >>> from optuna_nas.data.splits import check_every_label
        >>> check_every_label(np.array([1, 0]), "set `classes`")
        >>> check_every_label(np.array([1, 3]), "set `classes`")
        Traceback (most recent call last):
            ...
        ValueError: `y` must hold every label from 0 to 3 but lacks 0; renumber them by \
`np.unique(y, return_inverse=True)[1]`, or set `classes`.
    """
    present = np.unique(labels)
    if len(present) <= present[-1]:
        absent = next(number for number, label in enumerate(present.tolist()) if number != label)
        raise ValueError(
            f"`y` must hold every label from 0 to {present[-1]} but lacks {absent}; renumber them by "
            f"`np.unique(y, return_inverse=True)[1]`, or {otherwise}."
        )


def checked_names(names: Sequence[str], n_classes: int) -> tuple[str, ...]:
    """Return names of classes.

    Raises:
        ValueError: There is not one different name for each class.

    Example:
        >>> from optuna_nas.data.splits import checked_names
        >>> checked_names(["cat", "dog"], 2)
        ('cat', 'dog')
    """
    names = tuple(map(str, names))
    if names and len(set(names)) != n_classes:
        raise ValueError(f"`class_names` must be {n_classes} different names but got {len(set(names))}.")
    return names


def checked_count(name: str, value: Any, least: int) -> int:
    """Return a whole number as a Python integer; NumPy's are taken.

    Raises:
        ValueError: It is no integer, or less than `least`.

    Example:
        >>> import numpy as np
        >>> from optuna_nas.data.splits import checked_count
        >>> checked_count("size", np.int64(8), 1)
        8
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise ValueError(f"`{name}` must be an integer of at least {least} but got {value!r}.")
    return number


def checked_text(name: str | PathLike[str]) -> str:
    """Return the name of data as a text; paths are taken.

    Raises:
        ValueError: It is neither.

    Example:
        >>> from pathlib import Path
        >>> from optuna_nas.data.splits import checked_text
        >>> checked_text(Path("pets"))
        'pets'
    """
    if not isinstance(name, str | PathLike):
        raise ValueError(f"`name` must be a text but got {name!r}.")
    return str(name)


def positions_of(positions: Mapping[str, Tensor], splits: Sequence[str]) -> Tensor:
    """Return the positions of all examples in some splits.

    Args:
        positions: Positions of the examples of every split.
        splits: Names of splits.

    Raises:
        ValueError: A split is unknown.
    """
    for split in splits:
        if split not in positions:
            raise ValueError(f"`split` must be one of {SPLITS} but got {split!r}.")
    return torch.cat([positions[split] for split in splits])


def index_chunks(positions: Tensor, batch_size: int, seed: int, epoch: int | None) -> Sequence[Tensor]:
    """Return the positions of the examples of every batch: shuffled for an epoch, in order for None.

    Raises:
        ValueError: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1 but got {batch_size}.")
    if epoch is None:
        return list(positions.split(batch_size))
    order = torch.randperm(len(positions), generator=seeded_generator(torch.device("cpu"), seed, epoch))
    chunks = list(positions[order.to(positions.device)].split(batch_size))
    return chunks[:-1] if len(chunks) > 1 and len(chunks[-1]) < batch_size else chunks


def seeded_generator(device: torch.device, *key: int) -> torch.Generator:
    """Return a random generator whose numbers depend only on the key.

    Args:
        device: Device of the generator.
        *key: Integers, such as (seed, epoch, step).

    Example:
        >>> import torch
        >>> from optuna_nas.data import seeded_generator
        >>> first, second = (torch.rand(1, generator=seeded_generator(torch.device("cpu"), 0, 7)) for _ in range(2))
        >>> torch.equal(first, second)
        True
    """
    state = int(np.random.SeedSequence([len(key), *(abs(part) for part in key)]).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(state >> 1)


def checked_seed(seed: Any) -> int:
    """Return a seed of splits as a Python integer; NumPy's are taken.

    Raises:
        ValueError: It is no integer, or out of range.

    Example:
        >>> import numpy as np
        >>> from optuna_nas.data.splits import checked_seed
        >>> checked_seed(np.int64(3))
        3
    """
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number < 2**63 or isinstance(seed, bool):
        raise ValueError(f"`seed` must be an integer from 0 to 2**63 - 1 but got {seed!r}.")
    return number


def draw_splits(labels: NDArray[np.int64], n_train: int, fractions: dict[str, float], seed: int) -> dict[str, Tensor]:
    """Draw disjoint splits, stratified by label.

    Args:
        labels: Label of every example, shape (N,).
        n_train: Number of examples to draw splits from; later ones are a given test split.
        fractions: Fractions of `choices`, `report` and `test` that differ from the defaults 0.25, 0.25 and 0.2.
        seed: Seed of the splits, at least 0.

    Returns:
        Positions of the examples of every split, sorted.

    Raises:
        ValueError: A fraction is out of range, or a class has too few examples.
    """
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
    try:
        rest, part = stratified_split(labels[positions], n_part, seed)
    except ValueError as error:
        raise ValueError(
            f"`y` must have enough images of every class to draw the split {name!r} but it fails: {error} "
            "Merge rare classes, or set the share of a split to 0."
        ) from error
    return positions[rest], positions[part]

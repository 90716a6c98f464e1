"""Splits of a data set, batches out of them, and what a training needs of any data.

Every batch is a function of (seed, epoch, step): a training that was interrupted goes on with the very batches it would
have seen.
"""

from __future__ import annotations

import hashlib
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
"""`weights` trains networks, `choices` trains what chooses (bilevel methods only), `report` is what a trial returns and
is never trained on, `test` is touched once, at the end."""

TRAIN = (WEIGHTS, CHOICES)
"""What an ordinary training learns from."""


class Data(Protocol):
    """What a training needs of its data: splits, and batches of them on a device.

    `ImageData`, `ImageFolderData`, `TensorData`, `DatasetData` and `LoaderData` provide it.
    """

    @property
    def name(self) -> str:
        """Name in reports."""

    @property
    def device(self) -> torch.device:
        """Device of the batches."""

    def to(self, device: torch.device | str) -> Self:
        """Return the same data with batches on another device (itself where they are there already)."""

    def size(self, splits: Sequence[str]) -> int:
        """Return the number of examples in these splits."""

    def batches(
        self, splits: Sequence[str], batch_size: int, *, seed: int = 0, epoch: int | None = None, start: int = 0
    ) -> Iterator[Any]:
        """Yield batches from step `start` on: shuffled and augmented for an `epoch`, plain and in order for None."""

    def describe(self) -> dict[str, Any]:
        """Return what makes a result repeatable: name, sizes and digests of the splits, seed."""


def digest_of(*tensors: Tensor) -> str:
    """Return a short digest of the numbers of tensors."""
    hashed = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        hashed.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
    return hashed.hexdigest()


def positions_of(known: Mapping[str, Tensor], splits: Sequence[str]) -> Tensor:
    """Return the positions of all images in `splits`."""
    for split in splits:
        if split not in known:
            raise ValueError(f"`split` must be one of {SPLITS} but got {split!r}.")
    return torch.cat([known[split] for split in splits])


def index_chunks(positions: Tensor, batch_size: int, seed: int, epoch: int | None) -> Sequence[Tensor]:
    """Return the positions of every batch: shuffled for an epoch, in order for None."""
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


def draw_splits(labels: NDArray[np.int64], n_train: int, fractions: dict[str, float], seed: int) -> dict[str, Tensor]:
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
    try:
        rest, part = stratified_split(labels[positions], n_part, seed)
    except ValueError as error:
        raise ValueError(
            f"`y` must have enough images of every class to draw the split {name!r} but it fails: {error} "
            "Merge rare classes, or set the share of a split to 0."
        ) from error
    return positions[rest], positions[part]

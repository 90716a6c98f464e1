"""PyTorch `Dataset`s as data."""

from __future__ import annotations

from copy import copy
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, default_collate

from optuna_nas.data.batches import tensors_of, to_device
from optuna_nas.data.examples import SeededExamples, SingleBatches, digest_of_twice, spread
from optuna_nas.data.splits import (
    SPLITS,
    checked_count,
    checked_seed,
    checked_text,
    digest_of,
    draw_splits,
    index_chunks,
    positions_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
    from os import PathLike


class DatasetData:
    """Data of a map-style PyTorch `Dataset`, and optionally a second one for the test split.

    Order and random transforms depend only on seed, epoch and example. A resumed training therefore sees the same
    batches, with any number of workers.

    Args:
        dataset: Examples of all splits, or of all but the test split if `test` is given.
        test: Examples of the test split; None draws a test split from `dataset`.
        name: Name in records and tables.
        plain: The examples of `dataset` without random transforms, for evaluation; by default `dataset`.
        labels: Class of every example of `dataset`, for stratified splits; None for random splits.
        fractions: Fractions of the splits, as in `ImageData.from_arrays`.
        outputs: Size of a prediction: number of classes, or of values that a regression predicts; None if unknown.
        collate: Function from a list of examples to a batch; by default PyTorch's.
        n_workers: Number of processes that load examples; 0 loads in the training process.
        device: Device of the batches.
        seed: Seed of the splits, at least 0.

    Raises:
        ValueError: A dataset has no length or is empty, the lengths of `dataset` and `plain` differ, or a number is no
            integer.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from optuna_nas import DatasetData
        >>> data = DatasetData(TensorDataset(torch.rand(100, 3), torch.rand(100)), outputs=1)
        >>> [tuple(tensor.shape) for tensor in next(data.batches(["report"], 4))]
        [(4, 3), (4,)]
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        test: Dataset[Any] | None = None,
        *,
        name: str | PathLike[str] = "dataset",
        plain: Dataset[Any] | None = None,
        labels: Sequence[int] | None = None,
        fractions: Mapping[str, float] | None = None,
        outputs: int | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
        n_workers: int = 0,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        self.name, self.device = checked_text(name), torch.device(device)
        self.outputs = None if outputs is None else checked_count("outputs", outputs, 1)
        self._n_workers, self._seed = checked_count("n_workers", n_workers, 0), checked_seed(seed)
        self._type, self._collate = type(dataset).__name__, collate or default_collate
        n_train = _length(dataset, "dataset")
        n_test = 0 if test is None else _length(test, "test")
        if plain is not None and _length(plain, "plain") != n_train:
            raise ValueError(
                f"`plain` must hold the examples of `dataset`, {n_train}, but has {_length(plain, 'plain')}."
            )
        if labels is not None and len(labels) not in (n_train, n_train + n_test):
            raise ValueError(f"`labels` must have one for each of {n_train} examples but has {len(labels)}.")
        strata = np.zeros(n_train + n_test, dtype=np.int64)
        if labels is not None:
            strata[:n_train] = np.asarray(labels)[:n_train]
        self.splits = draw_splits(strata, n_train, dict(fractions or {}), self._seed)
        self._dataset = dataset if test is None else ConcatDataset([dataset, test])
        self._plain = self._dataset if plain is None else plain if test is None else ConcatDataset([plain, test])

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """Shape of the first item of an example, None if that is not a tensor or array."""
        example = SeededExamples(self._plain, 0, 0)[0]
        first = example[0] if isinstance(example, list | tuple) else example
        return tuple(first.shape) if isinstance(first, Tensor | np.ndarray) else None

    def to(self, device: torch.device | str) -> DatasetData:
        """Return the same data with batches on a device."""
        if torch.device(device) == self.device:
            return self
        moved = copy(self)  # with the hashes that are known
        moved.device = torch.device(device)
        return moved

    def size(self, splits: Sequence[str]) -> int:
        """Return the number of examples in these splits."""
        return len(positions_of(self.splits, splits))

    def batches(
        self, splits: Sequence[str], batch_size: int, *, seed: int = 0, epoch: int | None = None, start: int = 0
    ) -> Iterator[Any]:
        """Yield batches of the examples in some splits; see `ImageData.batches`."""
        chunks = index_chunks(positions_of(self.splits, splits), batch_size, seed, epoch)[start:]
        loader: DataLoader[Any] = DataLoader(
            SeededExamples(self._plain if epoch is None else self._dataset, seed, epoch or 0),
            batch_sampler=[chunk.tolist() for chunk in chunks],
            num_workers=self._n_workers,
            collate_fn=self._collate,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # without one, the loader would draw from the global generator
        )
        for batch in loader:
            yield to_device(batch, self.device)

    def describe(self) -> dict[str, Any]:
        """Return name, type and seed, sizes and hashes of the splits, and hashes of some examples, as JSON values."""
        return {
            "name": self.name,
            "type": self._type,
            "outputs": self.outputs,
            "seed": self._seed,
            "digest": self._digest,
            "examples": self._examples,
            "sample": self._sample,
            "sizes": {split: len(self.splits[split]) for split in SPLITS},
            "split_digests": {split: digest_of(self.splits[split]) for split in SPLITS},
        }

    @cached_property
    def _digest(self) -> str:
        """Hash of the first example of the first split that has one."""
        first = next(int(self.splits[split][0]) for split in SPLITS if len(self.splits[split]))
        return digest_of(*tensors_of(self._collate([SeededExamples(self._plain, 0, 0)[first]])))

    @cached_property
    def _examples(self) -> str | None:
        """Hash of the first and the last example of every split, as trainings see them; None if no two are alike."""
        ends = [int(self.splits[split][place]) for split in SPLITS if len(self.splits[split]) for place in (0, -1)]

        def seen() -> str:
            examples = SeededExamples(self._dataset, 0, 1)
            return digest_of(*(tensor for place in ends for tensor in tensors_of(self._collate([examples[place]]))))

        digest = seen()
        return digest if digest == seen() else None  # transforms may draw from generators of their own

    @cached_property
    def _sample(self) -> str | None:
        """Hash of evenly spaced examples, as evaluations see them; None if no two are alike."""
        batches, places = SingleBatches(self._plain, self._collate), spread(self.size(SPLITS))
        return digest_of_twice(batches[place] for place in [*places, *places])


def _length(dataset: Dataset[Any], name: str) -> int:
    if not hasattr(dataset, "__len__"):
        raise ValueError(
            f"`{name}` must be a map-style Dataset with a length but is a {type(dataset).__name__}; use `LoaderData` "
            "for streams."
        )
    length = len(cast("Sized", dataset))
    if length == 0:
        raise ValueError(f"`{name}` must hold at least one example but is empty.")
    return length

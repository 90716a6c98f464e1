"""PyTorch `DataLoader`s as data."""

from __future__ import annotations

from copy import copy
from functools import cached_property
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from optuna_nas.data.batches import batch_length, to_device
from optuna_nas.data.examples import SingleBatches, digest_of_twice, seeded, spread
from optuna_nas.data.splits import SPLITS, TRAIN, checked_count, checked_text, seeded_generator

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from os import PathLike


class LoaderData:
    """Data of PyTorch `DataLoader`s, one per split, with their own samplers, collation, workers and batch size.

    A loader with a `generator` is seeded by seed and epoch, so that a resumed training sees the same batches. Without a
    generator it may see other batches, which `describe` reports. `DatasetData` always repeats its batches.

    A study is refused other data: `describe` has a hash of some evenly spaced examples of every split, read from the
    dataset and not from the loader, whose random state stays as it is. Streams, and datasets whose transforms draw from
    generators of their own, are told apart by name and sizes alone; give other ones another name.

    Args:
        loaders: Loader of each split: `weights` and `report` (validation) are required, `choices` and `test` are not.
        name: Name in records and tables.
        outputs: Size of a prediction: number of classes, or of values that a regression predicts; None if unknown.
        device: Device of the batches.

    Raises:
        ValueError: A split is unknown, `weights` or `report` is missing, a loader has no length, or `outputs` is no
            integer.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from optuna_nas import LoaderData
        >>> def loader(n_examples):
        ...     return DataLoader(TensorDataset(torch.rand(n_examples, 3), torch.rand(n_examples)), batch_size=8)
        >>> data = LoaderData({"weights": loader(64), "report": loader(16)})
        >>> data.size(["weights"]), len(list(data.batches(["weights"], 8, epoch=0)))
        (64, 8)
    """

    def __init__(
        self,
        loaders: Mapping[str, DataLoader[Any]],
        *,
        name: str | PathLike[str] = "loaders",
        outputs: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        unknown = sorted(set(loaders) - set(SPLITS))
        if unknown:
            raise ValueError(f"`loaders` must be of the splits {SPLITS} but got {unknown[0]!r}.")
        missing = [split for split in ("weights", "report") if split not in loaders]
        if missing:
            raise ValueError(f"`loaders` must have one for {missing[0]!r} but has {sorted(loaders)}; add it.")
        for split, loader in loaders.items():
            if not hasattr(loader.dataset, "__len__"):
                raise ValueError(
                    f"`loaders[{split!r}]` must have a known length but is of a {type(loader.dataset).__name__}; give "
                    "that a method `__len__`."
                )
        self.loaders, self.name, self.device = dict(loaders), checked_text(name), torch.device(device)
        self.outputs = None if outputs is None else checked_count("outputs", outputs, 1)

    def to(self, device: torch.device | str) -> LoaderData:
        """Return the same data with batches on a device."""
        if torch.device(device) == self.device:
            return self
        moved = copy(self)  # with the hashes that are known
        moved.device = torch.device(device)
        return moved

    def size(self, splits: Sequence[str]) -> int:
        """Return the number of examples in these splits."""
        return sum(self._length(split) for split in splits)

    @property
    def _sizes(self) -> dict[str, int]:
        return {split: self._length(split) for split in SPLITS}

    def _length(self, split: str) -> int:
        if split not in self.loaders:
            return 0
        loader = self.loaders[split]
        if loader.batch_size is None:  # the dataset yields whole batches
            with seeded(0):  # which leaves the global generators as they are
                return len(loader) * batch_length(next(iter(loader)))
        return len(loader) * loader.batch_size if loader.drop_last else len(loader.dataset)  # type: ignore[arg-type]

    def batches(
        self, splits: Sequence[str], batch_size: int, *, seed: int = 0, epoch: int | None = None, start: int = 0
    ) -> Iterator[Any]:
        """Yield the batches of the loaders, on the device.

        Args:
            splits: Names of splits.
            batch_size: Batch size of the loaders; ignored if `epoch` is None.
            seed: Seed of the loaders' generators, together with `epoch`.
            epoch: Number of the epoch, from 0; None for an evaluation.
            start: First step to yield, from 0; earlier batches are loaded and discarded.

        Raises:
            ValueError: A split is unknown, or `batch_size` differs from that of a loader in training.
        """
        parts = []
        for split in splits:
            if split not in SPLITS:
                raise ValueError(f"`split` must be one of {SPLITS} but got {split!r}.")
            if split not in self.loaders:
                continue
            loader = self.loaders[split]
            if epoch is not None and loader.batch_size not in (None, batch_size):
                raise ValueError(
                    f"`batch_size` must be that of the loader of {split!r}, {loader.batch_size}, but is {batch_size}; "
                    f"use Recipe(batch_size={loader.batch_size})."
                )
            parts.append(loader)
        n_steps = None if epoch is None else max(1, self.size(splits) // batch_size)  # as many as a training counts
        for loader in parts:
            if loader.generator is not None:
                key = (seed, -1 if epoch is None else epoch)
                loader.generator.manual_seed(seeded_generator(torch.device("cpu"), *key).initial_seed())
        for batch in islice(chain(*parts), start, n_steps):
            yield to_device(batch, self.device)

    def describe(self) -> dict[str, Any]:
        """Return name, sizes, hashes of examples, and whether a resumed training sees the same batches; JSON values."""
        repeatable = all(self.loaders[split].generator is not None for split in TRAIN if split in self.loaders)
        return {
            "name": self.name,
            "outputs": self.outputs,
            "sizes": self._sizes,
            "examples": self._examples,
            "resume": "same batches" if repeatable else "may see other batches: a loader has no generator",
        }

    @cached_property
    def _examples(self) -> dict[str, str | None]:
        """Hash of evenly spaced examples of every split; None if they are not known."""
        return {split: _digest_of(loader) for split, loader in sorted(self.loaders.items())}


def _digest_of(loader: DataLoader[Any]) -> str | None:
    """Return a hash of evenly spaced examples of a loader's dataset; None for a stream, or if no two are alike."""
    if isinstance(loader.dataset, IterableDataset):  # to begin a stream may change what comes next
        return None
    try:
        sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
        indices = getattr(sampler, "indices", None)  # of a `SubsetRandomSampler`
        places = range(len(loader.dataset)) if indices is None else sorted(map(int, indices))  # type: ignore[arg-type]
        chosen = [places[place] for place in spread(len(places))] * 2
        # A dataset that opens its files in a worker must not open them here, where later workers would inherit them.
        batches: DataLoader[Any] = DataLoader(
            SingleBatches(loader.dataset, loader.collate_fn, whole=loader.batch_sampler is None),
            batch_size=None,
            sampler=chosen,
            num_workers=min(1, loader.num_workers),
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            generator=torch.Generator(),  # without one, the loader would draw from the global generator
        )
        return digest_of_twice(batches)
    except Exception:  # of indices or a collation that are the loader's own; a training will say what else is wrong
        return None

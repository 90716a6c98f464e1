"""Single examples of data sets, read with seeded generators, and hashes of evenly spaced ones."""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from optuna_nas.data.batches import tensors_of
from optuna_nas.data.splits import digest_of, digest_of_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

N_SAMPLED = 16
"""Number of examples whose content a description tells."""


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and PyTorch by a key, and restore them afterwards.

    Example:
        >>> import random
        >>> from optuna_nas.data.examples import seeded
        >>> with seeded(0, 1):
        ...     first = random.random()
        >>> with seeded(0, 1):
        ...     first == random.random()
        True
    """
    state = np.random.SeedSequence(key).generate_state(2)
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(int(state[0]))
        np.random.seed(int(state[1]))
        torch.manual_seed(int(state[0]))
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


class SeededExamples(Dataset[Any]):
    """Dataset whose random transforms depend on key and example alone."""

    def __init__(self, dataset: Dataset[Any], *key: int) -> None:
        self._dataset, self._key = dataset, key

    def __getitem__(self, index: int) -> Any:
        with seeded(*self._key, index):
            return self._dataset[index]


class SingleBatches(Dataset[Any]):
    """Batches of one example each, whose random transforms and collation depend on the example alone.

    Args:
        dataset: Examples.
        collate: Function from a list of examples to a batch; from one example to a batch if `whole`.
        whole: Whether an example of the dataset is a batch.
    """

    def __init__(self, dataset: Dataset[Any], collate: Callable[[Any], Any], whole: bool = False) -> None:
        self._dataset, self._collate, self._whole = dataset, collate, whole

    def __getitem__(self, index: int) -> Any:
        with seeded(0, 0, index):
            example = self._dataset[index]
            return self._collate(example if self._whole else [example])


def spread(n: int, most: int = N_SAMPLED) -> list[int]:
    """Return evenly spaced positions of `n`, at most `most` of them, the first and the last among them.

    Example:
        >>> from optuna_nas.data.examples import spread
        >>> spread(100, 4), spread(2)
        ([0, 33, 66, 99], [0, 1])
    """
    return [int(place) for place in np.linspace(0, n - 1, min(n, most)).round()]


def digest_of_twice(batches: Iterable[Any]) -> str | None:
    """Return a hash of batches that all come a second time; None if they differ then.

    They do where transforms draw from generators of their own.

    Example:
        >>> import torch
        >>> from optuna_nas.data.examples import digest_of_twice
        >>> digest_of_twice([torch.zeros(1), torch.ones(1)] * 2)
        '6d6a249324e99fdf'
        >>> digest_of_twice([torch.zeros(1), torch.ones(1)])
    """
    digests = [digest_of(*tensors_of(batch)) for batch in batches]
    half = len(digests) // 2
    return digest_of_text(" ".join(digests[:half])) if digests[:half] == digests[half:] else None

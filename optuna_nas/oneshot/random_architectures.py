"""Random architectures that reach their output, for scores that are compared with each other."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from optuna_nas.space import Architecture, Space

DRAWS = 100
"""Draws per architecture before a space counts as too small for so many."""


def connected_architectures(space: Space, random: np.random.Generator, number: int) -> Iterator[Architecture]:
    """Yield random connected architectures of a space, of up to `DRAWS * number` draws; some may be equal.

    Example:
        >>> import numpy as np
        >>> from optuna_nas import nasbench201_space
        >>> from optuna_nas.oneshot.random_architectures import connected_architectures
        >>> drawn = connected_architectures(nasbench201_space(), np.random.default_rng(0), 5)
        >>> all(architecture.connected for architecture in drawn)
        True
    """
    draws = (space.sample(random) for _ in range(DRAWS * number))
    return (architecture for architecture in draws if architecture.connected)


def some_architectures(space: Space, random: np.random.Generator, number: int) -> list[Architecture]:
    """Return the first of `connected_architectures`, `number` of them unless the space has fewer."""
    return list(islice(connected_architectures(space, random, number), number))

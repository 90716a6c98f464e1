"""Directions of objectives: one place that knows which values are better."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray
from optuna.study import StudyDirection

if TYPE_CHECKING:
    from collections.abc import Sequence

Value = TypeVar("Value", float, NDArray[np.float64])


def oriented(value: Value, direction: StudyDirection) -> Value:
    """Return a value turned so that larger is better: negated where the study minimises.

    >>> oriented(0.5, StudyDirection.MAXIMIZE), oriented(0.5, StudyDirection.MINIMIZE)
    (0.5, -0.5)

    Args:
        value: Of an objective; a number or an array.
        direction: Direction of that objective, such as `study.directions[0]`.
    """
    return value if direction == StudyDirection.MAXIMIZE else -value


def better(values: Sequence[float], direction: StudyDirection) -> float:
    """Return the best of some values.

    >>> better([0.5, 0.7], StudyDirection.MINIMIZE)
    0.5
    """
    return max(values, key=lambda value: oriented(value, direction))

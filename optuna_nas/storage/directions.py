"""Comparison of values in the direction of an objective."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray
from optuna.study import StudyDirection

if TYPE_CHECKING:
    from collections.abc import Sequence

Value = TypeVar("Value", float, NDArray[np.float64])


def oriented(value: Value, direction: StudyDirection) -> Value:
    """Return a value such that larger is better: negated for minimization.

    Args:
        value: Value of an objective, a number or an array.
        direction: Direction of that objective, such as `study.directions[0]`.

    Example:
        >>> from optuna.study import StudyDirection
        >>> from optuna_nas.storage.directions import oriented
        >>> oriented(0.5, StudyDirection.MAXIMIZE), oriented(0.5, StudyDirection.MINIMIZE)
        (0.5, -0.5)
    """
    return value if direction == StudyDirection.MAXIMIZE else -value


def better(values: Sequence[float], direction: StudyDirection) -> float:
    """Return the best of several values.

    Example:
        >>> from optuna.study import StudyDirection
        >>> from optuna_nas.storage.directions import better
        >>> better([0.5, 0.7], StudyDirection.MINIMIZE)
        0.5
    """
    return max(values, key=lambda value: oriented(value, direction))

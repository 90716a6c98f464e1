"""JSON from files and studies, read with limits: whatever it holds, it becomes a space or one sentence."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_DEPTH, MAX_ITEMS, MAX_TEXT, MAX_NUMBER = 16, 100_000, 10_000, 1e15
"""Limits of a description: levels, values, characters of a text, size of a number."""
MAX_NODES, MAX_SIZE = 100, 65_536
"""Largest number of nodes of a cell, and of channels, pixels or classes."""


@contextmanager
def reading(what: str, description: Any) -> Iterator[None]:
    """Check the limits of a description, and turn errors of reading it into a ValueError of one sentence.

    Args:
        what: Name of the argument.
        description: JSON values.

    Example:
        >>> from optuna_nas.space.reading import reading
        >>> with reading("description", {"nodes": 4}):
        ...     {"nodes": 4}["ops"]
        Traceback (most recent call last):
            ...
        ValueError: `description` must be what `to_dict` returned but it lacks 'ops'.
    """
    _check(what, description, 0, [MAX_ITEMS])
    try:
        yield
    except KeyError as error:
        raise ValueError(f"`{what}` must be what `to_dict` returned but it lacks {error}.") from error
    except (TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise ValueError(f"`{what}` must be what `to_dict` returned but can't be read: {error}.") from error


def _check(what: str, value: Any, depth: int, left: list[int]) -> None:
    left[0] -= 1
    too_large = (
        depth > MAX_DEPTH
        or left[0] < 0
        or (isinstance(value, str) and len(value) > MAX_TEXT)
        or (isinstance(value, int | float) and not abs(value) <= MAX_NUMBER)  # NaN, too
    )
    if too_large:
        raise ValueError(f"`{what}` must be what `to_dict` returned but is too large or deep, or has no finite number.")
    if isinstance(value, dict):
        for key, item in value.items():
            _check(what, str(key), depth + 1, left)
            _check(what, item, depth + 1, left)
    elif isinstance(value, list | tuple):
        for item in value:
            _check(what, item, depth + 1, left)


def plain(value: Any) -> Any:
    """Return a NumPy scalar as a Python number, and other values unchanged."""
    return value.item() if isinstance(value, np.generic) else value


def checked_integer(name: str, value: Any, least: int, most: int = MAX_SIZE) -> int:
    """Return an integer in a range; NumPy's are taken, booleans and fractions are not.

    Raises:
        ValueError: It is none, or out of range.

    Example:
        >>> from optuna_nas.space.reading import checked_integer
        >>> checked_integer("nodes", 4, 1)
        4
    """
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"`{name}` must be an integer but got {value!r}.")
    if not least <= value <= most:
        raise ValueError(f"`{name}` must be at least {least} and at most {most} but got {value}.")
    return value

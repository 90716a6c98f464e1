"""JSON from files and studies, read with limits: whatever it holds, it becomes a space or one sentence."""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_DEPTH, MAX_ITEMS, MAX_TEXT, MAX_NUMBER = 16, 100_000, 10_000, 1e15
"""Limits of a description: levels, values, characters of a text, size of a number."""
MAX_NODES, MAX_SIZE = 100, 65_536
"""Largest number of nodes of a cell, and of channels, pixels or classes."""
MAX_CHOICES, MAX_GRAPH = 25_000, 100_000
"""Largest number of options of all choices of a space, and of nodes of a supernet: DARTS has 224 and 4,000."""
MAX_FILE = 64 * 2**20
"""Largest size of a JSON file in bytes."""
MAX_SHOWN, MAX_MESSAGE = 200, 1000
"""Largest number of characters of a wrong value that a message shows, and of what it says of the contents of a file."""
WRONG = (KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError)
"""Errors of code that reads values of another structure than it expects."""


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
    if not within_limits(description):
        raise ValueError(f"`{what}` must be what `to_dict` returned but is too large or deep, or has no finite number.")
    try:
        yield
    except KeyError as error:
        raise ValueError(f"`{what}` must be what `to_dict` returned but it lacks {brief(str(error))}.") from error
    except WRONG as error:
        raise ValueError(f"`{what}` must be what `to_dict` returned but can't be read: {brief(str(error))}.") from error
    except ValueError as error:
        if len(str(error)) <= MAX_MESSAGE and str(error).isprintable():
            raise
        raise ValueError(brief(str(error))) from error


def within_limits(value: Any, items: int = MAX_ITEMS, finite: bool = True) -> bool:
    """Return whether JSON values are no deeper and no larger than any that are read here.

    Args:
        value: JSON values.
        items: Largest number of values.
        finite: Whether all numbers must be finite, and no larger than `MAX_NUMBER`.

    Example:
        >>> from optuna_nas.space.reading import within_limits
        >>> within_limits({"nodes": 4}), within_limits({"nodes": float("nan")}), within_limits("x" * 20_000)
        (True, False, False)
    """
    waiting = [(0, value)]
    while waiting:
        depth, one = waiting.pop()
        items -= 1
        if depth > MAX_DEPTH or items < 0 or (isinstance(one, str) and len(one) > MAX_TEXT):
            return False
        if finite and isinstance(one, int | float) and not abs(one) <= MAX_NUMBER:  # NaN, too
            return False
        if isinstance(one, dict):
            waiting += [(depth + 1, part) for pair in one.items() for part in pair]
        elif isinstance(one, list | tuple):
            waiting += [(depth + 1, part) for part in one]
    return True


def parse_json(what: str, text: str | bytes) -> Any:
    """Return the values of a JSON text.

    Args:
        what: What the text is of, for the message.
        text: JSON.

    Raises:
        ValueError: It is no JSON, or too long or deep.

    Example:
        >>> from optuna_nas.space.reading import parse_json
        >>> parse_json("settings", "[" * 100_000)
        Traceback (most recent call last):
            ...
        ValueError: `settings` must be JSON but can't be read: it is nested too deeply.
    """
    if len(text) > MAX_FILE:
        raise ValueError(f"`{what}` must be JSON of at most {MAX_FILE} bytes but has {len(text)}.")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"`{what}` must be JSON but can't be read: it is nested too deeply.") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"`{what}` must be JSON but can't be read: {error}.") from error


@contextmanager
def named_file(what: str, path: Path | str) -> Iterator[None]:
    """Turn errors of reading a file into a ValueError of one sentence that names it.

    Args:
        what: What the file must be, such as `a network of optuna_nas`.
        path: The file.

    Example:
        >>> from optuna_nas.space.reading import named_file
        >>> with named_file("a skeleton", "skeleton.json"):
        ...     {}["channels"]
        Traceback (most recent call last):
            ...
        ValueError: `path` must be a skeleton but skeleton.json is not readable: it lacks 'channels'.
    """
    begins = f"`path` must be {what} but {path} is not readable"
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{begins}: it lacks {shown(error.args[0] if error.args else '')}.") from error
    except (ValueError, OSError, *WRONG) as error:
        raise ValueError(f"{begins}: {brief(str(error)).rstrip('.')}.") from error


def read_json_file(path: Path | str) -> Any:
    """Return the values of a JSON file, of which no more is read than may be; use it within `named_file`.

    Raises:
        ValueError: It is no JSON, or too long or deep.
    """
    with open(path, "rb") as file:
        return parse_json("content", file.read(MAX_FILE + 1))


def shown(value: object) -> str:
    """Return a wrong value as a message shows it: in quotes and not longer than a line or two.

    Example:
        >>> from optuna_nas.space.reading import shown
        >>> shown("a"), len(shown("a" * 10_000))
        ("'a'", 203)
    """
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def brief(text: str) -> str:
    """Return a message about the contents of a file on one line that is not too long.

    Example:
        >>> from optuna_nas.space.reading import brief
        >>> brief("two" + chr(10) + "lines"), len(brief("a" * 10_000))
        ('two lines', 1003)
    """
    line = "".join(character if character.isprintable() else " " for character in text)
    return line if len(line) <= MAX_MESSAGE else line[:MAX_MESSAGE] + "..."


def is_number(value: Any, finite: bool = True) -> bool:
    """Return whether a JSON value is a number that a float can hold; a boolean is none.

    Example:
        >>> from optuna_nas.space.reading import is_number
        >>> is_number(0.5), is_number(True), is_number(10**400), is_number(float("nan"), finite=False)
        (True, False, False, True)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if isinstance(value, int):
        return value.bit_length() < 1000
    return math.isfinite(value) or not finite


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
        raise ValueError(f"`{name}` must be an integer but got {shown(value)}.")
    if not least <= value <= most:
        raise ValueError(f"`{name}` must be at least {least} and at most {most} but got {value}.")
    return value


def check_choices(n_options: int) -> None:
    """Check the number of options of all choices of a space, before they are made.

    Raises:
        ValueError: There are too many.

    Example:
        >>> from optuna_nas.space.reading import check_choices
        >>> check_choices(224)
    """
    if n_options > MAX_CHOICES:
        raise ValueError(
            f"`space` must have at most {MAX_CHOICES} options in all its choices but has {n_options}; take fewer "
            "nodes, ops or inputs."
        )

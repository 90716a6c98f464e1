"""Checks of a search's settings that need neither PyTorch nor Optuna: names, limits, strategies by name."""

from __future__ import annotations

import difflib
import math
import numbers
from typing import TYPE_CHECKING, Any

from optuna_nas.storage.secrets import quoted

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

STRATEGIES = AUTO, FREE, BY_SNAS, BY_GHN, BY_HMNAS, TPE, RANDOM = (
    "auto", "free", "snas", "ghn", "hmnas", "tpe", "random",
)  # fmt: skip
DEFAULT_TRIALS = 50
"""Total number of trials of a search without limits."""
MAX_TRIALS = 100_000
"""Total number of trials of a search that something else limits."""
MAX_NAME = 255
"""Largest number of characters of a name."""


def check_name(name: str) -> None:
    """Check that a study can be named so, in a database, in MLflow and as a folder.

    Raises:
        ValueError: It is empty or too long, has a slash or a control character, or is `.` or `..`.
    """
    if not isinstance(name, str):
        raise ValueError(f"`name` must be a text but is a {type(name).__name__}.")
    if not name or any(character in name for character in "/\\"):
        raise ValueError(f"`name` must be non-empty and without slashes but got {quoted(name)}.")
    if len(name) > MAX_NAME or name in (".", "..") or not name.isprintable():
        raise ValueError(
            f"`name` must be printable, of at most {MAX_NAME} characters, and no `.` or `..`, but got {name[:40]!r}."
        )


def checked_count(name: str, value: Any) -> int:
    """Return a number of trials and the like; NumPy's integers are taken.

    Raises:
        ValueError: It is no integer, or less than 1.
    """
    from optuna_nas.space.reading import plain  # which loads NumPy and all spaces; the terminal's help needs none

    value = plain(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` must be an integer of at least 1 but got {value}.")
    return value


def check_seconds(seconds: float | None) -> None:
    """Check the seconds at which a search ends.

    Raises:
        ValueError: They are not positive, or not finite.
    """
    given: Any = seconds
    is_number = isinstance(given, numbers.Real) and not isinstance(given, bool)
    if given is not None and not (is_number and 0 < given < math.inf):
        raise ValueError(f"`seconds` must be a positive number but got {seconds}; None sets no limit.")


def check_one_of(name: str, value: str, known: Collection[str]) -> None:
    """Check that a text is one of several.

    Raises:
        ValueError: It is none of them; the message names the most similar one.

    Example:
        >>> from optuna_nas.search.checks import check_one_of
        >>> check_one_of("strategy", "gnh", ["snas", "ghn"])
        Traceback (most recent call last):
            ...
        ValueError: `strategy` must be one of snas, ghn but got 'gnh'; did you mean 'ghn'?
    """
    if value not in known:
        way = similar(value, known) or "."
        raise ValueError(f"`{name}` must be one of {', '.join(known)} but got {quoted(value)}{way}")


def similar(word: str, words: Iterable[str]) -> str:
    """Return a question with the most similar of several words, or nothing.

    Example:
        >>> from optuna_nas.search.checks import similar
        >>> similar("epoch", ["epochs", "seed"])
        "; did you mean 'epochs'?"
    """
    close = difflib.get_close_matches(word, list(words), 1)
    return f"; did you mean {close[0]!r}?" if close else ""

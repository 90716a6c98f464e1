"""Rules for the fields of recipes: tables from field to rule, which are checked when a recipe is created.

>>> from dataclasses import dataclass
>>> from optuna_nas.training.rules import at_least, check_fields, fraction
>>> import numpy as np
>>> @dataclass(frozen=True)
... class Momentum:
...     value: float = 0.9
...     steps: int = 1
...
...     def __post_init__(self) -> None:
...         check_fields(self, {"value": fraction(), "steps": at_least(1)})
>>> Momentum(steps=np.int64(3)).steps
3
>>> Momentum(1.5)
Traceback (most recent call last):
ValueError: `value` must be in [0, 1) but got 1.5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from optuna_nas.space.reading import plain

Rule = Callable[[str, Any], Any]
"""Function of the name and the value of a field. It returns the value, with NumPy scalars converted to Python numbers.

Raises:
    ValueError: The value violates the rule.
"""


def check_fields(recipe: object, rules: Mapping[str, Rule], suggestions: bool = False) -> None:
    """Check the fields of a frozen dataclass, and convert NumPy scalars to Python numbers.

    Args:
        recipe: The dataclass, in its `__post_init__`.
        rules: Rules by the name of a field; other fields are not checked.
        suggestions: Whether to skip suggestions, such as `suggest_float(0.01, 0.3)`, whose values are checked in each
            trial.

    Raises:
        ValueError: A field violates its rule.
    """
    for name, rule in rules.items():
        value = getattr(recipe, name)
        if not suggestions or value is None or isinstance(value, bool | int | float | str | np.generic):
            object.__setattr__(recipe, name, rule(name, value))


@dataclass(frozen=True)
class Interval:
    """Rule of a number in an interval.

    Args:
        low: Lower end.
        high: Upper end.
        ends: `[` or `(`, followed by `]` or `)`: closed or open ends.
        kind: `int` or `float`. An integer is also a float; a bool is not a number.
        says: Text of the rule after `must`; by default `be in [low, high)`.
        hint: Second sentence of the message, after a semicolon.

    Example:
        >>> from optuna_nas.training.rules import Interval
        >>> Interval(0, 1)("momentum", 0.9)
        0.9
    """

    low: float
    high: float = math.inf
    ends: str = "[)"
    kind: type[int] | type[float] = float
    says: str = ""
    hint: str = ""

    def __call__(self, name: str, value: Any) -> int | float:
        value = plain(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"`{name}` must be a number but got {value!r}.")
        if self.kind is int and not isinstance(value, int):
            raise ValueError(f"`{name}` must be an integer but got {value}; use int({value}).")
        at_an_open_end = (value == self.low and self.ends[0] == "(") or (value == self.high and self.ends[1] == ")")
        if not self.low <= value <= self.high or at_an_open_end:
            says = self.says or f"be in {self.ends[0]}{self.low}, {self.high}{self.ends[1]}"
            raise ValueError(f"`{name}` must {says} but got {value}{self.hint and '; ' + self.hint}.")
        return value


def between(low: float, high: float = math.inf, ends: str = "[)", kind: type[int] | type[float] = float) -> Interval:
    """Return the rule of a number in an interval, see `Interval`."""
    return Interval(low, high, ends, kind)


def at_least(least: int) -> Interval:
    """Return the rule of an integer of at least `least`."""
    return Interval(least, kind=int, says=f"be at least {least}" if least else "not be negative")


def positive(hint: str = "") -> Interval:
    """Return the rule of a positive, finite number."""
    return Interval(0, ends="()", says="be positive and finite", hint=hint)


def not_negative() -> Interval:
    """Return the rule of a finite number of at least 0."""
    return Interval(0, says="not be negative")


def fraction() -> Interval:
    """Return the rule of a number in [0, 1)."""
    return Interval(0, 1)


def share() -> Interval:
    """Return the rule of a number in [0, 1]."""
    return Interval(0, 1, "[]")


def one_of(choices: tuple[str | int, ...]) -> Rule:
    """Return the rule of one of several values."""

    def rule(name: str, value: Any) -> Any:
        if value not in choices:
            raise ValueError(f"`{name}` must be one of {choices} but got {value!r}.")
        return value

    return rule


def flag() -> Rule:
    """Return the rule of a bool."""

    def rule(name: str, value: Any) -> Any:
        value = plain(value)
        if not isinstance(value, bool):
            raise ValueError(f"`{name}` must be of type bool but got {value!r}.")
        return value

    return rule


def optional(rule: Rule) -> Rule:
    """Return a rule that also accepts None."""
    return lambda name, value: None if value is None else rule(name, value)

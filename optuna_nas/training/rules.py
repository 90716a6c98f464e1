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
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from optuna_nas.space.reading import is_number, plain, shown

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
            raise ValueError(f"`{name}` must be a number but got {shown(value)}.")
        if self.kind is int and not isinstance(value, int):
            raise ValueError(f"`{name}` must be an integer but got {value}; use int({value}).")
        at_an_open_end = (value == self.low and self.ends[0] == "(") or (value == self.high and self.ends[1] == ")")
        if not self.low <= value <= self.high or at_an_open_end:
            says = self.says or f"be in {self.ends[0]}{self.low}, {self.high}{self.ends[1]}"
            raise ValueError(f"`{name}` must {says} but got {shown(value)}{self.hint and '; ' + self.hint}.")
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
            raise ValueError(f"`{name}` must be one of {choices} but got {shown(value)}.")
        return value

    return rule


def flag() -> Rule:
    """Return the rule of a bool."""

    def rule(name: str, value: Any) -> Any:
        value = plain(value)
        if not isinstance(value, bool):
            raise ValueError(f"`{name}` must be of type bool but got {shown(value)}.")
        return value

    return rule


def optional(rule: Rule) -> Rule:
    """Return a rule that also accepts None."""
    return lambda name, value: None if value is None else rule(name, value)


# -- fields of later versions ------------------------------------------------------------------------------------------

ADDED = "added"
"""Key in the metadata of a field that recipes of earlier versions lack."""


def added(default: Any) -> Any:
    """Return a field of a recipe that earlier versions lack; its default is what they did; see `settings_of`."""
    return field(default=default, metadata={ADDED: True})


def settings_of(recipe: Any) -> dict[str, Any]:
    """Return the fields of a recipe by which checkpoints, studies and hashes are compared.

    A field that was added later is left out while it has its default, so that those of before still compare equal.

    Args:
        recipe: Dataclass.

    Example:
        >>> from optuna_nas import Recipe
        >>> from optuna_nas.training.rules import settings_of
        >>> [("schedule" in settings_of(recipe)) for recipe in (Recipe(), Recipe(schedule="exponential"))]
        [False, True]
    """
    later = {one.name: one.default for one in fields(recipe) if ADDED in one.metadata}
    return {name: value for name, value in asdict(recipe).items() if name not in later or value != later[name]}


# -- values of files and studies --------------------------------------------------------------------------------------


def number(finite: bool = False) -> Rule:
    """Return the rule of a number, which may be NaN or infinite unless `finite` says so."""

    def rule(name: str, value: Any) -> Any:
        if not is_number(value, finite):
            raise ValueError(f"`{name}` must be a {'finite ' * finite}number but got {shown(value)}.")
        return value

    return rule


def text(pattern: str = ".*", says: str = "a text") -> Rule:
    """Return the rule of a text that matches a regular expression."""

    def rule(name: str, value: Any) -> Any:
        if not isinstance(value, str) or not re.fullmatch(pattern, value, re.DOTALL):
            raise ValueError(f"`{name}` must be {says} but got {shown(value)}.")
        return value

    return rule


def items(rule: Rule, least: int = 0) -> Rule:
    """Return the rule of a list of at least `least` values that follow a rule."""

    def rule_of_list(name: str, value: Any) -> Any:
        if not isinstance(value, list | tuple) or len(value) < least:
            raise ValueError(
                f"`{name}` must be a list{f' of at least {least} values' * (least > 0)} but got {shown(value)}."
            )
        return [rule(name, item) for item in value]

    return rule_of_list


def row(*rules: Rule) -> Rule:
    """Return the rule of a list of as many values as there are rules, one for each."""

    def rule(name: str, value: Any) -> Any:
        if not isinstance(value, list | tuple) or len(value) != len(rules):
            raise ValueError(f"`{name}` must be {len(rules)} values but got {shown(value)}.")
        return [rule(name, item) for rule, item in zip(rules, value, strict=True)]

    return rule


def mapping(rule: Rule) -> Rule:
    """Return the rule of a dictionary whose keys are texts and whose values follow a rule."""

    def rule_of_mapping(name: str, value: Any) -> Any:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ValueError(f"`{name}` must be a dictionary but got {shown(value)}.")
        return {key: rule(f"{name}[{key!r}]"[:100], item) for key, item in value.items()}

    return rule_of_mapping


def fields_of(rules: Mapping[str, Rule]) -> Rule:
    """Return the rule of a dictionary with these fields; see `checked`."""

    def rule(name: str, value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError(f"`{name}` must be a dictionary but got {shown(value)}.")
        return checked(value, rules)

    return rule


def anything() -> Rule:
    """Return the rule of any value."""
    return lambda name, value: value


def checked(values: Any, rules: Mapping[str, Rule]) -> dict[str, Any]:
    """Return the fields of a dictionary that rules are for; others are left out.

    Args:
        values: Values that somebody else may have written.
        rules: Rules by the name of a field; all fields must be there.

    Raises:
        ValueError: It is no dictionary, or a field is missing or violates its rule.

    Example:
        >>> from optuna_nas.training.rules import at_least, checked
        >>> checked({"epoch": 3, "note": ""}, {"epoch": at_least(0)})
        {'epoch': 3}
        >>> checked({"epoch": "3"}, {"epoch": at_least(0)})
        Traceback (most recent call last):
            ...
        ValueError: `epoch` must be a number but got '3'.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"values must be a dictionary but are {shown(values)}.")
    missing = [name for name in rules if name not in values]
    if missing:
        raise ValueError(f"`{missing[0]}` must be there but is not.")
    return {name: rule(name, values[name]) for name, rule in rules.items()}

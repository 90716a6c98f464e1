"""Suggestions: fields of a recipe or task that every trial suggests."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.trial import BaseTrial

Settings = TypeVar("Settings")


def suggest_float(low: float, high: float, *, log: bool = False, step: float | None = None) -> float:
    """Return a suggestion of a number for a field of a `Recipe` or `Task`: every trial suggests its own value.

    It is annotated as the number that it becomes in a trial.

    Args:
        low: Smallest number.
        high: Largest number.
        log: Whether to sample the logarithm uniformly.
        step: Step of a grid; None for any number.

    Example:
        >>> from optuna_nas import Recipe, suggest_float
        >>> Recipe(learning_rate=suggest_float(0.01, 0.3, log=True)).learning_rate
        FloatDistribution(high=0.3, log=True, low=0.01, step=None)
    """
    return cast("float", FloatDistribution(low, high, log=log, step=step))


def suggest_int(low: int, high: int, *, log: bool = False, step: int = 1) -> int:
    """Return a suggestion of an integer for a field of a `Recipe` or `Task`: every trial suggests its own value.

    It is annotated as the integer that it becomes in a trial.

    Args:
        low: Smallest integer.
        high: Largest integer.
        log: Whether to sample the logarithm uniformly.
        step: Step of a grid.

    Example:
        >>> from optuna_nas import Recipe, suggest_int
        >>> Recipe(batch_size=suggest_int(32, 128, step=32)).batch_size
        IntDistribution(high=128, log=False, low=32, step=32)
    """
    return cast("int", IntDistribution(low, high, log=log, step=step))


def suggest_categorical(choices: Sequence[Any]) -> Any:
    """Return a suggestion of one of several values for a field of a `Recipe` or `Task`.

    Args:
        choices: Values that JSON can hold.

    Example:
        >>> from optuna_nas import Recipe, suggest_categorical
        >>> Recipe(optimizer=suggest_categorical(["sgd", "adamw"])).optimizer
        CategoricalDistribution(choices=('sgd', 'adamw'))
    """
    return CategoricalDistribution(choices)


def resolve(settings: Settings, trial: BaseTrial) -> Settings:
    """Return a recipe or task in which every suggestion is replaced by the trial's value.

    Args:
        settings: Recipe or task; the trial's parameters have the names of the fields.
        trial: Trial that suggests the values.

    Example:
        >>> import optuna
        >>> from optuna_nas import Recipe, suggest_int
        >>> from optuna_nas.objective.suggestions import resolve
        >>> resolve(Recipe(epochs=suggest_int(1, 9)), optuna.trial.FixedTrial({"epochs": 4})).epochs
        4
    """
    if not is_dataclass(settings):
        return settings
    values: dict[str, Any] = {}
    for setting in fields(settings):
        value: object = getattr(settings, setting.name)
        if isinstance(value, FloatDistribution):
            values[setting.name] = trial.suggest_float(
                setting.name, value.low, value.high, log=value.log, step=value.step
            )
        elif isinstance(value, IntDistribution):
            values[setting.name] = trial.suggest_int(
                setting.name, value.low, value.high, log=value.log, step=value.step
            )
        elif isinstance(value, CategoricalDistribution):
            values[setting.name] = trial.suggest_categorical(setting.name, value.choices)
    return replace(settings, **values)  # type: ignore[type-var]


def without_suggestions(settings: Settings) -> Settings:
    """Return a recipe or task in which suggestions are replaced by the defaults of their fields.

    Example:
        >>> from optuna_nas import Recipe, suggest_int
        >>> from optuna_nas.objective.suggestions import without_suggestions
        >>> without_suggestions(Recipe(epochs=suggest_int(1, 9))).epochs
        10
    """
    if not is_dataclass(settings):
        return settings
    suggested = {s.name: s.default for s in fields(settings) if isinstance(getattr(settings, s.name), BaseDistribution)}
    return replace(settings, **suggested)  # type: ignore[type-var]

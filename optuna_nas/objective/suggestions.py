"""Fields of a recipe that every trial suggests."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.trial import BaseTrial

Settings = TypeVar("Settings")


def suggest_float(low: float, high: float, *, log: bool = False, step: float | None = None) -> float:
    """Let every trial suggest a number for a field of a `Recipe`; typed as the number it will be."""
    return cast("float", FloatDistribution(low, high, log=log, step=step))


def suggest_int(low: int, high: int, *, log: bool = False, step: int = 1) -> int:
    """Let every trial suggest an integer for a field of a `Recipe`; typed as the integer it will be."""
    return cast("int", IntDistribution(low, high, log=log, step=step))


def suggest_categorical(choices: Sequence[Any]) -> Any:
    """Let every trial suggest one of `choices` for a field of a `Recipe`."""
    return CategoricalDistribution(choices)


def resolve(settings: Settings, trial: BaseTrial) -> Settings:
    """Return a recipe or task with every suggestion replaced by the trial's value.

    Args:
        settings: A dataclass; parameters of the trial are named like its fields.
        trial: Asked for a value of every field that is a suggestion.
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
    """Return a recipe or task whose suggestions are replaced by the defaults of their fields."""
    if not is_dataclass(settings):
        return settings
    suggested = {s.name: s.default for s in fields(settings) if isinstance(getattr(settings, s.name), BaseDistribution)}
    return replace(settings, **suggested)  # type: ignore[type-var]

"""Fields of a recipe that every trial suggests."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, cast

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna import Trial

    from optuna_nas.training.recipe import Recipe


def suggest_float(low: float, high: float, *, log: bool = False, step: float | None = None) -> float:
    """Let every trial suggest a number for a field of a `Recipe`; typed as the number it will be."""
    return cast("float", FloatDistribution(low, high, log=log, step=step))


def suggest_int(low: int, high: int, *, log: bool = False, step: int = 1) -> int:
    """Let every trial suggest an integer for a field of a `Recipe`; typed as the integer it will be."""
    return cast("int", IntDistribution(low, high, log=log, step=step))


def suggest_categorical(choices: Sequence[Any]) -> Any:
    """Let every trial suggest one of `choices` for a field of a `Recipe`."""
    return CategoricalDistribution(choices)


def resolve(recipe: Recipe, trial: Trial) -> Recipe:
    """Return the recipe with every suggestion replaced by the trial's value; parameters are named like the fields."""
    values: dict[str, Any] = {}
    for recipe_field in fields(recipe):
        value: object = getattr(recipe, recipe_field.name)
        if isinstance(value, FloatDistribution):
            values[recipe_field.name] = trial.suggest_float(
                recipe_field.name, value.low, value.high, log=value.log, step=value.step
            )
        elif isinstance(value, IntDistribution):
            values[recipe_field.name] = trial.suggest_int(
                recipe_field.name, value.low, value.high, log=value.log, step=value.step
            )
        elif isinstance(value, CategoricalDistribution):
            values[recipe_field.name] = trial.suggest_categorical(recipe_field.name, value.choices)
    return replace(recipe, **values)

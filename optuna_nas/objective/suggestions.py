"""Suggestions: fields of a recipe, task or augmentation that every trial suggests."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from optuna_nas.data.arrays import ImageData
from optuna_nas.training.described import described

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna.trial import BaseTrial

    from optuna_nas.data.splits import Data

Settings = TypeVar("Settings")


def suggest_float(low: float, high: float, *, log: bool = False, step: float | None = None) -> float:
    """Return a suggestion of a number for a field of a `Recipe`, `Task` or `Augmentation`: each trial has its own.

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
    """Return a suggestion of an integer for a field of a `Recipe`, `Task` or `Augmentation`: each trial has its own.

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
    """Return a suggestion of one of several values for a field of a `Recipe`, `Task` or `Augmentation`.

    Args:
        choices: Values that JSON can hold, or numbers of NumPy.

    Example:
        >>> from optuna_nas import Recipe, suggest_categorical
        >>> Recipe(optimizer=suggest_categorical(["sgd", "adamw"])).optimizer
        CategoricalDistribution(choices=('sgd', 'adamw'))
    """
    return CategoricalDistribution([described(choice) for choice in choices])


def make_suggestion(name: str, description: Mapping[str, Any]) -> BaseDistribution:
    """Return the suggestion that a configuration describes: the `type`, one of the functions above, and its arguments.

    Args:
        name: Name of the value, for messages.
        description: The description.

    Raises:
        ValueError: There is no such function, or it refuses the arguments.

    Example:
        >>> from optuna_nas.objective.suggestions import make_suggestion
        >>> make_suggestion("depth", {"type": "suggest_int", "low": 1, "high": 3})
        IntDistribution(high=3, log=False, low=1, step=1)
    """
    makers = {function.__name__: function for function in (suggest_float, suggest_int, suggest_categorical)}
    arguments = {key: value for key, value in description.items() if key != "type"}
    kind = description["type"]
    if kind not in makers:
        raise ValueError(f"`{name}.type` must be one of {', '.join(makers)} but got {kind!r}.")
    try:
        return cast("BaseDistribution", makers[kind](**arguments))
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be what `{kind}` takes but is {arguments}: {error}.") from None


def suggest(trial: BaseTrial, name: str, distribution: BaseDistribution) -> Any:
    """Return a trial's value of a suggestion.

    Example:
        >>> import optuna
        >>> from optuna_nas.objective.suggestions import suggest
        >>> from optuna_nas import suggest_int
        >>> suggest(optuna.trial.FixedTrial({"depth": 2}), "depth", suggest_int(1, 3))
        2
    """
    if isinstance(distribution, FloatDistribution):
        return trial.suggest_float(
            name, distribution.low, distribution.high, log=distribution.log, step=distribution.step
        )
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(
            name, distribution.low, distribution.high, log=distribution.log, step=distribution.step
        )
    return trial.suggest_categorical(name, cast("CategoricalDistribution", distribution).choices)


def names_suggested(settings: object) -> set[str]:
    """Return the names of the fields of a recipe, task or augmentation that are suggestions.

    Example:
        >>> from optuna_nas import Recipe, suggest_int
        >>> from optuna_nas.objective.suggestions import names_suggested
        >>> names_suggested(Recipe(epochs=suggest_int(1, 9)))
        {'epochs'}
    """
    if not is_dataclass(settings):
        return set()
    return {one.name for one in fields(settings) if isinstance(getattr(settings, one.name), BaseDistribution)}


def resolve(settings: Settings, trial: BaseTrial) -> Settings:
    """Return a recipe, task or augmentation in which every suggestion is replaced by the trial's value.

    Args:
        settings: Recipe, task or augmentation; the trial's parameters have the names of the fields.
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
        if isinstance(value, BaseDistribution):
            values[setting.name] = suggest(trial, setting.name, value)
    return replace(settings, **values)  # type: ignore[type-var]


def resolve_augmentation(data: Data, trial: BaseTrial) -> Data:
    """Return data in which every suggestion of their augmentation is replaced by the trial's value.

    Args:
        data: Data set; one without an `Augmentation` is returned as it is.
        trial: Trial that suggests the values; its parameters have the names of the fields, such as `cutout`.

    Example:
        >>> import optuna
        >>> from dataclasses import replace
        >>> from optuna_nas import Augmentation, digits, suggest_int
        >>> from optuna_nas.objective.suggestions import resolve_augmentation
        >>> data = replace(digits(), augmentation=Augmentation(cutout=suggest_int(0, 4)))
        >>> resolve_augmentation(data, optuna.trial.FixedTrial({"cutout": 3})).augmentation
        Augmentation(crop_padding=0, flip=False, cutout=3)
    """
    if not isinstance(data, ImageData):
        return data
    resolved = resolve(data.augmentation, trial)
    return data if resolved == data.augmentation else data.with_augmentation(resolved)


def without_suggestions(settings: Settings) -> Settings:
    """Return a recipe, task or augmentation in which suggestions are replaced by the defaults of their fields.

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

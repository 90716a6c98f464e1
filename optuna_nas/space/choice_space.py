"""Space of ordinary Optuna parameters: every categorical of a search space is one choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Self

from optuna_nas.space.base import Space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from optuna_nas.space.architecture import Architecture


@dataclass(frozen=True)
class ChoiceSpace(Space):
    """Space of categorical parameters that an objective suggests by itself, such as `trial.suggest_categorical`.

    Its architectures are combinations of values: samplers and pruners propose and score them, nothing builds them.

    Args:
        choices: (name of a parameter, its values) for every parameter; values are texts, numbers, booleans or None, and
            differ as text.

    Raises:
        ValueError: There is no parameter, a name stands twice, or values are of another type or equal.

    Example:
        >>> import optuna
        >>> from optuna_nas import ChoiceSpace, SNASSampler
        >>> space = ChoiceSpace((("op1", ("conv", "pool", "skip")), ("width", (16, 32))))
        >>> space.size
        6
        >>> study = optuna.create_study(sampler=SNASSampler(space, seed=0))
        >>> study.optimize(lambda trial: trial.suggest_categorical("width", (16, 32)), n_trials=3)
    """

    type_name: ClassVar[str] = "ChoiceSpace"
    empty_names: ClassVar[frozenset[str]] = frozenset()

    choices: tuple[tuple[str, tuple[Any, ...]], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple((name, tuple(values)) for name, values in self.choices))
        names = [name for name, _ in self.choices]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"`choices` must be of one or more parameters with different names but are of {names}.")
        for name, values in self.choices:
            strange = [value for value in values if not (value is None or isinstance(value, bool | int | float | str))]
            if strange or not values or len(set(map(str, values))) < len(values) or len(set(values)) < len(values):
                raise ValueError(
                    f"`choices` must have values that are texts, numbers, booleans or None and differ, also as text, "
                    f"but those of {name!r} are {values}."
                )

    @classmethod
    def from_distributions(cls, distributions: Mapping[str, BaseDistribution]) -> Self:
        """Return the space of the categorical distributions of an Optuna search space; the others are left out.

        Args:
            distributions: Distributions by the name of a parameter.

        Raises:
            ValueError: None is categorical.

        Example:
            >>> from optuna.distributions import CategoricalDistribution, FloatDistribution
            >>> from optuna_nas import ChoiceSpace
            >>> distributions = {"op": CategoricalDistribution(["conv", "pool"]), "rate": FloatDistribution(0, 1)}
            >>> ChoiceSpace.from_distributions(distributions).choices
            (('op', ('conv', 'pool')),)
        """
        from optuna.distributions import CategoricalDistribution  # imported late: building needs no Optuna

        categorical = {name: d for name, d in distributions.items() if isinstance(d, CategoricalDistribution)}
        if not categorical:
            raise ValueError(
                f"`distributions` must hold a CategoricalDistribution but are of {sorted(distributions)}; an "
                "architecture is made of choices."
            )
        return cls(tuple((name, tuple(d.choices)) for name, d in categorical.items()))

    def options(self) -> Mapping[str, Mapping[Any, tuple[str, ...]]]:
        return _options(self)

    def check_choice(self, path: str, chosen: tuple[str, ...]) -> None:
        known = tuple(str(value) for value in self.options()[path])
        if len(chosen) != 1 or chosen[0] not in known:
            raise ValueError(f"`choices[{path!r}]` must be one of {known} but got {chosen}.")

    def full_architecture(self) -> Architecture:
        """Return the architecture of the first values: there is no supernet that has all."""
        return self.architecture({name: (str(values[0]),) for name, values in self.choices})

    def summary(self, architecture: Architecture) -> str:
        return " ".join(f"{name}={chosen[0]}" for name, chosen in architecture.choices)

    def to_dict(self) -> dict[str, Any]:
        return {"type": self.type_name, "choices": [[name, list(values)] for name, values in self.choices]}

    @classmethod
    def _from_dict(cls, description: Mapping[str, Any]) -> Self:
        return cls(tuple((str(name), tuple(values)) for name, values in description["choices"]))


@lru_cache(maxsize=64)
def _options(space: ChoiceSpace) -> dict[str, dict[Any, tuple[str, ...]]]:
    return {name: {value: (str(value),) for value in values} for name, values in space.choices}


def as_space(space: Space | Mapping[str, BaseDistribution]) -> Space:
    """Return a space; the categorical distributions of an Optuna search space make a `ChoiceSpace`.

    Example:
        >>> from optuna.distributions import CategoricalDistribution
        >>> from optuna_nas.space.choice_space import as_space
        >>> as_space({"op": CategoricalDistribution(["conv", "pool"])}).size
        2
    """
    return ChoiceSpace.from_distributions(space) if isinstance(space, Mapping) else space

"""Base class of search spaces: Optuna parameters, architectures, sampling, JSON."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Self

from optuna_nas.space.architecture import Architecture
from optuna_nas.space.canonical import CanonicalChoices
from optuna_nas.space.ops import NONE
from optuna_nas.space.reading import reading

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from optuna.distributions import CategoricalDistribution
    from optuna.trial import BaseTrial
    from torch import Tensor, nn

    from optuna_nas.space.canonical import Canonical
    from optuna_nas.space.cost import Cost
    from optuna_nas.space.graph import ComputationGraph


@dataclass(frozen=True)
class Space(ABC):
    """Base class of search spaces: every choice is one categorical Optuna parameter.

    A space is a frozen value; equal spaces have equal parameters. Names of parameters ("paths") are Python identifiers,
    such as `normal_0_2` for the edge from node 0 to node 2, which are valid in Optuna, MLflow, Ray, Hydra and argparse.

    Example:
        >>> import numpy as np
        >>> from optuna_nas import nasbench201_space
        >>> space = nasbench201_space()
        >>> space.size
        15625
        >>> architecture = space.sample(np.random.default_rng(0))
        >>> space.decode(space.encode(architecture)) == architecture
        True
    """

    type_name: ClassVar[str]
    empty_names: ClassVar[frozenset[str]] = frozenset({NONE})
    """Names that stand for an empty choice."""
    _types: ClassVar[dict[str, type[Space]]] = {}

    def __init_subclass__(cls) -> None:
        if "type_name" in vars(cls):
            Space._types[cls.type_name] = cls

    # -- to be implemented by a subclass --------------------------------------------------------------------------

    @abstractmethod
    def options(self) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        """Return the options of every path: the Optuna choice and the names that it stands for."""

    @abstractmethod
    def check_choice(self, path: str, chosen: tuple[str, ...]) -> None:
        """Check that the names can be chosen at `path`. They need not be one of the options.

        Raises:
            ValueError: A name is unknown, or the names exclude each other.
        """

    @abstractmethod
    def full_architecture(self) -> Architecture:
        """Return the architecture that chooses every op at every path, which is that of the supernet."""

    @abstractmethod
    def summary(self, architecture: Architecture) -> str:
        """Return a one-line summary of an architecture for tables: labels of the ops, node by node."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return the space as JSON values, with the key `type`."""

    @classmethod
    @abstractmethod
    def _from_dict(cls, description: Mapping[str, Any]) -> Self:
        """Return the space of `to_dict`'s result."""

    # -- to be overridden by a subclass if needed -----------------------------------------------------------------

    @property
    def core(self) -> Space:
        """Space of the choices alone, without a skeleton; spaces with equal cores can `adopt` each other's choices."""
        return self

    def old_names(self) -> Mapping[str, str]:
        """Return the name of every path in earlier versions, which `decode` still accepts."""
        return {}

    def mixed_names(self) -> dict[str, tuple[str, ...]]:
        """Return the names of every path in the order in which a supernet weighs them; by default those of options."""
        return {
            path: tuple(dict.fromkeys(name for chosen in options.values() for name in chosen))
            for path, options in self.options().items()
        }

    def asked(self, architecture: Architecture) -> Collection[str]:
        """Return the paths that have a part in an architecture; by default all, in the order of the space."""
        return tuple(path for path, _ in architecture.choices)

    def outline(self, architecture: Architecture) -> list[tuple[int, str, str]]:
        """Return the choices of an architecture as rows of a table: level of indentation, name, what is chosen."""
        return [(0, path, " + ".join(chosen) or NONE) for path, chosen in architecture.choices]

    @property
    def notation(self) -> str:
        """Explanation of `summary` and of the names of parameters, for readers of tables and pictures.

        Example:
            >>> from optuna_nas import ChoiceSpace
            >>> ChoiceSpace((("op", ("conv", "pool")),)).notation
            'An architecture is written as name=choice for each of its choices; names are those of the parameters.'
        """
        return "An architecture is written as name=choice for each of its choices; names are those of the parameters."

    def group(self, path: str) -> str:
        """Return the group of a path in drawings and tables, such as its kind of cell."""
        return ""

    def _repr_html_(self) -> str:
        """Return what a notebook shows: how many architectures there are, and the options of every path."""
        from optuna_nas.space.notebook import html_table

        rows = [(path, ", ".join(map(str, options))) for path, options in self.options().items()]
        cells = "" if self.core is self else f" of {type(self.core).__name__}"
        return html_table(f"{type(self).__name__}{cells}: {self.size:,} architectures", ("path", "options"), rows)

    def label(self, path: str) -> str:
        """Return the short name of a path within its group, such as `0\N{RIGHTWARDS ARROW}2` for an edge."""
        return path

    def connected(self, architecture: Architecture) -> bool:
        """Return whether the output of an architecture depends on its input."""
        return True

    def canonical(self, architecture: Architecture) -> Canonical:
        """Return a value that is equal for architectures that compute the same function; its `digest` is a short key.

        By default its choices: architectures compute the same function only if they choose the same.
        """
        return CanonicalChoices(architecture.choices)

    def cell_graph(self, architecture: Architecture) -> ComputationGraph:
        """Return the graph of one copy of every kind of cell, without shapes.

        Raises:
            ValueError: The space has no cells.
        """
        raise ValueError(
            f"`space` must have cells but is a {type(self).__name__}; look at `architecture.choices` instead."
        )

    def best(self, scores: Sequence[NDArray[np.float64]]) -> NDArray[np.int64]:
        """Return the connected architecture with the largest sum of scores, as the position of an option per path.

        Args:
            scores: Scores of the options of every path, larger is better, shape (n_options,) each.

        Returns:
            Positions in `options()`, shape (n_paths,).
        """
        import numpy as np

        return np.array([int(np.argmax(row)) for row in scores])

    # -- implemented by a `ModelSpace` ----------------------------------------------------------------------------

    def build(
        self, architecture: Architecture, weights: Mapping[str, Tensor] | None = None, seed: int | None = None
    ) -> nn.Module:
        """Return the network of an architecture; see `ModelSpace.build`."""
        raise self._no_model()

    def cost(self, architecture: Architecture) -> Cost:
        """Return parameters, multiply-adds and memory access; see `ModelSpace.cost`."""
        raise self._no_model()

    def graph(self, architecture: Architecture) -> ComputationGraph:
        """Return the graph of the whole network; see `ModelSpace.graph`."""
        raise self._no_model()

    def _no_model(self) -> ValueError:
        return ValueError(
            f"`space` must be a `ModelSpace`, whose architectures can be built, but is a {type(self).__name__}; use "
            "`NetworkSpace(space, skeleton)`."
        )

    # -- architectures --------------------------------------------------------------------------------------------

    @staticmethod
    def from_dict(description: Mapping[str, Any]) -> Space:
        """Return the space of `to_dict`'s result. Register your own ops first.

        Raises:
            ValueError: The type is unknown, or a value is out of range.
        """
        with reading("description", description):
            return Space._read(description)

    @staticmethod
    def _read(description: Mapping[str, Any]) -> Space:
        type_name = description.get("type")
        if not isinstance(type_name, str) or type_name not in Space._types:
            made_by = f" (made of {description['source']})" if "source" in description else ""
            raise ValueError(
                f"`type` of a space must be one of {sorted(Space._types)} but got {type_name!r}{made_by}; import the "
                "module that makes it first."
            )
        return Space._types[type_name]._from_dict(description)

    def architecture(self, choices: Mapping[str, Iterable[str]]) -> Architecture:
        """Return the architecture of these choices.

        Args:
            choices: Names chosen at each path, in any order; a path left out chooses nothing. The names need not be
                one of the options: an op may stand twice, as two parallel ops of one kind do in NASNet's cell.

        Raises:
            ValueError: A path or a name is unknown.
        """
        path_of = {old: path for path, old in self.old_names().items()}
        choices = {path_of.get(path, path): names for path, names in choices.items()}
        options = self.options()
        unknown = sorted(set(choices) - set(options))
        if unknown:
            raise ValueError(
                f"`choices` must use the paths of the space but got {unknown[0]!r}; "
                f"the first of {len(options)} is {next(iter(options))!r}."
            )
        chosen_at = []
        for path in options:
            names = choices.get(path, ())
            if isinstance(names, str):
                names = (names,)
            chosen = tuple(sorted(name for name in names if name not in self.empty_names))
            self.check_choice(path, chosen)
            chosen_at.append((path, chosen))
        return Architecture(self, tuple(chosen_at))

    def adopt(self, architecture: Architecture) -> Architecture:
        """Return an architecture of this space with the same choices, such as the same cell in another skeleton.

        Raises:
            ValueError: The spaces have different cores.
        """
        if architecture.space is self:
            return architecture
        if architecture.space.core != self.core:
            raise ValueError(
                "`architecture` must be of this space but comes from another; "
                "rebuild it with `space.architecture(...)`."
            )
        return Architecture(self, architecture.choices)

    def distributions(self) -> dict[str, CategoricalDistribution]:
        """Return the Optuna distributions: one categorical for every path, the same in every trial."""
        return dict(_distributions(self.core))

    def to_json(self) -> str:
        """Return Optuna's JSON of the distributions, the format of `optuna ask --search-space`.

        Example:
            >>> from optuna_nas import nasbench201_space
            >>> print(nasbench201_space().to_json()[:48])
            {"cell_0_1": {"name": "CategoricalDistribution",
        """
        from optuna.distributions import distribution_to_json

        return json.dumps({path: json.loads(distribution_to_json(d)) for path, d in self.distributions().items()})

    def encode(self, architecture: Architecture) -> dict[str, str]:
        """Return the Optuna parameters of an architecture, the inverse of `decode`.

        Raises:
            ValueError: A choice is not among the options of this space.
        """
        table = _choice_of_names(self.core)
        params = {}
        for path, chosen in self.adopt(architecture).choices:
            if (path, chosen) not in table:
                raise ValueError(
                    f"`architecture` must use the options of the space but chooses {chosen} at {path!r}; it can be "
                    "built, but not be enqueued."
                )
            params[path] = table[path, chosen]
        return params

    def decode(self, params: Mapping[str, Any]) -> Architecture:
        """Return the architecture of Optuna parameters. Parameters of other names are ignored.

        Also accepts names of earlier versions, nested dictionaries (Ray Tune, Hydra), dashes instead of underscores,
        and choices as text in the spelling of Python or JSON (`vars(args)` of an `argparse` parser).

        Raises:
            ValueError: A parameter of the space is missing, or its value is not one of the choices.
        """
        options = self.options()
        if not options.keys() <= params.keys():
            params = self._renamed(params)
        chosen_at = []
        for path, choices in options.items():
            if path not in params:
                raise _lacks(path)
            option = _option_of(choices, params[path])
            if option is None and params[path] is None:  # an argument of `argparse` that was not given
                raise _lacks(path)
            if option is None:
                text = str(params[path])
                raise ValueError(
                    f"`params[{path!r}]` must be one of the space's {len(choices)} choices but is {text!r}."
                )
            chosen_at.append((path, option))
        return Architecture(self, tuple(chosen_at))

    def _renamed(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters of the space from nested dictionaries and other spellings."""
        values = dict(_flattened(params))
        old_names = self.old_names()
        renamed = {}
        for path in self.options():
            for name in (path, path.replace("_", "-"), old_names.get(path, path)):
                if name in values:
                    renamed[path] = values[name]
                    break
        return renamed

    def suggest(self, trial: BaseTrial) -> Architecture:
        """Suggest every parameter of the space in an Optuna trial, and return the architecture.

        Raises:
            ValueError: The trial has a parameter of its own with the name of a path.
        """
        distributions, own = _distributions(self.core), trial.distributions
        for path, distribution in distributions.items():
            if path in own and own[path] != distribution:
                raise ValueError(
                    f"`{path}` must be a parameter of the space alone but the trial has suggested it as {own[path]}; "
                    "rename one of them."
                )
        return self.decode(
            {
                path: trial.suggest_categorical(path, distribution.choices)
                for path, distribution in distributions.items()
            }
        )

    def sample(self, generator: np.random.Generator, connected: bool = True) -> Architecture:
        """Return a random architecture: every option of a path is equally likely.

        Args:
            generator: Random generator.
            connected: Reject architectures with an output that depends on no input.
        """
        while True:
            chosen_at = []
            for path, options in self.options().items():
                choices = list(options.values())
                chosen_at.append((path, choices[int(generator.integers(len(choices)))]))
            architecture = Architecture(self, tuple(chosen_at))
            if not connected or architecture.connected:
                return architecture

    @property
    def size(self) -> int:
        """Number of architectures; those that compute the same function count separately."""
        return prod(len(options) for options in self.options().values())


@lru_cache(maxsize=64)
def _distributions(space: Space) -> dict[str, CategoricalDistribution]:
    from optuna.distributions import CategoricalDistribution  # imported late: building and training need no Optuna

    return {path: CategoricalDistribution(tuple(options)) for path, options in space.options().items()}


@lru_cache(maxsize=64)
def _choice_of_names(space: Space) -> dict[tuple[str, tuple[str, ...]], str]:
    return {(path, chosen): choice for path, options in space.options().items() for choice, chosen in options.items()}


def _option_of(choices: Mapping[Any, tuple[str, ...]], value: Any) -> tuple[str, ...] | None:
    """Return the names that a choice stands for, given as it is or as text; None if it is not among the choices."""
    with suppress(KeyError, TypeError):  # text, or a value without a hash
        return choices[value]
    text = str(value)
    for choice, option in choices.items():
        if str(choice) == text:
            return option
    with suppress(ValueError, RecursionError):  # no JSON
        read = json.loads(text)
        for choice, option in choices.items():
            if read == choice and isinstance(read, bool) == isinstance(choice, bool):
                return option
    return None


def _lacks(path: str) -> ValueError:
    return ValueError(f"`params` must hold every path of the space but lacks {path!r}.")


def _flattened(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value of nested dictionaries twice: under its own key and under its path of keys, joined by `/`."""
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{key}/")
        else:
            yield str(key), value
            yield f"{prefix}{key}", value

"""What every space of architectures can do: Optuna parameters, architectures, sampling, JSON."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Self

from optuna_nas.space.architecture import Architecture
from optuna_nas.space.ops import NONE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from optuna.distributions import CategoricalDistribution
    from optuna.trial import BaseTrial
    from torch import Tensor, nn

    from optuna_nas.space.cost import Cost
    from optuna_nas.space.graph import ComputationGraph


@dataclass(frozen=True)
class Space(ABC):
    """What may be chosen: one Optuna categorical a choice. A frozen value: equal spaces have equal parameters.

    Names of choices ("paths") are Python identifiers, such as `normal_0_2` for the edge from node 0 to node 2, so that
    Optuna, MLflow, Ray, Hydra and argparse take them as they are.

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
    _types: ClassVar[dict[str, type[Space]]] = {}

    def __init_subclass__(cls) -> None:
        if "type_name" in vars(cls):
            Space._types[cls.type_name] = cls

    # -- what a subclass says -------------------------------------------------------------------------------------

    @abstractmethod
    def options(self) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        """Return, for every path, what may be chosen: the Optuna choice and the names that it keeps."""

    @abstractmethod
    def check_choice(self, path: str, kept: tuple[str, ...]) -> None:
        """Raise ValueError where `kept` can't stand at `path` (it may still be none of the options)."""

    @abstractmethod
    def full_architecture(self) -> Architecture:
        """Return the architecture that keeps every op at every place: the supernet's."""

    @abstractmethod
    def summary(self, architecture: Architecture) -> str:
        """Return an architecture in one short line, for tables: labels of the ops, node by node."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold, with the key `type`."""

    @classmethod
    @abstractmethod
    def _from_dict(cls, description: Mapping[str, Any]) -> Self:
        """Make a space of this class from `to_dict`."""

    # -- what a subclass may say ----------------------------------------------------------------------------------

    @property
    def core(self) -> Space:
        """The choices alone, without what they are built into; architectures move between spaces of one core."""
        return self

    def old_names(self) -> Mapping[str, str]:
        """Return, for every path, what earlier versions called it; still read, never written."""
        return {}

    def group(self, path: str) -> str:
        """Return what a choice belongs to, such as its kind of cell; drawings and tables put a group together."""
        return ""

    def label(self, path: str) -> str:
        """Return the short name of a choice within its group, such as `0\N{RIGHTWARDS ARROW}2` for an edge."""
        return path

    def connected(self, architecture: Architecture) -> bool:
        """Return whether the output of an architecture depends on its input."""
        return True

    def cell_graph(self, architecture: Architecture) -> ComputationGraph:
        """Return one copy of every kind of cell, without shapes.

        Raises:
            ValueError: The space has no cells.
        """
        raise ValueError(f"`space` must have cells but is a {type(self).__name__}; draw its table of choices instead.")

    def best(self, scores: Sequence[NDArray[np.float64]]) -> NDArray[np.int64]:
        """Return the position of one option a path, of the largest sum of scores among connected architectures.

        Args:
            scores: For every path one score an option, larger is better.
        """
        import numpy as np

        return np.array([int(np.argmax(row)) for row in scores])

    # -- building: what a `ModelSpace` can do ----------------------------------------------------------------------

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
            f"`space` must say what its choices are built into but is a {type(self).__name__}; use "
            "`NetworkSpace(space, skeleton)`."
        )

    # -- architectures --------------------------------------------------------------------------------------------

    @staticmethod
    def from_dict(description: Mapping[str, Any]) -> Space:
        """Make a space from `to_dict`; ops of your own must be registered before.

        Raises:
            ValueError: The type is unknown, or the space refuses a value.
        """
        type_name = description.get("type")
        if type_name not in Space._types:
            raise ValueError(
                f"`type` of a space must be one of {sorted(Space._types)} but got {type_name!r}; import the module "
                "that defines it first."
            )
        return Space._types[type_name]._from_dict(description)

    def architecture(self, choices: Mapping[str, Iterable[str]]) -> Architecture:
        """Return the architecture that keeps these names; a path left out keeps nothing.

        The order of names does not matter. A name may stand twice (two ops of one kind in parallel, as in NASNet's
        cell) although no option of the space offers it.

        Raises:
            ValueError: A path or a name is unknown.
        """
        old = {old: path for path, old in self.old_names().items()}
        choices = {old.get(path, path): names for path, names in choices.items()}
        options = self.options()
        unknown = sorted(set(choices) - set(options))
        if unknown:
            raise ValueError(
                f"`choices` must use the paths of the space but got {unknown[0]!r}; "
                f"the first of {len(options)} is {next(iter(options))!r}."
            )
        kept_at = []
        for path in options:
            names = choices.get(path, ())
            if isinstance(names, str):
                names = (names,)
            kept = tuple(sorted(name for name in names if name != NONE))
            self.check_choice(path, kept)
            kept_at.append((path, kept))
        return Architecture(self, tuple(kept_at))

    def adopt(self, architecture: Architecture) -> Architecture:
        """Return the same choices as an architecture of this space, such as a cell in another skeleton.

        Raises:
            ValueError: It was chosen from other options.
        """
        if architecture.space == self:
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
        """Return Optuna's JSON of the distributions, as `optuna ask --search-space` takes it.

        Example:
            >>> from optuna_nas import nasbench201_space
            >>> print(nasbench201_space().to_json()[:48])
            {"cell_0_1": {"name": "CategoricalDistribution",
        """
        from optuna.distributions import distribution_to_json

        return json.dumps({path: json.loads(distribution_to_json(d)) for path, d in self.distributions().items()})

    def encode(self, architecture: Architecture) -> dict[str, str]:
        """Return the Optuna parameters of an architecture.

        Raises:
            ValueError: The architecture is not among the options of this space.
        """
        table = _choice_of_kept(self.core)
        params = {}
        for path, kept in self.adopt(architecture).choices:
            if (path, kept) not in table:
                raise ValueError(
                    f"`architecture` must use the options of the space but keeps {kept} at {path!r}; "
                    "it can be built, not proposed."
                )
            params[path] = table[path, kept]
        return params

    def decode(self, params: Mapping[str, Any]) -> Architecture:
        """Return the architecture of Optuna parameters; foreign parameters are ignored.

        Names of earlier versions, nested dictionaries (as Ray Tune and Hydra make them), dashes for underscores and the
        text of a choice (`vars(args)` of an `argparse` parser) are taken too.

        Raises:
            ValueError: A parameter of the space is missing or is none of its choices.
        """
        options = self.options()
        if not options.keys() <= params.keys():
            params = self._renamed(params)
        kept_at = []
        for path, choices in options.items():
            if path not in params:
                raise ValueError(f"`params` must hold every path of the space but lacks {path!r}.")
            value = params[path]
            if value not in choices:
                value = next((choice for choice in choices if str(choice) == str(value)), value)
            if value not in choices:
                raise ValueError(
                    f"`params[{path!r}]` must be one of the space's {len(choices)} choices but is {params[path]!r}."
                )
            kept_at.append((path, choices[value]))
        return Architecture(self, tuple(kept_at))

    def _renamed(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters of the space found in nested dictionaries or under other spellings."""
        values = dict(_flattened(params))
        old = self.old_names()
        renamed = {}
        for path in self.options():
            for name in (path, path.replace("_", "-"), old.get(path, path)):
                if name in values:
                    renamed[path] = values[name]
                    break
        return renamed

    def suggest(self, trial: BaseTrial) -> Architecture:
        """Ask an Optuna trial for every parameter of the space and return the architecture."""
        return self.decode(
            {
                path: trial.suggest_categorical(path, distribution.choices)
                for path, distribution in _distributions(self.core).items()
            }
        )

    def sample(self, generator: np.random.Generator, connected: bool = True) -> Architecture:
        """Return an architecture drawn uniformly from the options.

        Args:
            generator: Source of randomness.
            connected: Draw again until every kind of cell reaches its output.
        """
        while True:
            kept_at = []
            for path, options in self.options().items():
                kept = list(options.values())
                kept_at.append((path, kept[int(generator.integers(len(kept)))]))
            architecture = Architecture(self, tuple(kept_at))
            if not connected or architecture.connected:
                return architecture

    @property
    def size(self) -> int:
        """Number of architectures, those computing one function counted apart."""
        return prod(len(options) for options in self.options().values())


@lru_cache(maxsize=64)
def _distributions(space: Space) -> dict[str, CategoricalDistribution]:
    from optuna.distributions import CategoricalDistribution  # networks and their training do without Optuna

    return {path: CategoricalDistribution(tuple(options)) for path, options in space.options().items()}


@lru_cache(maxsize=64)
def _choice_of_kept(space: Space) -> dict[tuple[str, tuple[str, ...]], str]:
    return {(path, kept): choice for path, options in space.options().items() for choice, kept in options.items()}


def _flattened(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value of nested dictionaries under its own key and under the keys that lead to it."""
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{key}/")
        else:
            yield str(key), value
            yield f"{prefix}{key}", value

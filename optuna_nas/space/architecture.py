"""One choice out of a space, as a value."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

    from optuna_nas.space.base import Space
    from optuna_nas.space.cost import Cost
    from optuna_nas.space.graph import ComputationGraph
    from optuna_nas.space.skeleton import Skeleton


@dataclass(frozen=True)
class Architecture:
    """What is kept at every place of a space: frozen, hashable, equal iff it is the same choice in the same space.

    Args:
        space: The space it was chosen from; carried so that an architecture alone can be built, priced and drawn.
        choices: (path, kept names) for every path of the space, in the space's order. A path is an Optuna parameter
            (`normal/2<-0`); the names are ops (or, for a block's `.../inputs`, predecessors). `()` keeps nothing.

    Make one with `space.architecture({...})`, `space.sample(...)`, `space.suggest(trial)` or `from_json`.
    """

    space: Space
    choices: tuple[tuple[str, tuple[str, ...]], ...]

    def __getitem__(self, path: str) -> tuple[str, ...]:
        """Return the names kept at `path`."""
        return self._mapping[path]

    def __iter__(self) -> Iterator[str]:
        """Go over the paths."""
        return iter(self._mapping)

    def __str__(self) -> str:
        return "  ".join(f"{path}={'+'.join(kept) or 'none'}" for path, kept in self.choices)

    @cached_property
    def _mapping(self) -> Mapping[str, tuple[str, ...]]:
        return dict(self.choices)

    @property
    def summary(self) -> str:
        """One short line for tables, such as `conv3 | skip conv3 | none avg3 conv1` for a NAS-Bench-201 cell."""
        return self.space.summary(self)

    @cached_property
    def cells(self) -> ComputationGraph:
        """One copy of every kind of cell, without shapes."""
        return self.space.graph(self)

    @property
    def connected(self) -> bool:
        """Whether the output of every kind of cell depends on an input."""
        return self.cells.connected

    def canonical(self) -> ComputationGraph:
        """Return the graph of cells that every architecture computing the same function shares.

        See `ComputationGraph.canonical` for what counts as the same; its `digest` is a short key for storage.
        """
        return self.cells.canonical()

    def graph(self, skeleton: Skeleton) -> ComputationGraph:
        """Return the graph of the whole network, with shapes."""
        return self.space.graph(self, skeleton)

    def cost(self, skeleton: Skeleton) -> Cost:
        """Return parameters, multiply-adds and memory access of the network in `skeleton`; builds no module."""
        return self.space.cost(self, skeleton)

    def build(self, skeleton: Skeleton) -> nn.Module:
        """Return the network of this architecture, freshly initialised: a `DiscreteNetwork`.

        Raises:
            ValueError: A cell cannot reach its output, or the skeleton does not fit.
        """
        # The one look upwards: `space.suggest(trial).build(skeleton)` is the line users add to their own objective.
        from optuna_nas.networks import DiscreteNetwork

        return DiscreteNetwork(self, skeleton)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold: the space and the choices."""
        return {"space": self.space.to_dict(), "choices": {path: list(kept) for path, kept in self.choices}}

    def to_json(self) -> str:
        """Return a JSON text from which `from_json` makes an equal architecture."""
        return json.dumps(self.to_dict())

    @staticmethod
    def from_dict(description: Mapping[str, Any]) -> Architecture:
        """Make an architecture from `to_dict`; ops of your own must be registered before.

        Raises:
            ValueError: The description does not hold an architecture, or the space refuses it.
        """
        from optuna_nas.space.base import Space

        missing = {"space", "choices"} - set(description)
        if missing:
            raise ValueError(
                f"`description` must hold `space` and `choices` but lacks {sorted(missing)}; "
                "write it with `architecture.to_json()`."
            )
        return Space.from_dict(description["space"]).architecture(description["choices"])

    @staticmethod
    def from_json(text: str) -> Architecture:
        """Make an architecture from `to_json`."""
        return Architecture.from_dict(json.loads(text))

"""One choice out of a space, as a value."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor, nn

    from optuna_nas.space.base import Space
    from optuna_nas.space.cost import Cost
    from optuna_nas.space.graph import ComputationGraph


@dataclass(frozen=True)
class Architecture:
    """What is kept at every place of a space: frozen, hashable, equal iff it is the same choice in the same space.

    Args:
        space: The space it was chosen from; carried so that an architecture alone can be built, priced and drawn.
        choices: (path, kept names) for every path of the space, in the space's order. A path is an Optuna parameter
            (`normal_0_2`); the names are ops (or, for a block's `..._inputs`, predecessors). `()` keeps nothing.

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
        """One copy of every kind of cell, without shapes; ValueError where the space has no cells."""
        return self.space.cell_graph(self)

    @property
    def connected(self) -> bool:
        """Whether the output, of every kind of cell, depends on an input."""
        return self.space.connected(self)

    def canonical(self) -> ComputationGraph:
        """Return the graph of cells that every architecture computing the same function shares.

        See `ComputationGraph.canonical` for what counts as the same; its `digest` is a short key for storage.
        """
        return self.cells.canonical()

    def graph(self) -> ComputationGraph:
        """Return the graph of the whole network, with shapes; the space must be a `ModelSpace`."""
        return self.space.graph(self)

    def cost(self) -> Cost:
        """Return parameters, multiply-adds and memory access of the network; builds no module.

        The space must be a `ModelSpace`.
        """
        return self.space.cost(self)

    def build(self, weights: Mapping[str, Tensor] | None = None, seed: int | None = None) -> nn.Module:
        """Return the network of this architecture; the space must be a `ModelSpace`.

        Args:
            weights: State to start from; freshly initialised without.
            seed: Makes the initial weights reproducible; None draws from torch's global generator.

        Raises:
            ValueError: The output depends on no input, the weights do not fit, or the space can't build.
        """
        return self.space.build(self, weights, seed)

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

"""One architecture of a space, as a value."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor, nn

    from optuna_nas.space.base import Space
    from optuna_nas.space.canonical import Canonical
    from optuna_nas.space.cost import Cost
    from optuna_nas.space.graph import ComputationGraph


@dataclass(frozen=True)
class Architecture:
    """One architecture of a space: the names chosen at every path. Frozen and hashable.

    Make one with `space.architecture({...})`, `space.sample(...)`, `space.suggest(trial)` or `from_json`. Two
    architectures are equal if their spaces and their choices are.

    Args:
        space: Space of the choices, so that an architecture alone can be built, priced and drawn.
        choices: (path, chosen names) for every path of the space, in the space's order. A path is the name of an Optuna
            parameter (`normal_0_2`); the names are ops or, for a block's `..._inputs`, predecessors. `()` is an empty
            choice.

    Example:
        >>> from optuna_nas import Architecture, nasbench201_space
        >>> architecture = nasbench201_space().architecture({"cell_0_1": ["nor_conv_3x3"], "cell_1_3": "skip_connect"})
        >>> architecture.summary
        'conv3 | none none | none skip none'
        >>> architecture["cell_0_1"], architecture.connected
        (('nor_conv_3x3',), True)
        >>> Architecture.from_json(architecture.to_json()) == architecture
        True
    """

    space: Space
    choices: tuple[tuple[str, tuple[str, ...]], ...]

    def __getitem__(self, path: str) -> tuple[str, ...]:
        """Return the names chosen at `path`."""
        return self._mapping[path]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the paths."""
        return iter(self._mapping)

    def __str__(self) -> str:
        return "  ".join(f"{path}={'+'.join(chosen) or 'none'}" for path, chosen in self.choices)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the choices, and what they cost."""
        from optuna_nas.space.notebook import html_table

        title = self.summary
        with suppress(ValueError):  # not of a `ModelSpace`
            cost = self.cost()
            title += f": {cost.params:,} parameters, {cost.multiply_adds:,} multiply-adds"
        outline = self.space.outline(self)
        return html_table(title, (), [row[1:] for row in outline], [row[0] for row in outline])

    @cached_property
    def _mapping(self) -> Mapping[str, tuple[str, ...]]:
        return dict(self.choices)

    @property
    def summary(self) -> str:
        """One-line summary for tables, such as `conv3 | skip conv3 | none avg3 conv1` for a NAS-Bench-201 cell."""
        return self.space.summary(self)

    @cached_property
    def cells(self) -> ComputationGraph:
        """Graph of one copy of every kind of cell, without shapes.

        Raises:
            ValueError: The space has no cells.
        """
        return self.space.cell_graph(self)

    @property
    def connected(self) -> bool:
        """Whether the output of every kind of cell depends on an input."""
        return self.space.connected(self)

    def canonical(self) -> Canonical:
        """Return a value that is the same for all architectures that compute the same function.

        Its `digest` is a short key for storage. In spaces of cells it is the canonical graph of cells, see
        `ComputationGraph.canonical` for the definition of equal functions; in others, by default, the choices.
        """
        return self.space.canonical(self)

    def graph(self) -> ComputationGraph:
        """Return the graph of the whole network, with shapes.

        Raises:
            ValueError: The space is not a `ModelSpace`.
        """
        return self.space.graph(self)

    def cost(self) -> Cost:
        """Return parameters, multiply-adds (MACs) and memory access of the network, without building a module.

        They are those of what `build` makes: an op that leads nowhere costs nothing. Published sizes, such as those of
        NAS-Bench-201's table, count it; `cost_table` does, too.

        Raises:
            ValueError: The space is not a `ModelSpace`.
        """
        return self.space.cost(self)

    def build(self, weights: Mapping[str, Tensor] | None = None, seed: int | None = None) -> nn.Module:
        """Return the network of this architecture.

        Args:
            weights: State dictionary to start from; None for random initial weights.
            seed: Seed of the initial weights; None draws from torch's global generator.

        Raises:
            ValueError: The space is not a `ModelSpace`, the output depends on no input, or the weights do not fit.
        """
        return self.space.build(self, weights, seed)

    def to_dict(self) -> dict[str, Any]:
        """Return space and choices as JSON values."""
        return {"space": self.space.to_dict(), "choices": {path: list(chosen) for path, chosen in self.choices}}

    def to_json(self) -> str:
        """Return a JSON string, the inverse of `from_json`."""
        return json.dumps(self.to_dict())

    @staticmethod
    def from_dict(description: Mapping[str, Any]) -> Architecture:
        """Return the architecture of `to_dict`'s result. Register your own ops first.

        Raises:
            ValueError: The description is not that of an architecture, or a choice is not of the space.
        """
        from optuna_nas.space.reading import reading

        with reading("description", description):
            return Architecture._read(description)

    @staticmethod
    def _read(description: Mapping[str, Any]) -> Architecture:
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
        """Return the architecture of `to_json`'s result. Register your own ops first.

        Raises:
            ValueError: The text is not that of an architecture.
        """
        from optuna_nas.space.reading import parse_json

        return Architecture.from_dict(parse_json("text", text))

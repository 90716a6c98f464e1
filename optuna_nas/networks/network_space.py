"""Space of networks: cells in a skeleton, as one value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import nn

from optuna_nas.networks.discrete import DiscreteNetwork
from optuna_nas.networks.graph_network import seeded_building
from optuna_nas.networks.ops import build_op, code_of_ops, has_module
from optuna_nas.networks.supernet import Supernet
from optuna_nas.space.base import Space
from optuna_nas.space.cellular import CellularSpace
from optuna_nas.space.model_space import ModelSpace
from optuna_nas.space.reading import MAX_GRAPH
from optuna_nas.space.skeleton import Skeleton

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from optuna_nas.space.architecture import Architecture
    from optuna_nas.space.cost import Cost
    from optuna_nas.space.graph import ComputationGraph


@dataclass(frozen=True)
class NetworkSpace(ModelSpace):
    """Space of networks of cells in a skeleton. Its choices are those of the cells.

    Args:
        cells: Space of the cells, such as `darts_space()`.
        skeleton: Number, kinds and width of the cells, and the fixed parts around them.

    Raises:
        ValueError: The skeleton names a cell that the space lacks, or its image is too small for its reductions.

    Example:
        >>> import optuna
        >>> from optuna_nas import NetworkSpace, darts_search_skeleton, darts_space
        >>> space = NetworkSpace(darts_space(), darts_search_skeleton(n_cells=3, channels=4))
        >>> architecture = space.suggest(optuna.create_study().ask())
        >>> architecture["normal_0_2"] in {(), *((op,) for op in space.cells.ops)}
        True
        >>> bigger = space.with_skeleton(darts_search_skeleton(n_cells=8, channels=16))
        >>> bigger.adopt(architecture).cost().params > architecture.cost().params
        True
    """

    type_name: ClassVar[str] = "NetworkSpace"

    cells: CellularSpace
    skeleton: Skeleton

    def __post_init__(self) -> None:
        if not isinstance(self.cells, CellularSpace):
            raise ValueError(f"`cells` must be a space of cells but is a {type(self.cells).__name__}.")
        if not isinstance(self.skeleton, Skeleton):
            raise ValueError(f"`skeleton` must be a Skeleton but is a {type(self.skeleton).__name__}.")
        n_names = sum(len(chosen) for _, chosen in self.cells.full_architecture().choices)
        if n_names * len(self.skeleton.cells) > MAX_GRAPH:
            raise ValueError(
                f"`skeleton` must have fewer cells: {len(self.skeleton.cells)} of {n_names} ops and inputs are more "
                f"than the {MAX_GRAPH} of a supernet."
            )
        # Raises where the skeleton does not fit, instead of in the first trial.
        self.graph(self.full_architecture())

    def with_skeleton(self, skeleton: Skeleton | None = None, **changes: Any) -> NetworkSpace:
        """Return the space of the same cells in another skeleton, such as a bigger one for the final training.

        Args:
            skeleton: The other skeleton; by default that of this space.
            **changes: Fields of the skeleton to replace, such as `channels=36`.
        """
        return NetworkSpace(self.cells, replace(skeleton or self.skeleton, **changes))

    # -- the choices are those of the cells -----------------------------------------------------------------------

    @property
    def core(self) -> Space:
        return self.cells

    def options(self) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        return self.cells.options()

    def check_choice(self, path: str, chosen: tuple[str, ...]) -> None:
        self.cells.check_choice(path, chosen)

    def full_architecture(self) -> Architecture:
        return self.adopt(self.cells.full_architecture())

    def summary(self, architecture: Architecture) -> str:
        return self.cells.summary(architecture)

    @property
    def notation(self) -> str:
        return self.cells.notation

    def old_names(self) -> Mapping[str, str]:
        return self.cells.old_names()

    def group(self, path: str) -> str:
        return self.cells.group(path)

    def label(self, path: str) -> str:
        return self.cells.label(path)

    def connected(self, architecture: Architecture) -> bool:
        return self.cells.connected(architecture)

    def canonical(self, architecture: Architecture) -> ComputationGraph:
        return self.cells.canonical(architecture)

    def best(self, scores: Sequence[NDArray[np.float64]]) -> NDArray[np.int64]:
        return self.cells.best(scores)

    def mixed_names(self) -> dict[str, tuple[str, ...]]:
        return self.cells.mixed_names()

    def cell_graph(self, architecture: Architecture) -> ComputationGraph:
        return self.cells.cell_graph(architecture)

    # -- the networks ---------------------------------------------------------------------------------------------

    def build(
        self, architecture: Architecture, weights: Mapping[str, Tensor] | None = None, seed: int | None = None
    ) -> DiscreteNetwork:
        return DiscreteNetwork(self.adopt(architecture), weights, seed)

    def supernet(self, seed: int | None = None) -> Supernet:
        return Supernet(self, seed)

    def cost(self, architecture: Architecture) -> Cost:
        return self.cells.network_cost(architecture, self.skeleton)

    def graph(self, architecture: Architecture) -> ComputationGraph:
        return self.cells.network_graph(architecture, self.skeleton)

    def supernet_graph(self) -> ComputationGraph:
        """Return the graph of the supernet."""
        return self.cells.network_graph(self.cells.full_architecture(), self.skeleton, mixed=True)

    def fixed_parts(self, seed: int | None = None) -> nn.Module:
        """Return the modules that belong to no choice, without the outputs, under their names in a network.

        Args:
            seed: Seed of the initial weights; None draws from torch's global generator.
        """
        graph = self.supernet_graph()
        fixed = [node for i, node in enumerate(graph) if not node.path and i not in graph.outputs]
        with seeded_building(seed):
            parts = {node.name: build_op(node.op, node.site) for node in fixed if has_module(node.op, node.site)}
        return nn.ModuleDict({"parts": nn.ModuleDict(parts)}).to(memory_format=torch.channels_last)

    def fixed_kernels(self) -> frozenset[str]:
        with torch.device("meta"):
            parts = self.fixed_parts()
        return frozenset(name for name, parameter in parts.named_parameters() if parameter.ndim > 1)

    def code(self) -> str:
        return code_of_ops({op for of in self.options().values() for names in of.values() for op in names})

    def example_inputs(self, batch_size: int = 1) -> Tensor:
        return torch.zeros(batch_size, *self.skeleton.input_shape, dtype=torch.float32)

    def check_data(self, data: Any) -> None:
        skeleton = self.skeleton
        shape, outputs = getattr(data, "input_shape", None), getattr(data, "outputs", None)
        fits = shape in (None, skeleton.input_shape) and outputs in (None, skeleton.classes)
        if not fits:
            raise ValueError(
                f"`data` must fit the skeleton, input_shape={skeleton.input_shape} and classes={skeleton.classes}, but "
                f"has input_shape={shape} and classes={outputs}; make the skeleton with those of `data`."
            )

    # -- JSON -----------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        return {"type": self.type_name, "cells": self.cells.to_dict(), "skeleton": self.skeleton.to_dict()}

    @classmethod
    def _from_dict(cls, description: Mapping[str, Any]) -> NetworkSpace:
        cells = Space.from_dict(description["cells"])
        return cls(cast("CellularSpace", cells), Skeleton.from_dict(description["skeleton"]))

"""Spaces whose architectures can be built, as one-shot models, objectives, searches and exports need them."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optuna_nas.space.base import Space

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from optuna_nas.space.architecture import Architecture
    from optuna_nas.space.cost import Cost
    from optuna_nas.space.graph import ComputationGraph


@dataclass(frozen=True)
class ModelSpace(Space):
    """Base class of spaces whose architectures can be built, priced, drawn and trained together as a supernet.

    `NetworkSpace` is the space of cells in a skeleton, `ModuleSpace` that of choices inside a module of your own.

    Example:
        >>> import numpy as np
        >>> from optuna_nas import NetworkSpace, nasbench201_skeleton, nasbench201_space
        >>> space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(repeats=1, channels=4))
        >>> architecture = space.sample(np.random.default_rng(0))
        >>> architecture.cost().params == sum(p.numel() for p in architecture.build().parameters())
        True
    """

    @abstractmethod
    def build(
        self, architecture: Architecture, weights: Mapping[str, Tensor] | None = None, seed: int | None = None
    ) -> nn.Module:
        """Return the network of an architecture.

        Args:
            architecture: Architecture of this space, or of another skeleton around the same cells.
            weights: State dictionary to start from, such as that of a supernet or a hypernetwork; None for random
                initial weights.
            seed: Seed of the initial weights; None draws from torch's global generator.

        Raises:
            ValueError: The output depends on no input, or the weights do not fit.
        """

    @abstractmethod
    def supernet(self, seed: int | None = None) -> nn.Module:
        """Return the module that contains all architectures and mixes them by given weights.

        It is called with inputs and the weights of the names of every path, in the order of `mixed_names`; with the
        names to compute at a path (`active`), and whether all weights in use are 1 (`ones`); see `Supernet`.

        Args:
            seed: Seed of the initial weights; None draws from torch's global generator.
        """

    @abstractmethod
    def cost(self, architecture: Architecture) -> Cost:
        """Return the exact parameters, multiply-adds (MACs) and memory access, without building a module."""

    def params(self, architecture: Architecture) -> int:
        """Return the number of parameters, which may be known long before the other costs."""
        return self.cost(architecture).params

    @abstractmethod
    def graph(self, architecture: Architecture) -> ComputationGraph:
        """Return the graph of the whole network, with shapes."""

    @abstractmethod
    def example_inputs(self, batch_size: int = 1) -> Any:
        """Return example inputs for exports and measures: a tensor of shape (batch_size, ...), or `Arguments`."""

    @abstractmethod
    def check_data(self, data: Any) -> None:
        """Check that networks of this space can be trained on these data.

        Raises:
            ValueError: Shapes of inputs or sizes of predictions differ.
        """

    def drawn_paths(self) -> frozenset[str]:
        """Return the paths whose options a supernet can only take one at a time, such as widths; none by default."""
        return frozenset()

    def fixed_kernels(self) -> frozenset[str]:
        """Return the names of the supernet's kernels that belong to no choice, such as those of a stem.

        Kernels are parameters of two or more dimensions. Those of output layers, which follow the task, are left out.
        One-shot models keep them from learning to do without the choices; none by default.
        """
        return frozenset()

    def describe(self) -> dict[str, Any]:
        """Return everything that determines the networks, as JSON values."""
        return self.to_dict()

    def code(self) -> str:
        """Return a digest of what users have written that networks are made of; by default none, an empty text.

        A study goes on with other code, since a comment or a faster way may be all that has changed, but says so, and
        takes over no result of before.
        """
        return ""

"""A space whose architectures can be built: the one value that models, objectives, searches and exports take."""

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
    """A space whose architectures can be built, priced, drawn, and trained together as a supernet.

    Two kinds: cells in a skeleton (`optuna_nas.NetworkSpace`), and choices inside a module of one's own.

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
            architecture: Of this space, or of one with the same choices.
            weights: State to start from, such as that of a supernet or a hypernetwork; freshly initialised without.
            seed: Makes the initial weights reproducible; None draws from torch's global generator.

        Raises:
            ValueError: The architecture cannot reach its output, or the weights do not fit.
        """

    @abstractmethod
    def supernet(self, seed: int | None = None) -> nn.Module:
        """Return the module that holds all architectures, mixed by weights from outside."""

    @abstractmethod
    def cost(self, architecture: Architecture) -> Cost:
        """Return parameters, multiply-adds and memory access, exactly, with nothing computed."""

    @abstractmethod
    def graph(self, architecture: Architecture) -> ComputationGraph:
        """Return the graph of the whole network, with shapes: what a hypernetwork reads and a drawing shows."""

    @abstractmethod
    def example_inputs(self, batch_size: int = 1) -> Tensor:
        """Return inputs that a network of this space takes, shape (B, ...), for exports and measures."""

    @abstractmethod
    def check_data(self, data: Any) -> None:
        """Raise ValueError where a network of this space can't take batches of these data."""

    def describe(self) -> dict[str, Any]:
        """Return what decides its networks, as JSON values."""
        return self.to_dict()

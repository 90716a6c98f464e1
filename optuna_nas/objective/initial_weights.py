"""What weights a training starts from: fresh ones, generated ones, or those of a function of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from optuna_nas.data.splits import Data
    from optuna_nas.oneshot.ghn import GHN
    from optuna_nas.space.architecture import Architecture
    from optuna_nas.space.model_space import ModelSpace

SCRATCH, GENERATED, OWN = "scratch", "ghn", "own"


@runtime_checkable
class InitialWeights(Protocol):
    """Source of the weights that a training starts from."""

    @property
    def source(self) -> str:
        """Name of what the next training starts from, noted on its trial."""

    def check(self, space: ModelSpace) -> None:
        """Raise ValueError where the weights are of another space."""

    def of(self, architecture: Architecture, data: Data) -> Mapping[str, Tensor] | nn.Module | None:
        """Return a state, a network, or None for fresh weights."""

    def describe(self) -> list[Any]:
        """Return what decides the weights, as JSON values."""


@dataclass(frozen=True)
class FreshWeights:
    """Random initial weights, by the seed of the recipe."""

    source: str = SCRATCH

    def check(self, space: ModelSpace) -> None:
        """Accept any space."""

    def of(self, architecture: Architecture, data: Data) -> None:
        """Return None: the network initialises itself."""

    def describe(self) -> list[Any]:
        """Return the name alone."""
        return [SCRATCH]


@dataclass(frozen=True)
class GeneratedWeights:
    """Weights that a hypernetwork generates (GHN, Zhang et al. 2019); fresh ones while it has not learned.

    Args:
        ghn: A GHN of the objective's space, fitted before or by its sampler.
        noise: Standard deviation of noise added to generated kernels, relative to their spread; see `GHN.weights`.

    Raises:
        ValueError: The noise is negative.
    """

    ghn: GHN
    noise: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.noise < inf:
            raise ValueError(
                f"`noise` must not be negative but got {self.noise}; 0.1 is a tenth of the kernels' spread."
            )

    @property
    def source(self) -> str:
        """`ghn`, or `scratch` while the GHN has not learned."""
        return GENERATED if self.ghn.fitted else SCRATCH

    def check(self, space: ModelSpace) -> None:
        """Raise ValueError where the GHN is of another space."""
        if self.ghn.space != space:
            raise ValueError("`ghn` must be of the space of the objective but has another; make it with that space.")

    def of(self, architecture: Architecture, data: Data) -> Mapping[str, Tensor] | None:
        """Return generated weights with statistics of the data."""
        if not self.ghn.fitted:
            return None
        self.ghn.attach(data)
        return self.ghn.weights(architecture, self.noise)

    def describe(self) -> list[Any]:
        """Return `ghn`, the noise and the GHN's configuration."""
        return [GENERATED, self.noise, self.ghn.describe()]


@dataclass(frozen=True)
class GivenWeights:
    """Weights of a function, such as `snas.weights` or `hmnas.inherited`.

    Args:
        function: Takes an architecture; returns a state, a network, or None for fresh weights.
    """

    function: Callable[[Architecture], Mapping[str, Tensor] | nn.Module | None]
    source: str = OWN

    def check(self, space: ModelSpace) -> None:
        """Accept any space: the function decides."""

    def of(self, architecture: Architecture, data: Data) -> Mapping[str, Tensor] | nn.Module | None:
        """Return what the function returns."""
        return self.function(architecture)

    def describe(self) -> list[Any]:
        """Return `own`: what a function returns can't be described."""
        return [OWN]

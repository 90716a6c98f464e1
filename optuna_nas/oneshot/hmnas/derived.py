"""What survives the masks of HM-NAS."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from optuna_nas.networks import MixedNetwork

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from optuna_nas.space import Architecture, Skeleton


class Survival(NamedTuple):
    """What masks keep of an architecture, shares in [0, 1].

    Args:
        share: Of its ops, weighted by what they weigh in the supernet: an op survives where its mask and its edge's do.
        edges: Of its edges, weighted by theirs.
        ops: Of its ops, whatever becomes of their edges.
        weights: Of the convolutions' weights of its ops.
    """

    share: float
    edges: float
    ops: float
    weights: float


class Derived(NamedTuple):
    """What survived the masks.

    Args:
        architecture: The ops and edges, any number of them.
        mixing: What the output of every op is multiplied with.
        weights: State of its network, zero where masks cut.
        masks: By the name of a parameter, ones and zeros.
        params: Parameters that survive, those that masks set to zero not counted.
        threshold: Of the masks.
    """

    architecture: Architecture
    mixing: Mapping[str, Mapping[str, float]]
    weights: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    params: int
    threshold: float

    def build(self, skeleton: Skeleton) -> MixedNetwork:
        """Return the network with inherited weights; training it updates only what survived."""
        return MixedNetwork(self.architecture, skeleton, self.mixing, self.masks, self.weights)

    @property
    def kept_weights(self) -> float:
        """Share of the network's convolution weights that survived."""
        total = sum(mask.numel() for mask in self.masks.values())
        return sum(float(mask.sum()) for mask in self.masks.values()) / max(1, total)

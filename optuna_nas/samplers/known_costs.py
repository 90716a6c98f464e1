"""Costs of candidates that are known before a training: as further objectives, and within upper bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from optuna_nas.space.cost import COSTS, PredictedCost, check_predicted
from optuna_nas.space.model_space import ModelSpace

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from optuna_nas.space import Architecture, Space

DRAWS_WITHIN = 20
"""Draws in search of a candidate within the bounds, after which one outside is taken."""


class _Params(NamedTuple):
    """Parameters alone, which need no graph of a network."""

    params: int


class KnownCosts:
    """Costs of the architectures of a space, as objectives and as constraints.

    Args:
        space: Search space.
        costs: Costs that are objectives: names of `COSTS`, and predicted costs.
        constraints: Upper bounds, by the same kinds of costs.

    Raises:
        ValueError: A cost is unknown or of another space, or a bound is not a number.

    Example:
        >>> from optuna_nas import NetworkSpace, nasbench201_skeleton, nasbench201_space
        >>> from optuna_nas.samplers.known_costs import KnownCosts
        >>> space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 4, (1, 8, 8), 10))
        >>> cell = space.architecture({"cell_0_3": ["nor_conv_3x3"]})
        >>> cell.cost().params
        7902
        >>> KnownCosts(space, constraints={"params": 3951}).excess(cell)  # a bound is exceeded by its double
        1.0
    """

    def __init__(
        self,
        space: Space,
        costs: Sequence[str | PredictedCost] = (),
        constraints: Mapping[str | PredictedCost, float] | None = None,
    ) -> None:
        self.costs, self.constraints = tuple(costs), dict(constraints or {})
        for name, used in (("costs", self.costs), ("constraints", tuple(self.constraints))):
            unknown = [cost for cost in used if not isinstance(cost, PredictedCost) and cost not in COSTS]
            if unknown:
                raise ValueError(f"`{name}` must be among {COSTS} or be predicted but got {unknown[0]!r}.")
            check_predicted(name, used, space)
            if any(isinstance(cost, str) for cost in used) and not isinstance(space, ModelSpace):
                raise ValueError(
                    f"`space` must be a `ModelSpace`, such as `NetworkSpace(space, skeleton)`, to count `{name}`."
                )
        for cost, bound in self.constraints.items():
            if not isinstance(bound, int | float | np.number) or np.isnan(bound):
                shown = cost if isinstance(cost, str) else cost.name
                raise ValueError(f"`constraints[{shown!r}]` must be a number but is {bound!r}.")

    @property
    def bounds(self) -> dict[str, float]:
        """Upper bounds by the names of costs."""
        return {cost if isinstance(cost, str) else cost.name: float(b) for cost, b in self.constraints.items()}

    def of(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        """Return the costs that are objectives, shape (M, K)."""
        return np.array([_values(self.costs, architecture) for architecture in architectures])

    def excess(self, architecture: Architecture) -> float:
        """Return by what an architecture exceeds the bounds, relative to them and summed; 0 if it keeps all."""
        if not self.constraints:
            return 0.0
        values = _values(self.constraints, architecture)
        over = zip(values, self.constraints.values(), strict=True)
        excess = float(sum((value - bound) / (abs(bound) or 1.0) for value, bound in over if not value <= bound))
        return np.inf if np.isnan(excess) else excess

    def within(self, drawn: Iterator[Architecture]) -> Iterator[Architecture]:
        """Return the first of every 20 drawn architectures that keeps the bounds, or else the last of them."""
        for first in drawn:
            architecture = first
            for _ in range(DRAWS_WITHIN - 1):
                if self.excess(architecture) <= 0:
                    break
                architecture = next(drawn)
            yield architecture


def _values(costs: Iterable[str | PredictedCost], architecture: Architecture) -> list[float]:
    wanted, space = list(costs), architecture.space
    exact: Any = None
    if isinstance(space, ModelSpace) and (counted := {cost for cost in wanted if isinstance(cost, str)}):
        exact = _Params(space.params(architecture)) if counted == {"params"} else architecture.cost()
    return [getattr(exact, cost) if isinstance(cost, str) else cost.of(architecture) for cost in wanted]

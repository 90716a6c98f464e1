"""Expected costs of a distribution over architectures, and its most probable architecture within bounds.

SNAS (Xie et al. 2019, arXiv 1812.09926v2), section 2.4. E edges (paths of the space), O options of an edge.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from optuna_nas.oneshot.snas.distribution import architecture_of
from optuna_nas.oneshot.snas.recipe import RESOURCE_WEIGHTS
from optuna_nas.space.cell_space import cost_table
from optuna_nas.space.cost import COSTS, check_predicted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from optuna_nas.networks import LatencyTable, NetworkSpace
    from optuna_nas.oneshot.snas.recipe import SNASRecipe
    from optuna_nas.space import Architecture, CellSpace


SMALLEST_SECONDS = 1e-9
"""What a measured cost is at least taken for where others are relative to it; that of a count is 1."""


class EdgeCosts:
    """What every option of every edge costs; expectations follow in closed form, since costs add up (section 2.4).

    An option counts wherever it is chosen, also where nothing reads it: sums are at least what `Architecture.cost`
    says, which leaves out what is not built, so that bounds are kept.

    C costs: parameters, multiply-adds and memory access, then those of tables.

    Args:
        space: Cells with ops on edges, in a skeleton.
        tables: Further costs, measured for every op.

    Raises:
        ValueError: A table is of another space, or two have one name.
    """

    def __init__(self, space: NetworkSpace, tables: Sequence[LatencyTable] = ()) -> None:
        check_predicted("costs", tables, space)
        self._space, cells = space, cast("CellSpace", space.core)
        table = cost_table(cells, space.skeleton)
        self.names = (*COSTS, *(measured.name for measured in tables))
        counts = [getattr(table.fixed, name) for name in COSTS]
        self.fixed = np.array([*counts, *(measured.fixed for measured in tables)], dtype=np.float64)  # (C,)
        self.smallest = np.array([1.0] * len(COSTS) + [SMALLEST_SECONDS] * len(tables))  # (C,)
        self.table = np.array(
            [
                [
                    [
                        *(sum(getattr(table.ops[path, op], name) for op in kept) for name in COSTS),
                        *(sum(measured.ops[path, op] for op in kept) for measured in tables),
                    ]
                    for kept in options.values()
                ]
                for path, options in space.options().items()
            ],
            dtype=np.float64,
        )  # (E, O, C)

    def expected(self, probabilities_EO: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the expected costs of the whole network, shape (C,)."""
        return self.fixed + np.einsum("eo,eoc->c", probabilities_EO, self.table)  # type: ignore[no-any-return]

    @property
    def uniform(self) -> NDArray[np.float64]:
        """Expected costs under the uniform distribution, without what is fixed; shape (C,)."""
        costs: NDArray[np.float64] = self.table.mean(axis=1).sum(axis=0)
        return costs

    def cheapest(self, name: str) -> float:
        """Return the least cost of an architecture that reaches its output in every kind of cell.

        Args:
            name: One of `names`.
        """
        column = self.names.index(name)
        chosen_E = self._space.best(list(-self.table[:, :, column]))
        return float(self.fixed[column] + self.counted(chosen_E)[column])

    def counted(self, chosen_E: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return what one option an edge costs, without what is fixed; shape (C,)."""
        costs: NDArray[np.float64] = self.table[np.arange(len(chosen_E)), chosen_E].sum(axis=0)
        return costs


class CostPenalty:
    """The expected cost of the distribution as an addition to the loss; upper bounds by Lagrange multipliers (2.4).

    Args:
        costs: Costs of all options.
        recipe: Its `resource` says what costs are worth.
    """

    def __init__(self, costs: EdgeCosts, recipe: SNASRecipe) -> None:
        self._costs, self._recipe = costs, recipe
        self._costs_EOC = torch.tensor(costs.table, dtype=torch.float32)
        self._smallest_C = torch.tensor(costs.smallest, dtype=torch.float32)
        bounds = recipe.resource if isinstance(recipe.resource, Mapping) else {}
        self.prices: dict[str, Tensor | float] = dict.fromkeys(bounds, 0.0)
        """Lagrange multiplier of every upper bound."""

    def move(self, device: torch.device) -> None:
        """Move to another device."""
        self._costs_EOC, self._smallest_C = self._costs_EOC.to(device), self._smallest_C.to(device)

    def __call__(self, logits_EO: Tensor, total_steps: int) -> Tensor:
        """Return the penalty in nats, differentiable in the logits, and move the Lagrange multipliers.

        Args:
            logits_EO: Log alpha.
            total_steps: Steps of the whole fit.
        """
        resource = self._recipe.resource
        if not isinstance(resource, Mapping) and not resource:
            return logits_EO.new_zeros(())
        variable_C = (logits_EO.softmax(-1)[..., None] * self._costs_EOC).sum((0, 1))
        if not isinstance(resource, Mapping):
            weight = RESOURCE_WEIGHTS[resource] if isinstance(resource, str) else resource
            uniform_C = self._costs_EOC.mean(1).sum(0)
            return weight * (variable_C / uniform_C.clamp_min(self._smallest_C)).mean()
        penalty = logits_EO.new_zeros(())
        learning_steps = (1 - self._recipe.warmup_fraction) * total_steps
        for name, bound in resource.items():
            column = self._costs.names.index(name)
            # Relative to what the choices may cost, or what is fixed would hide the excess.
            least = self._costs.smallest[column]
            allowed = max(bound - self._costs.fixed[column], 0.01 * self._costs.uniform[column], least)
            excess = variable_C[column] / allowed - 1
            penalty = penalty + self.prices[name] * excess
            # An excess of 10 % over a tenth of the budget makes a price of 1 nat.
            self.prices[name] = (self.prices[name] + excess.detach() * 100 / learning_steps).clamp_min(0.0)
        return penalty


def most_likely(
    space: NetworkSpace, log_p_EO: NDArray[np.float64], costs: EdgeCosts, bounds: Mapping[str, float]
) -> Architecture:
    """Return the most probable architecture, the argmax on every edge with `none` included (section 3.1).

    Where that leaves a cell without a way to its output, it is the most probable one that has one. With `bounds` on
    costs, probability is traded for cost at the lowest prices that keep them all: the best on the convex hull of
    probability against cost.

    Raises:
        ValueError: No architecture on that hull keeps all bounds.
    """
    limits = np.array([bounds.get(name, np.inf) for name in costs.names])

    def choose(prices: NDArray[np.float64]) -> NDArray[np.int64]:
        return space.best(list(log_p_EO - costs.table @ prices))

    def keeps(chosen_E: NDArray[np.int64]) -> bool:
        return bool((costs.fixed + costs.counted(chosen_E) <= limits).all())

    chosen_E = choose(np.zeros(len(costs.names)))
    if keeps(chosen_E):
        return architecture_of(space, chosen_E)
    rows, candidates = np.arange(len(chosen_E)), []
    for shares in _shares(len(bounds)):
        direction = np.zeros(len(costs.names))
        for name, share in zip(bounds, shares, strict=True):
            direction[costs.names.index(name)] = share / bounds[name]
        # Several bounds may hold at middle prices only, so all are tried and the lowest that does is refined.
        prices = np.concatenate([[0.0], np.geomspace(1e-3, 1e9, 241)])
        held = next((number for number, price in enumerate(prices) if keeps(choose(price * direction))), None)
        if held is None:
            continue
        low, high = (float(price) for price in prices[held - 1 : held + 1])
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if keeps(choose(middle * direction)) else (middle, high)
        chosen_E = choose(high * direction)
        candidates.append((float(log_p_EO[rows, chosen_E].sum()), tuple(chosen_E.tolist())))
    if not candidates:
        listed = ", ".join(f"{name} {bound:.6g}" for name, bound in bounds.items())
        raise ValueError(
            f"`resource` must be within reach but no architecture was found that keeps {listed} at once; raise a bound."
        )
    return architecture_of(space, np.array(max(candidates)[1]))


def _shares(n_bounds: int) -> list[tuple[float, ...]]:
    """Return ways to share a price among bounds, in quarters."""
    return [tuple(i / 4 for i in parts) for parts in product(range(5), repeat=n_bounds) if sum(parts) == 4]

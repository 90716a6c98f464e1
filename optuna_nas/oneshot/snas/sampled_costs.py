"""Costs of spaces whose costs do not add up over their choices: counted for one architecture at a time.

E paths, O options of the path that has most of them, C costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from optuna_nas.oneshot.snas.distribution import architecture_of, draw
from optuna_nas.oneshot.snas.recipe import RESOURCE_WEIGHTS
from optuna_nas.space.cost import COSTS, PredictedCost, check_predicted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from optuna_nas.oneshot.snas.recipe import SNASRecipe
    from optuna_nas.space import Architecture, ModelSpace

DRAWS = 50
"""Architectures over which an expected cost is averaged."""
PARAMS = COSTS[0]


class SampledCosts:
    """Costs of architectures, and their expectations by drawing some.

    Args:
        space: Space of networks.
        predicted: Costs that are known without building a network, beside parameters, multiply-adds and memory access.

    Raises:
        ValueError: A predicted cost is of another space, or two have one name.
    """

    def __init__(self, space: ModelSpace, predicted: Sequence[PredictedCost] = ()) -> None:
        check_predicted("costs", predicted, space)
        self.space = space
        self._predicted = {cost.name: cost for cost in predicted}
        self.names = (*COSTS, *self._predicted)

    def of(self, architecture: Architecture, name: str) -> float:
        """Return a cost of an architecture, one of `names`."""
        if name in self._predicted:
            return float(self._predicted[name].of(architecture))
        return float(self.space.params(architecture) if name == PARAMS else getattr(architecture.cost(), name))

    def mean(self, probabilities_EO: NDArray[np.float64], name: str, n_draws: int = DRAWS) -> float:
        """Return the mean cost of architectures drawn from a distribution, the same ones in every call."""
        random = np.random.default_rng(0)
        drawn = [architecture_of(self.space, draw(probabilities_EO, random)) for _ in range(n_draws)]
        return float(np.mean([self.of(architecture, name) for architecture in drawn]))

    def expected(self, probabilities_EO: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return mean costs of architectures drawn from a distribution, shape (C,)."""
        return np.array([self.mean(probabilities_EO, name) for name in self.names])

    def within(self, log_p_EO: NDArray[np.float64], bounds: Mapping[str, float]) -> Architecture:
        """Return a probable architecture within bounds: from the most probable one, the least is given up per cost.

        Args:
            log_p_EO: Logarithms of probabilities.
            bounds: Upper bounds by name of a cost.

        Raises:
            ValueError: No single changes lead to an architecture within the bounds.
        """
        sizes = [len(options) for options in self.space.options().values()]
        chosen_E = self.space.best([row[:size] for row, size in zip(log_p_EO, sizes, strict=True)])
        excess = self._excess(chosen_E, bounds)
        while excess > 0:
            best: tuple[float, NDArray[np.int64], float] | None = None
            for path, size in enumerate(sizes):
                for option in range(size):
                    if option == chosen_E[path]:
                        continue
                    other_E = chosen_E.copy()
                    other_E[path] = option
                    left = self._excess(other_E, bounds)
                    if left < excess:
                        lost = log_p_EO[path, chosen_E[path]] - log_p_EO[path, option]
                        price = max(0.0, float(lost)) / (excess - left)
                        if best is None or price < best[0]:
                            best = price, other_E, left
            if best is None:
                listed = ", ".join(f"{cost} {bound:.6g}" for cost, bound in bounds.items())
                raise ValueError(
                    f"`resource` must be within reach but no architecture was found that keeps {listed}; raise a bound."
                )
            _, chosen_E, excess = best
        return architecture_of(self.space, chosen_E)

    def _excess(self, chosen_E: NDArray[np.int64], bounds: Mapping[str, float]) -> float:
        """Return the sum of the shares by which costs exceed their bounds."""
        architecture = architecture_of(self.space, chosen_E)
        return sum(max(0.0, self.of(architecture, name) / bound - 1) for name, bound in bounds.items())


class SampledPenalty:
    """Cost of a drawn architecture as an addition to its loss; upper bounds by Lagrange multipliers.

    Args:
        costs: Costs of architectures.
        recipe: Its `resource` says what costs are worth.
    """

    def __init__(self, costs: SampledCosts, recipe: SNASRecipe) -> None:
        self._costs, self._recipe = costs, recipe
        self._uniform: dict[str, float] = {}
        bounds = recipe.resource if isinstance(recipe.resource, Mapping) else {}
        self.prices: dict[str, float] = dict.fromkeys(bounds, 0.0)
        """Lagrange multiplier of every upper bound."""

    @property
    def counts(self) -> bool:
        """Whether costs count at all."""
        return bool(self._recipe.resource)

    def __call__(self, architecture: Architecture, total_steps: int) -> float:
        """Return the penalty of an architecture in nats, and move the Lagrange multipliers.

        Args:
            architecture: Architecture drawn from the distribution.
            total_steps: Steps of the whole fit.
        """
        resource = self._recipe.resource
        if not isinstance(resource, Mapping):
            weight = RESOURCE_WEIGHTS[resource] if isinstance(resource, str) else resource
            relative = [self._costs.of(architecture, name) / self._typical(name) for name in self._costs.names]
            return weight * float(np.mean(relative))
        penalty = 0.0
        learning_steps = (1 - self._recipe.warmup_fraction) * total_steps
        for name, bound in resource.items():
            excess = self._costs.of(architecture, name) / bound - 1
            penalty += self.prices[name] * excess
            # An excess of 10 % over a tenth of the budget makes a price of 1 nat.
            self.prices[name] = max(0.0, self.prices[name] + excess * 100 / learning_steps)
        return penalty

    def _typical(self, name: str) -> float:
        """Return the mean cost under the uniform distribution."""
        if name not in self._uniform:
            sizes = [len(options) for options in self._costs.space.options().values()]
            uniform_EO = np.array([[1.0 / size] * size + [0.0] * (max(sizes) - size) for size in sizes])
            self._uniform[name] = self._costs.mean(uniform_EO, name) or 1.0
        return self._uniform[name]

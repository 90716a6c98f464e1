"""Main effects of choices on a score: what a distribution over choices may start from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optuna_nas.oneshot.random_architectures import some_architectures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from optuna_nas.oneshot.base import Score
    from optuna_nas.space import Architecture, Space

ARCHITECTURES = 100
"""Random architectures that are scored."""
RIDGE = 1.0
"""Weight of the squared effects against the squared errors of standardized scores."""


def main_effects(
    space: Space, score: Score, *, architectures: int = ARCHITECTURES, seed: int = 0
) -> NDArray[np.float64]:
    """Return by how many standard deviations each option moves a score, shape (P, O).

    Ridge regression of the standardized scores of random connected architectures on their choices. Effects of a path
    have the mean 0; rows of fewer options end with zeros.

    Args:
        space: Search space of P paths, O options at the path with most of them.
        score: Function that scores architectures, such as a `FreeScore`; larger is better.
        architectures: Number of architectures to score.
        seed: Seed of the architectures.

    Example:
        >>> import numpy as np
        >>> from optuna_nas import nasbench201_space
        >>> from optuna_nas.oneshot.free.prior import main_effects
        >>> def n_convolutions(architectures):
        ...     return np.array([float(str(architecture).count("conv")) for architecture in architectures])
        >>> effects = main_effects(nasbench201_space(), n_convolutions)
        >>> options = list(nasbench201_space().distributions()["cell_0_1"].choices)
        >>> options[effects[0].argmax()] in ("nor_conv_1x1", "nor_conv_3x3")
        True
    """
    drawn = some_architectures(space, np.random.default_rng([seed, 6]), architectures)
    return effects_of(space, drawn, np.asarray(score(drawn), dtype=np.float64))


def effects_of(
    space: Space, architectures: Sequence[Architecture], scores_N: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the main effects of options on the scores of N given architectures, shape (P, O); see `main_effects`."""
    distributions = space.distributions()
    sizes = [len(distribution.choices) for distribution in distributions.values()]
    effects_PO = np.zeros((len(sizes), max(sizes)))
    finite_N = np.isfinite(scores_N)
    if finite_N.sum() < 2 or np.ptp(scores_N[finite_N]) == 0:
        return effects_PO
    values_N = scores_N[finite_N]
    starts = np.cumsum([0, *sizes])
    chosen_NC = np.zeros((len(architectures), starts[-1]))
    for row, architecture in zip(chosen_NC, architectures, strict=True):
        params = space.encode(architecture)
        for (name, distribution), start in zip(distributions.items(), starts, strict=False):
            row[start + int(distribution.to_internal_repr(params[name]))] = 1.0
    centred_NC = chosen_NC[finite_N] - chosen_NC[finite_N].mean(axis=0)
    standardized_N = (values_N - values_N.mean()) / values_N.std()
    gram_CC = centred_NC.T @ centred_NC + RIDGE * np.eye(starts[-1])
    effects_C = np.linalg.solve(gram_CC, centred_NC.T @ standardized_N)
    for place, (start, size) in enumerate(zip(starts, sizes, strict=False)):
        row = effects_C[start : start + size]
        effects_PO[place, :size] = row - row.mean()
    return effects_PO

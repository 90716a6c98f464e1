"""Order candidates of several objectives: Pareto fronts, and how to spread the first over one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import rankdata

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPREAD_POINTS = 2048
"""Random points on which hypervolumes are counted."""


def spread_out(objectives_MK: NDArray[np.float64], number: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Return an order of rows in which each of the first adds most to the hypervolume of those before it.

    A front that is visited from one end to the other says little about trade-offs until the end. Hypervolumes are those
    of ranks, so that units do not matter, and are counted on random points. Where no row adds anything, a new layer
    begins; a row never comes before one that dominates it.

    Args:
        objectives_MK: K objectives of M rows, larger is better, shape (M, K).
        number: Rows that are spread out; the others follow by the front that they are in.
        random: Random numbers of the points.

    Returns:
        Positions of all rows, shape (M,).

    Example:
        >>> import numpy as np
        >>> from optuna_nas.samplers.fronts import spread_out
        >>> front = np.array([[4.0, 0.0], [3.0, 1.0], [2.0, 2.0], [1.0, 3.0], [0.0, 4.0], [0.0, 0.0]])
        >>> order = spread_out(front, 3, np.random.default_rng(0)).tolist()
        >>> order[0], order[-1]  # the middle of the front first, what is dominated last
        (2, 5)
    """
    ranks_MK = (rankdata(objectives_MK, axis=0) - 0.5) / len(objectives_MK)
    points_RK = random.random((SPREAD_POINTS, objectives_MK.shape[1]))
    inside_MR = (ranks_MK[:, None] >= points_RK).all(-1)
    covered_R, left_M = np.zeros(SPREAD_POINTS, dtype=bool), np.ones(len(ranks_MK), dtype=bool)
    front_M = non_dominated_ranks(objectives_MK)
    first: list[int] = []
    while len(first) < min(number, len(ranks_MK)):
        gain_M = np.where(left_M, (inside_MR & ~covered_R).sum(1), -1)
        best = int(np.lexsort((front_M, -gain_M))[0])
        if gain_M[best] == 0 and covered_R.any():
            covered_R[:] = False
            continue
        first.append(best)
        left_M[best], covered_R = False, covered_R | inside_MR[best]
    others = np.flatnonzero(left_M)
    return np.array([*first, *others[np.argsort(front_M[others], kind="stable")]], dtype=np.int64)


def non_dominated_ranks(objectives_MK: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the index of the Pareto front of every row, 0 for non-dominated rows.

    Args:
        objectives_MK: K objectives of M rows, larger is better, shape (M, K).

    Returns:
        Indices of fronts, shape (M,).

    Example:
        >>> import numpy as np
        >>> from optuna_nas.samplers.fronts import non_dominated_ranks
        >>> non_dominated_ranks(np.array([[1.0, 2.0], [2.0, 1.0], [0.0, 0.0]])).tolist()
        [0, 0, 1]
    """
    no_worse: NDArray[np.bool_] = np.all(objectives_MK[:, None] >= objectives_MK[None], axis=-1)
    dominates = no_worse & ~no_worse.T
    ranks = np.zeros(len(objectives_MK), dtype=np.int64)
    remaining, front = np.arange(len(objectives_MK)), 0
    while len(remaining):
        best = ~np.any(dominates[remaining][:, remaining], axis=0)
        ranks[remaining[best]] = front
        remaining, front = remaining[~best], front + 1
    return ranks

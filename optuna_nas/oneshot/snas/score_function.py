"""The factorised distribution of SNAS, learned from finished trials alone: score-function gradient, no supernet.

REINFORCE (Williams 1992) with a rank baseline, along the natural gradient (Amari 1998), which for categoricals is
`one_hot - probabilities` (information-geometric optimisation, Ollivier et al. 2017). One return for all edges: the
per-edge credit of SNAS (Xie et al. 2019, section 2.3) needs the pathwise gradient of a supernet.

P paths, O options of the path that has most of them; shorter rows end with zeros.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


FLOOR = 0.08  # probability that the options of a path share however sure it is
WINDOW = 50  # outcomes that a new one is compared with: what the distribution brought lately, so a baseline
MAX_ADVANTAGE = 1.5


class Outcome(NamedTuple):
    """The result of a trial.

    Args:
        violation: By how much it breaks constraints in all; 0 where it keeps them.
        progress: Steps that it reached: infinite for a completed trial, the last step for a pruned one.
        values: One for each objective, larger is better.
    """

    violation: float
    progress: float
    values: tuple[float, ...]


class ScoreFunction:
    """A distribution that moves towards what was better than usual and away from what was worse.

    Args:
        sizes: Number of options of every path.
        learning_rate: Share of the way to certainty that an outcome of advantage 1 moves a probability; in (0, 0.66).
        first_judged: Outcomes that only fill the baseline.
    """

    def __init__(self, sizes: Sequence[int], learning_rate: float = 0.2, first_judged: int = 5) -> None:
        if not 0 < learning_rate < 1 / MAX_ADVANTAGE:
            raise ValueError(f"`learning_rate` must be in (0, 0.66) but got {learning_rate}; 0.2 suits most spaces.")
        mask_PO = np.arange(max(sizes)) < np.array(sizes)[:, None]
        self._floor_PO = mask_PO * FLOOR / mask_PO.sum(axis=1, keepdims=True)
        self.probabilities = mask_PO / mask_PO.sum(axis=1, keepdims=True)
        self._learning_rate, self._first_judged = learning_rate, first_judged
        self._rows = np.arange(len(sizes))
        self._orders: NDArray[np.float64] | None = None  # (WINDOW, 2): violation and progress
        self._values: NDArray[np.float64] | None = None  # (WINDOW, objectives)
        self.n_outcomes = 0

    def learn(self, chosen_P: Sequence[int], outcome: Outcome) -> float:
        """Take one natural-gradient step for a finished trial; return its advantage, from -0.5 to 1.5.

        The advantage is `(-log(1 - q) - 1) / 2`, averaged over the ranks q in [0, 1] that the outcome takes among the
        last 50 and itself: from the share that it beats to the share that does not beat it, so that ties share their
        ranks. Its mean is 0 (but for the largest, which is cut), and the best count most. With several objectives, to
        beat is to dominate.

        Args:
            chosen_P: Option taken at every path.
            outcome: Result of the trial.
        """
        advantage = self._advantage(outcome)
        if self.n_outcomes > self._first_judged and advantage:
            chosen_PO = np.zeros_like(self.probabilities)
            chosen_PO[self._rows, list(chosen_P)] = 1.0
            moved = self.probabilities + self._learning_rate * advantage * (chosen_PO - self.probabilities)
            moved = np.maximum(moved, self._floor_PO)
            self.probabilities = moved / moved.sum(axis=1, keepdims=True)
        return advantage

    def _advantage(self, outcome: Outcome) -> float:
        order, values = (outcome.violation, outcome.progress), np.array(outcome.values, dtype=np.float64)
        if self._orders is None or self._values is None:
            self._orders, self._values = np.zeros((WINDOW, 2)), np.zeros((WINDOW, len(values)))
        n_past = min(self.n_outcomes, WINDOW)
        (violations, progresses), others = self._orders[:n_past].T, self._values[:n_past]
        no_worse, no_better = (values >= others).all(axis=1), (values <= others).all(axis=1)
        as_legal, as_far = order[0] == violations, order[1] == progresses
        beats = (order[0] < violations) | (as_legal & ((order[1] > progresses) | (as_far & no_worse & ~no_better)))
        beaten = (order[0] > violations) | (as_legal & ((order[1] < progresses) | (as_far & no_better & ~no_worse)))
        place = self.n_outcomes % WINDOW
        self._orders[place], self._values[place] = order, values
        self.n_outcomes += 1
        n_all = n_past + 1
        low, high = float(beats.sum()) / n_all, 1 - float(beaten.sum()) / n_all
        return min(MAX_ADVANTAGE, (_utility(high) - _utility(low)) / (high - low) / 2)


def _utility(rank: float) -> float:
    """Return the integral of `-log(1 - q) - 1` from 0 to a rank."""
    return (1 - rank) * float(np.log(1 - rank)) if rank < 1 else 0.0

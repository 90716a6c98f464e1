"""Stops trials whose architecture lives on what learned masks have cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from optuna.pruners import MedianPruner

from optuna_nas.pruners.base import QuantilePruner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from optuna import Study
    from optuna.pruners import BasePruner
    from optuna.trial import FrozenTrial

    from optuna_nas.oneshot.hmnas import HMNAS
    from optuna_nas.space import Architecture

SHOWN = 3
"""Edges or ops that a reason names."""


class HMNASPruner(QuantilePruner):
    """Stops trials of which the masks of a fitted `HMNAS` keep less than of random ones, before their first step.

    What is guessed of an architecture is the share of it that survives: of its ops, weighted by what they weigh in the
    supernet (`HMNAS.survival`). The paper (Yan et al. 2019) prunes a network, not trials; this rule is ours. The reason
    on the trial names what was cut, edges first, then ops.

    Args:
        hmnas: The model; of the space that trials choose from.
        pruner: Decides on the learning curve of what passes; by default Optuna's median pruner.
        quantile: Share of random architectures below whose survival a trial is stopped, in (0, 1).
        n_random: Random architectures that are judged to know that quantile.
        spared: Share of condemned trials that live, so that it can be known who was right.
        n_startup_trials: Finished trials before the first is stopped.
        seed: Of the random architectures and of who is spared.

    Raises:
        ValueError: An argument is out of range.
    """

    name = "hmnas"

    def __init__(
        self,
        hmnas: HMNAS,
        pruner: BasePruner | None = None,
        *,
        quantile: float = 0.25,
        n_random: int = 1000,
        spared: float = 0.05,
        n_startup_trials: int = 15,
        seed: int = 0,
    ) -> None:
        self.hmnas = hmnas
        super().__init__(hmnas.space, pruner or MedianPruner(), quantile, n_random, spared, n_startup_trials, seed)

    def _scores(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        return np.array([survival.share for survival in self.hmnas.survivals(architectures)])

    def _step(self) -> int:
        return self.hmnas.step

    def _can_guess(self) -> bool:
        return self.hmnas.fitted

    def _condemns(self, study: Study, trial: FrozenTrial, guess: float) -> str | None:
        reason = super()._condemns(study, trial, guess)
        if reason is None:
            return None
        edges, ops = self.hmnas.cut(self.space.decode(trial.params))
        level, names = ("edges", edges) if edges else ("ops", [f"{op} at {path}" for path, op in ops])
        shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        return f"the masks keep {guess:.0%} of it ({level} cut: {shown}); {reason}"

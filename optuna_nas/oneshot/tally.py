"""Totals of the steps of a fit: sums of their metrics, and steps skipped for non-finite numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from optuna_nas.training.finite_steps import Verdicts
from optuna_nas.training.loop import TrainingDiverged

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_SKIPPED_FRACTION, FIRST_JUDGED_STEP = 0.05, 20


class StepTally:
    """Sums of the metrics of steps since the last record, and a count of skipped steps.

    A GPU decides by itself whether a step is made (`training.finite_steps`), so the count may lag behind by some steps
    until `count(..., wait=True)`.

    Args:
        n_metrics: Metrics of a step.

    Example:
        >>> tally = StepTally(1)
        >>> tally.add(torch.tensor(True), torch.tensor([2.0]))
        >>> tally.add(torch.tensor(False), torch.tensor([torch.inf]))
        >>> tally.take()
        (1, array([2.]))
    """

    def __init__(self, n_metrics: int) -> None:
        self.sums = torch.zeros(1 + n_metrics, dtype=torch.float64)  # steps, then the metrics
        self.skipped = 0
        self._verdicts = Verdicts()

    def add(self, finite: Tensor, metrics: Tensor) -> None:
        """Add the metrics of a step, shape (n_metrics,), unless its boolean scalar `finite` is false."""
        metrics = torch.cat([torch.ones(1, dtype=torch.float64, device=metrics.device), metrics.double()])
        self.sums += torch.where(finite, metrics, 0.0)
        self._verdicts.put(finite)

    def take(self) -> tuple[int, NDArray[np.float64]]:
        """Return the number of finite steps since the last call and their mean metrics (zeros if none); start anew."""
        sums = self.sums.cpu().numpy().copy()
        self.sums.zero_()
        return int(sums[0]), sums[1:] / max(sums[0], 1.0)

    def count(self, step: int, total_steps: int, learning_rate: float, wait: bool = False) -> None:
        """Count the skipped steps known by now; with `wait`, all.

        Args:
            step: Steps done.
            total_steps: Steps to do.
            learning_rate: Named in the error.
            wait: Wait for a GPU to have decided all steps.

        Raises:
            TrainingDiverged: More than 5 % of the steps were skipped.
        """
        for finite in self._verdicts.take(wait):
            self.skipped += not finite
            judged = step >= min(FIRST_JUDGED_STEP, total_steps)
            if not finite and judged and self.skipped > MAX_SKIPPED_FRACTION * step:
                raise TrainingDiverged(
                    f"`learning_rate` must keep the loss finite but {self.skipped} of {step} steps it was not, at "
                    f"{learning_rate}; lower it, or use precision='float32'."
                )

"""How many steps of a fit its seconds hold, at the pace of those that were done."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna_nas.oneshot.base import OneShotModel

PACE_SHARE, PACE_STEPS = 0.1, 2
"""Share of the seconds that are left for a fit, and steps, after which its pace is known."""
PACE_TOLERANCE = 0.05
"""Largest share of the steps that may be too many or too few for the seconds of a fit before they are planned anew."""


class Pace:
    """Plans as many steps of a fit as its seconds hold, and no more than its budget has.

    The first step of a process takes longer than others, so that it says nothing about their pace.

    Args:
        model: Model that is fitted.
        seconds: Seconds of the whole fit; None for the whole budget.
    """

    def __init__(self, model: OneShotModel[Any], seconds: float | None) -> None:
        self._model, self._seconds = model, math.inf if seconds is None else seconds
        self._first: tuple[int, float] | None = None  # steps and seconds when the first step of this call had been done
        if model.seconds and self._seconds != (model.planned_seconds or math.inf):  # at the pace of earlier calls
            self._plan(model.step / model.seconds)
        model.planned_seconds = seconds

    def changes_plan(self) -> bool:
        """Plan anew after a step; return whether steps were too many or too few."""
        model = self._model
        if self._first is None:
            self._first = model.step, model.seconds
        if math.isinf(self._seconds):
            return False
        if model.seconds >= self._seconds:
            return self._plan(0.0)
        steps, spent = model.step - self._first[0], model.seconds - self._first[1]
        if steps < PACE_STEPS or spent < PACE_SHARE * (self._seconds - self._first[1]):
            return False
        return self._plan(steps / spent)

    def _plan(self, steps_a_second: float) -> bool:
        model, left = self._model, max(0.0, self._seconds - self._model.seconds)
        most = model.budget_steps if math.isinf(left) else model.step + int(left * steps_a_second)
        total = max(model.step, min(model.budget_steps, most))
        if total > model.step and abs(total - model.total_steps) <= PACE_TOLERANCE * model.total_steps:
            return False
        with model.lock:
            model.plan_steps(total)
        return True

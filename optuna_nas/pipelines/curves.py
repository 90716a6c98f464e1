"""Base class of listeners that write trials for other tools to show: a run a trial, closed with its results."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

from optuna_nas.storage.attributes import shown_attributes
from optuna_nas.storage.leaderboard import numbers_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

logger = logging.getLogger(__name__)


class FinishedRun(NamedTuple):
    """What a finished trial is shown with.

    Args:
        state: `COMPLETE`, `PRUNED` or `FAIL`.
        params: Parameters as texts, numbers and booleans.
        results: Values of the trial (`value`, or the names of the study's metrics) and its numeric user attributes.
        texts: Other user attributes.
    """

    state: str
    params: dict[str, bool | int | float | str]
    results: dict[str, float]
    texts: dict[str, str]


class CurvesListener(ABC):
    """Base class: listens to a search, or is called by an objective and as a callback of Optuna.

    An error of the other tool is logged, once a warning, and never ends a trial.

    Example:
        >>> from optuna_nas.pipelines.curves import CurvesListener
        >>> class Printer(CurvesListener):
        ...     def _log(self, number, step, metrics):
        ...         print(number, step, metrics)
        ...
        ...     def _end(self, number, run):
        ...         print(number, run.state)
        >>> Printer().epoch(7, 1, {"accuracy": 0.5})
        7 1 {'accuracy': 0.5}
    """

    _warned = False

    @abstractmethod
    def _log(self, number: int, step: int, metrics: dict[str, float]) -> None:
        """Add points to the curves of a trial."""

    @abstractmethod
    def _end(self, number: int, run: FinishedRun) -> None:
        """Write the results of a trial and end its run."""

    def trial_started(self, trial: Trial | FrozenTrial, metrics: Mapping[str, float]) -> None:
        """Begin the run of a trial, with what is known before its training, such as costs."""
        self._safely(lambda: self._log(trial.number, 0, dict(metrics)))

    def epoch(self, trial_number: int, step: int, metrics: Mapping[str, float]) -> None:
        """Add a point to the curves of a trial."""
        self._safely(lambda: self._log(trial_number, step, dict(metrics)))

    def progress(self, trial_number: int, fraction: float) -> None:  # noqa: B027
        """Do nothing: steps within an epoch are not shown."""

    def trial_finished(self, study: Study, trial: FrozenTrial) -> None:
        """End the run of a trial in any state; usable as a callback of Optuna."""
        names = study.metric_names or (["value"] if len(study.directions) == 1 else [])
        names = names or [f"value_{number}" for number in range(len(study.directions))]
        numbers = numbers_of(trial)
        texts = {name: str(v) for name, v in shown_attributes(trial.user_attrs).items() if name not in numbers}
        results = {**numbers, **dict(zip(names, trial.values or [], strict=False))}
        run = FinishedRun(trial.state.name, dict(map(_plain, trial.params.items())), results, texts)
        self._safely(lambda: self._end(trial.number, run))

    def model_progress(self, what: str, fraction: float) -> None:  # noqa: B027
        """Do nothing: training steps of one-shot models are not shown."""

    def closing(self) -> None:  # noqa: B027
        """Do nothing: every trial's run ends with the trial."""

    def _safely(self, write: Any) -> None:
        try:
            write()
        except Exception as error:  # what shows a trial must not break it
            level = logging.DEBUG if self._warned else logging.WARNING
            self._warned = True
            logger.log(level, "%s could not show a trial: %s", type(self).__name__, error)


def _plain(param: tuple[str, Any]) -> tuple[str, bool | int | float | str]:
    name, value = param
    return name, value if isinstance(value, bool | int | float | str) else str(value)

"""What a search tells MLflow and a listener."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from optuna import Trial

from optuna_nas.storage.optuna_rdb import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from optuna import Study
    from optuna.trial import FrozenTrial

    from optuna_nas.search.config import SearchListener
    from optuna_nas.tracking import MLflowTracker

logger = logging.getLogger(__name__)


class Events:
    """Listener that passes every event to the tracker and to another listener.

    The latter is left out once it has raised an error: what is shown is no part of a trial. An error of the storage
    that it reads is passed over, since the search meets it, too.

    Args:
        tracker: Mirror in MLflow, if there is one.
        listener: Listener, such as a progress display, if there is one.
    """

    def __init__(self, tracker: MLflowTracker | None, listener: SearchListener | None) -> None:
        self._tracker, self.listener = tracker, listener
        self.draw: Callable[[Trial], None] | None = None
        """Function that is told of every trial that starts."""

    def _tell(self, event: str, *arguments: object) -> None:
        if (listener := self.listener) is None:
            return
        try:
            getattr(listener, event)(*arguments)
        except StorageError:
            logger.debug("A listener could not read the storage.", exc_info=True)
        except Exception as error:
            self.listener = None
            logger.warning(
                "`listener` must not raise errors but %s.%s has raised %s: %s; the search goes on without it.",
                type(listener).__name__,
                event,
                type(error).__name__,
                error,
            )

    def trial_started(self, trial: Trial | FrozenTrial, metrics: Mapping[str, float]) -> None:
        if self.draw and isinstance(trial, Trial):
            self.draw(trial)
        if self._tracker:
            self._tracker.trial_started(trial, metrics)
        self._tell("trial_started", trial, metrics)

    def epoch(self, trial_number: int, step: int, metrics: Mapping[str, float]) -> None:
        if self._tracker:
            self._tracker.epoch(trial_number, step, metrics)
        self._tell("epoch", trial_number, step, metrics)

    def progress(self, trial_number: int, fraction: float) -> None:
        self._tell("progress", trial_number, fraction)

    def model_progress(self, what: str, fraction: float) -> None:
        self._tell("model_progress", what, fraction)

    def trial_finished(self, study: Study, trial: FrozenTrial) -> None:
        if self._tracker:
            self._tracker.trial_finished(study, trial)
        self._tell("trial_finished", study, trial)

    def closing(self) -> None:
        self._tell("closing")

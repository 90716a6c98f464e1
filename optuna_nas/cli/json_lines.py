"""Progress and result of a search as JSON, one object a line."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from optuna_nas.storage.plain import json_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

    from optuna_nas.search.config import Search
    from optuna_nas.search.results import SearchResult
    from optuna_nas.training.loop import EpochResult

PAUSE_SECONDS = 1.0
"""Time between two events of what goes on steadily, such as a model that trains, in seconds."""


def print_json(event: str, **values: object) -> None:
    """Print one line of JSON: an object with the key `event`; numbers that JSON lacks are null.

    Example:
        >>> from optuna_nas.cli.json_lines import print_json
        >>> print_json("epoch", trial=0, loss=float("nan"))
        {"event": "epoch", "trial": 0, "loss": null}
    """
    print(json_text({"event": event, **values}), flush=True)


class JSONLines:
    """Listener that prints every event of a search, a final training or a mirror as a line of JSON.

    The first line names the study.

    Args:
        study: Name of the study.
        total: Number of trials or epochs; None if another condition ends it.
        strategy: What its strategy will do, in a sentence; None without one.
        of: What the total is of.
    """

    def __init__(self, study: str, total: int | None, strategy: str | None = None, of: str = "trials") -> None:
        self._lock = threading.Lock()
        self._last = 0.0
        print_json("study", **{"study": study, of: total, "strategy": strategy})

    def _print(self, event: str, **values: object) -> None:
        with self._lock:  # trials may run in threads
            print_json(event, **values)

    def trial_started(self, trial: Trial | FrozenTrial, metrics: Mapping[str, float]) -> None:
        """Print number and costs of a trial."""
        self._print("trial_started", trial=trial.number, params=trial.params, costs=dict(metrics))

    def epoch(self, trial_number: int, step: int, metrics: Mapping[str, float]) -> None:
        """Print the metrics of an epoch."""
        self._print("epoch", trial=trial_number, epoch=step, metrics=dict(metrics))

    def progress(self, trial_number: int, fraction: float) -> None:
        """Print nothing: every step of a training would be too much."""

    def model_progress(self, what: str, fraction: float) -> None:
        """Print what a one-shot model does, at most once a second and at the end."""
        if fraction >= 1 or self._is_time():
            self._print("model", what=what, fraction=fraction)

    def mirrored(self, n_done: int) -> None:
        """Print the number of trials in MLflow, at most once a second."""
        if self._is_time():
            self._print("mirrored", trials=n_done)

    def final_epoch(self, result: EpochResult) -> None:
        """Print the result of an epoch of a final training."""
        self._print("epoch", **vars(result))

    def _is_time(self) -> bool:
        """Return whether a second has passed since this was last so."""
        now = time.monotonic()
        if is_time := now - self._last > PAUSE_SECONDS:
            self._last = now
        return is_time

    def trial_finished(self, study: Study, trial: FrozenTrial) -> None:
        """Print state, values and reason of a trial."""
        from optuna_nas.storage.attributes import METRIC, REASON, attribute
        from optuna_nas.storage.leaderboard import best_trial

        best = best_trial(study)
        self._print(
            "trial_finished",
            trial=trial.number,
            state=trial.state.name.lower(),
            values=trial.values,
            metric=attribute(trial.user_attrs, METRIC),
            reason=attribute(trial.user_attrs, REASON),
            best=None if best is None else best.number,
        )

    def closing(self) -> None:
        """Print that the last records are written to MLflow."""
        self._print("closing")


def result_values(search: Search, result: SearchResult) -> dict[str, object]:
    """Return the result of a search as JSON values."""
    from optuna_nas.search.results import architecture_of
    from optuna_nas.storage.attributes import METRIC, attribute
    from optuna_nas.storage.leaderboard import numbers_of
    from optuna_nas.storage.quota import counted_trials

    best: dict[str, object] | None = None
    if result.best is not None:
        architecture = architecture_of(search, result.best)
        best = {
            **numbers_of(result.best),
            "trial": result.best.number,
            "values": result.best.values,
            "metric": attribute(result.best.user_attrs, METRIC),
            "params": result.best.params,
            "architecture": None if architecture is None else architecture.summary,
        }
    return {
        "study": search.name,
        "trials": counted_trials(result.study),
        "missing": result.missing,
        "interrupted": result.interrupted,
        "ended": result.ended,
        "best": best,
        "network": None if result.network is None else str(result.network),
        "picture": None if result.picture is None else str(result.picture),
        "test_metric": result.test_metric,
    }

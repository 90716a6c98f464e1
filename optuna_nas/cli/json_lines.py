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

MODEL_SECONDS = 1.0
"""Time between two events of a model that trains, in seconds."""


def print_json(event: str, **values: object) -> None:
    """Print one line of JSON: an object with the key `event`; numbers that JSON lacks are null.

    Example:
        >>> from optuna_nas.cli.json_lines import print_json
        >>> print_json("epoch", trial=0, loss=float("nan"))
        {"event": "epoch", "trial": 0, "loss": null}
    """
    print(json_text({"event": event, **values}), flush=True)


class JSONLines:
    """Listener that prints every event of a search as a line of JSON.

    Args:
        search: Search, which the first line names.
    """

    def __init__(self, search: Search) -> None:
        self._lock = threading.Lock()
        self._last_model = 0.0
        strategy = search.made_strategy
        explanation = None if strategy is None else strategy.explanation
        print_json("study", study=search.name, trials=search.shown_total, strategy=explanation)

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
        now = time.monotonic()
        if fraction >= 1 or now - self._last_model > MODEL_SECONDS:
            self._last_model = now
            self._print("model", what=what, fraction=fraction)

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

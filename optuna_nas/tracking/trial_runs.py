"""Runs of trials in MLflow: parameters, learning curve, costs, picture, status, and the mark of the best trial."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from math import isfinite, isnan
from typing import TYPE_CHECKING

from mlflow.entities import Metric
from optuna.trial import TrialState

from optuna_nas.storage.attributes import METRIC, attribute, shown_attributes
from optuna_nas.storage.leaderboard import numbers_of
from optuna_nas.tracking.client import metrics_of
from optuna_nas.tracking.keys import keyed, param_texts, text_of, unreadable_tag
from optuna_nas.tracking.pictures import save_architecture
from optuna_nas.tracking.records import STATUSES, milliseconds, milliseconds_now
from optuna_nas.tracking.runs import COLOURS
from optuna_nas.tracking.view import winner_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mlflow.entities import Run
    from optuna.trial import FrozenTrial

    from optuna_nas.space import Space
    from optuna_nas.tracking.records import Epoch, StartedTrial
    from optuna_nas.tracking.runs import StudyRuns, TrialRun

FRESH_SECONDS = 10.0
"""Seconds after the end of another process' trial during which that process may still write it."""
BEST = " (best)"
"""Suffix of the name of the best trial's run."""
ENDS = {TrialState.PRUNED: " (pruned)", TrialState.FAIL: " (failed)"}
"""Suffixes of the names of runs whose end MLflow's own status does not tell: a pruned trial is `KILLED` there."""


RESERVED = ("mlflow.", "optuna.", "optuna_nas.", "infinite.")
"""Beginnings of tags that MLflow or this package gives; attributes of the user are named otherwise."""


class TrialRuns:
    """Writer of the runs of trials.

    Args:
        runs: Runs of the study.
        metric: Name of the first value; metrics of that name are the learning curve.
        judged: Name of the task's metric, where the first value is the loss.
        others: Names of the other values.
        space: Search space that decodes parameters to architectures; None for no pictures.
    """

    def __init__(self, runs: StudyRuns, metric: str, judged: str, others: Sequence[str], space: Space | None) -> None:
        self._runs, self._client = runs, runs.client
        self._metric, self._judged, self._others, self._space = metric, judged, others, space

    def start(self, started: StartedTrial, first: Epoch) -> None:
        """Create the run of a trial, with its parameters and first metrics."""
        run_id = self._runs.trial(started.number, started.start)
        self._client.log(run_id, metrics_of([first]), param_texts(started.params))

    def add_epochs(self, epochs: Iterable[Epoch]) -> None:
        """Add points to learning curves, with one request per trial."""
        points: dict[int, list[Epoch]] = defaultdict(list)
        for epoch in epochs:
            points[epoch.number].append(epoch)
        for number, curve in points.items():
            if number in self._runs.trials:
                self._client.log(self._runs.trials[number].run_id, metrics_of(curve))
            elif (started := self._runs.local.running.get(number)) is not None:
                run_id = self._runs.trial(number, started.start)
                self._client.log(run_id, metrics_of(curve), param_texts(started.params))

    def write(self, trial: FrozenTrial) -> None:
        """Complete and end the run of a trial; the status is written last, as the mark of a complete run."""
        run_id = self._runs.trial(trial.number, milliseconds(trial.datetime_start))
        run, end = self._client.mlflow.get_run(run_id), milliseconds(trial.datetime_complete)
        metrics = [*self._missing_curve(trial, run_id, end), *self._missing_numbers(trial, run, end)]
        numbers = numbers_of(trial)
        texts = {
            name: text_of(value) for name, value in shown_attributes(trial.user_attrs).items() if name not in numbers
        }
        texts = {f"attribute.{name}" if name.startswith(RESERVED) else name: text for name, text in texts.items()}
        texts |= unreadable_tag(trial.user_attrs, trial.system_attrs)
        tags = keyed(texts) | {"optuna.state": trial.state.name, "mlflow.runColor": COLOURS[trial.state.name]}
        self._client.log(run_id, metrics, param_texts(trial.params), tags)
        if "mlflow.loggedImages" not in run.data.tags:
            self._client.store(partial(save_architecture, self._client, run_id, self._space, trial))
        best = BEST * self._runs.trials[trial.number].name.endswith(BEST)
        name = f"trial {trial.number}{ENDS.get(trial.state, best)}"
        if name != self._runs.trials[trial.number].name:
            self._client.mlflow.update_run(run_id, name=name)
        self._client.end(run_id, STATUSES[trial.state], end)
        ended = self._runs.trials[trial.number]._replace(status=STATUSES[trial.state], name=name)
        self._runs.trials[trial.number] = ended

    def _missing_curve(self, trial: FrozenTrial, run_id: str, end: int) -> list[Metric]:
        """Return the points of the learning curve that MLflow lacks, ending with the trial's value."""
        curve = {point.step: point for point in self._client.history(run_id, self._metric)}
        missing = {step: value for step, value in trial.intermediate_values.items() if step not in curve}
        metrics = [Metric(self._metric, value, end, step) for step, value in sorted(missing.items())]
        curve |= {point.step: point for point in metrics}
        if trial.values and (not curve or not _is_shown(curve[max(curve)].value, trial.values[0])):
            step, after = max(curve, default=0), max((point.timestamp for point in curve.values()), default=0) + 1
            # MLflow shows the latest of several values at a step.
            metrics.append(Metric(self._metric, trial.values[0], max(end, after), step))
        return metrics

    def _missing_numbers(self, trial: FrozenTrial, run: Run, end: int) -> list[Metric]:
        """Return the other values, the task's metric and the numeric user attributes that MLflow lacks."""
        shown = numbers_of(trial) | dict(zip(self._others, (trial.values or [])[1:], strict=False))
        if (judged := attribute(trial.user_attrs, METRIC)) is not None:
            shown[self._judged] = judged
        missing = {key: value for key, value in keyed(shown).items() if key not in run.data.metrics}
        return [Metric(key, float(value), end, 0) for key, value in missing.items() if key != self._metric]

    def replay(self, finished: Sequence[FrozenTrial], on_progress: Callable[[int], None]) -> None:
        """Write what MLflow lacks of these trials, of any process.

        Args:
            finished: Finished trials.
            on_progress: Callback with the number of trials that are done.
        """
        # Trials of this process come first; other processes write theirs meanwhile, so that few runs are duplicated.
        local = self._runs.local.finished
        for n_done, trial in enumerate(sorted(finished, key=lambda trial: trial.number not in local)):
            on_progress(n_done)
            run = self._runs.trials.get(trial.number)
            if run is None or not (run.status == STATUSES[trial.state] or self._is_being_closed(trial, run)):
                self.write(trial)
        on_progress(len(finished))

    def write_local(self, finished: Sequence[FrozenTrial]) -> None:
        """Write those of these trials that this process has run and MLflow lacks."""
        for trial in finished:
            run = self._runs.trials.get(trial.number)
            if trial.number in self._runs.local.finished and (run is None or run.status != STATUSES[trial.state]):
                self.write(trial)

    def _is_being_closed(self, trial: FrozenTrial, run: TrialRun) -> bool:
        """Return whether another process finished the trial just now and may still be writing it."""
        fresh = milliseconds_now() - milliseconds(trial.datetime_complete) < FRESH_SECONDS * 1000
        return fresh and run.status == "RUNNING" and trial.number not in self._runs.local.finished

    def kill_running(self) -> None:
        """End the runs of the interrupted trials of this process."""
        running = self._runs.local.running
        for number in running.keys() & self._runs.trials.keys():
            self._client.end(self._runs.trials[number].run_id, "KILLED", milliseconds_now())
        running.clear()

    def crown(self, best: FrozenTrial) -> None:
        """Mark the best trial by name, colour and a picture that the view shows."""
        for number, run in self._runs.trials.items():
            wins = number == best.number
            if (name := run.name.removesuffix(BEST) + BEST * wins) != run.name:
                if wins:
                    key = winner_key(number)
                    self._client.store(partial(save_architecture, self._client, run.run_id, self._space, best, key))
                colour = COLOURS["best" if wins else "COMPLETE"]
                self._client.log(run.run_id, tags={"mlflow.runColor": colour})
                self._client.mlflow.update_run(run.run_id, name=name)
                self._runs.trials[number] = run._replace(name=name)

    def winner(self) -> int | None:
        """Return the number of the trial that is marked as the best, None if there is none."""
        return next((number for number, run in self._runs.trials.items() if run.name.endswith(BEST)), None)


def _is_shown(noted: float, value: float) -> bool:
    """Return whether MLflow shows a value; one that is infinite is NaN there."""
    return noted == value or (isnan(noted) and not isfinite(value))

"""Progress display: bars in a terminal, lines if output goes to a file."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TimeRemainingColumn

from optuna_nas.cli.console import PlainColumn, console

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

    from optuna_nas.training.loop import EpochResult


SLOW_EPOCH_SECONDS = 5.0
"""Duration of an epoch from which it is shown as a line, and time between two lines of other progress, in seconds."""


class Display:
    """Progress display of a search: bars in a terminal, otherwise one line per trial.

    Args:
        trials: Total number of trials; None if another condition ends the search.
    """

    def __init__(self, trials: int | None) -> None:
        self._trials = trials
        self._lock = threading.Lock()
        self._bars = Progress(
            PlainColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            PlainColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._running: dict[int, TaskID] = {}
        self._model: TaskID | None = None  # one round is made at a time
        self._opening = True
        self._last_line = time.monotonic()

    def model_progress(self, what: str, fraction: float) -> None:
        """Show what a one-shot model does as a bar, or as a line every few seconds."""
        with self._lock:
            self._opened()
            if console.is_terminal:
                if self._model is None:
                    if fraction >= 1:
                        return
                    self._model = self._bars.add_task(what, total=100, note="")
                self._bars.update(self._model, description=what, completed=round(100 * fraction))
                if fraction >= 1:
                    self._bars.remove_task(self._model)
                    self._model = None
            elif time.monotonic() - self._last_line > SLOW_EPOCH_SECONDS:
                self._last_line = time.monotonic()
                console.print(f"{what}: {100 * fraction:.0f} %", highlight=False)

    def _opened(self) -> None:
        """End the note that the study is being opened."""
        if self._opening:
            self._opening = False
            self._bars.update(self._total, note="")

    def closing(self) -> None:
        """Show that the last records are written to MLflow."""
        self._end_bars()
        if console.is_terminal:
            self._bars.add_task("writing to MLflow", total=None, note="")
        else:
            console.print("Writing the last records to MLflow ...")

    def _end_bars(self) -> None:
        """Remove the bars of what does not run any more, such as an interrupted trial."""
        with self._lock:
            self._opened()
            for task in (*self._running.values(), *([] if self._model is None else [self._model])):
                self._bars.remove_task(task)
            self._running, self._model = {}, None

    def __enter__(self) -> Display:
        self._bars.start()
        self._total = self._bars.add_task("trials", total=self._trials, note="opening the study")
        return self

    def __exit__(self, *unused: object) -> None:
        self._end_bars()
        self._bars.stop()

    def trial_started(self, trial: Trial | FrozenTrial, metrics: Mapping[str, float]) -> None:
        """Add a bar for a trial."""
        with self._lock:
            self._opened()
            self._running[trial.number] = self._bars.add_task(f"trial {trial.number}", total=100, note="")

    def epoch(self, trial_number: int, step: int, metrics: Mapping[str, float]) -> None:
        """Show the newest metric at the bar of the trial, or as a line for slow epochs."""
        metric, value = next(iter(metrics.items()))
        note = f"epoch {step}, {metric} {value:.4f}"
        task = self._running.get(trial_number)
        if task is not None:
            self._bars.update(task, note=note)
        if not console.is_terminal and metrics.get("epoch_seconds", 0) > SLOW_EPOCH_SECONDS:
            console.print(f"trial {trial_number}: {note}", highlight=False)

    def mirrored(self, n_done: int) -> None:
        """Show the number of trials in MLflow as a bar, or as a line every few seconds."""
        self._opening = False
        if console.is_terminal:
            self._bars.update(self._total, completed=n_done, description="to MLflow", note="")
        elif time.monotonic() - self._last_line > SLOW_EPOCH_SECONDS:
            self._last_line = time.monotonic()
            console.print(f"{n_done} of {self._trials} trials are in MLflow", highlight=False)

    def final_epoch(self, result: EpochResult) -> None:
        """Move the bar of a final training, or print a line per epoch."""
        note = f"validation {result.validation_metric:.4f}, loss {result.train_loss:.4f}, {result.seconds:.1f} s"
        self._opening = False
        if console.is_terminal:
            self._bars.update(self._total, completed=result.epoch, description="epochs", note=note)
        else:
            console.print(f"[{result.epoch}/{self._trials}] {note}", highlight=False)

    def progress(self, trial_number: int, fraction: float) -> None:
        """Move the bar of a trial."""
        task = self._running.get(trial_number)
        if task is not None:
            self._bars.update(task, completed=round(100 * fraction))

    def trial_finished(self, study: Study, trial: FrozenTrial) -> None:
        """Move the bar of all trials, or print a line."""
        from optuna_nas.storage.attributes import REASON, attribute
        from optuna_nas.storage.leaderboard import best_trial
        from optuna_nas.storage.plain import shortened
        from optuna_nas.storage.quota import counted_trials

        done, best = counted_trials(study), best_trial(study)
        with self._lock:
            task = self._running.pop(trial.number, None)
            if task is not None:
                self._bars.remove_task(task)
            note = f"best {best.values[0]:.4f} (trial {best.number})" if best else ""
            if console.is_terminal:
                self._bars.update(self._total, completed=done, note=note)
                return
        outcome = (
            f"{trial.values[0]:.4f}" if trial.values and trial.state.name == "COMPLETE" else trial.state.name.lower()
        )
        default = "the objective returned no valid value" if trial.state.name == "FAIL" else ""
        reason = attribute(trial.user_attrs, REASON, default)
        reason = f" ({shortened(reason)})" if reason else ""
        total = "" if self._trials is None else f"/{self._trials}"
        console.print(
            f"[{done}{total}] trial {trial.number}: {outcome}{reason}; {note}",
            highlight=False,
            soft_wrap=True,
        )

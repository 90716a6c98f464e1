"""A search in a notebook: a bar while it runs, and its result as HTML."""

from __future__ import annotations

import base64
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import optuna

from optuna_nas.space.notebook import html_table, html_text
from optuna_nas.storage.leaderboard import best_trial, leaderboard
from optuna_nas.storage.quota import counted_trials

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

    from optuna_nas.search.results import SearchResult

SHOW_SECONDS = 0.2
"""Least time between two updates of the bar, in seconds."""
MAX_ROWS = 10


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook.

    Example:
        >>> from optuna_nas.search.notebook import in_notebook
        >>> in_notebook()
        False
    """
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


class NotebookBar:
    """Bar of a search in a notebook; a listener of the search.

    Args:
        trials: Total number of trials; None if another condition ends the search.
    """

    def __init__(self, trials: int | None) -> None:
        from IPython.display import display

        self._lock = threading.Lock()
        self._trials, self._done = trials, 0
        self._best, self._running, self._now = "", "", "opening the study"
        self._started = time.monotonic()
        self._verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(max(self._verbosity, optuna.logging.WARNING))  # the bar says what its lines say
        self._last_shown = 0.0
        self._handle = display(self._html(), display_id=True)

    def _html(self) -> Any:
        from IPython.display import HTML

        most = f" max='{self._trials}' value='{self._done}'" if self._trials else ""
        total = f"{self._done} trials" if self._trials is None else f"trial {self._done} of {self._trials}"
        notes = [total, self._best, self._running, self._now, f"{time.monotonic() - self._started:.0f} s"]
        line = " \N{MIDDLE DOT} ".join(html_text(note) for note in notes if note)
        return HTML(f"<div><progress{most} style='width:16em; vertical-align:middle'></progress> {line}</div>")

    def _show(self, now: bool = False) -> None:
        if now or time.monotonic() - self._last_shown > SHOW_SECONDS:
            self._last_shown = time.monotonic()
            self._handle.update(self._html())

    def trial_started(self, trial: Trial | FrozenTrial, metrics: Mapping[str, float]) -> None:
        """Show the number of a trial."""
        with self._lock:
            self._running, self._now = f"trial {trial.number}", ""
            self._show()

    def epoch(self, trial_number: int, step: int, metrics: Mapping[str, float]) -> None:
        """Show the newest metric of a trial."""
        metric, value = next(iter(metrics.items()))
        with self._lock:
            self._running = f"trial {trial_number}: epoch {step}, {metric} {value:.4f}"
            self._show()

    def progress(self, trial_number: int, fraction: float) -> None:
        """Show that time passes."""
        with self._lock:
            self._show()

    def model_progress(self, what: str, fraction: float) -> None:
        """Show what a one-shot model does."""
        with self._lock:
            self._now = "" if fraction >= 1 else f"{what}: {100 * fraction:.0f} %"
            self._show()

    def trial_finished(self, study: Study, trial: FrozenTrial) -> None:
        """Move the bar."""
        done, best = counted_trials(study), best_trial(study)
        with self._lock:
            self._done, self._running = done, ""
            self._best = f"best {best.values[0]:.4f} (trial {best.number})" if best else ""
            self._show(now=True)

    def closing(self) -> None:
        """Show that the last records are written to MLflow."""
        with self._lock:
            self._running, self._now = "", "writing to MLflow"
            self._show(now=True)

    def close(self) -> None:
        """Show the last state, in which nothing runs any more."""
        optuna.logging.set_verbosity(self._verbosity)
        with self._lock:
            self._running = self._now = ""
            self._show(now=True)


def result_html(result: SearchResult) -> str:
    """Return the result of a search for a notebook: leaderboard, picture of the best architecture, files.

    Args:
        result: Result.
    """
    rows, n_trials = leaderboard(result.study), counted_trials(result.study)
    names = [name for name in ("params", "multiply_adds", "train_seconds") if any(name in row.numbers for row in rows)]
    metrics = ["metric"] if any(row.metric is not None for row in rows) else []
    table = [
        [
            row.rank if row.can_win else "breaks a constraint",
            row.trial.number,
            *(("" if value is None else f"{value:.4f}") for value in (row.value, *([row.metric] if metrics else []))),
            *(f"{round(row.numbers[name], 1):,}" if name in row.numbers else "" for name in names),
        ]
        for row in rows[:MAX_ROWS]
    ]
    headings = ["rank", "trial", "value", *metrics, *(name.replace("_", " ") for name in names)]
    parts = [html_table(f"{result.study.study_name}: the best of {n_trials} trials", headings, table)]
    if result.best is None:
        parts.append("<p>No trial has finished yet that can win.</p>")
    if result.picture is not None and result.picture.is_file():
        data = base64.b64encode(result.picture.read_bytes()).decode()
        shows = f"architecture of trial {result.best.number}" if result.best else "best architecture"
        # Drawings are dark on light; a page of any colour gets them on their own ground.
        style = "max-width:100%; height:auto; background:#fff; padding:4px; margin-top:6px"
        parts.append(f"<img alt='{html_text(shows)}' style='{style}' src='data:image/png;base64,{data}'>")
    facts = {
        "Network": None if result.network is None else f"{result.network}, read it with optuna_nas.load_network",
        "Test metric": None if result.test_metric is None else f"{result.test_metric:.4f}, on data never seen",
        "Ended": result.ended,
        "Interrupted": f"{result.missing} trials to go; run the search again" if result.interrupted else None,
    }
    parts += [f"<p style='margin:2px 0'>{name}: {html_text(text)}</p>" for name, text in facts.items() if text]
    return "\n".join(parts)

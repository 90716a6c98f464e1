"""Weights & Biases: curves, values and parameters of trials, a run a trial.

Needs `pip install 'optuna_nas[wandb]'`.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import wandb

from optuna_nas.pipelines.curves import CurvesListener

if TYPE_CHECKING:
    from optuna_nas.pipelines.curves import FinishedRun


class WandbListener(CurvesListener):
    """Listener that writes trials as runs of Weights & Biases: curves, and at their end parameters and results.

    Pass it to a search, `search.run(WandbListener("project"))`, or call it from a loop of your own: `trial_started`,
    `epoch`, and `study.optimize(..., callbacks=[listener.trial_finished])`. All runs of a study are a group.

    Args:
        project: Project of the runs.
        group: Group of the runs, such as the name of the study.
        folder: Folder in which the folder `wandb` of the runs is made.
        mode: `offline` writes files, for `wandb sync` later; `online` also sends them, which needs a login.

    Raises:
        ValueError: The mode is unknown.

    Example:
        >>> from optuna_nas.pipelines.wandb import WandbListener
        >>> listener = WandbListener("cells", group="digits", folder="runs")
        >>> listener.mode
        'offline'
    """

    def __init__(
        self,
        project: str,
        group: str | None = None,
        folder: str | Path = ".",
        mode: Literal["offline", "online"] = "offline",
    ) -> None:
        if mode not in ("offline", "online"):
            raise ValueError(f"`mode` must be 'offline' or 'online' but got {mode!r}.")
        self.project, self.group, self.folder, self.mode = project, group, Path(folder), mode
        self._runs: dict[int, Any] = {}
        self._lock = threading.Lock()

    def _run(self, number: int) -> Any:
        with self._lock:
            if number not in self._runs:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._runs[number] = wandb.init(
                    project=self.project,
                    group=self.group,
                    name=f"trial {number}",
                    dir=str(self.folder),
                    mode=self.mode,
                    reinit="create_new",  # several trials may run at once
                    settings=wandb.Settings(console="off", silent=True),
                )
            return self._runs[number]

    def _log(self, number: int, step: int, metrics: dict[str, float]) -> None:
        self._run(number).log(metrics, step=step)

    def _end(self, number: int, run: FinishedRun) -> None:
        ours = self._run(number)
        ours.config.update(run.params)
        # Curves overwrite a summary of their name, so results have one of their own.
        results = {f"result/{name}": value for name, value in run.results.items()}
        ours.summary.update({**results, **run.texts, "state": run.state})
        ours.finish(exit_code=int(run.state == "FAIL"))
        with self._lock:
            del self._runs[number]

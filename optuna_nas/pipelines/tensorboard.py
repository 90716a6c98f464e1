"""TensorBoard: curves, values and parameters of trials, a run a trial.

Needs `pip install 'optuna_nas[tensorboard]'`.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from torch.utils.tensorboard import SummaryWriter

from optuna_nas.pipelines.curves import CurvesListener

if TYPE_CHECKING:
    from optuna_nas.pipelines.curves import FinishedRun


class TensorBoardListener(CurvesListener):
    """Listener that writes the learning curves of trials for TensorBoard, and at their end parameters and results.

    Pass it to a search, `search.run(TensorBoardListener("tensorboard"))`, or call it from a loop of your own:
    `trial_started`, `epoch`, and `study.optimize(..., callbacks=[listener.trial_finished])`. Look with
    `tensorboard --logdir tensorboard`. A trial that is tried again is a run of its own number.

    Args:
        folder: Folder of the event files; each trial has a folder in it, `trial-00007`.

    Example:
        >>> import optuna
        >>> from optuna_nas.pipelines.tensorboard import TensorBoardListener
        >>> listener = TensorBoardListener("tensorboard")
        >>> def objective(trial):
        ...     width = trial.suggest_int("width", 1, 8)
        ...     listener.trial_started(trial, {"params": 10.0 * width})
        ...     listener.epoch(trial.number, 1, {"accuracy": width / 10})
        ...     return width / 10
        >>> study = optuna.create_study(direction="maximize")
        >>> study.optimize(objective, n_trials=1, callbacks=[listener.trial_finished])
        >>> [path.name for path in listener.folder.iterdir()]
        ['trial-00000']
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._writers: dict[int, SummaryWriter] = {}
        self._lock = threading.Lock()

    def _writer(self, number: int) -> SummaryWriter:
        with self._lock:
            if number not in self._writers:
                self._writers[number] = SummaryWriter(str(self.folder / f"trial-{number:05d}"))
            return self._writers[number]

    def _log(self, number: int, step: int, metrics: dict[str, float]) -> None:
        writer = self._writer(number)
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)

    def _end(self, number: int, run: FinishedRun) -> None:
        writer = self._writer(number)
        writer.add_hparams(run.params, {f"result/{name}": value for name, value in run.results.items()}, run_name=".")
        writer.add_text("state", run.state)
        writer.close()
        with self._lock:
            del self._writers[number]

"""Seconds, GPU-seconds and epochs of trials: one definition each, for report, terminal, MLflow and comparisons.

| figure | definition | of a trial that was killed, pruned, failed or interrupted |
| --- | --- | --- |
| training | seconds of training and validation in this trial | up to its last epoch, or its end if it was not killed |
| model | seconds for which it trained a one-shot model, with the scores of the round | up to the last five seconds |
| waiting | all other seconds from its start to its end, by Optuna | 0 if it failed, which may be noticed late |
| GPU-seconds | seconds of training and of the model, times the GPUs (or share of one) that it had | likewise |
| epochs | epochs that it trained itself: of a training that was resumed, those since then | up to the last whole one |
| epochs saved | epochs that its training lacks, if it was pruned | 0, unless it was pruned |
| seconds saved | mean training of completed trials minus its training, if it was pruned; see `Savings` | likewise |

A training that is resumed is several trials, each of which has its own seconds, so that the sum over all trials is what
was spent. Trials that took over the result of a duplicate trained nothing, and neither save nor spend. Where an
objective of the user measures nothing, all seconds of a trial that the model did not take are its training.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from optuna.trial import TrialState

from optuna_nas.storage.attributes import (
    DUPLICATE_OF,
    EPOCHS,
    GPU_SECONDS,
    MODEL_SECONDS,
    RETRY_OF,
    TRAIN_SECONDS,
    TRAINED_EPOCHS,
    attribute,
    has_attribute,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna.trial import FrozenTrial


class Spending(NamedTuple):
    """Seconds and epochs of a finished trial; see the table of this module.

    Args:
        training: Seconds of training and validation.
        model: Seconds of the training of a one-shot model.
        waiting: Other seconds from start to end.
        gpu: GPU-seconds.
        epochs: Epochs that it trained; 0 where an objective of the user reports none.
        epochs_saved: Epochs that pruning has saved.
    """

    training: float
    model: float
    waiting: float
    gpu: float
    epochs: int
    epochs_saved: int

    @property
    def total(self) -> float:
        """All seconds of the trial."""
        return self.training + self.model + self.waiting


def spending_of(trial: FrozenTrial) -> Spending:
    """Return what a finished trial has spent.

    Example:
        >>> import optuna
        >>> from optuna_nas.storage.attributes import EPOCHS, MODEL_SECONDS, TRAIN_SECONDS
        >>> from optuna_nas.storage.spending import spending_of
        >>> spent = {TRAIN_SECONDS: 4.0, MODEL_SECONDS: 1.5, EPOCHS: 10}
        >>> pruned = optuna.trial.TrialState.PRUNED
        >>> spending_of(optuna.create_trial(state=pruned, intermediate_values={1: 0.5, 2: 0.6}, user_attrs=spent))
        Spending(training=4.0, model=1.5, waiting=0.0, gpu=0.0, epochs=2, epochs_saved=8)
    """
    attributes = trial.user_attrs
    duration = max(0.0, trial.duration.total_seconds()) if trial.duration else 0.0  # the clock may have been set back
    model = float(attribute(attributes, MODEL_SECONDS, 0.0))
    is_ours = any(has_attribute(attributes, key) for key in (TRAIN_SECONDS, EPOCHS, DUPLICATE_OF))
    training = float(attribute(attributes, TRAIN_SECONDS, 0.0 if is_ours else max(0.0, duration - model)))
    waiting = 0.0 if trial.state == TrialState.FAIL else max(0.0, duration - training - model)
    gpu, last = float(attribute(attributes, GPU_SECONDS, 0.0)), int(trial.last_step or 0)
    if _took_over(trial):
        return Spending(training, model, waiting, gpu, 0, 0)
    trained = int(attribute(attributes, TRAINED_EPOCHS, last))
    saved = max(0, attribute(attributes, EPOCHS, 0) - last) if trial.state == TrialState.PRUNED else 0
    return Spending(training, model, waiting, gpu, trained, saved)


def _took_over(trial: FrozenTrial) -> bool:
    """Return whether a trial took over the result of a duplicate; one enqueued with that note may have trained."""
    trained = attribute(trial.user_attrs, TRAINED_EPOCHS, trial.last_step)
    return has_attribute(trial.user_attrs, DUPLICATE_OF) and not trained


class Savings:
    """What a study has spent, and what pruning has saved in it, updated at a constant cost per finished trial.

    Every pruned trial saves the epochs that it lacks, and the seconds by which its training is shorter than the mean
    of the completed trials; of a training that was resumed, the seconds of all its attempts count.

    Attributes:
        spent: Seconds and epochs of all trials, with those that failed.

    Example:
        >>> import optuna
        >>> from optuna_nas.storage.attributes import TRAIN_SECONDS
        >>> from optuna_nas.storage.spending import Savings
        >>> savings = Savings()
        >>> for state, seconds in (("COMPLETE", 10.0), ("PRUNED", 4.0)):
        ...     trial = optuna.create_trial(state=optuna.trial.TrialState[state], values=[1.0] * (state == "COMPLETE"),
        ...                                 user_attrs={TRAIN_SECONDS: seconds})
        ...     savings.add(trial)
        >>> savings.seconds
        6.0
    """

    def __init__(self) -> None:
        self.spent = Spending(0.0, 0.0, 0.0, 0.0, 0, 0)
        self._counts: defaultdict[TrialState, int] = defaultdict(int)
        self._seconds: defaultdict[TrialState, float] = defaultdict(float)
        self._gpu: defaultdict[TrialState, float] = defaultdict(float)
        self._failed: dict[int, tuple[float, float]] = {}  # seconds of attempts that others may go on with

    def add(self, trial: FrozenTrial) -> None:
        """Add a finished trial; those with lower numbers come first, as a training goes on in later trials."""
        spent = spending_of(trial)
        self.spent = Spending(*(sum(pair) for pair in zip(self.spent, spent, strict=True)))  # type: ignore[arg-type]
        before = self._failed.get(attribute(trial.user_attrs, RETRY_OF, -1), (0.0, 0.0))
        seconds, gpu = spent.training + before[0], spent.gpu + before[1]
        if trial.state == TrialState.FAIL:
            self._failed[trial.number] = seconds, gpu
        elif not _took_over(trial):
            self._counts[trial.state] += 1
            self._seconds[trial.state] += seconds
            self._gpu[trial.state] += gpu

    @property
    def seconds(self) -> float:
        """Seconds of training that pruning has saved."""
        return self._saved(self._seconds)

    @property
    def gpu_seconds(self) -> float | None:
        """GPU-seconds that pruning has saved; None if no completed trial had a GPU."""
        return self._saved(self._gpu) if self._gpu[TrialState.COMPLETE] else None

    def _saved(self, spent: defaultdict[TrialState, float]) -> float:
        n_complete, n_pruned = self._counts[TrialState.COMPLETE], self._counts[TrialState.PRUNED]
        mean = spent[TrialState.COMPLETE] / max(1, n_complete)
        return max(0.0, mean * n_pruned - spent[TrialState.PRUNED])


class Meter:
    """Meter of the seconds of a part of a running trial, which are stored in the trial while they grow.

    Args:
        key: Attribute of the seconds.
        gpus: Number of GPUs, or share of one, that the part has; 0 without GPUs.
        earlier: GPU-seconds of earlier parts of the trial.
        write: Function of key and value that sets an attribute of the trial.
    """

    def __init__(self, key: str, gpus: float, earlier: float, write: Callable[[str, float], None]) -> None:
        self._key, self._gpus, self._earlier, self._write = key, gpus, earlier, write
        self._started = self._written = time.monotonic()

    def store(self, after: float = 0.0) -> None:
        """Store the seconds until now, unless they were stored less than so many seconds ago."""
        now = time.monotonic()
        if now - self._written < after:
            return
        self._written, seconds = now, now - self._started
        self._write(self._key, round(seconds, 3))
        if self._gpus:
            self._write(GPU_SECONDS, round(self._earlier + self._gpus * seconds, 3))

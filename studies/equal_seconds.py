"""What studies at equal CPU seconds have in common: an end, results that are kept, an interval."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from scipy.stats import bootstrap

from optuna_nas import Architecture


def stop_after(seconds: float) -> Callable[[optuna.Study, optuna.trial.FrozenTrial], None]:
    """Return a callback that ends a study after the first trial that ends so many CPU seconds from now."""
    begun = time.process_time()

    def end(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if time.process_time() - begun >= seconds:
            study.stop()

    return end


def kept_in(file: Path | None, otherwise: Any) -> Any:
    """Return what a file of results holds, or else what a study begins with."""
    return json.loads(file.read_text()) if file is not None and file.exists() else otherwise


def kept_numbers(
    file: Path | None, cells: Sequence[Architecture], measure: Callable[[Architecture], float]
) -> list[float]:
    """Return a number of every cell: those that a file holds, and the others as they are measured and kept there."""
    numbers: list[float] = kept_in(file, [])
    for cell in cells[len(numbers) :]:
        numbers.append(measure(cell))
        if file is not None:
            file.write_text(json.dumps(numbers))
    return numbers


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the bootstrapped 95 % interval of a mean, NaN for a single value."""
    if len(values) < 2:
        return np.nan, np.nan
    low, high = bootstrap((values,), np.mean, rng=0).confidence_interval
    return float(low), float(high)

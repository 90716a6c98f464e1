"""What a search would cost, from a sample of its networks and a few timed training steps."""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch
from optuna.distributions import CategoricalDistribution, IntDistribution

from optuna_nas.data.splits import REPORT, TRAIN
from optuna_nas.objective.suggestions import without_suggestions
from optuna_nas.objective.train_objective import TrainObjective
from optuna_nas.search.config import training_parts
from optuna_nas.space import ModelSpace
from optuna_nas.training.device import own_default_device
from optuna_nas.training.loop import TrainingStopped, train

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from optuna_nas.search.config import Search
    from optuna_nas.space import Architecture, Cost

SAMPLED, COUNTING_SECONDS = 64, 5.0
"""Architectures whose costs are counted, and seconds after which no more are."""
MIN_STEPS, MAX_STEPS, STEP_SECONDS = 4, 20, 2.0
"""Training steps that are timed for each of three networks; the first two are not counted."""
EVALUATED = 1 / 3
"""Time of an example's evaluation as a fraction of its training: one of three passes."""
BYTES_PER_PARAMETER, CHECKPOINT_COPIES = 4, 3
PICTURE_BYTES, RECORD_BYTES = 60_000, 40_000
"""Measured sizes of a cell's picture, and of a trial in databases of Optuna and MLflow."""


class Range(NamedTuple):
    """Smallest, middle and largest of several values."""

    least: float
    median: float
    most: float

    @staticmethod
    def of(values: Sequence[float]) -> Range:
        """Return the range of values."""
        return Range(min(values), statistics.median(values), max(values))


class Plan(NamedTuple):
    """What a search would cost. What is not known is None.

    Args:
        size: Number of architectures of the space.
        sampled: Number of architectures whose costs were counted.
        params: Parameters of a network.
        multiply_adds: Multiply-adds of a prediction.
        step_seconds: Seconds of a training step.
        steps: Steps of an epoch.
        epochs: Epochs of a trial; a range where they are searched as well.
        trial_seconds: Seconds of a trial that is trained in full.
        trials: Total number of trials; None where something else ends the search.
        seconds_limit: Seconds at which the search ends.
        search_seconds: Seconds of all trials in full, divided among the workers.
        model_epochs: Epochs of one-shot models, on top, by name.
        memory_bytes: Largest memory that was used while the largest sampled network was trained.
        device: Device of the training.
        disk_bytes: Estimated size of the files of the study.
        free_bytes: Free bytes where they are written.
    """

    size: int
    sampled: int
    params: Range | None
    multiply_adds: Range | None
    step_seconds: Range | None
    steps: int | None
    epochs: Range | None
    trial_seconds: Range | None
    trials: int | None
    seconds_limit: float | None
    search_seconds: Range | None
    model_epochs: dict[str, float]
    memory_bytes: int | None
    device: str | None
    disk_bytes: int
    free_bytes: int

    def values(self) -> dict[str, object]:
        """Return the plan as JSON values."""
        return {name: value._asdict() if isinstance(value, Range) else value for name, value in self._asdict().items()}

    def lines(self) -> list[tuple[str, str]]:
        """Return the plan as lines of name and text."""
        found = [("Space", f"{self.size:,} architectures")]
        for name, counted in (("Parameters", self.params), ("Multiply-adds", self.multiply_adds)):
            if counted is not None:
                least, median, most = (f"{round(number):,}" for number in counted)
                found.append((name, f"{least} to {most}, median {median}, of {self.sampled} sampled architectures"))
        if self.trial_seconds is None or self.step_seconds is None or self.epochs is None:
            found.append(("Time", "not known: the objective is the study's own"))
        else:
            step = " to ".join(f"{1000 * seconds:.3g}" for seconds in (self.step_seconds.least, self.step_seconds.most))
            spent = _between(self.trial_seconds)
            passes = " to ".join(dict.fromkeys(f"{number:g}" for number in (self.epochs.least, self.epochs.most)))
            found.append(("A step", f"{step} ms on {self.device}, timed"))
            found.append(("A trial", f"{passes} epochs of {self.steps} steps: {spent}"))
        if self.search_seconds is not None:
            found.append(("All trials", f"{self.trials}, if none is pruned: {_between(self.search_seconds)}"))
        for name, epochs in self.model_epochs.items():
            found.append(("On top", f"{epochs:,.0f} epochs in which {name} trains"))
        if self.seconds_limit is not None:
            found.append(("Ends", f"before a trial that would not fit into {_duration(self.seconds_limit)}"))
        if self.memory_bytes is not None:
            found.append(("Memory", f"{_size(self.memory_bytes)} on {self.device} with the largest of them"))
        found.append(("Disk", f"about {_size(self.disk_bytes)}; {_size(self.free_bytes)} are free"))
        return found


@own_default_device()
def plan(search: Search, workers: int = 1) -> Plan:
    """Return what a search would cost; nothing is written, and no trial is run.

    Args:
        search: Configuration.
        workers: Number of processes.

    Example:
        >>> from optuna_nas import NetworkSpace, Recipe, Search, digits, nasbench201_skeleton, nasbench201_space
        >>> from optuna_nas.search.dry_run import plan
        >>> data = digits()
        >>> space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 4, data.input_shape, data.classes))
        >>> planned = plan(Search("digits", space, data, Recipe(epochs=2, batch_size=128), trials=10))
        >>> planned.size, planned.steps, planned.search_seconds.most > planned.trial_seconds.most
        (15625, 8, True)
    """
    objective = search.resolved_objective
    space = getattr(objective, "space", search.space)
    counted = _counted(space) if isinstance(space, ModelSpace) else []
    costs = [cost for _, cost in counted]
    total = search.shown_total
    steps = epochs = memory = None
    step_seconds = trial_seconds = search_seconds = None
    device: str | None = None
    if isinstance(objective, TrainObjective):
        data, recipe = objective.device_data, without_suggestions(objective.recipe)
        device = str(data.device)
        steps, epochs = max(1, data.size(TRAIN) // recipe.batch_size), _epochs(objective.recipe.epochs)
        with _threads(search.cpu_threads):
            timed = [_time_steps(objective, counted[place][0]) for place in (-1, len(counted) // 2, 0)]
            memory = _peak_memory(data.device)
        step_seconds = Range.of(timed)
        in_steps = steps + EVALUATED * data.size([REPORT]) / recipe.batch_size
        trial_seconds = Range(*(a * b * in_steps for a, b in zip(step_seconds, epochs, strict=True)))
        if total is not None:
            search_seconds = Range(*(seconds * total / (workers * search.n_jobs) for seconds in trial_seconds))
    fits = [
        getattr(part, "in_study_fit", None) for part in training_parts(search.resolved_sampler, search.resolved_pruner)
    ]
    folder = search.resolved_folder()
    return Plan(
        space.size,
        len(counted),
        Range.of([cost.params for cost in costs]) if costs else None,
        Range.of([cost.multiply_adds for cost in costs]) if costs else None,
        step_seconds,
        steps,
        epochs,
        trial_seconds,
        total,
        search.seconds,
        search_seconds,
        {fit.name: fit.budget for fit in fits if fit is not None and fit.trains},
        memory,
        device,
        _disk_bytes(search, max((cost.params for cost in costs), default=0)),
        shutil.disk_usage(next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())).free,
    )


def _counted(space: ModelSpace) -> list[tuple[Architecture, Cost]]:
    """Return random architectures and their costs, that of the fewest multiply-adds first."""
    random, end = np.random.default_rng(0), time.monotonic() + COUNTING_SECONDS
    found: dict[Architecture, Cost] = {}
    for _ in range(SAMPLED):
        architecture = space.sample(random)
        found[architecture] = architecture.cost()
        if time.monotonic() > end:
            break
    return sorted(found.items(), key=lambda pair: pair[1].multiply_adds)


def _epochs(epochs: object) -> Range:
    """Return the epochs of a trial, which may be suggested."""
    if isinstance(epochs, CategoricalDistribution):
        return Range.of([float(choice) for choice in epochs.choices if isinstance(choice, int)])
    if isinstance(epochs, IntDistribution):
        return Range.of([epochs.low, epochs.high])
    return Range.of([cast("int", epochs)])


def _time_steps(objective: TrainObjective, architecture: Architecture) -> float:
    """Return the seconds of a training step of an architecture."""
    data, recipe = objective.device_data, without_suggestions(objective.recipe)
    times = [time.monotonic()]

    def on_step(fraction: float) -> None:
        if data.device.type == "cuda":
            torch.cuda.synchronize(data.device)  # the host is ahead of the GPU
        times.append(time.monotonic())

    def enough() -> bool:
        return len(times) > MAX_STEPS or (len(times) > MIN_STEPS and times[-1] - times[0] > STEP_SECONDS)

    network = objective.space.build(architecture, None, recipe.seed)
    with suppress(TrainingStopped):
        train(network, data, recipe, without_suggestions(objective.task), on_step=on_step, should_stop=enough)
    durations = np.diff(times)
    return float(np.median(durations[2:] if len(durations) > 2 else durations))


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Let PyTorch have a number of threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _peak_memory(device: torch.device) -> int | None:
    """Return the largest memory of a GPU, or of this process, so far; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _disk_bytes(search: Search, params: int) -> int:
    """Return the estimated size of networks, checkpoints, pictures and records."""
    networks = BYTES_PER_PARAMETER * params * (search.keep_networks + CHECKPOINT_COPIES * search.n_jobs)
    mirrored = 1 + (search.tracking is not None)
    per_trial = RECORD_BYTES * mirrored + (PICTURE_BYTES * mirrored if search.pictures else 0)
    return networks + per_trial * (search.shown_total or 0)


def _between(seconds: Range) -> str:
    return f"{_duration(seconds.least)} to {_duration(seconds.most)}, median {_duration(seconds.median)}"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def _size(number: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number / 1e3:.3g} kB"

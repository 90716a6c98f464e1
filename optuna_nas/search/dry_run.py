"""What a search would cost, from a sample of its networks and a few timed training steps."""

from __future__ import annotations

import copy
import shutil
import statistics
import sys
import time
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice, repeat
from math import inf
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from optuna.distributions import CategoricalDistribution, IntDistribution

from optuna_nas.data.splits import REPORT, TRAIN
from optuna_nas.objective.suggestions import without_suggestions
from optuna_nas.objective.train_objective import TrainObjective
from optuna_nas.samplers import GHNSampler
from optuna_nas.samplers.around import AroundSampler
from optuna_nas.search.config import training_parts
from optuna_nas.space import ModelSpace
from optuna_nas.training.device import own_default_device
from optuna_nas.training.loop import TrainingStopped, train

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from optuna_nas.oneshot import Score
    from optuna_nas.search.config import Search
    from optuna_nas.space import Architecture, Cost, Space
    from optuna_nas.storage.in_study_fit import InStudyFit

SAMPLED, COUNTING_SECONDS = 64, 5.0
"""Architectures whose costs are counted, and seconds after which no more are."""
MIN_STEPS, MAX_STEPS, STEP_SECONDS = 4, 20, 2.0
"""Training steps that are timed for each of three networks; the first two are not counted."""
SCORED, DRAWS = 8, 200
"""Architectures whose scores are timed, and random ones among which connected ones are looked for."""
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
        model_seconds: Seconds of these epochs, from timed steps, by name.
        scored: Number of architectures that are scored without training, on top.
        scoring_seconds: Seconds of these scores, from timed ones.
        all_seconds: Seconds of all trials in full, one-shot models and scores, divided among the workers.
        memory_bytes: Largest memory while steps were timed: that of a GPU's tensors, or of the whole process on a CPU.
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
    model_seconds: dict[str, float]
    scored: int
    scoring_seconds: float
    all_seconds: Range | None
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
            trains = f"{epochs:,.{'0f' if epochs >= 100 else '3g'}} epochs in which {name} trains"
            found.append(("On top", f"{trains}: {_duration(self.model_seconds[name])}"))
        if self.scored:
            scored = f"{self.scored:,} architectures that are scored without training"
            found.append(("On top", f"{scored}: {_duration(self.scoring_seconds)}"))
        if self.all_seconds is not None and (self.model_seconds or self.scored):
            found.append(("In all", _between(self.all_seconds)))
        if self.seconds_limit is not None:
            found.append(("Ends", f"before a trial that would not fit into {_duration(self.seconds_limit)}"))
        if self.memory_bytes is not None:
            of = "the whole process, PyTorch in it" if self.device == "cpu" else f"tensors on {self.device}"
            found.append(("Memory", f"{_size(self.memory_bytes)} of {of}, at most, in the timed steps"))
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
    all_seconds: Range | None = None
    device: str | None = None
    with _threads(search.cpu_threads):
        model_epochs, model_seconds, scored, scoring_seconds = _beside(search)
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
            at_once, beside = workers * search.n_jobs, scoring_seconds + sum(model_seconds.values())
            search_seconds = Range(*(seconds * total / at_once for seconds in trial_seconds))
            all_seconds = Range(*(seconds + beside / at_once for seconds in search_seconds))
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
        model_epochs,
        model_seconds,
        scored,
        scoring_seconds,
        all_seconds,
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


def _beside(search: Search) -> tuple[dict[str, float], dict[str, float], int, float]:
    """Return epochs and seconds of one-shot models by name, number of architectures that are scored, and seconds of it.

    Steps and scores are those of copies, so that the search begins with models that have learned nothing.
    """
    data, parts = search.data, training_parts(search.resolved_sampler, search.resolved_pruner)
    kept: dict[int, object] = {} if data is None else {id(data): data}  # which copies share
    epochs: dict[str, float] = {}
    seconds: dict[str, float] = {}
    n_scored, scoring_seconds = 0, 0.0
    for part in map(_innermost, parts):
        if getattr(part, "in_study_fit", None) is None and not isinstance(part, GHNSampler):
            continue  # it may be one that cannot be copied
        part = copy.deepcopy(part, kept)
        fit: InStudyFit[Any] | None = getattr(part, "in_study_fit", None)
        if fit is not None and fit.trains and fit.model is not None and fit.budget is not None:
            step = _time(fit.fit_alone, partial(getattr, fit.model, "device"))
            longest = inf if fit.budget_seconds is None else fit.budget_seconds
            epochs[fit.name], seconds[fit.name] = fit.budget, min(longest, step * fit.model.total_steps)
        if isinstance(part, GHNSampler):
            for score, number, most in part.to_score(search.shown_total):
                n_scored += number
                scoring_seconds += min(inf if most is None else most, _time_scores(score, part.space, number))
    return epochs, seconds, n_scored, scoring_seconds


def _innermost(part: object) -> object:
    """Return the sampler that others are around, or the part itself."""
    while isinstance(part, AroundSampler):
        part = part.sampler
    return part


def _time_scores(score: Score, space: Space, number: int) -> float:
    """Return the seconds in which so many architectures are scored; the first score may prepare all others."""
    drawn = filter(attrgetter("connected"), map(space.sample, repeat(np.random.default_rng(0), DRAWS)))
    architectures = list(islice(drawn, SCORED))
    times = [time.monotonic()]
    for some in (architectures[:1], architectures[1:]):
        if some:
            score(some)
        times.append(time.monotonic())
    first, others = np.diff(times)
    return float(first + max(0, number - 1) * others / max(1, len(architectures) - 1))


def _time_steps(objective: TrainObjective, architecture: Architecture) -> float:
    """Return the seconds of a training step of an architecture."""
    data, recipe = objective.device_data, without_suggestions(objective.recipe)
    network, task = objective.space.build(architecture, None, recipe.seed), without_suggestions(objective.task)

    def training(on_step: Callable[[float], None], should_stop: Callable[[], bool]) -> None:
        train(network, data, recipe, task, on_step=on_step, should_stop=should_stop)

    return _time(training, lambda: data.device)


def _time(
    training: Callable[[Callable[[float], None], Callable[[], bool]], None], device: Callable[[], torch.device]
) -> float:
    """Return the seconds of a step of a training, which gets callbacks `on_step` and `should_stop`, on a device."""
    times = [time.monotonic()]

    def on_step(fraction: float) -> None:
        if device().type == "cuda":
            torch.cuda.synchronize(device())  # the host is ahead of the GPU
        times.append(time.monotonic())

    def enough() -> bool:
        return len(times) > MAX_STEPS or (len(times) > MIN_STEPS and times[-1] - times[0] > STEP_SECONDS)

    with suppress(TrainingStopped):
        training(on_step, enough)
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

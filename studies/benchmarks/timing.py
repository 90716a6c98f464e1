"""How benchmarks take turns."""

import time
from collections.abc import Callable, Mapping

import torch


def seconds(run: Callable[[], object], device: str = "cpu") -> float:
    """Return CPU seconds of a call, or on a GPU the time between events before and after it."""
    if device == "cuda":
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        run()
        ended.record()
        ended.synchronize()
        return begun.elapsed_time(ended) / 1000
    started = time.process_time()
    run()
    return time.process_time() - started


def race(subjects: Mapping[str, Callable[[], object]], repeats: int, device: str = "cpu") -> dict[str, list[float]]:
    """Return seconds of each, measured in turns after a round to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(repeats + 1):
        for name, run in subjects.items():
            spent = seconds(run, device)
            if number:
                taken[name].append(spent)
    return taken

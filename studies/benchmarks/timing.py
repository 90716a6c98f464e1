"""How benchmarks take turns."""

import time
from collections.abc import Callable, Mapping


def race(subjects: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Return CPU seconds of each, measured in turns after a round to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(repeats + 1):
        for name, run in subjects.items():
            begun = time.process_time()
            run()
            if number:
                taken[name].append(time.process_time() - begun)
    return taken

"""How do costs grow with cells, channels, nodes, ops and trials?

Command:   python studies/benchmarks/growth.py
Cost:      three minutes on one thread
Expected:  slopes near 1 where work is proportional, 2 in nodes (edges grow as their square) and, once channels are
           many, in channels; nothing above 1 in trials

CPU seconds, medians of turns, of DARTS cells on 16 images of 16 x 16 (of `ask`: means of 100); the slope is that of a
straight line through the logarithms. A slope of 1 means twice the cost for twice the size. Workers: `workers.py`.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory

import numpy as np
import optuna
import torch
import torch.nn.functional as F
from optuna.pruners import NopPruner
from overhead import milliseconds, samplers, study_of
from timing import race

from optuna_nas import GHN, CellSpace, NetworkSpace, darts_search_skeleton, darts_space

OPS = ("none", "skip_connect", "sep_conv_3x3", "dil_conv_3x3", "max_pool_3x3", "sep_conv_5x5", "dil_conv_5x5")
Step = Callable[[], object]


def supernet_step(cells: int = 3, channels: int = 8, nodes: int = 3, ops: int = 4) -> Step:
    """Return a training step of a soft mixture of so many cells, channels, nodes a cell and ops beside `none`."""
    cell_space = CellSpace(OPS[: ops + 1], nodes=nodes)
    network = NetworkSpace(cell_space, darts_search_skeleton(cells, channels, (3, 16, 16))).supernet(seed=0)
    images, labels = torch.randn(16, 3, 16, 16), torch.arange(16) % 10
    logits = {path: torch.zeros(len(names), requires_grad=True) for path, names in network.names.items()}

    def step() -> None:
        network.zero_grad(set_to_none=True)
        F.cross_entropy(network(images, {path: row.softmax(0) for path, row in logits.items()}), labels).backward()

    return step


def generation(cells: int = 3, channels: int = 8, nodes: int = 3) -> Step:
    """Return the generation of the weights of four random architectures by a GHN."""
    space = NetworkSpace(CellSpace(OPS, nodes=nodes), darts_search_skeleton(cells, channels, (3, 16, 16)))
    ghn, random = GHN(space), np.random.default_rng(0)
    architectures = [space.sample(random) for _ in range(4)]

    def generate() -> None:
        with torch.no_grad():
            ghn.generate(architectures)

    return generate


QUESTIONS: dict[str, tuple[Callable[..., Step], str, Sequence[int]]] = {
    "supernet step, cells": (supernet_step, "cells", (3, 6, 12)),
    "supernet step, channels": (supernet_step, "channels", (8, 16, 32)),
    "supernet step, nodes": (supernet_step, "nodes", (2, 4, 8)),
    "supernet step, ops": (supernet_step, "ops", (1, 3, 6)),
    "GHN generation, cells": (generation, "cells", (3, 6, 12)),
    "GHN generation, channels": (generation, "channels", (8, 16, 32)),
    "GHN generation, nodes": (generation, "nodes", (2, 4, 8)),
}


def slope(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Return by which power of the size the time grows."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trials", type=int, nargs="+", default=[200, 1000, 5000])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    figures = {}
    for question, (make, name, sizes) in QUESTIONS.items():
        taken = race({str(size): make(**{name: size}) for size in sizes}, options.repeats)
        figures[question] = (sizes, [median(times) for times in taken.values()])
    space = darts_space()
    for name in ("SNASSampler", "GHNSampler"):
        with TemporaryDirectory() as folder:
            studies = [study_of(space, size, samplers(space, folder)[name], NopPruner()) for size in options.trials]
            seconds = [fmean(milliseconds(study, space)["ask"]) / 1000 for study in studies]
        figures[f"{name}, ask, trials"] = (options.trials, seconds)
    for question, (sizes, seconds) in figures.items():
        each = "  ".join(f"{size:,}: {1000 * second:.4g}" for size, second in zip(sizes, seconds, strict=True))
        print(f"{question:28} slope {slope(sizes, seconds):5.2f}   ms {each}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()

"""What do our samplers and pruners cost beside Optuna's own, as a study and a space grow?

Command:   python studies/benchmarks/overhead.py
Cost:      ten minutes on one thread, most of them Optuna's TPE and studies of 5,000 trials that are made
Expected:  milliseconds a trial for ours, flat in the number of trials; TPE's grow with it

Nothing is trained: the study lives in memory, holds so many finished trials with values that a table might have, and is
asked for 100 more, which is what `GHNSampler` draws from one pool: one of them scores the next. Milliseconds of CPU
time, median, mean and most: `ask` and a suggestion for every edge, `tell`, `should_prune` before a trial trains
("guess") and after its first report ("prune"). What storages and MLflow cost: `workers.py`, `tracking.py`.
"""

import argparse
import json
import time
import warnings
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory

import numpy as np
import optuna
import torch
from numpy.typing import NDArray
from optuna.artifacts import FileSystemArtifactStore
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, CmaEsSampler, RandomSampler, TPESampler
from optuna.trial import create_trial

from optuna_nas import (
    HMNAS,
    Architecture,
    GHNPruner,
    GHNSampler,
    HMNASPruner,
    NetworkSpace,
    SNASSampler,
    Space,
    darts_search_skeleton,
    darts_space,
    nasbench201_skeleton,
    nasbench201_space,
)

SIZES = (100, 1000, 5000)
ASKS = 100
WARM_UP = 3
SPACES = {
    6: NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 4)),
    28: NetworkSpace(darts_space(), darts_search_skeleton(3, 4)),
}


def convolutions(architectures: list[Architecture]) -> NDArray[np.float64]:
    """Score by what costs nothing: the share of convolutions."""
    kept = ([name for _, names in architecture.choices for name in names] for architecture in architectures)
    return np.array([sum("conv" in name for name in names) / max(1, len(names)) for names in kept])


def samplers(space: Space, folder: str) -> dict[str, BaseSampler]:
    """Return a fresh one of each; what they publish goes to a folder."""
    store = FileSystemArtifactStore(folder)
    return {
        "random": RandomSampler(seed=0),
        "TPE": TPESampler(seed=0),
        "CMA-ES": CmaEsSampler(seed=0, warn_independent_sampling=False),  # knows no categories: it draws at random
        "SNASSampler": SNASSampler(space, seed=0, artifact_store=store),
        "GHNSampler": GHNSampler(space, score=convolutions, seed=0, trials_per_round=ASKS, artifact_store=store),
    }


def pruners(edges: int) -> dict[str, BasePruner]:
    """Return a fresh one of each; masks as they are before they learn."""
    space = SPACES[edges]
    return {
        "none": NopPruner(),
        "median": MedianPruner(),
        "GHNPruner": GHNPruner(score=convolutions, space=space),
        "HMNASPruner": HMNASPruner(HMNAS(space)),
    }


def study_of(space: Space, n_trials: int, sampler: BaseSampler, pruner: BasePruner) -> optuna.Study:
    """Return a study in memory with so many finished trials."""
    random = np.random.default_rng(0)
    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
    cells = [space.sample(random) for _ in range(n_trials)]
    values = convolutions(cells) + random.normal(0, 0.1, n_trials)
    distributions = space.distributions()
    for cell, value in zip(cells, values, strict=True):
        study.add_trial(
            create_trial(
                params=space.encode(cell),
                distributions=distributions,
                value=float(value),
                intermediate_values={1: float(value) - 0.1},
            )
        )
    return study


def milliseconds(study: optuna.Study, space: Space, asks: int = ASKS) -> dict[str, list[float]]:
    """Ask for trials, end them, and return what each part takes each time."""
    taken: dict[str, list[float]] = {"ask": [], "guess": [], "prune": [], "tell": []}
    for number in range(asks + WARM_UP):
        begun = time.process_time()
        trial = study.ask()
        cell = space.suggest(trial)
        asked = time.process_time()
        trial.should_prune()
        guessed = time.process_time()
        trial.report(0.5, 1)
        reported = time.process_time()
        trial.should_prune()
        pruned = time.process_time()
        study.tell(trial, float(convolutions([cell])[0]))
        told = time.process_time()
        if number >= WARM_UP:  # the first read the study
            parts = (asked - begun, guessed - asked, pruned - reported, told - pruned)
            for name, seconds in zip(taken, parts, strict=True):
                taken[name].append(1000 * seconds)
    return taken


def main() -> None:
    """Ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--edges", type=int, nargs="+", default=list(SPACES), choices=list(SPACES))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    figures: dict[str, dict[str, dict[str, list[dict[str, float]]]]] = {}
    for edges in options.edges:
        space = SPACES[edges]
        figures[str(edges)] = found = {part: {} for part in ("ask", "tell", "guess", "prune")}
        for size in options.sizes:
            with TemporaryDirectory() as folder:
                for name, sampler in samplers(space, folder).items():
                    taken = milliseconds(study_of(space, size, sampler, NopPruner()), space)
                    for part in ("ask", "tell"):
                        found[part].setdefault(name, []).append(summary(taken[part]))
            for name, pruner in pruners(edges).items():
                taken = milliseconds(study_of(space, size, RandomSampler(seed=0), pruner), space)
                for part in ("guess", "prune"):
                    found[part].setdefault(name, []).append(summary(taken[part]))
        print(f"{edges} edges: milliseconds with {', '.join(f'{size:,}' for size in options.sizes)} finished trials")
        print("       median, mean, most")
        for part, rows in found.items():
            for name, row in rows.items():
                shown = (f"{each['median']:8.3f} {each['mean']:8.3f} {each['most']:8.1f}" for each in row)
                print(f"  {part:7}{name:14}" + "  |".join(shown), flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


def summary(taken: list[float]) -> dict[str, float]:
    """Return median, mean and most."""
    return {"median": median(taken), "mean": fmean(taken), "most": max(taken)}


if __name__ == "__main__":
    main()

"""Which sampler keeps upper bounds on parameters and latency, and finds the best network within them?

Command:   python studies/under_a_bound.py                      # six samplers, five seeds, 20 trials each
           python studies/under_a_bound.py --trials 40 --json bound.json
Cost:      six minutes on one thread; the data come with scikit-learn. What is in `--json` is not measured again
Expected:  all trials of a `GHNSampler` that is given the bounds keep them, of the others 0 to 75 %

The network and the table of `several_objectives.py`, trainings of three epochs; the value is the validation loss. The
bounds are the medians of the parameters and of the predicted latency of random cells. All trials have them as
constraints; `GHNSampler` is also given them, and once is not. Its pool is scored by the free score, which comes on top
of the trials.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import optuna
import torch
from equal_seconds import interval, kept_in
from optuna.artifacts import FileSystemArtifactStore
from optuna.pruners import NopPruner
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from several_objectives import DATA, RECIPE, SPACE

from optuna_nas import FreeScore, GHNSampler, LatencyTable, SNASSampler, TrainObjective
from optuna_nas.networks import measures
from optuna_nas.storage.leaderboard import can_win
from optuna_nas.training import ImageClassification

QUANTILE, DRAWN = 0.5, 400
Bounds = dict[Any, float]


def bounds_of(table: LatencyTable) -> Bounds:
    """Return the bounds: a quantile of the parameters and of the predicted latency of random cells."""
    random = np.random.default_rng(0)
    cells = [SPACE.sample(random) for _ in range(DRAWN)]
    params, seconds = ([cost(cell) for cell in cells] for cost in (lambda cell: cell.cost().params, table.of))
    return {"params": float(np.quantile(params, QUANTILE)), table: float(np.quantile(seconds, QUANTILE))}


def samplers(bounds: Bounds, seed: int, trials: int, folder: str) -> dict[str, Callable[[], BaseSampler]]:
    """Return what makes the sampler of every name."""
    free = FreeScore(SPACE, DATA, ImageClassification(), seed=seed)
    pool: dict[str, Any] = {"score": free, "pool_size": 3 * trials, "trials_per_round": trials, "seed": seed}
    pool["artifact_store"] = FileSystemArtifactStore(folder)
    return {
        "GHNSampler, bounds": lambda: GHNSampler(SPACE, constraints=bounds, **pool),
        "GHNSampler": lambda: GHNSampler(SPACE, **pool),
        "SNASSampler": lambda: SNASSampler(SPACE, seed=seed),
        "NSGA-II": lambda: NSGAIISampler(population_size=5, seed=seed),
        "TPE": lambda: TPESampler(multivariate=True, n_startup_trials=5, seed=seed),
        "random": lambda: RandomSampler(seed),
    }


def searched(sampler: BaseSampler, bounds: Bounds, trials: int, seed: int) -> tuple[float, float]:
    """Return the share of trials that keep the bounds, and their lowest loss; infinite if there are none."""
    recipe = replace(RECIPE, epochs=3, seed=seed)
    study = optuna.create_study(sampler=sampler, pruner=NopPruner())
    study.optimize(TrainObjective(SPACE, DATA, recipe, objectives=("loss",), constraints=bounds), n_trials=trials)
    losses = [trial.value for trial in study.trials if can_win(trial)]
    return len(losses) / trials, min(losses, default=np.inf)


def main() -> None:
    """Search with every sampler and seed, and print shares and losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where all shares and losses are kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    measures.clock = time.process_time  # whatever else the machine does
    bounds = bounds_of(LatencyTable.measure(SPACE, device="cpu"))
    found: dict[str, list[tuple[float, float]]] = kept_in(options.json, {})
    with TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            for name, make in samplers(bounds, seed, options.trials, folder).items():
                if len(found.setdefault(name, [])) > seed:
                    continue
                share, loss = searched(make(), bounds, options.trials, seed)
                found[name].append((share, loss))
                print(f"seed {seed}, {name}: {share:.0%} of trials within the bounds, loss {loss:.4f}", flush=True)
                if options.json is not None:
                    options.json.write_text(json.dumps(found, indent=1))
    print("\nmean share of trials within the bounds; mean lowest loss among them [95 % interval]")
    for name, rows in found.items():
        shares, losses = (list(column) for column in zip(*rows, strict=True))
        told = f"none in {np.isinf(losses).sum()} of {len(losses)} seeds"
        if np.isfinite(losses).all():
            low, high = interval(losses)
            told = f"{np.mean(losses):.4f} [{low:.4f}, {high:.4f}]"
        print(f"  {name:20}{np.mean(shares):5.0%}   {told}")


if __name__ == "__main__":
    main()

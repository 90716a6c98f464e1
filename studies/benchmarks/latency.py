"""How well does a `LatencyTable` predict the latency of whole networks?

Command:   python studies/benchmarks/latency.py                  # 50 NAS-Bench-201 and 30 DARTS networks, one thread
           python studies/benchmarks/latency.py --cpu-seconds    # by CPU seconds: on a busy machine
           python studies/benchmarks/latency.py --networks 200 --bound 5
Cost:      half a minute on one thread; two minutes for 200 networks, and half a minute for a seed of --bound
Expected:  Spearman at least 0.97, median relative error 2 to 10 %; 15 % beside a process that does the same

Random cells, NAS-Bench-201's in its network of 15 cells and 16 channels, DARTS' in the search network of 8 cells and 16
channels, images of 32 x 32, batch 1. First the table is measured, then the networks, which take turns; none of them
sets the scale of the table. Beside the table stands what is known without measuring: parameters, multiply-adds, memory
access.

With `--bound`, handwritten digits are searched under a bound, the median latency of random cells in the table: by TPE,
whose trials have the bound as a constraint, and by SNAS, whose distribution has it. The winner is measured again.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import optuna
import torch
from optuna.samplers import TPESampler
from scipy.stats import spearmanr

from optuna_nas import (
    SNAS,
    LatencyTable,
    NetworkSpace,
    Recipe,
    SNASRecipe,
    TrainObjective,
    darts_search_skeleton,
    darts_space,
    digits,
    nasbench201_skeleton,
    nasbench201_space,
)
from optuna_nas.networks import measures
from optuna_nas.space.cost import COSTS

SETTINGS = {
    "NAS-Bench-201": (NetworkSpace(nasbench201_space(), nasbench201_skeleton()), 50),
    "DARTS": (NetworkSpace(darts_space(), darts_search_skeleton(8, 16)), 30),
}
SEED = 1


def figures(space: NetworkSpace, n_networks: int, device: str, repeats: int) -> dict[str, object]:
    """Return how a table predicts random networks, and how costs rank them."""
    started = time.monotonic()
    table = LatencyTable.measure(space, device=device, repeats=repeats)
    measured_in = time.monotonic() - started
    random = np.random.default_rng(SEED)
    architectures = [space.sample(random) for _ in range(n_networks)]
    residual = table.residual(architectures, repeats)
    seconds = [measured for _, measured in residual.pairs]
    costs = [architecture.cost() for architecture in architectures]
    return {
        "networks": n_networks,
        "Spearman": residual.rank_correlation,
        "median relative error": residual.median_relative_error,
        "seconds to measure the table": measured_in,
        "shortest, seconds": min(seconds),
        "longest, seconds": max(seconds),
        **{f"Spearman of {name}": float(spearmanr([getattr(c, name) for c in costs], seconds)[0]) for name in COSTS},
        "pairs": residual.pairs,
    }


def bounded(seed: int, trials: int = 20, epochs: float = 10) -> dict[str, float]:
    """Return the latency of what searches under a bound find, measured again, as a share of the bound."""
    data = digits(seed)
    space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 8, data.input_shape, data.classes))
    table = LatencyTable.measure(space, device="cpu", repeats=50)
    random = np.random.default_rng(seed)
    bound = float(np.median([table.of(space.sample(random)) for _ in range(200)]))
    objective = TrainObjective(space, data, Recipe(epochs=3, learning_rate=0.1, seed=seed), constraints={table: bound})
    study = optuna.create_study(direction="maximize", sampler=TPESampler(seed=seed, multivariate=True))
    study.optimize(objective, n_trials=trials)
    searched = space.with_skeleton(affine=False)
    recipe = SNASRecipe(learning_rate=0.1, resource={table.name: bound}, seed=seed)
    snas = SNAS(searched, recipe, costs=(LatencyTable.measure(searched, device="cpu", repeats=50),))
    snas.fit(data, epochs, show_progress=False)
    found = {"TPE": space.decode(study.best_trial.params), "SNAS": space.adopt(snas.most_likely())}
    pairs = table.residual(list(found.values()), repeats=50).pairs
    shares = dict(zip(found, pairs, strict=True))
    return {name: measured / bound for name, (_, measured) in shares.items()} | {
        f"{name}, predicted": predicted / bound for name, (predicted, _) in shares.items()
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--networks", type=int, help="networks of each; by default 50 and 30")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cpu-seconds", action="store_true", help="of a CPU alone: what others do there is left out")
    parser.add_argument("--bound", type=int, default=0, metavar="SEEDS", help="search under a bound with so many seeds")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.cpu_seconds:
        measures.clock = time.process_time
    found = {}
    for name in options.settings:
        space, n_networks = SETTINGS[name]
        found[name] = figures(space, options.networks or n_networks, options.device, options.repeats)
        print(name)
        for what, value in found[name].items():
            if what != "pairs":
                print(f"  {what:32}{value:10.4g}", flush=True)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for seed in range(options.bound):
        found[f"bound, seed {seed}"] = shares = bounded(seed)
        print(
            f"a bound of 1, seed {seed}: " + ", ".join(f"{name} {share:.3f}" for name, share in shares.items()),
            flush=True,
        )
    if options.json:
        clock = "CPU seconds" if options.cpu_seconds else "seconds"
        options.json.write_text(json.dumps({"clock": clock, "figures": found}, indent=1))


if __name__ == "__main__":
    main()

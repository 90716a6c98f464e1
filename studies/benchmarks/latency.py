"""How well does a `LatencyTable` predict the latency of whole networks?

Command:   python studies/benchmarks/latency.py                  # 50 NAS-Bench-201 and 30 DARTS networks, one thread
           python studies/benchmarks/latency.py --cpu-seconds    # by CPU seconds: on a busy machine
Cost:      half a minute on one thread
Expected:  Spearman at least 0.95, median relative error at most 5 %; without --cpu-seconds, if nothing else runs

Random cells, NAS-Bench-201's in its network of 15 cells and 16 channels, DARTS' in the search network of 8 cells and 16
channels, images of 32 x 32, batch 1. First the table is measured, then the networks, which take turns; none of them
sets the scale of the table. Beside the table stands what is known without measuring: parameters, multiply-adds, memory
access.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from optuna_nas import (
    LatencyTable,
    NetworkSpace,
    darts_search_skeleton,
    darts_space,
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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--networks", type=int, help="networks of each; by default 50 and 30")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cpu-seconds", action="store_true", help="of a CPU alone: what others do there is left out")
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
    if options.json:
        clock = "CPU seconds" if options.cpu_seconds else "seconds"
        options.json.write_text(json.dumps({"clock": clock, "figures": found}, indent=1))


if __name__ == "__main__":
    main()

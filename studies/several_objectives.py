"""Which sampler finds the best front of accuracy, parameters and latency at equal CPU seconds?

Command:   python studies/several_objectives.py                 # seven samplers, five seeds, 40 CPU seconds each
           python studies/several_objectives.py --seconds 100 --seeds 8 --json front.json
           python studies/several_objectives.py --orders 250 --json cells.json     # why: the order of a pool alone
Cost:      25 minutes on one thread; the data come with scikit-learn. What is in `--json` is not measured again
Expected:  none of ours is ahead of TPE and random search: trainings are short here, and scores cost as much

NAS-Bench-201's cells in a network of 3 cells and 4 channels on handwritten digits, five epochs a trial. Objectives:
error on the validation split, parameters, and the latency of one image on this device, from a table that is measured
once. A front is judged by its hypervolume: the share of the cube of errors, parameters and latencies, each from 0 to
that of the largest cell (of the error, to 1), that some trial of the study is at least as good as. The pool of
`GHNSampler` is ordered by non-dominated ranks of the free score, parameters and latency; `SNASSampler` learns from
finished trials which dominate which. Each of the two is also run with its own model, which takes two fifths of the
seconds: a supernet whose distribution is charged for costs, beside what trials tell, and a hypernetwork.

`--orders` trains random cells beforehand and compares the orders in which a pool of them may be proposed, so that only
the order differs: the front from its best score on, the front spread out, that of a hypernetwork's losses and of the
accuracies themselves, and random ones.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import optuna
import torch
from equal_seconds import interval, kept_in, kept_numbers, stop_after
from optuna.artifacts import FileSystemArtifactStore
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from scipy.stats import spearmanr

from optuna_nas import (
    GHN,
    SNAS,
    FreeScore,
    GHNRecipe,
    GHNSampler,
    LatencyTable,
    NetworkSpace,
    Recipe,
    SNASRecipe,
    SNASSampler,
    TrainObjective,
    digits,
    nasbench201_skeleton,
    nasbench201_space,
    train,
)
from optuna_nas.networks import measures
from optuna_nas.samplers.fronts import non_dominated_ranks, spread_out
from optuna_nas.training import ImageClassification

DATA = digits()
SPACE = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 4, DATA.input_shape, DATA.classes))
RECIPE = Recipe(epochs=5, learning_rate=0.1)
FIRST = (5, 10, 20, 50)
EPOCHS_A_SECOND, TRIALS_A_SECOND = 0.18, 0.6
"""Epochs of a supernet or hypernetwork a CPU second of a search, two fifths of which they take; trials beside them."""
LARGEST = SPACE.architecture({path: ["nor_conv_3x3"] for path in SPACE.core.paths})


def with_supernet(store: FileSystemArtifactStore, seed: int, seconds: float) -> SNASSampler:
    """Return a sampler with a supernet, whose distribution is charged for costs and learns from trials, too."""
    searched = SPACE.with_skeleton(affine=False)
    recipe = SNASRecipe(learning_rate=0.1, warmup_fraction=0.3, resource="mild", seed=seed)
    snas = SNAS(searched, recipe, costs=(LatencyTable.measure(searched, device="cpu"),))
    return SNASSampler(
        searched,
        snas,
        data=DATA,
        budget=EPOCHS_A_SECOND * seconds,
        n_trials=round(TRIALS_A_SECOND * seconds),
        trials_per_round=5,
        learn_from_trials=True,
        artifact_store=store,
        seed=seed,
    )


def samplers(
    table: LatencyTable, store: FileSystemArtifactStore, seed: int, seconds: float
) -> dict[str, Callable[[], BaseSampler]]:
    """Return what makes the sampler of every name, for a search of so many CPU seconds."""
    pool: dict[str, Any] = {"pool_size": 300, "trials_per_round": 100, "costs": ("params", table)}
    pool |= {"artifact_store": store, "seed": seed}
    free = FreeScore(SPACE, DATA, ImageClassification(), seed=seed)
    ghn = GHN(SPACE, GHNRecipe(meta_batch=4, seed=seed))
    return {
        "SNASSampler": lambda: SNASSampler(SPACE, seed=seed),
        "SNASSampler, supernet": lambda: with_supernet(store, seed, seconds),
        "GHNSampler, free score": lambda: GHNSampler(SPACE, score=free, **pool),
        "GHNSampler, GHN": lambda: GHNSampler(SPACE, ghn, data=DATA, budget=EPOCHS_A_SECOND * seconds, **pool),
        "NSGA-II": lambda: NSGAIISampler(population_size=20, seed=seed),
        "TPE": lambda: TPESampler(multivariate=True, seed=seed),
        "random": lambda: RandomSampler(seed),
    }


def hypervolume(points_NK: Sequence[Sequence[float]]) -> float:
    """Return the share of the unit cube in K dimensions that some point is at least as good as; smaller is better."""
    inside = sorted((tuple(point) for point in points_NK if max(point) < 1), key=lambda point: point[-1])
    if not inside:
        return 0.0
    if len(inside[0]) == 1:
        return 1 - inside[0][0]
    levels = [*(point[-1] for point in inside), 1.0]
    slices = (hypervolume([point[:-1] for point in inside[:n]]) for n in range(1, len(levels)))
    return sum(area * (high - low) for area, low, high in zip(slices, levels, levels[1:], strict=False) if high > low)


def searched(sampler: BaseSampler, table: LatencyTable, seconds: float, seed: int) -> list[list[float]]:
    """Return the objectives of all trials of a search of so many CPU seconds, as shares of the largest cell's."""
    objective = TrainObjective(SPACE, DATA, replace(RECIPE, seed=seed), objectives=("accuracy", "params", table))
    study = optuna.create_study(directions=objective.directions, sampler=sampler)
    study.optimize(objective, callbacks=[stop_after(seconds)])
    largest = LARGEST.cost().params, table.of(LARGEST)
    return [
        [1 - trial.values[0], trial.values[1] / largest[0], trial.values[2] / largest[1]]
        for trial in study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    ]


def compare_orders(table: LatencyTable, n_cells: int, seconds: float, file: Path | None) -> None:
    """Train random cells, and print the hypervolumes after the first of them in several orders."""
    random = np.random.default_rng(0)
    cells = [SPACE.sample(random) for _ in range(n_cells)]
    costs = np.array([[cell.cost().params, table.of(cell)] for cell in cells])
    accuracies = kept_numbers(
        file, cells, lambda cell: train(SPACE.build(cell, seed=0), DATA, RECIPE).last.validation_metric
    )
    scores = FreeScore(SPACE, DATA, ImageClassification())(cells)
    ghn = GHN(SPACE, GHNRecipe(meta_batch=4))
    ghn.fit(DATA, EPOCHS_A_SECOND * seconds, show_progress=False)
    generated = ghn.score(cells)
    largest = LARGEST.cost().params, table.of(LARGEST)
    points = np.column_stack([1 - np.array(accuracies), costs / largest])
    objectives = np.column_stack([scores, -costs])
    orders = {
        "the front from its best score on": np.lexsort((-scores, non_dominated_ranks(objectives))),
        "the front spread out": spread_out(objectives, 100, random),
        "that of a GHN's losses, spread out": spread_out(np.column_stack([generated, -costs]), 100, random),
        "that of the accuracies, spread out": spread_out(np.column_stack([accuracies, -costs]), 100, random),
        **{f"random {n}": random.permutation(n_cells) for n in range(5)},
    }
    ranked = {"free score": scores, "a GHN's losses": generated, "parameters": costs[:, 0]}
    told = ", ".join(f"{name} {spearmanr(values, accuracies).statistic:.2f}" for name, values in ranked.items())
    print(f"{n_cells} cells, hypervolume of all {hypervolume(points.tolist()):.3f}; Spearman with the accuracy: {told}")
    print(f"after trials{'':24}{'  '.join(f'{n:5}' for n in FIRST)}")
    for name, order in orders.items():
        found = (hypervolume(points[order[:n]].tolist()) for n in FIRST)
        print(f"  {name:34}", "  ".join(f"{value:.3f}" for value in found))


def main() -> None:
    """Search with every sampler and seed, and print the hypervolumes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40.0, help="CPU seconds of a search")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samplers", nargs="+", default=[""], help="beginnings of names; by default all samplers")
    parser.add_argument("--orders", type=int, metavar="CELLS", help="compare orders of so many trained cells instead")
    parser.add_argument("--json", type=Path, help="where all hypervolumes are kept, or all accuracies")
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    measures.clock = time.process_time  # whatever else the machine does
    table = LatencyTable.measure(SPACE, device="cpu")
    if options.orders is not None:
        compare_orders(table, options.orders, options.seconds, options.json)
        return
    found: dict[str, list[float]] = kept_in(options.json, {})
    with TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            for name, make in samplers(table, FileSystemArtifactStore(folder), seed, options.seconds).items():
                if not name.startswith(tuple(options.samplers)) or len(found.setdefault(name, [])) > seed:
                    continue
                points = searched(make(), table, options.seconds, seed)
                found[name].append(hypervolume(points))
                print(f"seed {seed}, {name}: {len(points)} trials, hypervolume {found[name][-1]:.4f}", flush=True)
                if options.json is not None:
                    options.json.write_text(json.dumps(found, indent=1))
    print("\nmean hypervolume [95 % interval]")
    for name, values in found.items():
        low, high = interval(values)
        print(f"  {name:24}{np.mean(values):.4f} [{low:.4f}, {high:.4f}]")


if __name__ == "__main__":
    main()

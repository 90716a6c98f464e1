"""How well do scores that need no training rank cells that were really trained, each indicator alone and together?

Command:   python studies/benchmarks/free_score.py --table nb201_accuracy.csv.gz --transnas transnas_micro.csv.gz
               --images CIFAR10_FOLDER --cells 250 --sets 2
Cost:      about three CPU minutes
Expected:  a Spearman of .89 for the default on NAS-Bench-201, of .5 in the mean over TransNAS-Bench-101's seven tasks

Networks of 3 cells and 16 channels on CIFAR-10 images at 16 x 16, whatever the table was trained on. Random connected
cells. An indicator alone ranks as it is, several as the mean of the shares of cells that each beats; the default is
`FreeScore` itself. More rows are made of the indicators' columns: SWAP as its authors regularise it (Peng
et al. 2024), and the four of AZ-NAS as its authors add them (Lee and Ham 2024).
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import kendalltau, rankdata, spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from nasbench201_on_cifar10 import SPACE, ops, read_truth, skeleton, small_cifar10
from transnas import TASKS, TRANSNAS, read_transnas

from optuna_nas import Architecture, CellSpace, FreeScore, ImageData, NetworkSpace
from optuna_nas.oneshot.free.indicators import INDICATORS, Untrained
from optuna_nas.oneshot.free.score import beaten
from optuna_nas.oneshot.random_architectures import some_architectures
from optuna_nas.training import ImageClassification

Columns = dict[str, NDArray[np.float64]]
Ranks = dict[str, dict[str, float]]
SPEARMAN, TOP_FIFTH = "spearman", "kendall, top fifth"
ORDER = (
    "multiply_adds", "params", "codes", "jacobian", "flow", "patterns", "responses", "expressivity", "progressivity",
    "trainability",
)  # fmt: skip
AZ_NAS = ("expressivity", "progressivity", "trainability", "multiply_adds")
TOGETHER = {
    "multiply-adds, codes, jacobian, flow": ("multiply_adds", "codes", "jacobian", "flow"),
    "the four of AZ-NAS, by shares": AZ_NAS,
}
RUNNING, DEFAULT = "running the network", "the default"


def measured(
    space: CellSpace, cells: list[Architecture], data: ImageData, seed: int
) -> tuple[Columns, dict[str, float]]:
    """Return every indicator of every cell, and CPU milliseconds a cell; what they share has a row of its own."""
    networks = NetworkSpace(space, skeleton(data))
    batch = FreeScore(networks, data, seed=seed)._batch
    columns: dict[str, list[float]] = {name: [] for name in ORDER}
    spent = dict.fromkeys((RUNNING, *ORDER), 0.0)
    for cell in cells:
        network = Untrained(networks.adopt(cell), batch, ImageClassification(), seed)
        begun = time.process_time()
        _ = network.observed, network.signs
        spent[RUNNING] += time.process_time() - begun
        for name in ORDER:
            begun = time.process_time()
            columns[name].append(INDICATORS[name](network))
            spent[name] += time.process_time() - begun
    free = FreeScore(networks, data, seed=seed)
    free(cells[:1])  # which scores the reference architectures
    begun = time.process_time()
    columns[DEFAULT] = free(cells).tolist()
    spent[DEFAULT] = time.process_time() - begun
    milliseconds = {name: 1000 * seconds / len(cells) for name, seconds in spent.items()}
    return {name: np.array(column) for name, column in columns.items()}, milliseconds


def shares(column: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of the cells that each beats."""
    return beaten(column, np.sort(column))


def regularised(columns: Columns, centre: float) -> NDArray[np.float64]:
    """Return SWAP with its regularisation: times `exp(-(P - m)^2 / s)`, P the thousands of parameters.

    The paper leaves m and s open: a size that is wanted, and how much others are worth. Here s is the variance of P.
    """
    thousands = columns["params"] / 1000
    return columns["patterns"] * np.exp(-((thousands - centre) ** 2) / thousands.var())


def az_nas(columns: Columns) -> NDArray[np.float64]:
    """Return the sum of the logarithms of ranks, from 1 / N for the worst: one bad rank counts more than one good."""
    return np.sum([np.log(rankdata(columns[name]) / len(columns[name])) for name in AZ_NAS], axis=0)


def scores_of(columns: Columns) -> Columns:
    """Return what ranks cells, by the name of its row."""
    sizes = columns["params"] / 1000
    default = {DEFAULT: columns.pop(DEFAULT)}
    together = {name: np.mean([shares(columns[one]) for one in parts], axis=0) for name, parts in TOGETHER.items()}
    return {
        **columns,
        "patterns, regularised to the mean size": regularised(columns, float(sizes.mean())),
        "patterns, regularised to the largest": regularised(columns, float(sizes.max())),
        "the four of AZ-NAS, by its logarithms of ranks": az_nas(columns),
        **together,
        **default,
    }


def rank_correlations(one: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[float, float]:
    """Return the correlations of Spearman and of Kendall, 0 where all values of one are equal: they rank nothing."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0, 0.0
    return float(spearmanr(one, other).statistic), float(kendalltau(one, other).statistic)


def ranking(scores: NDArray[np.float64], truth: NDArray[np.float64]) -> dict[str, float]:
    """Return Spearman of scores with the truth, and Kendall in the true top fifth."""
    top = truth >= np.quantile(truth, 0.8)
    return {
        SPEARMAN: rank_correlations(scores, truth)[0],
        TOP_FIFTH: rank_correlations(scores[top], truth[top])[1],
    }


def correlations(scores: Columns, truth: NDArray[np.float64]) -> Ranks:
    """Return how every row ranks."""
    return {name: ranking(column, truth) for name, column in scores.items()}


def main() -> None:
    """Score, look up, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", required=True, help="CSV of NAS-Bench-201 with op_1_0 ... op_3_2 and accuracies")
    parser.add_argument("--column", default="cifar10_test_200ep")
    parser.add_argument("--transnas", help="CSV of TransNAS-Bench-101's cells; left out by default")
    parser.add_argument("--images", default="", help="folder of CIFAR-10, see small_cifar10; downloaded by default")
    parser.add_argument("--cells", type=int, default=250)
    parser.add_argument("--sets", type=int, default=2, help="sets of cells, each with a seed of its own")
    parser.add_argument("--out", type=Path, default=Path("free_score.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    truth, data = read_truth(options.table, options.column), small_cifar10(options.images, 0)
    nasbench201: list[Ranks] = []
    transnas: list[dict[str, Ranks]] = []
    spent: list[dict[str, float]] = []
    for seed in range(options.sets):
        cells = some_architectures(SPACE, np.random.default_rng(seed), options.cells)
        columns, milliseconds = measured(SPACE, cells, data, seed)
        spent.append(milliseconds)
        nasbench201.append(correlations(scores_of(columns), np.array([truth[ops(cell)] for cell in cells])))
    table = read_transnas(options.transnas) if options.transnas else {}
    for seed in range(options.sets if table else 0):
        cells = some_architectures(TRANSNAS, np.random.default_rng(seed), options.cells)
        scores = scores_of(measured(TRANSNAS, cells, data, seed)[0])
        rows = [table[tuple((cell[path] or ("none",))[0] for path in TRANSNAS.paths)] for cell in cells]
        transnas.append({task: correlations(scores, np.array([row[task] for row in rows])) for task in TASKS})
    found = {"milliseconds": spent, "NAS-Bench-201": nasbench201, "TransNAS-Bench-101": transnas}
    options.out.write_text(json.dumps(found, indent=1))
    print(f"{RUNNING}: " + ", ".join(f"{one[RUNNING]:.1f} ms" for one in spent))
    for name in nasbench201[0]:
        cost = f"{np.mean([one[name] for one in spent]):.1f} ms" if name in spent[0] else ""
        ranks = ", ".join(f"{one[name][SPEARMAN]:.2f}" for one in nasbench201)
        tops = ", ".join(f"{one[name][TOP_FIFTH]:.2f}" for one in nasbench201)
        each = np.array([[one[task][name][SPEARMAN] for task in TASKS] for one in transnas])
        means, by_task = (
            ", ".join(f"{one:.2f}" for one in np.mean(each, axis=axis)) if table else "" for axis in (1, 0)
        )
        print(f"  {name:48}{cost:9}  {ranks}; top fifth {tops}; TransNAS {means}; by task {by_task}")


if __name__ == "__main__":
    main()

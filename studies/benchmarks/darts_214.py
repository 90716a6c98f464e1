"""Does a score keep quiet where all cells are about equally good: 214 random cells of the DARTS space?

Command:   python studies/benchmarks/darts_214.py --curves FOLDER --images CIFAR10_FOLDER
Cost:      ten minutes on one core
Expected:  little rank correlation with the accuracies after 600 epochs, and a pruner that stops a few cells, as many of
           them good ones as by chance; with shuffled scores next to none

The cells (Yang, Esperanca and Carlucci 2020) have 96.03 to 97.41 %. They pass before a `GHNPruner` by `FreeScore` in
random orders, as trials whose value is that accuracy: it may speak only where its score has ranked finished ones. The
score reads CIFAR-10 at 16 x 16 in a network of 3 cells and 8 channels.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import optuna
import torch
from numpy.typing import NDArray
from optuna.pruners import NopPruner
from scipy.stats import kendalltau, spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from nasbench201_on_cifar10 import small_cifar10
from pruning_hmnas import darts_curves, stopped_at_once, study_of

from optuna_nas import Architecture, FreeScore, GHNPruner, NetworkSpace, Skeleton, darts_space

Scores = NDArray[np.float64]
RANDOM = 100
"""Architectures with which the pruner compares."""


def main() -> None:
    """Score, look up, let all cells pass before the pruner."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", required=True, help="folder with darts_random214_genotypes.json and _curves.npz")
    parser.add_argument("--images", default="", help="folder of CIFAR-10, see small_cifar10; downloaded by default")
    parser.add_argument("--orders", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    data = small_cifar10(options.images, 0)
    frame = Skeleton(("normal", "reduction", "reduction"), 8, data.input_shape, data.classes)
    space = NetworkSpace(darts_space(), frame)
    curves = darts_curves(options.curves)
    cells = list(curves)
    came = np.array([curves[cell][-1][1] for cell in cells])
    score = FreeScore(space, data)
    scores, random = score(cells), np.random.default_rng(0)
    others = score([space.core.sample(random) for _ in range(RANDOM)])
    params = np.array([space.cost(cell).params for cell in cells])
    for name, values in (("free score", scores), ("parameters", params)):
        rho, tau = spearmanr(values, came), kendalltau(values, came)
        print(f"{name}: Spearman {rho.statistic:.3f} (p = {rho.pvalue:.2g}), Kendall {tau.statistic:.3f}", flush=True)

    top = came >= np.quantile(came, 0.9)
    for shuffled in (False, True):
        n_stopped, n_top = [], 0
        for seed in range(options.orders):
            random = np.random.default_rng(seed)
            order, given = random.permutation(len(cells)), scores.tolist()
            if shuffled:
                random.shuffle(given)
            known = dict(zip(cells, given, strict=True))

            def score_of(asked: Sequence[Architecture], known: dict[Architecture, float] = known) -> Scores:
                return np.array([known.get(cell, others[i % RANDOM]) for i, cell in enumerate(asked)])

            pruner = GHNPruner(space=cells[0].space, score=score_of, n_random=RANDOM, pruner=NopPruner(), seed=seed)
            stopped = stopped_at_once(study_of([cells[i] for i in order], curves, pruner))
            n_stopped.append(len(stopped))
            n_top += int(top[order][stopped].sum())
        silent, share = np.mean([n == 0 for n in n_stopped]), sum(n_stopped) / options.orders / len(cells)
        print(
            f"{'shuffled scores' if shuffled else 'free score'}: silent in {silent:.0%} of {options.orders} orders; "
            f"stopped {share:.1%} of all cells; of those {n_top} of {sum(n_stopped)} are in the top tenth",
            flush=True,
        )


if __name__ == "__main__":
    main()

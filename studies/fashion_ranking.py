"""How well do scores that cost no training rank architectures, and what of the hypernetwork makes them?

Command:   python studies/fashion_ranking.py --images ../shared/data/fashion_mnist   # or without, to download (30 MB)
Cost:      about an hour on 2 CPU cores; `--cells 10 --epochs 1 --seeds 1` in two minutes. Trainings of cells are kept
           beside `--out`, and not made again
Expected:  a table of correlations over 100 cells that were really trained, and the ablations of the paper's Tables 4, 5

Fashion-MNIST at 14 x 14, cells of NAS-Bench-201's space in a network of three. Nothing here was chosen by the outcome.
`--signals free ghn --ablations "GHN (the paper's)"` is the short way to see what a search goes by.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from equal_seconds import kept_numbers
from numpy.typing import NDArray
from scipy.stats import kendalltau, spearmanr
from small_fashion_mnist import small_fashion_mnist

from optuna_nas import (
    GHN,
    SNAS,
    Architecture,
    DiscreteNetwork,
    FreeScore,
    GHNRecipe,
    ImageData,
    NetworkSpace,
    Recipe,
    SNASRecipe,
    nasbench201_skeleton,
    nasbench201_space,
    train,
)
from optuna_nas.networks import recompute_statistics
from optuna_nas.training import ImageClassification

TRUTH = Recipe(epochs=6, learning_rate=0.05, warmup_fraction=0.1)
SIGNALS = ("free", "ghn", "supernet", "sgd")
ABLATIONS = {
    "GHN (the paper's)": {},
    "GHN, embedding not passed": {"pass_embedding": False},
    "GHN, embedding passed, unshared": {"share_parameters": False},
    "GHN, neither": {"pass_embedding": False, "share_parameters": False},
    "GHN, synchronous T = 5": {"propagation": "synchronous"},
    "GHN, T = 1": {"phases": 1},
}


def after_few_steps(network: DiscreteNetwork, data: ImageData, n_steps: int) -> float:
    """Return the accuracy after so many steps of SGD, with statistics of a batch, as a hypernetwork is scored."""
    images = {"weights": data.splits["weights"][: 64 * n_steps], "report": data.splits["report"][:64]}
    part = replace(data, splits={**data.splits, **images})  # what `train` reports is not used
    train(network, part, Recipe(epochs=1, learning_rate=0.05))
    images, labels = next(iter(data.batches(["report"], 512)))
    recompute_statistics(network, images)
    with torch.no_grad():
        return float((network.eval()(images).argmax(1) == labels).double().mean())


def main() -> None:
    """Train the cells, score them in every way, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="", help="folder of torchvision's FashionMNIST; downloaded by default")
    parser.add_argument("--cells", type=int, default=100)
    parser.add_argument("--epochs", type=float, default=15.0, help="of every GHN and of the supernet")
    parser.add_argument("--seed", type=int, default=0, help="of the images and the cells")
    parser.add_argument("--seeds", type=int, default=3, help="hypernetworks and supernets of each kind")
    parser.add_argument("--signals", nargs="+", choices=SIGNALS, default=SIGNALS)
    parser.add_argument("--ablations", nargs="+", choices=list(ABLATIONS), default=list(ABLATIONS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("fashion_ranking.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = small_fashion_mnist(options.images, options.seed)
    random = np.random.default_rng(options.seed)
    space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 8, data.input_shape, data.classes))
    cells = list(dict.fromkeys(space.sample(random) for _ in range(2 * options.cells)))[: options.cells]

    def trained(cell: Architecture) -> float:
        return train(space.build(cell, seed=TRUTH.seed), data, TRUTH).last.validation_metric

    came = np.array(kept_numbers(options.out.with_suffix(f".seed{options.seed}.json"), cells, trained))
    print(f"trained {len(cells)} cells: accuracy {came.mean():.4f} +- {came.std():.4f}", flush=True)
    rows: dict[str, list[dict[str, float]]] = {}

    def judge(name: str, scores: NDArray[np.float64], seconds: float) -> None:
        better = came >= np.median(came)
        row = {
            "pearson": float(np.corrcoef(scores, came)[0, 1]),
            "pearson, better half": float(np.corrcoef(scores[better], came[better])[0, 1]),
            "spearman": float(spearmanr(scores, came).statistic),
            "kendall": float(kendalltau(scores, came).statistic),
            "kendall, better half": float(kendalltau(scores[better], came[better]).statistic),
            "CPU seconds a cell": seconds / len(cells),
            "mean score": float(scores.mean()),
        }
        rows.setdefault(name, []).append(row)
        print(f"{name:34s}" + "".join(f"{value:10.3f}" for value in row.values()), flush=True)
        options.out.write_text(json.dumps(rows, indent=1))

    print(" " * 34 + "   pearson    better  spearman   kendall    better  CPU s/cell   score")
    judge("parameters", np.array([float(cell.cost().params) for cell in cells]), 0.0)
    for seed in range(options.seeds if "free" in options.signals else 0):
        started = time.process_time()
        scores = FreeScore(space, data, ImageClassification(), seed=seed)(cells)
        judge("free score", scores, time.process_time() - started)
    for seed in range(options.seeds if "ghn" in options.signals else 0):
        for name in options.ablations:
            ghn = GHN(space, GHNRecipe(meta_batch=2, seed=seed, **ABLATIONS[name]))  # type: ignore[arg-type]
            ghn.fit(data, options.epochs)
            started = time.process_time()
            judge(name, ghn.score(cells), time.process_time() - started)
    for seed in range(options.seeds if "supernet" in options.signals else 0):
        # Logits that do not move: a supernet trained on uniform single paths.
        recipe = SNASRecipe(relaxation="one_path", warmup_fraction=0.999, learning_rate=0.05, seed=seed)
        snas = SNAS(space.with_skeleton(affine=False), recipe)
        snas.fit(data, 2 * options.epochs)
        started = time.process_time()
        judge("supernet, uniform single paths", snas.score(cells), time.process_time() - started)
    for n_steps in (1, 10, 50, 75) if "sgd" in options.signals else ():
        started = time.process_time()
        scores = np.array([after_few_steps(space.build(cell, seed=1), data, n_steps) for cell in cells])
        judge(f"SGD, {n_steps} steps", scores, time.process_time() - started)
    print("\nmeans over seeds")
    for name, found in rows.items():
        means = [float(np.mean([row[column] for row in found])) for column in found[0]]
        print(f"{name:34s}" + "".join(f"{mean:10.3f}" for mean in means))


if __name__ == "__main__":
    main()

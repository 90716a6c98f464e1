"""What is each part of SNAS' and of GHN's searches worth on NAS-Bench-201: fixed parts, losses, priors, pools, starts?

Command:   python studies/benchmarks/parts.py --table nb201_accuracy.csv.gz --images CIFAR10_FOLDER --json parts.json
Cost:      three minutes a row and seed on one thread, an hour in all; what is in `--json` is not measured again
Expected:  fixed parts that learn from the start cost most of the rank correlation; the free score is worth more than
           what a model learns in two minutes

Every row is the strategy's own model with one thing changed, trained for equal CPU seconds on CIFAR-10 at 16 x 16 and
judged by the table's 200-epoch test accuracies, which nothing here reads before. Of the same random cells: rank
correlation of the scores, by loss and by accuracy; mean regret of the ten best. Of an SNAS, too, the regret of its most
likely cell; of a GHN the share of the variance of generated kernels that is between architectures.

`--starts` trains the best cells of the free score for two epochs, from random weights and from those of the model.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from free_score import SPEARMAN, TOP_FIFTH, ranking, shares
from nasbench201_on_cifar10 import SPACE, ops, read_truth, skeleton, small_cifar10
from truth import CpuClock

import optuna_nas.oneshot.base as oneshot_clock
from optuna_nas import (
    GHN,
    SNAS,
    Architecture,
    FreeScore,
    GHNRecipe,
    ImageData,
    NetworkSpace,
    Recipe,
    SNASRecipe,
    train,
)
from optuna_nas.oneshot.base import OneShotModel
from optuna_nas.training import ImageClassification

FREE, PRIOR, TEN_BEST = "free score", "snas, the free score as prior", "regret of the ten best"
SNAS_CHANGES: dict[str, dict[str, Any]] = {
    "snas": {},
    "snas, fixed parts learn after 3/4": {"freeze_fraction": 0.75},
    "snas, fixed parts learn after 1/2": {"freeze_fraction": 0.5},
    "snas, fixed parts learn": {"freeze_fraction": 0.0},
    "snas, no warm-up": {"warmup_fraction": 0.0},
    "snas, uniform single paths": {"relaxation": "one_path", "warmup_fraction": 0.999},
    PRIOR: {},
}
GHN_CHANGES: dict[str, dict[str, Any]] = {
    "ghn": {},
    "ghn, fixed parts generated": {"freeze_fraction": 0.0},
    "ghn, embeddings not normalised": {"normalization": "none"},
    "ghn, embeddings normalised by node": {"normalization": "node"},
}
SHORT = 2  # epochs


class ByAccuracy(ImageClassification):
    """The same task, scored by accuracy."""

    def score(self, network: Any, batches: Any) -> float:
        return self.evaluate(network, batches)


def make(name: str, data: ImageData, seed: int) -> OneShotModel[Any]:
    """Return the untrained model of a row."""
    space, task = NetworkSpace(SPACE, skeleton(data)), ImageClassification()
    if name in GHN_CHANGES:
        return GHN(space, GHNRecipe(meta_batch=4, seed=seed, **GHN_CHANGES[name]), task)
    recipe = SNASRecipe(**{"learning_rate": 0.1, "warmup_fraction": 0.3, "seed": seed, **SNAS_CHANGES[name]})
    prior = FreeScore(space, data, task, seed=seed) if name == PRIOR else None
    return SNAS(space.with_skeleton(affine=False), recipe, task, prior=prior)


def judged(scores: NDArray[np.float64], came: NDArray[np.float64], best: float) -> dict[str, float]:
    """Compare scores with the truth."""
    first = np.argsort(-scores, kind="stable")[:10]
    return {**ranking(scores, came), TEN_BEST: float(best - came[first].mean())}


def starts(
    model: OneShotModel[Any], data: ImageData, cells: list[Architecture], came: NDArray[np.float64], seed: int
) -> dict[str, float]:
    """Return rank correlations of the truth with losses of two epochs, from random weights and from the model's."""
    found = {}
    space = model.space
    for name, rate in (("random", 0.1), ("model's", 0.025)):
        losses, begun = [], time.process_time()
        for cell in cells:
            network = space.build(cell, seed=seed)
            if name != "random":
                network.load_state_dict(model.weights(cell))
            result = train(network, data, Recipe(epochs=SHORT, learning_rate=rate, seed=seed))
            losses.append(result.last.validation_loss)
        found[f"{SHORT} epochs from {name} weights"] = float(spearmanr(-np.array(losses), came).statistic)
        found[f"{SHORT} epochs from {name} weights, CPU seconds"] = (time.process_time() - begun) / len(cells)
    return found


def measured(
    model: OneShotModel[Any],
    cells: list[Architecture],
    free: NDArray[np.float64],
    came: NDArray[np.float64],
    best: float,
) -> dict[str, float]:
    """Return how a model's scores rank cells, alone, by accuracy, and together with the free score."""
    scores = model.score(cells)
    task, model.task = model.task, ByAccuracy()
    by_accuracy = model.score(cells)
    model.task = task
    mixed = judged(shares(scores) + shares(free), came, best)
    filtered = judged(np.where(free >= np.quantile(free, 0.9), scores, -np.inf), came, best)
    return {
        **judged(scores, came, best),
        f"by accuracy: {SPEARMAN}": ranking(by_accuracy, came)[SPEARMAN],
        **{f"with the free score: {key}": value for key, value in mixed.items()},
        f"of the free score's best tenth: {TEN_BEST}": filtered[TEN_BEST],
    }


def main() -> None:
    """Train every model with every seed, judge it, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", required=True, help="CSV with op_1_0 ... op_3_2 and true accuracies")
    parser.add_argument("--column", default="cifar10_test_200ep")
    parser.add_argument("--images", default="", help="folder of CIFAR-10, see small_cifar10; downloaded by default")
    parser.add_argument("--rows", nargs="+", default=[*SNAS_CHANGES, *GHN_CHANGES], help="by default all")
    parser.add_argument("--seconds", type=float, default=100.0, help="CPU seconds of a model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--cells", type=int, default=300, help="random cells that are scored")
    parser.add_argument("--starts", type=int, default=0, metavar="CELLS", help="also train so many, from both starts")
    parser.add_argument("--json", type=Path, default=Path("parts.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    oneshot_clock.time = CpuClock  # type: ignore[assignment]
    truth = read_truth(options.table, options.column)
    best = max(truth.values())
    random = np.random.default_rng(1000)
    cells = [SPACE.sample(random) for _ in range(options.cells)]
    came = np.array([truth[ops(cell)] for cell in cells])
    rows: list[dict[str, Any]] = json.loads(options.json.read_text()) if options.json.exists() else []
    done = {(row["name"], row["seed"], row["seconds"]) for row in rows}
    for seed in options.seeds:
        wanted = [name for name in (FREE, *options.rows) if (name, seed, options.seconds) not in done]
        if not wanted:
            continue
        data = small_cifar10(options.images, seed)
        free = FreeScore(NetworkSpace(SPACE, skeleton(data)), data, ImageClassification(), seed=seed)(cells)
        for name in wanted:
            found = judged(free, came, best)
            if name != FREE:
                model = make(name, data, seed)
                model.fit(data, 1000, seconds=options.seconds, show_progress=False)
                found = {"steps": float(model.step), **measured(model, cells, free, came, best)}
                if isinstance(model, SNAS):
                    found["regret of the most likely"] = best - truth[ops(model.most_likely())]
                elif (share := model.variance_between(cells[:50])) is not None:
                    found["variance between"] = share
                if options.starts and name in ("snas", "ghn"):
                    chosen = np.argsort(-free)[: options.starts]
                    found |= starts(model, data, [cells[i] for i in chosen], came[chosen], seed)
            rows.append({"name": name, "seed": seed, "seconds": options.seconds, **found})
            options.json.write_text(json.dumps(rows, indent=1))
            print(
                f"{name}, seed {seed}: " + ", ".join(f"{key} {value:.3f}" for key, value in found.items()), flush=True
            )
    keys = (SPEARMAN, TOP_FIFTH, TEN_BEST)
    print(f"\nmeans over seeds\n{'':40s}" + "".join(f"{key:>24s}" for key in keys))
    rows = [row for row in rows if row["seconds"] == options.seconds]
    for name in dict.fromkeys(row["name"] for row in rows):
        means = (np.mean([row[key] for row in rows if row["name"] == name]) for key in keys)
        print(f"{name:40s}" + "".join(f"{mean:24.2f}" for mean in means))


if __name__ == "__main__":
    main()

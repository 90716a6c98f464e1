"""What hides the best cell of a pool from a short training: the images that judge, the seed, or how short it is?

Command:   python studies/benchmarks/choice_noise.py --table nb201_accuracy.csv.gz --images FOLDER --json noise.json
Cost:      fifteen minutes on one core for 24 trainings of five epochs, 25 more for 12 of fifteen with `--long`; what is
           in `--json` is not made again
Expected:  a thousand images judge well enough; another seed gives another order of the first cells of a pool

The first cells of a pool by the free score are trained on 9,000 images of CIFAR-10 at 16 x 16, with two seeds, and
judged by 1,000 images, as a search judges them, and by 5,000 more. Rank correlations between these losses say what is
noise; those with the table's 200-epoch test accuracy, what the trainings know of it. Also tried: the training loss
instead, summed over all epochs (Ru et al. 2021) and in the last one. Half of the variance of the difference between two
seeds is what a seed makes.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from nasbench201_on_cifar10 import N_IMAGES, SPACE, halved, ops, read_sheets, read_truth, skeleton, small_cifar10

from optuna_nas import FreeScore, ImageData, NetworkSpace, Recipe, train
from optuna_nas.training import EpochResult, ImageClassification, evaluate

MORE = 5000
TRAININGS, LONG = ((5, 0), (5, 1)), (15, 0)
"""Epochs and seed."""


def with_more_images(data: ImageData, folder: str) -> ImageData:
    """Return the data with the next images of CIFAR-10 as test split."""
    x, y = (part[N_IMAGES:] for part in read_sheets(folder, N_IMAGES + MORE))
    images = torch.from_numpy(halved(x).transpose(0, 3, 1, 2).copy()).to(data.images)
    splits = {**data.splits, "test": torch.arange(len(data.images), len(data.images) + len(x))}
    labels = torch.cat([data.labels, torch.from_numpy(y).to(data.labels)])
    return replace(data, images=torch.cat([data.images, images]), labels=labels, splits=splits)


def main() -> None:
    """Train, judge in several ways, and print rank correlations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", required=True, help="CSV with op_1_0 ... op_3_2 and true accuracies")
    parser.add_argument("--column", default="cifar10_test_200ep")
    parser.add_argument("--images", required=True, help="folder of CIFAR-10, see small_cifar10")
    parser.add_argument("--cells", type=int, default=12, help="first cells of the pool, which are trained")
    parser.add_argument("--pool", type=int, default=500)
    parser.add_argument("--long", action="store_true", help="also train three times as long")
    parser.add_argument("--json", type=Path, default=Path("choice_noise.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = with_more_images(small_cifar10(options.images, 0), options.images)
    space = NetworkSpace(SPACE, skeleton(data))
    random = np.random.default_rng(0)
    drawn = {cell.canonical().digest: cell for cell in (SPACE.sample(random) for _ in range(options.pool))}
    pool = [cell for cell in drawn.values() if cell.connected]
    order = np.argsort(-FreeScore(space, data, ImageClassification())(pool), kind="stable")
    cells = [pool[place] for place in order[: options.cells]]
    rows: list[dict[str, Any]] = json.loads(options.json.read_text()) if options.json.exists() else []
    trainings = (*TRAININGS, LONG) if options.long else TRAININGS
    for epochs, seed in trainings:
        for cell in cells[len([row for row in rows if (row["epochs"], row["seed"]) == (epochs, seed)]) :]:
            history: list[EpochResult] = []
            network = space.build(cell, seed=seed)
            train(network, data, Recipe(epochs=epochs, learning_rate=0.1, seed=seed), on_epoch=history.append)
            row = {
                "epochs": epochs,
                "seed": seed,
                "1,000 images": history[-1].validation_loss,
                "5,000 images": evaluate(network, data, "test").loss,
                "training, summed": sum(result.train_loss for result in history),
                "training, last epoch": history[-1].train_loss,
            }
            rows.append(row)
            options.json.write_text(json.dumps(rows, indent=1))
            print(row, flush=True)

    def values(epochs: int, seed: int, name: str) -> NDArray[np.float64]:
        return np.array([row[name] for row in rows if (row["epochs"], row["seed"]) == (epochs, seed)])

    truth = read_truth(options.table, options.column)
    came = -np.array([truth[ops(cell)] for cell in cells])
    few, more = "1,000 images", "5,000 images"
    pairs = {
        "1,000 and 5,000 images, the same trainings": (values(5, 0, few), values(5, 0, more)),
        "two seeds, 1,000 images": (values(5, 0, few), values(5, 1, few)),
        "two seeds, 5,000 images": (values(5, 0, more), values(5, 1, more)),
    }
    if options.long:
        pairs["five and fifteen epochs, 5,000 images"] = values(5, 0, more), values(15, 0, more)
    for epochs in sorted({epochs for epochs, _ in trainings}):
        for name in (few, more, "training, summed", "training, last epoch"):
            pairs[f"truth and {epochs} epochs, {name}"] = (values(epochs, 0, name), came)
    one, other = values(5, 0, more), values(5, 1, more)
    pairs["truth and 5 epochs, mean of two seeds, 5,000 images"] = (one + other) / 2, came
    print(f"\n{len(cells)} cells, regret {(came + max(truth.values())).mean():.2f}; rank correlations")
    for name, pair in pairs.items():
        print(f"  {name:56}{spearmanr(*pair).statistic:6.2f}")
    noise, whole = (one - other).var(ddof=1) / 2, (one.var(ddof=1) + other.var(ddof=1)) / 2
    print(f"variance of the losses after 5 epochs, 5,000 images: {whole:.4f}, of that by the seed {noise:.4f}")


if __name__ == "__main__":
    main()

"""Among cells that a search has trained briefly, which should it choose: by loss, by free score, or by both?

Command:   python studies/benchmarks/choices.py --table nb201_accuracy.csv.gz --images FOLDER
Cost:      two minutes on one core; the trainings are those that `truth.py` keeps
Expected:  after five epochs neither ranks the few cells of a seed; their mean rank chooses a little better

Trainings are of five epochs on 10,000 images of CIFAR-10 at 16 x 16. Regret is in points below the best cell.
"""

import argparse
import json
import sys
from itertools import product
from pathlib import Path

import numpy as np
from scipy.stats import rankdata, spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nasbench201_on_cifar10 import SPACE, ops, read_truth, skeleton, small_cifar10

from optuna_nas import Architecture, FreeScore, NetworkSpace
from optuna_nas.training import ImageClassification

EPOCHS, LEAST, OTHERS = 5, 3, 30


def losses_by_seed(file: Path) -> dict[int, dict[str, float]]:
    """Return the last validation loss of every cell that was trained to the end, by digest, of seeds with a few."""
    found: dict[int, dict[str, float]] = {}
    for (digest, epochs, seed), (losses, _, _) in map(json.loads, file.read_text().splitlines()):
        if epochs == len(losses) == EPOCHS:
            found.setdefault(seed, {})[digest] = losses[-1]
    return {seed: losses for seed, losses in sorted(found.items()) if len(losses) >= LEAST}


def cells_of(digests: set[str]) -> dict[str, Architecture]:
    """Return a cell of every digest."""
    distributions = SPACE.distributions()
    found: dict[str, Architecture] = {}
    for choices in product(*(distribution.choices for distribution in distributions.values())):
        cell = SPACE.decode(dict(zip(distributions, choices, strict=True)))
        if (digest := cell.canonical().digest) in digests:
            found.setdefault(digest, cell)
    return found


def main() -> None:
    """Compare choices, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", required=True, help="CSV with op_1_0 ... op_3_2 and true accuracies")
    parser.add_argument("--column", default="cifar10_test_200ep")
    parser.add_argument("--images", default="", help="folder of CIFAR-10, see small_cifar10; downloaded by default")
    parser.add_argument("--trainings", type=Path, default=Path(__file__).with_name("truth_trainings.jsonl"))
    options = parser.parse_args()
    truth = read_truth(options.table, options.column)
    trained = losses_by_seed(options.trainings)
    cells = cells_of({digest for losses in trained.values() for digest in losses})
    rows = []
    for seed, of_seed in trained.items():
        data, drawn = small_cifar10(options.images, seed), [cells[digest] for digest in of_seed]
        score = FreeScore(NetworkSpace(SPACE, skeleton(data)), data, ImageClassification(), seed=seed)
        random = np.random.default_rng(seed)
        others = [SPACE.sample(random) for _ in range(OTHERS)]  # among which indicators are ranked
        by_score = -np.asarray(score([*drawn, *others]))[: len(drawn)]
        by_loss = np.array(list(of_seed.values()))
        regret = np.array([max(truth.values()) - truth[ops(cell)] for cell in drawn])
        by_both = rankdata(by_loss) + rankdata(by_score)
        orders = (by_loss, by_score, by_both)
        chosen = [regret[order.argmin()] for order in orders]
        ranks = [float(spearmanr(order, regret).statistic) for order in orders]
        rows.append([*chosen, regret.min(), regret.mean(), *ranks])
        print(f"seed {seed}, {len(drawn)} cells: " + ", ".join(f"{value:.2f}" for value in rows[-1]), flush=True)
    names = ("by loss", "by score", "by both", "best", "mean", "rank by loss", "rank by score", "rank by both")
    for name, value in zip(names, np.mean(rows, axis=0), strict=True):
        print(f"{name:14} {value:.2f}")


if __name__ == "__main__":
    main()

"""Among cells that a search has trained briefly, which should it choose, and how early do losses tell?

Command:   python studies/benchmarks/choices.py --table nb201_accuracy.csv.gz --images FOLDER
Cost:      three minutes on one core; the trainings are those that `truth.py` keeps
Expected:  after five epochs no rule ranks the few cells of a seed, and none is shown to choose better than the
           lowest loss; of more than a dozen cells that one is no better, while the best of them is

Trainings are of five epochs on 10,000 images of CIFAR-10 at 16 x 16. Regret is in points below the best cell.
"""

import argparse
import sys
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr, ttest_rel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from free_score import rank_correlations
from nasbench201_on_cifar10 import SPACE, ops, read_truth, skeleton, small_cifar10
from replay import bootstrap
from truth import EPOCHS, Trainings

from optuna_nas import Architecture, FreeScore, NetworkSpace
from optuna_nas.training import ImageClassification

LEAST, OTHERS = 3, 30
NUMBERS, DRAWS = (1, 4, 8, 12, 16, 24), 2000
STANDARD_ERROR = 0.034  # of a loss near 1.4, on the 1,000 images that choose


def curves_by_seed(file: Path) -> dict[int, dict[str, list[float]]]:
    """Return the validation losses of every cell that was trained to the end, by digest, of seeds with a few."""
    found: dict[int, dict[str, list[float]]] = {}
    for key, kept in Trainings(file).whole(EPOCHS):
        found.setdefault(key.seed, {})[key.digest] = kept.losses
    return {seed: curves for seed, curves in sorted(found.items()) if len(curves) >= LEAST}


def print_curves(curves: dict[int, dict[str, list[float]]]) -> None:
    """Print how well losses after each epoch rank cells as those after the last one do."""
    arrays = [np.array(list(of_seed.values())) for of_seed in curves.values()]
    pooled = np.concatenate(arrays)
    print(f"{len(pooled)} trainings of {len(arrays)} seeds: Spearman with the loss after the last epoch")
    for epoch in range(EPOCHS - 1):
        within = [float(spearmanr(one[:, epoch], one[:, -1]).statistic) for one in arrays]
        whole = float(spearmanr(pooled[:, epoch], pooled[:, -1]).statistic)
        low, high = bootstrap(within)
        print(f"  epoch {epoch + 1}: within a seed {np.mean(within):.2f} [{low:.2f}, {high:.2f}], pooled {whole:.2f}")


def print_numbers(trained: list[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> None:
    """Print the mean regret of the lowest loss, and the least, among so many of a seed's cells, drawn by chance."""
    many = [(losses, regrets) for losses, regrets in trained if len(losses) >= max(NUMBERS)]
    random = np.random.default_rng(0)
    for number in NUMBERS:
        found = []
        for losses, regrets in many:
            drawn = random.permuted(np.tile(np.arange(len(losses)), (DRAWS, 1)), axis=1)[:, :number]
            lowest = losses[drawn].argmin(1)
            found.append([regrets[drawn[np.arange(DRAWS), lowest]].mean(), regrets[drawn].min(1).mean()])
        chosen, best = np.mean(found, axis=0)
        print(f"{number} of the cells of {len(many)} seeds: lowest loss {chosen:.2f}, best {best:.2f}")


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
    parser.add_argument("--curves", action="store_true", help="only how early losses rank, for which --table is enough")
    parser.add_argument("--table", required=True, help="CSV with op_1_0 ... op_3_2 and true accuracies")
    parser.add_argument("--column", default="cifar10_test_200ep")
    parser.add_argument("--images", default="", help="folder of CIFAR-10, see small_cifar10; downloaded by default")
    parser.add_argument("--trainings", type=Path, default=Path(__file__).with_name("truth_trainings.jsonl"))
    options = parser.parse_args()
    truth = read_truth(options.table, options.column)
    curves = curves_by_seed(options.trainings)
    print_curves(curves)
    if options.curves:
        return
    trained = {seed: {digest: losses[-1] for digest, losses in found.items()} for seed, found in curves.items()}
    cells = cells_of({digest for losses in trained.values() for digest in losses})
    rows, judged = [], []
    for seed, of_seed in trained.items():
        data, drawn = small_cifar10(options.images, seed), [cells[digest] for digest in of_seed]
        score = FreeScore(NetworkSpace(SPACE, skeleton(data)), data, ImageClassification(), seed=seed)
        random = np.random.default_rng(seed)
        others = [SPACE.sample(random) for _ in range(OTHERS)]  # among which indicators are ranked
        by_score = -np.asarray(score([*drawn, *others]))[: len(drawn)]
        by_loss = np.array(list(of_seed.values()))
        regret = np.array([max(truth.values()) - truth[ops(cell)] for cell in drawn])
        by_both = rankdata(by_loss) + rankdata(by_score)
        as_good = np.where(by_loss <= by_loss.min() + STANDARD_ERROR, by_score, np.inf)
        ranked = (by_loss, by_score, by_both)
        chosen = [regret[order.argmin()] for order in (*ranked, as_good)]
        ranks = [rank_correlations(order, regret)[0] for order in ranked]
        judged.append((by_loss, regret))
        rows.append([*chosen, regret.min(), regret.mean(), *ranks])
        print(f"seed {seed}, {len(drawn)} cells: " + ", ".join(f"{value:.2f}" for value in rows[-1]), flush=True)
    orders = "by loss", "by score", "by both"
    names = (*orders, "within an error", "best", "mean", *(f"rank {name}" for name in orders))
    for name, value in zip(names, np.mean(rows, axis=0), strict=True):
        print(f"{name:16} {value:.2f}")
    by_loss, by_both = np.array(rows)[:, [0, 2]].T
    print(f"by loss or by both: p = {ttest_rel(by_loss, by_both).pvalue:.2f} by a paired t-test over the seeds")
    print_numbers(judged)


if __name__ == "__main__":
    main()

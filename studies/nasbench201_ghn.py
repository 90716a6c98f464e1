"""Does a hypernetwork rank NAS-Bench-201's cells without training one of them, in twenty minutes on two CPU cores?

Command:   optuna-nas run studies/nasbench201_ghn.py
           python studies/nasbench201_ghn.py --table nb201_accuracy.csv.gz   # judged
Cost:      up to 20 minutes on 2 CPU cores; downloads CIFAR-10 (170 MB) unless `images` names a folder of it
Expected:  a Spearman correlation of 0.8 with the true accuracies of 1,000 random cells at this seed and budget; other
           seeds may rank far worse (BENCHMARKS.md); the very best not told apart

The table of true accuracies judges only; no search reads it.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import optuna
import torch
from nasbench201_on_cifar10 import SPACE, ops, read_truth, skeleton, small_cifar10
from numpy.typing import NDArray
from optuna import Trial
from optuna.pruners import NopPruner
from optuna.trial import TrialState
from scipy.stats import kendalltau, spearmanr

from optuna_nas import (
    GHN,
    Architecture,
    GHNPruner,
    GHNRecipe,
    GHNSampler,
    ImageData,
    NetworkSpace,
    Recipe,
    Search,
    nasbench201_skeleton,
)

EPOCHS = 32.0  # 4,480 steps of 64 images, four cells each
RECIPE = GHNRecipe(meta_batch=4, scoring_images=1000)  # scores of 512 images rank worse (`fashion_ranking.py`'s cells)


def search(images: str = "", epochs: float = EPOCHS, trials: int = 10, train_epochs: int = 5, seed: int = 0) -> Search:
    """Score 1,000 cells with generated weights, then train the ten best briefly (the paper's Top)."""
    data = small_cifar10(images, seed)
    ghn = make_ghn(data, seed)
    return Search(
        name=f"nasbench201-ghn-{seed}",
        space=ghn.space,
        data=data,
        recipe=Recipe(epochs=train_epochs, learning_rate=0.1, seed=seed),
        sampler=GHNSampler(
            ghn.space, ghn, data=data, budget=epochs, trials_per_round=max(trials, 1), exploration=0.0, seed=seed
        ),
        trials=trials,
        description=__doc__ or "",
    )


def make_ghn(data: ImageData, seed: int) -> GHN:
    """Return a GHN for three cells of 16 channels."""
    return GHN(NetworkSpace(SPACE, skeleton(data)), GHNRecipe(**{**vars(RECIPE), "seed": seed}))


# -- judged by the table ----------------------------------------------------------------------------------------------


def main() -> None:
    """Train a GHN, score random cells, and compare the ranking with the table's and with that of parameter counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", required=True, help="CSV with op_1_0 ... op_3_2 and true accuracies")
    parser.add_argument("--column", default="cifar10_test_200ep")
    parser.add_argument("--images", default="", help="folder of CIFAR-10, see small_cifar10; downloaded by default")
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--epochs", type=float, default=EPOCHS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("nasbench201_ghn.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started = time.monotonic()
    data = small_cifar10(options.images, options.seed)
    ghn = make_ghn(data, options.seed)
    ghn.fit(data, options.epochs, on_record=lambda record: print(record.step, record.metrics, flush=True))
    trained = time.monotonic()
    random = np.random.default_rng(options.seed + 1000)
    cells = [SPACE.sample(random) for _ in range(options.cells)]
    scores = ghn.score(cells)
    seconds = time.monotonic() - started
    truth = read_truth(options.table, options.column)
    came = np.array([truth[ops(cell)] for cell in cells])
    whole = NetworkSpace(SPACE, nasbench201_skeleton())
    params = np.array([whole.cost(cell).params for cell in cells])
    top = np.argsort(-scores)[:10]
    better = came >= np.median(came)
    found = {
        "seconds": round(seconds, 1),
        "seconds of training": round(trained - started, 1),
        "steps": ghn.step,
        "mean score": float(scores.mean()),
        "spearman": float(spearmanr(scores, came).statistic),
        "kendall": float(kendalltau(scores, came).statistic),
        "pearson": float(np.corrcoef(scores, came)[0, 1]),
        "pearson, better half": float(np.corrcoef(scores[better], came[better])[0, 1]),
        "kendall, better half": float(kendalltau(scores[better], came[better]).statistic),
        "spearman of parameters": float(spearmanr(params, came).statistic),
        "best of the ten best": float(came[top].max()),
        "mean of the ten best": float(came[top].mean()),
        "mean of all": float(came.mean()),
        "best of all": float(came.max()),
    }
    found |= prune_by_score(ghn, cells, scores, came, options.seed)
    options.out.write_text(json.dumps({**found, "scores": scores.tolist(), "truth": came.tolist()}))
    for name, value in found.items():
        print(f"{name:26s} {value:10.4f}")


def prune_by_score(
    ghn: GHN, cells: list[Architecture], scores: NDArray[np.float64], came: NDArray[np.float64], seed: int
) -> dict[str, float]:
    """Let a study of all cells, in random order, be pruned at defaults, by the scores and by shuffled ones."""
    found = {}
    for kind, known in (("score", scores), ("shuffled score", np.random.default_rng(seed).permutation(scores))):
        table = dict(zip(cells, known, strict=True))

        def score(asked: list[Architecture], table: dict[Architecture, float] = table) -> NDArray[np.float64]:
            return np.array([table[cell] if cell in table else ghn.score([cell])[0] for cell in asked])

        pruner = GHNPruner(score=score, space=SPACE, pruner=NopPruner(), seed=seed)
        study = optuna.create_study(direction="maximize", pruner=pruner)
        truth = dict(zip(cells, came, strict=True))
        for cell in table:
            study.enqueue_trial(SPACE.encode(cell))

        def objective(trial: Trial, truth: dict[Architecture, float] = truth) -> float:
            cell = SPACE.suggest(trial)
            if trial.should_prune():
                raise optuna.TrialPruned
            return truth[cell]

        study.optimize(objective, n_trials=len(table))
        trials = study.get_trials(deepcopy=False)
        stopped = [trial.number for trial in trials if trial.state == TrialState.PRUNED]
        values = np.array([truth[SPACE.decode(trial.params)] for trial in trials])
        top = values >= np.quantile(values, 0.9)
        finished = np.cumsum([trial.state == TrialState.COMPLETE for trial in trials])
        found[f"{kind}: share stopped"] = len(stopped) / len(trials)
        found[f"{kind}: of the top tenth"] = float(top[stopped].sum() / top.sum())
        found[f"{kind}: stopped after 40 finished"] = float(sum(finished[number] >= 40 for number in stopped))
    return found


if __name__ == "__main__":
    main()

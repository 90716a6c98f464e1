"""What does HMNASPruner stop before the first step, was that right, and how many epochs does it save?

Command:   python studies/pruning_hmnas.py --table nb201_accuracy.csv.gz
           python studies/pruning_hmnas.py --curves DARTS_RANDOM214_FOLDER
Cost:      fifteen minutes on one CPU core; downloads CIFAR-10 (170 MB) unless `--images` names a folder of it
Expected:  on NAS-Bench-201 a few cells stopped, of the true top tenth next to none; on the 214 cells of the DARTS
           space, all within 1.4 points, little to tell

A supernet and its masks learn from CIFAR-10 at 16 x 16; then tables of real trainings answer instead of a GPU: cells of
NAS-Bench-201 (12 epochs, then 200) or random cells of the DARTS space with their curves of 600 epochs (Yang, Esperanca
and Carlucci 2020). The tables judge only; nothing that learns reads them.
"""

import argparse
import csv
import gzip
import json
import time
from copy import deepcopy
from pathlib import Path

import numpy as np
import optuna
import torch
from bilevel import bilevel
from nasbench201_on_cifar10 import SPACE, ops, skeleton, small_cifar10
from optuna import Trial
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.trial import TrialState
from scipy.stats import kendalltau, spearmanr

from optuna_nas import HMNAS, Architecture, HMNASPruner, HMNASRecipe, NetworkSpace, Skeleton, darts_space

Curve = list[tuple[int, float]]
"""(epoch, accuracy in %) as a trial would report them."""
EPOCHS = {"nasbench201": 47.5, "darts": 8.3125}


def nasbench201_curves(path: str) -> dict[Architecture, Curve]:
    """Return two points of every cell: validation after a training of 12 epochs, test after one of 200."""
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt", newline="") as file:
        rows = {tuple(row[f"op_{j}_{i}"] for j, i in SPACE.edges): row for row in csv.DictReader(file)}
    random = np.random.default_rng(1000)
    cells = list(dict.fromkeys(SPACE.sample(random) for _ in range(1500)))[:1000]
    return {
        cell: [(12, float(row["cifar10_valid_12ep"])), (200, float(row["cifar10_test_200ep"]))]
        for cell in cells
        for row in [rows[ops(cell)]]
    }


def darts_curves(folder: str, every: int = 10) -> dict[Architecture, Curve]:
    """Return the test accuracies of the 214 cells after every tenth epoch."""
    known = json.loads((Path(folder) / "darts_random214_genotypes.json").read_text())
    table = np.load(Path(folder) / "darts_random214_curves.npz")["test_acc"] / 100
    space = darts_space()
    found = {}
    for cell in known:
        choices = {
            f"{kind}_{source}_{node}": (op,)
            for kind, name in (("normal", "normal"), ("reduction", "reduce"))
            for node, pair in enumerate(cell[name], start=2)
            for op, source in pair
        }
        curve = table[cell["id"]]
        found[space.architecture(choices)] = [
            (epoch, float(curve[epoch - 1])) for epoch in range(every, len(curve) + 1, every)
        ]
    return found


def study_of(cells: list[Architecture], curves: dict[Architecture, Curve], pruner: BasePruner) -> optuna.Study:
    """Run a study of these cells in this order; a table answers."""
    space = cells[0].space
    study = optuna.create_study(direction="maximize", pruner=pruner)
    for cell in cells:
        study.enqueue_trial(space.encode(cell))

    def objective(trial: Trial) -> float:
        curve = curves[space.suggest(trial)]
        if trial.should_prune():
            raise optuna.TrialPruned
        for epoch, accuracy in curve:
            trial.report(accuracy, epoch)
            if epoch < curve[-1][0] and trial.should_prune():
                raise optuna.TrialPruned
        return curve[-1][1]

    study.optimize(objective, n_trials=len(cells))
    return study


def stopped_at_once(study: optuna.Study) -> list[int]:
    """Return the numbers of the trials that never trained."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))
    return [trial.number for trial in trials if not trial.intermediate_values]


def judge(hmnas: HMNAS, curves: dict[Architecture, Curve], seeds: int, trials: int) -> dict[str, float]:
    """Let all cells pass before the pruner, in random order; then compare it with the median pruner alone."""
    cells = list(curves)
    came = np.array([curves[cell][-1][1] for cell in cells])
    share = np.array([survival.share for survival in hmnas.survivals(cells)])
    endurance = hmnas.endurance(cells)
    n_edges = np.array([sum(map(bool, dict(cell.choices).values())) for cell in cells])
    found = {
        "different shares": float(len(set(share))),
        "spearman of endurance": float(spearmanr(endurance, came).statistic),
        "kendall of endurance": float(kendalltau(endurance, came).statistic),
        "kendall of number of edges": float(kendalltau(n_edges, came).statistic) if n_edges.std() else 0.0,
        "kendall of survival": float(kendalltau(share, came).statistic) if share.std() else 0.0,
    }

    def all_cells(model: HMNAS, seed: int) -> tuple[float, float]:
        order = np.random.default_rng(seed).permutation(len(cells))
        study = study_of([cells[i] for i in order], curves, HMNASPruner(model, pruner=NopPruner(), seed=seed))
        stopped = stopped_at_once(study)
        top = came[order] >= np.quantile(came, 0.9)
        return len(stopped) / len(cells), float(top[stopped].sum() / max(1, len(stopped)))

    shares = [all_cells(hmnas, seed) for seed in range(3)]
    found["stopped before training"], found["of those, in the top tenth"] = (float(x) for x in np.mean(shares, axis=0))
    shuffled = [all_cells(with_shuffled_masks(hmnas, seed), seed)[0] for seed in range(20)]
    found["shuffled masks: silent"] = float(np.mean([stopped == 0 for stopped in shuffled]))
    found["shuffled masks: stopped"] = float(np.mean(shuffled))
    for name in ("median", "masks + median"):
        epochs, best, at_once = [], [], []
        for seed in range(seeds):
            chosen = np.random.default_rng(seed).permutation(len(cells))[:trials]
            study = study_of(
                [cells[i] for i in chosen],
                curves,
                MedianPruner() if name == "median" else HMNASPruner(hmnas, seed=seed),
            )
            epochs.append(sum(max(trial.intermediate_values, default=0) for trial in study.get_trials(deepcopy=False)))
            best.append(study.best_value)
            at_once.append(len(stopped_at_once(study)))
        print(f"  {name}: epochs {epochs}, best {best}, stopped at once {at_once}", flush=True)
        found |= {f"{name}: epochs": float(np.mean(epochs)), f"{name}: best": float(np.mean(best))}
    return found


def with_shuffled_masks(hmnas: HMNAS, seed: int) -> HMNAS:
    """Return a model whose masks of edges and ops have changed places."""
    shuffled = deepcopy(hmnas)
    random = torch.Generator().manual_seed(seed)
    for mask in (shuffled.masks.op_masks_EO, shuffled.masks.edge_masks_E):
        mask.data = mask.data.flatten()[torch.randperm(mask.numel(), generator=random)].reshape(mask.shape)
    return shuffled


def main() -> None:
    """Fit, then ask a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", default="", help="CSV of NAS-Bench-201 with op_1_0 ... op_3_2 and accuracies")
    parser.add_argument("--curves", default="", help="folder with darts_random214_genotypes.json and _curves.npz")
    parser.add_argument("--images", default="", help="folder of CIFAR-10, see small_cifar10; downloaded by default")
    parser.add_argument("--epochs", type=float, default=0.0, help="of the supernet and its masks; 0: fifteen minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=5, help="studies of 60 trials")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("pruning_hmnas"))
    options = parser.parse_args()
    if bool(options.table) == bool(options.curves):
        parser.error("give either --table or --curves")
    torch.set_num_threads(options.threads)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    data = bilevel(small_cifar10(options.images, options.seed))
    if options.table:
        kind, space, frame = "nasbench201", SPACE, skeleton(data, affine=False)
    else:
        cells = ("normal", "reduction", "reduction")
        kind, space = "darts", darts_space()
        frame = Skeleton(cells, 8, data.input_shape, data.classes, affine=False)
    hmnas = HMNAS(NetworkSpace(space, frame), HMNASRecipe(batch_size=64, mask_fraction=4 / 19, seed=options.seed))
    started = time.monotonic()
    hmnas.fit(data, options.epochs or EPOCHS[kind], checkpoint=options.out / f"{kind}-{options.seed}.safetensors")
    print(f"fitted in {time.monotonic() - started:.0f} s; kept {hmnas.records[-1].metrics}", flush=True)
    for path, kept in hmnas.kept().items():
        print(f"  {path}: {', '.join(kept) or 'nothing'}")
    curves = nasbench201_curves(options.table) if options.table else darts_curves(options.curves)
    found = judge(hmnas, curves, options.seeds, options.trials)
    (options.out / f"{kind}.json").write_text(json.dumps(found))
    for name, value in found.items():
        print(f"{name:28s} {value:10.4f}")


if __name__ == "__main__":
    main()

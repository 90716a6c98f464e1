"""Does what a search learned on one data set save time on another?

Command:   python studies/transfer.py --images FASHION_MNIST_FOLDER      # five seeds
           python studies/transfer.py --images FOLDER --ways "from nothing" "from a GHN" --seeds 3 --json kept.json
           python studies/transfer.py --images FOLDER --rank 40 --seeds 2          # why: what was learned, as a score
Cost:      half an hour on one thread for all ways. What is in `--json` is not measured again
Expected:  no time is saved by what an SNAS learns in half a minute; its free score says more about other images

NAS-Bench-201's cells in networks of 3 cells and 8 channels. Something is learned on handwritten digits in some 30 CPU
seconds: the distribution of an SNAS, the trials of a study by TPE, or the scores of a GHN. Then cells are searched for
Fashion-MNIST at 14 x 14: by `SNASSampler` that learns from finished trials, from nothing and from what was learned
(`TransferredScore` as its `prior`), and by TPE. Of a study and of a GHN, main effects of options carry over and nothing
else. Counted are CPU seconds until the loss is as low as the best that the search from nothing finds; those of learning
do not count.

`--rank` trains random cells on Fashion-MNIST and prints how what was learned on digits ranks them, beside the free
score and the number of parameters.
"""

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import torch
from equal_seconds import kept_in, kept_numbers, stop_after
from optuna.samplers import BaseSampler, TPESampler
from scipy.stats import spearmanr
from small_fashion_mnist import small_fashion_mnist

from optuna_nas import (
    GHN,
    SNAS,
    FreeScore,
    GHNRecipe,
    ImageData,
    NetworkSpace,
    Recipe,
    SNASRecipe,
    SNASSampler,
    TrainObjective,
    TransferredScore,
    digits,
    nasbench201_skeleton,
    nasbench201_space,
    train,
)
from optuna_nas.training import ImageClassification

RECIPE = Recipe(epochs=3, learning_rate=0.1)
EPOCHS, STUDY_SECONDS = 10.0, 30.0
"""Epochs of a model that learns on digits, CPU seconds of a study there."""


def space_for(data: ImageData, affine: bool = True) -> NetworkSpace:
    """Return the cells in a network for a data set."""
    return NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 8, data.input_shape, data.classes, affine=affine))


def learned_by_snas(seed: int) -> TransferredScore:
    """Return what an SNAS learns about ops on digits."""
    data = digits(seed)
    snas = SNAS(space_for(data, affine=False), SNASRecipe(learning_rate=0.1, warmup_fraction=0.3, seed=seed))
    snas.fit(data, EPOCHS, show_progress=False)
    return TransferredScore.of_model(snas)


def learned_by_ghn(seed: int) -> TransferredScore:
    """Return the main effects of ops on what a hypernetwork scores, which has learned on digits."""
    data = digits(seed)
    ghn = GHN(space_for(data), GHNRecipe(meta_batch=4, seed=seed))
    ghn.fit(data, EPOCHS, show_progress=False)
    return TransferredScore.of_model(ghn)


def learned_by_trials(seed: int) -> TransferredScore:
    """Return the main effects of ops on the losses of a study on digits, by TPE."""
    data = digits(seed)
    study = optuna.create_study(sampler=TPESampler(multivariate=True, n_startup_trials=5, seed=seed))
    objective = TrainObjective(space_for(data), data, replace(RECIPE, seed=seed), objectives=("loss",))
    study.optimize(objective, callbacks=[stop_after(STUDY_SECONDS)])
    return TransferredScore.of_study(study, objective.space)


LEARNED = {"from an SNAS": learned_by_snas, "from a study": learned_by_trials, "from a GHN": learned_by_ghn}
WAYS = NOTHING, *_, TPE = ("from nothing", *LEARNED, "TPE")


def sampler_of(way: str, space: NetworkSpace, seed: int) -> BaseSampler:
    """Return the sampler of a way, which has learned on digits first if it is one of those."""
    if way == TPE:
        return TPESampler(multivariate=True, n_startup_trials=5, seed=seed)
    return SNASSampler(space, prior=LEARNED[way](seed) if way in LEARNED else None, seed=seed)


def searched(sampler: BaseSampler, data: ImageData, seconds: float, seed: int) -> list[tuple[float, float]]:
    """Return CPU seconds and best loss so far, after every trial of a search."""
    recipe = replace(RECIPE, seed=seed)
    study = optuna.create_study(sampler=sampler)
    curve: list[tuple[float, float]] = []
    begun = time.process_time()

    def note(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        curve.append((time.process_time() - begun, study.best_value))
        if curve[-1][0] >= seconds:
            study.stop()

    study.optimize(TrainObjective(space_for(data), data, recipe, objectives=("loss",)), callbacks=[note])
    return curve


def seconds_to(curve: list[tuple[float, float]], loss: float) -> float:
    """Return the CPU seconds until a search is at a loss; infinite if it never is."""
    return next((seconds for seconds, best in curve if best <= loss), math.inf)


def compare_scores(images: str, n_cells: int, seeds: int, file: Path | None) -> None:
    """Train random cells, and print the rank correlations of their losses with scores."""
    data = small_fashion_mnist(images, 0)
    space = space_for(data)
    random = np.random.default_rng(0)
    cells = [space.sample(random) for _ in range(n_cells)]
    losses = kept_numbers(file, cells, lambda cell: train(space.build(cell, seed=0), data, RECIPE).last.validation_loss)
    scores = {
        "free score": FreeScore(space, data, ImageClassification())(cells),
        "parameters": np.array([cell.cost().params for cell in cells]),
        **{f"{way}, seed {seed}": learn(seed)(cells) for way, learn in LEARNED.items() for seed in range(seeds)},
    }
    for name, values in scores.items():
        print(f"{name}: Spearman {spearmanr(values, -np.array(losses)).statistic:.2f} over {n_cells} cells", flush=True)


def main() -> None:
    """Search with and without what was learned, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="", help="folder of Fashion-MNIST; downloaded by default")
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU seconds of a search")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS, help="beside the one from nothing")
    parser.add_argument("--rank", type=int, metavar="CELLS", help="rank so many trained cells by scores instead")
    parser.add_argument("--json", type=Path, help="where all curves are kept, or all losses")
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if options.rank is not None:
        compare_scores(options.images, options.rank, options.seeds, options.json)
        return
    runs: list[dict[str, list[tuple[float, float]]]] = kept_in(options.json, [])
    runs += [{} for _ in range(len(runs), options.seeds)]
    ways, asked = list(dict.fromkeys((NOTHING, *options.ways))), runs[: options.seeds]
    for seed, run in enumerate(asked):
        data = small_fashion_mnist(options.images, seed)
        for way in ways:
            if way not in run:
                run[way] = searched(sampler_of(way, space_for(data), seed), data, options.seconds, seed)
                if options.json is not None:
                    options.json.write_text(json.dumps(runs))
            curve, goal = run[way], run[NOTHING][-1][1]
            print(
                f"seed {seed}, {way}: loss {curve[0][1]:.4f} at first, {curve[-1][1]:.4f} after {len(curve)} trials; "
                f"{seconds_to(curve, goal):.0f} CPU s to {goal:.4f}",
                flush=True,
            )
    for way in ways:
        first, last = (np.mean([run[way][place][1] for run in runs]) for place in (0, -1))
        needed = [seconds_to(run[way], run[NOTHING][-1][1]) for run in asked]
        print(f"{way}: mean loss {first:.4f} at first, {last:.4f} at the end; median {np.median(needed):.0f} CPU s")


if __name__ == "__main__":
    main()

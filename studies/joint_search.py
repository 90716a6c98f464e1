"""Architecture and hyperparameters of the training in one search, one after the other, or hyperparameters only?

Command:   optuna-nas run studies/joint_search.py               # the joint search, as any study
           python studies/joint_search.py                       # three ways on digits, five seeds, 30 CPU seconds each
           python studies/joint_search.py --images FASHION_MNIST_FOLDER --seconds 40 --json joint_fashion.json
           python studies/joint_search.py --module --seconds 60 --json joint_module.json
Cost:      8 minutes on one thread for digits, 11 for Fashion-MNIST, 15 for the module. What is in `--json` is not
           measured again
Expected:  on cells no way is shown to be better than another; on the module the architecture is worth more than its
           hyperparameters, jointly or first

NAS-Bench-201's cells in a network of 3 cells and 4 channels; trainings of 5 epochs, of 3 on Fashion-MNIST at 14 x 14
(5,000 images). Hyperparameters are learning rate, weight decay, and how far training images are cropped and cut out.
Joint: in one trial, the free score proposes the architecture, and TPE the others (`independent_sampler`). After: half
of the seconds search the architecture with the default recipe, the other half tunes the best one. Only: the cell of six
3 x 3 convolutions, which has the most parameters, is tuned.

`--module`: the transformer of `sequence_transformer.py`, trainings of 4 epochs. Architectures share the weights of an
SNAS that learns meanwhile; `SNASSampler` proposes them, and TPE learning rate and weight decay. Only: the module as it
is outside of a search. Optuna's median pruner ends trainings, as it does where nothing is said.
"""

import argparse
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, cast

import numpy as np
import optuna
import sequence_transformer
import torch
from equal_seconds import interval, kept_in, stop_after
from optuna.artifacts import FileSystemArtifactStore
from optuna.samplers import BaseSampler, PartialFixedSampler, TPESampler
from small_fashion_mnist import small_fashion_mnist

from optuna_nas import (
    SNAS,
    Architecture,
    Augmentation,
    FreeScore,
    GHNSampler,
    ImageData,
    NetworkSpace,
    Recipe,
    Search,
    SNASRecipe,
    SNASSampler,
    TensorData,
    TrainObjective,
    digits,
    nasbench201_skeleton,
    nasbench201_space,
    suggest_float,
    suggest_int,
)
from optuna_nas.data import Data
from optuna_nas.space import ModelSpace
from optuna_nas.training import ImageClassification

WAYS = JOINT, AFTER, ONLY = "joint", "architecture first", "hyperparameters only"


def space_for(data: ImageData) -> NetworkSpace:
    """Return the cells in a small network."""
    return NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 4, data.input_shape, data.classes))


def tuned(data: ImageData, recipe: Recipe) -> tuple[ImageData, Recipe]:
    """Return data and recipe whose learning rate, weight decay and augmentation every trial suggests."""
    augmentation = Augmentation(suggest_int(0, 2), data.augmentation.flip, suggest_int(0, 4))
    rate, decay = suggest_float(3e-3, 0.3, log=True), suggest_float(1e-6, 1e-2, log=True)
    return data.with_augmentation(augmentation), replace(recipe, learning_rate=rate, weight_decay=decay)


def by_free_score(
    space: NetworkSpace, data: ImageData, seed: int, store: FileSystemArtifactStore | None = None
) -> GHNSampler:
    """Return a sampler that proposes the best architectures of a pool, and asks TPE for all other parameters."""
    return GHNSampler(
        space,
        score=FreeScore(space, data, ImageClassification(), seed=seed),
        pool_size=300,
        exploration=0.0,
        trials_per_round=100,
        independent_sampler=TPESampler(seed=seed, n_startup_trials=5),
        artifact_store=store,
        seed=seed,
    )


def search(trials: int = 30, epochs: int = 5, seed: int = 0) -> Search:
    """Search architecture, learning rate, weight decay and augmentation at once."""
    space = space_for(digits(seed))
    data, recipe = tuned(digits(seed), Recipe(epochs=epochs, seed=seed))
    return Search(
        "joint_search", space, data, recipe, sampler=by_free_score(space, data, seed), trials=trials, cpu_threads=1,
        description=__doc__ or "",
    )  # fmt: skip


class Question(NamedTuple):
    """What is searched.

    Args:
        space: Search space.
        data: Data with what is fixed where the architecture alone is searched.
        recipe: Recipe with that.
        suggested: Data and recipe whose hyperparameters every trial suggests.
        proposing: Function of a folder that returns the sampler of architectures, with TPE for all else.
        plain: Architecture whose hyperparameters alone are tuned.
    """

    space: ModelSpace
    data: Data
    recipe: Recipe
    suggested: tuple[Data, Recipe]
    proposing: Callable[[FileSystemArtifactStore], BaseSampler]
    plain: Architecture


def question_of_cells(data: ImageData, seed: int) -> Question:
    """Return the search of a cell by a free score."""
    space, recipe = space_for(data), Recipe(epochs=5 if data.name == "digits" else 3, seed=seed)
    widest = space.architecture({path: ["nor_conv_3x3"] for path in space.core.paths})
    return Question(
        space, data, recipe, tuned(data, recipe), lambda store: by_free_score(space, data, seed, store), widest
    )


def question_of_module(seed: int, seconds: float) -> Question:
    """Return the search of a transformer whose architectures share weights."""
    wanted = sequence_transformer.search(seed=seed)
    space, data = sequence_transformer.SPACE, cast("TensorData", wanted.data)
    recipe = replace(wanted.recipe, epochs=4)
    suggested = replace(
        recipe, learning_rate=suggest_float(3e-4, 0.03, log=True), weight_decay=suggest_float(1e-6, 1e-2, log=True)
    )

    def proposing(store: FileSystemArtifactStore) -> SNASSampler:
        return SNASSampler(
            space,
            SNAS(space, SNASRecipe(batch_size=32, learning_rate=0.05, warmup_fraction=0.3, seed=seed)),
            data=data,
            budget=60,
            budget_seconds=0.4 * seconds,
            n_trials=20,
            trials_per_round=5,
            independent_sampler=TPESampler(seed=seed, n_startup_trials=5),
            artifact_store=store,
            seed=seed,
        )

    first = {path: next(iter(options.values())) for path, options in space.options().items()}
    return Question(space, data, recipe, (data, suggested), proposing, space.architecture(first))


def studied(
    question: Question, data: Data, recipe: Recipe, sampler: BaseSampler, seconds: float, fixed: Architecture | None
) -> optuna.Study:
    """Return the study of a search of so many CPU seconds, which minimises the validation loss."""
    objective = TrainObjective(question.space, data, recipe, objectives=("loss",))
    if fixed is not None:
        sampler = PartialFixedSampler(objective.space.encode(fixed), sampler)
    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, callbacks=[stop_after(seconds)])
    return study


def searched(way: str, question: Question, seconds: float, seed: int, folder: Path) -> tuple[float, int]:
    """Return the lowest validation loss that a way finds, and its number of trials."""
    tpe = TPESampler(seed=seed, n_startup_trials=5)
    proposing = question.proposing(FileSystemArtifactStore(str(folder)))
    if way == ONLY:
        study = studied(question, *question.suggested, tpe, seconds, question.plain)
        return study.best_value, len(study.trials)
    if way == JOINT:
        study = studied(question, *question.suggested, proposing, seconds, None)
        return study.best_value, len(study.trials)
    first = studied(question, question.data, question.recipe, proposing, seconds / 2, None)
    best = question.space.decode(first.best_params)
    study = studied(question, *question.suggested, tpe, seconds / 2, best)
    return min(first.best_value, study.best_value), len(first.trials) + len(study.trials)


def main() -> None:
    """Compare the three ways, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="folder of Fashion-MNIST; digits by default")
    parser.add_argument("--module", action="store_true", help="search a transformer that reads digits row by row")
    parser.add_argument("--seconds", type=float, default=30.0, help="CPU seconds of a search")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where all losses are kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    found: dict[str, list[float]] = kept_in(options.json, {way: [] for way in WAYS})
    with TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            if options.module:
                question = question_of_module(seed, options.seconds)
            else:
                data = small_fashion_mnist(options.images, seed) if options.images else digits(seed)
                question = question_of_cells(data, seed)
            for way in WAYS:
                if len(found[way]) > seed:
                    continue
                loss, trials = searched(way, question, options.seconds, seed, Path(folder))
                found[way].append(loss)
                print(f"seed {seed}, {way}: validation loss {loss:.4f} after {trials} trials", flush=True)
                if options.json is not None:
                    options.json.write_text(json.dumps(found, indent=1))
    print("\nmean validation loss [95 % interval]; against the joint search, seed by seed")
    for way, losses in found.items():
        low, high = interval(losses)
        apart = np.subtract(losses, found[JOINT])
        print(f"  {way:22}{np.mean(losses):.4f} [{low:.4f}, {high:.4f}]   {', '.join(f'{x:+.4f}' for x in apart)}")


if __name__ == "__main__":
    main()

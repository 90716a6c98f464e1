"""Architecture and hyperparameters of the training in one search, or one after the other?

Command:   python studies/joint_search.py            # three seeds; --seeds 5, --trials 30
Cost:      four minutes on 2 CPU cores; the data come with scikit-learn
Expected:  at equal numbers of trials both reach about the same; the joint search needs no guess of a learning rate

Joint: in one trial, SNAS draws the architecture and TPE the learning rate and weight decay (`independent_sampler`),
while the supernet of SNAS is shared by all trials. After: half of the trials search the architecture at the default
rate, the other half tune rate and weight decay of the best one.
"""

import argparse
from dataclasses import replace

import numpy as np
import optuna
import tabular_regression
import torch
from optuna.samplers import TPESampler
from optuna.storages import InMemoryStorage

from optuna_nas import SNAS, Architecture, Recipe, Search, SNASRecipe, SNASSampler, TrainObjective, suggest_float


def tuned(recipe: Recipe) -> Recipe:
    """Return a recipe whose learning rate and weight decay are suggested."""
    rate, decay = suggest_float(3e-4, 3e-2, log=True), suggest_float(1e-5, 1e-1, log=True)
    return replace(recipe, learning_rate=rate, weight_decay=decay)


def sampler(search: Search, trials: int, seed: int) -> SNASSampler:
    """Return a sampler that learns a distribution over architectures while the trials run."""
    snas = SNAS(search.space, SNASRecipe(batch_size=32, relaxation="one_path", seed=seed), search.task)
    inside = TPESampler(seed=seed, n_startup_trials=5)
    return SNASSampler(
        search.space,
        snas,
        data=search.data,
        budget=10 * trials,
        n_trials=trials,
        trials_per_round=5,
        independent_sampler=inside,
        seed=seed,
    )


def search(trials: int = 30, epochs: int = 15, seed: int = 0) -> Search:
    """Search architecture, learning rate and weight decay at once."""
    plain = tabular_regression.search(trials=trials, epochs=epochs, strategy="random", seed=seed)
    joint = replace(
        plain,
        name="joint_search",
        strategy=None,
        directions=None,
        recipe=tuned(plain.recipe),
        description=__doc__ or "",
    )
    return replace(joint, sampler=sampler(plain, trials, seed))


def one_after_the_other(trials: int, seed: int) -> tuple[float, Architecture]:
    """Return the best R2 of a search of the architecture, then of its hyperparameters."""
    plain = search(trials, seed=seed)
    first = replace(plain, recipe=replace(plain.recipe, learning_rate=0.003, weight_decay=3e-4))
    found = studied(replace(first, sampler=sampler(first, trials // 2, seed)), trials // 2)
    architecture = plain.space.decode(found.best_params)
    objective = TrainObjective(plain.space, plain.data, plain.recipe, plain.task)
    study = optuna.create_study(direction="maximize", sampler=TPESampler(seed=seed, n_startup_trials=5))
    fixed = optuna.samplers.PartialFixedSampler(plain.space.encode(architecture), study.sampler)
    study.sampler = fixed
    study.optimize(objective, n_trials=trials - trials // 2)
    return max(found.best_value, study.best_value), architecture


def studied(wanted: Search, trials: int) -> optuna.Study:
    """Return the study of a search that is kept in memory."""
    objective = TrainObjective(wanted.space, wanted.data, wanted.recipe, wanted.task)
    study = optuna.create_study(direction="maximize", storage=InMemoryStorage(), sampler=wanted.sampler)
    study.optimize(objective, n_trials=trials)
    return study


def main() -> None:
    """Compare both, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    together, after = [], []
    for seed in range(options.seeds):
        study = studied(search(options.trials, seed=seed), options.trials)
        together.append(study.best_value)
        value, _ = one_after_the_other(options.trials, seed)
        after.append(value)
        rate = study.best_params["learning_rate"]
        print(
            f"seed {seed}: joint {together[-1]:.4f} (learning rate {rate:.4f}), one after the other {value:.4f}",
            flush=True,
        )
    print(f"mean: joint {np.mean(together):.4f}, one after the other {np.mean(after):.4f}")


if __name__ == "__main__":
    main()

"""Does what survives HM-NAS's masks need no retraining, on handwritten digits?

Command:   python studies/digits_hmnas.py
           python studies/digits_hmnas.py --sparsity 0 0.1 1 --epochs 13   # what a pressure on masks does
           optuna-nas run studies/digits_hmnas.py      # the study alone: masks learn and stop trials meanwhile
Cost:      about two minutes on 2 CPU cores; nothing to download
Expected:  an eighth of the weights cut (of ops none: they all help on digits), 0.975 after the first epoch of
           fine-tuning, 0.98 in the end; the same architecture from scratch comes to 0.94

The pipeline of HM-NAS (Yan et al. 2019) as a study: a supernet and its masks are trained first; what survives is the
first trial, fine-tuned; the same architecture from scratch and random ones follow, under the HMNASPruner.
"""

import argparse
import itertools
import time
from dataclasses import replace

import optuna

from optuna_nas import (
    HMNAS,
    CellKind,
    CellSpace,
    HMNASPruner,
    HMNASRecipe,
    ImageData,
    NetworkSpace,
    Recipe,
    Search,
    Skeleton,
    TrainObjective,
    digits,
    run,
    train,
)
from optuna_nas.search.opening import open_study
from optuna_nas.storage.by_architecture import enqueue_architecture, trial_of
from optuna_nas.training import evaluate

SPACE = CellSpace(
    ("skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"), 3, 1, (CellKind("cell", outputs=(3,)),), max_ops=4
)
HMNAS_EPOCHS = 104.0  # 72 of the split for weights, 32 of masks


def make_hmnas(data: ImageData, seed: int, sparsity: float = 0.0) -> HMNAS:
    """Return a model whose masks learn in a third of the epochs."""
    frame = Skeleton(("cell", "residual_reduction", "cell"), 8, data.input_shape, data.classes, affine=False)
    recipe = HMNASRecipe(batch_size=32, mask_fraction=4 / 13, seed=seed, sparsity_weight=sparsity)
    return HMNAS(NetworkSpace(SPACE, frame), recipe)


def search(trials: int = 20, epochs: int = 8, hmnas_epochs: float = HMNAS_EPOCHS, seed: int = 0) -> Search:
    """Train random cells; the masks learn in the first trial and are refined in three rounds."""
    data = digits(seed=seed)
    hmnas = make_hmnas(data, seed)
    space = hmnas.space
    recipe = Recipe(epochs=epochs, batch_size=32, learning_rate=0.025, warmup_fraction=0.1, seed=seed)
    return Search(
        name="digits-hmnas",
        space=space,
        objective=TrainObjective(space, data, recipe),
        data=data,
        sampler=optuna.samplers.RandomSampler(seed),
        pruner=HMNASPruner(hmnas, data=data, budget=hmnas_epochs, trials_per_round=5, seed=seed),
        trials=trials,
        cpu_threads=1,
        description=__doc__ or "",
    )


def compare_sparsities(weights: list[float], seeds: range, epochs: float) -> None:
    """Print what falls under every sparsity weight, and the accuracies of what is left, masked and fine-tuned."""
    for seed, weight in itertools.product(seeds, weights):
        data, started = digits(seed=seed), time.process_time()
        hmnas = make_hmnas(data, seed, weight)
        hmnas.fit(data, epochs, show_progress=False)
        derived, kept = hmnas.derive(), hmnas.masks.shares()
        network = hmnas.compact(derived)
        masked = evaluate(network, data, "report").metric
        tuned = train(network, data, Recipe(epochs=4, batch_size=32, learning_rate=0.025, seed=seed)).last
        print(
            f"seed {seed}, sparsity {weight:g}: ops fell {1 - kept['ops']:.3f}, edges {1 - kept['edges']:.3f}, "
            f"weights {1 - kept['weights']:.3f}; {derived.params} parameters; masked {masked:.4f}, fine-tuned "
            f"{tuned.validation_metric:.4f}; {time.process_time() - started:.0f} CPU s",
            flush=True,
        )


def main() -> None:
    """Fit the masks, fine-tune what survives, train it from scratch, and random cells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--sparsity", type=float, nargs="*", default=[], help="weights to compare instead")
    parser.add_argument("--seeds", type=int, default=2, help="of the comparison")
    parser.add_argument("--epochs", type=float, default=HMNAS_EPOCHS, help="of the comparison")
    options = parser.parse_args()
    if options.sparsity:
        compare_sparsities(options.sparsity, range(options.seed, options.seed + options.seeds), options.epochs)
        return
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    wanted = search(options.trials, seed=options.seed)
    objective, pruner = wanted.objective, wanted.pruner
    assert isinstance(objective, TrainObjective)
    assert isinstance(pruner, HMNASPruner)
    hmnas = pruner.model
    folder = wanted.resolved_folder() / "pipeline"
    hmnas.fit(objective.data, HMNAS_EPOCHS, checkpoint=folder / "hmnas.safetensors")
    derived = hmnas.derive()
    last = hmnas.records[-1].metrics
    print(f"survives: {derived.architecture.summary}", flush=True)
    print("edges {edges:.0%}, ops {ops:.0%}, weights {weights:.0%} kept by the masks".format(**last))
    pipeline = replace(
        wanted,
        name=f"{wanted.name}-pipeline",
        folder=folder,
        objective=replace(objective, initial_weights=hmnas.inherited, reuse_duplicates=False),
        pruner=HMNASPruner(hmnas, seed=options.seed),
    )
    enqueue_architecture(open_study(pipeline), derived.architecture)
    result = run(pipeline)
    if result.interrupted:
        print(f"interrupted with {result.missing} of {pipeline.trials} trials to go; the same command goes on")
        return
    fine_tuned = trial_of(result.study, derived.architecture)
    if fine_tuned is None:
        print("the fine-tuning has failed; the same command tries it again")
        return
    print(f"fine-tuned: {fine_tuned.value:.4f}, after one epoch {fine_tuned.intermediate_values[1]:.4f}")
    others = [trial.value for trial in result.study.trials if trial != fine_tuned and trial.value is not None]
    if others:
        print(f"random cells: best {max(others):.4f}, mean {sum(others) / len(others):.4f}")
    folder = wanted.resolved_folder() / "scratch"
    scratch = replace(pipeline, name=f"{wanted.name}-scratch", folder=folder, objective=objective, trials=1)
    enqueue_architecture(open_study(scratch), derived.architecture)
    result = run(scratch)
    if result.interrupted:
        print("interrupted; the same command goes on")
        return
    trial = trial_of(result.study, derived.architecture)
    if trial is None:
        print("the training from scratch has failed; the same command tries it again")
        return
    print(f"the same from scratch: {trial.value:.4f}, after one epoch {trial.intermediate_values[1]:.4f}")


if __name__ == "__main__":
    main()

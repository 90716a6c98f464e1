"""Which network for Fashion-MNIST answers well whenever it is stopped?

Command:   optuna-nas run studies/anytime_fashion.py       # downloads Fashion-MNIST (30 MB)
           optuna-nas run studies/anytime_fashion.py --set strategy=random    # ten random networks, to compare
           python studies/anytime_fashion.py --images FOLDER    # both, three fixed networks, and pictures
Cost:      about ten minutes on 2 CPU cores, all strategies twenty-five
Expected:  0.67 on average over all budgets up to 0.8 million multiply-adds, where random ones come to 0.63
           and fixed ones to 0.51

The space of GHN's section 5.2 (Zhang et al. 2019): cells of 24, 16 and 8 nodes, a scale and an early exit for every
node. A hypernetwork that has learned from smaller networks scores a pool by the area under the generated networks'
curve of accuracy against multiply-adds; the ten best are trained. Fixed networks are after MSDNet (`multi_scale.py`),
with an exit after every layer, every second and every fourth.
"""

import argparse

import numpy as np
import optuna
from multi_scale import EXITS_EVERY, enqueue_fixed
from small_fashion_mnist import small_fashion_mnist

from optuna_nas import (
    GHN,
    GHNRecipe,
    GHNSampler,
    NetworkSpace,
    Recipe,
    Search,
    anytime_skeleton,
    anytime_space,
    plot_anytime,
    plot_architecture,
    run,
)

STRATEGIES = GHN_BEST, RANDOM, FIXED = ("ghn", "random", "fixed")
BUDGET = 0.8e6  # multiply-adds; the median random network takes 1.5e6 to its end


def search(
    images: str = "", strategy: str = "ghn", trials: int = 10, epochs: int = 5, ghn_epochs: float = 15, seed: int = 0
) -> Search:
    """Train the ten best of 300 networks, ten random ones, or the fixed ones, which `main` enqueues."""
    if strategy not in STRATEGIES:
        raise ValueError(f"`strategy` must be one of {STRATEGIES} but got {strategy!r}.")
    data = small_fashion_mnist(images, seed)
    skeleton = anytime_skeleton(3, 8, data.input_shape, data.classes, budget=BUDGET)
    space, smaller = NetworkSpace(anytime_space(), skeleton), NetworkSpace(anytime_space((8, 6, 4)), skeleton)
    ghn = GHN(space, GHNRecipe(phases=2, seed=seed), training_space=smaller)
    best_of_pool = GHNSampler(
        space,
        ghn,
        data=data,
        budget=ghn_epochs,
        pool_size=300,
        trials_per_round=max(1, trials),
        exploration=0.0,
        seed=seed,
    )
    return Search(
        name=f"anytime-fashion-{strategy}",
        space=space,
        data=data,
        # A mean over some 25 exits has a small gradient, which Adam does not mind.
        recipe=Recipe(epochs=epochs, optimizer="adamw", learning_rate=0.015, warmup_fraction=0.1, seed=seed),
        sampler=best_of_pool if strategy == GHN_BEST else optuna.samplers.RandomSampler(seed),
        pruner=optuna.pruners.NopPruner(),
        trials=len(EXITS_EVERY) if strategy == FIXED else trials,
        description=__doc__ or "",
    )


def main() -> None:
    """Run all strategies and draw what the networks answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="", help="folder of torchvision's FashionMNIST; downloaded by default")
    parser.add_argument("--strategy", action="append", choices=STRATEGIES, help="repeatable; all by default")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # 192 parameters a trial
    for strategy in options.strategy or STRATEGIES:
        wanted = search(options.images, strategy, seed=options.seed)
        if strategy == FIXED:
            enqueue_fixed(wanted)
        result = run(wanted)
        if result.interrupted:
            print(f"interrupted with {result.missing} of {wanted.trials} trials to go; the same command goes on")
            return
        values = [trial.value for trial in result.study.trials if trial.value is not None]
        folder = wanted.resolved_folder()
        plot_anytime(result.study).savefig(folder / "anytime.png")
        plot_architecture(wanted.space.decode(result.study.best_trial.params)).savefig(folder / "best.png")
        print(f"{strategy}: mean {np.mean(values):.4f}, best {max(values):.4f}; pictures in {folder}", flush=True)


if __name__ == "__main__":
    main()

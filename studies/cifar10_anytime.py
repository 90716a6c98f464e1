"""Which network for CIFAR-10 answers best whenever it is stopped, in the paper's own setting (section 5.2)?

Command:   python studies/cifar10_anytime.py             # the ten best by a hypernetwork, ten random, three fixed ones
           python studies/cifar10_anytime.py --networks best    # those of the hypernetwork alone
           python studies/cifar10_anytime.py --smoke     # the same steps on a few digits, seconds on a CPU
           python studies/cifar10_anytime.py --until 600 # ten minutes of it; the same command goes on
Cost:      some hours of a GPU for the hypernetwork, and 23 trainings of 300 epochs
Expected:  the best of ten above the fixed ones at every budget, and all ten above random ones on average (GHN, Zhang et
           al. 2019, figures 3 and 4, which give no numbers); not run here, for want of a GPU

Three cells of 24, 16 and 8 nodes; every node chooses its scale, and whether it is an exit. A hypernetwork that has
learned from smaller networks scores 1,000 of them by the area under the curve of accuracy against multiply-adds. The
fixed ones are after MSDNet (`multi_scale.py`), with an exit after every layer, every second and every fourth.

As in the paper: cells of 24, 16 and 8 nodes whose scales and exits are chosen; the area under the predicted curve as
criterion; a GHN that generates all kernels, five propagations there and back; ten of 1,000 and ten random networks;
final trainings by MSDNet's recipe (Huang et al. 2018: 300 epochs, SGD with momentum 0.9 and weight decay 1e-4, batches
of 64, learning rate 0.1, crop and flip).

Chosen where its main text is silent: 32 channels, scales 1, 2 and 4, budgets up to 100 million multiply-adds, cells of
8, 6 and 4 nodes to learn from, 200 epochs of the hypernetwork, exits of equal weight in the loss, and for the
hypernetwork what `cifar10_ghn.py` lists.

Other than in the paper: the learning rate of a final training falls along a cosine, where MSDNet's falls in two steps;
a node of a fixed network reads two others, where MSDNet's read all before; scores are of 512 of the 5,000 validation
images; embeddings are normalised over a network as in `cifar10_ghn.py`; bfloat16 on a GPU that has it.
"""

import argparse

import numpy as np
import optuna
import torch
from multi_scale import EXITS_EVERY, enqueue_fixed
from paper_settings import GOES_ON, ends_after, hand_over, search_data

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
    run,
)

REPORTING = 5000  # images, as in the searches for blocks
BUDGET = 100e6
NETWORKS = BEST, RANDOM, FIXED = ("best", "random", "fixed")


def search(networks: str = BEST, smoke: bool = False, device: str = "auto", seed: int = 0) -> Search:
    """Train the ten best of a pool, ten random networks, or the fixed ones."""
    if networks not in NETWORKS:
        raise ValueError(f"`networks` must be one of {NETWORKS} but got {networks!r}.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    data = search_data(smoke, seed, REPORTING).to(device)
    nodes, smaller, channels, budget = ((6, 4, 2), (3, 2, 1), 4, 1e5) if smoke else ((24, 16, 8), (8, 6, 4), 32, BUDGET)
    skeleton = anytime_skeleton(3, channels, data.input_shape, data.classes, budget=budget)
    space, learned = (NetworkSpace(anytime_space(cells), skeleton) for cells in (nodes, smaller))
    trials = len(EXITS_EVERY) if networks == FIXED else 2 if smoke else 10
    ghn = GHN(space, GHNRecipe(phases=1 if smoke else 5, freeze_fraction=0.0, seed=seed), training_space=learned)
    by_area = GHNSampler(
        space,
        ghn,
        data=data,
        budget=1 if smoke else 200,
        pool_size=10 if smoke else 1000,
        trials_per_round=trials,
        exploration=0.0,
        seed=seed,
    )
    return Search(
        name=f"cifar10-anytime-{networks}{'-smoke' * smoke}",
        space=space,
        data=data,
        recipe=Recipe(
            epochs=2 if smoke else 300, batch_size=64, learning_rate=0.1, momentum=0.9, weight_decay=1e-4, seed=seed
        ),
        sampler=by_area if networks == BEST else optuna.samplers.RandomSampler(seed),
        pruner=optuna.pruners.NopPruner(),
        trials=trials,
        description=__doc__ or "",
    )


def main() -> None:
    """Train all networks, and draw what they answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", action="append", choices=NETWORKS, help="repeatable; all by default")
    parser.add_argument("--smoke", action="store_true", help="tiny digits instead of CIFAR-10")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--until", type=float, metavar="SECONDS", help="end cleanly then; the same command goes on")
    options = parser.parse_args()
    over = ends_after(options.until)
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # 192 parameters a trial
    for networks in options.networks or NETWORKS:
        if over():
            print(GOES_ON)
            return
        wanted = search(networks, options.smoke, options.device, options.seed)
        if networks == FIXED:
            enqueue_fixed(wanted)
        result = run(wanted)
        if result.interrupted:
            print(GOES_ON)
            return
        values = [trial.value for trial in result.study.trials if trial.value is not None]
        folder = wanted.resolved_folder()
        plot_anytime(result.study).savefig(folder / "anytime.png")
        print(
            f"{networks}: {len(values)} networks, accuracy over all budgets {np.mean(values):.4f}, best "
            f"{max(values):.4f}; picture in {folder}",
            flush=True,
        )
        if result.network is not None:
            hand_over(result.network, folder, result.test_metric, "test error over all budgets")


if __name__ == "__main__":
    main()

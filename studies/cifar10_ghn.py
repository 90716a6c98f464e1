"""Which block does a hypernetwork find on CIFAR-10, in the paper's own setting ("GHN Top-Best")?

Command:   python studies/cifar10_ghn.py                  # search, brief trainings, the best one in full
           python studies/cifar10_ghn.py --smoke          # the same steps on tiny digits, a minute on a CPU
           optuna-nas run studies/cifar10_ghn.py          # the search and the brief trainings alone
Cost:      0.84 GPU days in all for the search (the paper's figure), and a final training of 600 epochs
Expected:  a test error of about 2.8 % with 5.7 M parameters (GHN, Zhang et al. 2019, table 2)

Stage one trains a GHN on blocks of 7 nodes, scores 1,000 blocks of 17 nodes and trains the ten best briefly; stage two
trains the best of the ten in full.
"""

import argparse

import torch
from cifar10_final import search_data, train_in_full, with_cutout

from optuna_nas import (
    GHN,
    GHNRecipe,
    GHNSampler,
    NetworkSpace,
    Recipe,
    Search,
    Skeleton,
    ghn_skeleton,
    ghn_space,
    plot_architecture,
    plot_surrogate,
    run,
)

REPORTING = 5000  # images, as in the paper


def search(smoke: bool = False, device: str = "auto", seed: int = 0) -> Search:
    """Train the ten best of 1,000 blocks briefly."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    data = search_data(smoke, seed, REPORTING).to(device)
    frame = skeleton(smoke, data.input_shape, data.classes)
    space, small = (NetworkSpace(ghn_space(nodes), frame) for nodes in ((4, 2) if smoke else (17, 7)))
    ghn = GHN(space, GHNRecipe(phases=1 if smoke else 5, seed=seed), training_space=small)
    trials = 5 if smoke else 10
    return Search(
        name="cifar10-ghn-smoke" if smoke else "cifar10-ghn",
        space=space,
        data=data,
        recipe=Recipe(epochs=1 if smoke else 50, seed=seed),
        sampler=GHNSampler(
            space,
            ghn,
            data=data,
            budget=1 if smoke else 200,
            pool_size=20 if smoke else 1000,
            trials_per_round=trials,
            exploration=0.0,
            seed=seed,
        ),
        trials=trials,
        description=__doc__ or "",
    )


def skeleton(smoke: bool, input_shape: tuple[int, int, int], classes: int) -> Skeleton:
    """Return the paper's network: 18 blocks of 32 channels."""
    blocks, channels = (3, 4) if smoke else (18, 32)
    return ghn_skeleton(blocks, channels, input_shape, classes)


def main() -> None:
    """Search, train the ten best briefly, then the best in full, and judge it on the test images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny digits instead of CIFAR-10")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    study = search(options.smoke, options.device, options.seed)
    result = run(study)
    if result.interrupted:
        print(f"interrupted with {result.missing} of {study.trials} trials to go; the same command goes on")
        return
    folder, data = study.resolved_folder(), study.data
    block = study.space.decode(result.study.best_trial.params)
    plot_surrogate(result.study).savefig(folder / "surrogate.png")
    plot_architecture(block).savefig(folder / "best_block.png")
    (folder / "best_block.json").write_text(block.to_json())
    print(f"best block: {block.summary}\npictures in {folder}", flush=True)
    recipe = Recipe(epochs=3 if options.smoke else 600, seed=options.seed)
    if not options.smoke:
        data = with_cutout(data)
    train_in_full(block.build(seed=recipe.seed), recipe, data, data.device, folder)


if __name__ == "__main__":
    main()

"""Which block does a hypernetwork find on CIFAR-10, in the paper's own setting ("GHN Top-Best")?

Command:   python studies/cifar10_ghn.py                  # Top-Best, with cutout
           python studies/cifar10_ghn.py --protocol top --protocol random    # table 1, without
           python studies/cifar10_ghn.py --smoke          # the same steps on tiny digits, some minutes on a CPU
           python studies/cifar10_ghn.py --until 600     # ten minutes of it; the same command goes on
           optuna-nas surrogate studies/cifar10_ghn.py    # the same by the command line, all protocols
Cost:      0.84 GPU days in all for the search (the paper's figure), and five final trainings of 600 epochs
Expected:  a test error of about 2.8 % with 5.7 M parameters (GHN, Zhang et al. 2019, table 2)

A GHN learns on blocks of 7 nodes; 1,000 blocks of 17 nodes are scored on the 5,000 validation images, the ten best are
trained briefly, and the best of them five times in full. Everything goes on where it was killed.

Not in the paper's main text, and chosen here: 200 epochs of the GHN, 50 of a brief and 600 of a full training, the
recipe of both (that of DARTS without auxiliary head), and the law of random blocks (docs/ghn.md).
"""

import argparse

import torch
from paper_settings import ends_after, search_data, with_cutout

from optuna_nas import (
    GHN,
    GHNRecipe,
    GHNSampler,
    NetworkSpace,
    Recipe,
    Search,
    Skeleton,
    SurrogateSearch,
    ghn_skeleton,
    ghn_space,
    plot_architecture,
    plot_surrogate,
)

REPORTING = 5000  # images, as in the paper


def search(smoke: bool = False, device: str = "auto", seed: int = 0, cutout: bool = False) -> Search:
    """Score 1,000 blocks; its trials, in a run of its own, are full trainings of the best."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    data = search_data(smoke, seed, REPORTING).to(device)
    frame = skeleton(smoke, data.input_shape, data.classes)
    space, small = (NetworkSpace(ghn_space(nodes), frame) for nodes in ((4, 2) if smoke else (17, 7)))
    ghn = GHN(space, GHNRecipe(phases=1 if smoke else 5, seed=seed), training_space=small)
    trials = 3 if smoke else 10
    return Search(
        name=f"cifar10-ghn{'-cutout' * cutout}{'-smoke' * smoke}",
        space=space,
        data=with_cutout(data) if cutout and not smoke else data,
        recipe=Recipe(epochs=2 if smoke else 600, seed=seed),
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
    """Run the paper's protocols, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--protocol", action="append", help="top, top-best or random; repeatable")
    parser.add_argument("--smoke", action="store_true", help="tiny digits instead of CIFAR-10")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--until", type=float, metavar="SECONDS", help="end cleanly then; the same command goes on")
    options = parser.parse_args()
    ends_after(options.until)
    protocols = tuple(options.protocol or ("top-best",))
    few = {"n_best": 2, "n_random": 2, "n_repeats": 2} if options.smoke else {"brief_epochs": 50}
    study = search(options.smoke, options.device, options.seed, cutout="top-best" in protocols)
    planned = SurrogateSearch(study, protocols, **few)
    result = planned.run()
    if result is None:
        print("interrupted; the same command goes on")
        return
    for row in (result.headings, *(row.cells() for row in result.protocols)):
        print(" | ".join(row))
    plot_surrogate(result.study).savefig(planned.folder / "surrogate.png")
    plot_architecture(result.best).savefig(planned.folder / "best_block.png")
    (planned.folder / "best_block.json").write_text(result.best.to_json())
    print(f"best block: {result.best.summary}\nnetwork: {result.network}\npictures in {planned.folder}", flush=True)


if __name__ == "__main__":
    main()

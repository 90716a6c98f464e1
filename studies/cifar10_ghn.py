"""Which block does a hypernetwork find on CIFAR-10, in the paper's own setting ("GHN Top-Best")?

Command:   python studies/cifar10_ghn.py                  # table 2: Top-Best, with cutout
           python studies/cifar10_ghn.py --protocol top --protocol random    # table 1: Top and Random, without
           python studies/cifar10_ghn.py --smoke          # the same steps on a few digits, seconds on a CPU
           python studies/cifar10_ghn.py --until 600      # ten minutes of it; the same command goes on
           optuna-nas surrogate studies/cifar10_ghn.py --protocol top-best --set cutout=true      # table 2, the same
           optuna-nas surrogate studies/cifar10_ghn.py --protocol top --protocol random           # table 1, the same
Cost:      0.42 GPU days for the search of table 1 and 0.84 for that of table 2 (the paper's figures); 20 and five final
           trainings of 600 epochs
Expected:  a test error of about 2.8 % with 5.7 M parameters, 4.3 % with 5.1 M without cutout (GHN, Zhang et al. 2019,
           tables 1 and 2); not run here, for want of a GPU

Everything goes on where it was killed.

As in the paper: networks of 18 blocks and 32 channels, reductions after the sixth and the twelfth; a GHN that learns on
blocks of 7 nodes, embeddings, GRU and message MLP of 32, a decoder of 64 that generates all kernels, five propagations
there and back, embeddings passed from block to block, Adam; 1,000 blocks of 17 nodes, scored on 5,000 validation
images; Top: the ten best trained to the end; Top-Best: the ten trained briefly, the best of them five times to the end,
with cutout; Random: ten random blocks trained to the end.

Chosen where its main text is silent: the eight ops and the law of random blocks (docs/ghn.md); 200 epochs of the GHN in
batches of 64, one block a step, a learning rate of 0.001, weight decay 1e-5 and gradients clipped at 5 (those of the
public GHN-1 where it has them); how pieces of a kernel come to differ: each multiplies the features of its node by a
code of its own; scale and shift of norms are generated, scores are by the statistics of the batch; 600 epochs of a
final and 60 of a brief training, SGD from 0.025 along a cosine with momentum 0.9 and weight decay 3e-4 in batches of 64
(DARTS' final trainings have 96), without drop-path and auxiliary head; cutout in the brief trainings as well.

Other than in the paper: embeddings are normalised over the nodes of a network before they are decoded
(`normalization="network"`); the gates of the GRU begin by remembering; bfloat16 on a GPU that has it.
"""

import argparse
from collections.abc import Sequence

import torch
from paper_settings import ends_after, hand_over, search_data, with_cutout

from optuna_nas import (
    GHN,
    GHNRecipe,
    GHNSampler,
    NetworkSpace,
    Recipe,
    Search,
    Skeleton,
    SurrogateResult,
    SurrogateSearch,
    ghn_skeleton,
    ghn_space,
    load_network,
    plot_architecture,
    plot_surrogate,
)
from optuna_nas.training import evaluate

REPORTING = 5000  # images, as in the paper


def search(smoke: bool = False, device: str = "auto", seed: int = 0, cutout: bool = False) -> Search:
    """Score 1,000 blocks; its trials, in a run of its own, are full trainings of the best, with cutout or without."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    data = search_data(smoke, seed, REPORTING).to(device)
    frame = skeleton(smoke, data.input_shape, data.classes)
    space, small = (NetworkSpace(ghn_space(nodes), frame) for nodes in ((4, 2) if smoke else (17, 7)))
    ghn = GHN(space, GHNRecipe(phases=1 if smoke else 5, freeze_fraction=0.0, seed=seed), training_space=small)
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


def surrogate_searches(protocols: Sequence[str], smoke: bool, device: str, seed: int) -> list[SurrogateSearch]:
    """Return the searches of the paper's tables that have these protocols: Top-Best with cutout, others without."""
    few = {"n_best": 2, "n_random": 2, "n_repeats": 2} if smoke else {}
    tables = ([name for name in protocols if (name == "top-best") == cutout] for cutout in (False, True))
    return [
        SurrogateSearch(search(smoke, device, seed, cutout), tuple(names), **few)
        for cutout, names in enumerate(tables)
        if names
    ]


def show(planned: SurrogateSearch, result: SurrogateResult) -> None:
    """Print the table, draw the scores and the best block, export the best network."""
    for row in (result.headings, *(row.cells() for row in result.protocols)):
        print(" | ".join(row))
    plot_surrogate(result.study).savefig(planned.folder / "surrogate.png")
    plot_architecture(result.best).savefig(planned.folder / "best_block.png")
    (planned.folder / "best_block.json").write_text(result.best.to_json())
    print(f"best block: {result.best.summary}\npictures in {planned.folder}", flush=True)
    if result.network is not None and planned.search.data is not None:
        network = load_network(result.network, str(planned.search.data.device))
        hand_over(result.network, planned.folder, evaluate(network, planned.search.data, "test").metric)


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
    for planned in surrogate_searches(options.protocol or ["top-best"], options.smoke, options.device, options.seed):
        result = planned.run()
        if result is None:
            print("interrupted; the same command goes on")
            return
        show(planned, result)


if __name__ == "__main__":
    main()

"""What do HM-NAS's masks cut, what does fine-tuning win back, and what are inherited weights worth, on a CPU?

Command:   python studies/fashion_hmnas.py --images ../shared/data/fashion_mnist   # or without, to download (30 MB)
Cost:      ten minutes a seed on one CPU core; `--epochs 2 --tune 1 --seeds 1` in two
Expected:  a table of parameters and accuracies along the pipeline of the paper (its table 2 and section 4.3), and how
           alike the weights of edges are from seed to seed (its figure 7)

Fashion-MNIST at 14 x 14; two kinds of cells of 9 edges and 5 ops, three cells in the paper's order. Nothing is chosen
by the accuracies that are reported.
"""

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from bilevel import bilevel
from scipy.stats import spearmanr
from small_fashion_mnist import small_fashion_mnist

from optuna_nas import (
    HMNAS,
    CellSpace,
    DiscreteNetwork,
    HMNASRecipe,
    ImageData,
    NetworkSpace,
    Recipe,
    Skeleton,
    plot_edge_weights,
    plot_family,
    plot_masks,
    train,
)
from optuna_nas.oneshot.hmnas import Derived
from optuna_nas.training import evaluate

SPACE = CellSpace(("max_pool_3x3", "avg_pool_3x3", "skip_connect", "nor_conv_1x1", "nor_conv_3x3"), nodes=3, max_ops=5)
FINE_TUNING, SCRATCH = 0.025, (0.025, 0.1)
"""Learning rates; from scratch the better of two."""


def skeleton(data: ImageData) -> Skeleton:
    """Return the paper's frame of three cells, with 8 channels."""
    return Skeleton(("normal", "reduction", "reduction"), 8, data.input_shape, data.classes, affine=False)


def curve(network: DiscreteNetwork, data: ImageData, recipe: Recipe) -> list[float]:
    """Return the accuracy after every epoch of a training."""
    found: list[float] = []
    train(network, data, recipe, on_epoch=lambda result: found.append(result.validation_metric))
    return found


def pipeline(hmnas: HMNAS, data: ImageData, derived: Derived, epochs: int) -> dict[str, float]:
    """Fine-tune what survives, and train its architecture from scratch."""
    whole = hmnas.derive(-math.inf)
    recipe = Recipe(epochs=epochs, learning_rate=FINE_TUNING, seed=hmnas.recipe.seed)
    tuned = curve(hmnas.compact(derived), data, recipe)
    others = [
        curve(DiscreteNetwork(derived.architecture, seed=recipe.seed), data, replace(recipe, learning_rate=rate))
        for rate in SCRATCH
    ]
    scratch = max(others, key=lambda values: values[-1])
    reached = [epoch for epoch, value in enumerate(tuned, start=1) if value >= scratch[-1]]
    return {
        "threshold": derived.threshold,
        "parameters kept": derived.params / whole.params,
        "supernet": evaluate(hmnas.compact(whole), data, "report").metric,
        "masked": evaluate(hmnas.compact(derived), data, "report").metric,
        "fine-tuned": tuned[-1],
        "from scratch": scratch[-1],
        "epochs to scratch": float(reached[0]) if reached else math.inf,
    }


def main() -> None:
    """Run the pipeline with every seed, print tables, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="", help="folder of torchvision's FashionMNIST; downloaded by default")
    parser.add_argument("--epochs", type=float, default=19.0, help="of the supernet and its masks")
    parser.add_argument("--sparsity", type=float, default=0.0, help="weight of the penalty on ops and edges (paper: 0)")
    parser.add_argument("--tune", type=int, default=10, help="epochs of fine-tuning, and from scratch")
    parser.add_argument("--keep", type=float, default=0.7, help="share of the parameters of a smaller member")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--more-edges", type=int, default=2, help="seeds more of which only edges are compared")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("fashion_hmnas"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, float]]] = {}
    models = []
    for seed in range(options.seeds + options.more_edges):
        data = bilevel(small_fashion_mnist(options.images, seed))
        recipe = HMNASRecipe(batch_size=64, mask_fraction=4 / 19, seed=seed, sparsity_weight=options.sparsity)
        hmnas = HMNAS(NetworkSpace(SPACE, skeleton(data)), recipe)
        started = time.process_time()
        hmnas.fit(data, options.epochs, checkpoint=options.out / f"hmnas-{seed}.safetensors")
        last = hmnas.records[-1].metrics
        print(f"seed {seed}: {time.process_time() - started:.0f} CPU s; kept {last}", flush=True)
        models.append(hmnas)
        if seed >= options.seeds:
            continue
        whole = hmnas.derive(-math.inf).params
        family = hmnas.family(16)
        smaller = next((member for member in family if member.params <= options.keep * whole), family[-1])
        for name, derived in (("recipe's threshold", family[0]), (f"keeps {options.keep:.0%}", smaller)):
            row = pipeline(hmnas, data, derived, options.tune)
            rows.setdefault(name, []).append(row)
            print(f"  {name:20s}" + "".join(f"{key} {value:.4f}  " for key, value in row.items()), flush=True)
        plot_masks(hmnas).savefig(options.out / f"masks-{seed}.png")
        plot_masks(hmnas, smaller.threshold).savefig(options.out / f"smaller-{seed}.png")
        plot_family(hmnas).savefig(options.out / f"family-{seed}.png")
    edges_ME = np.array([list(model.edge_weights.values()) for model in models])
    pairs = [float(spearmanr(edges_ME[i], edges_ME[j]).statistic) for i in range(len(models)) for j in range(i)]
    means = {
        name: {key: float(np.mean([row[key] for row in found])) for key in found[0]} for name, found in rows.items()
    }
    for name, row in means.items():
        print(f"mean, {name:20s}" + "".join(f"{key} {value:.4f}  " for key, value in row.items()))
    if pairs:
        plot_edge_weights(models).savefig(options.out / "edge_weights.png")
        print(
            f"edges between seeds, rank correlation: mean {np.mean(pairs):.3f} ({min(pairs):.3f} to {max(pairs):.3f})"
        )
    (options.out / "result.json").write_text(json.dumps({"rows": rows, "pairs": pairs, "edges": edges_ME.tolist()}))


if __name__ == "__main__":
    main()

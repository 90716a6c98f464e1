"""What do the three papers claim, and what do their small twins on handwritten digits show?

Command:   python studies/headline.py                    # all three; --papers SNAS for one, --seeds 3
Cost:      five CPU minutes a seed; the data come with scikit-learn
Expected:  an SNAS' child keeps the accuracy of its supernet where that of a DARTS-style mixture does not; what a GHN
           ranks first is better than random; what HM-NAS' masks leave is better fine-tuned than trained from scratch

SNAS (Xie et al. 2019, table 1): 8 cells of 16 channels and 150 epochs became 3 of 8 and 14. GHN (Zhang et al. 2019,
table 1): ten of 1,000 networks of 18 blocks and 32 channels became ten of 300 of 3 cells and 8 channels. HM-NAS (Yan et
al. 2019, section 4): 3 cells of 36 channels, 120 epochs and 200 of fine-tuning became 3 of 8, 104 and 8; the paper's
network from scratch had 600 epochs, ours as many as the fine-tuning. In place of CIFAR-10's 50,000 images of 32 x 32
there are 1,797 of 8 x 8, and NAS-Bench-201's cells in place of DARTS' and of the paper's blocks. `cifar10_snas.py`,
`cifar10_ghn.py` and `cifar10_hmnas.py` have the papers' own settings.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import digits_ghn
import digits_hmnas
import numpy as np
import optuna
import torch
from optuna.storages import InMemoryStorage

from optuna_nas import (
    SNAS,
    NetworkSpace,
    Recipe,
    SNASRecipe,
    SurrogateSearch,
    digits,
    nasbench201_skeleton,
    nasbench201_space,
    train,
)
from optuna_nas.training import evaluate

Rows = dict[str, tuple[str, float]]
"""The paper's figure and ours, in %, by what they are of."""


def snas(seed: int) -> Rows:
    """Return the accuracies of supernets and of their children with inherited weights."""
    data = digits(seed)
    frame = nasbench201_skeleton(1, 8, data.input_shape, data.classes, affine=False)
    rows: Rows = {}
    for relaxation, name, whole, child in (
        ("concrete", "SNAS", "88.54", "90.67"),
        ("softmax", "DARTS-style mixture", "87.67", "54.66"),
    ):
        recipe = SNASRecipe(relaxation=relaxation, warmup_fraction=0.3, seed=seed)
        model = SNAS(NetworkSpace(nasbench201_space(), frame), recipe)
        model.fit(data, 14, show_progress=False)
        rows[f"{name}: supernet"] = whole, 100 * model.evaluate(data)
        rows[f"{name}: child, not retrained"] = child, 100 * model.evaluate(data, architecture=model.most_likely())
    return rows


def ghn(seed: int) -> Rows:
    """Return the mean accuracies of the best by a hypernetwork's score, and of random architectures."""
    with TemporaryDirectory() as folder:
        search = replace(
            digits_ghn.search(seed=seed),
            storage=InMemoryStorage(),
            tracking=None,
            pictures=False,
            folder=Path(folder),
        )
        result = SurrogateSearch(search, ("top", "random"), n_best=10, n_random=10).run()
    if result is None:
        raise SystemExit("interrupted")
    top, random = (100 * float(np.mean(row.values)) for row in result.protocols)
    return {"GHN: mean of the best ten": ("95.7", top), "GHN: mean of ten random": ("94.6", random)}


def hmnas(seed: int) -> Rows:
    """Return the accuracies of what masks leave, fine-tuned and trained from scratch for as long."""
    data = digits(seed)
    model = digits_hmnas.make_hmnas(data, seed)
    model.fit(data, digits_hmnas.HMNAS_EPOCHS, show_progress=False)
    derived = model.derive()
    recipe = Recipe(epochs=8, batch_size=32, learning_rate=0.025, warmup_fraction=0.1, seed=seed)
    fresh = model.space.build(derived.architecture, seed=seed)
    network = model.compact(derived)
    masked = evaluate(network, data, "report").metric
    cut = 1 - derived.params / derived.architecture.cost().params
    tuned, scratch = (train(one, data, recipe).last.validation_metric for one in (network, fresh))
    return {
        "HM-NAS: parameters cut by masks": ("40", 100 * cut),
        "HM-NAS: masked": ("94.9", 100 * masked),
        "HM-NAS: fine-tuned": ("97.6", 100 * tuned),
        "HM-NAS: the same from scratch": ("97.1", 100 * scratch),
    }


PAPERS = {"SNAS": snas, "GHN": ghn, "HM-NAS": hmnas}
SCALED_DOWN = {
    "SNAS": "8 cells of 16 channels and DARTS' ops, 150 epochs -> 3 of NAS-Bench-201's of 8 channels, 14 epochs",
    "GHN": "ten of 1,000 networks of 18 blocks, 32 channels, 600 epochs -> of 300 of 3 cells, 8 channels, 8 epochs",
    "HM-NAS": "3 cells of 36 channels, 120 epochs and 200 of fine-tuning, 600 from scratch -> 3 of 8, 104, 8 and 8",
}
"""What the papers had, and what is here."""


def main() -> None:
    """Run the twins and print the papers' figures beside ours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--papers", nargs="+", default=list(PAPERS), choices=list(PAPERS))
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print("CIFAR-10's 50,000 images of 32 x 32 -> scikit-learn's 1,797 digits of 8 x 8")
    print(f"{'':42}paper, %   ours, %")
    for paper in options.papers:
        print(f"{paper}, scaled down: {SCALED_DOWN[paper]}", flush=True)
        started = time.process_time()
        runs = [PAPERS[paper](seed) for seed in range(options.seeds)]
        for name, (theirs, _) in runs[0].items():
            ours = [run[name][1] for run in runs]
            each = "" if len(ours) == 1 else f"   ({', '.join(f'{value:.1f}' for value in ours)})"
            print(f"{name:42}{theirs:>8}   {np.mean(ours):6.1f}{each}", flush=True)
        print(f"  {time.process_time() - started:.0f} CPU seconds", flush=True)


if __name__ == "__main__":
    main()

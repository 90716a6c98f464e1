"""What does the training loop cost beside a bare PyTorch loop with its batches ready, and what of it are data?

Command:   python studies/benchmarks/training.py            # on a GPU if there is one
Cost:      two minutes on one thread
Expected:  at least 0.97 times as many images a second as the bare loop; data at most 3 % of a step

The bare loop does what nobody can leave out: forward, loss, backward, step of the optimiser. Ours also draws and
augments batches (crop, flip, cutout), clips gradients, looks for numbers that are not finite, counts, reports and could
stop. Both take turns with the same network; CPU seconds (on a GPU: seconds until it has done all), medians.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from optuna_nas import (
    Augmentation,
    ImageData,
    NetworkSpace,
    Recipe,
    darts_search_skeleton,
    darts_space,
    nasbench201_skeleton,
    nasbench201_space,
    train,
)
from optuna_nas.training.device import autocast
from optuna_nas.training.finite_steps import fused

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH = 64
SETTINGS: dict[str, NetworkSpace] = {
    "NAS-Bench-201, 3 cells, C = 16": NetworkSpace(nasbench201_space(), nasbench201_skeleton(1)),
    "NAS-Bench-201, 15 cells, C = 16": NetworkSpace(nasbench201_space(), nasbench201_skeleton(5)),
    "DARTS, 3 cells, C = 16": NetworkSpace(darts_space(), darts_search_skeleton(3)),
}


def clock(device: torch.device) -> float:
    """Return CPU seconds, or on a GPU the time when it has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.monotonic()
    return time.process_time()


def random_images(n_images: int, side: int, device: torch.device | str, report: int = 100) -> ImageData:
    """Return noise of ten classes to learn from, and some to report on."""
    random, n_all = torch.Generator().manual_seed(0), n_images + report
    images = torch.randint(0, 256, (n_all, 3, side, side), generator=random, dtype=torch.uint8)
    learned, nothing = torch.arange(n_images), torch.arange(0)
    splits = {"weights": learned, "choices": nothing, "report": torch.arange(n_images, n_all), "test": nothing}
    half = torch.full((3,), 0.5)
    augmentation = Augmentation(side // 8, flip=True, cutout=side // 2)
    return ImageData("noise", images, torch.arange(n_all) % 10, 10, splits, half, half, augmentation).to(device)


def images_per_second(space: NetworkSpace, steps: int, repeats: int, device: torch.device) -> dict[str, float]:
    """Let both train the same cell, in turns; also draw the same batches without training."""
    random = np.random.default_rng(0)
    data = random_images(BATCH * steps, 32, device)
    cell = space.sample(random)
    while not cell.connected:
        cell = space.sample(random)
    network = space.build(cell, seed=0).to(device)
    recipe = Recipe(epochs=1, batch_size=BATCH)
    batches = [
        (images.contiguous(memory_format=torch.channels_last), labels)
        for images, labels in data.batches(["weights"], BATCH, epoch=0)
    ]
    parameters = list(network.parameters())
    optimizer = torch.optim.SGD(
        parameters, recipe.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay, fused=fused(parameters)
    )

    def bare() -> float:
        network.train()
        begun = clock(device)
        for images, labels in batches:
            optimizer.zero_grad(set_to_none=True)
            with autocast(device, recipe.precision):
                scores = network(images)
                scores = scores[0] if isinstance(scores, tuple) else scores
                loss = F.cross_entropy(scores, labels)
            loss.backward()
            optimizer.step()
        return clock(device) - begun

    def ours() -> float:
        done: list[float] = []

        def on_step(fraction: float) -> None:
            if not done or fraction == 1:
                done.append(clock(device))

        train(network, data, recipe, on_step=on_step)
        return (done[-1] - done[0]) * len(batches) / (len(batches) - 1)

    def data_alone() -> float:
        begun = clock(device)
        for _ in data.batches(["weights"], BATCH, epoch=0):
            pass
        return clock(device) - begun

    subjects: dict[str, Callable[[], float]] = {"bare": bare, "ours": ours, "data": data_alone}
    taken: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(repeats + 1):
        for name, run in subjects.items():
            seconds = run()
            if number:  # the first warms up
                taken[name].append(seconds)
    seconds = {name: median(times) for name, times in taken.items()}
    return {
        "bare, images/s": len(batches) * BATCH / seconds["bare"],
        "ours, images/s": len(batches) * BATCH / seconds["ours"],
        "ours to bare (aim 0.97)": seconds["bare"] / seconds["ours"],
        "data of a step (aim 0.03)": seconds["data"] / seconds["ours"],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    figures = {}
    for name in options.settings:
        figures[name] = images_per_second(SETTINGS[name], options.steps, options.repeats, device)
        print(name)
        for what, value in figures[name].items():
            print(f"  {what:28}{value:10.3f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"device": device.type, "figures": figures}, indent=1))


if __name__ == "__main__":
    main()

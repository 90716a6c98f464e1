"""What the studies in the papers' own settings have in common: images, final trainings, an end in time, an export."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from optuna_nas import Augmentation, ImageClassification, ImageData, Recipe, cifar10, digits, train
from optuna_nas.data import Data
from optuna_nas.networks import DiscreteNetwork, export_network, save_network
from optuna_nas.networks.deployment import Deployment
from optuna_nas.networks.files import read_network
from optuna_nas.training import EpochResult, TrainingStopped, evaluate

GOES_ON = "the time is up; the same command goes on"
AGAIN = 60.0
"""Seconds until a search is told again to end, should it have begun just when the time was up."""

SMOKE_IMAGES = 96
"""Images of a split of a smoke run."""


def search_data(smoke: bool, seed: int, n_report: int) -> ImageData:
    """Return CIFAR-10, all for weights but a few to report on, with crop and flip; or some digits for a smoke run."""
    if smoke:
        data = digits(seed)
        return replace(data, splits={split: images[:SMOKE_IMAGES] for split, images in data.splits.items()})
    data = cifar10(seed=seed)
    everything = torch.cat([data.splits[split] for split in ("weights", "choices", "report")])
    splits = {"weights": everything[n_report:], "choices": everything[:0], "report": everything[:n_report]}
    return replace(data, splits={**splits, "test": data.splits["test"]}, augmentation=Augmentation(4, flip=True))


def with_cutout(data: ImageData) -> ImageData:
    """Return the data with the augmentation of a final training on CIFAR-10."""
    return replace(data, augmentation=Augmentation(4, flip=True, cutout=16))


def ends_after(seconds: float | None) -> Callable[[], bool]:
    """Let a command end cleanly, with a checkpoint, after so many seconds; return whether they are over.

    A search ends as it does at SIGTERM; a training of one's own asks the function that is returned.

    Args:
        seconds: Seconds from now; None for no end.
    """
    if seconds is None:
        return lambda: False
    end = time.monotonic() + seconds

    def tell(number: int, frame: object) -> None:
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:  # a search runs
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGALRM, tell)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    return lambda: time.monotonic() >= end


def train_in_full(
    network: DiscreteNetwork,
    recipe: Recipe,
    data: Data,
    folder: Path,
    over: Callable[[], bool] = lambda: False,
    task: ImageClassification | None = None,
    checkpoint_seconds: float = 30.0,
) -> None:
    """Train a fresh network, go on where an earlier call ended, keep and export it, and judge it on the test images."""
    cell = network.architecture
    print(f"final training: {cell.cost().params / 1e6:.3f} M parameters, {recipe.epochs} epochs", flush=True)

    def show(result: EpochResult) -> None:
        accuracy = result.validation_metric
        print(f"epoch {result.epoch}: report accuracy {accuracy:.4f}, {result.seconds:.0f} s", flush=True)

    try:
        train(
            network,
            data,
            recipe,
            task,
            on_epoch=show,
            checkpoint=folder / "final.safetensors",
            checkpoint_seconds=checkpoint_seconds,
            configuration={"architecture": cell.to_dict()},
            should_stop=over,
        )
    except TrainingStopped:
        print(GOES_ON)
        return
    file = folder / "network.safetensors"
    save_network(file, network, deployment=Deployment.of(data, task or ImageClassification()))
    hand_over(file, folder, evaluate(network, data, "test", task).metric)


def hand_over(file: Path, folder: Path, accuracy: float | None, name: str = "test error") -> None:
    """Print the error of a trained network on the test images and where it is, and export it for deployment.

    Args:
        file: File of the network.
        folder: Folder of the study.
        accuracy: Accuracy on the test images.
        name: What one less the accuracy is called.
    """
    assert accuracy is not None, "there are test images"
    print(f"{name} {100 * (1 - accuracy):.2f} %\nnetwork: {file}", flush=True)
    read = read_network(file)
    target = folder / "exported" / file.stem
    exported = export_network(read.network, target, "pt2", read.architecture, read.deployment)
    print(f"exported: {exported.path}", flush=True)

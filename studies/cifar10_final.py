"""What the studies in the papers' own settings have in common: the images, and the training of what was found."""

from dataclasses import replace
from pathlib import Path

import torch

from optuna_nas import Augmentation, DiscreteNetwork, ImageData, Recipe, cifar10, digits, train
from optuna_nas.training import EpochResult, evaluate


def search_data(smoke: bool, seed: int, n_report: int) -> ImageData:
    """Return CIFAR-10, all for weights but a few to report on, with crop and flip; or digits for a smoke run."""
    if smoke:
        return digits(seed)
    data = cifar10(seed=seed)
    everything = torch.cat([data.splits[split] for split in ("weights", "choices", "report")])
    splits = {"weights": everything[n_report:], "choices": everything[:0], "report": everything[:n_report]}
    return replace(data, splits={**splits, "test": data.splits["test"]}, augmentation=Augmentation(4, flip=True))


def with_cutout(data: ImageData) -> ImageData:
    """Return the data with the augmentation of a final training on CIFAR-10."""
    return replace(data, augmentation=Augmentation(4, flip=True, cutout=16))


def train_in_full(
    network: DiscreteNetwork, recipe: Recipe, data: ImageData, device: torch.device, folder: Path
) -> None:
    """Train a fresh network, go on where an earlier call ended, and judge the network on the test images."""
    data = data.to(device)
    cell = network.architecture
    print(f"final training: {cell.cost().params / 1e6:.3f} M parameters, {recipe.epochs} epochs", flush=True)

    def show(result: EpochResult) -> None:
        accuracy = result.validation_metric
        print(f"epoch {result.epoch}: report accuracy {accuracy:.4f}, {result.seconds:.0f} s", flush=True)

    train(
        network,
        data,
        recipe,
        on_epoch=show,
        checkpoint=folder / "final.safetensors",
        configuration={"architecture": cell.to_dict()},
    )
    accuracy = evaluate(network, data, "test").metric
    print(f"test error {100 * (1 - accuracy):.2f} %")

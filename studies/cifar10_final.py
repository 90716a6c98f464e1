"""What the studies in the papers' own settings have in common: the images, and the training of what was found."""

from dataclasses import replace
from pathlib import Path

import torch
from strategies import placed

from optuna_nas import Architecture, Augmentation, DiscreteNetwork, ImageData, Recipe, Skeleton, cifar10, digits, train
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
    cell: Architecture, skeleton: Skeleton, recipe: Recipe, data: ImageData, device: torch.device, folder: Path
) -> None:
    """Train from scratch, go on where an earlier call ended, and judge the network on the test images."""
    data = data.to(device)
    network = DiscreteNetwork(placed(cell, skeleton), seed=recipe.seed)
    print(
        f"final training: {placed(cell, skeleton).cost().params / 1e6:.3f} M parameters, {recipe.epochs} epochs",
        flush=True,
    )

    def show(result: EpochResult) -> None:
        print(f"epoch {result.epoch}: report accuracy {result.report_accuracy:.4f}, {result.seconds:.0f} s", flush=True)

    train(
        network,
        data,
        recipe,
        drop_path=skeleton.drop_path,
        on_epoch=show,
        checkpoint=folder / "final.safetensors",
        configuration={"architecture": cell.to_dict(), "skeleton": skeleton.to_dict()},
    )
    _, accuracy = evaluate(network, data, "test")
    print(f"test error {100 * (1 - accuracy):.2f} %")

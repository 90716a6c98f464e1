"""Trained networks in safetensors files, with their architecture inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optuna_nas.networks import DiscreteNetwork, MixedNetwork
from optuna_nas.space import Architecture, Skeleton
from optuna_nas.training.checkpoints import load_tensors, prefixed, save_tensors, without_prefix

MASKS = "masks/"
"""Begins the names of masks in the file of a network that has some."""


def save_network(path: Path, network: DiscreteNetwork) -> None:
    """Write a network, its architecture and its skeleton to one file."""
    description: dict[str, Any] = {
        "architecture": network.architecture.to_dict(),
        "skeleton": network.skeleton.to_dict(),
    }
    tensors = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("masks.")}
    tensors |= prefixed(MASKS, network.masks_by_name())
    if isinstance(network, MixedNetwork):
        description["mixing"] = network.mixing
    save_tensors(path, tensors, description)


def load_network(path: str | Path, device: str = "cpu") -> DiscreteNetwork:
    """Read a network that `save_network` wrote; ops of your own must be registered before. Executes nothing.

    Raises:
        ValueError: The file is not such a network.
    """
    tensors, description = load_tensors(Path(path), device)
    if not {"architecture", "skeleton"} <= set(description):
        raise ValueError(f"`path` must be a network of optuna_nas but {path} holds something else.")
    architecture = Architecture.from_dict(description["architecture"])
    skeleton = Skeleton.from_dict(description["skeleton"])
    masks = without_prefix(MASKS, tensors)
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(MASKS)}
    if "mixing" not in description:
        return DiscreteNetwork(architecture, skeleton, weights, masks=masks).to(device).eval()
    return MixedNetwork(architecture, skeleton, description["mixing"], masks, weights).to(device).eval()

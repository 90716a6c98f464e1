"""Trained networks in safetensors files, with their architecture inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from optuna_nas.networks.discrete import DiscreteNetwork
from optuna_nas.networks.network_space import NetworkSpace
from optuna_nas.space import Architecture, CellularSpace, Skeleton
from optuna_nas.training.checkpoints import load_tensors, prefixed, save_tensors, without_prefix

MASKS = "masks/"
"""Begins the names of masks in the file of a network that has some."""


def save_network(path: Path, network: DiscreteNetwork) -> None:
    """Write a network and its architecture, space and skeleton included, to one file."""
    description: dict[str, Any] = {"architecture": network.architecture.to_dict()}
    tensors = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("masks.")}
    tensors |= prefixed(MASKS, network.masks_by_name())
    if network.mixing is not None:
        description["mixing"] = network.mixing
    save_tensors(path, tensors, description)


def load_network(path: str | Path, device: str = "cpu") -> DiscreteNetwork:
    """Return a network that `save_network` wrote; ops of your own must be registered before. Executes nothing.

    Args:
        path: A safetensors file.
        device: Where its weights go.

    Raises:
        ValueError: The file is not such a network.
    """
    tensors, description = load_tensors(Path(path), device)
    if "architecture" not in description:
        raise ValueError(f"`path` must be a network of optuna_nas but {path} holds something else.")
    architecture = Architecture.from_dict(description["architecture"])
    if "skeleton" in description:  # a file of an earlier version, whose architecture is of cells alone
        cells = cast("CellularSpace", architecture.space)
        architecture = NetworkSpace(cells, Skeleton.from_dict(description["skeleton"])).adopt(architecture)
    mixing = description.get("mixing")
    if mixing is not None:
        names = {old: path for path, old in architecture.space.old_names().items()}
        mixing = {names.get(path, path): weights for path, weights in mixing.items()}
    masks = without_prefix(MASKS, tensors)
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(MASKS)}
    return DiscreteNetwork(architecture, weights, mixing=mixing, masks=masks).to(device).eval()

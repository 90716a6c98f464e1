"""Networks in safetensors files, with their architecture in the header."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from optuna_nas.networks.discrete import DiscreteNetwork
from optuna_nas.networks.network_space import NetworkSpace
from optuna_nas.networks.sums import factors_of, masks_of, restrict
from optuna_nas.space import Architecture, CellularSpace, ModelSpace, Skeleton
from optuna_nas.space.reading import named_file
from optuna_nas.training.checkpoints import (
    check_tensors,
    load_tensors,
    prefixed,
    reading_checkpoint,
    save_tensors,
    without_prefix,
)
from optuna_nas.training.rules import anything, mapping, number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

MASKS = "masks/"
"""Prefix of the names of masks in a network's file."""


def architecture_of(network: nn.Module, architecture: Architecture | None = None) -> Architecture:
    """Return the architecture of a network: its own, or else the given one.

    Raises:
        ValueError: Neither is there.
    """
    if isinstance(network, DiscreteNetwork):
        return network.architecture
    if architecture is None:
        raise ValueError(
            f"`architecture` must be given for a {type(network).__name__}, which does not know its own; it is the one "
            "whose `build` returned the network."
        )
    return architecture


def save_network(
    path: Path, network: nn.Module, architecture: Architecture | None = None, owner: Mapping[str, Any] | None = None
) -> None:
    """Write a network to a file, with its architecture and space.

    Args:
        path: Safetensors file to write.
        network: Network with its weights and masks.
        architecture: Architecture that the network was built from; a `DiscreteNetwork` knows its own.
        owner: JSON values that say whose it is, such as study and trial; see `owner_of`.

    Raises:
        ValueError: The network needs an architecture.

    Example:
        >>> from pathlib import Path
        >>> from optuna_nas import NetworkSpace, load_network, nasbench201_skeleton, nasbench201_space
        >>> from optuna_nas.networks import save_network
        >>> space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(repeats=1, channels=2))
        >>> architecture = space.architecture({"cell_0_3": ["skip_connect"]})
        >>> save_network(Path("network.safetensors"), architecture.build())
        >>> load_network("network.safetensors").architecture == architecture
        True
    """
    description: dict[str, Any] = {"architecture": architecture_of(network, architecture).to_dict()}
    if owner is not None:
        description["owner"] = dict(owner)
    tensors = network.state_dict()
    if isinstance(network, DiscreteNetwork):
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("masks.")}
        tensors |= prefixed(MASKS, network.masks_by_name())
        if network.mixing is not None:
            description["mixing"] = network.mixing
    else:
        tensors |= prefixed(MASKS, masks_of(network))
        if factors := factors_of(network):
            description["mixing"] = factors
    # Tied weights are written once for each of their names: safetensors refuses tensors that share memory.
    save_tensors(path, {name: tensor.clone() for name, tensor in tensors.items()}, description)


def owner_of(path: Path) -> dict[str, Any] | None:
    """Return whose a network's file is, as `save_network` was told; None where it does not say.

    Raises:
        ValueError: The file is damaged.
    """
    owner = load_tensors(path)[1].get("owner")
    with reading_checkpoint(path):
        return None if owner is None else mapping(anything())("owner", owner)


def load_network(path: str | Path, device: str = "cpu") -> nn.Module:
    """Return the network of a file, in evaluation mode.

    Loading executes no code from the file. Register your own ops, and import the module that defines your own space,
    first.

    Args:
        path: Safetensors file of a study's folder `networks`, of `save_network` or of `optuna-nas export`.
        device: Device of the weights.

    Raises:
        ValueError: The file is not a network of optuna_nas.

    Example:
        >>> from pathlib import Path
        >>> from optuna_nas import NetworkSpace, load_network, nasbench201_skeleton, nasbench201_space
        >>> from optuna_nas.networks import save_network
        >>> space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(repeats=1, channels=2))
        >>> save_network(Path("network.safetensors"), space.architecture({"cell_0_3": ["skip_connect"]}).build())
        >>> load_network("network.safetensors").architecture.summary
        'none | none none | skip none none'
    """
    return read_network(path, device)[0]


def read_network(path: str | Path, device: str = "cpu") -> tuple[nn.Module, Architecture]:
    """Return the network of a file, in evaluation mode, and its architecture; see `load_network`."""
    path = Path(path)
    tensors, description = load_tensors(path, device)
    if "architecture" not in description:
        raise ValueError(f"`path` must be a network of optuna_nas but {path} holds something else.")
    with named_file("a network of optuna_nas", path):
        architecture = _architecture(description)
        mixing = mapping(mapping(number(finite=True)))("mixing", description.get("mixing") or {})
        masks = without_prefix(MASKS, tensors)
        weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(MASKS)}
        if isinstance(architecture.space, NetworkSpace):
            n_weights = sum(tensor.numel() for tensor in weights.values())
            if (params := architecture.cost().params) > n_weights:  # before any is allocated
                raise ValueError(f"its architecture has {params} parameters but it holds {n_weights}")
            path_of = {old: path for path, old in architecture.space.old_names().items()}
            mixing = {path_of.get(path, path): of_path for path, of_path in mixing.items()}
            network: nn.Module = DiscreteNetwork(
                architecture, mixing=None if description.get("mixing") is None else mixing
            )
        else:
            network = cast("ModelSpace", architecture.space).build(architecture)
        check_tensors(weights, network.state_dict())
        _check_masks(masks, dict(network.named_parameters()))
        network.load_state_dict(weights)
        if isinstance(network, DiscreteNetwork):
            network.remove((), masks)
        else:
            restrict(network, mixing, masks)
    return network.to(device).eval(), architecture


def _architecture(description: Mapping[str, Any]) -> Architecture:
    architecture = Architecture.from_dict(description["architecture"])
    if "skeleton" not in description:
        return architecture
    # Written by an earlier version, in which an architecture had no skeleton.
    cells = cast("CellularSpace", architecture.space)
    return NetworkSpace(cells, Skeleton.from_dict(description["skeleton"])).adopt(architecture)


def _check_masks(masks: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    for name, mask in masks.items():
        if name not in parameters or mask.shape != parameters[name].shape:
            raise ValueError(f"tensor {MASKS + name!r} must be of the shape of a parameter but is not")
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError(f"tensor {MASKS + name!r} must be zeros and ones but is not")

"""Networks in safetensors files, with their architecture in the header."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from optuna_nas.networks.deployment import Deployment, Predictor
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
from optuna_nas.training.device import own_default_device
from optuna_nas.training.rules import anything, items, mapping, number, text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

MASKS, PREPROCESSING = "masks/", "preprocessing/"
"""Prefixes of the names of masks, and of mean and deviation of raw inputs, in a network's file."""


class NetworkFile(NamedTuple):
    """Contents of a network's file.

    Args:
        network: Network in evaluation mode.
        architecture: Its architecture.
        deployment: What it needs to predict; None in files of earlier versions, and where nobody told.
    """

    network: nn.Module
    architecture: Architecture
    deployment: Deployment | None


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
    path: str | Path,
    network: nn.Module,
    architecture: Architecture | None = None,
    owner: Mapping[str, Any] | None = None,
    deployment: Deployment | None = None,
) -> None:
    """Write a network to a file, with its architecture and space, and what it needs to predict.

    Args:
        path: Safetensors file to write.
        network: Network with its weights and masks.
        architecture: Architecture that the network was built from; a `DiscreteNetwork` knows its own.
        owner: JSON values that say whose it is, such as study and trial; see `owner_of`.
        deployment: Preprocessing of raw inputs, and labels of classes.

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
    if deployment is not None:
        description["deployment"] = deployment.to_dict()
        tensors |= prefixed(PREPROCESSING, deployment.tensors())
    description["masks"] = sorted(without_prefix(MASKS, tensors))
    # Tied weights are written once for each of their names: safetensors refuses tensors that share memory.
    save_tensors(path, {name: tensor.clone() for name, tensor in tensors.items()}, description)


def owner_of(path: Path) -> dict[str, Any] | None:
    """Return whose a network's file is, as `save_network` was told; None where it does not say.

    Raises:
        ValueError: The file is damaged.
    """
    return _owner(path, load_tensors(path)[1])


def owner_and_choices(path: Path) -> tuple[dict[str, Any] | None, dict[str, tuple[str, ...]]]:
    """Return whose a network's file is, see `owner_of`, and what its architecture chose, less what masks cut.

    Raises:
        ValueError: The file is damaged.
    """
    description = load_tensors(path)[1]
    with named_file("a network of optuna_nas", path):
        return _owner(path, description), dict(_architecture(description).choices)


def _owner(path: Path, description: Mapping[str, Any]) -> dict[str, Any] | None:
    owner = description.get("owner")
    with reading_checkpoint(path):
        return None if owner is None else mapping(anything())("owner", owner)


def load_network(path: str | Path, device: str = "cpu") -> nn.Module:
    """Return the network of a file, in evaluation mode; `network.predict` takes raw inputs.

    `network(inputs)` takes normalised inputs and returns what the task's loss takes. `network.predict(raw)` normalises
    inputs as in the training and returns labels, `network.predict_proba(raw)` probabilities; see `Predictor`. (A module
    of yours that has methods of these names keeps them.)

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
    network, _, deployment = read_network(path, device)
    predictor = Predictor(network, deployment)
    for name in ("predict", "predict_proba"):
        if not hasattr(network, name):
            setattr(network, name, getattr(predictor, name))
    return network


@own_default_device()
def read_network(path: str | Path, device: str = "cpu", space: ModelSpace | None = None) -> NetworkFile:
    """Return the network of a file, in evaluation mode, its architecture and deployment; see `load_network`.

    Args:
        path: File.
        device: Device of the weights.
        space: Space to build in, where the file's is equal; by default the newest of its name in this process.
    """
    path = Path(path)
    tensors, description = load_tensors(path, device)
    if "architecture" not in description:
        raise ValueError(f"`path` must be a network of optuna_nas but {path} holds something else.")
    with named_file("a network of optuna_nas", path):
        architecture, deployment = _architecture(description), None
        if space is not None and architecture.space == space:
            architecture = space.adopt(architecture)
        if "deployment" in description:
            normalisation = {name: tensor.cpu() for name, tensor in without_prefix(PREPROCESSING, tensors).items()}
            deployment = Deployment.from_parts(description["deployment"], normalisation)
        mixing = mapping(mapping(number(finite=True)))("mixing", description.get("mixing") or {})
        masks = without_prefix(MASKS, tensors)
        named = items(text())("masks", description.get("masks", sorted(masks)))
        if named != sorted(masks):
            absent = sorted({*named} ^ masks.keys())
            raise ValueError(f"its masks must be of the weights that it names but that of {absent[0]!r} is not")
        prefixes = MASKS, PREPROCESSING
        weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefixes)}
        if isinstance(architecture.space, NetworkSpace):
            n_weights = sum(tensor.numel() for tensor in weights.values())
            if (params := architecture.cost().params) > n_weights:  # before any is allocated
                raise ValueError(f"its architecture has {params} parameters but it holds {n_weights}")
            path_of = {old: path for path, old in architecture.space.old_names().items()}
            mixing = {path_of.get(path, path): of_path for path, of_path in mixing.items()}
            discrete = DiscreteNetwork(architecture, mixing=None if description.get("mixing") is None else mixing)
            if "masks" not in description:  # of before, when files had what leads nowhere, too
                weights, masks = discrete.own_tensors(weights), discrete.own_tensors(masks)
            network: nn.Module = discrete
        else:
            network = cast("ModelSpace", architecture.space).build(architecture)
        check_tensors(weights, network.state_dict())
        _check_masks(masks, dict(network.named_parameters()))
        network.load_state_dict(weights)
        if isinstance(network, DiscreteNetwork):
            network.remove((), masks)
        else:
            restrict(network, mixing, masks)
    return NetworkFile(network.to(device).eval(), architecture, deployment)


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

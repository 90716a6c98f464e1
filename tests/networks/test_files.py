"""Files of networks: the same network comes back, with masks and mixing, also from a file of an earlier version."""

import pytest
import torch
from strategies import TINY_BLOCK, TINY_MULTI, small_skeleton

from optuna_nas.networks import DiscreteNetwork, NetworkSpace, load_network, save_network
from optuna_nas.space import nasbench201_skeleton, nasbench201_space
from optuna_nas.training import load_tensors, save_tensors

SPACES = {
    "multi": NetworkSpace(TINY_MULTI, small_skeleton(TINY_MULTI)),
    "block": NetworkSpace(TINY_BLOCK, small_skeleton(TINY_BLOCK)),
    "nasbench201": NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 4, (3, 8, 8), 3)),
}


def network_of(name, mixed=False):
    """Return a network of everything with running statistics of its own, perhaps with masks and mixing weights."""
    space = SPACES[name]
    architecture = space.architecture({path: names[-2:] for path, names in space.full_architecture().choices})
    mixing = masks = None
    if mixed:
        draw = torch.Generator().manual_seed(5)
        mixing = {
            path: {op: torch.rand((), generator=draw).item() for op in architecture[path]} for path in architecture
        }
        kernels = [(n, p) for n, p in architecture.build(seed=0).named_parameters() if p.dim() == 4]
        masks = {name: (torch.rand(kernel.shape, generator=draw) < 0.5).float() for name, kernel in kernels[:3]}
    network = DiscreteNetwork(architecture, seed=0, mixing=mixing, masks=masks or {})
    torch.manual_seed(1)
    network.train()(torch.randn(8, 3, 8, 8))
    return network.eval()


def same(network, other):
    images = torch.randn(4, 3, 8, 8)
    assert network.architecture == other.architecture
    assert torch.equal(network(images), other(images))
    assert network.masks_by_name().keys() == other.masks_by_name().keys()
    assert network.params_left == other.params_left
    assert network.mixing == other.mixing


KINDS = [("multi", False), ("multi", True), ("block", False), ("nasbench201", False), ("nasbench201", True)]


@pytest.mark.parametrize(("name", "mixed"), KINDS)
def test_a_network_comes_back_from_its_file(name, mixed, tmp_path):
    network = network_of(name, mixed)
    save_network(tmp_path / "network", network)
    loaded = load_network(tmp_path / "network")
    same(loaded, network)
    assert loaded.space == SPACES[name]
    assert not loaded.training
    _, description = load_tensors(tmp_path / "network")
    assert "skeleton" not in description  # it is in the space of the architecture


def as_an_earlier_version_wrote_it(network, file):
    """Write an architecture of cells, whose paths were no identifiers, and a skeleton beside it."""
    cells, old = network.space.cells, network.space.old_names()
    description = {
        "architecture": {
            "space": cells.to_dict(),
            "choices": {old[path]: list(names) for path, names in network.architecture.choices},
        },
        "skeleton": network.skeleton.to_dict(),
    }
    if network.mixing is not None:
        description["mixing"] = {old[path]: weights for path, weights in network.mixing.items()}
    tensors = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("masks.")}
    masks = {f"masks/{name}": mask for name, mask in network.masks_by_name().items()}
    save_tensors(file, {**tensors, **masks}, description)
    return description


@pytest.mark.parametrize(("name", "mixed"), KINDS)
def test_a_file_of_an_earlier_version_opens(name, mixed, tmp_path):
    network = network_of(name, mixed)
    description = as_an_earlier_version_wrote_it(network, tmp_path / "network")
    assert all("/" in path for path in description["architecture"]["choices"])
    loaded = load_network(tmp_path / "network")
    same(loaded, network)
    save_network(tmp_path / "again", loaded)
    same(load_network(tmp_path / "again"), network)


def test_a_file_of_an_earlier_version_by_hand(tmp_path):
    network = SPACES["nasbench201"].architecture({"cell_0_1": "nor_conv_3x3", "cell_1_3": "skip_connect"}).build(seed=3)
    description = {
        "architecture": {
            "space": {
                "type": "CellSpace",
                "ops": ["none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"],
                "nodes": 3,
                "inputs": 1,
                "cell_kinds": [["cell", 1, [3]]],
                "max_ops": 1,
            },
            "choices": {
                "cell/1<-0": ["nor_conv_3x3"],
                "cell/2<-0": [],
                "cell/2<-1": [],
                "cell/3<-0": [],
                "cell/3<-1": ["skip_connect"],
                "cell/3<-2": [],
            },
        },
        "skeleton": {
            "cells": ["cell", "residual_reduction", "cell", "residual_reduction", "cell"],
            "channels": 4,
            "input_shape": [3, 8, 8],
            "classes": 3,
            "stem": "conv",
            "stem_multiplier": 1,
            "norm_before_head": True,
            "auxiliary": False,
            "affine": True,
            "pool_norm": False,
            "drop_path": 0.0,
            "budget": 0.0,
        },
    }
    save_tensors(tmp_path / "network", network.state_dict(), description)
    same(load_network(tmp_path / "network"), network.eval())


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"progress": {}}, "`path` must be a network of optuna_nas but .* holds something else"),
        ({"architecture": {}}, r"`description` must hold `space` and `choices` but lacks \['choices', 'space'\]"),
        (
            {"architecture": TINY_MULTI.full_architecture().to_dict()},
            r"`space` must be .* but is a CellSpace; use `NetworkSpace\(space, skeleton\)`",
        ),
    ],
)
def test_a_file_that_holds_no_network_is_refused_with_one_sentence(description, message, tmp_path):
    save_tensors(tmp_path / "file", {"a": torch.zeros(2)}, description)
    with pytest.raises(ValueError, match=message):
        load_network(tmp_path / "file")


def rewritten(file, tensors, description):
    """Write a file with a checksum of its own, as somebody would who knows how."""
    save_tensors(file, tensors, description)
    return file


def test_a_file_without_one_of_its_masks_is_refused(tmp_path):
    network = network_of("nasbench201")
    name, parameter = next((name, p) for name, p in network.named_parameters() if p.ndim > 1)
    network.remove((), {name: torch.zeros_like(parameter)})
    save_network(tmp_path / "network", network)
    tensors, description = load_tensors(tmp_path / "network")
    masks = [key for key in tensors if key.startswith("masks/")]
    assert description["masks"] == sorted(key.removeprefix("masks/") for key in masks)
    del tensors[masks[0]]
    with pytest.raises(ValueError, match="its masks must be of the weights that it names but that of"):
        load_network(rewritten(tmp_path / "less", tensors, description))


def test_a_file_with_weights_of_what_its_architecture_lacks_is_refused(tmp_path):
    space = SPACES["nasbench201"]
    network = space.architecture({"cell_0_1": "nor_conv_3x3", "cell_1_3": "skip_connect"}).build(seed=3)
    save_network(tmp_path / "network", network)
    tensors, description = load_tensors(tmp_path / "network")
    other = space.architecture({"cell_0_1": "nor_conv_3x3", "cell_0_3": "skip_connect"})  # whose first op leads nowhere
    with pytest.raises(ValueError, match="must"):
        load_network(rewritten(tmp_path / "more", tensors, {**description, "architecture": other.to_dict()}))

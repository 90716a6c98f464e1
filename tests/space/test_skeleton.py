"""Frames around cells: the published ones, written and read again, refused when they make no sense."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import counted_multiply_adds, placed

from optuna_nas import DiscreteNetwork, NetworkSpace
from optuna_nas.space import (
    Skeleton,
    cells_with_reductions,
    darts_cifar_skeleton,
    darts_imagenet_skeleton,
    darts_search_skeleton,
    darts_space,
    ghn_mobile_skeleton,
    ghn_skeleton,
    ghn_space,
    nasbench201_skeleton,
    nasbench201_space,
    widest_skeleton,
)

PRESETS = {
    "darts search": (darts_space(), darts_search_skeleton()),
    "darts cifar": (darts_space(), darts_cifar_skeleton()),
    "darts imagenet": (darts_space(), darts_imagenet_skeleton()),
    "nasbench201": (nasbench201_space(), nasbench201_skeleton()),
    "ghn": (ghn_space(), ghn_skeleton()),
    "ghn mobile": (ghn_space(), ghn_mobile_skeleton()),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fit_their_space_and_survive_json(name):
    space, skeleton = PRESETS[name]
    assert Skeleton.from_dict(json.loads(json.dumps(skeleton.to_dict()))) == skeleton
    assert hash(Skeleton.from_dict(skeleton.to_dict())) == hash(skeleton)
    graph = placed(space.full_architecture(), skeleton).graph()
    assert graph.connected
    assert graph["classifier"].site.out_shape == (skeleton.classes, 1, 1)


def test_darts_reduces_at_one_and_two_thirds():
    assert [i for i, cell in enumerate(darts_search_skeleton().cells) if cell == "reduction"] == [2, 5]
    assert [i for i, cell in enumerate(darts_cifar_skeleton().cells) if cell == "reduction"] == [6, 13]
    assert [i for i, cell in enumerate(darts_imagenet_skeleton().cells) if cell == "reduction"] == [4, 9]


@given(st.integers(1, 40))
def test_any_depth_has_its_cells(n_cells):
    cells = cells_with_reductions(n_cells)
    assert len(cells) == n_cells
    assert set(cells) <= {"normal", "reduction"}
    if n_cells >= 3:
        assert cells.count("reduction") == 2


def shape_of_cells(space, skeleton):
    graph = placed(space.full_architecture(), skeleton).graph()
    return [graph.cell(i)[-1].site.out_shape for i in range(len(skeleton.cells))]


def test_darts_cifar_doubles_channels_where_it_halves_the_image():
    assert shape_of_cells(darts_space(), darts_cifar_skeleton()) == (
        [(4 * 36, 32, 32)] * 6 + [(4 * 72, 16, 16)] * 7 + [(4 * 144, 8, 8)] * 7
    )


def test_darts_imagenet_starts_at_a_quarter_and_an_eighth_of_the_image():
    space, skeleton = darts_space(), darts_imagenet_skeleton()
    graph = placed(space.full_architecture(), skeleton).graph()
    assert graph["stem0"].site.out_shape == (48, 56, 56)
    assert graph["stem1"].site.out_shape == (48, 28, 28)
    assert shape_of_cells(space, skeleton)[-1] == (4 * 48 * 4, 7, 7)


def test_nasbench201_has_three_stages_of_five_cells():
    skeleton = nasbench201_skeleton()
    assert skeleton.cells.count("cell") == 15
    assert shape_of_cells(nasbench201_space(), skeleton) == ([(16, 32, 32)] * 5 + [(32, 16, 16)] * 6 + [(64, 8, 8)] * 6)


def test_ghn_has_eighteen_blocks_in_three_stages():
    skeleton = ghn_skeleton()
    assert skeleton.cells.count("block") == 18
    shapes = shape_of_cells(ghn_space(), skeleton)
    assert shapes == [(32, 32, 32)] * 6 + [(64, 16, 16)] * 7 + [(128, 8, 8)] * 7


def test_lists_become_tuples_so_that_a_skeleton_from_json_is_hashable():
    assert Skeleton(["normal"], input_shape=[1, 8, 8]) == Skeleton(("normal",), input_shape=(1, 8, 8))
    assert hash(Skeleton(["normal"])) == hash(Skeleton(("normal",)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Skeleton(()), r"`cells` must name at least one cell but is empty; try"),
        (lambda: Skeleton(("normal",), channels=0), r"`channels` must be at least 1 but got 0; give"),
        (lambda: Skeleton(("normal",), stem_multiplier=-1), r"`stem_multiplier` must be at least 1 but got -1"),
        (lambda: Skeleton(("normal",), input_shape=(3, 0, 8)), r"`input_shape\[1\]` must be at least 1 but got 0"),
        (lambda: Skeleton(("normal",), input_shape=(8, 8)), r"`input_shape` must be \(channels, height, width\).*\(8,"),
        (lambda: Skeleton(("normal",), classes=0), r"`classes` must be at least 1 but got 0; a regression has 1"),
        (lambda: Skeleton(("normal",), stem="moon"), r"`stem` must be one of \('conv', .*\) but got 'moon'"),
        (lambda: Skeleton(("normal",), drop_path=1.0), r"`drop_path` must be in \[0, 1\) but got 1.0; DARTS uses"),
        (lambda: Skeleton(("normal",), drop_path=-0.1), r"`drop_path` must be in \[0, 1\) but got -0.1"),
        (lambda: Skeleton.from_dict({"cells": ["normal"], "moon": 1}), r"`description` .*got \['moon'\]; remove"),
        (lambda: cells_with_reductions(0), r"`n_cells` must be at least 1 but got 0; DARTS searches with 8"),
        (lambda: ghn_skeleton(blocks=2), r"`blocks` must be at least 3 .* but got 2; the paper uses 18"),
    ],
)  # fmt: skip
def test_refuses_with_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- ImageNet for mobile devices ----------------------------------------------------------------------------------


def test_the_mobile_skeleton_halves_five_times():
    space = ghn_space(3)
    graph = space.network_graph(space.sample(np.random.default_rng(0)), ghn_mobile_skeleton(8))
    blocks = {node.cell: node.site.out_shape[1] for node in graph.nodes if node.name.endswith("output")}
    assert list(blocks.values()) == [112, 56, *[28] * 4, *[14] * 4, *[7] * 4]


@pytest.mark.parametrize("stem_stride", [2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_the_widest_skeleton_keeps_the_bound_and_one_channel_more_breaks_it(stem_stride, seed):
    space = ghn_space(17)
    block = space.sample(np.random.default_rng(seed))
    skeleton = widest_skeleton(block, ghn_mobile_skeleton(stem_stride=stem_stride))
    assert space.network_cost(block, skeleton).multiply_adds < 600e6
    assert space.network_cost(block, replace(skeleton, channels=skeleton.channels + 1)).multiply_adds >= 600e6


def test_a_bound_that_is_met_to_the_unit_is_broken():
    space, skeleton = nasbench201_space(), nasbench201_skeleton(1, 5)
    cell = space.sample(np.random.default_rng(0))
    exact = space.network_cost(cell, skeleton).multiply_adds
    assert widest_skeleton(cell, skeleton, exact).channels == 4
    assert widest_skeleton(cell, skeleton, exact + 1).channels == 5


@pytest.mark.parametrize("stem", ["stride2", "stride4"])
def test_a_network_with_a_strided_stem_costs_what_is_said(stem):
    space = ghn_space(3)
    skeleton = Skeleton(("block", "factorized_reduction", "block"), 6, (3, 33, 30), 5, stem=stem)
    network = DiscreteNetwork(NetworkSpace(space, skeleton).adopt(space.sample(np.random.default_rng(1))))
    cost = network.architecture.cost()
    assert sum(parameter.numel() for parameter in network.parameters()) == cost.params
    assert counted_multiply_adds(network.eval(), torch.zeros(1, 3, 33, 30)) == cost.multiply_adds


def test_what_no_mobile_network_can_be_is_refused():
    block = ghn_space(17).sample(np.random.default_rng(0))
    with pytest.raises(ValueError, match="`blocks` must be at least 11"):
        ghn_mobile_skeleton(blocks=10)
    with pytest.raises(ValueError, match="`stem_stride` must be 2 or 4"):
        ghn_mobile_skeleton(stem_stride=3)
    with pytest.raises(ValueError, match="`multiply_adds` must allow for 1 channels"):
        widest_skeleton(block, ghn_mobile_skeleton(), 1e3)
    with pytest.raises(ValueError, match="`stem='stride4'` must get images of at least 4 x 4"):
        NetworkSpace(ghn_space(3), Skeleton(("block",), 4, (3, 3, 8), stem="stride4"))

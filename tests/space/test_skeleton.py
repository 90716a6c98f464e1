"""Frames around cells: the published ones, written and read again, refused when they make no sense."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import placed

from optuna_nas.space import (
    Skeleton,
    cells_with_reductions,
    darts_cifar_skeleton,
    darts_imagenet_skeleton,
    darts_search_skeleton,
    darts_space,
    ghn_skeleton,
    ghn_space,
    nasbench201_skeleton,
    nasbench201_space,
)

PRESETS = {
    "darts search": (darts_space(), darts_search_skeleton()),
    "darts cifar": (darts_space(), darts_cifar_skeleton()),
    "darts imagenet": (darts_space(), darts_imagenet_skeleton()),
    "nasbench201": (nasbench201_space(), nasbench201_skeleton()),
    "ghn": (ghn_space(), ghn_skeleton()),
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
        (lambda: Skeleton(("normal",), stem="moon"), r"`stem` must be one of \('conv', 'imagenet'\) but got 'moon'"),
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

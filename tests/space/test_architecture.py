"""An architecture is a value: equal, hashable, written and read again, here and in another process."""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SPACES, TINY, TINY_BLOCK, TINY_MULTI, architectures, placed, small_skeleton, spaces

from optuna_nas.networks import DiscreteNetwork
from optuna_nas.space import Architecture, Skeleton

ANY = st.sampled_from(list(SPACES.values())).flatmap(lambda space: architectures(space, connected=False))


@given(ANY)
def test_json_there_and_back(architecture):
    text = architecture.to_json()
    assert Architecture.from_json(text) == architecture
    assert Architecture.from_json(text).to_json() == text
    assert Architecture.from_dict(json.loads(text)).space == architecture.space


@given(st.data())
def test_json_there_and_back_in_any_space(data):
    architecture = data.draw(architectures(data.draw(spaces()), connected=False))
    assert Architecture.from_json(architecture.to_json()) == architecture


@given(ANY)
def test_pickle_there_and_back(architecture):
    architecture.cells  # noqa: B018 - what is remembered must travel too, or be left behind
    copy = pickle.loads(pickle.dumps(architecture))
    assert copy == architecture
    assert hash(copy) == hash(architecture)
    assert copy.cells == architecture.cells


@settings(max_examples=10)
@given(st.data())
def test_equal_exactly_when_it_is_the_same_choice(data):
    one, other = data.draw(architectures(TINY_MULTI)), data.draw(architectures(TINY_MULTI))
    assert (one == other) == (one.choices == other.choices)
    again = TINY_MULTI.architecture({path: reversed(one[path]) for path in reversed(list(one))})
    assert again == one
    assert len({one, again}) == 1


def test_the_same_choices_in_another_space_are_another_architecture():
    wider = type(TINY)((*TINY.ops, "max_pool_3x3"), TINY.nodes)
    choices = {"normal_0_2": "skip_connect", "reduction_0_2": "skip_connect"}
    assert TINY.architecture(choices) != wider.architecture(choices)
    assert TINY.architecture(choices).choices == wider.architecture(choices).choices


IN_ANOTHER_PROCESS = """
import pickle, sys
architectures = pickle.load(sys.stdin.buffer)
from optuna_nas.space import Architecture
for architecture in architectures:
    again = Architecture.from_json(architecture.to_json())
    assert again == architecture and hash(again) == hash(architecture) and {again: 1}[architecture] == 1
    print(architecture.to_json(), architecture.cells.digest, architecture.canonical().digest, sep="\\t")
"""


@pytest.mark.process
def test_pickle_json_and_digests_are_the_same_in_a_fresh_process():
    chosen = [
        TINY.architecture({"normal_1_3": "nor_conv_3x3", "normal_0_2": "skip_connect"}),
        TINY_MULTI.architecture({"normal_0_2": TINY_MULTI.ops, "normal_2_3": ("dil_conv_3x3", "skip_connect")}),
        TINY_BLOCK.full_architecture(),
    ]
    for architecture in chosen:
        hash(architecture)
    done = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS],
        input=pickle.dumps(chosen),
        env={**os.environ, "PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"},
        capture_output=True,
        check=True,
    )
    lines = [line.split("\t") for line in done.stdout.decode().splitlines()]
    assert lines == [[a.to_json(), a.cells.digest, a.canonical().digest] for a in chosen]


def test_reads_as_a_mapping_from_path_to_names():
    architecture = TINY_MULTI.architecture({"normal_0_2": ["skip_connect", "dil_conv_3x3"]})
    assert architecture["normal_0_2"] == ("dil_conv_3x3", "skip_connect")
    assert architecture["normal_1_2"] == ()
    assert list(architecture) == list(TINY_MULTI.options())
    assert str(architecture).startswith("normal_0_2=dil_conv_3x3+skip_connect  normal_1_2=none  ")


def test_paths_come_in_the_order_of_the_space():
    # By number, which is also the order of the names themselves: `block_09` comes before `block_10`.
    paths = list(SPACES["ghn"].full_architecture())
    assert paths == [f"block_{i:02}{rest}" for i in range(1, 18) for rest in ("", "_inputs")] == sorted(paths)


def test_none_and_nothing_are_one_choice():
    assert TINY.architecture({"normal_0_2": "none"}) == TINY.architecture({}) == TINY.architecture({"normal_0_2": ()})


def test_is_frozen():
    with pytest.raises(FrozenInstanceError):
        TINY.architecture({}).choices = ()


def test_connected_needs_every_kind_of_cell():
    assert not TINY.architecture({}).connected
    assert not TINY.architecture({"normal_0_2": "skip_connect"}).connected
    assert not TINY.architecture({"normal_2_3": "skip_connect", "reduction_0_2": "skip_connect"}).connected
    assert TINY.architecture({"normal_0_2": "skip_connect", "reduction_1_3": "avg_pool_3x3"}).connected


def test_builds_its_network():
    architecture = placed(TINY_BLOCK.full_architecture(), small_skeleton(TINY_BLOCK))
    network = architecture.build()
    assert isinstance(network, DiscreteNetwork)
    assert network.architecture is architecture


def test_graph_and_cost_are_those_of_its_space():
    architecture, skeleton = TINY.full_architecture(), small_skeleton(TINY)
    assert placed(architecture, skeleton).graph() == TINY.network_graph(architecture, skeleton)
    assert placed(architecture, skeleton).cost() == TINY.network_cost(architecture, skeleton)
    assert architecture.cells == architecture.cells


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Architecture.from_dict({"space": {}}), r"`description` must hold .* lacks \['choices'\]; write it"),
        (
            lambda: Architecture.from_dict({"space": {"type": "Moon"}, "choices": {}}),
            r"`type` of a space must be one of \['AnytimeSpace', 'BlockSpace', 'CellSpace', .*'Moon'; import",
        ),
        (
            lambda: Architecture.from_dict({"space": TINY.to_dict(), "choices": {"normal_0_9": []}}),
            r"`choices` must use the paths of the space but got 'normal_0_9'; the first of 10 is 'normal_0_2'",
        ),
        (
            lambda: Architecture.from_dict({"space": TINY.to_dict(), "choices": {"normal_0_2": ["max_pool_3x3"]}}),
            r"`choices\['normal_0_2'\]` must name ops of the space .* but got 'max_pool_3x3'",
        ),
        (
            lambda: placed(TINY.architecture({}), Skeleton(("normal",))).build(),
            r"`architecture` must connect .*'skip_connect'",
        ),
    ],
)
def test_refuses_with_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()

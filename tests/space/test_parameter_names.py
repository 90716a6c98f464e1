"""Names of parameters: identifiers that sort, and are read in every spelling that other tools give them."""

import argparse
import json
from itertools import groupby

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import json_to_distribution
from strategies import SPACES, TINY, TINY_BLOCK, architectures, spaces

from optuna_nas.space import AnytimeSpace, BlockSpace, CellSpace, ghn_space

ANY = st.sampled_from(list(SPACES.values())).flatmap(lambda space: architectures(space, connected=False))
MANY_NODES = {
    **SPACES,
    "many nodes": CellSpace(("skip_connect", "nor_conv_1x1"), nodes=12),
    "many blocks": AnytimeSpace(("skip_connect",), nodes=(9, 10, 100), max_inputs=1, scales=(1,)),
}


@given(spaces())
def test_names_are_identifiers_of_their_own(space):
    names = list(space.distributions())
    assert all(name.isidentifier() for name in names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", MANY_NODES)
def test_sorted_names_of_a_kind_read_in_order(name):
    space = MANY_NODES[name]

    def numbers(path):
        """Return source and target of an edge, node and property of a block, in the order in which a name has them."""
        _, first, second = space.places[path]
        return (second, first) if isinstance(space, CellSpace) else (first, second)

    for _, paths in groupby(space.options(), space.group):
        paths = list(paths)
        assert sorted(paths) == sorted(paths, key=numbers)


def test_names_tell_source_target_and_property():
    assert CellSpace(("skip_connect",), nodes=9).paths[0] == "normal_00_02"  # as wide as its largest node, 10
    assert list(BlockSpace(("skip_connect",), nodes=1, kind="stage").options()) == ["stage_1", "stage_1_inputs"]
    assert list(ghn_space().options())[8:10] == ["block_05", "block_05_inputs"]
    anytime = AnytimeSpace(("skip_connect",), nodes=(1, 10), scales=(1, 2))
    assert [path for path in anytime.options() if path.startswith("cell2_07")] == [
        "cell2_07",
        "cell2_07_inputs",
        "cell2_07_scale",
        "cell2_07_exit",
    ]


def test_labels_and_groups_part_a_name():
    assert (TINY.group("normal_0_2"), TINY.label("normal_0_2")) == ("normal", "0→2")
    assert (TINY_BLOCK.group("block_3_inputs"), TINY_BLOCK.label("block_3_inputs")) == ("block", "3 inputs")
    assert TINY_BLOCK.label("block_3") == "3"


# -- other spellings ----------------------------------------------------------------------------------------------


def test_names_of_earlier_versions():
    assert TINY.old_names()["reduction_1_3"] == "reduction/3<-1"
    assert ghn_space().old_names()["block_05_inputs"] == "block/5/inputs"
    assert SPACES["anytime"].old_names()["cell2_1_exit"] == "cell2/1/exit"


@given(ANY)
def test_old_names_give_the_same_architecture(architecture):
    space, old = architecture.space, architecture.space.old_names()
    params = space.encode(architecture)
    assert space.decode({old[path]: choice for path, choice in params.items()}) == architecture
    assert space.architecture({old[path]: names for path, names in architecture.choices}) == architecture


@given(ANY)
def test_old_and_new_names_may_be_mixed(architecture):
    space, old = architecture.space, architecture.space.old_names()
    mixed = {
        old[path] if position % 2 else path: choice
        for position, (path, choice) in enumerate(space.encode(architecture).items())
    }
    assert space.decode(mixed) == architecture


def nested(architecture):
    """Return the parameters as a dictionary of dictionaries, one for each kind of cell, under old names."""
    space, found = architecture.space, {}
    for path, choice in space.encode(architecture).items():
        kind, rest = space.old_names()[path].split("/", 1)
        found.setdefault(kind, {})[rest] = choice
    return found


@given(ANY)
def test_nested_dictionaries_give_the_same_architecture(architecture):
    space, params = architecture.space, architecture.space.encode(architecture)
    assert space.decode(nested(architecture)) == architecture
    assert space.decode({"lr": 0.1, "cells": params, "optimizer": {"name": "sgd"}}) == architecture


def test_a_nested_dictionary_by_hand():
    space = SPACES["nasbench201"]
    edges = {"1<-0": "nor_conv_3x3", "2<-0": "none", "2<-1": "none", "3<-0": "skip_connect"}
    architecture = space.decode({"cell": {**edges, "3<-1": "avg_pool_3x3", "3<-2": "none"}})
    assert architecture.summary == "conv3 | none none | skip avg3 none"


@given(ANY)
def test_dashes_give_the_same_architecture(architecture):
    space = architecture.space
    params = {path.replace("_", "-"): choice for path, choice in space.encode(architecture).items()}
    assert space.decode(params) == architecture


@given(ANY)
def test_a_parser_of_arguments_gives_the_same_architecture(architecture):
    space, parser, words = architecture.space, argparse.ArgumentParser(), ["--lr", "0.1"]
    parser.add_argument("--lr", type=float)
    for path, distribution in space.distributions().items():
        parser.add_argument(f"--{path.replace('_', '-')}", choices=distribution.choices, required=True)
    for path, choice in space.encode(architecture).items():
        words += [f"--{path.replace('_', '-')}", choice]
    assert space.decode(vars(parser.parse_args(words))) == architecture


def test_numbers_are_read_as_the_text_of_a_choice():
    # YAML and Hydra read the choice "0" as a number.
    params = TINY_BLOCK.encode(TINY_BLOCK.architecture(dict.fromkeys(TINY_BLOCK.options(), "skip_connect") | INPUTS))
    numbers = {path: int(choice) if choice.isdigit() else choice for path, choice in params.items()}
    assert numbers != params
    assert TINY_BLOCK.decode(numbers) == TINY_BLOCK.decode(params)


INPUTS = {"block_1_inputs": "0", "block_2_inputs": "1", "block_3_inputs": "0", "block_4_inputs": ("2", "3")}


def test_what_is_missing_is_named_as_it_is_today():
    with pytest.raises(ValueError, match="must hold every path of the space but lacks 'normal_0_2'"):
        TINY.decode({"reduction": {"2<-0": "skip_connect"}})
    params = {TINY.old_names()[path]: choice for path, choice in TINY.encode(TINY.architecture({})).items()}
    with pytest.raises(
        ValueError, match=r"`params\['normal_0_2'\]` must be one of the space's 4 choices but is 'moon'"
    ):
        TINY.decode({**params, "normal/2<-0": "moon"})
    with pytest.raises(ValueError, match=r"`params\['normal_0_2'\]` must be one .* but is \"\['moon'\]\""):
        TINY.decode({**params, "normal/2<-0": ["moon"]})


# -- Optuna's JSON ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPACES)
def test_the_json_is_optunas_own(name):
    space = SPACES[name]
    read = {path: json_to_distribution(json.dumps(text)) for path, text in json.loads(space.to_json()).items()}
    assert read == space.distributions()
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask(read)  # as `optuna ask` does
    assert space.encode(space.decode(trial.params)) == trial.params

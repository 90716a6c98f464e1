"""Cells in a skeleton are one value: suggested, built, priced, mixed in a supernet, written, compared, moved."""

import json
import pickle
from dataclasses import dataclass, replace

import numpy as np
import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    SMALL_SPACES,
    SMALL_SUPERNETS,
    TINY,
    TINY_BLOCK,
    architectures,
    counted_parameters,
    few_digits,
    small_skeleton,
)

from optuna_nas.data import TensorData
from optuna_nas.networks import DiscreteNetwork, NetworkSpace, Supernet, one_hot
from optuna_nas.space import Architecture, ModelSpace, Skeleton, Space, nasbench201_skeleton, nasbench201_space

NETWORKS = {name: NetworkSpace(space, small_skeleton(space)) for name, space in SMALL_SPACES.items()}
SPACE = NETWORKS["tiny"]
CONVOLUTIONS = dict.fromkeys(TINY.paths, "nor_conv_3x3")


@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_trial_suggests_is_built_and_priced(name):
    space = NETWORKS[name]
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=2)).ask()
    trial.study.enqueue_trial(space.encode(space.sample(np.random.default_rng(0))))
    architecture = space.suggest(trial.study.ask())
    assert isinstance(space, ModelSpace)
    assert architecture.space is space
    network = architecture.build(seed=0)
    assert isinstance(network, DiscreteNetwork)
    assert (network.architecture, network.space, network.skeleton) == (architecture, space, space.skeleton)
    assert architecture.cost() == space.cost(architecture) == architecture.graph().cost
    assert architecture.cost().params == counted_parameters(network)
    outputs = network.eval()(space.example_inputs(3))
    assert outputs.shape == (3, 3)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_choices_are_those_of_the_cells(name):
    space = NETWORKS[name]
    cells = space.core
    assert cells is space.cells
    assert space.distributions() == cells.distributions()
    assert space.options() == cells.options()
    assert space.size == cells.size
    assert space.to_json() == cells.to_json()
    drawn, there = (place.sample(np.random.default_rng(1)) for place in (space, cells))
    assert (drawn.choices, drawn.summary, drawn.cells) == (there.choices, there.summary, there.cells)
    assert drawn.canonical().digest == there.canonical().digest
    assert [(space.group(path), space.label(path)) for path in drawn] == [
        (cells.group(path), cells.label(path)) for path in drawn
    ]


@settings(max_examples=10)
@given(st.data())
def test_costs_and_graphs_are_those_of_the_cells_in_the_skeleton(data):
    space = data.draw(st.sampled_from(list(NETWORKS.values())))
    architecture = data.draw(architectures(space.cells))
    assert space.adopt(architecture).cost() == space.cells.network_cost(architecture, space.skeleton)
    assert space.adopt(architecture).graph() == space.cells.network_graph(architecture, space.skeleton)


@pytest.mark.parametrize("name", SMALL_SUPERNETS)
def test_its_supernet_holds_the_weights_of_its_networks(name):
    space = NETWORKS[name]
    supernet, images = space.supernet(seed=1).double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert isinstance(supernet, Supernet)
    assert supernet.space is space
    architecture = space.sample(np.random.default_rng(0))
    network = architecture.build(supernet.weights_of(architecture)).double().eval()
    torch.testing.assert_close(supernet(images, one_hot(architecture)), network(images))


# -- as a value ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_json_there_and_back(name):
    space = NETWORKS[name]
    again = Space.from_dict(json.loads(json.dumps(space.to_dict())))
    assert again == space
    assert hash(again) == hash(space)
    assert isinstance(again, NetworkSpace)
    architecture = space.sample(np.random.default_rng(0))
    read = Architecture.from_json(architecture.to_json())
    assert (read, read.space) == (architecture, space)
    assert read.cost() == architecture.cost()


def test_pickle_there_and_back():
    architecture = SPACE.architecture(CONVOLUTIONS)
    architecture.cells  # noqa: B018 - what is remembered must travel too, or be left behind
    space, copy = pickle.loads(pickle.dumps((SPACE, architecture)))
    assert (space, copy) == (SPACE, architecture)
    assert (hash(space), hash(copy)) == (hash(SPACE), hash(architecture))
    assert copy.build(seed=0).space == SPACE


def test_equal_are_equal_cells_in_equal_skeletons():
    assert NetworkSpace(TINY, small_skeleton(TINY)) == SPACE
    wider = SPACE.with_skeleton(channels=8)
    assert wider != SPACE
    assert wider.core == SPACE.core
    assert len({SPACE, NetworkSpace(TINY, small_skeleton(TINY)), wider}) == 2
    assert SPACE.architecture(CONVOLUTIONS) != wider.architecture(CONVOLUTIONS)
    assert SPACE.architecture(CONVOLUTIONS) != TINY.architecture(CONVOLUTIONS)


# -- into another skeleton ----------------------------------------------------------------------------------------


def test_an_architecture_moves_between_skeletons():
    wider = SPACE.with_skeleton(channels=8)
    small = SPACE.architecture(CONVOLUTIONS)
    large = wider.adopt(small)
    assert large == wider.architecture(CONVOLUTIONS)
    assert large.choices == small.choices
    assert large.cost().params > small.cost().params
    assert wider.cost(small) == large.cost()
    assert wider.build(small, seed=0).space == wider
    assert SPACE.adopt(large) == small
    assert SPACE.adopt(small) is small
    assert SPACE.adopt(TINY.architecture(CONVOLUTIONS)) == small
    assert wider.encode(small) == SPACE.encode(large) == TINY.encode(small)


def test_with_skeleton_replaces_the_skeleton_or_fields_of_it():
    other = small_skeleton(TINY, cells=("normal", "normal"), classes=5)
    assert SPACE.with_skeleton() == SPACE
    assert SPACE.with_skeleton(other) == NetworkSpace(TINY, other)
    assert SPACE.with_skeleton(classes=7).skeleton == replace(SPACE.skeleton, classes=7)
    assert SPACE.with_skeleton(other, channels=6).skeleton == replace(other, channels=6)


def test_example_inputs_have_the_shape_of_the_skeleton():
    assert SPACE.with_skeleton(input_shape=(1, 9, 8)).example_inputs(5).shape == (5, 1, 9, 8)
    assert SPACE.example_inputs().shape == (1, 3, 8, 8)


# -- data ---------------------------------------------------------------------------------------------------------


def test_data_must_fit_the_skeleton_in_what_they_tell():
    data = few_digits(10)
    fitting = SPACE.with_skeleton(input_shape=data.input_shape, classes=data.outputs)
    fitting.check_data(data)
    for space in (SPACE, fitting.with_skeleton(classes=9), fitting.with_skeleton(input_shape=(1, 8, 9))):
        with pytest.raises(ValueError, match=r"`data` must fit the skeleton, input_shape=.* but has input_shape="):
            space.check_data(data)
    regression = TensorData.from_arrays(np.random.default_rng(0).normal(size=(40, 1, 8, 8)), np.linspace(0, 1, 40))
    fitting.with_skeleton(classes=1).check_data(regression)
    with pytest.raises(ValueError, match=r"classes=10, but has .* and classes=1; make"):
        fitting.check_data(regression)
    SPACE.check_data(object())  # what tells nothing may fit


# -- spaces that are not built ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flags(Space):
    """A space of one's own with nothing to build: what every space can do follows from six methods."""

    names: tuple[str, ...] = ("fast", "deep")

    def options(self):
        return {name: {"no": (), "yes": ("yes",)} for name in self.names}

    def check_choice(self, path, chosen):
        if set(chosen) - {"yes"}:
            raise ValueError(f"`choices[{path!r}]` must be 'yes' or nothing but got {chosen}.")

    def full_architecture(self):
        return self.architecture(dict.fromkeys(self.names, ("yes",)))

    def summary(self, architecture):
        return " ".join(path for path, chosen in architecture.choices if chosen)

    def to_dict(self):
        return {"type": "Flags", "names": list(self.names)}

    @classmethod
    def _from_dict(cls, description):
        return cls(tuple(description["names"]))


def test_a_space_of_ones_own_is_sampled_suggested_and_read():
    space = Flags()
    assert space.size == 4
    assert {space.sample(np.random.default_rng(seed)).summary for seed in range(30)} == {
        "",
        "fast",
        "deep",
        "fast deep",
    }
    architecture = space.suggest(optuna.trial.FixedTrial({"fast": "yes", "deep": "no"}))
    assert architecture == space.architecture({"fast": "yes"})
    assert space.encode(architecture) == {"fast": "yes", "deep": "no"}
    assert architecture.connected
    assert space.core is space


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NetworkSpace(SPACE, SPACE.skeleton), r"`cells` must be a space of cells but is a NetworkSpace"),
        (lambda: NetworkSpace(Flags(), SPACE.skeleton), r"`cells` must be a space of cells but is a Flags"),
        (lambda: NetworkSpace(TINY, TINY), r"`skeleton` must be a Skeleton but is a CellSpace"),
        (lambda: NetworkSpace(TINY, nasbench201_skeleton()), r"`skeleton.cells` must name the space's cells .*'cell'"),
        (lambda: SPACE.with_skeleton(cells=("reduction",) * 6), r"`skeleton` must not reduce .*use fewer"),
        (lambda: SPACE.with_skeleton(channels=0), r"`channels` must be at least 1 but got 0"),
        (lambda: SPACE.adopt(NETWORKS["nasbench201"].full_architecture()), r"`architecture` must be of this space"),
        (lambda: SPACE.build(TINY_BLOCK.full_architecture()), r"`architecture` must be of this space"),
        (lambda: SPACE.architecture({}).build(), r"`architecture` must connect .*'skip_connect'"),
        *(
            (
                lambda ask=ask: ask(TINY.full_architecture()),
                r"`space` must be .* but is a CellSpace; use `NetworkSpace\(space, skeleton\)`",
            )
            for ask in (Architecture.build, Architecture.cost, Architecture.graph)
        ),
        (lambda: Flags().full_architecture().cells, r"`space` must have cells but is a Flags; look at"),
        (lambda: Flags().full_architecture().cost(), r"`space` must be .* but is a Flags; use `NetworkSpace"),
        (lambda: NETWORKS["anytime"].supernet(), r"`space` must not let nodes choose scales or exits"),
    ],
)
def test_refuses_with_one_sentence(make, message):
    with pytest.raises(ValueError, match=message) as refused:
        make()
    assert str(refused.value).endswith(".")
    assert "\n" not in str(refused.value)


def test_a_skeleton_of_one_output_is_a_regression():
    space = NetworkSpace(nasbench201_space(), Skeleton(("cell",), 4, (3, 8, 8), classes=1))
    network = space.architecture({"cell_0_3": "nor_conv_3x3"}).build()
    assert network(space.example_inputs(4)).shape == (4, 1)

"""Spaces: architectures there and back as Optuna parameters, sampling, real studies, ops of one's own, refusals."""

import json
import sqlite3
from collections import Counter
from math import prod

import numpy as np
import optuna
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import SPACES, TINY, TINY_BLOCK, TINY_MULTI, architectures, placed, small_skeleton, spaces
from torch import nn

from optuna_nas import NetworkSpace
from optuna_nas.networks import DiscreteNetwork, Supernet, one_hot, register_op, unregister_op
from optuna_nas.space import (
    BlockSpace,
    CellKind,
    CellSpace,
    Cost,
    Site,
    Skeleton,
    Space,
    convolution_cost,
    darts_space,
    elementwise_cost,
    ghn_space,
    hmnas_space,
    nasbench201_space,
    norm_cost,
)

ALL = list(SPACES.values())

# -- there and back -----------------------------------------------------------------------------------------------


@given(st.data())
def test_params_round_trip(data):
    space = data.draw(st.sampled_from(ALL))
    architecture = data.draw(architectures(space, connected=False))
    params = space.encode(architecture)
    assert space.decode(params) == architecture
    assert space.architecture(dict(architecture.choices)) == architecture  # the other way to make one
    assert list(params) == list(space.distributions())
    assert all(choice in space.distributions()[path].choices for path, choice in params.items())


@given(st.data())
def test_params_round_trip_in_any_space(data):
    space = data.draw(spaces())
    architecture = data.draw(architectures(space, connected=False))
    assert space.decode(space.encode(architecture)) == architecture
    assert Space.from_dict(json.loads(json.dumps(space.to_dict()))) == space
    assert hash(Space.from_dict(space.to_dict())) == hash(space)


@given(st.data())
def test_every_option_is_a_different_architecture(data):
    space = data.draw(spaces())
    for path, options in space.options().items():
        assert len(set(options.values())) == len(options) == len(space.distributions()[path].choices), path


@given(architectures(TINY), st.dictionaries(st.sampled_from(["lr", "normal", "normal_0_9", "batch"]), st.floats()))
def test_parameters_of_the_users_own_are_ignored(architecture, foreign):
    assert TINY.decode({**foreign, **TINY.encode(architecture)}) == architecture


# -- sizes and names ----------------------------------------------------------------------------------------------


def test_published_spaces_have_the_published_sizes():
    assert nasbench201_space().size == 5**6 == 15_625
    assert darts_space().size == 8**28
    assert hmnas_space().size == 2 ** (7 * 28)
    assert ghn_space().size == 8**17 * prod(n + n * (n - 1) // 2 for n in range(1, 18))


def test_parameters_are_named_after_their_place():
    assert list(nasbench201_space().distributions()) == [
        "cell_0_1",
        "cell_0_2",
        "cell_1_2",
        "cell_0_3",
        "cell_1_3",
        "cell_2_3",
    ]
    assert list(ghn_space(2).distributions()) == ["block_1", "block_1_inputs", "block_2", "block_2_inputs"]
    assert ghn_space(3).distributions()["block_3_inputs"].choices == ("0", "1", "2", "0+1", "0+2", "1+2")


def test_a_multi_op_darts_space_has_28_parameters():
    distributions = hmnas_space().distributions()
    assert len(distributions) == 28
    assert {len(distribution.choices) for distribution in distributions.values()} == {2**7}
    assert len(hmnas_space(max_ops=2).distributions()) == 28
    assert distributions["normal_0_2"].choices[:4] == ("none", "max3", "avg3", "skip")
    assert "skip+sep3" in distributions["normal_0_2"].choices


def test_the_summary_is_one_short_line():
    cell = nasbench201_space().architecture(
        {"cell_0_1": "nor_conv_3x3", "cell_0_2": "skip_connect", "cell_1_3": "avg_pool_3x3"}
    )
    assert cell.summary == "conv3 | skip none | none avg3 none"
    multi = TINY_MULTI.architecture({"reduction_0_2": ("skip_connect", "dil_conv_3x3")})
    assert multi.summary == "normal: none none | none none none; reduction: dil3+skip none | none none none"
    block = BlockSpace(("nor_conv_1x1",), nodes=2, kind="b")
    choices = {"b_1": "nor_conv_1x1", "b_1_inputs": "0", "b_2": "nor_conv_1x1", "b_2_inputs": ("1", "0")}
    assert block.architecture(choices).summary == "conv1(0) conv1(0+1)"


def test_the_full_architecture_keeps_every_op_everywhere():
    for space in ALL:
        full = space.full_architecture()
        assert full.connected
        for path, options in space.options().items():
            assert set().union(*options.values()) <= set(full[path])


# -- sampling -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPACES)
def test_samples_are_in_range_and_repeat_with_the_seed(name):
    space = SPACES[name]
    first, second = np.random.default_rng(3), np.random.default_rng(3)
    drawn = [space.sample(first) for _ in range(20)]
    assert drawn == [space.sample(second) for _ in range(20)]
    assert len(set(drawn)) > 10
    for architecture in drawn:
        assert architecture.connected
        assert space.decode(space.encode(architecture)) == architecture


def test_samples_connect_unless_told_otherwise():
    space = CellSpace(("none", "skip_connect"), nodes=1, inputs=1, cell_kinds=(CellKind("c"),))
    generator = np.random.default_rng(0)
    assert all(space.sample(generator).connected for _ in range(20))
    assert len({space.sample(generator, connected=False).connected for _ in range(20)}) == 2


def test_samples_are_uniform_over_the_options():
    generator, n = np.random.default_rng(0), 3_000
    drawn = [TINY.sample(generator, connected=False) for _ in range(n)]
    assert any(not architecture.connected for architecture in drawn)
    expected = n / len(TINY.ops)
    for path in TINY.paths:
        counts = Counter(architecture[path] for architecture in drawn)
        assert len(counts) == len(TINY.ops)
        assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


# -- real studies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPACES)
def test_a_study_with_tpe_runs_and_returns_what_was_enqueued(name):
    space = SPACES[name]
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=2))
    wanted = space.sample(np.random.default_rng(5))
    study.enqueue_trial(space.encode(wanted))
    seen = []

    def objective(trial):
        trial.suggest_float("lr", 0, 1)  # a user's own parameter beside ours
        seen.append(space.suggest(trial))
        return float(len(seen))

    study.optimize(objective, n_trials=5)
    assert seen[0] == wanted
    assert [space.decode(trial.params) for trial in study.trials] == seen
    assert {path: study.trials[-1].distributions[path] for path in space.distributions()} == space.distributions()


def test_a_trial_of_the_multi_op_space_is_small_in_a_database(tmp_path, capsys):
    space, n_trials = hmnas_space(), 6
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(seed=0))

    def stored():
        with sqlite3.connect(tmp_path / "study.db") as database:
            database.execute("VACUUM")
        database.close()
        return (tmp_path / "study.db").stat().st_size

    before = stored()
    study.optimize(lambda trial: float(space.suggest(trial).connected), n_trials=n_trials)
    again = optuna.load_study(study_name=study.study_name, storage=storage)
    assert [space.decode(trial.params) for trial in again.trials] == [space.decode(t.params) for t in study.trials]
    bytes_a_trial = (stored() - before) / n_trials
    with capsys.disabled():
        print(f"\n  storage of one trial of hmnas_space (28 parameters of 128 choices): {bytes_a_trial / 1000:.0f} kB")
    assert bytes_a_trial < 200_000
    study._storage.remove_session()
    again._storage.remove_session()


# -- ops of one's own ---------------------------------------------------------------------------------------------


class Scale(nn.Module):
    def __init__(self, channels, stride):
        super().__init__()
        self.stride = stride
        self.factor = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, images):
        return images[..., :: self.stride, :: self.stride] * self.factor


@pytest.fixture
def own_ops():
    def scale_cost(site):
        return Cost(params=site.in_channels) + elementwise_cost(site.in_shape, site.out_shape)

    def wide_cost(site: Site):
        weights = convolution_cost(site.in_shape, site.out_shape, (5, 5), bias=True)
        return weights + norm_cost(site.out_channels, site.affine)

    register_op("scale", lambda site: Scale(site.in_channels, site.stride), scale_cost)
    register_op(
        "conv_5x5",
        lambda site: nn.Sequential(
            nn.Conv2d(site.in_channels, site.out_channels, 5, site.stride, 2),
            nn.BatchNorm2d(site.out_channels, affine=site.affine),
        ),
        wide_cost,
        label="conv5",
        relu_first=True,
    )
    yield ("scale", "conv_5x5")
    unregister_op("scale")
    unregister_op("conv_5x5")


def test_a_space_of_ones_own_ops_is_built_priced_and_searched(own_ops):
    space = CellSpace(own_ops, nodes=2, max_ops=2)
    assert space.distributions()["normal_0_2"].choices == ("none", "scale", "conv5", "scale+conv5")
    skeleton = small_skeleton(space)
    architecture = space.architecture(
        {"normal_0_2": "scale", "normal_2_3": ("conv_5x5", "scale"), "reduction_1_2": "conv_5x5"}
    )
    network = placed(architecture, skeleton).build()
    assert placed(architecture, skeleton).cost().params == sum(parameter.numel() for parameter in network.parameters())
    supernet, images = Supernet(NetworkSpace(space, skeleton)), torch.randn(3, 3, 8, 8)
    network = DiscreteNetwork(placed(architecture, skeleton), weights=supernet.weights_of(architecture))
    torch.testing.assert_close(supernet(images, one_hot(architecture)), network(images))


def test_an_op_of_ones_own_with_relu_first_gets_its_relu_from_the_network(own_ops):
    space = CellSpace(("conv_5x5",), nodes=1, inputs=1, cell_kinds=(CellKind("c"),))
    network = placed(space.full_architecture(), Skeleton(("c",), channels=3, input_shape=(3, 6, 6))).build().eval()
    images = torch.randn(2, 3, 6, 6)
    expected = network.parts["classifier"](network.parts["cell0/1<-0/conv_5x5"](network.parts["stem"](images).relu()))
    torch.testing.assert_close(network(images), expected)


def test_an_unregistered_op_is_unknown_again(own_ops):
    register_op("passing", lambda site: nn.Identity(), lambda site: Cost())
    CellSpace(("passing",))
    unregister_op("passing")
    with pytest.raises(ValueError, match=r"`op` must be a registered op but got 'passing'; known: .*register_op"):
        CellSpace(("passing",))
    register_op("passing", lambda site: nn.Identity(), lambda site: Cost())  # the name is free again
    unregister_op("passing")


def own(name, **options):
    """Register an op that should be refused; taken out again where it is not, for the tests after."""
    register_op(name, lambda site: nn.Identity(), lambda site: Cost(), **options)
    unregister_op(name)


# -- refusals -----------------------------------------------------------------------------------------------------

OPS = ("skip_connect", "nor_conv_1x1")
BLOCK = {f"block_{n}": "skip_connect" for n in (1, 2, 3, 4)} | {f"block_{n}_inputs": "0" for n in (1, 2, 3, 4)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CellSpace(("moon",)), r"`op` must be a registered op but got 'moon'; known: none, skip_connect, "),
        (lambda: CellSpace(("skip_connect",) * 2), r"`ops` must differ but 'skip_connect' stands more .*; remove it"),
        (lambda: CellSpace(("none",)), r"`ops` must hold an op that computes .* got \('none',\); add"),
        (lambda: CellSpace(()), r"`ops` must hold an op that computes something but got \(\); add 'skip_connect'"),
        (lambda: CellSpace(("none", *OPS), max_ops=2), r"`ops` must not hold 'none' here: .*; leave it out"),
        (lambda: CellSpace(OPS, inputs=3), r"`inputs` must be 1 or 2 but got 3; DARTS reads two"),
        (lambda: CellSpace(OPS, nodes=0), r"`nodes` must be at least 1 but got 0; DARTS uses 4"),
        (lambda: CellSpace(OPS, max_ops=3), r"`max_ops` must be from 1 to 2, the number of ops, but got 3"),
        (lambda: CellSpace(OPS, max_ops=0), r"`max_ops` must be from 1 to 2, .* but got 0"),
        (lambda: CellSpace(OPS, cell_kinds=()), r"`cell_kinds` must be one or more kinds with different names"),
        (lambda: CellSpace(OPS, cell_kinds=(CellKind("a"),) * 2), r"`cell_kinds` must be .* different names"),
        (
            lambda: CellSpace(OPS, nodes=2, cell_kinds=(CellKind("a", outputs=(4,)),)),
            r"`outputs` of cell kind 'a' must be nodes from 2 to 3 but got 4",
        ),
        (lambda: BlockSpace(("none", *OPS)), r"`ops` must not hold 'none' here"),
        (lambda: BlockSpace(OPS, nodes=0), r"`nodes` must be at least 1 and at most 100 but got 0"),
        (lambda: BlockSpace(OPS, max_inputs=0), r"`max_inputs` must be at least 1 and at most 100 but got 0"),
        (lambda: TINY_BLOCK.architecture({}), r"`choices\['block_1'\]` must keep at least one name: every node has"),
        (
            lambda: TINY_BLOCK.architecture({**BLOCK, "block_2_inputs": ("0", "0")}),
            r"`choices\['block_2_inputs'\]` must name different ones but got \('0', '0'\)",
        ),
        (
            lambda: TINY_BLOCK.architecture({**BLOCK, "block_2_inputs": "2"}),
            r"`choices\['block_2_inputs'\]` must be among \('0', '1'\) but got '2'",
        ),
        (lambda: TINY_BLOCK.architecture({**BLOCK, "block_2": "moon"}), r"`choices\['block_2'\]` .* but got 'moon'"),
        (
            lambda: TINY.encode(nasbench201_space().full_architecture()),
            r"`architecture` must be of this space .*; rebuild it",
        ),
        (
            lambda: TINY.encode(TINY.full_architecture()),
            r"`architecture` must use the options .* at 'normal_0_2'; it can be",
        ),
        (lambda: TINY.decode({"lr": 0.1}), r"`params` must hold every path of the space but lacks 'normal_0_2'"),
        (
            lambda: TINY.decode({**TINY.encode(TINY.architecture({})), "normal_1_2": "moon"}),
            r"`params\['normal_1_2'\]` must be one of the space's 4 choices but is 'moon'",
        ),
        (
            lambda: Space.from_dict({}),
            r"`type` of a space must be one of \[.*'BlockSpace', 'CellSpace'.*\] but got None; import",
        ),
        (lambda: own("sep_conv_3x3"), r"`name` of an op must be new but 'sep_conv_3x3' is taken; choose"),
        (lambda: own("mine", label="sep3"), r"`label` of an op must be new but 'sep3' is taken; choose"),
        (lambda: own(""), r"`name` of an op must be non-empty .* but got ''; use letters, digits and underscores"),
        *((lambda bad=bad: own(bad), r"`name` of an op must be .*; use letters, digits") for bad in ("a/b", "a+b")),
        (lambda: own("none"), r"`name`"),
        (lambda: own("sum"), r"`name`"),
        (lambda: own("mine", label="none"), r"`label`"),
        (lambda: own("mine", label="a+b"), r"`label`"),
        (lambda: CellSpace(("classifier",)), r"`ops` must be choosable but 'classifier' is a fixed part"),
        (lambda: CellSpace(OPS, cell_kinds=(CellKind("factorized_reduction"),)), r"`cell_kinds`"),
        (lambda: BlockSpace(OPS, kind="a/b"), r"`kind`"),
        (lambda: unregister_op("moon"), r"`op` must be a registered op but got 'moon'"),
        (lambda: unregister_op("sep_conv_3x3"), r"`name` must be an op of your own but 'sep_conv_3x3' is part of"),
    ],
)  # fmt: skip
def test_refuses_with_one_sentence(make, message):
    with pytest.raises(ValueError, match=message) as refused:
        make()
    assert str(refused.value).endswith(".")
    assert "\n" not in str(refused.value)

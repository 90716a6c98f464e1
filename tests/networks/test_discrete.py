"""The network of one architecture: its seed, its heads, its drop-path, what it computes and what it spares."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SMALL_SPACES, TINY, architectures, placed, small_skeleton

from optuna_nas.networks import (
    DiscreteNetwork,
    NetworkSpace,
    measure_latency,
    register_op,
    unregister_op,
    use_batch_statistics,
)
from optuna_nas.space import (
    CellKind,
    CellSpace,
    Cost,
    Skeleton,
    darts_space,
    nasbench201_skeleton,
    nasbench201_space,
)

ONE_EDGE = CellSpace(
    ("skip_connect", "nor_conv_3x3", "max_pool_3x3"),
    nodes=1,
    inputs=1,
    cell_kinds=(CellKind("normal"), CellKind("reduction", 2)),
)
SPACE = NetworkSpace(TINY, small_skeleton(TINY))
CONVOLUTIONS = SPACE.architecture(dict.fromkeys(SPACE.options(), "nor_conv_3x3"))


def images(batch=4, size=8):
    return torch.randn(batch, 3, size, size)


def states_equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# -- weights ------------------------------------------------------------------------------------------------------


def test_a_seed_makes_the_same_weights_whatever_was_drawn_before():
    one = DiscreteNetwork(CONVOLUTIONS, seed=7).state_dict()
    torch.rand(10)
    assert states_equal(one, DiscreteNetwork(CONVOLUTIONS, seed=7).state_dict())
    assert not states_equal(one, DiscreteNetwork(CONVOLUTIONS, seed=8).state_dict())
    assert not states_equal(one, DiscreteNetwork(CONVOLUTIONS).state_dict())


def test_a_seed_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    DiscreteNetwork(CONVOLUTIONS, seed=7)
    assert torch.equal(torch.rand(4), expected)


def test_networks_built_in_threads_have_the_weights_of_their_seeds():
    seeds = [0, 1, 2, 3] * 4
    alone = {seed: DiscreteNetwork(CONVOLUTIONS, seed=seed).state_dict() for seed in set(seeds)}
    with ThreadPoolExecutor(8) as threads:
        built = list(threads.map(lambda seed: DiscreteNetwork(CONVOLUTIONS, seed=seed).state_dict(), seeds))
    assert all(states_equal(state, alone[seed]) for seed, state in zip(seeds, built, strict=True))


def test_weights_given_are_taken_and_must_fit_exactly():
    network = DiscreteNetwork(CONVOLUTIONS)
    again = DiscreteNetwork(CONVOLUTIONS, weights=network.state_dict())
    assert states_equal(network.state_dict(), again.state_dict())
    short = dict(list(network.state_dict().items())[1:])
    with pytest.raises(RuntimeError, match="Missing key"):
        DiscreteNetwork(CONVOLUTIONS, weights=short)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_a_copy_computes_the_same(duplicate):
    network, x = DiscreteNetwork(CONVOLUTIONS).eval(), images()
    assert torch.equal(duplicate(network)(x), network(x))


def test_kernels_are_laid_out_channels_last():
    network = DiscreteNetwork(CONVOLUTIONS)
    kernels = [p for p in network.parameters() if p.dim() == 4 and min(p.shape[1:]) > 1]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


# -- without weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL_SPACES)
@settings(max_examples=3)
@given(data=st.data())
def test_a_blank_network_computes_with_the_weights_it_is_given(name, data):
    space = SMALL_SPACES[name]
    architecture = placed(data.draw(architectures(space)), small_skeleton(space))
    network, blank = DiscreteNetwork(architecture).eval(), DiscreteNetwork(architecture, blank=True)
    assert {key: tensor.shape for key, tensor in blank.state_dict().items()} == {
        key: tensor.shape for key, tensor in network.state_dict().items()
    }
    x = images()
    found = torch.func.functional_call(blank.eval(), network.state_dict(), (x,), tie_weights=False)
    assert torch.equal(found, network(x))
    assert all(tensor.is_meta for tensor in blank.state_dict().values())


def test_a_blank_network_has_settings_of_its_own():
    first, second = (DiscreteNetwork(CONVOLUTIONS, blank=True) for _ in range(2))
    use_batch_statistics(first)
    first.eval()
    first.parts["stem"].register_forward_hook(lambda *_: None)
    assert not second.parts["stem"]._forward_hooks
    assert all(part.training for part in second.modules())
    norms = [part for part in second.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert all(norm.track_running_stats for norm in norms)
    assert norms


def test_an_op_that_is_defined_anew_is_built_anew():
    skeleton = Skeleton(("cell",), 4, (3, 8, 8), 3)
    for kernel in (1, 3):
        register_op("mine", lambda site, k=kernel: torch.nn.Conv2d(4, 4, k, 1, k // 2), lambda site: Cost())
        cell = CellSpace(("mine",), 1, 1, (CellKind("cell"),)).full_architecture()
        shapes = {tuple(tensor.shape) for tensor in DiscreteNetwork(placed(cell, skeleton), blank=True).parameters()}
        unregister_op("mine")
        assert (4, 4, kernel, kernel) in shapes


# -- what it computes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL_SPACES)
@settings(max_examples=5)
@given(data=st.data())
def test_any_architecture_learns(name, data):
    space = SMALL_SPACES[name]
    network = DiscreteNetwork(placed(data.draw(architectures(space)), small_skeleton(space)))
    outputs = network(images())
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert {scores.shape for scores in outputs} == {(4, 3)}
    sum(F.cross_entropy(scores, torch.tensor([0, 1, 2, 0])) for scores in outputs).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def computed(network):
    """Names of the parts that run in one forward pass."""
    ran = []
    hooks = [part.register_forward_hook(lambda *_, name=name: ran.append(name)) for name, part in network.parts.items()]
    with torch.no_grad():
        network(images())
    for hook in hooks:
        hook.remove()
    return set(ran)


def test_what_leads_nowhere_is_not_built():
    space = NetworkSpace(nasbench201_space(), Skeleton(("cell",), channels=4, input_shape=(3, 8, 8)))
    ops = {"cell_0_3": "nor_conv_1x1", "cell_0_2": "nor_conv_3x3", "cell_1_3": "nor_conv_3x3"}
    network = space.architecture(ops).build()
    assert computed(network) == {"stem", "cell0/3<-0/nor_conv_1x1", "classifier"}
    assert set(network.parts) == computed(network)


def test_a_relu_is_shared_by_the_ops_that_read_one_tensor(monkeypatch):
    calls = []
    relu = F.relu
    monkeypatch.setattr(F, "relu", lambda x, *rest, **options: calls.append(1) or relu(x, *rest, **options))
    cells = CellSpace(("nor_conv_1x1", "nor_conv_3x3"), nodes=1, inputs=1, cell_kinds=(CellKind("c"),), max_ops=2)
    space = NetworkSpace(cells, Skeleton(("c",), channels=4, input_shape=(3, 8, 8)))
    space.full_architecture().build()(images())
    assert len(calls) == 1


def test_a_batch_norm_network_does_not_mix_images_in_evaluation():
    network, x = DiscreteNetwork(CONVOLUTIONS).eval(), images()
    one_by_one = torch.cat([network(image[None]) for image in x])
    torch.testing.assert_close(network(x), one_by_one)


def test_a_nasbench201_cell_by_hand():
    space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(repeats=1, channels=4, input_shape=(3, 8, 8)))
    ops = {"cell_0_1": "nor_conv_3x3", "cell_0_2": "skip_connect", "cell_1_2": "avg_pool_3x3"}
    network = space.architecture({**ops, "cell_2_3": "nor_conv_1x1", "cell_1_3": "skip_connect"}).build().eval()
    parts, y = network.parts, network.parts["stem"](x := images())
    for cell in (0, 1, 2, 3, 4):
        if cell % 2:
            y = parts[f"cell{cell}/residual_reduction"](y)
        else:
            node1 = parts[f"cell{cell}/1<-0/nor_conv_3x3"](y.relu())
            node2 = y + F.avg_pool2d(node1, 3, 1, 1, count_include_pad=False)
            y = parts[f"cell{cell}/3<-2/nor_conv_1x1"](node2.relu()) + node1
    expected = parts["classifier"].linear(parts["norm"](y).mean((2, 3)))
    torch.testing.assert_close(network(x), expected)


def test_a_node_that_nothing_feeds_contributes_zeros_to_the_output():
    architecture = TINY.architecture({"normal_1_3": "avg_pool_3x3", "reduction_0_2": "skip_connect"})
    network, x = placed(architecture, small_skeleton(TINY, cells=("normal",))).build().eval(), images()
    node3 = F.avg_pool2d(network.parts["cell0/preprocess1"](network.parts["stem"](x).relu()), 3, 1, 1, False, False)
    expected = torch.cat([torch.zeros_like(node3), node3], dim=1).mean((2, 3))
    torch.testing.assert_close(network(x), network.parts["classifier"].linear(expected))


# -- heads and drop-path ------------------------------------------------------------------------------------------


def test_the_auxiliary_head_speaks_in_training_only():
    network = DiscreteNetwork(placed(CONVOLUTIONS, small_skeleton(TINY, auxiliary=True)))
    scores, auxiliary = network(images())
    assert scores.shape == auxiliary.shape == (4, 3)
    auxiliary.sum().backward()
    assert network.parts["classifier"].linear.weight.grad is None
    assert isinstance(network.eval()(images()), torch.Tensor)
    assert "auxiliary" not in computed(network)


def drop_path_scales(architecture, cells, p=0.75):
    """How much each image's result is scaled by drop-path, where one op stands between stem and classifier."""
    skeleton = Skeleton(cells, channels=4, input_shape=(3, 8, 8), classes=3)
    network = placed(architecture, skeleton).build().train()
    with torch.no_grad():
        network.parts["classifier"].linear.bias.zero_()
        x = images(200)
        plain, dropped = network(x), network(x, drop_path=p, generator=torch.Generator().manual_seed(0))
    return (dropped / plain).mean(1)


def test_drop_path_drops_an_op_for_whole_images_and_scales_up_the_rest():
    scales = drop_path_scales(ONE_EDGE.architecture(dict.fromkeys(ONE_EDGE.paths, "nor_conv_3x3")), ("normal",))
    kept = scales > 2
    torch.testing.assert_close(scales, torch.where(kept, 4.0, 0.0), rtol=1e-3, atol=1e-3)
    assert 0.15 < kept.float().mean() < 0.35


def test_drop_path_spares_a_skip_and_falls_on_a_pool():
    skip = drop_path_scales(ONE_EDGE.architecture(dict.fromkeys(ONE_EDGE.paths, "skip_connect")), ("normal",))
    torch.testing.assert_close(skip, torch.ones(200))
    pool = drop_path_scales(ONE_EDGE.architecture(dict.fromkeys(ONE_EDGE.paths, "max_pool_3x3")), ("normal",))
    assert (pool == 0).any()


def test_drop_path_falls_on_a_strided_skip():
    skip = drop_path_scales(ONE_EDGE.architecture(dict.fromkeys(ONE_EDGE.paths, "skip_connect")), ("reduction",))
    assert (skip == 0).any()


def test_drop_path_repeats_with_its_generator_and_sleeps_in_evaluation():
    network, x = DiscreteNetwork(CONVOLUTIONS), images(8)
    runs = [network(x, drop_path=0.5, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    network.eval()
    assert torch.equal(network(x, drop_path=0.5), network(x))


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.75])
def test_inside_of_a_step_drop_path_is_as_large_as_the_training_is_far(progress):
    network, x = SPACE.with_skeleton(drop_path=0.6).build(CONVOLUTIONS, seed=0), images(8)
    expected = network(x, drop_path=0.6 * progress, generator=torch.Generator().manual_seed(3))
    with network.step_context(progress, torch.Generator().manual_seed(3)):
        dropped = network(x)
        given = network(x, drop_path=0.0)  # what a caller says goes before
        assert not network.eval()(x).isnan().any()
        assert torch.equal(network(x), network(x))  # asleep in evaluation
    assert torch.equal(dropped, expected)
    assert torch.equal(dropped, given) == (progress == 0)
    network.train()
    assert torch.equal(network(x), given)  # outside nothing is dropped


def test_a_step_that_fails_drops_nothing_afterwards():
    network, x = SPACE.with_skeleton(drop_path=0.6).build(CONVOLUTIONS, seed=0), images(8)
    with pytest.raises(RuntimeError), network.step_context(0.9, torch.Generator()):
        network(images(8, size=3)[:, :2])
    assert torch.equal(network(x), network(x))


# -- the world outside --------------------------------------------------------------------------------------------


def test_an_exported_network_computes_the_same_for_batches_of_any_size():
    space = darts_space()
    ops = {
        "0_2": "sep_conv_3x3",
        "1_2": "max_pool_3x3",
        "2_3": "skip_connect",
        "1_5": "dil_conv_5x5",
    }  # node 4 is empty
    choices = {f"{kind}_{edge}": op for kind in ("normal", "reduction") for edge, op in ops.items()}
    network = DiscreteNetwork(placed(space.architecture(choices), small_skeleton(space, auxiliary=True))).eval()
    batch = torch.export.Dim("batch")
    exported = torch.export.export(network, (images(2),), dynamic_shapes=({0: batch},)).module()
    x = images(5)
    torch.testing.assert_close(exported(x), network(x))


def test_latency_is_positive_and_the_mode_is_kept():
    network = DiscreteNetwork(CONVOLUTIONS)
    state = copy.deepcopy(network.state_dict())
    seconds = measure_latency(network, images(), repeats=3)
    assert 0 < seconds < 10
    assert network.training
    assert states_equal(state, network.state_dict())  # no statistics learned while measuring
    assert measure_latency(network.eval(), images(), repeats=1) > 0
    assert not network.training


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: DiscreteNetwork(SPACE.architecture({"normal_0_2": "skip_connect"})),
            r"`architecture` must connect an input .*normal_0_2=skip_connect.*; keep an op on some path",
        ),
        (
            lambda: SPACE.with_skeleton(cells=("normal", "moon")),
            r"`skeleton.cells` must name the space's cells .* but got 'moon'",
        ),
        (
            lambda: measure_latency(DiscreteNetwork(CONVOLUTIONS), images(), repeats=0),
            r"`repeats` must be at least 1 but got 0",
        ),
    ],
)
def test_refuses_with_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()

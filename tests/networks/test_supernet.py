"""A supernet is every network of its space: one-hot it is the discrete one, soft it is the plain weighted sum."""

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    SMALL_SUPERNETS,
    SPACES,
    TINY,
    TINY_ANYTIME,
    TINY_BLOCK,
    architectures,
    counted_parameters,
    placed,
    small_skeleton,
    spaces,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from optuna_nas.networks import NetworkSpace, Supernet, one_hot, use_batch_statistics
from optuna_nas.space import (
    AnytimeSpace,
    BlockSpace,
    CellSpace,
    Skeleton,
    darts_search_skeleton,
    darts_space,
    hmnas_space,
    nasbench201_skeleton,
    nasbench201_space,
)


def images(batch=3):
    return torch.randn(batch, 3, 8, 8, dtype=torch.float64)


def supernet_of(space, **changes):
    return Supernet(NetworkSpace(space, small_skeleton(space, **changes)), seed=1).double()


# -- sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "skeleton", "parameters"),
    [
        (darts_space(), darts_search_skeleton(), 1_930_618),
        (hmnas_space(), darts_search_skeleton(), 1_930_618),
        (nasbench201_space(), nasbench201_skeleton(affine=False), 1_692_826),
    ],
    ids=["darts", "hmnas", "nasbench201"],
)
def test_published_supernets_have_the_published_size(space, skeleton, parameters):
    space = NetworkSpace(space, skeleton)
    with torch.device("meta"):
        assert counted_parameters(space.supernet()) == parameters
    assert space.full_architecture().cost().params == parameters


def test_nodes_that_choose_scales_are_refused():
    for space in (TINY_ANYTIME, AnytimeSpace(TINY_ANYTIME.ops, (3, 2), scales=(1,))):
        with pytest.raises(ValueError, match="`space` must not let nodes choose scales or exits"):
            Supernet(NetworkSpace(space, small_skeleton(space)))


def test_names_say_what_a_vector_stands_for():
    assert TINY.mixed_names() == dict.fromkeys(TINY.paths, TINY.ops)
    assert hmnas_space().mixed_names()["normal_0_2"] == hmnas_space().ops
    names = BlockSpace(("nor_conv_1x1", "max_pool_3x3"), nodes=12).mixed_names()
    assert set(names["block_02"]) == {"nor_conv_1x1", "max_pool_3x3"}
    assert names["block_12_inputs"] == tuple(map(str, range(12)))  # by number, not "10" before "2"


@given(st.data())
def test_one_hot_holds_a_one_for_each_kept_name(data):
    architecture = data.draw(architectures(data.draw(st.sampled_from(list(SPACES.values())))))
    for path, vector in one_hot(architecture).items():
        names = architecture.space.mixed_names()[path]
        chosen = {name for name, weight in zip(names, vector.tolist(), strict=True) if weight}
        assert set(vector.tolist()) <= {0.0, 1.0}
        assert chosen - {"none"} == set(architecture[path])
        assert ("none" in chosen) == (not architecture[path] and "none" in names)


# -- one-hot: the discrete network --------------------------------------------------------------------------------


def check_one_hot_equals_discrete(architecture, skeleton, training):
    architecture = placed(architecture, skeleton)
    supernet = architecture.space.supernet(seed=1).double().train(training)
    network = architecture.build().double().train(training)
    network.load_state_dict(supernet.weights_of(architecture))
    x = torch.randn(3, *skeleton.input_shape, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2])
    ours, theirs = supernet(x, one_hot(architecture)), network(x)
    torch.testing.assert_close(ours, theirs)
    F.cross_entropy(ours, labels).backward()
    F.cross_entropy(theirs, labels).backward()
    gradients = dict(supernet.named_parameters())
    for name, parameter in network.named_parameters():
        gradient = gradients.pop(name).grad
        assert (gradient is None) == (parameter.grad is None), name
        if gradient is not None:
            torch.testing.assert_close(gradient, parameter.grad, msg=name)
    assert all(parameter.grad is None for parameter in gradients.values())  # what is not chosen learns nothing
    after = supernet.state_dict()
    for name, value in network.state_dict().items():  # running statistics too
        torch.testing.assert_close(after[name], value, msg=name)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", SMALL_SUPERNETS)
@settings(max_examples=6)
@given(data=st.data())
def test_a_supernet_with_a_one_hot_choice_is_the_discrete_network(name, training, data):
    space = SMALL_SUPERNETS[name]
    affine, pool_norm = data.draw(st.booleans()), data.draw(st.booleans())
    skeleton = small_skeleton(space, affine=affine, pool_norm=pool_norm, input_shape=(3, 9, 8))
    check_one_hot_equals_discrete(data.draw(architectures(space)), skeleton, training)


@pytest.mark.parametrize("name", ["darts", "hmnas", "ghn"])
@settings(max_examples=2)
@given(data=st.data())
def test_a_full_supernet_with_a_one_hot_choice_is_the_discrete_network(name, data):
    space = SPACES[name]
    cells = ("reduction", "normal") if name != "ghn" else ("block",)
    skeleton = small_skeleton(space, cells=cells, channels=2)
    check_one_hot_equals_discrete(data.draw(architectures(space)), skeleton, training=True)


@settings(max_examples=15)
@given(data=st.data())
def test_a_supernet_of_any_space_with_a_one_hot_choice_is_the_discrete_network(data):
    space = data.draw(spaces(anytime=False))
    cells = ("factorized_reduction", *(kind.name for kind in space.kinds))
    skeleton = Skeleton(cells, channels=2, input_shape=(3, 6, 7), classes=3)
    check_one_hot_equals_discrete(data.draw(architectures(space)), skeleton, training=True)


def test_a_supernet_of_a_block_with_one_op_is_the_discrete_network():
    space = BlockSpace(("nor_conv_3x3",), nodes=2)
    ops = dict.fromkeys(("block_1", "block_2"), "nor_conv_3x3")
    architecture = space.architecture({**ops, "block_1_inputs": "0", "block_2_inputs": "0"})
    check_one_hot_equals_discrete(architecture, Skeleton(("block",), 2, (3, 6, 6), 3), training=False)


def test_weights_of_are_shared_with_the_supernet_and_copied_into_the_network():
    supernet = supernet_of(TINY)
    architecture = TINY.architecture(dict.fromkeys(TINY.paths, "nor_conv_3x3"))
    weights = supernet.weights_of(architecture)
    state = supernet.state_dict()
    assert all(tensor.data_ptr() == state[name].data_ptr() for name, tensor in weights.items())
    network = supernet.space.build(architecture, weights)
    with torch.no_grad():
        network.parts["stem"][0].weight.zero_()
    assert supernet.parts["stem"][0].weight.abs().sum() > 0


# -- soft: a plain sum --------------------------------------------------------------------------------------------

RELU_FIRST = ("sep_conv_3x3", "dil_conv_3x3", "nor_conv_1x1", "nor_conv_3x3", "preprocess", "factorized_reduction")


def apply(supernet, name, op, x):
    """One op called by itself, its ReLU included; a skip at stride 1 has no module."""
    x = x.relu() if op in RELU_FIRST else x
    return supernet.parts[name](x) if name in supernet.parts else x


def plain_cell(supernet, cell, kind, sources, mixing):
    values = []
    for i, source in enumerate(sources):
        name = f"cell{cell}/preprocess{i}"
        reduces = name in supernet.parts and type(supernet.parts[name]).__name__ == "FactorizedReduction"
        op = "factorized_reduction" if reduces else "preprocess"
        values.append(apply(supernet, name, op, source) if name in supernet.parts else source)
    space = supernet.space.cells
    for target in range(space.inputs, space.inputs + space.nodes):
        total = 0
        for source in range(target):
            path = f"{kind.name}_{source}_{target}"
            for op, weight in zip(space.ops, mixing[path], strict=True):
                if op != "none":
                    total = total + weight * apply(supernet, f"cell{cell}/{target}<-{source}/{op}", op, values[source])
        values.append(total)
    return torch.cat([values[node] for node in kind.outputs or range(space.inputs, len(values))], dim=1)


def plain_block(supernet, cell, kind, sources, mixing):
    """As GHN reads it, relaxed: a node belongs to the output as far as no later node reads it."""
    space, values = supernet.space.cells, [sources[0]]
    for node in range(1, space.nodes + 1):
        total = 0
        for op, op_weight in zip(space.mixed_names()[f"block_{node}"], mixing[f"block_{node}"], strict=True):
            for source, weight in zip(values, mixing[f"block_{node}_inputs"], strict=True):
                total = total + op_weight * weight * apply(supernet, f"cell{cell}/{node}/{op}", op, source)
        values.append(total)
    out = 0
    for node in range(1, space.nodes + 1):
        unread = 1
        for later in range(node + 1, space.nodes + 1):
            unread = unread * (1 - mixing[f"block_{later}_inputs"][node])
        out = out + unread * values[node]
    return out


def plain_forward(supernet, x, mixing):
    """The supernet without any cleverness."""
    space, skeleton = supernet.space.cells, supernet.space.skeleton
    kinds = {kind.name: kind for kind in space.kinds}
    previous = [supernet.parts["stem"](x)] * space.n_inputs
    for cell, name in enumerate(skeleton.cells):
        if name in kinds:
            place = plain_cell if isinstance(space, CellSpace) else plain_block
            out = place(supernet, cell, kinds[name], previous, mixing)
        else:
            out = apply(supernet, f"cell{cell}/{name}", name, previous[-1])
        previous = [*previous[1:], out]
    out = supernet.parts["norm"](previous[-1]) if skeleton.norm_before_head else previous[-1]
    return supernet.parts["classifier"].linear(out.mean((2, 3)))


def random_logits(space, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        path: torch.randn(len(names), generator=generator, dtype=torch.float64).requires_grad_()
        for path, names in space.mixed_names().items()
    }


def softmaxes(logits):
    return {path: logit.softmax(dim=0) for path, logit in logits.items()}


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain-norm"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", SMALL_SUPERNETS)
def test_a_soft_mixture_is_the_plain_weighted_sum(name, training, affine):
    space = SMALL_SUPERNETS[name]
    supernet, x = supernet_of(space, affine=affine).train(training), images()
    labels, gradients, statistics = torch.tensor([0, 1, 2]), [], []
    initial = {key: value.clone() for key, value in supernet.state_dict().items()}
    for forward in (supernet, lambda x, mixing: plain_forward(supernet, x, mixing)):
        logits = random_logits(space)
        supernet.zero_grad()
        scores = forward(x, softmaxes(logits))
        F.cross_entropy(scores, labels).backward()
        weights = {key: parameter.grad.clone() for key, parameter in supernet.named_parameters()}
        gradients.append((scores.detach(), {path: logit.grad for path, logit in logits.items()}, weights))
        statistics.append({key: buffer.clone() for key, buffer in supernet.named_buffers()})
        supernet.load_state_dict(initial)
    (ours, our_logits, our_weights), (plain, plain_logits, plain_weights) = gradients
    torch.testing.assert_close(*statistics)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(our_logits, plain_logits)
    torch.testing.assert_close(our_weights, plain_weights)
    assert all(gradient.abs().max() > 0 for gradient in our_logits.values() if len(gradient) > 1)


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain-norm"])
@pytest.mark.parametrize("name", SMALL_SUPERNETS)
def test_weights_that_are_ones_take_the_gradients_of_a_product_without_one(name, affine):
    space, labels, found = SMALL_SUPERNETS[name], torch.tensor([0, 1, 2]), []
    drawn = isinstance(space, CellSpace)
    computed = space.sample(np.random.default_rng(3)) if drawn else space.full_architecture()
    active = {path: set(computed[path] or ("none",)) for path in space.mixed_names()}
    x = images()
    for ones in (True, False):
        supernet = supernet_of(space, affine=affine).train()
        weights = {
            path: torch.ones(len(names), dtype=torch.float64, requires_grad=True)
            for path, names in space.mixed_names().items()
        }
        with Products() as products:
            scores = supernet(x, weights, active, ones=ones)
            F.cross_entropy(scores, labels).backward()
        gradients = {path: weight.grad for path, weight in weights.items()}
        parameters = {key: parameter.grad for key, parameter in supernet.named_parameters()}
        found.append((scores.detach(), gradients, parameters, products.maps))
    (*with_ones, n_with), (*without, n_without) = found
    torch.testing.assert_close(with_ones, without)
    assert n_with < n_without or n_without == 0


class Products(TorchDispatchMode):
    """Counts products of maps with something."""

    def __init__(self):
        super().__init__()
        self.maps = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        self.maps += name in ("mul", "addcmul_") and result.ndim == 4
        return result


def test_a_step_keeps_little_more_than_half_of_what_the_plain_sum_keeps_for_its_backward_pass():
    space = nasbench201_space()
    supernet = Supernet(NetworkSpace(space, nasbench201_skeleton(1, 8, (3, 8, 8), affine=False)), seed=0)
    x, kept = torch.randn(16, 3, 8, 8), []
    for forward in (supernet, lambda x, mixing: plain_forward(supernet, x, mixing)):
        sizes = {}

        def keep(tensor, sizes=sizes):
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            scores = forward(x, {path: row.float() for path, row in softmaxes(random_logits(space)).items()})
        kept.append(sum(sizes.values()))
        del scores
    assert kept[0] <= 0.6 * kept[1], kept


def test_constant_soft_weights_give_what_trainable_ones_give():
    supernet, x = supernet_of(TINY).eval(), images()
    mixing = softmaxes(random_logits(TINY))
    constant = {path: weights.detach() for path, weights in mixing.items()}
    torch.testing.assert_close(supernet(x, constant), supernet(x, mixing))


def test_weights_need_not_sum_to_one():
    # HM-NAS multiplies masks of its own: any number is a weight.
    supernet, x = supernet_of(TINY).eval(), images()
    mixing = {path: 3 * torch.randn(len(names), dtype=torch.float64) for path, names in supernet.names.items()}
    torch.testing.assert_close(supernet(x, mixing), plain_forward(supernet, x, mixing))


def test_statistics_that_are_not_to_be_tracked_stay_as_they_are():
    supernet = supernet_of(TINY, affine=False)
    use_batch_statistics(supernet)
    before = {key: value.clone() for key, value in supernet.named_buffers()}
    mixing, x = softmaxes(random_logits(TINY)), images()
    torch.testing.assert_close(supernet.train()(x, mixing), plain_forward(supernet, x, mixing))
    assert all(torch.equal(before[key], value) for key, value in supernet.named_buffers())


# -- what is not computed -----------------------------------------------------------------------------------------


def calls(supernet, *inputs):
    """How often each part runs in one forward pass: batches of the norm that ends it, or else calls."""
    count = Counter()
    norms = {
        name: part[-1]
        for name, part in supernet.parts.items()
        if isinstance(part, nn.Sequential) and isinstance(part[-1], nn.BatchNorm2d)
    }
    hooks = [
        part.register_forward_hook(lambda *_, name=name: count.update([name]))
        for name, part in supernet.parts.items()
        if name not in norms
    ]
    before = {name: int(norm.num_batches_tracked) for name, norm in norms.items()}
    supernet(*inputs)
    for hook in hooks:
        hook.remove()
    return count + Counter({name: int(norm.num_batches_tracked) - before[name] for name, norm in norms.items()})


def op_parts(supernet):
    return {node.name for node in supernet.graph if node.path and node.name in supernet.parts}


def test_every_op_is_computed_once_and_none_never():
    supernet = supernet_of(TINY, pool_norm=True)
    count = calls(supernet, images(), softmaxes(random_logits(TINY)))
    assert set(count) == set(supernet.parts)
    assert set(count.values()) == {1}
    assert not any("none" in name for name in supernet.parts)


def test_an_op_with_a_constant_zero_weight_is_not_computed():
    supernet = supernet_of(TINY, pool_norm=True)
    mixing = {path: weights.detach() for path, weights in softmaxes(random_logits(TINY)).items()}
    mixing["normal_1_3"][TINY.ops.index("nor_conv_3x3")] = 0
    mixing["reduction_0_2"][TINY.ops.index("avg_pool_3x3")] = 0
    left_out = set(supernet.parts) - set(calls(supernet, images(), mixing))
    assert left_out == {
        "cell0/3<-1/nor_conv_3x3",
        "cell2/3<-1/nor_conv_3x3",
        "cell1/2<-0/avg_pool_3x3",
    }


def test_a_zero_that_needs_a_gradient_is_computed():
    supernet = supernet_of(TINY, pool_norm=True)
    mixing = {path: torch.zeros(len(names)).requires_grad_() for path, names in supernet.names.items()}
    assert set(calls(supernet, images(), mixing)) == set(supernet.parts)
    supernet(images(), mixing).sum().backward()
    assert mixing["reduction_0_2"].grad is not None


def test_what_only_feeds_ops_left_out_is_left_out():
    space = nasbench201_space()
    supernet = supernet_of(space)
    mixing = {path: torch.ones(len(names), dtype=torch.float64) for path, names in supernet.names.items()}
    mixing["cell_2_3"] = torch.zeros(5)
    ran = calls(supernet, images(), mixing)
    assert not any("/2<-" in name for name in ran)
    assert any("/3<-1" in name for name in ran)
    torch.testing.assert_close(supernet.eval()(images(1)[:0], mixing).shape, torch.Size([0, 3]))


def test_active_names_alone_are_computed():
    supernet = supernet_of(TINY, pool_norm=True)
    logits = random_logits(TINY)
    count = calls(supernet, images(), softmaxes(logits), {"normal_0_2": {"nor_conv_3x3"}, "normal_1_2": ()})
    missing = op_parts(supernet) - set(count)
    assert missing == {
        f"cell{cell}/{edge}/{op}"
        for cell in (0, 2)
        for edge, op in (("2<-0", "avg_pool_3x3"), ("2<-1", "nor_conv_3x3"), ("2<-1", "avg_pool_3x3"))
    }


def test_what_has_neither_parameters_nor_statistics_is_computed_once_for_all_readers():
    supernet = supernet_of(TINY)
    pools = [name for name in calls(supernet, images(), softmaxes(random_logits(TINY))) if "avg_pool" in name]
    # Three inner tensors in each of three cells; at strides that differ, an input is pooled once for each.
    read = {(node.inputs, node.site.stride) for node in supernet.graph if node.op == "avg_pool_3x3"}
    assert len(pools) == len(read) < sum(node.op == "avg_pool_3x3" for node in supernet.graph)
    normed, pooled = supernet_of(TINY, pool_norm=True), []
    for name, part in normed.parts.items():
        if "avg_pool" in name:
            part[0].register_forward_hook(lambda *_: pooled.append(1))
    normed(images(), softmaxes(random_logits(TINY)))  # each has a norm of its own, after one pool for all
    assert len(pooled) == len(read)


def test_active_leaves_the_rest_of_a_soft_mixture_as_it_is():
    supernet, x = supernet_of(TINY).eval(), images()
    mixing = softmaxes(random_logits(TINY))
    masked = {**mixing, "normal_0_2": mixing["normal_0_2"] * torch.tensor([0, 0, 1, 0])}
    ours = supernet(x, mixing, {"normal_0_2": ["nor_conv_3x3"]})
    torch.testing.assert_close(ours, plain_forward(supernet, x, masked))


def test_a_one_hot_choice_computes_its_own_ops_only():
    architecture = TINY_BLOCK.architecture(
        {f"block_{node}": "nor_conv_1x1" for node in range(1, 5)}
        | {"block_1_inputs": "0", "block_2_inputs": ("0", "1"), "block_3_inputs": "1", "block_4_inputs": ("2", "3")}
    )
    supernet = supernet_of(TINY_BLOCK)
    count = calls(supernet, images(), one_hot(architecture))
    per_cell = {"1": 1, "2": 2, "3": 1, "4": 2}  # once for each predecessor
    ops = {f"cell{cell}/{node}/nor_conv_1x1": runs for cell in (0, 2) for node, runs in per_cell.items()}
    assert count == {**ops, "stem": 1, "cell1/factorized_reduction": 1, "classifier": 1}


# -- the edge of sense --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "multi", "nasbench201"])
def test_a_choice_that_connects_nothing_gives_the_same_scores_for_every_image(name):
    space = SMALL_SUPERNETS[name]
    supernet = supernet_of(space)
    scores = supernet(images(), one_hot(space.architecture({})))
    assert scores.shape == (3, 3)
    assert scores.isfinite().all()
    assert torch.equal(scores[0], scores[1])
    scores.sum().backward()  # a training loop need not look at what it drew


@settings(max_examples=10)
@given(architectures(TINY, connected=False))
def test_any_choice_connected_or_not_gives_finite_scores(architecture):
    scores = supernet_of(TINY)(images(), one_hot(architecture))
    assert scores.shape == (3, 3)
    assert scores.isfinite().all()


def test_a_seed_makes_the_same_supernet():
    one, two, other = (Supernet(NetworkSpace(TINY, small_skeleton(TINY)), seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_parameter_names_are_those_of_the_discrete_networks():
    supernet = set(supernet_of(TINY).state_dict())
    network = placed(TINY.architecture(dict.fromkeys(TINY.paths, "nor_conv_3x3")), small_skeleton(TINY)).build()
    assert set(network.state_dict()) <= supernet


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda mixing: mixing.pop("normal_1_2"), r"`weights` must hold every path .* lacks 'normal_1_2'"),
        (
            lambda mixing: mixing.update({"normal_1_2": torch.ones(3)}),
            r"`weights\['normal_1_2'\]` must have shape \(4,\), one for each of \('none', .*but has \(3,\)",
        ),
        (
            lambda mixing: mixing.update({"normal_1_2": torch.ones(1, 4)}),
            r"`weights\['normal_1_2'\]` must have shape \(4,\).* but has \(1, 4\)",
        ),
    ],
)  # fmt: skip
def test_refuses_with_one_sentence(change, message):
    supernet = supernet_of(TINY)
    mixing = one_hot(TINY.architecture({}))
    change(mixing)
    with pytest.raises(ValueError, match=message):
        supernet(images(), mixing)


def test_an_op_kept_twice_is_refused():
    twice = {"normal_0_2": ("avg_pool_3x3", "avg_pool_3x3"), "normal_1_2": "skip_connect"}
    architecture = TINY.architecture({**twice, "reduction_0_2": "skip_connect"})
    with pytest.raises(ValueError, match=r"`architecture` must keep an op once at a place .* at 'normal_0_2'"):
        one_hot(architecture)

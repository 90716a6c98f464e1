"""The supernet of a user's module: with one choice each it is the built module, in outputs and gradients."""

import copy
import pickle

import numpy as np
import pytest
import torch
from declared import CONVOLUTIONAL, PERCEPTRON, SPACES, TRANSFORMER, inputs_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils._pytree import tree_leaves

from optuna_nas import ModuleSpace, choose, choose_depth, choose_op, choose_ops
from optuna_nas.modules.frames import cut
from optuna_nas.networks import one_hot, use_batch_statistics

seeds = st.integers(0, 10_000)
SUPERNETS = {name: space.supernet(seed=0) for name, space in SPACES.items()}


@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_with_one_choice_each_it_is_the_built_module(name, seed):
    space, supernet = SPACES[name], SUPERNETS[name]
    architecture = space.sample(np.random.default_rng(seed))
    module = architecture.build(supernet.weights_of(architecture))
    use_batch_statistics(module)
    inputs = inputs_of(space, 3, seed)
    outputs, expected = supernet(inputs, one_hot(architecture)), module(inputs)
    torch.testing.assert_close(outputs, expected)
    supernet.zero_grad()
    outputs.square().sum().backward()
    expected.square().sum().backward()
    gradients = {key: p.grad for key, p in supernet.named_parameters() if p.grad is not None}
    own = supernet.parts_of(architecture, gradients)
    for key, parameter in module.named_parameters():
        if parameter.grad is None:
            assert not own.get(key, torch.zeros(1)).any()
        else:
            torch.testing.assert_close(own[key], parameter.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_names_are_those_of_the_built_module(name, seed):
    space, supernet = SPACES[name], SUPERNETS[name]
    architecture = space.sample(np.random.default_rng(seed))
    names = dict(architecture.build().named_parameters(remove_duplicate=False))
    weights = supernet.weights_of(architecture)
    assert weights.keys() == names.keys()
    assert all(weights[key].shape == parameter.shape for key, parameter in names.items())


class Twice(nn.Module):
    """A layer of two inputs, which are one."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x, x)


class Looked(nn.Module):
    """An embedding of the places of the largest inputs."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.argmax(1))


class Attending(nn.Module):
    """Attention to keys and values of other widths than the queries'."""

    def __init__(self, width):
        super().__init__()
        self.layer = nn.MultiheadAttention(width, 2, kdim=width // 2, vdim=width // 4, batch_first=True)

    def forward(self, x):
        width = x.shape[-1]
        return self.layer(x, x[..., : width // 2], x[..., : width // 4], need_weights=False)[0]


LAYERS = {
    "linear": (lambda n: nn.Linear(n, n), (2, 8)),
    "conv1d": (lambda n: nn.Conv1d(n, n, 3), (2, 8, 5)),
    "conv2d": (lambda n: nn.Conv2d(n, n, 3), (2, 8, 5, 5)),
    "conv3d": (lambda n: nn.Conv3d(n, n, 3), (2, 8, 5, 5, 5)),
    "transposed": (lambda n: nn.ConvTranspose2d(n, n, 2), (2, 8, 4, 4)),
    "batch": (lambda n: nn.BatchNorm1d(n), (4, 8)),
    "layer": (lambda n: nn.LayerNorm(n), (2, 8)),
    "group": (lambda n: nn.GroupNorm(2, n), (2, 8)),
    "rms": (lambda n: nn.RMSNorm(n), (2, 8)),
    "instance": (lambda n: nn.InstanceNorm1d(n, affine=True), (2, 8, 5)),
    "lstm": (lambda n: nn.LSTM(n, n, num_layers=2, bidirectional=True), (5, 2, 8)),
    "gru": (lambda n: nn.GRU(n, n), (5, 2, 8)),
    "rnn": (lambda n: nn.RNN(n, n), (5, 2, 8)),
    "attention": (lambda n: nn.TransformerEncoderLayer(n, 2, 2 * n, dropout=0.0, batch_first=True), (2, 5, 8)),
    "bilinear": (lambda n: Twice(nn.Bilinear(n, n, 3)), (2, 8)),
    "prelu": (lambda n: nn.PReLU(n), (2, 8)),
    "embedding": (lambda n: Looked(nn.Embedding(n, n)), (2, 8)),
    "lstm cell": (lambda n: nn.LSTMCell(n, n), (2, 8)),
    "gru cell": (lambda n: nn.GRUCell(n, n), (2, 8)),
    "lstm with projections": (lambda n: nn.LSTM(n, n, num_layers=2, proj_size=n // 2), (5, 2, 8)),
    "attention of other keys": (lambda n: Attending(n), (2, 5, 8)),
    "weight norm": (lambda n: weight_norm(nn.Linear(n, n)), (2, 8)),
    "spectral norm": (lambda n: spectral_norm(nn.Linear(n, n)), (2, 8)),
}
CHANNELS_FIRST = ("conv", "transposed", "batch", "group", "instance", "prelu")


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("kind", LAYERS)
def test_a_slice_of_the_store_is_the_small_layer(kind):
    make, shape = LAYERS[kind]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = make(choose("width", [8, 4]))

        def forward(self, x):
            return self.layer(x)

    space = ModuleSpace(Net, name=f"slice_{kind}")
    supernet = space.supernet(seed=0)
    for width in (8, 4):
        architecture = space.architecture({"width": width})
        module = architecture.build(supernet.weights_of(architecture))
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        x = x[:, :width] if kind.startswith(CHANNELS_FIRST) else x[..., :width]
        outputs, expected = supernet(x, one_hot(architecture)), module(x)
        torch.testing.assert_close(outputs, expected)
        supernet.zero_grad()
        for of in (outputs, expected):
            sum(part.square().sum() for part in tree_leaves(of)).backward()
        gradients = {key: parameter.grad for key, parameter in supernet.named_parameters()}
        own = supernet.parts_of(architecture, gradients)
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(own[name], parameter.grad)
    large, small = (supernet.weights_of(space.architecture({"width": width})) for width in (8, 4))
    assert any(small[name].shape != large[name].shape for name in small)


def images_last():
    """A module that asks for channels last; the store's largest kernels come from two probes."""
    wide, kernel = choose("wide", [4, 8]), choose("kernel", [3, 5])
    op = choose_op("op", {"conv": lambda: nn.Conv2d(wide, 4, 3, padding=1), "pool": lambda: Pool(wide)})
    first = nn.Conv2d(3, wide, kernel if wide == 4 else 3, padding="same")
    return nn.Sequential(first, nn.BatchNorm2d(wide), op).to(memory_format=torch.channels_last)


class Pool(nn.Module):
    """Pools, and takes the first channels."""

    def __init__(self, width):
        super().__init__()
        self.pool = nn.AvgPool2d(3, 1, 1)

    def forward(self, x):
        return self.pool(x)[:, :4]


def test_a_module_that_asks_for_channels_last_gets_them_everywhere():
    space = ModuleSpace(images_last, example=torch.zeros(1, 3, 6, 6))
    supernet, x = space.supernet(seed=0), torch.randn(2, 3, 6, 6)
    last = {"memory_format": torch.channels_last}
    assert supernet.get_parameter("0/weight").shape == (8, 3, 5, 5)
    for name in ("0/weight", "2/conv/weight"):
        assert supernet.get_parameter(name).is_contiguous(**last)
    for wide, kernel in ((4, 3), (4, 5), (8, 3)):
        architecture = space.architecture({"wide": wide, "kernel": kernel, "op": "conv"})
        weights = supernet.weights_of(architecture)
        assert all(weights[name].stride(1) == 1 for name in ("0.weight", "2.weight"))  # channels lie side by side
        module, plain = (
            architecture.build(weights),
            architecture.build(weights).to(memory_format=torch.contiguous_format),
        )
        assert module[0].weight.is_contiguous(**last)
        for built in (module, plain):
            use_batch_statistics(built)
        for inputs in (x, x.contiguous(**last)):
            for outputs in (module(inputs), supernet(inputs, one_hot(architecture))):
                assert outputs.is_contiguous(**last)
                torch.testing.assert_close(outputs, plain(x))
        module(x).square().sum().backward()
        assert module[0].weight.grad.is_contiguous(**last)


def test_parts_on_top_of_each_other_are_cut_each_and_kernels_at_their_centre():
    stacked = torch.arange(12.0).reshape(6, 2)
    assert cut(stacked, (3, 1), stacked=3)[:, 0].tolist() == [0.0, 4.0, 8.0]
    kernel = torch.arange(25.0).reshape(1, 1, 5, 5)
    assert cut(kernel, (1, 1, 3, 3), kernel=True)[0, 0, 1, 1] == 12
    assert cut(kernel, (1, 1, 3, 3))[0, 0, 0, 0] == 0


def test_a_mixture_is_the_weighed_sum_and_gives_gradients_to_the_weights():
    def net():
        return nn.Sequential(choose_op("op", {"twice": Double, "same": nn.Identity}))

    class Double(nn.Module):
        def forward(self, x):
            return 2 * x

    space = ModuleSpace(lambda: nn.Sequential(nn.Linear(1, 1, bias=False), net()), name="mixture")
    supernet = space.supernet(seed=0)
    nn.init.ones_(supernet.get_parameter("0/weight"))
    weights = torch.tensor([0.25, 0.5], requires_grad=True)
    output = supernet(torch.ones(1, 1), {"op": weights})
    assert output.item() == 1.0
    output.backward()
    assert weights.grad.tolist() == [2.0, 1.0]
    only = supernet(torch.ones(1, 1), {"op": weights}, active={"op": {"same"}})
    assert only.item() == 0.5
    one = torch.ones(2, requires_grad=True)
    credited = supernet(torch.ones(1, 1), {"op": one}, active={"op": {"twice"}}, ones=True)
    assert credited.item() == 2.0
    credited.backward()
    assert one.grad.tolist() == [2.0, 0.0]


def test_frozen_parts_keep_weights_and_statistics():
    def net():
        base = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).requires_grad_(False)
        base[1].running_mean.fill_(5.0)
        return nn.Sequential(base, choose_op("op", {"a": lambda: nn.Linear(3, 1), "b": lambda: nn.Linear(3, 1)}))

    space = ModuleSpace(net, example=torch.zeros(2, 3), name="frozen")
    supernet = space.supernet(seed=0)
    frozen = {name for name, parameter in supernet.named_parameters() if not parameter.requires_grad}
    assert frozen == {"0/0/weight", "0/0/bias", "0/1/weight", "0/1/bias"}
    architecture = space.architecture({"op": "b"})
    module = architecture.build(supernet.weights_of(architecture)).eval()
    x = torch.rand(4, 3)
    torch.testing.assert_close(supernet(x, one_hot(architecture)), module(x))
    assert space.fixed_kernels() == frozenset()


def test_fixed_kernels_are_those_that_no_choice_touches_but_the_last():
    assert CONVOLUTIONAL.fixed_kernels() == {"stem/weight"}
    assert PERCEPTRON.fixed_kernels() == frozenset()

    def net():
        act = choose_op("act", {"relu": nn.ReLU, "inner": lambda: nn.Linear(3, 3)})
        return nn.Sequential(nn.Linear(2, 3), act, nn.Linear(3, 1))

    assert ModuleSpace(net, example=torch.zeros(1, 2), name="fixed").fixed_kernels() == {"0/weight"}


def test_buffers_are_inherited_too():
    class Features(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("directions", torch.randn(3, choose("width", [8, 4])))
            self.norm = nn.BatchNorm1d(self.directions.shape[1])
            self.act = choose_op("act", {"relu": nn.ReLU, "tanh": nn.Tanh})

        def forward(self, x):
            return self.act(self.norm(x @ self.directions))

    space = ModuleSpace(Features, example=torch.zeros(1, 3))
    supernet = space.supernet(seed=5)
    architecture = space.architecture({"width": 4})
    module = architecture.build(supernet.weights_of(architecture), seed=1)
    use_batch_statistics(module)
    x = torch.rand(5, 3)
    torch.testing.assert_close(supernet(x, one_hot(architecture)), module(x))
    assert supernet.weights_of(architecture).keys() == {"directions", "norm.weight", "norm.bias"}


def test_dropout_acts_while_gradients_are_recorded():
    space = ModuleSpace(
        lambda: nn.Sequential(nn.Dropout(choose("rate", [0.5, 0.1])), nn.Linear(50, 1, bias=False)), name="dropout"
    )
    supernet, weights = space.supernet(seed=0), one_hot(space.full_architecture())
    x = torch.ones(1, 50)
    assert supernet(x, weights).item() != supernet(x, weights).item()
    with torch.no_grad():
        assert supernet(x, weights).item() == supernet(x, weights).item()


def test_a_shape_that_no_probe_covered_is_refused_by_name():
    def net():
        width, factor = choose("width", [8, 2]), choose("factor", [1, 4])
        return nn.Linear(3, width * factor if width < 8 else 8)

    space = ModuleSpace(net, name="opposite")
    supernet = space.supernet(seed=0)
    assert supernet(torch.ones(1, 3), one_hot(space.architecture({"width": 2, "factor": 4}))).shape == (1, 8)

    def worse():
        first, second = choose("first", [1, 2, 3]), choose("second", [1, 2, 3])
        return nn.Linear(3, first * (4 - first) * second * (4 - second))  # 16 where both are 2, else at most 12

    space = ModuleSpace(worse, name="worse")
    supernet = space.supernet(seed=0)
    assert supernet(torch.ones(1, 3), one_hot(space.architecture({"first": 2, "second": 3}))).shape == (1, 12)
    architecture = space.architecture({"first": 2, "second": 2})
    sentence = (
        r"but 'weight' has shape \(16, 3\) and \(12, 3\) is stored; choose its size by one choice of all products"
    )
    with pytest.raises(ValueError, match=f"`choose` must not make a parameter larger .* {sentence}"):
        supernet(torch.ones(1, 3), one_hot(architecture))
    with pytest.raises(ValueError, match=sentence):
        supernet.weights_of(architecture)


def test_a_value_that_changes_the_number_of_dimensions_is_refused():
    def net():
        return nn.Conv1d(1, 1, 3) if choose("n", [1, 2]) == 1 else nn.Conv2d(1, 1, 3)

    with pytest.raises(ValueError, match="`choose` must leave a parameter its number of dimensions but 'weight'"):
        ModuleSpace(net, name="dimensions").supernet(seed=0)


def hidden_parameters():
    """A module that keeps parameters in a list, where PyTorch does not find them."""

    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = choose_op("act", {"a": nn.ReLU, "b": nn.GELU})
            self.head = nn.Linear(2, 2)
            self.parts = [nn.Linear(2, 2)]

        def forward(self, x):
            return self.parts[0](self.act(self.head(x)))

    return Hidden()


def test_a_module_that_does_not_compute_with_given_parameters_is_refused():
    space = ModuleSpace(hidden_parameters, example=torch.ones(1, 2))
    space.full_architecture().build()
    with pytest.raises(ValueError, match=r"`space` must be of modules that `torch.func.functional_call` can run but"):
        space.supernet(seed=0)


def test_supernets_are_copied_and_pickled():
    architecture = TRANSFORMER.full_architecture()
    supernet, inputs = SUPERNETS["transformer"], inputs_of(TRANSFORMER)
    expected = supernet(inputs, one_hot(architecture))
    for copied in (copy.deepcopy(supernet), pickle.loads(pickle.dumps(supernet))):
        torch.testing.assert_close(copied(inputs, one_hot(architecture)), expected)


def test_weights_are_checked():
    supernet, weights = SUPERNETS["convolutional"], one_hot(CONVOLUTIONAL.full_architecture())
    with pytest.raises(ValueError, match="`weights` must hold every choice of the space but lacks 'op'"):
        supernet(inputs_of(CONVOLUTIONAL), {name: w for name, w in weights.items() if name != "op"})
    with pytest.raises(ValueError, match=r"`weights\['op'\]` must have shape \(6,\)"):
        supernet(inputs_of(CONVOLUTIONAL), {**weights, "op": torch.ones(2)})


# -- what ordinary modules do --------------------------------------------------------------------------------------


class InPlace(nn.Module):
    """Ops that change what they read, as torchvision's do."""

    def __init__(self):
        super().__init__()
        relu = {"relu": lambda: nn.ReLU(inplace=True), "same": nn.Identity}
        self.stem = nn.Linear(4, 4)
        self.one, self.several = choose_op("one", relu), choose_ops("several", relu)
        self.deep = choose_depth("deep", lambda i: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4)), 0, 2)

    def forward(self, x):
        return self.deep(self.several(self.one(self.stem(x))))


def test_options_that_change_their_input_in_place_leave_it_to_the_others():
    space = ModuleSpace(InPlace, example=torch.zeros(1, 4))
    supernet, x = space.supernet(0), torch.randn(6, 4)
    weights = one_hot(space.architecture({"one": "same", "several": ["same"], "deep": 0}))
    stem = supernet(x, weights)
    half = torch.tensor([0.5, 0.5])
    torch.testing.assert_close(supernet(x, {**weights, "one": half}), (stem.relu() + stem) / 2)
    deep = one_hot(space.architecture({"one": "same", "several": ["same"], "deep": 2}))
    both = {name: (weights[name] + deep[name]) / 2 for name in weights}
    torch.testing.assert_close(supernet(x, both), (stem + supernet(x, deep)) / 2)
    built = space.architecture({"one": "same", "several": ["relu", "same"], "deep": 0}).build(seed=0)
    torch.testing.assert_close(built(x), built.stem(x).relu() + built.stem(x))


class Doubles(nn.Module):
    def forward(self, x):
        return x.mul_(2)


def test_an_op_that_changes_its_input_by_itself_is_refused():
    def net():
        return nn.Sequential(nn.Linear(2, 2), choose_ops("ops", {"twice": Doubles, "same": nn.Identity}))

    with pytest.raises(ValueError, match="leave their inputs as they are but 'twice' of 'ops' changes one in place"):
        ModuleSpace(net, example=torch.zeros(1, 2))


def shared():
    width = choose("width", [4, 8])
    block = nn.Sequential(nn.Linear(width, width), choose_op("act", {"prelu": nn.PReLU, "tanh": nn.Tanh}))
    return nn.Sequential(nn.Linear(4, width), nn.Sequential(block, block, block), nn.Linear(width, 2))


@pytest.mark.parametrize("act", ["prelu", "tanh"])
def test_a_layer_that_stands_in_several_places_is_one(act):
    space = ModuleSpace(shared, example=torch.zeros(1, 4))
    architecture = space.architecture({"width": 4, "act": act})
    supernet, x = space.supernet(0), torch.randn(3, 4)
    module = architecture.build(supernet.weights_of(architecture))
    assert space.params(architecture) == sum(parameter.numel() for parameter in module.parameters())
    torch.testing.assert_close(supernet(x, one_hot(architecture)), module(x))


class Named(nn.Module):
    """Attention that is called by the names of its arguments."""

    def __init__(self, choice):
        super().__init__()
        heads = {f"heads{n}": lambda n=n: nn.MultiheadAttention(4, n, batch_first=True) for n in (1, 2)}
        self.attention = choice("attention", heads)

    def forward(self, x):
        return self.attention(x, key=x, value=x, need_weights=False)[0]


@pytest.mark.parametrize("choice", [choose_op, choose_ops])
def test_chosen_ops_take_named_arguments(choice):
    space = ModuleSpace(lambda: Named(choice), example=torch.zeros(1, 3, 4), name=choice.__name__)
    architecture = space.architecture({"attention": "heads2" if choice is choose_op else ["heads2"]})
    supernet, x = space.supernet(0), torch.randn(2, 3, 4)
    module = architecture.build(supernet.weights_of(architecture))
    torch.testing.assert_close(supernet(x, one_hot(architecture)), module(x))


class Iterated(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = choose_depth("depth", lambda i: nn.Linear(2, 2), 1, 2)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x


class Recomputed(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.block = nn.Linear(2, 3), nn.Linear(3, choose("width", [2, 4]))

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.block, self.stem(x), use_reentrant=False)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (Iterated, "`choose_depth` must be called as a whole in `forward` but that of 'depth' is taken apart"),
        (Recomputed, "fails when it learns"),
    ],
)
def test_a_module_that_a_supernet_cannot_run_is_refused_in_one_sentence(make, why):
    space = ModuleSpace(make, example=torch.zeros(1, 2))
    assert space.architecture({}).build()(torch.ones(1, 2)).shape[0] == 1
    with pytest.raises(ValueError, match=f"`space` must be of modules that .* can run but .*{why}") as refused:
        space.supernet(0)
    assert "\n" not in str(refused.value)


def test_outputs_that_cannot_be_added_up_are_named():
    def net():
        kinds = {"lstm": lambda: nn.LSTM(3, 4, batch_first=True), "gru": lambda: nn.GRU(3, 4, batch_first=True)}
        return choose_op("kind", kinds)

    supernet = ModuleSpace(net, example=torch.zeros(1, 5, 3)).supernet(0)
    x = torch.randn(2, 5, 3)
    assert supernet(x, {"kind": torch.tensor([0.0, 1.0])})[0].shape == (2, 5, 4)
    with pytest.raises(ValueError, match="outputs can be added up, to mix them, but those of 'kind' can't"):
        supernet(x, {"kind": torch.tensor([0.5, 0.5])})

"""A user's module as a space: architectures, canonical forms, costs, builds, JSON, pickles, exports."""

import copy
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from declared import CONVOLUTIONAL, PERCEPTRON, SPACES, TRANSFORMER, Convolutional, Perceptron, inputs_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from optuna_nas import Architecture, ModuleSpace, Space, choose, choose_op, choose_ops
from optuna_nas.modules import costs
from optuna_nas.networks import Measure, export_network, latency, load_network, save_network
from optuna_nas.networks.export import FORMATS
from optuna_nas.training.task import Arguments

seeds = st.integers(0, 10_000)


def drawn(space, seed):
    return space.sample(np.random.default_rng(seed))


@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_architectures_are_parameters_and_json_and_back(name, seed):
    space = SPACES[name]
    architecture = drawn(space, seed)
    assert space.decode(space.encode(architecture)) == architecture
    assert Architecture.from_json(architecture.to_json()) == architecture
    trial = optuna.trial.FixedTrial(space.encode(architecture))
    assert space.suggest(trial) == architecture


def test_parameters_are_the_values_themselves():
    distributions = PERCEPTRON.distributions()
    assert distributions["width"].choices == (8, 4, 12)
    assert distributions["depth"].choices == (2, 1, 0)
    assert distributions["reads"].choices == ("0", "1", "2", "0+1", "0+2", "1+2")
    assert all(name.isidentifier() for name in distributions)


@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_a_built_module_is_the_users_with_its_own_names_and_counted_exactly(name, seed):
    space = SPACES[name]
    architecture = drawn(space, seed)
    module = architecture.build(seed=0)
    assert type(module).__name__ == space.name
    kinds = {type(part).__module__ for part in module.modules()}
    assert kinds <= {"declared", "optuna_nas.networks.sums", *(k for k in kinds if k.startswith("torch."))}
    assert space.params(architecture) == sum(p.numel() for p in module.parameters()) == architecture.cost().params
    assert module(inputs_of(space, 2)).shape[0] == 2


@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_the_canonical_form_is_what_a_build_asks_for(name, seed):
    space = SPACES[name]
    architecture = drawn(space, seed)
    asked = set(space.asked(architecture))
    other = dict(architecture.choices)
    random = np.random.default_rng(seed)
    for path, options in space.options().items():
        if path not in asked:
            other[path] = list(options.values())[random.integers(len(options))]
    same = space.architecture(other)
    assert same.canonical() == architecture.canonical()
    assert same.cost() == architecture.cost()
    assert same.summary == architecture.summary
    changed = {**dict(architecture.choices), "width" if "width" in asked else "channels": ("16",)}
    if name == "transformer" and architecture["width"] == ("8",):
        assert space.architecture(changed).canonical() != architecture.canonical()


def test_unchosen_nested_choices_do_not_count():
    choices = {"block": "gate", "depth": 0}
    digests = {
        PERCEPTRON.architecture({**choices, "block_hidden": hidden, "activation": act}).canonical().digest
        for hidden in (16, 8)
        for act in ("relu", "gelu")
    }
    assert len(digests) == 1
    rows = PERCEPTRON.outline(PERCEPTRON.architecture({"block": "mlp"}))
    assert (1, "block_hidden", "16") in rows
    assert (0, "block", "mlp") in rows
    assert "block_hidden" not in PERCEPTRON.architecture({"block": "gate"}).summary


def test_multiply_adds_are_those_of_products_of_matrices_and_convolutions():
    def net():
        width = choose("width", [5, 7])
        return nn.Sequential(nn.Conv2d(2, width, 3, padding=1), nn.Flatten(), nn.Linear(width * 16, 3))

    space = ModuleSpace(net, example=torch.zeros(1, 2, 4, 4), name="hand")
    for width in (5, 7):
        cost = space.architecture({"width": width}).cost()
        assert cost.multiply_adds == 16 * 9 * 2 * width + 16 * width * 3
        assert cost.params == 9 * 2 * width + width + 16 * width * 3 + 3
    heads = TRANSFORMER.architecture({"layers": 1, "mix_0": "four_heads", "width": 8, "hidden_0": 8})
    tokens, width = 5, 8
    attention = tokens * width * 3 * width + 2 * tokens * tokens * width + tokens * width * width
    assert heads.cost().multiply_adds == attention + 2 * tokens * width * 8 + width * 7


def test_without_an_example_parameters_are_counted_alone():
    space = ModuleSpace(Perceptron, name="without_example")
    assert space.full_architecture().cost().multiply_adds == 0
    assert space.full_architecture().cost().params == PERCEPTRON.full_architecture().cost().params
    with pytest.raises(ValueError, match="`example` must be given for exports and measures"):
        space.example_inputs()


def test_weights_are_taken_by_the_modules_names():
    module = CONVOLUTIONAL.architecture({"op": "depthwise"}).build(seed=0)
    state = {**module.state_dict(), "not.here": torch.ones(1)}
    again = CONVOLUTIONAL.architecture({"op": "depthwise"}).build(state)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in module.state_dict().items())
    partly = CONVOLUTIONAL.architecture({"op": "depthwise"}).build({"stem.weight": module.stem.weight}, seed=1)
    assert torch.equal(partly.stem.weight, module.stem.weight)
    assert not torch.equal(partly.head.weight, module.head.weight)
    with pytest.raises(ValueError, match=r"`weights\['head.weight'\]` must have shape \(3, 4\) but has \(3, 8\)"):
        CONVOLUTIONAL.architecture({"channels": 4}).build({"head.weight": module.head.weight})
    with pytest.raises(ValueError, match="`weights` must have names of the module but none of 1 is"):
        CONVOLUTIONAL.full_architecture().build({"strange": torch.ones(1)})


def test_tied_weights_stay_tied():
    module = TRANSFORMER.full_architecture().build(seed=0)
    assert module.head.weight is module.embed.weight
    assert sum(p.numel() for p in module.parameters()) == TRANSFORMER.full_architecture().cost().params


def test_the_same_seed_builds_the_same_weights():
    one, two = (PERCEPTRON.full_architecture().build(seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("name", SPACES)
def test_built_modules_are_copied_pickled_compiled_and_exported(name, tmp_path):
    space = SPACES[name]
    architecture = space.full_architecture() if name != "convolutional" else space.architecture({"op": "grouped"})
    if name == "transformer":
        architecture = space.architecture({"mix_0": "four_heads", "mix_1": "convolution"})
    module, inputs = architecture.build(seed=0).eval(), inputs_of(space, 3)
    expected = module(inputs)
    torch.testing.assert_close(copy.deepcopy(module)(inputs), expected)
    torch.testing.assert_close(pickle.loads(pickle.dumps(module))(inputs), expected)
    torch.testing.assert_close(torch.compile(module, backend="eager")(inputs), expected)
    for form in FORMATS:
        exported = export_network(module, tmp_path / "network", form, architecture)
        assert exported.max_difference < 1e-5


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles with a compiler of C++, which is not here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_inductor_compiles_built_modules_and_their_gradients(tmp_path, monkeypatch):
    def net():
        width = choose("width", [8, 4])
        act = choose_op("act", {"relu": nn.ReLU, "layer": lambda: nn.Linear(width, width)})
        return nn.Sequential(nn.Linear(6, width), act, nn.Linear(width, 3))

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch._inductor.config, "compile_threads", 1)  # no pool of processes for one module
    architecture = ModuleSpace(net, example=torch.zeros(1, 6)).architecture({"act": "layer", "width": 4})
    module, inputs = architecture.build(seed=0), torch.randn(3, 6)
    compiled, gradients = torch.compile(module), []
    for run in (module, compiled):
        module.zero_grad()
        outputs = run(inputs)
        outputs.square().sum().backward()
        gradients.append((outputs, [parameter.grad.clone() for parameter in module.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


def test_built_modules_train_under_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        module = CONVOLUTIONAL.architecture({"op": "grouped"}).build(seed=0)
        parallel = nn.parallel.DistributedDataParallel(module)
        for _ in range(2):
            parallel(inputs_of(CONVOLUTIONAL)).sum().backward()
        assert all(parameter.grad is not None for parameter in module.parameters())
    finally:
        torch.distributed.destroy_process_group()


def test_several_arguments_are_measured_and_exported(tmp_path):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Linear(3, 2), nn.Linear(4, 2)
            self.act = choose_op("act", {"relu": nn.ReLU, "tanh": nn.Tanh})

        def forward(self, x, y):
            return self.act(self.one(x) + self.other(y))

    space = ModuleSpace(Both, example=(torch.zeros(1, 3), torch.zeros(1, 4)))
    architecture = space.architecture({"act": "tanh"})
    assert isinstance(space.example_inputs(2), Arguments)
    assert architecture.cost().multiply_adds == 14
    module = architecture.build()
    assert latency(batch_size=2, device="cpu", repeats=1)(module, space.example_inputs()) > 0
    largest = Measure("largest", lambda network, inputs: float(network(*inputs.args).abs().max()), device="cpu")
    assert largest(module, space.example_inputs()) <= 1
    for form in FORMATS:
        assert export_network(module, tmp_path / "both", form, architecture).max_difference < 1e-5


def test_a_network_file_names_its_space_and_holds_no_code(tmp_path):
    architecture = TRANSFORMER.architecture({"layers": 1, "mix_0": "lstm"})
    module = architecture.build(seed=0).eval()
    save_network(tmp_path / "network", module, architecture)
    loaded = load_network(tmp_path / "network")
    assert loaded.head.weight is loaded.embed.weight
    torch.testing.assert_close(loaded(inputs_of(TRANSFORMER)), module(inputs_of(TRANSFORMER)))
    for imported, said in {
        "load_network": "but got 'ModuleSpace' (made of declared:Transformer); import the module that makes it first",
        "load_network, ModuleSpace": "of a ModuleSpace made before but 'Transformer' is none of []; import the module",
    }.items():
        program = f"from optuna_nas import {imported}; load_network('network')"
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert said in done.stderr


def test_a_changed_module_of_the_same_name_is_another_space():
    def changed():
        return nn.Sequential(nn.Linear(6, choose("width", [8, 4, 12])))

    other = ModuleSpace(changed, name="Perceptron")
    assert other != PERCEPTRON
    described = {**PERCEPTRON.to_dict(), "fingerprint": "0" * 16}
    with pytest.raises(ValueError, match="`name` must be that of the same module but 'Perceptron' declares other"):
        Space.from_dict(json.loads(json.dumps(described)))
    with pytest.raises(ValueError, match="`architecture` must be of this space"):
        PERCEPTRON.build(other.full_architecture())


def test_spaces_are_values():
    again = ModuleSpace(Convolutional, example=torch.zeros(1, 1, 8, 8))
    assert again == CONVOLUTIONAL
    assert len({again, CONVOLUTIONAL}) == 1
    assert pickle.loads(pickle.dumps(CONVOLUTIONAL)) == CONVOLUTIONAL
    assert copy.deepcopy(CONVOLUTIONAL) is CONVOLUTIONAL
    program = (
        "import pickle, sys; space = pickle.load(open('space', 'rb')); print(type(space).__name__, space.size, "
        "space.full_architecture().build(seed=0)(space.example_inputs(2)).shape)"
    )
    folder = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r}); {program}"],
        cwd=_written(CONVOLUTIONAL),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "ModuleSpace 24 torch.Size([2, 3])\n"


def _written(space):
    from tempfile import mkdtemp

    folder = Path(mkdtemp())
    (folder / "space").write_bytes(pickle.dumps(space))
    return folder


def test_data_of_another_shape_are_refused():
    class Wrong:
        input_shape, outputs = (5,), 3

    with pytest.raises(ValueError, match=r"`data` must fit the module, whose example has shape \(6,\)"):
        PERCEPTRON.check_data(Wrong)
    Wrong.input_shape, Wrong.outputs = (6,), 10
    with pytest.raises(ValueError, match="which returns 3 numbers for an example, but has 10 classes"):
        PERCEPTRON.check_data(Wrong)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"width": 9}, r"`choices\['width'\]` must be one of \('8', '4', '12'\) but got '9'"),
        ({"width": [8, 4]}, r"`choices\['width'\]` must be one of .* but got 2 of them"),
        ({"strange": 1}, "`choices` must use the paths of the space but got 'strange'"),
    ],
)
def test_wrong_choices_are_named(choices, message):
    with pytest.raises(ValueError, match=message):
        PERCEPTRON.architecture(choices)


def test_a_parameter_of_ones_own_with_the_name_of_a_choice_is_refused():
    trial = optuna.create_study().ask()
    trial.suggest_float("width", 0, 1)
    with pytest.raises(ValueError, match="`width` must be a parameter of the space alone"):
        PERCEPTRON.suggest(trial)


class Recurrent(nn.Module):
    """A recurrent layer of some kind."""

    def __init__(self, kind, **settings):
        super().__init__()
        self.layer = kind(5, choose("width", [6, 8]), **settings)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1, :3])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("settings", [{}, {"batch_first": True}, {"bidirectional": True, "num_layers": 2}])
def test_a_recurrent_layer_costs_what_all_of_its_steps_cost(kind, settings, monkeypatch):
    found = []
    for name, long in (("two", costs.LONG), ("all", 10**9)):
        monkeypatch.setattr(costs, "LONG", long)
        space = ModuleSpace(lambda: Recurrent(kind, **settings), example=torch.zeros(9, 9, 5), name=name)
        found.append(space.architecture({"width": 8}).cost())
    assert found[0] == found[1]


class Queried(nn.Module):
    """A learned query, which is the input of a layer."""

    def __init__(self):
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, 1, 4))
        self.dropout = nn.Dropout(choose("rate", [0.0, 0.1]))
        self.pool = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.pool(self.dropout(self.query.expand(len(x), -1, -1)), x, x)[0]


def test_a_learned_query_may_be_the_input_of_a_layer():
    cost = ModuleSpace(Queried, example=torch.zeros(1, 3, 4)).architecture({}).cost()
    assert cost.params == sum(parameter.numel() for parameter in Queried().parameters())
    assert cost.multiply_adds > 0


def test_no_op_at_all_can_be_built():
    def net():
        ops = {"linear": lambda: nn.Linear(4, 4), "tanh": nn.Tanh}
        return nn.Sequential(nn.Linear(4, 4), choose_ops("ops", ops, least=0), nn.Linear(4, 1))

    space = ModuleSpace(net, example=torch.zeros(1, 4))
    assert space.architecture({"ops": []}).build()(torch.zeros(2, 4)).shape == (2, 1)


class Odd(nn.Module):
    """A module that takes or returns what not every format of files can hold."""

    def __init__(self, way):
        super().__init__()
        self.way, self.layer = way, nn.Linear(5, choose("width", [3, 4]))

    def forward(self, x):
        y = self.layer(x["x"] if self.way == "mapping" else x)
        return (y, y.sum(1)) if self.way == "two" else y.view(len(y), 1, -1) if self.way == "length" else y


def odd(way):
    x = torch.zeros(1, 5)
    return ModuleSpace(lambda: Odd(way), example={"x": x} if way == "mapping" else x, name=way).architecture({})


def test_several_outputs_are_exported_each(tmp_path):
    pytest.importorskip("onnxruntime")
    exported = export_network(odd("two").build(seed=0), tmp_path / "two", "onnx", odd("two"))
    assert exported.max_difference < 1e-5


@pytest.mark.parametrize(
    ("way", "file_format", "sentence"),
    [
        ("mapping", "onnx", "`format` 'onnx' must be of a module whose arguments are tensors"),
        ("length", "pt2", "`network` must take batches of any size to be exported but its `forward` fixes their size"),
    ],
)
def test_what_a_format_cannot_hold_is_one_sentence(way, file_format, sentence, tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(ValueError, match=sentence):
        export_network(odd(way).build(seed=0), tmp_path / way, file_format, odd(way))
    assert not list(tmp_path.iterdir())


# -- what a module is --------------------------------------------------------------------------------------------------


def module_with(rate=0.0, widths=(8, 16), act=torch.relu, frozen=False, twice=False):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            width = dict(zip(("narrow", "wide"), widths, strict=True))[choose("size", ["narrow", "wide"])]
            self.stem, self.drop, self.head = nn.Linear(4, width), nn.Dropout(rate), nn.Linear(width, 1)
            self.stem.requires_grad_(not frozen)

        def forward(self, x):
            return (1 + twice) * self.head(self.drop(act(self.stem(x))))

    return ModuleSpace(Net, example=torch.zeros(1, 4), name="settings")


@pytest.mark.parametrize("changes", [{"rate": 0.9}, {"widths": (8, 64)}, {"frozen": True}], ids=str)
def test_other_settings_of_a_part_are_another_space(changes):
    before, after = module_with(), module_with(**changes)
    assert before != after
    assert before.to_dict()["fingerprint"] == after.to_dict()["fingerprint"], "which studies of before have"
    assert before == module_with()
    text = before.full_architecture().to_json()
    assert Architecture.from_json(text).space == before, "though the other was made later"
    with pytest.raises(ValueError, match="`name` must be that of the same module but 'settings' declares other"):
        Architecture.from_json(text.replace(before.declared.parts, "0" * 16))


@pytest.mark.parametrize("changes", [{"act": torch.sin}, {"twice": True}], ids=["act", "twice"])
def test_other_code_is_the_same_space_of_other_code(changes):
    before, after = module_with(), module_with(**changes)
    assert before == after
    assert before.code() == module_with().code() != after.code()


def test_equal_spaces_remember_costs_of_their_own():
    def convolution():
        return nn.Sequential(nn.Conv1d(1, choose("channels", [2, 4]), 3), nn.AdaptiveAvgPool1d(1), nn.Flatten())

    short, long = (ModuleSpace(convolution, example=torch.zeros(1, 1, size), name="convolution") for size in (10, 1000))
    assert short == long
    costs = [space.full_architecture().cost().multiply_adds for space in (short, long)]
    assert costs[1] > 50 * costs[0]
    assert Architecture.from_json(short.full_architecture().to_json()).cost().multiply_adds == costs[1], "the newest"

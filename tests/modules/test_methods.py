"""SNAS, HM-NAS and GHN on a user's module: learned, resumed to the bit, handed over, and in studies."""

import logging
import pickle
import threading
from functools import partial

import numpy as np
import optuna
import pytest
import torch
from declared import CONVOLUTIONAL, PERCEPTRON, SPACES, TRANSFORMER, inputs_of
from torch import nn

from optuna_nas import (
    GHN,
    HMNAS,
    SNAS,
    FreeScore,
    GHNPruner,
    GHNRecipe,
    GHNSampler,
    HMNASPruner,
    HMNASRecipe,
    ImageClassification,
    ModuleSpace,
    Recipe,
    SNASRecipe,
    SNASSampler,
    TensorData,
    TrainObjective,
    choose,
    choose_op,
    choose_ops,
)
from optuna_nas.modules.tracing import traced
from optuna_nas.networks import load_network, save_network, use_batch_statistics
from optuna_nas.networks.sums import factors_of, masks_of
from optuna_nas.oneshot.snas.distribution import one_path_sample
from optuna_nas.training import train


def data_of(space, n_examples=240):
    inputs = inputs_of(space, n_examples)
    if space is TRANSFORMER:
        return TensorData.from_arrays(inputs.numpy(), inputs[:, 0].numpy(), name="first token")
    flat = inputs.flatten(1)
    targets = (flat[:, 0] + flat[:, 1] > 0).long() + (flat[:, 2] > 0).long()
    return TensorData.from_arrays(inputs.numpy(), targets.numpy(), name="signs")


DATA = {name: data_of(space) for name, space in SPACES.items()}


def dropping():
    """A module with dropout, whose random numbers are PyTorch's global ones."""
    width = choose("width", [8, 4])
    act = choose_op("act", {"relu": nn.ReLU, "layer": lambda: nn.Linear(width, width)})
    return nn.Sequential(nn.Linear(6, width), nn.Dropout(choose("rate", [0.2, 0.5])), act, nn.Linear(width, 3))


DROPPING = ModuleSpace(dropping, example=torch.zeros(1, 6))
MODELS = {
    "concrete": partial(SNAS, recipe=SNASRecipe(batch_size=16, learning_rate=0.05)),
    "one_path": partial(SNAS, recipe=SNASRecipe(batch_size=16, learning_rate=0.05, relaxation="one_path")),
    "costs": partial(SNAS, recipe=SNASRecipe(batch_size=16, resource="moderate", warmup_fraction=0.3)),
    "bounds": partial(SNAS, recipe=SNASRecipe(batch_size=16, resource={"params": 500})),
    "hmnas": partial(HMNAS, recipe=HMNASRecipe(batch_size=16, mask_fraction=0.4)),
    "second_order": partial(HMNAS, recipe=HMNASRecipe(batch_size=16, mask_fraction=0.4, second_order=True)),
    "ghn": partial(GHN, recipe=GHNRecipe(batch_size=16, phases=1, meta_batch=2)),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_fit_that_stops_and_goes_on_ends_with_the_same_numbers(kind, tmp_path):
    space = DROPPING if kind in ("concrete", "one_path") else PERCEPTRON
    data = DATA["perceptron"]
    straight, first, second = (MODELS[kind](space) for _ in range(3))
    straight.fit(data, 3, show_progress=False)
    first.fit(data, 3, until=0.5, checkpoint=tmp_path / "fit", show_progress=False)
    torch.rand(3)  # what else draws in between does not matter
    second.fit(data, 3, checkpoint=tmp_path / "fit", show_progress=False)
    assert first.step < second.step == straight.step
    for name, tensor in straight.tensors().items():
        assert torch.equal(torch.nan_to_num(tensor), torch.nan_to_num(second.tensors()[name])), name
    architectures = [space.sample(np.random.default_rng(seed)) for seed in range(4)]
    assert np.array_equal(straight.score(architectures), second.score(architectures))
    copied = pickle.loads(pickle.dumps(second))
    assert np.array_equal(straight.score(architectures), copied.score(architectures))


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("relaxation", ["concrete", "one_path", "softmax"])
def test_snas_learns_on_every_kind_of_choice(name, relaxation):
    space = SPACES[name]
    snas = SNAS(space, SNASRecipe(batch_size=16, learning_rate=0.05, relaxation=relaxation))
    before = {key: tensor.clone() for key, tensor in snas.supernet.state_dict().items()}
    snas.fit(DATA[name], 6, show_progress=False)  # long enough to draw every option
    assert snas.skipped == 0
    fixed = space.fixed_kernels()
    for key, tensor in snas.supernet.state_dict().items():
        assert torch.equal(tensor, before[key]) == (key in fixed), key
    sizes = [len(options) for options in space.options().values()]
    for row, size in zip(snas.logits, sizes, strict=True):
        assert np.isfinite(row[:size]).all()
        assert np.isneginf(row[size:]).all()
        assert row[:size].any()  # values learn, too
    assert all(sum(row.values()) == pytest.approx(1) for row in snas.probabilities.values())
    best = snas.most_likely()
    module = space.build(best, snas.weights(best)).train()
    inputs = inputs_of(space, 8)
    use_batch_statistics(module)
    with torch.no_grad():
        torch.testing.assert_close(module(inputs), snas.predict(best, inputs))


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("name", SPACES)
def test_half_precision_learns_too(name):
    snas = SNAS(SPACES[name], SNASRecipe(batch_size=16, precision="bfloat16", relaxation="one_path"))
    snas.fit(DATA[name], 1, show_progress=False)
    assert snas.skipped == 0
    assert np.isfinite(snas.score([SPACES[name].full_architecture()])).all()


def test_values_learn_by_the_score_function():
    """Its gradient is the loss above its mean times that of the log-probability, and leads to the better value."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = choose("scale", [0, 1])
            self.bias = nn.Parameter(torch.zeros(2))
            self.act = choose_op("act", {"a": nn.Identity, "b": nn.Identity})

        def forward(self, x):
            return self.act(self.scale * 4 * x) + 0 * self.bias

    space = ModuleSpace(Scaled)
    inputs = torch.eye(2).repeat(100, 1)
    data = TensorData.from_arrays(inputs.numpy(), inputs.argmax(1).numpy(), name="eye")
    recipe = SNASRecipe(
        batch_size=10, logit_learning_rate=0.05, relaxation="one_path", path_credit="first_order"
    )  # so that ops do not learn from the losses of the values
    snas = SNAS(space, recipe)
    snas.fit(data, 15, show_progress=False)
    assert snas.probabilities["scale"]["1"] > 0.9
    assert abs(snas.probabilities["act"]["a"] - 0.5) < 0.2
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([[0.3, -0.2]], requires_grad=True)
    _, chosen = one_path_sample(logits, generator)
    logits.log_softmax(-1)[0, chosen].sum().backward()
    one_hot = nn.functional.one_hot(chosen, 2)
    torch.testing.assert_close(logits.grad, one_hot - logits.softmax(-1).detach())


def test_bounds_on_costs_are_kept():
    snas = SNAS(PERCEPTRON, SNASRecipe(batch_size=16, resource={"params": 300, "multiply_adds": 250}))
    snas.fit(DATA["perceptron"], 4, show_progress=False)
    cost = snas.most_likely().cost()
    assert cost.params <= 300
    assert cost.multiply_adds <= 250
    assert snas.expected_cost().keys() == {"params", "multiply_adds", "memory_access"}
    with pytest.raises(ValueError, match="`resource` must be within reach but no architecture was found that keeps"):
        SNAS(PERCEPTRON, SNASRecipe(resource={"params": 10}))


def test_masks_cut_what_is_derived_and_nothing_else():
    hmnas = HMNAS(PERCEPTRON, HMNASRecipe(batch_size=16, mask_fraction=0.4, learning_rate=0.05))
    hmnas.fit(DATA["perceptron"], 5, show_progress=False)
    with torch.no_grad():
        hmnas.masks.op_masks_EO[list(hmnas.masks.paths).index("sums"), 0] = 0.0
        for mask in hmnas.masks.weight_masks.values():
            mask[mask < mask.median()] = 0.0
    derived = hmnas.derive()
    assert "linear" not in derived.architecture["sums"]
    assert derived.params < derived.architecture.cost().params
    module, inputs = hmnas.compact(derived), inputs_of(PERCEPTRON, 8)
    masked = hmnas.outputs(inputs, hmnas.masks.masked_weights(), hmnas.masks.mixing(masked=True))
    torch.testing.assert_close(module(inputs), masked)
    torch.testing.assert_close(hmnas.predict(derived.architecture, inputs), masked)
    assert hmnas.family(4)[0].params == derived.params


def of_several(width=6):
    """Ops that change the width, of which one at least stays."""
    ops = {"one": lambda: nn.Linear(6, width), "two": lambda: nn.Linear(6, width, bias=False)}
    return nn.Sequential(choose_ops("ops", ops, most=2), nn.Linear(width, 3))


def test_of_ops_that_masks_cut_the_heaviest_computes_where_one_must():
    space = ModuleSpace(partial(of_several, width=5), example=torch.zeros(2, 6), name="of_several")
    data = TensorData.from_arrays(np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32), np.arange(60) % 3)
    hmnas = HMNAS(space, HMNASRecipe(batch_size=16, mask_fraction=0.4, learning_rate=0.05))
    hmnas.fit(data, 3, show_progress=False)
    with torch.no_grad():
        hmnas.masks.op_masks_EO.zero_()
    both = space.architecture({"ops": ("one", "two")})
    (_, heaviest), inputs = hmnas.fallen(both)[0], torch.randn(4, 6)
    (kept,) = {"one", "two"} - {heaviest}
    with torch.no_grad():
        torch.testing.assert_close(
            hmnas.predict(both, inputs), hmnas.predict(space.architecture({"ops": (kept,)}), inputs)
        )
        assert hmnas.predict(both, inputs).abs().sum() > 0


def test_fine_tuning_keeps_what_masks_cut_at_zero(tmp_path):
    hmnas = HMNAS(PERCEPTRON, HMNASRecipe(batch_size=16, mask_fraction=0.4, learning_rate=0.05))
    hmnas.fit(DATA["perceptron"], 5, show_progress=False)
    with torch.no_grad():
        for mask in hmnas.masks.weight_masks.values():
            mask[mask < mask.median()] = 0.0
    derived = hmnas.derive()
    module = hmnas.inherited(derived.architecture)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    train(module, DATA["perceptron"], Recipe(epochs=1, batch_size=16, learning_rate=0.05))
    masks = masks_of(module)
    assert masks
    for name, mask in masks.items():
        assert not module.get_parameter(name)[mask == 0].any()
    assert any(not torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert hmnas.inherited(PERCEPTRON.sample(np.random.default_rng(1))) is None
    save_network(tmp_path / "network", module, derived.architecture)
    loaded = load_network(tmp_path / "network")
    assert factors_of(loaded) == factors_of(module) != {}
    assert masks_of(loaded).keys() == masks.keys()
    torch.testing.assert_close(loaded(inputs_of(PERCEPTRON)), module.eval()(inputs_of(PERCEPTRON)))


def test_masks_need_a_choice_of_several():
    with pytest.raises(ValueError, match="`space` must have a choice of several to mask"):
        HMNAS(CONVOLUTIONAL)
    derived = HMNAS(PERCEPTRON)
    with torch.no_grad():
        derived.masks.op_masks_EO.zero_()
    kept = derived.derive().architecture
    assert len(kept["sums"]) == len(kept["reads"]) == 1  # the heaviest stay


@pytest.mark.parametrize("name", SPACES)
def test_a_module_with_generated_weights_scores_what_the_hypernetwork_says(name):
    space = SPACES[name]
    ghn = GHN(space, GHNRecipe(batch_size=16, phases=1, meta_batch=2))
    ghn.fit(DATA[name], 1, show_progress=False)
    batch = ghn.scoring_batch()
    for seed in range(4):
        architecture = space.sample(np.random.default_rng(seed))
        module = space.build(architecture, ghn.weights(architecture))
        use_batch_statistics(module)
        with torch.no_grad():
            score = ImageClassification().score(module.train(), [batch])
        assert score == pytest.approx(ghn.score([architecture])[0], abs=1e-5)
    assert ghn.embed([architecture]).shape == (1, 32)


def test_graphs_are_layers_and_functions_and_hold_all_parameters():
    architecture = PERCEPTRON.architecture({"block": "gate", "reads": ["0", "1"], "sums": ["linear", "tanh"]})
    found = traced(PERCEPTRON, architecture)
    ops = [node.op for node in found.graph]
    assert ops[0] == "input"
    assert ops[-1] == "output"
    assert {"Linear", "LayerNorm", "glu", "add", "Tanh", "RMSNorm"} <= set(ops)
    names = {name for name, _ in architecture.build().named_parameters()}
    assert {parameter.name for parameter in found.tensors} == names
    assert architecture.graph() == found.graph
    norms = {parameter.name: parameter.norm for parameter in found.tensors if parameter.norm}
    assert norms == {"norm.weight": "weight", "norm.bias": "bias", "after.weight": "weight"}


def test_a_module_that_cannot_be_traced_is_a_chain_of_layers(caplog):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(6, 4)
            self.act = choose_op("act", {"relu": nn.ReLU, "tanh": nn.Tanh})
            self.last = nn.Linear(4, 3)

        def forward(self, x):
            x = self.first(x)
            return self.last(self.act(x) if x.sum() > 0 else x)

    space = ModuleSpace(Branching, example=torch.zeros(1, 6))
    with caplog.at_level(logging.WARNING):
        ops = [node.op for node in space.architecture({"act": "tanh"}).graph()]
    assert "Branching is seen as a chain of layers, since torch.fx can't trace it" in caplog.text
    assert ops[0] == "input"
    assert ops[-1] == "output"
    assert {"Linear"} <= set(ops)
    ghn = GHN(space, GHNRecipe(batch_size=16, phases=1))
    ghn.fit(DATA["perceptron"], 0.5, show_progress=False)
    assert np.isfinite(ghn.score([space.full_architecture()])).all()


def test_scores_that_need_no_training_rank_modules():
    score = FreeScore(PERCEPTRON, DATA["perceptron"], ImageClassification(), seed=0)
    scores = score([PERCEPTRON.sample(np.random.default_rng(seed)) for seed in range(6)])
    assert np.isfinite(scores).all()
    assert len(set(scores)) > 1


# -- in studies --------------------------------------------------------------------------------------------------------


def size(trial):
    architecture = PERCEPTRON.suggest(trial)
    rate = trial.suggest_float("rate", 0.1, 1.0)
    trial.report(rate, 1)
    return float(architecture.cost().params) * rate


def sampler_of(kind, tmp_path):
    store = optuna.artifacts.FileSystemArtifactStore(str(tmp_path))
    rounds = {"data": DATA["perceptron"], "budget": 2, "n_trials": 8, "trials_per_round": 4, "artifact_store": store}
    if kind == "snas":
        return SNASSampler(PERCEPTRON, MODELS["one_path"](PERCEPTRON), seed=0, **rounds)
    if kind == "ghn":
        del rounds["n_trials"]
        return GHNSampler(PERCEPTRON, MODELS["ghn"](PERCEPTRON), pool_size=12, seed=0, **rounds)
    if kind == "free":
        score = FreeScore(PERCEPTRON, DATA["perceptron"], ImageClassification(), seed=0)
        return GHNSampler(PERCEPTRON, score=score, pool_size=12, trials_per_round=8, seed=0)
    return SNASSampler(PERCEPTRON, seed=0)


@pytest.mark.parametrize("kind", ["snas", "ghn", "free", "trials"])
def test_samplers_search_a_module_in_rounds_with_a_parameter_of_ones_own(kind, tmp_path):
    (tmp_path / "store").mkdir()
    sampler = sampler_of(kind, tmp_path / "store")
    study = optuna.create_study(sampler=sampler)
    study.optimize(size, n_trials=4)
    study.sampler = pickle.loads(pickle.dumps(sampler))
    study.optimize(size, n_trials=4)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 8
    assert len({str(PERCEPTRON.decode(trial.params)) for trial in study.trials}) > 4
    again = optuna.create_study(sampler=sampler_of(kind, tmp_path / "again"))
    (tmp_path / "again").mkdir()
    again.optimize(size, n_trials=8)
    if kind != "trials":
        assert [t.params for t in again.trials] == [t.params for t in study.trials]


def test_four_threads_search_a_module(tmp_path):
    study = optuna.create_study(sampler=sampler_of("snas", tmp_path))
    study.optimize(size, n_trials=8, n_jobs=4)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 8


def test_two_workers_share_the_rounds_of_one_study(tmp_path):
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{tmp_path / 'study.db'}", engine_kwargs={"connect_args": {"timeout": 60}}
    )
    optuna.create_study(storage=storage, study_name="shared")
    store = tmp_path / "store"
    store.mkdir()

    def work():
        study = optuna.load_study(study_name="shared", storage=storage, sampler=sampler_of("snas", store))
        study.optimize(size, n_trials=4)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    trials = optuna.load_study(study_name="shared", storage=storage).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 8


@pytest.mark.parametrize("kind", ["hmnas", "ghn"])
def test_pruners_judge_modules_before_their_training(kind, tmp_path):
    store = optuna.artifacts.FileSystemArtifactStore(str(tmp_path))
    rounds = {"data": DATA["perceptron"], "budget": 2, "n_trials": 20, "trials_per_round": 10, "artifact_store": store}
    if kind == "hmnas":
        pruner = HMNASPruner(MODELS[kind](PERCEPTRON), n_random=20, n_startup_trials=5, seed=0, **rounds)
    else:
        ghn = MODELS[kind](PERCEPTRON)
        ghn.fit(DATA["perceptron"], 1, show_progress=False)
        pruner = GHNPruner(ghn, n_random=20, n_startup_trials=5, seed=0)
    objective = TrainObjective(PERCEPTRON, DATA["perceptron"], Recipe(epochs=1, batch_size=32))
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(0), pruner=pruner)
    study.optimize(objective, n_trials=8)
    assert {trial.state.name for trial in study.trials} <= {"COMPLETE", "PRUNED"}
    assert pruner.model.step > 0


def test_inherited_weights_start_a_trial():
    snas = MODELS["one_path"](PERCEPTRON)
    snas.fit(DATA["perceptron"], 4, show_progress=False)
    recipe = Recipe(epochs=1, batch_size=32, learning_rate=1e-5)
    params = PERCEPTRON.encode(snas.most_likely())
    values = []
    for source in (lambda architecture: architecture.build(snas.weights(architecture)), None):
        one = TrainObjective(PERCEPTRON, DATA["perceptron"], recipe, initial_weights=source)
        study = optuna.create_study(direction="maximize")
        study.enqueue_trial(params)
        study.optimize(one, n_trials=1)
        values.append(study.best_value)
    assert values[0] > values[1]


@pytest.mark.parametrize("name", SPACES)
def test_a_hypernetwork_generates_what_is_inside_of_choices(name):
    space = SPACES[name]
    ghn = GHN(space, GHNRecipe(freeze_fraction=0.0))
    for seed in range(5):
        architecture = space.sample(np.random.default_rng(seed))
        computed = {name for name, parameter in space.build(architecture).named_parameters() if parameter.requires_grad}
        assert computed <= {name for name, tensor in ghn.generate([architecture])[0].items() if tensor.requires_grad}


def test_a_hypernetwork_learns_where_all_parameters_are_inside_of_a_choice():
    def net():
        kinds = {n: lambda n=n: nn.Sequential(nn.Linear(6, n), nn.ReLU(), nn.Linear(n, 3)) for n in (4, 8)}
        return choose_op("net", {f"width{n}": make for n, make in kinds.items()})

    space = ModuleSpace(net, example=torch.zeros(1, 6))
    ghn = GHN(space, GHNRecipe(batch_size=32, phases=1))
    before = [parameter.detach().clone() for parameter in ghn.parameters()]
    ghn.fit(data_of(PERCEPTRON), 1, show_progress=False)
    assert any(not torch.equal(one, other) for one, other in zip(before, ghn.parameters(), strict=True))

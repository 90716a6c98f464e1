"""A space of one's own, without cells and with as many options as each choice needs, from a trial to MLflow."""

import json
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import optuna
import pytest
import torch
from perceptrons import ACTIVATIONS, SIZES, SPACE, MLPSpace
from torch import nn
from tracked import read

from optuna_nas import (
    Architecture,
    GHNSampler,
    MLflowTracker,
    Recipe,
    Regression,
    Search,
    SNASRecipe,
    SNASSampler,
    TrainObjective,
)
from optuna_nas.data import REPORT, TEST, TensorData
from optuna_nas.networks import Measure, export_network, load_network, save_network
from optuna_nas.networks.export import FORMATS
from optuna_nas.networks.files import read_network
from optuna_nas.oneshot import OneShotModel
from optuna_nas.oneshot.snas.distribution import architecture_of, one_path_sample
from optuna_nas.plots import plot_architecture, plot_distribution, plot_most_likely
from optuna_nas.results.final_training import best_of, network_to_export, train_in_full
from optuna_nas.results.report import write_report
from optuna_nas.samplers import distribution_records
from optuna_nas.search.opening import read_study
from optuna_nas.space import Space, nasbench201_space
from optuna_nas.storage.attributes import DIGEST, DUPLICATE_OF
from optuna_nas.tracking.model import log_model
from optuna_nas.training import evaluate
from optuna_nas.training.task import Calling


def linear_targets():
    draw = np.random.default_rng(0)
    inputs = draw.normal(size=(120, 10)).astype(np.float32)
    return TensorData.from_arrays(inputs, inputs @ draw.normal(size=10).astype(np.float32), name="linear")


DATA = linear_targets()


def n_parameters(architectures):
    return np.array([float(architecture.cost().params) for architecture in architectures])


def test_choices_are_parameters_of_their_own_sizes():
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    architecture = SPACE.suggest(trial)
    assert {path: len(d.choices) for path, d in SPACE.distributions().items()} == SIZES
    assert SPACE.size == 24
    assert SPACE.decode(trial.params) == architecture
    assert SPACE.encode(architecture) == trial.params
    assert architecture.connected
    assert architecture.summary == " ".join(trial.params.values())


def test_space_and_architecture_are_json():
    architecture = SPACE.sample(np.random.default_rng(0))
    assert Space.from_dict(json.loads(json.dumps(SPACE.to_dict()))) == SPACE
    assert Architecture.from_json(architecture.to_json()) == architecture


def test_the_same_seed_builds_the_same_network():
    architecture = SPACE.architecture({"width": "8", "depth": "2", "activation": "tanh"})
    first, second = (architecture.build(seed=1).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    again = architecture.build(weights=first).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert architecture.cost().params == sum(weight.numel() for weight in first.values())


def test_without_cells_only_equal_choices_compute_the_same():
    draw = np.random.default_rng(0)
    drawn = [SPACE.sample(draw) for _ in range(100)]
    digests = {architecture: architecture.canonical().digest for architecture in drawn}
    assert len(set(digests.values())) == len(digests) == 24
    for digest in digests.values():
        assert len(bytes.fromhex(digest)) == 8
    again = Architecture.from_json(drawn[0].to_json())
    assert again.canonical() == drawn[0].canonical()


def test_cells_are_still_compared_by_what_they_compute():
    cells = nasbench201_space()
    first = cells.architecture({"cell_0_1": ["skip_connect"], "cell_1_3": ["nor_conv_3x3"]})
    second = cells.architecture({"cell_0_2": ["skip_connect"], "cell_2_3": ["nor_conv_3x3"]})
    assert first.canonical() == second.canonical() == first.cells.canonical()


def test_a_space_may_say_what_computes_the_same():
    class Shallow(MLPSpace):
        """Says that the activation makes no difference."""

        type_name = "Shallow"

        def canonical(self, architecture):
            return super().canonical(replace(architecture, choices=architecture.choices[:-1]))

    space = Shallow(10)
    one, other = (space.architecture({"width": "8", "depth": "2", "activation": a}) for a in ("relu", "tanh"))
    assert one != other
    assert one.canonical().digest == other.canonical().digest


def test_cells_are_asked_for_in_one_sentence():
    architecture = SPACE.sample(np.random.default_rng(0))
    with pytest.raises(ValueError, match="`space` must have cells but is a MLPSpace"):
        _ = architecture.cells


def test_a_trial_trains_and_takes_over_the_result_of_its_double():
    objective = TrainObjective(SPACE, DATA, Recipe(epochs=1, batch_size=16), Regression())
    study = optuna.create_study(directions=objective.directions)
    for _ in range(2):
        study.enqueue_trial({"width": "8", "depth": "1", "activation": "gelu"})
    study.optimize(objective, n_trials=2)
    first, second = study.trials
    assert second.user_attrs[DUPLICATE_OF] == 0
    assert second.value == first.value
    assert first.user_attrs[DIGEST] == SPACE.decode(first.params).canonical().digest


def test_costs_and_measures_are_objectives_and_constraints():
    n_layers = Measure("layers", lambda network, inputs: float(len(network)), direction="minimize")
    objective = TrainObjective(
        SPACE,
        DATA,
        Recipe(epochs=1, batch_size=16),
        Regression(),
        objectives=("r2", "params"),
        constraints={n_layers: 3.0},
    )
    study = optuna.create_study(directions=objective.directions)
    for depth in "12":
        study.enqueue_trial({"width": "4", "depth": depth, "activation": "relu"})
    study.optimize(objective, n_trials=2)
    assert [trial.values[1] for trial in study.trials] == [4 * 10 + 4 + 4 + 1, 4 * 10 + 4 + 4 * 4 + 4 + 4 + 1]
    assert [trial.constraints["layers"] for trial in study.trials] == [0.0, 2.0]


SAMPLERS = {
    "snas": partial(SNASSampler, SPACE, seed=0),
    "ghn": partial(GHNSampler, SPACE, score=n_parameters, pool_size=20, trials_per_round=10, seed=0),
    "tpe": partial(optuna.samplers.TPESampler, n_startup_trials=4, seed=0),
}


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_search_runs_from_the_trials_to_report_and_mlflow(kind, tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    search = Search(
        "perceptrons",
        SPACE,
        DATA,
        Recipe(epochs=2, batch_size=16, learning_rate=0.05),
        Regression("rmse"),
        sampler=SAMPLERS[kind](),
        trials=8,
        tracking=MLflowTracker(uri),
        folder=tmp_path / "run",
        cpu_threads=1,
    )
    result = search.run()
    study = result.study
    assert result.best.value == min(trial.value for trial in study.trials if trial.values)
    assert result.picture.exists()
    architecture = SPACE.decode(result.best.params)
    network = load_network(result.network)
    assert evaluate(network, DATA, REPORT, search.task).metric == pytest.approx(result.best.value)
    assert evaluate(network, DATA, TEST, search.task).metric == pytest.approx(result.test_metric)
    if kind == "ghn":
        sizes = n_parameters([SPACE.decode(trial.params) for trial in study.trials])
        assert len(set(map(str, (trial.params for trial in study.trials)))) == 8  # each once
        assert sizes.max() == n_parameters([SPACE.architecture({"width": "16", "depth": "2", "activation": "relu"})])
    text = write_report(search).markdown.read_text()
    assert f"| best rmse | {result.best.value:.4f} (trial {result.best.number}) |" in text
    assert ("What the sampler learned" in text) == (kind == "snas")
    shown = read(uri)
    assert shown.children[result.best.number].data.metrics["rmse"] == pytest.approx(result.best.value)
    assert shown.children[0].data.params["activation"] in ACTIVATIONS
    with open(shown.file(shown.children[0], "architecture.json")) as file:
        assert Architecture.from_json(file.read()) == SPACE.decode(study.trials[0].params)
    files = {file.path for file in shown.client.list_artifacts(shown.parent.info.run_id)}
    assert "most_likely_cells.png" not in files
    assert best_of(search)[1] == architecture
    assert network_to_export(search) == result.network
    final = train_in_full(search, architecture, search.recipe)
    assert network_to_export(search) == final.network
    trained, stored, _ = read_network(final.network)
    assert stored == architecture
    assert evaluate(trained, DATA, TEST, search.task).metric == pytest.approx(final.test_metric)
    model = log_model(search.tracking, shown.children[result.best.number].info.run_id, trained, architecture)
    assert model.max_difference < 1e-5
    assert len(read_study(search).trials) == 8


@pytest.mark.parametrize("form", FORMATS)
def test_a_network_is_exported_with_its_architecture(form, tmp_path):
    architecture = SPACE.architecture({"width": "8", "depth": "2", "activation": "tanh"})
    network = architecture.build(seed=0)
    exported = export_network(network, tmp_path / "network", form, architecture)
    assert exported.max_difference < 1e-5
    with pytest.raises(ValueError, match="`architecture` must be given for a Sequential, which does not know its own"):
        export_network(network, tmp_path / "other", form)
    with pytest.raises(ValueError, match="`architecture` must be given for a Sequential"):
        save_network(tmp_path / "other", network)
    assert [file.name for file in tmp_path.iterdir()] == [exported.path.name]


def test_tied_weights_are_tied_again(tmp_path):
    class Tied(MLPSpace):
        """Networks of two layers that share their weights."""

        type_name = "Tied"

        def build(self, architecture, weights=None, seed=None):
            network = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
            network[1].weight = network[0].weight
            if weights is not None:
                network.load_state_dict(weights)
            return network

    architecture = Tied(10).sample(np.random.default_rng(0))
    network = architecture.build()
    save_network(tmp_path / "network", network, architecture)
    loaded = load_network(tmp_path / "network")
    assert loaded[0].weight is loaded[1].weight
    torch.testing.assert_close(loaded(DATA.inputs), network(DATA.inputs))


def test_a_picture_is_the_table_of_choices():
    figure = plot_architecture(SPACE.architecture({"width": "8", "depth": "2", "activation": "tanh"}))
    assert [text.get_text() for text in figure.texts] == ["width", "8", "depth", "2", "activation", "tanh"]
    figure.canvas.draw()
    width, height = figure.canvas.get_width_height()
    for text in figure.texts:
        box = text.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= width
        assert 0 <= box.y0 < box.y1 <= height


class OnePath(OneShotModel):
    """All networks, of which each step trains one; choices of different lengths, padded by minus infinity."""

    name = "OnePath"

    def __init__(self, space, recipe, task):
        super().__init__(space, recipe, task)
        self.networks = nn.ModuleDict(
            {
                " ".join(names): space.decode(dict(zip(SIZES, names, strict=True))).build(seed=0)
                for names in product(*space.options().values())
            }
        )
        padded = torch.full((3, 4), -torch.inf)
        for row, size in zip(padded, SIZES.values(), strict=True):
            row[:size] = 0
        self.alphas = nn.ParameterList([padded])
        self.modules = {"networks": self.networks, "alphas": self.alphas}

    def make_optimizers(self):
        return {
            "weights": torch.optim.SGD(self.networks.parameters(), self.recipe.learning_rate),
            "choices": torch.optim.Adam(self.alphas.parameters(), 0.05),
        }

    def train_step(self, batch):
        mixing, chosen = one_path_sample(self.alphas[0], self.generator())
        network = self.networks[architecture_of(self.space, chosen.numpy()).summary]
        one = mixing.gather(1, chosen[:, None]).prod()  # 1, with the gradient of the choices
        return self.update(*self.task.training_step(Calling(lambda inputs: one * network(inputs)), batch))

    def predict(self, architecture, inputs):
        return self.networks[architecture.summary](inputs)

    @property
    def logits(self):
        return self.alphas[0].detach().numpy().copy()


def one_path():
    return OnePath(SPACE, SNASRecipe(batch_size=16, learning_rate=0.02), Regression())


def test_a_model_with_rows_of_different_lengths_trains_in_a_study(tmp_path):
    store = optuna.artifacts.FileSystemArtifactStore(str(tmp_path))
    sampler = SNASSampler(
        SPACE, one_path(), data=DATA, budget=40, n_trials=12, trials_per_round=4, artifact_store=store, seed=0
    )
    study = optuna.create_study(sampler=sampler)
    first = sampler.probabilities(study)  # before any training: uniform, and nothing for what is no option
    assert {path: len(row) for path, row in first.items()} == SIZES
    for path, row in first.items():
        assert list(row.values()) == pytest.approx([1 / SIZES[path]] * SIZES[path])
    study.optimize(lambda trial: float(SPACE.suggest(trial).cost().params), n_trials=12)
    table = sampler.probabilities(study)
    assert table != first
    for row in table.values():
        assert sum(row.values()) == pytest.approx(1)
    model = sampler.model
    assert model.step > 0
    assert np.isneginf(model.logits).tolist() == [[False] * size + [True] * (4 - size) for size in SIZES.values()]
    assert np.isfinite(model.score([SPACE.decode(trial.params) for trial in study.trials])).all()


def test_its_distribution_is_drawn_without_cells():
    model = one_path()
    sampler = SNASSampler(SPACE, model, seed=0)
    study = optuna.create_study(sampler=sampler)
    study.optimize(lambda trial: float(SPACE.suggest(trial).cost().params), n_trials=11)
    records = distribution_records(study)
    assert [record.step for record in records] == [0, 5, 10]
    assert plot_distribution(SPACE, records) is not None
    with pytest.raises(ValueError, match="`space` must have cells"):
        plot_most_likely(SPACE, records)


def test_a_trained_network_is_evaluated_like_any_other():
    objective = TrainObjective(SPACE, DATA, Recipe(epochs=20, batch_size=16, learning_rate=0.05), Regression())
    study = optuna.create_study(directions=objective.directions)
    study.enqueue_trial({"width": "16", "depth": "1", "activation": "tanh"})
    study.optimize(objective, n_trials=1)
    assert study.best_value > 0.5
    assert DATA.size([REPORT]) == 24

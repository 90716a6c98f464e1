"""A regression from arrays to an exported network: searched, pruned, interrupted, shown, reported, trained in full."""

import json
import signal
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import TrialState
from sklearn.datasets import load_diabetes
from tracked import read

from optuna_nas import (
    GHN,
    SNAS,
    GHNRecipe,
    GHNSampler,
    HMNASPruner,
    HMNASRecipe,
    MLflowTracker,
    NetworkSpace,
    Recipe,
    Regression,
    Search,
    SNASRecipe,
    SNASSampler,
)
from optuna_nas.cli.console import console
from optuna_nas.cli.result import print_result
from optuna_nas.data import REPORT, TEST, TensorData
from optuna_nas.networks import export_network, load_network
from optuna_nas.oneshot import HMNAS
from optuna_nas.plots import plot_family
from optuna_nas.results.final_training import best_of, network_to_export, train_in_full
from optuna_nas.results.report import write_report
from optuna_nas.samplers import distribution_records
from optuna_nas.search import SearchResult
from optuna_nas.space import NONE, CellKind, CellSpace, Skeleton
from optuna_nas.storage.attributes import REASON, SURROGATE_SCORE
from optuna_nas.storage.leaderboard import leaderboard
from optuna_nas.storage.quota import counted_trials
from optuna_nas.training.evaluation import evaluate
from optuna_nas.workers.shared import SharedStudy
from optuna_nas.workers.worker import Job

CELLS = CellSpace(
    (NONE, "skip_connect", "nor_conv_1x1"), nodes=2, inputs=1, cell_kinds=(CellKind("cell", outputs=(2,)),)
)
SPACE = NetworkSpace(CELLS, Skeleton(("cell", "cell"), 4, (10, 1, 1), classes=1))
RECIPE = Recipe(epochs=3, batch_size=32, learning_rate=0.05)
TRIALS = 7


def diabetes():
    """Return scikit-learn's diabetes as images of one pixel with ten channels; targets of deviation 1."""
    inputs, targets = load_diabetes(return_X_y=True)
    return TensorData.from_arrays(inputs.reshape(-1, 10, 1, 1), targets / targets.std(), name="diabetes")


DATA = diabetes()


def make(task, folder, **changes):
    settings = {
        "name": "diabetes",
        "space": SPACE,
        "data": DATA,
        "recipe": RECIPE,
        "task": task,
        "pruner": optuna.pruners.MedianPruner(n_startup_trials=2),
        "trials": TRIALS,
        "folder": folder,
        "tracking": None,
        "pictures": False,
        "cpu_threads": 1,
    }
    return Search(**{**settings, **changes})


def drawn(task, folder, **changes):
    """Return a search whose sampler trains a supernet in rounds."""
    model = SNAS(SPACE, SNASRecipe(batch_size=32), task)
    sampler = SNASSampler(SPACE, model, data=DATA, budget=3, trials_per_round=3, seed=0)
    return make(task, folder, sampler=sampler, **changes)


class Found(NamedTuple):
    search: Search
    result: SearchResult
    uri: str


@pytest.fixture(scope="module", params=["r2", "rmse"])
def found(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    search = drawn(Regression(request.param), folder / "run", tracking=MLflowTracker(uri), pictures=True)
    return Found(search, search.run(), uri)


@pytest.fixture
def sign(found):
    """1 where more of the metric is better, -1 where less is."""
    return 1 if found.search.task.metric == "r2" else -1


def of(study):
    return [(trial.params, trial.state, trial.values, trial.intermediate_values) for trial in study.trials]


def test_the_best_trial_is_best_in_the_direction_of_the_metric(found, sign):
    study, task = found.result.study, found.search.task
    complete = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert study.direction.name.lower() == found.search.directions[0] == task.direction
    assert sign * found.result.best.value == max(sign * trial.value for trial in complete)
    assert [row.trial.number for row in leaderboard(study)] == [
        trial.number for trial in sorted(complete, key=lambda trial: (-sign * trial.value, trial.number))
    ]
    network = load_network(network_to_export(found.search))
    assert evaluate(network, DATA, REPORT, task).metric == pytest.approx(found.result.best.value, abs=1e-5)
    assert evaluate(network, DATA, TEST, task).metric == pytest.approx(found.result.test_metric, abs=1e-5)


def test_trials_with_worse_curves_are_pruned(found, sign):
    pruned = [trial for trial in found.result.study.trials if trial.state == TrialState.PRUNED]
    assert pruned
    for trial in pruned:
        earlier = [other for other in found.result.study.trials[: trial.number] if other.state == TrialState.COMPLETE]
        step = trial.last_step
        best = max(sign * value for at, value in trial.intermediate_values.items() if at <= step)
        assert best < np.median([sign * other.intermediate_values[step] for other in earlier])


def test_the_supernet_learns_from_the_loss_of_the_task(found):
    records = distribution_records(found.result.study)
    assert [record.metrics["loss"] > 0 for record in records] == [True] * len(records)
    assert "accuracy" not in records[-1].metrics


def test_an_interrupted_search_comes_to_the_same_trials(found, tmp_path):
    class Interrupting:
        """Presses Ctrl-C in the first epoch of the fourth trial."""

        def __getattr__(self, name):
            return lambda *unused: None

        def epoch(self, trial_number, step, metrics):
            if (trial_number, step) == (3, 1):
                signal.raise_signal(signal.SIGINT)

    task = found.search.task
    first = drawn(task, tmp_path).run(Interrupting())
    assert (first.interrupted, first.missing) == (True, TRIALS - 4)
    assert of(first.study) == of(found.result.study)[:4]
    assert of(drawn(task, tmp_path).run().study) == of(found.result.study)


def test_a_trial_that_is_ended_at_once_goes_on_to_the_same_value(found, tmp_path):
    class Terminating:
        """Ends the process' trials in the middle of the second one."""

        def __getattr__(self, name):
            return lambda *unused: None

        def progress(self, trial_number, fraction):
            if trial_number == 1 and fraction > 0.5:
                signal.raise_signal(signal.SIGTERM)

    task = found.search.task
    straight = drawn(task, tmp_path / "straight", trials=2).run()
    first = drawn(task, tmp_path, trials=2).run(Terminating())
    assert first.interrupted
    study = drawn(task, tmp_path, trials=2).run().study
    assert counted_trials(study) == 2
    assert study.trials[1].user_attrs[REASON] == "interrupted"
    assert of(study)[2] == of(straight.study)[1]


def test_mlflow_shows_the_metric_in_its_direction(found, sign):
    metric, study, shown = found.search.task.metric, found.result.study, read(found.uri)
    for trial in study.trials:
        curve = dict(shown.curve(shown.children[trial.number], metric))
        assert curve == pytest.approx(trial.intermediate_values)
        assert "accuracy" not in shown.children[trial.number].data.metrics
    best = found.result.best
    assert shown.children[best.number].info.run_name == f"trial {best.number} (best)"
    assert f"**Best {metric}: {best.value:.4g}**" in shown.parent.data.tags["mlflow.note.content"]
    values = [sign * value for _, value in shown.curve(shown.parent, "best_value")]
    assert values == sorted(values)
    assert values[-1] == sign * best.value
    view = shown.view
    assert (view["orderByKey"], view["orderByAsc"]) == (f"metrics.`{metric}`", sign < 0)
    assert metric in {chart.get("metricKey") for chart in view["compareRunCharts"]}
    with open(shown.file(shown.parent, "leaderboard.json")) as file:
        table = json.load(file)
    assert table["columns"][1] == metric
    assert table["data"][0][:2] == [best.number, best.value]


def test_report_and_terminal_name_the_metric_and_rank_by_it(found, tmp_path):
    metric, best = found.search.task.metric, found.result.best
    text = write_report(found.search, tmp_path).markdown.read_text()
    assert f"| best {metric} | {best.value:.4f} (trial {best.number}) |" in text
    assert f"| test {metric} | {found.result.test_metric:.4f}" in text
    assert f"## Cost and {metric}" in text
    assert f"| rank | trial | {metric} |" in text
    assert f"| 1 | {best.number} | {best.value:.4f} |" in text
    assert "accuracy" not in text.lower()
    with console.capture() as capture:
        print_result(found.search, found.result)
    assert f"Test {metric}" in capture.get()
    assert metric in capture.get().splitlines()[2]
    assert "accuracy" not in capture.get().lower()


def test_the_best_is_trained_in_full_and_exported(found, tmp_path):
    _, architecture = best_of(found.search)
    search = replace(found.search, folder=tmp_path, tracking=None)
    final = train_in_full(search, architecture, replace(RECIPE, epochs=4))
    assert final.metric == found.search.task.metric
    assert network_to_export(replace(search, storage=found.search.resolved_storage())) == final.network
    network = load_network(final.network)
    assert evaluate(network, DATA, TEST, search.task).metric == pytest.approx(final.test_metric, abs=1e-5)
    program = torch.export.load(export_network(network, tmp_path / "exported").path).module()
    inputs = DATA.inputs[:3]
    torch.testing.assert_close(program(inputs), network.eval()(inputs))
    assert program(inputs).shape == (3, 1)


@pytest.mark.parametrize("metric", ["r2", "rmse"])
def test_a_hypernetwork_scores_larger_for_better(metric, tmp_path):
    task = Regression(metric)
    ghn = GHN(SPACE, GHNRecipe(hidden=8, decoder_hidden=8, chunk=4, batch_size=32), task)
    sampler = GHNSampler(SPACE, ghn, data=DATA, budget=2, pool_size=12, trials_per_round=6, seed=0)
    study = make(task, tmp_path, sampler=sampler, pruner=optuna.pruners.NopPruner(), trials=6).run().study
    scores = [trial.user_attrs[SURROGATE_SCORE] for trial in study.trials]
    assert all(score < (1 if metric == "r2" else 0) for score in scores)
    cut = SPACE.architecture({})
    whole = SPACE.decode(study.trials[0].params)
    assert ghn.score([cut])[0] < ghn.score([whole])[0]  # also where r2 is negative


@pytest.mark.parametrize("metric", ["r2", "rmse"])
def test_masks_prune_before_the_first_step(metric, tmp_path):
    task = Regression(metric)
    model = HMNAS(SPACE, HMNASRecipe(batch_size=32), task)
    pruner = HMNASPruner(model, data=DATA, budget=3, n_random=20, trials_per_round=4, n_startup_trials=5)
    result = make(task, tmp_path, sampler=optuna.samplers.RandomSampler(seed=0), pruner=pruner).run()
    sign = 1 if metric == "r2" else -1
    values = [sign * trial.value for trial in result.study.trials if trial.state == TrialState.COMPLETE]
    assert sign * result.best.value == max(values)
    assert model.fitted
    assert plot_family(model, members=2).axes[0].get_ylabel() == metric


def test_who_starts_workers_hears_the_metric_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.py").write_text(
        "from search.test_regression import make\n"
        "from optuna_nas import Regression\n"
        "def search():\n"
        "    return make(Regression('rmse'), 'run', storage='sqlite:///study.db')\n"
    )
    curves = []

    class Listener:
        def __getattr__(self, name):
            return lambda *unused: None

        def epoch(self, trial_number, step, metrics):
            curves.append((trial_number, step, metrics))

    shared = SharedStudy(Job("study.py"), Listener())
    trial = shared.study.ask()
    trial.report(0.5, 1)
    shared.look()
    assert curves == [(0, 1, {"rmse": 0.5})]


def test_networks_with_two_outputs_are_refused():
    space = SPACE.with_skeleton(auxiliary=True, cells=("cell", "residual_reduction", "cell"), input_shape=(10, 8, 8))
    network = space.full_architecture().build().train()
    batch = (torch.zeros(2, 10, 8, 8), torch.zeros(2))
    with pytest.raises(ValueError, match=r"`space` must be of networks with one output .* but they have 2"):
        Regression().loss(network, batch)

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import numpy as np
import optuna
import pytest
from cli.test_commands import wait_for
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from optuna.trial import TrialState
from PIL import Image
from scipy.stats import kendalltau
from strategies import few_digits

from optuna_nas import NetworkSpace
from optuna_nas.oneshot import GHN, GHNRecipe
from optuna_nas.samplers import GHNSampler, SNASSampler
from optuna_nas.space import Architecture, Skeleton, nasbench201_space
from optuna_nas.storage.artifacts import folder_store
from optuna_nas.tracking import DatasetInfo, MLflowTracker, comparison_view, mlflow_keys, records, view
from optuna_nas.tracking import mirror as mirror_module
from optuna_nas.tracking import tracker as tracker_module

if TYPE_CHECKING:
    from pathlib import Path

# MLflow 3.17 uses an option of SQLAlchemy that SQLAlchemy 2.1 announces to remove.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

SPACE = nasbench201_space()
EPOCHS = 3
ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


class Database(NamedTuple):
    """An MLflow database with its tables, which take seconds to make; tests copy it."""

    path: Path
    said: str


@pytest.fixture(scope="module")
def _no_telemetry():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def database(tmp_path_factory, _no_telemetry):
    folder = tmp_path_factory.mktemp("database")
    said = io.StringIO()
    tracker = MLflowTracker(f"sqlite:///{folder / 'mlflow.db'}", experiment="first")
    with redirect_stdout(said), redirect_stderr(said):
        study = new_study()
        tracker.start(study)
        tracker.finish(study)
    assert sorted(path.name for path in folder.iterdir()) == ["mlflow.db", "mlruns"]
    return Database(folder / "mlflow.db", said.getvalue())


@pytest.fixture(autouse=True)
def _environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture
def uri(tmp_path, database):
    shutil.copy(database.path, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def new_study(name="study", folder=None, **kwargs):
    storage = f"sqlite:///{folder / 'optuna.db'}" if folder else None
    return optuna.create_study(
        study_name=name,
        storage=storage,
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=0),
        load_if_exists=True,
        **kwargs,
    )


def value_of(number, epoch=EPOCHS):
    return (number * 7 % 10 + epoch) / 20


def objective(tracker, *, pruned=(), failed=(), during=None):
    """Trials that report, with numbers that a test can foretell."""

    def run(trial):
        SPACE.suggest(trial)
        trial.suggest_float("learning rate[0]", 1e-3, 1e-1, log=True)
        trial.set_user_attr("params", 1000 + trial.number)
        trial.set_user_attr("device", "cpu")
        trial.set_user_attr("optuna_nas:note", {"seen": True})
        tracker.trial_started(trial, {"multiply_adds": 5.0})
        if during is not None:
            during(trial)
        for epoch in range(1, EPOCHS + 1):
            accuracy = value_of(trial.number, epoch)
            trial.report(accuracy, epoch)
            tracker.epoch(trial.number, epoch, {"accuracy": accuracy, "train_loss": 1 / epoch})
            if trial.number in pruned and epoch == 2:
                raise optuna.TrialPruned
            if trial.number in failed:
                raise ValueError("no luck")
        return value_of(trial.number)

    return run


def search(tracker, study, n_trials, *, n_jobs=1, start=None, **kwargs):
    tracker.start(study, space=SPACE, **(start or {}))
    study.optimize(
        objective(tracker, **kwargs),
        n_trials=n_trials,
        n_jobs=n_jobs,
        catch=(ValueError,),
        callbacks=[tracker.trial_finished],
    )
    tracker.finish(study)


class Mirror(NamedTuple):
    """What MLflow shows of the one study in it."""

    client: MlflowClient
    experiment: Any
    parent: Any
    children: dict[int, Any]
    fits: dict[str, Any]

    def curve(self, run, metric):
        return [(point.step, point.value) for point in self.client.get_metric_history(run.info.run_id, metric)]

    def file(self, run, name):
        return self.client.download_artifacts(run.info.run_id, name)

    @property
    def view(self):
        (view,) = [
            json.loads(value)
            for key, value in self.experiment.tags.items()
            if key.startswith("mlflow.sharedViewState.")
        ]
        return view


def read(uri, experiment="optuna_nas"):
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    below = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(below) == len(runs) - 1
    fits = {run.data.tags["optuna_nas.model"]: run for run in below if run.data.tags["optuna_nas.kind"] == "fit"}
    children = [run for run in below if run.data.tags["optuna_nas.kind"] == "trial"]
    assert len(children) + len(fits) == len(below)
    numbers = [int(run.data.tags["optuna.trial_number"]) for run in children]
    assert len(set(numbers)) == len(numbers), "a trial has two runs"
    return Mirror(client, found, parent, dict(sorted(zip(numbers, children, strict=True))), fits)


# -- one search, looked at from all sides ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory, database):
    """A search of six trials, one pruned and one failed, in a time zone far from UTC."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copy(database.path, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TZ", "Asia/Kolkata")
        time.tzset()
        study = new_study(folder=folder)
        begun = time.time()
        search(
            MLflowTracker(uri),
            study,
            6,
            pruned={1},
            failed={2},
            start={
                "description": "Which cell is *best*?",
                "dataset": DatasetInfo("digits", "sklearn.datasets.load_digits", "d" * 64),
                "params": {"sampler": "RandomSampler", "trials": 6},
            },
            during=lambda trial: time.sleep(0.05),
        )
        times = {
            trial.number: (trial.datetime_start.timestamp(), trial.datetime_complete.timestamp())
            for trial in study.trials
        }
        assert all(begun <= start < end <= time.time() for start, end in times.values())
    time.tzset()
    return read(uri), study, times


def test_each_trial_is_a_child_of_the_study_with_its_status(finished):
    mirror, study, _ = finished
    assert mirror.parent.info.run_name == "study"
    assert mirror.parent.info.status == "FINISHED"
    statuses = {number: run.info.status for number, run in mirror.children.items()}
    assert statuses == {0: "FINISHED", 1: "KILLED", 2: "FAILED", 3: "FINISHED", 4: "FINISHED", 5: "FINISHED"}
    assert {run.data.tags["optuna.state"] for run in mirror.children.values()} == {"COMPLETE", "PRUNED", "FAIL"}
    assert {run.data.tags["optuna.study_name"] for run in mirror.children.values()} == {study.study_name}


def test_runs_begin_and_end_with_their_trials(finished):
    mirror, _, times = finished
    for number, run in mirror.children.items():
        assert (run.info.start_time / 1000, run.info.end_time / 1000) == pytest.approx(times[number], abs=0.002)


def test_learning_curves_have_epochs_as_steps(finished):
    mirror, _, _ = finished
    run = mirror.children[3]
    assert mirror.curve(run, "accuracy") == [(epoch, value_of(3, epoch)) for epoch in range(1, EPOCHS + 1)]
    assert mirror.curve(run, "train_loss") == [(epoch, 1 / epoch) for epoch in range(1, EPOCHS + 1)]
    assert mirror.curve(mirror.children[1], "accuracy") == [(1, value_of(1, 1)), (2, value_of(1, 2))]


def test_values_attributes_and_params_are_metrics_tags_and_params(finished):
    mirror, study, _ = finished
    run = mirror.children[3]
    assert run.data.metrics["accuracy"] == study.trials[3].value
    assert run.data.metrics["params"] == 1003
    assert run.data.metrics["multiply_adds"] == 5
    assert run.data.tags["device"] == "cpu"
    assert json.loads(run.data.tags["optuna_nas:note"]) == {"seen": True}
    params = study.trials[3].params
    assert run.data.params["cell/1-0"] == params["cell_0_1"]
    assert len(run.data.params) == len(params)


def test_the_architecture_is_a_picture_a_tile_of_the_grid_and_a_value(finished):
    mirror, study, _ = finished
    run = mirror.children[0]
    architecture = SPACE.decode(study.trials[0].params)
    with open(mirror.file(run, "architecture.json")) as file:
        assert Architecture.from_json(file.read()) == architecture
    with Image.open(mirror.file(run, "architecture.png")) as picture:
        assert np.asarray(picture.convert("L")).std() > 5
    tiles = [item.path for item in mirror.client.list_artifacts(run.info.run_id, "images")]
    assert sum(path.startswith("images/architecture+step+0+") for path in tiles) == 2  # the picture and a small one
    assert run.data.tags["mlflow.loggedImages"] == "True"


def test_the_study_has_curves_over_trial_numbers(finished):
    mirror, _, _ = finished
    values = {number: value_of(number) for number in (0, 3, 4, 5)}
    assert mirror.curve(mirror.parent, "trial_value") == list(values.items())
    best = [max(value for number, value in values.items() if number <= step) for step in range(6)]
    assert mirror.curve(mirror.parent, "best_value") == list(enumerate(best))
    assert mirror.curve(mirror.parent, "n_pruned") == list(enumerate([0, 1, 1, 1, 1, 1]))
    assert mirror.curve(mirror.parent, "n_failed")[-1] == (5, 1)
    assert mirror.curve(mirror.parent, "n_complete")[-1] == (5, 4)


def test_the_study_shows_its_description_params_and_dataset(finished):
    mirror, _, _ = finished
    note = mirror.parent.data.tags["mlflow.note.content"]
    best = max((0, 3, 4, 5), key=value_of)
    assert note.startswith("Which cell is *best*?\n\n**Best accuracy: ")
    assert f"of trial {best}." in note
    assert "4 complete, 1 pruned, 1 fail." in note
    picture = f"get-artifact?path=architecture.png&run_uuid={mirror.children[best].info.run_id}"
    assert f"![the best architecture]({picture})" in note
    assert f"| 1 | {best} | {value_of(best):.4g} |" in note
    assert mirror.parent.data.params == {"sampler": "RandomSampler", "trials": "6"}
    (used,) = mirror.parent.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("digits", "d" * 36)
    assert json.loads(used.dataset.source) == {"uri": "sklearn.datasets.load_digits"}


def test_the_leaderboard_has_the_best_trial_first_and_the_failed_one_last(finished, monkeypatch):
    mirror, study, _ = finished
    monkeypatch.setenv(
        "MLFLOW_TRACKING_URI", mirror.client.tracking_uri
    )  # `load_table` asks there, whatever the client
    table = mirror.client.load_table(mirror.experiment.experiment_id, "leaderboard.json", [mirror.parent.info.run_id])
    assert table["trial"][0] == study.best_trial.number
    assert table["accuracy"][0] == study.best_value
    assert list(table["state"])[-2:] == ["PRUNED", "FAIL"]
    assert {"params", "cell_0_1", "seconds"} <= set(table.columns)


def test_the_winner_stands_out(finished):
    mirror, study, _ = finished
    names = {number: run.info.run_name for number, run in mirror.children.items()}
    best = study.best_trial.number
    assert names == {number: f"trial {number}" + " (best)" * (number == best) for number in range(6)}
    colours = {number: run.data.tags["mlflow.runColor"] for number, run in mirror.children.items()}
    assert [number for number in colours if colours[number] == mirror_module.COLOURS["best"]] == [best]


def test_the_saved_view_compares_the_trials_of_the_study(finished):
    mirror, _, _ = finished
    view = mirror.view
    assert view["orderByKey"] == "metrics.`accuracy`"
    assert not view["orderByAsc"]
    assert len(mirror.client.search_runs([mirror.experiment.experiment_id], view["searchFilter"])) == 7
    charts = {}
    for chart in view["compareRunCharts"]:
        charts.setdefault(chart["type"], []).append(chart)
    assert {kind: len(found) for kind, found in charts.items()} == {"LINE": 2, "SCATTER": 1, "PARALLEL": 1, "IMAGE": 2}
    assert set(charts["PARALLEL"][0]["selectedParams"]) <= set(mirror.children[0].data.params)
    assert charts["PARALLEL"][0]["selectedMetrics"] == ["accuracy"]
    assert charts["SCATTER"][0]["xaxis"] == {"key": "params", "type": "METRIC"}
    assert charts["SCATTER"][0]["yaxis"] == {"key": "accuracy", "type": "METRIC"}
    sections = {section["uuid"] for section in view["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in view["compareRunCharts"]} == sections


# -- parts -------------------------------------------------------------------------------------------------------------


def test_a_distribution_that_learns_is_shown_on_the_study_once(uri, tmp_path):
    tracker = MLflowTracker(uri)
    study = new_study(folder=tmp_path)
    study.sampler = SNASSampler(SPACE, seed=0)
    search(tracker, study, 11)
    tracker.start(study, space=SPACE)  # again, with nothing new
    tracker.finish(study)
    mirror = read(uri)
    run_id = mirror.parent.info.run_id
    entropy = mirror.client.get_metric_history(run_id, "distribution/entropy")
    assert [point.step for point in entropy] == [0, 5, 10]
    assert entropy[0].value == pytest.approx(np.log(5), rel=1e-4)
    assert entropy[-1].value < entropy[0].value
    names = {file.path for file in mirror.client.list_artifacts(run_id)}
    assert {"distribution.png", "most_likely_cells.png"} <= names
    picture = Image.open(mirror.client.download_artifacts(run_id, "distribution.png"))
    assert np.asarray(picture).std() > 10


@pytest.mark.parametrize("fails", [False, True])
def test_the_training_of_a_hypernetwork_is_shown_on_the_study_once(uri, tmp_path, fails, monkeypatch):
    history, failures = mirror_module.Mirror._history, ["once"] if fails else []

    def unreliable(self, run_id, metric):
        if metric == "ghn/loss" and failures:
            raise MlflowException(failures.pop())
        return history(self, run_id, metric)

    monkeypatch.setattr(mirror_module.Mirror, "_history", unreliable)
    data = few_digits(64)
    ghn = GHN(
        NetworkSpace(SPACE, Skeleton(("cell",), 4, data.input_shape, data.classes)), GHNRecipe(phases=1, batch_size=16)
    )
    tracker = MLflowTracker(uri)
    study = new_study(folder=tmp_path)
    store = folder_store(tmp_path / "artifacts")
    study.sampler = GHNSampler(
        SPACE, ghn, data=data, budget=2, pool_size=10, trials_per_round=5, artifact_store=store, seed=0
    )
    search(tracker, study, 2)
    tracker.start(study, space=SPACE)  # again, with nothing new
    tracker.finish(study)
    mirror = read(uri)
    for name in ("loss", "accuracy"):
        curve = mirror.client.get_metric_history(mirror.parent.info.run_id, f"ghn/{name}")
        assert [point.step for point in curve] == [record.step for record in ghn.records]
        assert [point.value for point in curve] == pytest.approx([r.metrics[name] for r in ghn.records], rel=1e-4)
        own = mirror.client.get_metric_history(mirror.fits["GHN"].info.run_id, name)
        assert [(point.step, point.value) for point in own] == [(point.step, point.value) for point in curve]
    assert mirror.fits["GHN"].info.status == "FINISHED"
    assert mirror.fits["GHN"].info.run_name == "GHN fit"


def test_mlflow_keys_read_well_and_stay_different():
    names = ["normal_0_2", "normal/2-0", "a[0]", "a(0)", "lr", "block/5/inputs", "x" * 300, "/a", "a//b", "a/../b"]
    keys = mlflow_keys(names)
    assert mlflow_keys(["normal_0_2"]) == {"normal_0_2": "normal/2-0"}
    assert keys["lr"] == "lr"
    assert keys["block/5/inputs"] == "block/5/inputs"
    assert keys["a[0]"].startswith("a_0_.")
    assert len(set(keys.values())) == len(names)
    assert all(view._is_key(key) for key in keys.values())
    assert mlflow_keys(["a[0]"])["a[0]"] == keys["a[0]"]


def test_parameters_that_explain_more_are_drawn_first():
    def trial(number, good, noise):
        return optuna.trial.create_trial(
            params={"noise": noise, "good": good, "fixed": "x"},
            distributions={
                "noise": optuna.distributions.FloatDistribution(0, 1),
                "good": optuna.distributions.CategoricalDistribution(["a", "b"]),
                "fixed": optuna.distributions.CategoricalDistribution(["x", "y"]),
            },
            value=float(good == "b") + 0.01 * number,
        )

    trials = [trial(number, "ab"[number % 2], number * 37 % 20 / 20) for number in range(20)]
    assert view.parallel_axes(trials, None) == ["good", "noise"]
    assert view.parallel_axes([], SPACE) == list(mlflow_keys(SPACE.options()).values())


def test_the_view_draws_the_surrogate_score_where_trials_have_one(uri):
    tracker, study = MLflowTracker(uri), new_study()
    search(tracker, study, 1, during=lambda trial: trial.set_user_attr("surrogate_score", 0.5))
    (scatter,) = [chart for chart in read(uri).view["compareRunCharts"] if chart["type"] == "SCATTER"]
    assert scatter["xaxis"] == {"key": "surrogate_score", "type": "METRIC"}


def test_scores_against_truth_are_shown_while_trials_finish(uri, tmp_path):
    tracker, study = MLflowTracker(uri), new_study(folder=tmp_path)
    search(tracker, study, 12, during=lambda trial: trial.set_user_attr("surrogate_score", 0.1 * trial.number))
    mirror = read(uri)
    curve = dict(mirror.curve(mirror.parent, "surrogate/kendall_tau"))
    assert curve.keys() == set(range(12))
    values = [trial.value for trial in study.trials]
    assert curve[11] == pytest.approx(kendalltau(range(12), values).statistic)
    lower, upper = (dict(mirror.curve(mirror.parent, f"surrogate/kendall_tau_{end}"))[11] for end in ("lower", "upper"))
    assert lower < curve[11] < upper
    picture = Image.open(mirror.file(mirror.parent, "surrogate.png"))
    assert np.asarray(picture).std() > 10


def test_the_view_fits_into_a_tag():
    params = [f"reduction/{i}-{j}" for i in range(9) for j in range(i)]
    view = comparison_view(
        "accuracy",
        maximize=True,
        params=params[:8],
        scatter="params",
        winner="best",
        search_filter="u" * 64,
    )
    assert len(json.dumps(view)) < 20_000 / 2


def test_a_database_is_opened_by_one_command_and_a_server_by_its_address(uri, monkeypatch):
    tracker = MLflowTracker()
    with pytest.raises(RuntimeError, match="start"):
        _ = tracker.view_url
    study = new_study()
    tracker.start(study)
    tracker.finish(study)
    command, link = tracker.command.splitlines()
    assert command == "mlflow ui --backend-store-uri sqlite:///mlflow.db"
    assert link == tracker.view_url
    assert link.startswith("http://127.0.0.1:5000/#/experiments/2/runs?viewStateShareKey=")
    (key,) = [key for key in read(uri).experiment.tags if key.startswith("mlflow.sharedViewState.")]
    assert key.removeprefix("mlflow.sharedViewState.") in link
    elsewhere = MLflowTracker().find_view(study, "http://127.0.0.1:1234")
    assert elsewhere == link.replace(":5000", ":1234")
    with pytest.raises(ValueError, match="run it with this tracker first"):
        MLflowTracker().find_view(new_study())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host:1/")
    tracker = MLflowTracker()
    assert tracker.tracking_uri == "http://me:secret@host:1/"
    assert "secret" not in str(records.unreachable(tracker.tracking_uri, "why"))


def test_a_tracker_closes_its_connections(uri, open_connections):
    tracker, study = MLflowTracker(uri), new_study()
    tracker.start(study)
    assert open_connections
    tracker.finish(study)
    assert not open_connections
    for again in (tracker.find_view, tracker.rebuild):
        again(study)
        assert not open_connections, again.__name__


def test_a_tracker_travels_to_another_process_unstarted(uri):
    tracker = MLflowTracker(uri, "mine", "score")
    study = new_study()
    tracker.start(study)
    copy = pickle.loads(pickle.dumps(tracker))
    tracker.finish(study)
    assert (copy.tracking_uri, copy.experiment, copy.metric) == (uri, "mine", "score")
    copy.epoch(0, 1, {"score": 1.0})  # not started: nothing happens
    search(copy, study, 1)
    assert read(uri, "mine").children[0].data.metrics["score"] == study.best_value


def test_of_several_objectives_the_first_decides(uri):
    tracker, study = MLflowTracker(uri), optuna.create_study(directions=["maximize", "minimize"])
    tracker.start(study)
    study.optimize(lambda trial: ([0.1, 0.9, 0.5][trial.number], 7.0), n_trials=3, callbacks=[tracker.trial_finished])
    tracker.finish(study)
    mirror = read(uri)
    assert mirror.children[1].info.run_name == "trial 1 (best)"
    assert mirror.children[1].data.metrics == {"accuracy": 0.9, "objective 1": 7.0}


# -- resumed, shared, cut off ------------------------------------------------------------------------------------------


def test_a_resumed_study_goes_on_in_the_same_runs(uri, tmp_path):
    for n_trials in (2, 3):
        search(MLflowTracker(uri), new_study(folder=tmp_path), 2, start={"params": {"trials": n_trials}})
    mirror = read(uri)
    assert list(mirror.children) == [0, 1, 2, 3]
    assert mirror.curve(mirror.children[0], "accuracy") == [(epoch, value_of(0, epoch)) for epoch in (1, 2, 3)]
    assert [step for step, _ in mirror.curve(mirror.parent, "best_value")] == [0, 1, 2, 3]
    assert mirror.parent.data.params["trials"] == "2"
    assert mirror.parent.data.tags["changed.trials"] == "3"
    winners = [run.info.run_name for run in mirror.children.values() if "best" in run.info.run_name]
    assert winners == [f"trial {new_study(folder=tmp_path).best_trial.number} (best)"]


def test_studies_of_one_name_in_two_storages_stay_apart(uri):
    for _ in range(2):
        search(MLflowTracker(uri), new_study(), 1)
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("optuna_nas").experiment_id])
    assert sum("mlflow.parentRunId" not in run.data.tags for run in runs) == 2
    assert len(runs) == 4


def test_trials_that_ran_without_mlflow_are_written_later_from_the_study(uri, tmp_path):
    study = new_study(folder=tmp_path)
    study.optimize(objective(MLflowTracker(uri), pruned={1}, failed={2}), n_trials=4, catch=(ValueError,))
    for _ in range(2):  # the second time there is nothing to write
        tracker = MLflowTracker(uri)
        tracker.start(study, space=SPACE)
        tracker.finish(study)
    mirror = read(uri)
    assert [run.info.status for run in mirror.children.values()] == ["FINISHED", "KILLED", "FAILED", "FINISHED"]
    assert mirror.curve(mirror.children[3], "accuracy") == [(epoch, value_of(3, epoch)) for epoch in (1, 2, 3)]
    assert mirror.children[3].data.metrics["params"] == 1003
    tiles = mirror.client.list_artifacts(mirror.children[0].info.run_id, "images")
    assert len([tile for tile in tiles if "/architecture+" in tile.path]) == 2
    assert [step for step, _ in mirror.curve(mirror.parent, "best_value")] == [0, 1, 2, 3]


def test_a_final_value_off_the_curve_counts_more_than_its_end(uri):
    tracker, study = MLflowTracker(uri), new_study()
    tracker.start(study)
    trial = study.ask()
    tracker.trial_started(trial)
    for epoch in (1, 2):
        trial.report(0.1 * epoch, epoch)
        tracker.epoch(trial.number, epoch, {"accuracy": 0.1 * epoch})
    tracker.trial_finished(study, study.tell(trial, 0.15))
    tracker.finish(study)
    mirror = read(uri)
    assert mirror.children[0].data.metrics["accuracy"] == 0.15
    assert {step for step, _ in mirror.curve(mirror.children[0], "accuracy")} == {1, 2}


def test_an_interrupted_search_leaves_no_run_running(uri, tmp_path):
    tracker, study = MLflowTracker(uri), new_study(folder=tmp_path)
    tracker.start(study)
    tracker.trial_started(study.ask())  # and nobody says how it ended
    tracker.finish(study, "KILLED")
    mirror = read(uri)
    assert [mirror.parent.info.status, mirror.children[0].info.status] == ["KILLED", "KILLED"]

    study.tell(0, state=TrialState.FAIL)  # as the next search does
    tracker = MLflowTracker(uri)
    tracker.start(study)
    tracker.finish(study)
    mirror = read(uri)
    assert [mirror.parent.info.status, mirror.children[0].info.status] == ["FINISHED", "FAILED"]


def test_a_trial_that_another_process_is_closing_is_left_to_it(uri, tmp_path):
    study = new_study(folder=tmp_path)
    other, ours = MLflowTracker(uri), MLflowTracker(uri)
    other.start(study)
    trial = study.ask()
    other.trial_started(trial)
    time.sleep(1)
    trial.report(0.5, 1)
    finished = study.tell(trial, 0.5)
    ours.start(study)
    ours.finish(study)
    assert read(uri).children[0].info.status == "RUNNING"
    other.epoch(0, 1, {"accuracy": 0.5})
    other.trial_finished(study, finished)
    other.finish(study)
    mirror = read(uri)
    assert mirror.children[0].info.status == "FINISHED"
    assert mirror.curve(mirror.children[0], "accuracy") == [(1, 0.5)]


def test_a_retried_trial_gets_a_run_of_its_own(uri, tmp_path):
    study = new_study(folder=tmp_path)
    search(MLflowTracker(uri), study, 1, failed={0})
    first = study.trials[0]
    study.enqueue_trial(first.params, user_attrs=first.user_attrs)  # a retry inherits the attributes
    search(MLflowTracker(uri), study, 1)
    assert [run.info.status for run in read(uri).children.values()] == ["FAILED", "FINISHED"]


def test_a_run_whose_making_was_not_answered_is_not_made_twice(uri, monkeypatch):
    make, lost = MlflowClient.create_run, []

    def create_run(self, experiment_id, start_time, tags, run_name):
        run = make(self, experiment_id, start_time, tags, run_name)
        if run_name == "trial 0" and not lost:
            lost.append(run)
            raise ConnectionResetError("the answer is lost")
        return run

    monkeypatch.setattr(MlflowClient, "create_run", create_run)
    search(MLflowTracker(uri), new_study(), 1)
    assert read(uri).children[0].info.run_id == lost[0].info.run_id


def test_runs_that_two_processes_made_of_one_trial_become_one(uri, tmp_path):
    study = new_study(folder=tmp_path)
    search(MLflowTracker(uri), study, 2)
    mirror = read(uri)
    first = mirror.children[1]
    tags = {name: value for name, value in first.data.tags.items() if name.startswith(("optuna", "mlflow.parent"))}
    mirror.client.create_run(mirror.experiment.experiment_id, first.info.start_time + 1, tags)
    MLflowTracker(uri).rebuild(study)
    assert read(uri).children[1].info.run_id == first.info.run_id


@pytest.mark.parametrize("rival_is_first", [False, True])
def test_two_processes_that_begin_at_once_make_one_run_of_the_study(rival_is_first, uri, monkeypatch):
    make, made = MlflowClient.create_run, []

    def create_run(self, experiment_id, start_time, tags, run_name):
        if not made:
            made.append(make(self, experiment_id, start_time + (-1 if rival_is_first else 1), tags, "rival"))
        return make(self, experiment_id, start_time, tags, run_name)

    monkeypatch.setattr(MlflowClient, "create_run", create_run)
    monkeypatch.setattr(mirror_module, "RIVAL_SECONDS", 0)
    MLflowTracker(uri).rebuild(new_study())
    assert read(uri).parent.info.run_id == made[0].info.run_id, "the rival has not seen this one and keeps its own"


def test_four_trials_at_once_keep_their_curves_apart_and_the_best_value_never_falls(uri, tmp_path):
    study = new_study(folder=tmp_path)
    slow_first = {"during": lambda trial: time.sleep(0.3 if trial.number % 4 == 0 else 0.0)}
    search(MLflowTracker(uri), study, 8, n_jobs=4, pruned={5}, **slow_first)
    mirror = read(uri)
    assert len(mirror.children) == 8
    for number, run in mirror.children.items():
        epochs = 2 if number == 5 else EPOCHS
        assert mirror.curve(run, "accuracy") == [(epoch, value_of(number, epoch)) for epoch in range(1, epochs + 1)]
    best = sorted(mirror.curve(mirror.parent, "best_value"))
    assert [step for step, _ in best] == list(range(8))
    assert [value for _, value in best] == sorted(value for _, value in best)


# -- the queue ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def gate(monkeypatch):
    """Holds back every batch until opened, and remembers all."""
    opened, batches, write = threading.Event(), [], MlflowClient.log_batch

    def log_batch(self, run_id, metrics=(), params=(), tags=(), **kwargs):
        opened.wait(20)
        batches.append([(metric.key, metric.step) for metric in metrics])
        return write(self, run_id, metrics, params, tags, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    opened.set()
    return opened, batches


def test_calls_cost_nothing_while_mlflow_is_slow_and_epochs_go_together_in_order(uri, gate):
    opened, batches = gate
    tracker, study = MLflowTracker(uri), new_study()
    tracker.start(study)
    trial = study.ask()
    opened.clear()
    costs = []
    for epoch in range(400):
        begun = time.perf_counter()
        if epoch == 0:
            tracker.trial_started(trial, {"known": 1.0})
        tracker.epoch(trial.number, epoch, {"accuracy": 0.5, "loss": 0.1})
        costs.append(time.perf_counter() - begun)
    study.tell(trial, 0.5)
    tracker.trial_finished(study, study.trials[0])
    opened.set()
    tracker.finish(study)
    assert max(costs) < 10, "no call waits for MLflow, which holds still for 20 s"
    assert sum(any(key == "loss" for key, _ in batch) for batch in batches) <= 2, "400 epochs are a batch or two"
    steps = [step for batch in batches for key, step in batch if key == "loss"]
    assert steps == list(range(400))
    keys = [key for batch in batches for key, _ in batch]
    assert keys.index("known") < keys.index("loss") < keys.index("best_value")


def test_a_full_queue_drops_records_and_the_study_fills_the_gap(uri, gate, monkeypatch, caplog):
    opened, _ = gate
    monkeypatch.setattr(tracker_module, "MAX_RECORDS", 20)
    tracker, study = MLflowTracker(uri), new_study()
    tracker.start(study)
    opened.clear()
    trial = study.ask()
    tracker.trial_started(trial)
    for epoch in range(100):
        trial.report(epoch / 100, epoch)
        tracker.epoch(trial.number, epoch, {"accuracy": epoch / 100})
        assert len(tracker._records) <= 20
    tracker.trial_finished(study, study.tell(trial, 0.99))
    opened.set()
    tracker.finish(study)
    assert len([record for record in caplog.records if record.name == "optuna_nas.tracking"]) == 1
    mirror = read(uri)
    assert sorted(mirror.curve(mirror.children[0], "accuracy")) == [(epoch, epoch / 100) for epoch in range(100)]
    assert mirror.children[0].info.status == "FINISHED"


def test_statuses_are_right_where_files_are_refused(uri, monkeypatch, caplog):
    def refuse(*args, **kwargs):
        raise PermissionError("read-only bucket")

    monkeypatch.setattr(MlflowClient, "log_text", refuse)
    search(MLflowTracker(uri), new_study(), 2)
    mirror = read(uri)
    assert [run.info.status for run in (mirror.parent, *mirror.children.values())] == ["FINISHED"] * 3
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "MLflow could not store an architecture or a table (read-only bucket)."
    ]


def test_a_new_database_is_made_without_a_word(database):
    assert database.said == ""


# -- addresses ---------------------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://127.0.0.1:{port}", "does not answer"),
        ("http://127.0.0.1:nonsense", "does not answer"),
        ("http://", "does not answer"),
        ("postgresql://127.0.0.1:{port}/mlflow", "refused"),
        ("sqlite:////no/such/folder/mlflow.db", "unable to open"),
        ("sqlite:///{text}", "not a database"),
        ("localhost:5000", "neither a server nor a database"),
        ("file:///tmp/mlruns", "neither a server nor a database"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_clear_sentence(address, reason, tmp_path):
    (tmp_path / "text").write_text("This is not a database at all. " * 50)
    address = address.format(port=free_port(), text=tmp_path / "text")
    tracker, study = MLflowTracker(address), new_study()
    begun = time.monotonic()
    with pytest.raises(ConnectionError, match=reason) as raised:
        tracker.start(study)
    assert time.monotonic() - begun < 10
    message = str(raised.value)
    assert address in message
    assert "mlflow server" in message
    assert "\n" not in message
    tracker.epoch(0, 0, {"accuracy": 0.0})  # without MLflow a search goes on
    tracker.finish(study)


def test_a_server_that_listens_but_says_nothing_is_given_up_within_ten_seconds(monkeypatch):
    assert mirror_module.PROBE_SECONDS <= 5
    monkeypatch.setattr(mirror_module, "PROBE_SECONDS", 1)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        begun = time.monotonic()
        with pytest.raises(ConnectionError, match="does not answer"):
            MLflowTracker(f"http://127.0.0.1:{listener.getsockname()[1]}").start(new_study())
        assert time.monotonic() - begun < 6


# -- a server ----------------------------------------------------------------------------------------------------------


class Server:
    """A real MLflow server in a process group of its own; starts while other tests run."""

    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        options = {
            "--backend-store-uri": f"sqlite:///{self.folder / 'mlflow.db'}",
            "--artifacts-destination": str(self.folder / "artifacts"),
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--workers": "1",
        }
        with open(self.folder / "server.log", "a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *(text for pair in options.items() for text in pair)],
                cwd=self.folder,
                env=os.environ | ENVIRONMENT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self):
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                    return
            except OSError:
                assert self.process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
                time.sleep(0.1)
        raise TimeoutError("the MLflow server does not start")

    def kill(self):
        if self.process.poll() is not None:
            return
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory, database):
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(database.path, folder / "mlflow.db")
    server = Server(folder)
    yield server
    server.kill()


def test_a_server_that_dies_stops_nothing_and_later_shows_everything(server, tmp_path, monkeypatch, caplog, capfd):
    server.wait()
    monkeypatch.setattr(mirror_module, "FRESH_SECONDS", 0)
    study, tracker = new_study(folder=tmp_path), MLflowTracker(server.uri)

    def die(trial):
        if trial.number == 1:
            time.sleep(1)  # so that the first trials are there
            server.kill()

    search(tracker, study, 5, pruned={2}, failed={3}, during=die)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE", "PRUNED", "FAIL", "COMPLETE"]
    messages = [record.getMessage() for record in caplog.records if record.name == "optuna_nas.tracking"]
    assert len(messages) == 2
    assert "the search goes on" in messages[0]
    assert "the next start writes it" in messages[1]

    server.start()
    server.wait()
    tracker = MLflowTracker(server.uri)
    tracker.start(study, space=SPACE)
    tracker.finish(study)
    mirror = read(server.uri)
    assert mirror.parent.info.status == "FINISHED"
    statuses = [run.info.status for run in mirror.children.values()]
    assert statuses == ["FINISHED", "FINISHED", "KILLED", "FAILED", "FINISHED"]
    for number, epochs in enumerate([3, 3, 2, 1, 3]):
        curve = [(epoch, value_of(number, epoch)) for epoch in range(1, epochs + 1)]
        assert mirror.curve(mirror.children[number], "accuracy") == curve
        tiles = mirror.client.list_artifacts(mirror.children[number].info.run_id, "images")
        assert len([tile for tile in tiles if "/architecture+" in tile.path]) == 2
    assert [step for step, _ in mirror.curve(mirror.parent, "best_value")] == [0, 1, 2, 3, 4]
    assert tracker.command == tracker.view_url
    assert tracker.view_url.startswith(f"{server.uri}/#/experiments/")
    assert capfd.readouterr() == ("", "")


WORKER = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tracking.test_mirror import MLflowTracker, new_study, search
folder = Path(sys.argv[2])
back = folder / "back"

def during(trial):
    (folder / f"started {os.getpid()}").touch()
    while len(list(folder.glob("started *"))) < 2:  # a process that starts late must find the server, too
        time.sleep(0.1)
    time.sleep(0.5)
    while trial.number >= 24 and not back.exists():  # the study must not end before the server is there again
        time.sleep(0.1)

states = {"pruned": {3, 17}, "failed": {5, 21}, "during": during}
search(MLflowTracker(sys.argv[3], "both"), new_study(folder=Path(sys.argv[2])), 16, n_jobs=4, **states)
"""


def test_two_processes_of_four_trials_at_once_lose_nothing_when_the_server_dies_and_comes_back(server, tmp_path):
    server.wait()
    study = new_study(folder=tmp_path)
    arguments = [sys.executable, "-c", WORKER, os.path.dirname(os.path.dirname(__file__)), str(tmp_path), server.uri]
    workers = [subprocess.Popen(arguments, env=os.environ | ENVIRONMENT, cwd=tmp_path) for _ in range(2)]

    def finished(n_trials):
        return lambda: len(records.finished_trials(study)) >= n_trials

    wait_for(finished(4))
    server.kill()
    wait_for(finished(16))
    server.start()
    server.wait()
    (tmp_path / "back").touch()
    assert [worker.wait(120) for worker in workers] == [0, 0]
    mirror = read(server.uri, "both")
    assert sorted(mirror.children) == list(range(32))
    for trial in study.trials:
        run = mirror.children[trial.number]
        assert run.info.status == records.STATUSES[trial.state]
        assert sorted(mirror.curve(run, "accuracy")) == sorted(trial.intermediate_values.items())
    assert [step for step, _ in sorted(mirror.curve(mirror.parent, "best_value"))] == list(range(32))


def seen_in(browser, address, place):
    """Return what a browser makes of a page, and leave a picture of it."""
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1600,2300",
        "--virtual-time-budget=90000",
        f"--user-data-dir={place}.profile",
        f"--screenshot={place}.png",
        "--dump-dom",
    ]
    done = subprocess.run([browser, *flags, address], capture_output=True, text=True, timeout=100, check=True)
    return done.stdout


@pytest.mark.browser
def test_the_view_opens_in_a_browser_with_its_charts(server, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("neither chromium nor google-chrome is installed; `apt-get install chromium` brings one")
    server.wait()
    tracker, study = MLflowTracker(server.uri, experiment="browser"), new_study(folder=tmp_path)
    search(tracker, study, 4)
    shown = seen_in(browser, tracker.view_url, tmp_path / "view")
    best = study.best_trial.number
    titles = ["1. Which trial won", "2. What it chose", "3. What it looks like", "4. How it learned"]
    charts = ["best_value", "params vs. accuracy", "Parallel Coordinates", f"best - trial {best}"]
    for text in [*titles, *charts, f"trial {best} (best)", "cell/1-0"]:
        assert text in shown, text
    # The pages behind it: the study's run, a trial's run, and all trials side by side.
    mirror = read(server.uri, "browser")
    pages = f"{server.uri}/#/experiments/{mirror.experiment.experiment_id}/runs"
    shown = seen_in(browser, f"{pages}/{mirror.parent.info.run_id}", tmp_path / "study")
    for text in ("best_value", "trial_value", "seconds_saved", "Best accuracy", "get-artifact?path=architecture.png"):
        assert text in shown, text
    child = mirror.children[best]
    shown = seen_in(browser, f"{pages}/{child.info.run_id}", tmp_path / "trial")
    for text in (f"trial {best} (best)", "accuracy", "cell/1-0", "Finished"):
        assert text in shown, text
    runs = json.dumps([run.info.run_id for run in mirror.children.values()])
    query = f"runs={quote(runs)}&experiments={quote(json.dumps([mirror.experiment.experiment_id]))}"
    shown = seen_in(browser, f"{server.uri}/#/compare-runs?{query}", tmp_path / "compare")
    assert "Comparing 4 Runs" in shown
    assert "Parallel Coordinates" in shown
    assert all(f"trial {number}" in shown for number in range(4))

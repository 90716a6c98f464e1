"""What MLflow shows of a trial: curve, values, picture, status."""

import json
import math
import shutil
import time
from pathlib import Path

import objectives
import optuna
import pytest
from mlflow import MlflowClient
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState
from tracked import EPOCHS, EXPERIMENT, new_study, read, value_of

from optuna_nas.search import Search
from optuna_nas.search.results import shown_in_mlflow
from optuna_nas.storage.attributes import DUPLICATE_OF, METRIC
from optuna_nas.storage.identity import study_uid
from optuna_nas.tracking import MLflowTracker
from optuna_nas.tracking.runs import COLOURS
from optuna_nas.training import Recipe


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
    assert run.data.params["cell_0_1"] == params["cell_0_1"]
    assert len(run.data.params) == len(params)


def test_the_winner_stands_out(finished):
    mirror, study, _ = finished
    names = {number: run.info.run_name for number, run in mirror.children.items()}
    best = study.best_trial.number
    ends = {TrialState.PRUNED: " (pruned)", TrialState.FAIL: " (failed)", TrialState.COMPLETE: ""}
    expected = {trial.number: f"trial {trial.number}{ends[trial.state]}" for trial in study.trials}
    assert names == expected | {best: f"trial {best} (best)"}
    assert {"trial 1 (pruned)", "trial 2 (failed)"} <= set(names.values())
    colours = {number: run.data.tags["mlflow.runColor"] for number, run in mirror.children.items()}
    assert [number for number in colours if colours[number] == COLOURS["best"]] == [best]


def test_of_several_objectives_the_first_decides(uri):
    tracker, study = MLflowTracker(uri, metric="accuracy"), optuna.create_study(directions=["maximize", "minimize"])
    tracker.start(study)
    study.optimize(lambda trial: ([0.1, 0.9, 0.5][trial.number], 7.0), n_trials=3, callbacks=[tracker.trial_finished])
    tracker.finish(study)
    mirror = read(uri)
    assert mirror.children[1].info.run_name == "trial 1 (best)"
    assert mirror.children[1].data.metrics == {"accuracy": 0.9, "objective 1": 7.0}


def test_several_objectives(tmp_path):
    study = optuna.create_study(directions=["maximize", "minimize"])
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), 2.0), n_trials=3)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    MLflowTracker(uri, metric="value").rebuild(study)
    children = read(uri).children
    assert children[1].data.metrics["value"] == study.trials[1].values[0]
    assert children[1].data.metrics["objective 1"] == 2.0


def test_a_final_value_off_the_curve_counts_more_than_its_end(uri):
    tracker, study = MLflowTracker(uri, metric="accuracy"), new_study()
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


def test_attributes_do_not_take_the_place_of_what_tells_runs_apart(uri):
    victim, study = new_study("victim"), new_study("study")
    for one in (victim, study):
        one.optimize(lambda trial: 0.5, n_trials=1)
    claims = {
        "optuna_nas.study_uid": study_uid(victim),
        "optuna_nas.kind": "study",
        "optuna.trial_number": "x",
        "mlflow.parentRunId": "0" * 32,
        "mlflow.runName": "another",
        "infinite.accuracy": "inf",
    }
    study.add_trial(optuna.trial.create_trial(value=0.7, user_attrs=claims))
    for one in (victim, study):
        MLflowTracker(uri, metric="accuracy").rebuild(one)
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    kinds = [(run.data.tags["optuna_nas.study_uid"], run.data.tags["optuna_nas.kind"]) for run in runs]
    ours, theirs = study_uid(study), study_uid(victim)
    assert sorted(kinds) == sorted([(ours, "study"), *[(ours, "trial")] * 2, (theirs, "study"), (theirs, "trial")])
    (claiming,) = [run for run in runs if "attribute.optuna.trial_number" in run.data.tags]
    assert claiming.info.run_name == "trial 1 (best)"
    assert claiming.data.tags["optuna.trial_number"] == "1"
    assert {key: claiming.data.tags[f"attribute.{key}"] for key in claims} == claims


def test_an_infinite_value_is_no_better_number_in_mlflow(uri):
    study = optuna.create_study(direction="minimize")
    study.add_trial(optuna.trial.create_trial(value=math.inf, intermediate_values={1: 0.5, 2: math.inf}))
    study.add_trial(optuna.trial.create_trial(value=0.7, intermediate_values={1: 0.7}))
    for _ in range(2):  # and is written once
        MLflowTracker(uri, metric="loss").rebuild(study)
    mirror = read(uri)
    assert math.isnan(mirror.children[0].data.metrics["loss"])
    assert mirror.children[0].data.tags["infinite.loss"] == "inf at step 2"
    assert len(mirror.curve(mirror.children[0], "loss")) == 2
    client, experiment = MlflowClient(uri), mirror.parent.info.experiment_id
    ranked = client.search_runs([experiment], "tags.`optuna_nas.kind` = 'trial'", order_by=["metrics.loss ASC"])
    assert [run.info.run_name for run in ranked] == ["trial 1 (best)", "trial 0"]
    table = Path(client.download_artifacts(mirror.parent.info.run_id, "leaderboard.json")).read_text()
    assert json.loads(table, parse_constant=pytest.fail)["data"][-1][1] == "inf"


def test_every_trial_has_the_tasks_metric_beside_the_loss(uri, tmp_path):
    storage = InMemoryStorage()
    shutil.copy(tmp_path / "mlflow.db", tmp_path / "rebuilt.db")
    rebuilt = f"sqlite:///{tmp_path / 'rebuilt.db'}"
    begun = optuna.create_study(study_name="loss", storage=storage, direction="minimize")
    for _ in range(2):
        begun.enqueue_trial(dict.fromkeys(objectives.SPACE.options(), "nor_conv_1x1"))
    search = Search(
        "loss",
        objectives.SPACE,
        objective=objectives.make(recipe=Recipe(epochs=1, batch_size=18), objectives=("loss",)),
        folder=tmp_path,
        trials=2,
        pictures=False,
        tracking=MLflowTracker(uri),
        storage=storage,
    )
    study = search.run().study
    assert DUPLICATE_OF in study.trials[1].user_attrs
    MLflowTracker(rebuilt).rebuild(study, **shown_in_mlflow(search))
    noted = study.trials[0].user_attrs[METRIC]
    for place in (uri, rebuilt):
        shown = [run.data.metrics["accuracy"] for run in read(place).children.values()]
        assert shown == [noted, noted]

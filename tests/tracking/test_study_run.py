"""What MLflow shows of a study: description, params, data set, leaderboard, saved view."""

import json
import re

import numpy as np
import optuna
import pytest
from tracked import SPACE, new_study, objective, read, search, value_of

from optuna_nas.storage.attributes import TEST_RESULT
from optuna_nas.tracking import MLflowTracker


def test_the_study_shows_its_description_params_and_dataset(finished):
    mirror, study, _ = finished
    note = mirror.parent.data.tags["mlflow.note.content"]
    best = max((0, 3, 4, 5), key=value_of)
    run = f"#/experiments/{mirror.experiment.experiment_id}/runs/{mirror.children[best].info.run_id}"
    first, *_ = note.splitlines()
    assert first.startswith(f"**Best accuracy: {value_of(best):.4g}**, of [trial {best}]({run}). Trials: ")
    assert re.search("4 complete, 1 pruned, 1 fail; [0-9]+ s of training\\.$", first)
    assert note.endswith("\n\nWhich cell is *best*?")
    numbers = mirror.parent.data.metrics
    assert (numbers["best_trial"], numbers["n_pruned"]) == (best, 1)
    assert 0 < numbers["seconds_training"] < 60
    picture = f"get-artifact?path=architecture.png&run_uuid={mirror.children[best].info.run_id}"
    assert f"![the best architecture]({picture})" in note
    written = SPACE.decode(study.trials[best].params).summary
    assert f"\n\nTerminal and report write this architecture as `{written}`. {SPACE.notation} Short names: " in note
    assert "`conv3` is `nor_conv_3x3`" in note
    assert f"| best: trial | accuracy |\n| --- | --- |\n| {best} | {value_of(best):.4g} |" in note
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


def test_the_view_draws_the_surrogate_score_where_trials_have_one(uri):
    tracker, study = MLflowTracker(uri), new_study()
    search(tracker, study, 1, during=lambda trial: trial.set_user_attr("surrogate_score", 0.5))
    (scatter,) = [chart for chart in read(uri).view["compareRunCharts"] if chart["type"] == "SCATTER"]
    assert scatter["xaxis"] == {"key": "surrogate_score", "type": "METRIC"}


def test_the_best_network_is_a_model_with_the_metrics_of_its_trial(uri, tmp_path):
    study, tracker = new_study(folder=tmp_path), MLflowTracker(uri)
    search(tracker, study, 2)
    for n_trials in (2, 5):  # the best one changes
        search(tracker, study, n_trials - 2)
        tracker.start(study, space=SPACE, metric="accuracy")
        tracker.finish(study, network=tmp_path / "trial.safetensors")
        mirror, best = read(uri), study.best_trial
        (model,) = mirror.client.search_logged_models([mirror.experiment.experiment_id])
        assert model.source_run_id == mirror.children[best.number].info.run_id
        assert model.status == "READY"
        assert {metric.key: metric.value for metric in model.metrics}["accuracy"] == best.value
        assert model.params["load_with"] == f'optuna_nas.load_network("{tmp_path / "trial.safetensors"}")'
    note = mirror.parent.data.tags["mlflow.note.content"]
    assert f'\n\nIts network: `optuna_nas.load_network("{tmp_path / "trial.safetensors"}")`\n\n' in note
    assert study.best_trial.number == 4


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_foreign_study_of_several_objectives_shows_its_front_and_no_empty_charts(uri):
    study = optuna.create_study(study_name="theirs", directions=["maximize", "minimize", "minimize"])
    study.set_metric_names(["accuracy", "size<b>", "latency"])
    for values in ([0.9, 30, 3], [0.8, 40, 4], [0.7, 10, 3]):
        study.add_trial(optuna.create_trial(values=values))
    MLflowTracker(uri, metric="accuracy").rebuild(study)
    mirror = read(uri)
    note = mirror.parent.data.tags["mlflow.note.content"]
    assert "| Pareto front: trial | accuracy | size&lt;b&gt; | latency |\n| --- | --- | --- | --- |\n" in note
    assert "| 0 | 0.9 | 30 | 3 |\n| 2 | 0.7 | 10 | 3 |" in note
    run_id = mirror.parent.info.run_id
    assert f"![trials and their Pareto front](get-artifact?path=pareto_front.png&run_uuid={run_id})" in note
    assert "pareto_front.png" in {file.path for file in mirror.client.list_artifacts(run_id)}
    charts = [(chart["type"], chart.get("xaxis", {}).get("key")) for chart in mirror.view["compareRunCharts"]]
    logged = mirror.children[0].data.metrics
    assert [kind for kind, _ in charts] == ["LINE", "SCATTER", "SCATTER"]
    assert all(key in logged for kind, key in charts if kind == "SCATTER")


def test_a_study_that_is_killed_shows_its_best_so_far(uri, tmp_path):
    """As after SIGKILL: nobody calls `finish`. The next process keeps what is said, and goes on with it."""
    described, study = {"description": "Which cell is *best*?"}, new_study(folder=tmp_path)

    def note():
        return read(uri).parent.data.tags["mlflow.note.content"]

    def run(tracker, n_trials):
        tracker.start(study, space=SPACE, metric="accuracy", **described)
        study.optimize(objective(tracker), n_trials=n_trials, callbacks=[tracker.trial_finished])
        written = tracker._put_awaited(lambda: None, ())  # all records before it are in MLflow then
        written.result(60)
        tracker._stop(60)

    run(MLflowTracker(uri), 3)
    values = [value_of(number) for number in range(3)]
    best, number = max(values), int(np.argmax(values))
    assert note().startswith(f"**Best accuracy: {best:.4g}** so far, of [trial {number}]")
    assert note().endswith("Which cell is *best*?")
    worker = MLflowTracker(uri)
    worker.start(study, space=SPACE, metric="accuracy", **described, replay=False)
    worker._stop(60)
    assert note().startswith("**Best accuracy")
    run(MLflowTracker(uri), 4)
    assert f"{max(map(value_of, range(7))):.4g}** so far" in note()
    tracker = MLflowTracker(uri)
    search(tracker, study, 1)
    assert "so far" not in note()


def test_a_search_that_was_interrupted_shows_its_best_so_far(uri):
    study, tracker = new_study(), MLflowTracker(uri)
    for status in ("KILLED", "FINISHED"):
        tracker.start(study, space=SPACE, metric="accuracy")
        study.optimize(objective(tracker), n_trials=1, callbacks=[tracker.trial_finished])
        tracker.finish(study, status)
        assert ("so far" in read(uri).parent.data.tags["mlflow.note.content"]) == (status == "KILLED")


def test_the_test_metric_of_the_winner_is_a_metric_and_in_the_description(uri):
    study, tracker = new_study(), MLflowTracker(uri)
    tracker.start(study, space=SPACE, metric="accuracy")
    study.optimize(objective(tracker), n_trials=3, callbacks=[tracker.trial_finished])
    study.set_user_attr(TEST_RESULT, {"trial": study.best_trial.number, "metric": 0.625})
    tracker.finish(study)
    parent = read(uri).parent
    assert parent.data.metrics["test_metric"] == 0.625
    assert "; on the test split 0.625. Trials: 3 complete" in parent.data.tags["mlflow.note.content"]

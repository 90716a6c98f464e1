"""The saved comparison view and its address."""

import json

import optuna
import pytest
from servers import answering
from tracked import SPACE, new_study, read

from optuna_nas.tracking import MLflowTracker, records, view
from optuna_nas.tracking.view import Shown, comparison_view, page_url


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
    endless = trial(20, "a", 0.5)
    endless.values = [float("inf")]
    trials.append(endless)
    assert view.parallel_axes(trials, None) == ["good", "noise"]
    assert view.parallel_axes([], SPACE) == list(SPACE.options())


def test_the_view_fits_into_a_tag():
    params = [f"reduction/{i}-{j}" for i in range(9) for j in range(i)]
    shown = Shown(["accuracy", "latency"], params=params[:8], scatter="params", pictures=["best", "architecture"])
    assert len(json.dumps(comparison_view(shown, "u" * 64))) < 20_000 / 2


def charts_of(state):
    sections = {section["uuid"]: section["name"] for section in state["compareRunSections"]}
    found = {name: [] for name in sections.values()}
    for chart in state["compareRunCharts"]:
        found[sections[chart["metricSectionId"]]].append(chart["type"])
    return found


def test_sections_without_charts_are_left_out_and_every_objective_has_one():
    assert charts_of(comparison_view(Shown(["value"], curves=False), "")) == {"1. Which trial won": ["LINE"]}
    several = comparison_view(Shown(["accuracy", "params", "latency"], scatter="params"), "")
    assert charts_of(several) == {"1. Which trial won": ["LINE", "SCATTER", "SCATTER"], "4. How it learned": ["LINE"]}
    axes = [chart["xaxis"]["key"] for chart in several["compareRunCharts"] if chart["type"] == "SCATTER"]
    assert axes == ["params", "latency"]


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


@pytest.mark.parametrize(("version", "saved"), [("3.17.2", True), ("4.0", True), ("2.22.0", False), ("?", True)])
def test_a_server_that_knows_no_saved_views_gets_a_plain_address(version, saved):
    with answering(lambda path: (200, version)) as server:
        address = page_url(server, "", "7", "uid", "accuracy", maximize=True)
    assert ("viewStateShareKey=optuna_nas_uid" in address) == saved
    assert ("orderByKey=metrics.%60accuracy%60&orderByAsc=false" in address) != saved
    assert "/#/experiments/7/runs?" in address
    assert "workflowType=machine_learning" in address

"""A real MLflow server, which dies and comes back; its pages in a browser."""

import json
import os
import subprocess
import sys
import time
import webbrowser
from urllib.parse import quote

import optuna
import pytest
from browsers import charts_of, find_browser, seen_in
from servers import QUIET_MLFLOW
from terminal import wait_for
from tracked import SPACE, new_study, read, search, value_of
from typer.testing import CliRunner

from optuna_nas.cli import app
from optuna_nas.tracking import MLflowTracker, records, trial_runs

pytestmark = [
    pytest.mark.process,
]


@pytest.fixture(scope="module", autouse=True)
def _started(server):
    """Start the server, which takes its time, before the first test."""


def test_a_server_that_dies_stops_nothing_and_later_shows_everything(server, tmp_path, monkeypatch, caplog, capfd):
    server.wait()
    monkeypatch.setattr(trial_runs, "FRESH_SECONDS", 0)
    study, tracker = new_study(folder=tmp_path), MLflowTracker(server.uri)

    def die(trial):
        if trial.number == 1:
            time.sleep(1)  # so that the first trials are there
            server.kill()

    search(tracker, study, 5, pruned={2}, failed={3}, during=die)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE", "PRUNED", "FAIL", "COMPLETE"]
    messages = [record.getMessage() for record in caplog.records if record.name == "optuna_nas.tracking"]
    assert len(messages) == 2
    assert "the search continues" in messages[0]
    assert "the next start writes it" in messages[1]

    server.start()
    server.wait()
    tracker = MLflowTracker(server.uri)
    tracker.start(study, space=SPACE, metric="accuracy")
    tracker.finish(study)
    mirror = read(server.uri)
    assert mirror.parent.info.status == "FINISHED"
    statuses = [run.info.status for run in mirror.children.values()]
    assert statuses == ["FINISHED", "FINISHED", "KILLED", "FAILED", "FINISHED"]
    for number, epochs in enumerate([3, 3, 2, 1, 3]):
        curve = [(epoch, value_of(number, epoch)) for epoch in range(1, epochs + 1)]
        assert mirror.curve(mirror.children[number], "accuracy") == curve
        tiles = mirror.client.list_artifacts(mirror.children[number].info.run_id, "images")
        names = {tile.path.rsplit("/", 1)[1] for tile in tiles if "/architecture+" in tile.path}
        # The dying server may keep a picture without its preview, which MLflow writes next.
        previews = [name for name in names if name.endswith("+compressed.webp")]
        assert len(previews) == 1
        assert previews[0].replace("+compressed.webp", ".png") in names
        assert len(names) <= 3
    assert [step for step, _ in mirror.curve(mirror.parent, "best_value")] == [0, 1, 2, 3, 4]
    assert tracker.command == tracker.view_url
    assert tracker.view_url.startswith(f"{server.uri}/#/experiments/")
    assert capfd.readouterr() == ("", "")


WORKER = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from optuna_nas.tracking import MLflowTracker
from tracked import new_study, search
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
    workers = [subprocess.Popen(arguments, env=os.environ | QUIET_MLFLOW, cwd=tmp_path) for _ in range(2)]

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


@pytest.fixture
def seen(tmp_path):
    """What a browser makes of an address of MLflow."""
    browser = find_browser()

    return lambda address, name: seen_in(browser, address, tmp_path / name)


@pytest.mark.browser
def test_the_pages_of_a_study_answer_at_first_sight(server, tmp_path, seen):
    server.wait()
    tracker, study = MLflowTracker(server.uri, experiment="browser"), new_study(folder=tmp_path)
    search(
        tracker, study, 4, pruned={1}, during=lambda trial: trial.number != 1 or trial.set_user_attr("reason", "slow")
    )
    tracker.start(study, space=SPACE, metric="accuracy")
    tracker.finish(study, network=tmp_path / "best.safetensors")
    mirror, best = read(server.uri, "browser"), study.best_trial.number
    tags = {"optuna_nas.study_uid": mirror.parent.data.tags["optuna_nas.study_uid"], "optuna_nas.kind": "fit"}
    mirror.client.create_run(mirror.experiment.experiment_id, tags=tags, run_name="SNAS fit")  # which is no trial
    shown = seen(tracker.view_url, "view")
    titles = ["1. Which trial won", "2. What it chose", "3. What it looks like", "4. How it learned"]
    charts = ["best_value", "params vs. accuracy", "Parallel Coordinates", f"best - trial {best}"]
    names = [f"trial {best} (best)", "trial 1 (pruned)", "cell_0_1"]
    for text in [*titles, *charts, *names, "<strong>5</strong> matching runs"]:
        assert text in shown, text
    for text in ("SNAS fit", "Judges", "Agent versions", "No chart data available", "No images found"):
        assert text not in shown, text
    charts = charts_of(shown)
    assert charts["1", "best_value"].points == 4
    assert {"1000", "1003"} <= charts["1", "params vs. accuracy"].marks
    assert charts["3", f"best - trial {best}"].pictures == 1
    assert charts["3", "architecture"].pictures == 4
    assert charts["4", "accuracy"].points == 3 + 2 + 3 + 3
    table = seen(tracker.view_url.replace("compareRunsMode=CHART", "compareRunsMode=TABLE"), "table")
    for text in ("accuracy", "params", "multiply_adds", "optuna.state", "PRUNED", "reason", "slow"):
        assert text in table, text
    # The pages behind it: the study's run, a trial's run, the models, and all trials side by side.
    pages = f"{server.uri}/#/experiments/{mirror.experiment.experiment_id}"
    shown = seen(f"{pages}/runs/{mirror.parent.info.run_id}", "study")
    for text in ("best_value", "trial_value", "seconds_saved", "Best accuracy", "get-artifact?path=architecture.png"):
        assert text in shown, text
    shown = seen(f"{pages}/runs/{mirror.children[best].info.run_id}", "trial")
    for text in (f"trial {best} (best)", "accuracy", "cell_0_1", "Finished"):
        assert text in shown, text
    shown = seen(f"{pages}/models?workflowType=machine_learning", "models")
    for text in ("best of study", f"trial {best} (best)", "Ready"):
        assert text in shown, text
    runs = json.dumps([run.info.run_id for run in mirror.children.values()])
    query = f"runs={quote(runs)}&experiments={quote(json.dumps([mirror.experiment.experiment_id]))}"
    shown = seen(f"{server.uri}/#/compare-runs?{query}", "compare")
    assert "Comparing 4 Runs" in shown
    assert "Parallel Coordinates" in shown
    assert all(f"trial {number}" in shown for number in range(4))


COMPARED = """
from optuna_nas import ChoiceSpace, GHNSampler, Search

SPACE = ChoiceSpace(tuple((f"layer_{number}", ("conv", "pool", "none")) for number in range(8)))

def conv(architecture):
    return sum(chosen == ("conv",) for _, chosen in architecture.choices) / 8

def search(seed: int = 0) -> Search:
    sampler = GHNSampler(SPACE, score=lambda pool: [conv(each) for each in pool], pool_size=200, seed=seed)
    return Search("ranked", SPACE, objective=lambda trial: conv(SPACE.suggest(trial)), sampler=sampler)
"""
"""A study whose sampler knows the answer, which random search and TPE have to find."""


@pytest.mark.browser
def test_a_comparison_shows_its_table_and_what_can_be_told_first(server, tmp_path, seen, monkeypatch):
    server.wait()
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address))
    opened = []
    (tmp_path / "ranked.py").write_text(COMPARED)
    options = ("--budget", "trials=12", "--seeds", "3", "--name", "page")
    for command in (("compare", "ranked.py", *options), ("view", "compare-page")):
        done = CliRunner().invoke(app, [*command, "--mlflow", server.uri])
        assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "runs/compare-page/comparison.json").read_text())
    assert rows[0]["strategy"] == "ranked"
    shown = seen(*opened, "comparison")
    ahead = f"ranked is ahead of {rows[1]['strategy']} by {rows[0]['mean'] - rows[1]['mean']:.4f}, more than chance"
    titles = ["1. ranked is ahead, more than chance", "2. Best value: ", "3. Seconds: "]
    names = ["Group: ranked", "Group: random", "Group: tpe", "ranked-0", "tpe-2", "comparison: ranked first"]
    for text in [*titles, *names, "best_value_by_second", f"<strong>{ahead}.</strong>", "<strong>10</strong> matching"]:
        assert text in shown, text
    for text in ("trial 0", "No chart data available"):
        assert text not in shown, text
    charts = charts_of(shown)
    assert charts["1", "all strategies"].pictures == charts["1", "best value, mean and standard error"].pictures == 1
    assert charts["2", "best_value"].points == 9 * 12
    assert charts["2", "best_value_by_second"].points >= 9
    assert charts["3", "best_value"].points == charts["3", "seconds_training"].points == 9


@pytest.mark.browser
def test_a_foreign_study_has_no_empty_charts(server, seen):
    server.wait()
    study = optuna.create_study(study_name="theirs", directions=["maximize", "minimize"])
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), trial.suggest_float("y", 1, 2)), n_trials=3)
    shown = seen(MLflowTracker(server.uri, "foreign", metric="score").rebuild(study), "foreign")
    for text in ("1. Which trial won", "objective 1 vs. score", "2. What it chose", "<strong>4</strong> matching runs"):
        assert text in shown, text
    for text in ("3. What it looks like", "4. How it learned", "No chart data available", "No images found"):
        assert text not in shown, text
    charts = charts_of(shown)
    assert charts["1", "best_value"].points == 3
    assert len(charts["1", "objective 1 vs. score"].marks) > 1
    mirror = read(server.uri, "foreign")
    page = f"{server.uri}/#/experiments/{mirror.experiment.experiment_id}/runs/{mirror.parent.info.run_id}"
    shown = seen(page, "parent")
    for text in ("Pareto front: trial", "get-artifact?path=pareto_front.png", "Best score"):
        assert text in shown, text

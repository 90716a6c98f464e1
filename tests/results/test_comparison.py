"""Strategies under one budget: the table by hand, the same splits and recipe, and what the terminal and MLflow show."""

import json
import logging
import math
from dataclasses import replace
from datetime import timedelta

import numpy as np
import optuna
import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState, create_trial
from scipy.stats import t, ttest_rel
from typer.testing import CliRunner

from optuna_nas import NetworkSpace, Recipe, Search, nasbench201_skeleton, nasbench201_space
from optuna_nas.cli import app
from optuna_nas.data import ImageData
from optuna_nas.objective import TrainObjective
from optuna_nas.results.comparison import Budget, as_json, cells, compare, judge, strategies
from optuna_nas.search import SearchResult
from optuna_nas.storage.attributes import DUPLICATE_OF, EPOCHS, TRAIN_SECONDS, TRAINED_EPOCHS
from optuna_nas.tracking import MLflowTracker
from optuna_nas.tracking.comparison import find_comparison

STUDY = """
import numpy as np
from optuna.samplers import RandomSampler
from optuna_nas import ImageData, NetworkSpace, Recipe, Search, nasbench201_skeleton, nasbench201_space

def search(seed: int = 0, epochs: int = 2, name: str = "NAME") -> Search:
    labels = np.arange(120) % 3
    images = np.random.default_rng(0).normal(size=(120, 6, 6)).astype(np.float32) + labels[:, None, None]
    data = ImageData.from_arrays(images, labels, seed=seed)
    return Search(
        name, NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 4, data.input_shape, 3)), data,
        Recipe(epochs=epochs, batch_size=16, seed=seed), sampler=RandomSampler(seed=seed + 7), cpu_threads=1,
    )
"""


def nas(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging, "basicConfig", lambda **unused: None)
        return CliRunner().invoke(app, list(map(str, arguments)))


def study_of(values, epochs=2, direction="maximize"):
    study = optuna.create_study(direction=direction)
    for value in values:
        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        steps = {1: 0.1} if value is None else dict.fromkeys(range(1, epochs + 1), 0.1)
        study.add_trial(
            create_trial(state=state, value=value, intermediate_values=steps, user_attrs={TRAIN_SECONDS: 2.0})
        )
    return study


def runs(*studies, tested=None):
    return [SearchResult(study, None, test_metric=tested) for study in studies]


def test_the_table_by_hand():
    values = {"a": [[0.5, 0.7], [0.6, 0.8], [0.9, 0.1]], "tpe": [[0.5, 0.6], [0.6, 0.5], [0.7, 0.6]]}
    results = {name: runs(*map(study_of, of_seeds), tested=0.5) for name, of_seeds in values.items()}
    results["random"] = runs(*(study_of([0.6, 0.4]) for _ in range(3)))
    found = judge(results, Budget("trials", 2), "accuracy")
    assert [row.strategy for row in found.rows] == ["a", "tpe", "random"]
    best = np.array([0.7, 0.8, 0.9])
    row = found.rows[0]
    assert row.best.tolist() == best.tolist()
    assert row.mean == pytest.approx(0.8)
    assert row.interval == pytest.approx(best.std(ddof=1) / 3**0.5 * t.ppf(0.975, 2))
    assert row.p_value == pytest.approx(ttest_rel(best, [0.6, 0.6, 0.7]).pvalue)
    assert row.rank == 1.0
    assert found.rows[1].rank == pytest.approx((2.5 + 2.5 + 2) / 3)
    assert row.seconds == 4.0
    assert (row.tested, found.rows[2].tested) == (0.5, None)
    assert np.isnan(found.rows[1].p_value)
    assert cells(row)[:3] == ["a", "0.8000", "+- 0.2484"]
    assert len(cells(row)) == len(found.headings)
    assert found.headings[1] == "best accuracy"


def test_curves_by_second_begin_where_all_have_a_value():
    def study(name, *values_and_seconds):
        made = optuna.create_study(direction="maximize", study_name=name)
        for value, seconds in values_and_seconds:
            trial = create_trial(value=value)
            trial.datetime_complete = trial.datetime_start + timedelta(seconds=seconds)
            made.add_trial(trial)
        return made

    results = {"a": runs(study("a-0", (0.5, 1), (0.7, 2))), "b": runs(study("b-0", (0.6, 2.5), (0.4, 2)))}
    assert judge(results, Budget("trials", 2)).by_second() == {
        "a-0": [(3, 0.7), (4, 0.7), (5, 0.7)],
        "b-0": [(3, 0.6), (4, 0.6), (5, 0.6)],
    }


@pytest.mark.parametrize(
    ("ours", "theirs", "told"),
    [
        ([0.5], [0.4], "1 seed tells nothing about which strategy is better; at least 3"),
        ([0.5, 0.6], [0.4, 0.5], "2 seeds tell nothing"),
        ([0.9, 0.9, 0.9], [0.9, 0.9, 0.9], "found the same values: nothing can be told"),
        ([0.9, 0.5, 0.7], [0.6, 0.7, 0.65], "a is 0.0500 ahead of b, which may be chance (paired"),
        ([0.90, 0.91, 0.89], [0.80, 0.82, 0.78], "a is 0.1000 ahead of b, which is more than chance (paired"),
    ],
)
def test_a_comparison_says_what_can_be_told(ours, theirs, told):
    results = {"a": runs(*(study_of([v]) for v in ours)), "b": runs(*(study_of([v]) for v in theirs))}
    assert told in judge(results, Budget("trials", 1)).told


def test_strategies_that_propose_the_same_first_trials_are_named():
    def study(*choices):
        made = optuna.create_study(direction="maximize")
        for choice in choices:
            made.enqueue_trial({"op": choice})
        made.optimize(lambda trial: float(trial.suggest_categorical("op", "abc") == "a"), n_trials=len(choices))
        return made

    results = {
        "random": runs(study(*"abc"), study(*"bca")),
        "tpe": runs(study(*"aba"), study(*"bcb")),
        "own": runs(study(*"bbb"), study(*"bca")),
    }
    assert judge(results, Budget("trials", 3)).told.endswith(
        "random and tpe propose the same first 2 trials in every seed."
    )


@pytest.mark.parametrize(
    ("direction", "order"), [("maximize", ["up", "tpe", "down"]), ("minimize", ["down", "tpe", "up"])]
)
def test_infinite_values_are_ranked_and_shown_as_what_they_are(direction, order):
    endless = float("inf")
    values = {"up": [[0.5, endless]] * 2, "tpe": [[0.5, 0.5]] * 2, "down": [[-endless, 0.5]] * 2}
    values["none"] = [[None, None]] * 2  # a strategy of which no trial completed is behind all others
    worst = {"maximize": "down", "minimize": "up"}[direction]
    values[worst] = [[{"down": -endless, "up": endless}[worst]]] * 2
    results = {
        name: runs(*(study_of(of_seed, direction=direction) for of_seed in of_seeds))
        for name, of_seeds in values.items()
    }
    found = judge(results, Budget("trials", 2))
    assert [row.strategy for row in found.rows] == [*order, "none"]
    shown = {row.strategy: cells(row)[1] for row in found.rows}
    assert shown == {"up": "inf", "tpe": "0.5000", "down": "-inf", "none": ""}
    found.figure(Budget("trials", 2))


def test_errors_are_compared_by_who_has_the_smallest():
    values = {"a": [0.5, 0.7], "b": [0.6, 0.4]}
    results = {name: runs(study_of(found, direction="minimize")) for name, found in values.items()}
    found = judge(results, Budget("trials", 2), "rmse")
    assert [(row.strategy, row.mean, row.rank) for row in found.rows] == [("b", 0.4, 1.0), ("a", 0.5, 2.0)]
    (axes,) = found.figure(Budget("trials", 2)).axes
    assert axes.get_ylabel() == "best rmse"
    assert axes.get_ylim()[0] < 0.4  # the best ones are seen


def test_what_was_found_beyond_the_budget_does_not_count():
    study = study_of([0.5, None, 0.6, 0.9])
    for budget, best, curve in (
        (Budget("epochs", 6), 0.6, [2, 3, 5]),
        (Budget("epochs", 7), 0.9, [2, 3, 5, 7]),
        (Budget("trials", 2), 0.5, [1, 2]),
        (Budget("epochs", 1), 0.5, [2]),
    ):
        (row,) = judge({"a": runs(study)}, budget).rows
        assert row.best.tolist() == [best]
        assert np.isnan(row.interval)
        assert Budget(budget.kind, 1e9).spent(study) == {"epochs": 7, "trials": 4}[budget.kind]
        del curve
    assert judge({"a": runs(study_of([0.5, 0.4], direction="minimize"))}, Budget("trials", 9)).rows[0].mean == 0.4


def test_bands_hold_the_best_value_until_a_better_one():
    found = judge({"a": runs(study_of([0.5, 0.7, 0.6]), study_of([0.3, 0.2, 0.9]))}, Budget("trials", 3))
    (band,) = found.bands
    mean, error = band.mean_and_error()
    at = {amount: int(np.searchsorted(band.spent, amount)) for amount in (1.5, 2.5)}
    assert np.isnan(mean[0])
    assert mean[at[1.5]] == pytest.approx(0.4)
    assert mean[at[2.5]] == pytest.approx(0.5)
    assert error[at[1.5]] == pytest.approx(np.std([0.5, 0.3]) / 2**0.5)
    figure = found.figure(Budget("trials", 3))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a"]


def search(name="a", **changes):
    data = ImageData.from_arrays(np.zeros((60, 6, 6), np.float32), np.arange(60) % 3)
    space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 4, data.input_shape, 3))
    return Search(name, space, data, **{"recipe": Recipe(epochs=2), **changes})


def test_all_strategies_train_the_same():
    found = strategies([search("a"), search("b")], 3)
    assert list(found) == ["a", "b", "random", "tpe"]
    settings = [one.setting() for one in found.values()]
    assert all(setting == settings[0] for setting in settings)
    with pytest.raises(ValueError, match="`recipe` must be the same in all studies that are compared but that of 'b'"):
        strategies([search("a"), search("b", recipe=Recipe(epochs=3))], 0)
    with pytest.raises(ValueError, match="`name` must be different for every study"):
        strategies([search("a"), search("a")], 0)
    own = replace(search("b"), objective=lambda trial: 1.0, directions=("minimize",))
    other = replace(own, name="a", directions=("maximize",))
    with pytest.raises(ValueError, match="`directions` must be the same"):
        strategies([other, own], 0)


@pytest.mark.parametrize("text", ["trials", "epochs=none", "hours=2", "seconds=0", "seconds=inf", "trials=-1"])
def test_a_budget_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="`budget` must be such as trials=30"):
        Budget.parse(text)


def test_two_studies_are_compared_once_and_shown_in_mlflow(tmp_path, monkeypatch, open_connections):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(STUDY.replace("NAME", name))
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    command = ("compare", "one.py", "two.py", "--budget", "epochs=4", "--seeds", "1", "--mlflow", uri)
    done = nas(*command)
    assert done.exit_code == 0, done.stderr
    assert "one-two: 1 seed, epochs=4 each" in done.stdout
    assert not open_connections
    rows = json.loads((tmp_path / "runs/compare-one-two/comparison.json").read_text())
    assert {row["strategy"] for row in rows} == {"one", "two", "random", "tpe"}
    best = {row["strategy"]: row["best"] for row in rows}
    assert best["one"] == best["two"]  # the same sampler on the same data
    again = nas(*command)
    assert "trial 0" not in again.stdout
    assert json.loads((tmp_path / "runs/compare-one-two/comparison.json").read_text()) == rows
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("compare-one-two")
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    kinds = [run.data.tags["optuna_nas.kind"] for run in found]
    assert kinds.count("study") == 4
    assert kinds.count("trial") == 8
    (summary,) = [run for run in found if run.data.tags["optuna_nas.kind"] == "comparison"]
    assert {file.path for file in client.list_artifacts(summary.info.run_id)} == {
        "best_against_spent.png",
        "table.json",
    }
    strategies_seen = {(run.data.tags["strategy"], run.data.tags["seed"]) for run in found if run is not summary}
    assert strategies_seen == {(name, seed) for name in best for seed in "0"}
    views = [tag for tag in experiment.tags if "sharedViewState.optuna_nas_comparison" in tag]
    assert len(views) == 1
    assert done.stdout.splitlines()[-1].endswith(f"optuna-nas view compare-one-two --mlflow {uri}")
    assert views[0].removeprefix("mlflow.sharedViewState.") in find_comparison(MLflowTracker(uri, "compare-one-two"))
    assert json.loads(experiment.tags[views[0]])["groupBy"]["groupByKeys"] == [
        {"mode": "tag", "groupByData": "strategy"}
    ]
    assert summary.info.run_name == f"comparison: {rows[0]['strategy']} first"
    assert summary.data.tags["mlflow.note.content"].startswith("| strategy | best accuracy |")
    assert experiment.tags["mlflow.note.content"].startswith(
        "1 seed of every strategy, epochs=4 each. 1 seed tells nothing"
    )
    studies = [run for run in found if run.data.tags["optuna_nas.kind"] == "study"]
    ends = {run.data.tags["strategy"]: run.data.metrics["best_value_by_second"] for run in studies}
    assert ends == {row["strategy"]: row["best"][0] for row in rows}


def test_strategies_are_compared_by_name_on_one_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.py").write_text(STUDY.replace("NAME", "one"))
    command = ("compare", "one.py", "--strategy", "auto", "--strategy", "tpe", "--budget", "trials=2", "--seeds", "1")
    done = nas(*command, "--no-mlflow")
    assert done.exit_code == 0, done.stderr
    rows = json.loads((tmp_path / "runs/compare-one-auto-tpe/comparison.json").read_text())
    assert {row["strategy"] for row in rows} == {"auto", "tpe", "random"}
    assert [row["mean"] for row in rows] == sorted(row["mean"] for row in rows), "losses, the lowest first"
    assert "best loss" in " ".join(done.stdout.split())
    again = nas(*command, "--no-mlflow")
    assert "trial 0" not in again.stdout
    (tmp_path / "two.py").write_text(STUDY.replace("NAME", "two"))
    done = nas("compare", "one.py", "two.py", "--strategy", "auto", "--no-mlflow")
    assert done.exit_code == 2
    assert "`--strategy` must go with one study but there are 2" in " ".join(done.stderr.split())


def test_bad_input_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.py").write_text(STUDY.replace("NAME", "one"))
    (tmp_path / "other.py").write_text(STUDY.replace("NAME", "other").replace("epochs: int = 2", "epochs: int = 3"))
    (tmp_path / "seedless.py").write_text(STUDY.replace("seed: int = 0, ", "").replace("seed=seed", "seed=0"))
    for arguments, sentence in (
        (("one.py", "--budget", "hours=1"), "`--budget` must be such as"),
        (("one.py", "other.py"), "`recipe` must be the same in all studies"),
        (("one.py", "--seeds", "0"), "`--seeds` must be at least 1"),
        (("seedless.py",), "`--set` must be NAME=VALUE for an argument of `search`"),
    ):
        done = nas("compare", *arguments, "--no-mlflow")
        assert done.exit_code == 2, done.stdout
        assert sentence in " ".join(done.stderr.split())


@pytest.mark.parametrize("directions", [("maximize",), ("maximize", "minimize")])
def test_a_budget_in_epochs_needs_an_objective_that_tells_them(directions, tmp_path):
    space = nasbench201_space()
    asked = []

    def objective(trial):
        space.suggest(trial)
        asked.append(trial.number)
        return [0.5] * len(directions) if len(directions) > 1 else 0.5

    search = Search("own", space, objective=objective, directions=directions, tracking=None, pictures=False)
    wrong = "`budget` must be in trials or seconds for an objective that reports no epochs"
    with pytest.raises(ValueError, match=wrong):
        compare(lambda seed: [search], Budget("epochs", 3), 1, tmp_path, lambda tags: None)
    assert asked == [0]


def test_several_objectives_and_resumed_trainings_tell_their_own_epochs(tmp_path):
    images = np.random.default_rng(0).normal(size=(120, 6, 6)).astype(np.float32)
    data = ImageData.from_arrays(images, np.arange(120) % 3)
    space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 2, data.input_shape, 3))
    objective = TrainObjective(space, data, Recipe(epochs=2, batch_size=64), objectives=("accuracy", "params"))
    search = Search("own", space, data, objective=objective, tracking=None, pictures=False)
    found = compare(lambda seed: [search], Budget("epochs", 3), 1, tmp_path, lambda tags: None)
    for study in found.studies:
        trained = [trial for trial in study.trials if DUPLICATE_OF not in trial.user_attrs and trial.values]
        assert Budget("epochs", 3).spent(study) == 2 * len(trained)
        assert len(trained) == 2
    steps = {"intermediate_values": dict.fromkeys(range(6, 11), 0.5), "value": 0.5}
    resumed = create_trial(**steps, user_attrs={TRAINED_EPOCHS: 5, EPOCHS: 10})
    assert Budget("epochs", 1).of(resumed) == 5


@pytest.mark.parametrize("name", ["random", "tpe"])
def test_a_study_does_not_vanish_behind_a_baseline(name):
    search = Search(name, nasbench201_space(), objective=lambda trial: 0.0, tracking=None)
    with pytest.raises(ValueError, match=f"`name` must not be that of a baseline, .* but is '{name}'; rename"):
        strategies([search], 0)


def test_names_and_titles_stay_in_their_folders(tmp_path):
    space = nasbench201_space()

    def objective(trial):
        return float(space.suggest(trial).connected)

    search = Search("what?", space, objective=objective, tracking=None, pictures=False)
    compare(lambda seed: [search], Budget("trials", 1), 1, tmp_path / "is it?", lambda tags: None)
    assert (tmp_path / "is it?" / "what?-0" / "study.db").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["is it?"]


def test_a_comparison_is_json_that_every_reader_takes():
    compared = judge({"ours": runs(study_of([0.5])), "tpe": runs(study_of([math.inf]))}, Budget("trials", 1))
    rows = {row["strategy"]: row for row in json.loads(as_json(compared), parse_constant=pytest.fail)}
    assert rows["ours"]["interval"] is None
    assert rows["tpe"]["best"] == [None]

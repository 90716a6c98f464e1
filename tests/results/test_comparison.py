"""Strategies under one budget: the table by hand, the same splits and recipe, and what the terminal and MLflow show."""

import json
import logging
import math
from dataclasses import replace
from datetime import timedelta

import numpy as np
import optuna
import pytest
import torch
from mlflow import MlflowClient
from optuna.samplers import RandomSampler
from optuna.trial import TrialState, create_trial
from PIL import Image
from scipy.stats import t, ttest_rel
from torch import nn
from typer.testing import CliRunner

from optuna_nas import (
    ModuleSpace,
    NetworkSpace,
    Recipe,
    Regression,
    Search,
    SNASSampler,
    TensorData,
    choose_op,
    nasbench201_skeleton,
    nasbench201_space,
)
from optuna_nas.cli import app
from optuna_nas.cli.comparing import _shown
from optuna_nas.data import ImageData
from optuna_nas.objective import TrainObjective
from optuna_nas.results.comparison import (
    Budget,
    anytime,
    as_json,
    by_strategies,
    cells,
    compare,
    judge,
    strategies,
)
from optuna_nas.search import SearchResult
from optuna_nas.storage.attributes import DUPLICATE_OF, EPOCHS, PARTS, REQUEUED, TRAIN_SECONDS, TRAINED_EPOCHS
from optuna_nas.storage.spending import spending_of
from optuna_nas.tracking import MLflowTracker
from optuna_nas.tracking.comparison import find_comparison, save_comparison
from optuna_nas.tracking.view import view_tag

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
    assert judge(results, Budget("trials", 2)).by_second(Budget("trials", 2)) == {
        "a-0": [(3, 0.7), (4, 0.7), (5, 0.7)],
        "b-0": [(3, 0.6), (4, 0.6), (5, 0.6)],
    }


@pytest.mark.parametrize(
    ("ours", "theirs", "told"),
    [
        ([0.5], [0.4], "1 seed tells nothing about which strategy is better; at least 3 seeds (--seeds 3) are needed"),
        ([0.5, 0.6], [0.4, 0.5], "2 seeds tell nothing"),
        ([0.9, 0.9, 0.9], [0.9, 0.9, 0.9], "found the same values: nothing can be told"),
        ([0.9, 0.5, 0.7], [0.6, 0.7, 0.65], "a is 0.0500 ahead of b, which may be chance (paired"),
        ([0.90, 0.91, 0.89], [0.80, 0.82, 0.78], "a is 0.1000 ahead of b, which is more than chance (paired"),
    ],
)
def test_a_comparison_says_what_can_be_told(ours, theirs, told):
    def compared_after(n):
        results = {name: runs(*(study_of([v] * n) for v in of)) for name, of in (("a", ours), ("b", theirs))}
        for result in results["a"]:
            result.study.set_user_attr(PARTS, {"sampler": "TPESampler"})
        return judge(results, Budget("trials", n))

    compared = compared_after(11)
    assert told in compared.told
    assert compared.leader == ("a" if "more than chance" in told else None)
    ahead = "a is ahead of b by 0.1000, more than chance" if compared.leader else "Nothing can be told about which"
    assert compared.finding.startswith(ahead)
    few = compared_after(10)
    assert "10 trials a run of a tell nothing about which strategy is better; at least" in few.told
    assert "11 trials of a, which draws 10 by chance to begin with, are needed." in few.told
    assert "ahead" not in few.told
    assert few.leader is None


def test_the_start_up_draws_of_a_sampler_are_too_few_trials():
    results = {name: runs(*(study_of([value] * 12) for _ in range(3))) for name, value in (("a", 0.5), ("b", 0.4))}
    assert "a is 0.1000 ahead" in judge(results, Budget("trials", 12)).told
    for parts, n_draws in (
        ({"sampler": "TPESampler", "sampler.n_startup_trials": "15"}, 15),
        ({"sampler": "PromotingSampler", "sampler.sampler.n_startup_trials": "12"}, 12),
        ({"sampler": "PromotingSampler", "sampler.sampler.n_startup_trials": "11"}, None),
        ({"sampler": "default", "strategy": "none"}, None),
        ({"sampler": "TPESampler", "strategy": "tpe"}, None),
        ({"sampler": "SNASSampler", "sampler.independent_sampler.n_startup_trials": "15"}, None),
    ):
        results["a"][0].study.set_user_attr(PARTS, parts)
        told = judge(results, Budget("trials", 12)).told
        assert ("12 trials a run of a tell nothing" in told) == (n_draws is not None)
        assert n_draws is None or f"{n_draws + 1} trials of a, which draws {n_draws} by chance" in told


def test_a_strategy_that_is_not_among_the_best_two_may_have_few_trials():
    results = {name: runs(*(study_of([v] * 12) for _ in range(3))) for name, v in (("a", 0.5), ("b", 0.4))}
    results["slow"] = runs(*(study_of([0.1]) for _ in range(3)))
    assert judge(results, Budget("trials", 12)).leader == "a"
    results["slow"] = runs(*(study_of([0.45]) for _ in range(3)))
    assert "1 trial a run of slow tells nothing about which strategy is better; at least 2 trials of slow are" in (
        judge(results, Budget("trials", 12)).told
    )


@pytest.mark.parametrize("values", [[None, None], [math.inf, math.inf]])
def test_a_comparison_is_shown_where_a_run_has_no_finite_value(values):
    budget = Budget("trials", 2)
    compared = judge({"a": runs(study_of([0.5, 0.6])), "b": runs(study_of(values))}, budget)
    assert len(_shown(compared, budget, 1).figures) == 1
    assert len(_shown(judge({"a": runs(study_of([0.5, 0.6]))}, budget), budget, 1).figures) == 2


def test_the_view_of_a_comparison_stays_one_when_another_strategy_leads(tmp_path):
    tracker, budget = MLflowTracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "compare-x"), Budget("trials", 3)
    studies = {name: study_of([value]) for name, value in (("a", 0.4), ("b", 0.5))}
    client = MlflowClient(tracker.store_uri)
    experiment_id = client.create_experiment("compare-x", (tmp_path / "mlruns").as_uri())
    client.set_experiment_tag(experiment_id, view_tag("comparison_zzz"), "of an earlier version")
    addresses = set()
    for number, better in enumerate((0.3, 0.6)):
        studies["a"].add_trial(create_trial(value=better))
        compared = judge({name: runs(study) for name, study in studies.items()}, budget)
        assert compared.rows[0].strategy == "ba"[number]
        addresses.add(save_comparison(tracker, compared.studies, _shown(compared, budget, 1)))
    (address,) = addresses
    (tag,) = [tag for tag in client.get_experiment(experiment_id).tags if "comparison_" in tag]
    assert tag.removeprefix(view_tag("")) in address
    assert tag.removeprefix(view_tag("")) in find_comparison(tracker)


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


@pytest.mark.parametrize(("stopped_in", "spent"), [(0, [0, 1, 2, 3]), (1, [1, 1, 2, 3])])
def test_a_trial_that_was_interrupted_and_tried_again_takes_one_place_of_the_budget(stopped_in, spent, tmp_path):
    space, asked = nasbench201_space(), []

    def objective(trial):
        space.suggest(trial)
        asked.append(trial.number)
        if asked == list(range(stopped_in + 1)):
            raise KeyboardInterrupt
        return float(trial.number + 1)  # every trial is better than those before

    search = Search("a", space, objective=objective, tracking=None, pictures=False)
    budget = Budget("trials", 3)
    assert compare(lambda seed: [search], budget, 1, tmp_path, lambda tags: None) is None
    found = compare(lambda seed: [search], budget, 1, tmp_path, lambda tags: None)
    assert {row.strategy: row.best.tolist() for row in found.rows}["a"] == [4.0]
    (study,) = [study for study in found.studies if study.study_name == "a-0"]
    assert anytime(study, budget)[0].tolist() == spent
    assert budget.spent(study) == 3
    assert anytime(study, Budget("trials", 1))[0].tolist() == spent[: spent.index(1) + 1]


class EverBetter(TrainObjective):
    """Training whose value, on validation and test, is the number of the trial."""

    def __call__(self, trial):
        super().__call__(trial)
        return float(trial.number)

    def judge(self, network):
        assert network.exists()
        return float(network.stem.removeprefix("trial-"))


def test_all_columns_are_of_the_trials_within_the_budget(tmp_path, caplog):
    images = np.random.default_rng(0).normal(size=(120, 6, 6)).astype(np.float32)
    data = ImageData.from_arrays(images, np.arange(120) % 3)
    space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 2, data.input_shape, 3))
    objective = EverBetter(space, data, Recipe(epochs=1, batch_size=64), reuse_duplicates=False)
    search = Search("a", space, data, objective=objective, tracking=None, pictures=False, sampler=RandomSampler(seed=0))

    def compared(budget):
        found = compare(lambda seed: [search], budget, 1, tmp_path, lambda tags: None)
        (study,) = [study for study in found.studies if study.study_name == "a-0"]
        return next(row for row in found.rows if row.strategy == "a"), found, study

    row, *_ = compared(Budget("trials", 4))
    all_seconds = row.seconds
    assert row.tested == 3.0
    for budget in (Budget("trials", 2), Budget("epochs", 2)):
        row, found, study = compared(budget)
        assert len(study.trials) == 4
        assert row.best.tolist() == [1.0]
        assert row.tested == 1.0
        assert row.seconds == pytest.approx(sum(spending_of(trial).total for trial in study.trials[:2]))
        assert row.seconds < all_seconds
        assert {curve[-1][1] for curve in found.by_second(budget).values()} == {1.0}
        assert set(found.starts.values()) == {2}
    assert "is not kept" not in caplog.text
    (tmp_path / "a-0" / "networks" / "trial-00001.safetensors").unlink()
    row, *_ = compared(Budget("trials", 2))
    assert row.tested is None
    assert "The network of trial 1 of 'a-0', its best within trials=2, is not kept: the column `test`" in caplog.text
    assert compared(Budget("trials", 4))[0].tested == 3.0


def modules():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.activation = choose_op("activation", {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU})
            self.layer, self.head = nn.Linear(4, 8), nn.Linear(8, 1)

        def forward(self, x):
            return self.head(self.activation(self.layer(x)))

    inputs = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    data = TensorData.from_arrays(inputs, inputs.sum(1))
    space = ModuleSpace(Net, example=torch.zeros(1, 4))
    recipe = Recipe(epochs=1, batch_size=16)
    return Search("x", space, data, recipe, Regression(), tracking=None, pictures=False, trials=20)


@pytest.mark.usefixtures("small_pools")
@pytest.mark.parametrize("strategy", ["snas", "auto"])
def test_a_strategy_that_plans_keeps_its_budget(strategy, tmp_path):
    def compared(n_trials):
        budget = Budget("trials", n_trials)
        return compare(
            lambda seed: by_strategies(modules(), [strategy], budget), budget, 1, tmp_path / "x", lambda tags: None
        )

    compared(2)
    names = {study.study_name: study for study in compared(2).studies}
    assert {name: len(study.trials) for name, study in names.items()} == {f"{strategy}-0": 2, "random-0": 2, "tpe-0": 2}
    refused = (
        f"`budget` must be trials=2, by which '{strategy}-0' in .* has planned its model or pool, but is trials={{}}; "
        "give that one, or another `folder`"
    )
    for other in (1, 3):
        with pytest.raises(ValueError, match=refused.format(other)):
            compared(other)
    for study in names.values():
        assert len(study.trials) == 2, "nothing runs before it is refused"


@pytest.mark.parametrize("by_name", [True, False])
def test_a_strategy_plans_by_the_budget_in_place_of_the_trials_of_its_study(by_name, tmp_path, monkeypatch):
    planned = {}

    def only_planned(search, *_):
        planned[search.name] = getattr(search.resolved_sampler, "in_study_fit", None)
        return SearchResult(None, None, interrupted=True)

    monkeypatch.setattr("optuna_nas.results.comparison.run", only_planned)
    for budget, n_trials in ((Budget("trials", 4), 4), (Budget("epochs", 4), 20)):
        searches = by_strategies(modules(), ["snas"], budget) if by_name else [modules().with_strategy("snas")]
        assert compare(lambda seed, made=searches: made, budget, 1, tmp_path / str(n_trials), lambda tags: None) is None
        (fit,) = planned.values()
        assert fit.n_trials == n_trials
        planned.clear()


def test_strategies_that_do_not_plan_go_on_with_another_budget(tmp_path):
    space = nasbench201_space()
    search = Search("a", space, objective=lambda trial: float(space.suggest(trial).connected), tracking=None)
    search = replace(search, pictures=False, sampler=SNASSampler(space, seed=0))  # which learns from trials alone
    for n_trials, n_run in ((2, 2), (4, 4), (3, 4)):
        found = compare(lambda seed: [search], Budget("trials", n_trials), 1, tmp_path, lambda tags: None)
        assert [len(study.trials) for study in found.studies] == [n_run] * 3


def test_attempts_of_the_first_trial_are_within_every_budget():
    study = optuna.create_study(direction="maximize")
    seconds = {"user_attrs": {"optuna_nas:train_seconds": 2.0}}
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs=seconds["user_attrs"] | {REQUEUED: True}))
    for value in (0.5, 0.6):
        study.add_trial(create_trial(value=value, **seconds))
    assert judge({"a": runs(study)}, Budget("seconds", 1)).rows[0].best.tolist() == [0.5]


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
    monkeypatch.setattr(MlflowClient, "set_terminated", lambda *unused: pytest.fail("it prints addresses of servers"))
    again = nas(*command, "--json")
    assert "trial 0" not in again.stdout
    assert "/experiments/" in json.loads(again.stdout.splitlines()[-1])["address"]
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
        "images",
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
    assert summary.info.run_name == "comparison: nothing told"  # by one seed
    for note in (summary.data.tags["mlflow.note.content"], experiment.tags["mlflow.note.content"]):
        first, table, told, *_ = note.split("\n\n")
        assert first == "**Nothing can be told about which strategy is better.**"
        assert table.startswith("| strategy | best accuracy |")
        assert told.startswith("1 seed of every strategy, epochs=4 each. 1 seed")
    view = json.loads(experiment.tags[views[0]])
    titles = [section["name"] for section in view["compareRunSections"]]
    assert titles[0] == "1. Nothing can be told about the best"
    worst, first = rows[-1], rows[0]
    ends = f"{worst['mean']:.4g} ({worst['strategy']}) to {first['mean']:.4g} ({first['strategy']})"
    assert titles[1] == f"2. Best accuracy: {ends}"
    assert titles[2].startswith("3. Seconds: ")
    chart = view["compareRunCharts"][0]
    assert (chart["type"], chart["imageKeys"]) == ("IMAGE", ["all strategies"])
    shown = client.search_runs([experiment.experiment_id], view["searchFilter"])
    assert {run.data.tags["optuna_nas.kind"] for run in shown} == {"study", "comparison"}
    pictures = [file.path for file in client.list_artifacts(summary.info.run_id, "images")]
    assert [path.endswith(".webp") for path in sorted(pictures)] == [True, False] * 4  # of two calls
    with Image.open(client.download_artifacts(summary.info.run_id, min(pictures))) as table:
        assert table.width > 400  # MLflow's own previews have 256 pixels
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

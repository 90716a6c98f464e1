"""Strategies by name, and what ends a search before its total of trials."""

import math

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState, create_trial
from typer.testing import CliRunner

from optuna_nas import (
    Augmentation,
    GHNSampler,
    HMNASPruner,
    ImageClassification,
    ImageData,
    NetworkSpace,
    Recipe,
    Search,
    SNASSampler,
    Task,
    TrainObjective,
    nasbench201_skeleton,
    nasbench201_space,
    run,
    suggest_float,
    suggest_int,
)
from optuna_nas.cli.commands import app
from optuna_nas.networks import latency
from optuna_nas.samplers import SecondOpinionSampler
from optuna_nas.search.stopping import Stopping
from optuna_nas.search.strategy import ASKED, STRATEGIES, Setting, make_strategy
from optuna_nas.storage.attributes import METRIC, PROMOTES, SECOND_OPINION, attribute
from optuna_nas.storage.leaderboard import leaderboard

SPACE = nasbench201_space()


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    labels = np.arange(160) % 3
    images = generator.normal(size=(160, 6, 6)).astype(np.float32) + labels[:, None, None]
    return ImageData.from_arrays(images, labels)


@pytest.fixture
def networks(data):
    return NetworkSpace(SPACE, nasbench201_skeleton(1, 4, data.input_shape, data.classes))


@pytest.fixture
def make(data, networks, tmp_path):
    def make(strategy, **changes):
        fields = {"trials": 3, "tracking": None, "folder": tmp_path / strategy, "pictures": False, "data": data}
        return Search(strategy, networks, recipe=Recipe(epochs=1, batch_size=16), strategy=strategy, **fields | changes)

    return make


@pytest.mark.usefixtures("small_pools")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_runs_and_its_trials_minimise_the_loss(make, strategy):
    search = make(strategy)
    result = run(search)
    assert search.directions == ("minimize",)
    complete = result.study.get_trials(states=[TrialState.COMPLETE])
    assert complete
    assert result.best.value == min(trial.value for trial in complete)
    for row in leaderboard(result.study):
        assert row.value == pytest.approx(-math.log(1 / 3), abs=2), "a cross-entropy"
        assert 0 <= row.metric <= 1, "an accuracy"
    assert result.test_metric is not None
    assert 0 <= result.test_metric <= 1
    assert run(make(strategy, trials=4)).study.trials[3].state.is_finished(), "and goes on"


@pytest.mark.usefixtures("small_pools")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_task_and_augmentation_may_be_suggested_in_the_same_search(make, data, strategy):
    augmented = data.with_augmentation(Augmentation(cutout=suggest_int(0, 2)))
    smoothed = ImageClassification(label_smoothing=suggest_float(0.0, 0.1))
    for trial in run(make(strategy, data=augmented, task=smoothed)).study.trials:
        assert trial.state == TrialState.COMPLETE or not SPACE.decode(trial.params).connected
        assert {"cutout", "label_smoothing"} <= trial.params.keys()


def test_a_strategy_says_what_it_does(make):
    assert isinstance(make("auto").resolved_sampler.sampler, SecondOpinionSampler)
    assert isinstance(make("auto").resolved_sampler.sampler.sampler, GHNSampler)
    assert isinstance(make("free").resolved_sampler.sampler, GHNSampler)
    assert isinstance(make("snas").resolved_sampler, SNASSampler)
    assert isinstance(make("hmnas").resolved_pruner, HMNASPruner)
    assert isinstance(make("hmnas").resolved_sampler, GHNSampler)
    explained = [make(strategy).made_strategy.explanation for strategy in STRATEGIES]
    assert all(text.startswith(f"{name}: ") for name, text in zip(STRATEGIES, explained, strict=True) if name != "auto")
    assert explained[0] == explained[1].replace("; the best ones", f"; {ASKED}; the best ones")
    assert explained[0].startswith("free: 150 random architectures are scored without training, and the best are")
    kept = "ghn: a hypernetwork generates weights of the 30 that a score without training keeps of 300, and the best by"
    assert make("ghn").made_strategy.explanation.startswith(kept)
    assert make("auto", trials=None, seconds=60).made_strategy.explanation.startswith("free: up to 300 random")


def test_seconds_limit_what_a_model_and_its_pool_take(make):
    fit = make("ghn", trials=8, seconds=60).resolved_sampler.sampler.in_study_fit
    assert fit.budget_seconds == pytest.approx(24)
    assert make("ghn", trials=8).resolved_sampler.sampler.in_study_fit.budget_seconds is None
    assert make("snas", trials=8, seconds=60).resolved_sampler.in_study_fit.budget_seconds == pytest.approx(30)
    assert make("hmnas", trials=8, seconds=60).resolved_pruner.in_study_fit.budget_seconds == pytest.approx(24)
    result = run(make("ghn", trials=8, seconds=0.5))
    assert result.best is not None, "whatever little the hypernetwork has learned"


@pytest.mark.usefixtures("small_pools")
def test_the_best_of_a_pool_is_trained_again_for_longer(make):
    result = run(make("auto", trials=8))
    lengths = [trial.params.get("epochs") for trial in result.study.trials]
    assert lengths == [1] * 6 + [3, 1]
    assert [SECOND_OPINION in trial.system_attrs for trial in result.study.trials] == [False] * 5 + [True, False, False]
    long = result.study.trials[6]
    again = result.study.trials[long.system_attrs[PROMOTES]]
    assert SPACE.decode(again.params) == SPACE.decode(long.params)
    assert again.value == min(trial.value for trial in result.study.trials[:6] if trial.value is not None)
    assert sorted(long.intermediate_values) == [1, 2, 3]


def test_without_networks_optuna_proposes(tmp_path):
    search = Search("own", SPACE, objective=lambda trial: str(SPACE.suggest(trial)).count("conv"), strategy="auto")
    assert search.made_strategy.explanation.startswith("tpe: ")
    assert search.directions == ("maximize",)
    with pytest.raises(ValueError, match="`strategy` must be 'tpe' or 'random' where space and data make no networks"):
        Search("own", SPACE, objective=lambda trial: 0.0, strategy="snas")
    with pytest.raises(ValueError, match="`objective` must be given where `data` are not; pass one of them"):
        Search("own", SPACE, strategy="tpe")


def test_a_strategy_stands_for_sampler_and_pruner(make):
    with pytest.raises(ValueError, match="`sampler` must be left out where `strategy` sets it"):
        make("auto", sampler=optuna.samplers.RandomSampler())
    with pytest.raises(ValueError, match=r"`strategy` must be one of .* but got 'best'"):
        make("best")


@pytest.mark.parametrize("name", ["snas", "ghn", "hmnas"])
def test_a_model_that_is_planned_by_trials_needs_their_number(make, name):
    with pytest.raises(ValueError, match=f"`trials` must be given for the strategy '{name}'"):
        make(name, trials=None, seconds=60.0)


@pytest.mark.parametrize("name", ["free", "ghn", "auto"])
def test_bounds_of_an_objective_are_known_to_a_pool(networks, data, name):
    bounds = {"params": 1000, latency(): 0.01}  # the second one is measured in a trial
    objective = TrainObjective(networks, data, Recipe(epochs=2), constraints=bounds)
    setting = Setting(networks, data, Recipe(epochs=2), ImageClassification(), objective, trials=5, seconds=None)
    sampler = make_strategy(name, setting).sampler
    pool = sampler.sampler if name == "auto" else sampler
    assert pool.known_costs.constraints == {"params": 1000}


@pytest.mark.parametrize("name", ["auto", "free", "ghn", "hmnas"])
def test_further_objectives_are_known_to_a_pool(networks, data, name):
    objectives = ("loss", "params", latency())  # the last one is measured in a trial
    objective = TrainObjective(networks, data, Recipe(epochs=2), objectives=objectives)
    setting = Setting(networks, data, Recipe(epochs=2), ImageClassification(), objective, trials=5, seconds=None)
    sampler = make_strategy(name, setting).sampler
    pool = sampler.sampler if name == "auto" else sampler
    assert pool.known_costs.costs == ("params",)
    assert pool.pool_size == pool.n_drawn, "what is small is seldom what a score of losses would keep"


@pytest.mark.usefixtures("small_pools")
def test_a_study_of_several_objectives_begins_along_its_front(networks, data, tmp_path):
    objective = TrainObjective(networks, data, Recipe(epochs=1, batch_size=16), objectives=("loss", "params"))
    search = Search(
        name="front", space=networks, data=data, objective=objective, strategy="free", trials=4, tracking=None,
        storage=InMemoryStorage(), folder=tmp_path, pictures=False,
    )  # fmt: skip
    result = run(search)
    params = [trial.values[1] for trial in result.study.trials]
    pool = search.resolved_sampler.scored(result.study)
    by_score = sorted(pool, key=lambda scored: -scored[1])[:4]
    assert min(params) < min(architecture.cost().params for architecture, _ in by_score)


# -- the loss as an objective -----------------------------------------------------------------------------------------


def test_the_metric_stands_beside_the_loss(networks, data):
    objective = TrainObjective(networks, data, Recipe(epochs=2, batch_size=16), objectives=("loss", "params"))
    assert (objective.metric, objective.judged_metric) == ("loss", "accuracy")
    assert objective.directions == ("minimize", "minimize")
    study = optuna.create_study(directions=objective.directions, sampler=optuna.samplers.RandomSampler(0))
    study.optimize(objective, n_trials=1)
    (trial,) = study.trials
    assert trial.values[1] == networks.decode(trial.params).cost().params
    assert 0 <= attribute(trial.user_attrs, METRIC) <= 1


def test_pruners_see_the_loss(networks, data):
    objective = TrainObjective(networks, data, Recipe(epochs=2, batch_size=16), objectives=("loss",))
    study = optuna.create_study(direction="minimize", sampler=optuna.samplers.RandomSampler(0))
    study.optimize(objective, n_trials=1)
    (trial,) = study.trials
    assert trial.intermediate_values[2] == trial.value
    assert trial.value > 1 / 3 or attribute(trial.user_attrs, METRIC) > 0.8


class NoLoss(Task):
    """A task that tells its metric only."""

    metric, direction = "error", "minimize"

    def loss(self, model, batch):
        return (model(batch[0])[:, 0] - batch[1]).square().mean()

    def evaluate(self, model, batches):
        return 0.5


def test_a_task_that_tells_no_loss_is_named(networks, data):
    objective = TrainObjective(networks, data, Recipe(epochs=1), NoLoss(), objectives=("loss",))
    study = optuna.create_study(direction="minimize", sampler=optuna.samplers.RandomSampler(0))
    with pytest.raises(
        ValueError, match="`objectives` must not begin with 'loss' for a task whose `evaluation` has no"
    ):
        study.optimize(objective, n_trials=1)
    with pytest.raises(ValueError, match="`objectives` must begin with 'error' or 'loss' but got"):
        TrainObjective(networks, data, task=NoLoss(), objectives=("accuracy",))


# -- ends -------------------------------------------------------------------------------------------------------------


def finished(value, seconds=1.0, state=TrialState.COMPLETE):
    from datetime import datetime, timedelta

    trial = create_trial(value=value, state=state)
    trial.datetime_start = datetime(2026, 1, 1)
    trial.datetime_complete = trial.datetime_start + timedelta(seconds=seconds)
    return trial


def test_seconds_end_a_search_before_the_trial_that_would_not_fit():
    study, stopping = optuna.create_study(), Stopping(seconds=20, patience=None)
    assert stopping.reason(study) is None
    study.add_trial(finished(1.0, seconds=9))  # makes a pool
    for _ in range(2):
        study.add_trial(finished(1.0, seconds=4))
        assert (stopping.reason(study) is None) == (len(study.trials) < 3)
    assert stopping.reason(study) == "17 of 20 seconds are spent, and no further trial would fit"


def test_the_next_trial_is_expected_to_take_what_its_length_takes():
    def trained(epochs, seconds, state=TrialState.COMPLETE):
        trial = finished(1.0, seconds, state)
        trial.params, trial.distributions = {"epochs": epochs}, {"epochs": CategoricalDistribution((2, 6))}
        return trial

    study, length = optuna.create_study(), [2]
    stopping = Stopping(20, None, upcoming=lambda study: ("epochs", length[0]))
    study.add_trials([trained(2, 5), trained(2, 3)])
    assert stopping.reason(study) is None
    length[0] = 6  # three times as long as what took three seconds
    study.add_trial(trained(2, 3))
    assert stopping.reason(study) is None
    study.add_trials([trained(2, 1), trained(6, 0, TrialState.PRUNED)])
    assert stopping.reason(study) == "12 of 20 seconds are spent, and no further trial would fit"
    study.add_trial(trained(6, 5))
    length[0] = 2
    assert stopping.reason(study) is None, "a short one fits after a long one"
    study.add_trial(trained(2, 1))
    assert stopping.reason(study) is not None


@pytest.mark.usefixtures("small_pools")
@pytest.mark.parametrize("strategy", ["snas", "ghn", "hmnas"])
@pytest.mark.parametrize("ended", [2, 4], ids=["on the way", "done"])
def test_a_larger_total_trains_the_model_further(make, strategy, ended):
    run(make(strategy, trials=4), enough=lambda study: len(study.trials) >= ended)
    longer = make(strategy, trials=8)
    result = run(longer)
    assert [trial.state for trial in result.study.trials if trial.state == TrialState.FAIL] == []
    assert len(result.study.trials) == 8
    part = longer.resolved_pruner if strategy == "hmnas" else longer.resolved_sampler
    part = getattr(part, "sampler", part)
    if strategy != "ghn":  # whose one pool has candidates for all of these trials
        assert part.model.configuration["budget"] == part.in_study_fit.budget
        assert part.model.fitted


def test_patience_counts_trials_that_bring_nothing():
    study, stopping = optuna.create_study(direction="maximize"), Stopping(seconds=None, patience=2)
    for value, ends in ((0.5, False), (0.4, False), (0.6, False), (0.6, False), (0.3, True)):
        study.add_trial(finished(value))
        assert (stopping.reason(study) is not None) == ends
    study.add_trial(finished(0.7))
    assert stopping.reason(study) is None
    study.add_trials([create_trial(state=TrialState.FAIL)] * 3)
    assert stopping.reason(study) is None, "what failed says nothing"
    study.add_trials([create_trial(state=TrialState.PRUNED)] * 2)
    assert stopping.reason(study) == "2 trials in a row were not better than the best"


def test_a_search_that_ends_early_is_complete_and_says_why(make):
    result = run(make("random", trials=50, patience=3))
    assert 4 <= len(result.study.trials) < 50
    assert not result.interrupted
    assert result.ended == "3 trials in a row were not better than the best"
    assert result.test_metric is not None
    again = run(make("random", trials=50, patience=3))
    assert len(again.study.trials) == len(result.study.trials), "and it has ended"


@pytest.mark.parametrize("change", [{"seconds": 0.0}, {"seconds": math.inf}, {"patience": 0}])
def test_limits_out_of_range_are_refused(make, change):
    (name,) = change
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        make("random", **change)


STUDY = """
import numpy as np
from optuna.samplers import RandomSampler

from optuna_nas import ImageData, NetworkSpace, Recipe, Search, nasbench201_skeleton, nasbench201_space

def search():
    generator = np.random.default_rng(0)
    labels = np.arange(90) % 3
    data = ImageData.from_arrays(generator.normal(size=(90, 6, 6)).astype(np.float32) + labels[:, None, None], labels)
    space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 4, data.input_shape, data.classes))
    return Search("tiny", space, data, Recipe(epochs=1), sampler=RandomSampler(0), trials=2, tracking=None)
"""


def test_the_command_line_takes_a_strategy_and_seconds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(STUDY)
    done = CliRunner().invoke(app, ["run", "tiny.py", "--strategy", "auto", "--trials", "100", "--seconds", "4"])
    assert done.exit_code == 0, done.output
    shown = " ".join(done.output.split())
    assert "Strategy free: up to 300 random architectures are scored without training" in shown
    assert "of 4 seconds are spent, and no further trial would fit" in shown
    assert "loss" in shown
    assert "accuracy" in shown
    done = CliRunner().invoke(app, ["run", "tiny.py", "--strategy", "magic"])
    assert done.exit_code == 2
    assert "`--strategy` must be one of" in done.stderr


@pytest.mark.parametrize(
    ("trials", "seconds", "size"),
    [(None, None, 1000), (30, None, 1000), (3, None, 150), (None, 60.0, 300), (3, 60.0, 150)],
)
def test_a_pool_is_no_larger_than_its_trials_are_worth(trials, seconds, size):
    setting = Setting(nasbench201_space(), None, Recipe(), ImageClassification(), None, trials, seconds)
    assert setting.pool_size == size

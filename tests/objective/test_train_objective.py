"""Promises of the objective: what a trial returns, reports, records, keeps, and why it ends early."""

import gc
import json
import pickle
import threading
import weakref
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import optuna
import pytest
import torch
from objectives import CELLS, DATA, RECIPE, SPACE, make
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState

from optuna_nas.data import REPORT, Augmentation
from optuna_nas.networks import DiscreteNetwork, Measure, NetworkSpace, latency, load_network
from optuna_nas.objective import (
    GeneratedWeights,
    TrialRun,
    duplicates,
    suggest_categorical,
    suggest_float,
    suggest_int,
)
from optuna_nas.objective import trial_training as objective_module
from optuna_nas.objective.suggestions import resolve
from optuna_nas.objective.trial_training import OutOfMemory, checkpoint_path, network_path
from optuna_nas.oneshot import GHN, HMNAS, GHNRecipe
from optuna_nas.space import NONE, darts_search_skeleton, hmnas_space
from optuna_nas.space.cost import COSTS
from optuna_nas.storage.attributes import (
    BATCH_HALVED,
    CHECKPOINTED,
    DIGEST,
    DUPLICATE_OF,
    GPU_SECONDS,
    MULTIPLY_ADDS,
    NETWORK,
    PARAMS,
    REASON,
    RESUMES,
    SKIPPED_STEPS,
    START,
    SURROGATE_SCORE,
    TRAIN_SECONDS,
    attribute,
    cost_key,
)
from optuna_nas.training import ImageClassification, TrainingDiverged, TrainingStopped, evaluate, save_tensors
from optuna_nas.training.device import gpu_share

FIRST, SECOND, ACROSS = CELLS.paths  # the edges 0 -> 1, 0 -> 2 and 1 -> 2


def choose(first="skip_connect", second="nor_conv_1x1", across="nor_conv_1x1"):
    return {FIRST: first, SECOND: second, ACROSS: across}


DISCONNECTED = choose(NONE, NONE, "skip_connect")
# Two ways to one function: the way over node 1 is cut at its end, or at its beginning.
CUT_AT_END, CUT_AT_BEGINNING = (
    choose("avg_pool_3x3", "nor_conv_1x1", NONE),
    choose(NONE, "nor_conv_1x1", "skip_connect"),
)


class Pruner(BasePruner):
    """Asks a function of (number of the trial, last reported step or None) and remembers being asked."""

    def __init__(self, answer=lambda number, step: False):
        self.answer, self.asked = answer, []

    def prune(self, study, trial):
        self.asked.append((trial.number, trial.last_step))
        return self.answer(trial.number, trial.last_step)


@pytest.fixture(autouse=True)
def _quiet():
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    yield
    optuna.logging.set_verbosity(before)


@pytest.fixture
def trained(monkeypatch):
    """Networks, recipes and tasks of the trainings that happen, in order; the trainings are real."""
    trainings, train = [], objective_module.train

    def spy(network, data, recipe, task, **kwargs):
        trainings.append((network, recipe, task))
        return train(network, data, recipe, task, **kwargs)

    monkeypatch.setattr(objective_module, "train", spy)
    return trainings


def run(objective, *params, n_trials=None, catch=(), user_attrs=None, **study_arguments):
    """Run one trial for each of `params` (or `n_trials` of the sampler) in a study of one direction."""
    arguments = {"direction": "maximize", "sampler": RandomSampler(seed=0), "pruner": NopPruner(), **study_arguments}
    if "directions" in arguments:
        del arguments["direction"]
    study = optuna.create_study(**arguments)
    for chosen in params:
        study.enqueue_trial(chosen, user_attrs=user_attrs)
    study.optimize(objective, n_trials=len(params) if n_trials is None else n_trials, catch=catch)
    return study


def fail_beyond(limit, monkeypatch):
    """Let every network run out of memory for more than `limit` images; returns the sizes seen."""
    forward, seen = DiscreteNetwork.forward, []

    def limited(self, images, *args, **kwargs):
        if self.training:
            seen.append(len(images))
            if len(images) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, images, *args, **kwargs)

    monkeypatch.setattr(DiscreteNetwork, "forward", limited)
    return seen


# --- what comes back --------------------------------------------------------------------------------------------------


def test_a_trial_returns_the_last_of_the_accuracies_it_reports(trained):
    trial = run(make(), choose()).trials[0]
    assert list(trial.intermediate_values) == [1, 2, 3]
    assert trial.value == trial.intermediate_values[3]
    ((network, recipe, _),) = trained
    assert recipe == RECIPE
    assert trial.value == evaluate(network, DATA, REPORT)[1]
    assert trial.value > 0.5


def test_every_trial_trains_the_architecture_of_its_parameters(trained):
    study = run(make(reuse_duplicates=False), n_trials=6, sampler=RandomSampler(seed=1))
    architectures = [SPACE.decode(trial.params) for trial in study.trials]
    assert [network.architecture for network, _, _ in trained] == [a for a in architectures if a.connected]
    assert set(study.trials[0].params) == set(CELLS.paths)


def test_costs_are_attributes_of_the_trial():
    trial = run(make(), choose()).trials[0]
    architecture = SPACE.decode(trial.params)
    network, cost = architecture.build(), architecture.cost()
    assert trial.user_attrs[PARAMS] == sum(p.numel() for p in network.parameters())
    found = {name: trial.user_attrs[cost_key(name)] for name in COSTS}
    assert found == {name: getattr(cost, name) for name in COSTS}
    assert trial.user_attrs[TRAIN_SECONDS] > 0
    assert not {REASON, BATCH_HALVED, SKIPPED_STEPS, DUPLICATE_OF} & set(trial.user_attrs)


def test_seconds_of_a_shared_gpu_are_counted_also_of_a_pruned_trial(monkeypatch):
    monkeypatch.setattr(objective_module, "gpu_share", lambda device: 0.5)
    pruner = Pruner(lambda number, step: number == 1 and step == 1)
    study = optuna.create_study(direction="maximize", sampler=RandomSampler(seed=0), pruner=pruner)
    study.optimize(make(reuse_duplicates=False), n_trials=2)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.PRUNED]
    for trial in study.trials:
        assert 0 < trial.user_attrs[GPU_SECONDS] <= 0.5 * trial.duration.total_seconds()


@pytest.mark.parametrize(("device", "share"), [("cpu", 0.0), ("cuda", 0.25)])
def test_a_worker_is_told_its_share_of_a_gpu(device, share, monkeypatch):
    monkeypatch.setenv("OPTUNA_NAS_GPU_SHARE", "0.25")
    assert gpu_share(torch.device(device)) == share


def test_a_given_score_is_recorded_before_the_training(trained):
    def score(architectures):
        assert not trained
        return np.array([len(a[SECOND][0]) / 100 for a in architectures])

    assert run(make(score=score), choose()).trials[0].user_attrs[SURROGATE_SCORE] == 0.12


def test_given_weights_are_what_training_starts_from(monkeypatch):
    started = []

    def stop(network, *args, **kwargs):
        started.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        raise TrainingStopped

    monkeypatch.setattr(objective_module, "train", stop)
    given = []

    def weights(architecture):
        given.append(architecture.build(seed=77).state_dict())
        return given[-1]

    run(make(initial_weights=weights), choose(), catch=(TrainingStopped,))
    assert all(torch.equal(started[0][name], tensor) for name, tensor in given[0].items())


def test_a_training_starts_from_what_a_ghn_generates(monkeypatch):
    started = []

    def stop(network, *args, **kwargs):
        started.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        raise TrainingStopped

    monkeypatch.setattr(objective_module, "train", stop)
    ghn = GHN(SPACE, GHNRecipe(phases=1, batch_size=16))
    ghn.fit(DATA, 1)
    run(make(initial_weights=GeneratedWeights(ghn, noise=0.2)), choose(), catch=(TrainingStopped,))
    (architecture,) = [SPACE.decode(choose())]
    expected = ghn.weights(architecture, noise=0.2)
    assert started[0].keys() == expected.keys()
    assert all(torch.equal(started[0][name], tensor) for name, tensor in expected.items())


def test_another_start_is_another_training():
    ghn, other = GHN(SPACE), GHN(SPACE, GHNRecipe(seed=1))
    generated = [GeneratedWeights(one, noise) for one in (ghn, other) for noise in (0.0, 0.1)]
    objectives = [make(initial_weights=weights) for weights in (None, *generated)]
    assert len({objective._training_digest("ghn") for objective in objectives}) == 5
    assert len({objective._training_digest("scratch") for objective in objectives}) == 1


def test_until_a_ghn_has_learned_trainings_start_from_scratch_and_say_so(caplog):
    ghn = GHN(SPACE, GHNRecipe(phases=1, batch_size=16))
    study = optuna.create_study(direction="maximize")
    objective = make(initial_weights=GeneratedWeights(ghn, noise=0.0))
    study.enqueue_trial(choose())
    study.optimize(objective, n_trials=1)
    assert "Trial 0 starts from scratch" in caplog.text
    ghn.fit(DATA, 1)
    for _ in range(2):  # the second takes over the result of the first, which is not that of trial 0
        study.enqueue_trial(choose())
        study.optimize(objective, n_trials=1)
    assert [trial.user_attrs[START] for trial in study.trials] == ["scratch", "ghn", "ghn"]
    assert [trial.user_attrs.get(DUPLICATE_OF) for trial in study.trials] == [None, None, 1]
    scratch = run(make(), choose()).trials[0]
    assert study.trials[0].intermediate_values == scratch.intermediate_values
    assert study.trials[1].intermediate_values != scratch.intermediate_values


def test_weights_that_do_not_fit_the_memory_fail_the_trial_alone(monkeypatch):
    ghn = GHN(SPACE, GHNRecipe(phases=1, batch_size=16))
    ghn.fit(DATA, 1)

    def full(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(ghn, "weights", full)
    trial = run(make(initial_weights=GeneratedWeights(ghn)), choose(), catch=(OutOfMemory,)).trials[0]
    assert trial.state == TrialState.FAIL
    assert "`scoring_images` of the GHN must fit the memory" in trial.user_attrs[REASON]


def test_the_seed_of_the_recipe_decides_the_result():
    values = [
        run(make(recipe=replace(RECIPE, seed=seed)), choose()).trials[0].intermediate_values for seed in (0, 0, 1)
    ]
    assert values[0] == values[1]
    assert values[0] != values[2]


def test_the_skeletons_drop_path_reaches_the_training(trained):
    with_drop_path, without = (run(make(space=SPACE.with_skeleton(drop_path=p)), choose()) for p in (0.3, 0.0))
    assert [network.skeleton.drop_path for network, _, _ in trained] == [0.3, 0.0]
    with_drop_path, without = (study.trials[0].intermediate_values for study in (with_drop_path, without))
    assert with_drop_path[1] == without[1]  # it rises from 0
    assert with_drop_path != without


@pytest.mark.parametrize("objectives", [("accuracy", "params"), ("accuracy", "multiply_adds", "memory_access")])
def test_several_objectives_are_returned_and_nothing_is_reported(objectives):
    directions = ["maximize"] + ["minimize"] * (len(objectives) - 1)
    pruner = Pruner(lambda number, step: True)
    study = run(make(objectives=objectives), choose(), choose("nor_conv_1x1"), directions=directions, pruner=pruner)
    for trial in study.trials:
        assert trial.values[1:] == [trial.user_attrs[cost_key(name)] for name in objectives[1:]]
        assert 0 < trial.values[0] <= 1
        assert trial.intermediate_values == {}
    assert pruner.asked == []
    assert study.trials[0].values != study.trials[1].values
    single = run(make(), choose()).trials[0]
    assert study.trials[0].values[0] == single.value


def test_constraints_are_optunas_own():
    study = run(make(constraints={"params": 1300, "multiply_adds": 10**9}), choose(second=NONE), choose("nor_conv_1x1"))
    for trial in study.trials:
        expected = {
            "params": trial.user_attrs[PARAMS] - 1300,
            "multiply_adds": trial.user_attrs[MULTIPLY_ADDS] - 1e9,
        }
        assert trial.constraints == expected
    small, large = (trial.constraints["params"] for trial in study.trials)
    assert small <= 0 < large
    assert study.best_trial.number == 0  # whatever the other's accuracy


# --- measures ---------------------------------------------------------------------------------------------------------


def test_latency_is_an_objective_of_its_own_direction():
    objective = make(objectives=("accuracy", "params", latency(batch_size=4, device="cpu", repeats=2)))
    assert objective.objective_names == ("accuracy", "params", "latency_cpu_4")
    assert objective.directions == ("maximize", "minimize", "minimize")
    study = run(objective, choose(), choose("nor_conv_1x1"), directions=objective.directions)
    for trial in study.trials:
        assert trial.values[1:] == [trial.user_attrs[PARAMS], trial.user_attrs[cost_key("latency_cpu_4")]]
        assert 0 < trial.values[2] < 1


def sum_of_outputs(direction="minimize"):
    """A measure that is the same in every call: the sum of what a network of the seed 0 says to zeros."""
    return Measure("sum_of_outputs", lambda network, inputs: float(network(inputs).sum()), direction=direction)


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_measure_of_ones_own_is_returned_bounded_and_kept(direction):
    measure = sum_of_outputs(direction)
    objective = make(objectives=("accuracy", measure), constraints={measure: 0.25, "params": 1300})
    assert objective.directions == ("maximize", direction)
    study = run(objective, choose(), choose("nor_conv_1x1"), directions=objective.directions)
    for trial in study.trials:
        network = SPACE.build(SPACE.decode(trial.params), seed=0)
        expected = measure(network, SPACE.example_inputs())
        assert trial.values[1] == trial.user_attrs[cost_key("sum_of_outputs")] == expected
        assert trial.constraints == {
            "params": trial.user_attrs[PARAMS] - 1300,
            "sum_of_outputs": pytest.approx(expected - 0.25),
        }
    assert study.trials[0].values[1] != study.trials[1].values[1]


def test_a_measure_may_be_a_constraint_alone():
    study = run(make(constraints={latency(device="cpu", repeats=1): 1e-9}), choose())
    (trial,) = study.trials
    assert trial.constraints == {"latency_cpu_1": trial.user_attrs[cost_key("latency_cpu_1")] - 1e-9}
    assert trial.constraints["latency_cpu_1"] > 0
    assert trial.value == trial.intermediate_values[3]


def test_a_network_is_measured_before_it_is_trained_and_not_where_it_is_pruned(trained):
    asked = []
    measure = Measure("asked", lambda network, inputs: float(asked.append(len(trained)) or network.training))
    run(make(constraints={measure: 1.0}), choose(), choose("nor_conv_1x1"))
    assert asked == [0, 1]
    run(make(constraints={measure: 1.0}), DISCONNECTED, choose(), pruner=Pruner(lambda number, step: step is None))
    assert asked == [0, 1]


def test_a_duplicate_is_measured_and_not_trained(trained):
    objective = make(objectives=("accuracy", sum_of_outputs()))
    study = run(objective, CUT_AT_END, CUT_AT_BEGINNING, directions=objective.directions)
    assert len(trained) == 1
    first, second = study.trials
    assert second.values[0] == first.values[0]
    assert second.values[1] == sum_of_outputs()(
        SPACE.build(SPACE.decode(second.params), seed=0), SPACE.example_inputs()
    )


# --- suggestions ------------------------------------------------------------------------------------------------------


def test_suggestions_become_parameters_and_reach_the_training(trained):
    recipe = replace(
        RECIPE,
        epochs=1,
        learning_rate=suggest_float(1e-3, 1e-1, log=True),
        weight_decay=suggest_float(0.0, 0.5, step=0.25),
        batch_size=suggest_int(8, 16, step=4),
        optimizer=suggest_categorical(["sgd", "adamw"]),
    )
    study = run(make(recipe=recipe), n_trials=8)
    ours = {"learning_rate", "weight_decay", "batch_size", "optimizer"}
    completed = [t for t in study.trials if t.state == TrialState.COMPLETE]
    for trial, (_, used, _) in zip(completed, trained, strict=True):
        assert set(trial.params) == ours | set(CELLS.paths)
        assert {name: getattr(used, name) for name in ours} == {name: trial.params[name] for name in ours}
        assert used == replace(RECIPE, epochs=1, **{name: trial.params[name] for name in ours})
    assert trial.distributions["learning_rate"] == optuna.distributions.FloatDistribution(1e-3, 1e-1, log=True)
    assert trial.distributions["batch_size"] == optuna.distributions.IntDistribution(8, 16, step=4)
    assert trial.distributions["weight_decay"].step == 0.25
    assert {t.params["optimizer"] for t in study.trials} == {"sgd", "adamw"}


def test_suggestions_of_the_task_become_parameters_and_reach_the_training(trained):
    task = ImageClassification(label_smoothing=suggest_float(0.0, 0.2))
    study = run(make(task=task, recipe=replace(RECIPE, epochs=1)), n_trials=3)
    completed = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert [used for _, _, used in trained] == [ImageClassification(t.params["label_smoothing"]) for t in completed]
    assert len(completed) > 1


def test_suggestions_of_the_augmentation_become_parameters_and_reach_the_training(monkeypatch):
    used, train = [], objective_module.train

    def spy(network, data, *settings, **callbacks):
        used.append(data)
        return train(network, data, *settings, **callbacks)

    monkeypatch.setattr(objective_module, "train", spy)
    suggested = DATA.with_augmentation(Augmentation(crop_padding=1, cutout=suggest_int(0, 3)))
    objective = make(data=suggested, recipe=replace(RECIPE, epochs=1))
    study = run(objective, n_trials=6)
    completed = [t for t in study.trials if t.state == TrialState.COMPLETE and DUPLICATE_OF not in t.user_attrs]
    assert [data.augmentation for data in used] == [Augmentation(1, cutout=t.params["cutout"]) for t in completed]
    assert len({trial.params["cutout"] for trial in completed}) > 1
    for data in used:
        assert data.describe() == DATA.with_augmentation(data.augmentation).describe()
    described = json.loads(json.dumps(objective.describe()))
    assert described["data"]["augmentation"] == {"crop_padding": 1, "flip": False, "cutout": repr(suggest_int(0, 3))}
    assert objective(optuna.trial.FixedTrial(completed[0].params)) == completed[0].value


def test_outside_of_trials_a_suggested_augmentation_has_its_default():
    images = torch.rand(4, 1, 6, 6)
    for suggested in (Augmentation(crop_padding=suggest_int(1, 3)), Augmentation(flip=suggest_categorical([True]))):
        assert torch.equal(suggested(images, torch.Generator().manual_seed(0)), images)


@pytest.mark.parametrize("settings", [RECIPE, ImageClassification()])
def test_settings_of_numbers_stay_as_they_are(settings):
    trial = optuna.trial.FixedTrial({})
    assert resolve(settings, trial) == settings
    assert trial.params == {}


def test_a_suggested_value_out_of_range_is_refused_when_it_is_known():
    with pytest.raises(ValueError, match=r"`momentum` must be in \[0, 1\) but got 2.5"):
        resolve(replace(RECIPE, momentum=suggest_float(2.0, 3.0)), optuna.trial.FixedTrial({"momentum": 2.5}))


# --- pruning ----------------------------------------------------------------------------------------------------------


def test_the_pruner_is_asked_before_the_first_step_and_after_every_epoch_but_the_last():
    pruner = Pruner()
    run(make(), choose(), pruner=pruner)
    assert pruner.asked == [(0, None), (0, 1), (0, 2)]


def test_a_pruner_that_says_no_at_once_costs_no_training(trained):
    study = run(make(), choose(), pruner=Pruner(lambda number, step: True))
    trial = study.trials[0]
    assert trial.state == TrialState.PRUNED
    assert trial.user_attrs[REASON] == "Pruner stopped it before the first step"
    assert trial.intermediate_values == {}
    assert trained == []
    assert trial.user_attrs[PARAMS] > 0  # its cost is known all the same


def test_a_trial_is_pruned_after_an_epoch_with_the_reason(trained, tmp_path):
    study = run(make(run=TrialRun(tmp_path)), choose(), pruner=Pruner(lambda number, step: step == 2))
    trial = study.trials[0]
    assert trial.state == TrialState.PRUNED
    assert list(trial.intermediate_values) == [1, 2]
    assert trial.user_attrs[REASON] == "Pruner stopped it after epoch 2 of 3"
    assert not network_path(tmp_path, 0).exists()


def test_a_finished_training_is_not_pruned_for_its_last_epoch():
    study = run(make(), choose(), pruner=Pruner(lambda number, step: step == 3))
    assert study.trials[0].state == TrialState.COMPLETE


def test_a_disconnected_architecture_is_pruned_before_it_is_built(trained):
    pruner = Pruner()
    study = run(make(), DISCONNECTED, choose(), pruner=pruner)
    assert [trial.state for trial in study.trials] == [TrialState.PRUNED, TrialState.COMPLETE]
    assert "does not reach its output" in study.trials[0].user_attrs[REASON]
    assert len(trained) == 1
    assert all(number == 1 for number, _ in pruner.asked)


# --- duplicates -------------------------------------------------------------------------------------------------------


def test_the_duplicates_here_compute_the_same_function():
    one, other = SPACE.decode(CUT_AT_END), SPACE.decode(CUT_AT_BEGINNING)
    assert one != other
    assert one.canonical() == other.canonical()


def test_a_duplicate_takes_over_the_result_and_does_not_train(trained, tmp_path):
    study = run(make(run=TrialRun(tmp_path)), CUT_AT_END, choose(), CUT_AT_BEGINNING, CUT_AT_END)
    first, other, second, third = study.trials
    assert len(trained) == 2
    assert second.value == third.value == first.value
    assert (second.user_attrs[DUPLICATE_OF], third.user_attrs[DUPLICATE_OF]) == (0, 0)
    assert DUPLICATE_OF not in first.user_attrs | other.user_attrs
    assert first.user_attrs[DIGEST] == second.user_attrs[DIGEST]
    assert other.user_attrs[DIGEST] != first.user_attrs[DIGEST]


def test_a_duplicate_of_a_pruned_trial_is_pruned(trained):
    study = run(make(), CUT_AT_END, CUT_AT_BEGINNING, pruner=Pruner(lambda number, step: number == 0 and step == 1))
    assert [trial.state for trial in study.trials] == [TrialState.PRUNED] * 2
    assert study.trials[1].user_attrs[REASON] == "it computes the same function as trial 0, which was pruned"
    assert len(trained) == 1


def test_a_trial_that_never_trained_is_nobodys_original(trained):
    study = run(make(), CUT_AT_END, CUT_AT_BEGINNING, pruner=Pruner(lambda number, step: number == 0))
    assert [trial.state for trial in study.trials] == [TrialState.PRUNED, TrialState.COMPLETE]
    assert len(trained) == 1


def test_a_failed_trial_is_nobodys_original(trained, monkeypatch):
    with monkeypatch.context() as patched:
        fail_beyond(0, patched)
        study = run(make(), CUT_AT_END, catch=(OutOfMemory,))
    study.enqueue_trial(CUT_AT_BEGINNING)
    study.optimize(make(), n_trials=1)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.COMPLETE]


@pytest.mark.parametrize(("second_rate", "trainings"), [(0.1, 1), (0.05, 2)])
def test_other_suggestions_of_the_recipe_are_another_training(second_rate, trainings, trained):
    objective = make(recipe=replace(RECIPE, learning_rate=suggest_float(0.01, 0.2)))
    study = run(objective, {**CUT_AT_END, "learning_rate": 0.1}, {**CUT_AT_BEGINNING, "learning_rate": second_rate})
    assert len(trained) == trainings
    assert (DUPLICATE_OF in study.trials[1].user_attrs) == (trainings == 1)


def test_duplicates_train_where_asked_to(trained):
    study = run(make(reuse_duplicates=False), CUT_AT_END, CUT_AT_BEGINNING)
    assert len(trained) == 2
    assert DUPLICATE_OF not in study.trials[1].user_attrs


def test_a_duplicate_takes_over_the_accuracy_of_several_objectives(trained):
    study = run(
        make(objectives=("accuracy", "params")), CUT_AT_BEGINNING, CUT_AT_BEGINNING, directions=["maximize", "minimize"]
    )
    assert len(trained) == 1
    assert study.trials[0].values == study.trials[1].values


def test_a_duplicate_of_another_cost_returns_its_own_cost():
    """Ops that lead nowhere count as kept: equal functions may have different numbers of parameters."""
    dead_conv = choose("nor_conv_1x1", "nor_conv_1x1", NONE)
    assert SPACE.decode(dead_conv).canonical() == SPACE.decode(CUT_AT_END).canonical()
    study = run(make(objectives=("accuracy", "params")), CUT_AT_END, dead_conv, directions=["maximize", "minimize"])
    for trial in study.trials:
        assert trial.values[1] == trial.user_attrs[PARAMS]


def test_each_finished_trial_is_looked_at_once_for_duplicates(trained, monkeypatch):
    looked, key_of = [], duplicates._key_of_result
    monkeypatch.setattr(
        duplicates,
        "_key_of_result",
        lambda trial, own_names: looked.append(trial.number) or key_of(trial, own_names),
    )
    study = run(make(), *[choose(), CUT_AT_END, CUT_AT_BEGINNING] * 5)
    assert len(trained) == 2
    assert [trial.user_attrs.get(DUPLICATE_OF) for trial in study.trials] == [None, None, 1] + [0, 1, 1] * 4
    assert looked == list(range(14))


def test_an_objective_that_knows_results_travels_to_another_process(trained):
    objective = make()
    study = run(objective, CUT_AT_END)
    study.enqueue_trial(CUT_AT_BEGINNING)
    study.optimize(pickle.loads(pickle.dumps(objective)), n_trials=1)
    assert len(trained) == 1


# --- failures with a reason -------------------------------------------------------------------------------------------


def test_memory_that_suffices_for_halves_is_noted(monkeypatch):
    seen = fail_beyond(9, monkeypatch)
    trial = run(make(), choose()).trials[0]
    assert trial.state == TrialState.COMPLETE
    assert trial.user_attrs[BATCH_HALVED] is True
    assert seen == [18] + [9, 9] * 12


def test_out_of_memory_fails_the_trial_with_the_reason_and_the_study_goes_on(monkeypatch, tmp_path):
    with monkeypatch.context() as patched:
        fail_beyond(8, patched)
        study = run(make(run=TrialRun(tmp_path)), choose(), choose("nor_conv_1x1"), catch=(OutOfMemory,))
    assert [trial.state for trial in study.trials] == [TrialState.FAIL] * 2
    for trial in study.trials:
        assert trial.user_attrs[REASON].startswith("`batch_size` must fit the memory but 18 did not, nor did 9")
    assert not list(tmp_path.rglob("*.safetensors"))
    study.enqueue_trial(choose())
    study.optimize(make(), n_trials=1)
    assert study.trials[2].state == TrialState.COMPLETE


@pytest.mark.parametrize("ending", ["complete", "pruned", "out of memory", "diverged"])
def test_memory_is_given_back_however_a_trial_ends(ending, monkeypatch):
    """Look whether earlier networks are alive when the next training begins, with no help from the cycle collector."""
    references, alive, train = [], [], objective_module.train

    def spy(network, *args, **kwargs):
        alive.append([reference() is not None for reference in references])
        references.append(weakref.ref(network))
        return train(network, *args, **kwargs)

    monkeypatch.setattr(objective_module, "train", spy)
    pruner = Pruner(lambda number, step: ending == "pruned" and step == 1)
    recipe = RECIPE
    if ending == "out of memory":
        fail_beyond(8, monkeypatch)
    if ending == "diverged":
        recipe = replace(RECIPE, epochs=9, learning_rate=1e30, clip_norm=0.0)
    gc.collect()
    gc.disable()
    try:
        run(
            make(recipe=recipe),
            choose(),
            choose("nor_conv_1x1"),
            choose("avg_pool_3x3"),
            catch=(Exception,),
            pruner=pruner,
        )
    finally:
        gc.enable()
    assert alive == [[], [False], [False, False]]


def test_a_divergence_fails_the_trial_with_the_reason(tmp_path):
    recipe = replace(RECIPE, epochs=9, learning_rate=1e30, clip_norm=0.0)
    objective = make(recipe=recipe, run=TrialRun(tmp_path))
    study = run(objective, choose(NONE, "skip_connect", NONE), catch=(TrainingDiverged,))
    assert study.trials[0].state == TrialState.FAIL
    assert "10 steps in a row" in study.trials[0].user_attrs[REASON]
    assert not list(tmp_path.rglob("*.safetensors"))


def test_skipped_steps_are_recorded(monkeypatch):
    forward, calls = DiscreteNetwork.forward, []

    def sometimes_infinite(self, images, *args, **kwargs):
        calls.append(self.training)
        scores = forward(self, images, *args, **kwargs)
        return scores * torch.inf if self.training and sum(calls) in (2, 5) else scores

    monkeypatch.setattr(DiscreteNetwork, "forward", sometimes_infinite)
    assert run(make(), choose()).trials[0].user_attrs[SKIPPED_STEPS] == 2


def test_other_errors_pass_as_they_are(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("shapes disagree")

    monkeypatch.setattr(DiscreteNetwork, "forward", fail)
    with pytest.raises(RuntimeError, match="shapes disagree"):
        run(make(), choose())


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_trial_names_the_file_of_its_network(tmp_path):
    study = run(make(run=TrialRun(tmp_path)), choose())
    assert study.trials[0].user_attrs[NETWORK] == str(network_path(tmp_path, 0))


def test_the_network_is_kept_and_loads_with_equal_predictions(trained, tmp_path):
    study = run(make(run=TrialRun(tmp_path)), choose(), choose("nor_conv_1x1"))
    (batch,) = DATA.batches([REPORT], 100)
    for trial, (network, _, _) in zip(study.trials, trained, strict=True):
        loaded = load_network(network_path(tmp_path, trial.number))
        assert not loaded.training
        assert loaded.architecture == SPACE.decode(trial.params)
        assert loaded.space == SPACE
        assert torch.equal(loaded(batch.inputs), network.eval()(batch.inputs))
        assert evaluate(loaded, DATA, REPORT)[1] == trial.value
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(make(), choose())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["foreign", "text", "nothing"])
def test_a_file_that_holds_no_network_is_refused(content, tmp_path):
    file = tmp_path / "file"
    if content == "foreign":
        save_tensors(file, {"a": torch.zeros(2)}, {"progress": {}})
    elif content == "text":
        file.write_text("hello")
    with pytest.raises(ValueError, match=r"`path` must be a (network|checkpoint) of optuna_nas but"):
        load_network(file)


class Stop:
    """Says stop after so many steps, once."""

    def __init__(self, after):
        self.left = after

    def __call__(self):
        self.left -= 1
        return self.left == 0


@pytest.mark.parametrize("after", [1, 4, 7])
def test_a_stopped_trial_keeps_its_checkpoint_and_the_next_goes_on_from_it(after, trained, tmp_path):
    expected = run(make(), choose()).trials[0]
    study = run(make(run=TrialRun(tmp_path, should_stop=Stop(after))), choose(), catch=(TrainingStopped,))
    assert study.trials[0].state == TrialState.FAIL
    assert checkpoint_path(tmp_path, 0).exists()
    assert not network_path(tmp_path, 0).exists()

    steps = []

    class Listener:
        def trial_started(self, trial, metrics): ...
        def epoch(self, trial_number, step, metrics): ...
        def progress(self, trial_number, fraction):
            steps.append(fraction)

    study.enqueue_trial(choose(), user_attrs={RESUMES: 0})
    study.optimize(make(run=TrialRun(tmp_path, listener=Listener())), n_trials=1)
    resumed = study.trials[1]
    assert len(steps) == 12 - after
    assert resumed.value == expected.value
    assert resumed.intermediate_values == expected.intermediate_values
    assert not list((tmp_path / "checkpoints").glob("*"))
    assert network_path(tmp_path, 1).exists()
    reference, found = trained[0][0].state_dict(), load_network(network_path(tmp_path, 1)).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in reference.items())


@pytest.mark.parametrize("objectives", [("accuracy",), ("accuracy", "params")])
def test_a_trial_notes_how_much_of_its_training_the_newest_checkpoint_holds(objectives, monkeypatch, tmp_path):
    monkeypatch.setattr(objective_module, "train", partial(objective_module.train, checkpoint_seconds=0))
    noted = []

    class Listener:
        def __getattr__(self, name):
            return lambda *_: None

        def progress(self, number, fraction):
            noted.append(attribute(study.trials[number].user_attrs, CHECKPOINTED))

    objective = make(objectives=objectives, run=TrialRun(tmp_path, listener=Listener()))
    study = optuna.create_study(directions=objective.directions)
    study.enqueue_trial(choose())
    study.optimize(objective, n_trials=1)
    assert noted == [None, *(pytest.approx(step / 12, abs=1e-5) for step in range(1, 12))]


def test_control_c_keeps_the_checkpoint(monkeypatch, tmp_path):
    def interrupt(network, data, recipe, task, *, checkpoint, **kwargs):
        save_tensors(checkpoint, {}, {})
        raise KeyboardInterrupt

    monkeypatch.setattr(objective_module, "train", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(make(run=TrialRun(tmp_path)), choose())
    assert checkpoint_path(tmp_path, 0).exists()


@pytest.mark.parametrize("error", [TrainingDiverged("x"), ValueError("x"), optuna.TrialPruned()])
def test_a_trial_that_ends_for_good_deletes_its_checkpoint(error, monkeypatch, tmp_path):
    def end(network, data, recipe, task, *, checkpoint, **kwargs):
        save_tensors(checkpoint, {}, {})
        raise error

    monkeypatch.setattr(objective_module, "train", end)
    run(make(run=TrialRun(tmp_path)), choose(), catch=(Exception,))
    assert not list(tmp_path.rglob("*.safetensors"))


# --- listeners --------------------------------------------------------------------------------------------------------


def test_a_listener_hears_start_progress_and_curves_in_order(trained):
    heard = []

    class Listener:
        def trial_started(self, trial, metrics):
            assert not trained
            heard.append(("started", trial.number, trial.params, metrics))

        def epoch(self, trial_number, step, metrics):
            heard.append(("epoch", trial_number, step, metrics))

        def progress(self, trial_number, fraction):
            heard.append(("progress", trial_number, fraction, None))

    trial = run(make(run=TrialRun(listener=Listener())), choose()).trials[0]
    assert [kind for kind, *_ in heard] == ["started"] + (["progress"] * 4 + ["epoch"]) * 3
    assert {number for _, number, _, _ in heard} == {0}
    _, _, params, metrics = heard[0]
    assert params == trial.params
    assert metrics == {name: trial.user_attrs[cost_key(name)] for name in COSTS}
    curves = {step: metrics for kind, _, step, metrics in heard if kind == "epoch"}
    assert {step: metrics["accuracy"] for step, metrics in curves.items()} == trial.intermediate_values
    assert set(curves[1]) == {
        "accuracy",
        "validation_loss",
        "train_accuracy",
        "train_loss",
        "learning_rate",
        "epoch_seconds",
    }
    assert [fraction for kind, _, fraction, _ in heard if kind == "progress"] == pytest.approx(np.arange(1, 13) / 12)


# --- inside an ordinary study -----------------------------------------------------------------------------------------

STATES = {TrialState.COMPLETE, TrialState.PRUNED}


@pytest.mark.parametrize("sampler", [RandomSampler, TPESampler])
@pytest.mark.parametrize("pruner", [MedianPruner, HyperbandPruner])
@pytest.mark.parametrize("storage", ["memory", "sqlite"])
def test_it_runs_in_a_plain_study(sampler, pruner, storage, tmp_path):
    arguments = {"sampler": sampler(seed=0), "direction": "maximize"}
    arguments["pruner"] = (
        MedianPruner(n_startup_trials=2) if pruner is MedianPruner else HyperbandPruner(max_resource=3)
    )
    if storage == "sqlite":
        arguments["storage"] = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(**arguments)
    study.optimize(make(), n_trials=12)
    assert {trial.state for trial in study.trials} <= STATES
    completed = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert len(completed) >= 3
    for trial in study.trials:
        if trial.state == TrialState.PRUNED:
            assert trial.user_attrs[REASON]
        elif DUPLICATE_OF not in trial.user_attrs:
            assert trial.value == trial.intermediate_values[3]
    assert study.best_value == max(trial.value for trial in completed)


def test_sqlite_and_memory_studies_have_the_same_results(tmp_path):
    memory, sqlite = (
        run(make(), n_trials=5, storage=storage) for storage in (None, f"sqlite:///{tmp_path / 'study.db'}")
    )
    for one, other in zip(memory.trials, sqlite.trials, strict=True):
        assert (one.params, one.values, one.intermediate_values) == (
            other.params,
            other.values,
            other.intermediate_values,
        )


def test_two_threads_give_every_architecture_the_result_of_one():
    chosen = [
        choose(first, second, across)
        for first in ("nor_conv_1x1", "avg_pool_3x3")
        for second in (NONE, "nor_conv_1x1", "skip_connect")
        for across in ("nor_conv_1x1", "skip_connect")
    ]

    def results(n_jobs):
        study = optuna.create_study(direction="maximize", sampler=RandomSampler(seed=0), pruner=NopPruner())
        for params in chosen:
            study.enqueue_trial(params)
        threads = set()

        def objective(trial):
            threads.add(threading.get_ident())
            return shared(trial)

        space, recipe = SPACE.with_skeleton(drop_path=0.2), replace(RECIPE, seed=3)
        shared = make(space=space, recipe=recipe, reuse_duplicates=False)
        study.optimize(objective, n_trials=len(chosen), n_jobs=n_jobs)
        found = {tuple(sorted(t.params.items())): (t.value, t.intermediate_values) for t in study.trials}
        assert len(found) == len(chosen)
        return found, threads

    (alone, _), (together, threads) = results(1), results(2)
    assert len(threads) == 2
    assert together == alone
    assert len({value for value, _ in alone.values()}) > 3  # architectures differ, so equality says something


def test_users_parameters_of_their_own_live_beside_the_space():
    objective = make(recipe=replace(RECIPE, epochs=1))

    def theirs(trial):
        return objective(trial) + trial.suggest_float("bonus", 0, 0)

    trial = run(theirs, choose()).trials[0]
    assert Counter(trial.params) == Counter({**choose(), "bonus": 0.0})


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            lambda: {"space": CELLS},
            "`space` must be a `ModelSpace`, whose architectures can be built, but is a CellSpace; use",
        ),
        (lambda: {"space": SPACE.with_skeleton(classes=4)}, "`data` must fit the skeleton, .* and classes=4, but has"),
        (lambda: {"space": SPACE.with_skeleton(input_shape=(3, 8, 8))}, "`data` must fit the skeleton"),
        (lambda: {"space": SPACE.with_skeleton(cells=("normal",))}, "`skeleton.cells` must name the space's cells"),
        (
            lambda: {"space": SPACE.with_skeleton(cells=("residual_reduction",) * 4)},
            "must not reduce an image below one pixel",
        ),
        (lambda: {"objectives": ("params",)}, "`objectives` must begin with 'accuracy' or 'loss' but got"),
        (lambda: {"objectives": ("accuracy", "flops")}, "`objectives` must name costs .* but got 'flops'"),
        (lambda: {"constraints": {"latency": 1.0}}, "`constraints` must name costs .* but got 'latency'"),
        (
            lambda: {"initial_weights": "warm"},
            r"`initial_weights` must be None, `GeneratedWeights\(ghn\)` or a function of .* but got 'warm'",
        ),
        (lambda: {"initial_weights": GHN(SPACE)}, r"`initial_weights` must be .* but got <.*GHN"),
        (
            lambda: {"initial_weights": GeneratedWeights(GHN(SPACE.with_skeleton(channels=8)))},
            "`ghn` must be of the space of the objective",
        ),
        (lambda: {"initial_weights": GeneratedWeights(GHN(SPACE), noise=-1.0)}, "`noise` must not be negative"),
        (
            lambda: {"masks": HMNAS(NetworkSpace(hmnas_space(), darts_search_skeleton(3, 2, (1, 8, 8), 3)))},
            "`masks` must be an HMNAS of the space of the objective",
        ),
    ],
)
def test_an_objective_that_cannot_work_is_refused_before_the_first_trial(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(**changes())


def test_without_objectives_the_metric_of_the_task_is_returned():
    assert make().objectives == make(objectives=()).objectives == ("accuracy",)
    assert make().directions == ("maximize",)


@pytest.mark.parametrize(
    ("objectives", "directions"),
    [
        (("accuracy",), ["maximize", "minimize"]),
        (("accuracy", "params"), ["maximize"]),
        (("accuracy",), ["minimize"]),
        (("accuracy", "params"), ["maximize", "maximize"]),
    ],
)
def test_a_study_of_other_directions_is_refused_before_it_trains(objectives, directions, trained):
    with pytest.raises(ValueError, match=r"`directions` of the study must be .*; create the study with"):
        run(make(objectives=objectives), choose(), directions=directions)
    assert trained == []

"""Seconds and epochs of trials are stored whatever their end, and add up."""

import datetime

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from optuna_nas.storage.attributes import (
    DUPLICATE_OF,
    EPOCHS,
    GPU_SECONDS,
    MODEL_SECONDS,
    RETRY_OF,
    TRAIN_SECONDS,
    TRAINED_EPOCHS,
)
from optuna_nas.storage.spending import Meter, Savings, spending_of


def ended(state, seconds=None, lasted=60, steps=0, **attributes):
    """A finished trial of so many seconds of training, which lasted longer."""
    if seconds is not None:
        attributes[TRAIN_SECONDS] = seconds
    trial = create_trial(
        state=TrialState[state],
        value=0.5 if state == "COMPLETE" else None,
        intermediate_values=dict.fromkeys(range(1, steps + 1), 0.1),
        user_attrs=attributes,
    )
    trial.datetime_complete = trial.datetime_start + datetime.timedelta(seconds=lasted)
    return trial


@pytest.mark.parametrize("state", ["COMPLETE", "PRUNED"])
def test_training_model_and_waiting_make_up_the_trial(state):
    spent = spending_of(ended(state, 30.0, **{MODEL_SECONDS: 20.0, GPU_SECONDS: 25.0}))
    assert (spent.training, spent.model, spent.waiting, spent.gpu) == (30, 20, 10, 25)
    assert spent.total == 60


def test_the_time_until_a_dead_trial_is_found_is_nobodys():
    assert spending_of(ended("FAIL", 30.0, lasted=86_400)).total == 30


def test_an_objective_that_measures_nothing_trains_for_all_of_its_time():
    assert spending_of(ended("COMPLETE", **{MODEL_SECONDS: 20.0}))[:3] == (40, 20, 0)
    assert spending_of(ended("PRUNED", lasted=-5)).total == 0, "a clock that was set back"


@pytest.mark.parametrize("own", [{"train_seconds": 1e6}, {"duplicate_of": 0}, {"gpu_seconds": 9.0}])
def test_what_an_objective_calls_so_itself_is_no_spending(own):
    assert spending_of(ended("COMPLETE", steps=2, **own)) == (60, 0, 0, 0, 2, 0)


@pytest.mark.parametrize("own", [{EPOCHS: 10}, {DUPLICATE_OF: 0}])
def test_what_ends_before_its_training_has_trained_for_no_time(own):
    assert spending_of(ended("PRUNED", **own))[:3] == (0, 0, 60)


@pytest.mark.parametrize(
    ("state", "steps", "attributes", "saved"),
    [
        ("PRUNED", 3, {EPOCHS: 10}, 7),
        ("PRUNED", 0, {EPOCHS: 10}, 10),
        ("PRUNED", 3, {}, 0),
        ("PRUNED", 0, {EPOCHS: 10, DUPLICATE_OF: 0}, 0),
        ("COMPLETE", 10, {EPOCHS: 10}, 0),
        ("FAIL", 3, {EPOCHS: 10}, 0),
    ],
)
def test_epochs_are_saved_by_pruning_alone(state, steps, attributes, saved):
    assert spending_of(ended(state, 1.0, steps=steps, **attributes)).epochs_saved == saved


def test_a_resumed_training_counts_with_all_of_its_attempts_and_a_duplicate_with_none():
    savings, study = Savings(), optuna.create_study(direction="maximize")
    study.add_trial(ended("FAIL", 8.0, steps=2))
    study.add_trial(ended("COMPLETE", 12.0, steps=4, **{RETRY_OF: 0, EPOCHS: 4, TRAINED_EPOCHS: 2}))
    study.add_trial(ended("COMPLETE", steps=0, **{DUPLICATE_OF: 1, EPOCHS: 4}))
    study.add_trial(ended("FAIL", 3.0, steps=1))
    study.add_trial(ended("PRUNED", 2.0, steps=3, **{RETRY_OF: 3, EPOCHS: 4, TRAINED_EPOCHS: 2}))
    for trial in study.trials:
        savings.add(trial)
    assert savings.seconds == (8 + 12) - (3 + 2)
    assert (savings.spent.epochs_saved, savings.spent.epochs) == (1, 2 + 2 + 1 + 2)
    assert savings.gpu_seconds is None
    assert savings.spent.training == 8 + 12 + 3 + 2, "what was spent is that of all attempts"


@pytest.mark.parametrize(("steps", "attributes"), [(3, {}), (0, {TRAINED_EPOCHS: 3})])
def test_a_trial_enqueued_with_the_note_of_a_duplicate_counts_if_it_trained(steps, attributes):
    trial = ended("COMPLETE", 6.0, steps=steps, **{EPOCHS: 3, DUPLICATE_OF: 0, **attributes})
    assert spending_of(trial).epochs == 3
    savings = Savings()
    for one in (trial, ended("PRUNED", 2.0, steps=1, **{EPOCHS: 3})):
        savings.add(one)
    assert savings.seconds == 4


def test_a_meter_adds_its_gpu_seconds_to_those_before(monkeypatch):
    now, written = [100.0], {}
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    meter = Meter(TRAIN_SECONDS, 0.5, 7.0, written.__setitem__)
    now[0] = 103.0
    meter.store(after=5)
    assert written == {}
    now[0] = 106.0
    meter.store(after=5)
    assert written == {TRAIN_SECONDS: 6.0, GPU_SECONDS: 10.0}

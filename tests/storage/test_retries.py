"""Parameters whose processes die: found, tried again, given up."""

import datetime
import os
import time
import warnings

import optuna
import pytest
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState

from optuna_nas.storage import Heartbeat
from optuna_nas.storage.attributes import (
    ATTEMPT,
    CHECKPOINT,
    CHECKPOINTED,
    DUPLICATE_OF,
    REASON,
    REQUEUED,
    RESUMES,
    RETRY_OF,
    TRAIN_SECONDS,
    attribute,
    has_attribute,
)
from optuna_nas.storage.database import connect
from optuna_nas.storage.optuna_rdb import BatchingStorage, FlatStorage
from optuna_nas.storage.quota import Quota
from optuna_nas.storage.retries import (
    INTERRUPTED,
    CheckpointNotes,
    Silent,
    TryAgain,
    attempt_of,
    fail_dead,
    fail_stale,
    requeue_interrupted,
    retry_on_fail,
)
from storage.conftest import asked, fall_silent, new_study


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_a_retry_of_an_enqueued_trial_has_its_parameters(storage):
    study = new_study(storage)
    study.enqueue_trial({"x": 0.25})
    trial = asked(study)
    fail_dead(study, study.trials[trial.number])  # before it has suggested anything
    study.optimize(lambda retried: retried.suggest_float("x", 0, 1), n_trials=1)
    assert study.trials[1].value == 0.25
    assert RESUMES in study.trials[1].user_attrs


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_a_trial_that_never_gave_a_sign_of_life_is_tried_again(postgresql):
    storage = connect(postgresql, Heartbeat(1, 3))
    study = new_study(storage)
    trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
    heard = []
    silent = Silent(study, grace=0.2)
    silent.reap()
    assert study.trials[0].state == TrialState.RUNNING, "it may have begun only just now"
    time.sleep(0.3)
    silent.reap(lambda study, dead: heard.append(dead.number))
    dead, again = study.trials
    assert (dead.state, again.state, heard) == (TrialState.FAIL, TrialState.WAITING, [0])
    study.optimize(lambda retried: retried.suggest_float("x", 0, 1), n_trials=1)
    assert study.trials[1].params == trial.params


def test_a_clock_that_was_set_kills_nobody(postgresql):
    study = new_study(connect(postgresql, Heartbeat(1, 3)))
    now = datetime.datetime.now()
    for moment in (now - datetime.timedelta(days=1), now + datetime.timedelta(days=1)):
        trial = optuna.create_trial(state=TrialState.RUNNING)
        trial.datetime_start = moment
        study._storage.create_new_trial(study._study_id, trial)
    silent = Silent(study, grace=60)
    silent.reap()
    silent.reap()
    fail_stale(study)
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING] * 2


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_a_dead_trial_is_tried_three_times_and_then_counts_as_failed(postgresql):
    told = []
    storage = connect(postgresql, Heartbeat(1, 1), lambda study, trial: told.append(trial.number))
    study = new_study(storage)
    for _ in range(3):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        storage.record_heartbeat(trial._trial_id)
        fall_silent(storage, trial)
        fail_stale(study)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL] * 3
    assert len({trial.params["x"] for trial in study.trials}) == 1
    assert [trial.user_attrs.get(RESUMES) for trial in study.trials] == [None, 0, 0]
    assert Quota(study, 5).look().finished == 1
    assert told == [0, 1, 2]


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
@pytest.mark.parametrize("by_silence", [False, True])
def test_a_trial_fails_and_is_tried_again_at_once_or_neither(by_silence, study, monkeypatch):
    trial = asked(study)
    trial.suggest_float("x", 0, 1)
    find = found_by_silence if by_silence else found_by_number
    with monkeypatch.context() as patch:
        patch.setattr(BatchingStorage, "_get_prepared_new_trial", killed)
        with pytest.raises(KeyboardInterrupt):
            find(study, trial)
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING], "else nobody tries its parameters again"
    find(study, trial)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.WAITING]
    assert study.ask().suggest_float("x", 0, 1) == trial.params["x"]


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_an_interrupted_trial_is_tried_again_once_it_fails(study):
    trial = asked(study)
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr(REQUEUED, True)
    retry_on_fail(trial)
    study.tell(trial, state=TrialState.FAIL)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.WAITING]
    requeue_interrupted(study)
    assert len(study.trials) == 2


def killed(*arguments):
    raise KeyboardInterrupt


# -- one counter -------------------------------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path):
    """A study whose dead are found by heartbeats and by process numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        storage = BatchingStorage(
            f"sqlite:///{tmp_path / 'shared.db'}",
            heartbeat_interval=60,
            grace_period=120,
            heartbeat_stale_trial_callback=TryAgain(),
        )
    return new_study(FlatStorage(storage))


def tried(study, *attempts):
    """Return how often the same parameters are tried, whose attempts do so before their processes die, one by one.

    The last of the attempts is repeated until the parameters are given up, ten times at most.
    """
    study.enqueue_trial({"x": 0.5})
    for number in range(10):
        trial = asked(study)
        if trial.suggest_float("x", 0, 1) != 0.5:
            return number
        attempts[min(number, len(attempts) - 1)](study, trial)
    return 10


def found_by_number(study, trial):
    """Die; found by the number of the process."""
    fail_dead(study, study.trials[trial.number])


def found_by_silence(study, trial):
    """Die; found by the missing heartbeat."""
    study._storage.record_heartbeat(trial._trial_id)
    fall_silent(study._storage, trial)
    fail_stale(study)


def after(step, found=found_by_number):
    """Report so many steps, and die."""

    def die(study, trial):
        for number in range(1, step + 1):
            trial.report(0.5, number)
        found(study, trial)

    return die


FINDERS = {"d": found_by_number, "h": found_by_silence}


@pytest.mark.filterwarnings("ignore:Heartbeat of storage", "ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("finders", ["d", "h", "dh", "hd", "hhd", "ddh", "dhh"])
def test_parameters_are_tried_three_times_whoever_finds_the_dead(study, finders):
    assert tried(study, *(FINDERS[finder] for finder in finders)) == 3
    dead = study.trials[:3]
    assert [trial.state for trial in dead] == [TrialState.FAIL] * 3
    assert RetryHeartbeatStaleTrialCallback.retry_history(dead[2]) == [0, 1]
    assert RetryHeartbeatStaleTrialCallback.retried_trial_number(dead[2]) == 0
    assert Quota(study, 5).look().finished == 1, "two of them another trial tries again"


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
@pytest.mark.parametrize("found", [found_by_number, found_by_silence])
@pytest.mark.parametrize(
    ("steps", "n_tried"),
    [
        ([5], 3),  # the same point every time
        ([12, 14, 17], 5),  # twice more at 17
        ([12, 12, 14], 5),
        ([12, 0, 12], 3),  # no further than the first
        ([12, 0, 13], 5),
        ([0, 1], 4),
        (range(10), 10),
    ],
)
def test_an_attempt_that_got_further_than_all_before_is_the_first_at_a_new_point(study, steps, n_tried, found):
    assert tried(study, *(after(step, found) for step in steps)) == n_tried


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_a_checkpoint_counts_as_a_report_does(study, tmp_path):
    file = tmp_path / "checkpoint"

    def begun(trial):
        notes = CheckpointNotes(trial, file)
        notes.after_step(0.1)
        return notes

    def gets_on(fraction):
        def die(study, trial):
            notes = begun(trial)
            notes.after_step(fraction)
            file.write_text(str(fraction))
            os.utime(file, ns=(0, round(1e9 * fraction)))
            notes.after_step(fraction + 0.01)
            found_by_number(study, study.trials[trial.number])

        return die

    def stays(study, trial):
        begun(trial).after_step(0.9)
        found_by_number(study, trial)

    assert tried(study, gets_on(0.2), gets_on(0.3), stays) == 4
    assert [attribute(trial.user_attrs, CHECKPOINTED) for trial in study.trials[:4]] == [0.2, 0.3, None, None]


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_what_a_killed_process_has_checkpointed_is_in_the_study_already(study, tmp_path):
    trial, file = asked(study), tmp_path / "checkpoint"
    notes = CheckpointNotes(trial, file)
    notes.after_step(0.5)
    file.touch()
    notes.after_step(0.6)
    other = optuna.load_study(study_name=study.study_name, storage=connect(study._storage._backend.url))
    assert attribute(other.trials[0].user_attrs, CHECKPOINTED) == 0.5


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_being_stopped_on_purpose_does_not_count(study):
    def stopped(study, trial):
        trial.set_user_attr(REASON, INTERRUPTED)
        trial.set_user_attr(REQUEUED, True)
        study.tell(trial.number, state=TrialState.FAIL)
        requeue_interrupted(study)

    def stopped_and_killed(study, trial):
        trial.set_user_attr(REASON, INTERRUPTED)
        found_by_number(study, study.trials[trial.number])

    assert tried(study, found_by_number, stopped, stopped_and_killed, stopped, found_by_number) == 6
    assert [
        attribute(trial.user_attrs, REASON, "").startswith("its process has ended") for trial in study.trials[:6]
    ] == [
        True,
        False,
        False,
        False,
        True,
        True,
    ]
    assert "attempt 3 of 3" in attribute(study.trials[5].user_attrs, REASON)


@pytest.mark.parametrize(
    ("user", "system", "attempt"),
    [
        ({}, {}, 1),
        ({ATTEMPT: 2, RETRY_OF: 4}, {}, 2),
        ({}, {"retry_history": [1, 2]}, 3),  # in an older study, or by Optuna's callback on a storage of the user's
        ({ATTEMPT: 2, RETRY_OF: 4}, {"retry_history": [5]}, 3),
        ({ATTEMPT: 2, RETRY_OF: 4}, {"retry_history": [3, 4, 5]}, 3),
        ({ATTEMPT: 2, RETRY_OF: 4}, {"retry_history": [3, 4]}, 2),
    ],
)
def test_attempts_of_others_are_counted_too(user, system, attempt):
    assert attempt_of(optuna.create_trial(value=1.0, user_attrs=user, system_attrs=system)) == attempt


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
@pytest.mark.parametrize("found", [found_by_number, found_by_silence])
def test_the_users_attributes_go_along_and_what_the_dead_attempt_found_out_does_not(study, found):
    trial = asked(study)
    trial.suggest_float("x", 0, 1)
    reference = {"artifact": "a", "sha256": "0" * 64}
    for key, value in {"note": "mine", DUPLICATE_OF: 3, "train_seconds": 7.0, CHECKPOINT: reference}.items():
        trial.set_user_attr(key, value)
    found(study, trial)
    again = study.trials[1].user_attrs
    assert {"note": "mine", CHECKPOINT: reference, RESUMES: 0}.items() <= again.items()
    assert not has_attribute(again, DUPLICATE_OF)
    assert not has_attribute(again, TRAIN_SECONDS)

"""The total of trials: any number of workers fill it, none exceeds it."""

import threading
import time
from contextlib import suppress

import optuna
import pytest
from optuna.trial import TrialState

from optuna_nas.storage import Heartbeat
from optuna_nas.storage import quota as quota_module
from optuna_nas.storage.attributes import REQUEUED
from optuna_nas.storage.database import connect
from optuna_nas.storage.quota import Quota, Surplus
from optuna_nas.storage.retries import requeue_interrupted
from storage.conftest import asked, new_study


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_of_two_trials_too_many_the_later_step_back(storage, monkeypatch):
    monkeypatch.setattr(quota_module, "RIVAL_SECONDS", 0)
    study = new_study(storage)
    quota, trials = Quota(study, 2), [asked(study) for _ in range(4)]
    for trial in trials[2:]:
        with pytest.raises(Surplus):
            quota.claim(trial)
    for trial in trials[:2]:
        quota.claim(trial)
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.RUNNING] * 2 + [TrialState.WAITING] * 2
    assert quota.room() == 0


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_an_earlier_trial_steps_back_from_a_later_one_that_goes_on(storage, monkeypatch):
    monkeypatch.setattr(quota_module, "RIVAL_SECONDS", 0)
    study = new_study(storage)
    first, _ = asked(study), asked(study)  # the second has looked before the first was there
    with pytest.raises(Surplus):
        Quota(study, 1).claim(first)
    assert [trial.state for trial in study.trials] == [TrialState.WAITING, TrialState.RUNNING]


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_what_another_trial_goes_on_with_does_not_count(storage):
    study = new_study(storage)
    for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL):
        study.add_trial(optuna.create_trial(state=state, value=1.0 if state == TrialState.COMPLETE else None))
    quota = Quota(study, 5)
    assert quota.look().finished == 3
    study.add_trial(optuna.create_trial(state=TrialState.FAIL, user_attrs={REQUEUED: True}))
    assert quota.look().finished == 3
    requeue_interrupted(study)
    study.add_trial(optuna.create_trial(state=TrialState.WAITING, system_attrs={"retry_history": [2]}))
    assert quota.look().finished == 2
    assert quota.room() == 3
    assert quota.missing() == 3


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
@pytest.mark.parametrize("queued", [0, 2])
def test_of_two_workers_that_saw_the_last_free_place_one_begins_and_nothing_is_left_in_the_queue(address, queued):
    studies = [new_study(connect(address, Heartbeat(1, 3)))]
    for _ in range(queued):
        studies[0].enqueue_trial({"x": 0.5})
    name = studies[0].study_name
    studies.append(optuna.load_study(study_name=name, storage=connect(address, Heartbeat(1, 3))))
    quotas = [Quota(study, 1) for study in studies]
    first, second = [quota.look() for quota in quotas]
    with quotas[0].admitting(first):
        studies[0].ask()
    with quotas[1].admitting(second), pytest.raises(Surplus):
        studies[1].ask()
    states = [trial.state for trial in studies[1].trials]
    assert states == [TrialState.RUNNING] + [TrialState.WAITING] * max(0, queued - 1)
    studies[1].ask()  # a study that is used without a search has no total
    assert len(studies[1].trials) == 2


def test_the_interrupted_are_tried_again_only_as_far_as_trials_are_missing(storage):
    study = new_study(storage)
    for _ in range(2):
        study.add_trial(optuna.create_trial(state=TrialState.FAIL, user_attrs={REQUEUED: True}))
    study.add_trial(optuna.create_trial(value=1.0))
    for total, waiting in ((1, 0), (2, 1), (3, 2)):
        Quota(study, total).requeue_interrupted()
        assert Quota(study, total).look().waiting == waiting


def test_twelve_threads_of_their_own_storages_do_not_exceed_a_total_of_seven(postgresql):
    first = new_study(connect(postgresql, Heartbeat(1, 60)))
    ran, started = [], threading.Barrier(12)

    def run():
        storage = connect(postgresql, Heartbeat(1, 60))
        study = optuna.load_study(study_name=first.study_name, storage=storage)
        quota = Quota(study, 7)

        def objective(trial):
            quota.claim(trial)
            ran.append(trial.number)
            time.sleep(0.05)
            return trial.suggest_float("x", 0, 1)

        started.wait()
        while quota.missing():
            if quota.room():
                with suppress(Surplus):
                    study.optimize(objective, n_trials=1)
            time.sleep(0.02)

    threads = [threading.Thread(target=run) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ran) == 7
    states = [trial.state for trial in first.trials]
    assert states.count(TrialState.COMPLETE) == 7
    assert set(states) <= {TrialState.COMPLETE, TrialState.WAITING}

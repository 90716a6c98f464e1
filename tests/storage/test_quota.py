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


def test_twelve_threads_of_their_own_storages_do_not_exceed_a_total_of_seven(postgresql):
    first = new_study(connect(postgresql, Heartbeat(1, 3)))
    ran, started = [], threading.Barrier(12)

    def run():
        storage = connect(postgresql, Heartbeat(1, 3))
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

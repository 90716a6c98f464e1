"""Finished trials are read once each, by any number of threads, from any storage."""

import pickle
import threading

import optuna
import pytest
from optuna.trial import TrialState

from optuna_nas.storage.attributes import hash_of
from optuna_nas.storage.database import connect
from optuna_nas.storage.finished import FinishedIndex, FinishedTrials, PerStudy, PicklesSettings


def value_of(trial):
    return trial.value if trial.state == TrialState.COMPLETE else None


@pytest.fixture(params=["memory", "ours", "optuna's", "journal"])
def study(request, tmp_path):
    address = f"sqlite:///{tmp_path / 'study.db'}"
    if request.param == "ours":
        storage = connect(address)
    elif request.param == "optuna's":
        storage = address
    elif request.param == "journal":
        backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal"))
        storage = optuna.storages.JournalStorage(backend)
    else:
        storage = None
    return optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(seed=0))


def trials_of(study):
    return study.get_trials(deepcopy=False)


def test_trials_are_found_by_their_key_once_they_have_finished(study):
    index = FinishedIndex(value_of)
    running = study.ask()
    for value in (1.0, 2.0):
        study.add_trial(optuna.create_trial(value=value))
    assert [trial.number for trial in index.update(trials_of(study))] == [0]
    assert [trial.number for trial in index.of(1.0)] == [1]
    study.tell(running, 1.0)
    study.add_trial(optuna.create_trial(state=TrialState.FAIL))
    assert index.update(trials_of(study)) == []
    assert [trial.number for trial in index.of(1.0)] == [0, 1], "by number, though trial 0 finished last"
    assert {key: len(trials) for key, trials in index.groups().items()} == {1.0: 2, 2.0: 1}
    assert index.of(3.0) == ()


def test_each_trial_is_looked_at_once(study):
    looked = []
    index = FinishedIndex(lambda trial: looked.append(trial.number))
    for _ in range(20):
        study.optimize(lambda trial: 1.0, n_trials=1)
        index.update(trials_of(study))
        index.update(trials_of(study))
    assert looked == list(range(20))


def test_threads_share_an_index(study):
    looked, lock = [], threading.Lock()

    def key(trial):
        with lock:
            looked.append(trial.number)
        return trial.number % 3

    index = FinishedIndex(key)

    def objective(trial):
        index.update(trials_of(trial.study))
        return 1.0

    study.optimize(objective, n_trials=40, n_jobs=4)
    index.update(trials_of(study))
    assert sorted(looked) == list(range(40))
    assert [trial.number for trial in index.of(1)] == list(range(1, 40, 3))


def test_a_shorter_list_of_a_slower_thread_changes_nothing():
    study, finished = optuna.create_study(), FinishedTrials()
    study.optimize(lambda trial: 1.0, n_trials=3)
    shorter = trials_of(study)
    study.optimize(lambda trial: 1.0, n_trials=2)
    assert len(finished.take(trials_of(study))) == 5
    assert finished.take(shorter) == []
    assert finished.take(trials_of(study)) == []


def test_a_state_belongs_to_one_study_of_one_storage_and_goes_with_it():
    states, first = PerStudy(list), optuna.create_study()
    states.of(first).append(1)
    other = optuna.create_study()  # of the same number, in another storage
    assert other._study_id == first._study_id
    assert (states.of(first), states.of(other)) == ([1], [])
    second = optuna.create_study(storage=first._storage)
    assert states.of(second) == []
    assert pickle.loads(pickle.dumps(states)).of(first) == []


class Counter(PicklesSettings):
    def __init__(self, step):
        self.step = step
        super().__init__()

    def _init_state(self):
        super()._init_state()
        self.lock = threading.Lock()
        self.count = 0


def test_settings_are_pickled_and_state_is_made_anew():
    counter = Counter(2)
    counter.count = 5
    copied = pickle.loads(pickle.dumps(counter))
    assert (copied.step, copied.count) == (2, 0)
    copied.count = 7
    assert pickle.loads(pickle.dumps(copied)).count == 0


def test_a_hash_is_the_same_in_every_process():
    assert hash_of("architecture") == 2223572392165347174

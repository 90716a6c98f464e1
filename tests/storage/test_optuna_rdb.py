"""Optuna's storage with fewer transactions: Optuna's own suite, what is written when, connections, heartbeats."""

import pickle
import time
import warnings

import numpy as np
import optuna
import pytest
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import TrialState

from optuna_nas.storage import Heartbeat
from optuna_nas.storage.database import connect
from optuna_nas.storage.optuna_rdb import BatchingStorage, FlatStorage, backend_of
from optuna_nas.storage.retries import fail_stale
from storage.conftest import fall_silent, new_study


def test_connections_are_closed_when_nobody_holds_the_storage(address, open_connections):
    storage = connect(address)
    study = new_study(storage)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    assert open_connections
    del storage, study
    assert not open_connections


def test_connections_of_a_storage_that_came_from_another_process_are_closed_too(address, open_connections):
    storage = pickle.loads(pickle.dumps(connect(address)))
    new_study(storage)
    assert open_connections
    del storage
    assert not open_connections


def test_a_forked_process_leaves_the_connections_of_its_parent_alone(address, open_connections, monkeypatch):
    storage = connect(address)
    engine = storage._backend.engine
    before = list(open_connections)
    with monkeypatch.context() as patch, engine.connect():
        patch.setattr("os.getpid", lambda: 1)
        del storage
    assert open_connections == before
    for connection in before:
        connection.close()


def test_connections_to_what_is_no_database_are_closed(tmp_path, open_connections, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    (tmp_path / "text").write_text("This is no database at all. " * 50)
    with pytest.raises(ConnectionError, match="not a database"):
        connect(f"sqlite:///{tmp_path / 'text'}")
    assert not open_connections


def transactions(storage, objective):
    """Return how many transactions a second trial commits (the first compares distributions)."""
    commits = []
    study = new_study(storage)
    study.optimize(objective, n_trials=1)
    sqlalchemy.event.listen(storage._backend.engine, "commit", commits.append)
    study.optimize(objective, n_trials=1)
    return len(commits), study


def delayed(trial):
    """Let a trial be written as those of a search."""
    if (backend := backend_of(trial.study)) is not None:
        backend.delay(trial._trial_id)


def many_writes(trial):
    delayed(trial)
    for edge in range(28):
        trial.suggest_categorical(f"normal/{edge}", ["a", "b", "c"])
    for name in range(10):
        trial.set_user_attr(f"note {name}", name)
    trial.report(0.5, 1)
    return 1.0


def test_a_trial_of_28_parameters_writes_them_at_once(postgresql):
    plain, ours = optuna.storages.get_storage(postgresql), connect(postgresql, Heartbeat(60, 120))
    n_plain, there = transactions(plain, many_writes)
    n_ours, here = transactions(ours, many_writes)
    assert n_plain >= 28 + 10 + 2
    assert n_ours <= n_plain - 30
    other = optuna.load_study(study_name=here.study_name, storage=postgresql)
    assert [trial.params for trial in other.trials] == [trial.params for trial in there.trials]
    assert other.trials[1].user_attrs == {f"note {name}": name for name in range(10)}


def test_parameters_are_there_for_others_with_the_first_thing_that_is_none(postgresql):
    storage = connect(postgresql, Heartbeat(60, 120))
    study = new_study(storage)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)

    def objective(trial):
        delayed(trial)
        value = trial.suggest_float("x", 0, 1)
        other = connect(storage._backend.url)
        trial.set_user_attr("note", 1)
        seen = optuna.load_study(study_name=study.study_name, storage=other).trials[1]
        assert seen.params == {"x": value}
        assert seen.user_attrs == {"note": 1}
        trial.set_user_attr("later", 2)
        assert trial.user_attrs["later"] == 2
        return value

    study.optimize(objective, n_trials=1)
    assert study.trials[1].user_attrs == {"note": 1, "later": 2}


def test_what_a_database_did_not_take_is_written_by_the_next_attempt(postgresql, monkeypatch):
    storage = connect(postgresql, Heartbeat(60, 120))
    study, write, fails = new_study(storage), BatchingStorage._write, [True]
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)

    def flaky(self, session, trial_id, delayed):
        write(self, session, trial_id, delayed)
        if fails and fails.pop():
            raise StorageInternalError("the database is away")

    monkeypatch.setattr(BatchingStorage, "_write", flaky)

    def objective(trial):
        delayed(trial)
        value = trial.suggest_float("x", 0, 1)
        storage.record_heartbeat(trial._trial_id)  # its thread swallows the error
        trial.set_user_attr("note", 1)
        return value

    study.optimize(objective, n_trials=1)
    trial = study.trials[1]
    assert not fails
    assert trial.params == {"x": trial.value}
    assert trial.user_attrs == {"note": 1}


@pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed to be used with")
@pytest.mark.parametrize("heartbeat", [None, Heartbeat(60, 120)])
def test_what_is_asked_here_may_be_told_elsewhere(postgresql, heartbeat):
    study = new_study(connect(postgresql, heartbeat))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    asked = study.ask()
    value = asked.suggest_float("x", 0, 1)
    there = optuna.load_study(study_name=study.study_name, storage=postgresql)
    assert there.trials[1].params == {"x": value}
    asked.set_user_attr("note", "kept")
    there.tell(1, 1.0)
    assert there.trials[1].user_attrs == {"note": "kept"}


def test_an_attribute_is_written_as_it_was_and_must_be_json(postgresql):
    storage = connect(postgresql, Heartbeat(60, 120))
    study = new_study(storage)

    def objective(trial):
        delayed(trial)
        with pytest.raises(TypeError):
            trial.set_user_attr("array", np.float32(1))
        grows = [1]
        trial.set_user_attr("list", grows)
        grows.append(2)
        return 1.0

    study.optimize(objective, n_trials=1)
    assert study.trials[0].user_attrs == {"list": [1]}


def test_a_trial_that_goes_back_to_the_queue_has_a_fresh_heartbeat_when_it_is_taken(postgresql):
    storage = connect(postgresql, Heartbeat(60, 5))
    study = new_study(storage)
    study.enqueue_trial({"x": 0.5})
    waiting = study.trials[0]._trial_id
    storage.set_trial_state_values(waiting, TrialState.RUNNING)
    storage.set_trial_state_values(waiting, TrialState.WAITING)
    time.sleep(6.1)
    storage.set_trial_state_values(waiting, TrialState.RUNNING)
    fail_stale(study)
    assert study.trials[0].state == TrialState.RUNNING


def test_a_deleted_study_leaves_nothing(storage):
    first = new_study(storage)
    first.optimize(lambda trial: 1.0, n_trials=2)
    optuna.delete_study(study_name=first.study_name, storage=storage)
    assert new_study(storage).trials == []


def test_a_trial_that_has_finished_takes_nothing(storage):
    study = new_study(storage)
    study.optimize(lambda trial: 1.0, n_trials=1)
    with pytest.raises(UpdateFinishedTrialError):
        storage.set_trial_user_attr(study.trials[0]._trial_id, "late", 1)
    running = study._storage.create_new_trial(study._study_id)
    storage._backend.delay(running)
    storage.set_trial_user_attr(running, "waits", 1)
    other = connect(storage._backend.url)
    other.set_trial_state_values(running, TrialState.FAIL)  # by a worker that thinks this one dead
    assert "waits" not in study.trials[1].user_attrs


def described(trials):
    """Return all that trials hold, in words: a NaN is not equal to itself."""
    return [
        repr(sorted((k, sorted(v.items()) if k == "intermediate_values" else v) for k, v in vars(trial).items()))
        for trial in trials
    ]


def test_trials_are_read_as_optuna_reads_them(storage):
    study = new_study(storage)

    def objective(trial):
        trial.suggest_categorical("op", ["a", None, True, 3])
        trial.suggest_float("rate", 1e-3, 1.0, log=True)
        trial.suggest_int("n", 1, 9, step=2)
        trial.set_user_attr("note", {"a": [1, None]})
        for step, value in enumerate((0.5, float("nan"), float("inf"), -float("inf"))):
            trial.report(value, 3 - step)
        if trial.number == 1:
            raise optuna.TrialPruned
        if trial.number == 2:
            raise ZeroDivisionError
        return float("inf") if trial.number == 3 else 0.25

    study.optimize(objective, n_trials=5, catch=(ZeroDivisionError,))
    study.enqueue_trial({"n": 3}, user_attrs={"who": "me"})
    study._storage.create_new_trial(study._study_id)
    study.add_trial(optuna.create_trial(value=2.0))
    several = optuna.create_study(directions=["maximize", "minimize"], storage=storage)
    several.optimize(lambda trial: (1.0, -float("inf")), n_trials=1)
    theirs = optuna.storages.get_storage(storage._backend.url)
    ours = connect(storage._backend.url)
    for name in (study.study_name, several.study_name):
        one, other = (optuna.load_study(study_name=name, storage=used) for used in (theirs, ours))
        assert described(one.trials) == described(other.trials)
        for states in ((TrialState.WAITING,), (TrialState.RUNNING, TrialState.WAITING), (TrialState.COMPLETE,), ()):
            assert described(one.get_trials(states=states)) == described(other.get_trials(states=states))
    study._storage.set_trial_state_values(study.trials[6]._trial_id, TrialState.FAIL)
    study.optimize(lambda trial: 1.0, n_trials=2)
    one, other = (optuna.load_study(study_name=study.study_name, storage=used) for used in (theirs, ours))
    assert described(one.trials) == described(other.trials), "what was unfinished before is read again"


def test_a_parameter_of_another_kind_is_refused(storage):
    study = new_study(storage)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(ValueError, match="distribution"):
        study.optimize(lambda trial: trial.suggest_categorical("x", ["a"]) and 1.0, n_trials=1)


def test_a_storage_travels_to_another_process(storage):
    study = pickle.loads(pickle.dumps(new_study(storage)))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    assert len(study.trials) == 2


# -- Optuna's own suite ------------------------------------------------------------------------------------------------


class RunningStorage(BatchingStorage):
    """Storage that delays the writes of all trials, as if a search ran them."""

    def _create_new_trial(self, study_id, template_trial=None):
        trial = super()._create_new_trial(study_id, template_trial)
        self.delay(trial._trial_id)
        return trial


class TestBatchingStorage(StorageTestCase):
    @pytest.fixture
    def storage(self, tmp_path):
        return RunningStorage(f"sqlite:///{tmp_path / 'study.db'}")


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
class TestFlatStorage(StorageTestCase):
    """With heartbeats, for only then do parameters wait."""

    @pytest.fixture
    def storage(self, tmp_path):
        return FlatStorage(RunningStorage(f"sqlite:///{tmp_path / 'study.db'}", heartbeat_interval=60))


class TestFlatStorageOnPostgreSQL(StorageTestCase):
    @pytest.fixture
    def storage(self, postgresql):
        storage = connect(postgresql, Heartbeat(60, 120))
        for study in storage.get_all_studies():  # of other tests, which have ended
            storage.delete_study(study._study_id)
        return storage


# -- heartbeats --------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_heartbeats(address):
    """Return a storage with heartbeats, and a callback for trials whose workers are silent."""

    def storage(callback=None, **options):
        options = {"heartbeat_interval": 60, "grace_period": 120, **options}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return FlatStorage(BatchingStorage(address, heartbeat_stale_trial_callback=callback, **options))

    return storage


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_who_begins_a_trial_fails_the_silent_ones_of_its_study(with_heartbeats):
    storage = with_heartbeats()
    study, other = new_study(storage), new_study(storage)
    silent, of_other, alive = study.ask(), other.ask(), study.ask()
    for trial in (silent, of_other, alive):
        storage.record_heartbeat(trial._trial_id)
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING] * 2
    fall_silent(storage, silent, of_other)
    study.optimize(lambda trial: 1.0, n_trials=1)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.RUNNING, TrialState.COMPLETE]
    assert other.trials[0].state == TrialState.RUNNING


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_a_trial_that_has_given_no_sign_of_life_yet_is_not_silent(with_heartbeats):
    study = new_study(with_heartbeats(heartbeat_interval=1, grace_period=1))
    study.ask()
    time.sleep(2.1)
    fail_stale(study)
    assert study.trials[0].state == TrialState.RUNNING


@pytest.mark.parametrize("wrong", [{"heartbeat_interval": -1}, {"heartbeat_interval": 0}, {"grace_period": -1}])
def test_intervals_that_are_not_positive_are_refused(wrong, with_heartbeats):
    with pytest.raises(ValueError, match="should be a positive integer"):
        with_heartbeats(**wrong)


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_who_asks_hears_of_a_silent_trial_once_with_all_that_it_holds(with_heartbeats):
    heard = []
    storage = with_heartbeats(lambda study, trial: heard.append((study.study_name, trial)))
    study = new_study(storage)
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr("note", "mine")
    storage.record_heartbeat(trial._trial_id)
    fall_silent(storage, trial)
    fail_stale(study)
    fail_stale(study)
    ((name, dead),) = heard
    assert (name, dead.state, dead.params) == (study.study_name, TrialState.FAIL, trial.params)
    assert dead.user_attrs == {"note": "mine"}


@pytest.mark.filterwarnings("ignore:Heartbeat of storage", "ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("inherit", [False, True])
@pytest.mark.parametrize("max_retry", [None, 0, 1])
def test_optunas_own_retries_work_as_on_its_own_storage(max_retry, inherit, with_heartbeats):
    retries = RetryHeartbeatStaleTrialCallback(max_retry, inherit_intermediate_values=inherit)
    storage = with_heartbeats(retries)
    study = new_study(storage)
    trial = study.ask()
    trial.suggest_float("x", -1, -1)
    trial.report(0.5, 1)
    storage.record_heartbeat(trial._trial_id)
    fall_silent(storage, trial)
    study.optimize(lambda trial: 1.0, n_trials=1)
    dead, again = study.trials
    assert retries.retried_trial_number(again) == (None if max_retry == 0 else 0)
    if max_retry != 0:
        assert (again.params, again.distributions) == (dead.params, dead.distributions)
        assert again.user_attrs == dead.user_attrs
        assert again.intermediate_values == (dead.intermediate_values if inherit else {})


@pytest.mark.filterwarnings("ignore:Heartbeat of storage", "ignore::optuna.exceptions.ExperimentalWarning")
def test_optunas_own_retries_end_and_begin_anew_for_the_next_parameters(with_heartbeats):
    storage = with_heartbeats(RetryHeartbeatStaleTrialCallback(max_retry=3))
    study = new_study(storage)
    for _ in range(5):
        trial = study.ask()
        storage.record_heartbeat(trial._trial_id)
        fall_silent(storage, trial)
        fail_stale(study)
    histories = [RetryHeartbeatStaleTrialCallback.retry_history(trial) for trial in study.trials]
    assert histories == [[], [0], [0, 1], [0, 1, 2], [], [4]]

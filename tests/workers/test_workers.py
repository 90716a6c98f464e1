"""Many processes on one study: who takes a trial, what is written when, who gets which GPU, what survives."""

import datetime
import pickle
import threading
import time
from contextlib import suppress
from dataclasses import replace

import numpy as np
import optuna
import pytest
import sqlalchemy
from objectives import RECIPE, make
from objectives import SPACE as SPACE_OF_IMAGES
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import TrialState

from optuna_nas.networks import load_network
from optuna_nas.search import Search, run
from optuna_nas.search.opening import open_study
from optuna_nas.search.results import summarise
from optuna_nas.space import nasbench201_space
from optuna_nas.storage import Heartbeat
from optuna_nas.storage import quota as quota_module
from optuna_nas.storage.artifacts import artifact_store, fetch_file, store_file
from optuna_nas.storage.attributes import CHECKPOINT, REQUEUED, RESUMES, WORKER, Unreachable, Unverified
from optuna_nas.storage.database import connect
from optuna_nas.storage.optuna_rdb import BatchingStorage
from optuna_nas.storage.presence import this_worker
from optuna_nas.storage.quota import Quota, Surplus
from optuna_nas.storage.retries import Silent, fail_dead, fail_stale, requeue_interrupted
from optuna_nas.training import TrainingStopped
from optuna_nas.workers import worker
from optuna_nas.workers.worker import GPUs, Job

SPACE = nasbench201_space()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.process)])
def storage(request, tmp_path):
    address = f"sqlite:///{tmp_path / 'study.db'}"
    if request.param == "postgresql":
        address = request.getfixturevalue("postgresql")
    return connect(address, Heartbeat(1, 3))


def new_study(storage):
    return optuna.create_study(storage=storage, direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))


# -- connections -------------------------------------------------------------------------------------------------------


@pytest.fixture
def address(storage):
    return storage._backend.url


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


# -- the total ---------------------------------------------------------------------------------------------------------


def asked(study):
    """Ask as a worker's trial does, whose process is known."""
    trial = study.ask()
    trial.set_user_attr(WORKER, this_worker())
    return trial


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


# -- fewer transactions ------------------------------------------------------------------------------------------------


def transactions(storage, objective):
    """Return how many transactions a second trial commits (the first compares distributions)."""
    commits = []
    study = new_study(storage)
    study.optimize(objective, n_trials=1)
    sqlalchemy.event.listen(storage._backend.engine, "commit", commits.append)
    study.optimize(objective, n_trials=1)
    return len(commits), study


def many_writes(trial):
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
        value = trial.suggest_float("x", 0, 1)
        storage.record_heartbeat(trial._trial_id)  # its thread swallows the error
        trial.set_user_attr("note", 1)
        return value

    study.optimize(objective, n_trials=1)
    trial = study.trials[1]
    assert not fails
    assert trial.params == {"x": trial.value}
    assert trial.user_attrs == {"note": 1}


def test_an_attribute_is_written_as_it_was_and_must_be_json(postgresql):
    storage = connect(postgresql, Heartbeat(60, 120))
    study = new_study(storage)

    def objective(trial):
        with pytest.raises(TypeError):
            trial.set_user_attr("array", np.float32(1))
        grows = [1]
        trial.set_user_attr("list", grows)
        grows.append(2)
        return 1.0

    study.optimize(objective, n_trials=1)
    assert study.trials[0].user_attrs == {"list": [1]}


def test_a_trial_that_goes_back_to_the_queue_has_a_fresh_heartbeat_when_it_is_taken(postgresql):
    storage = connect(postgresql, Heartbeat(60, 1))
    study = new_study(storage)
    study.enqueue_trial({"x": 0.5})
    waiting = study.trials[0]._trial_id
    storage.set_trial_state_values(waiting, TrialState.RUNNING)
    storage.set_trial_state_values(waiting, TrialState.WAITING)
    time.sleep(2.1)
    storage.set_trial_state_values(waiting, TrialState.RUNNING)
    fail_stale(study)
    assert study.trials[0].state == TrialState.RUNNING


def test_a_deleted_study_leaves_nothing(storage):
    first = new_study(storage)
    first.optimize(lambda trial: 1.0, n_trials=2)
    optuna.delete_study(study_name=first.study_name, storage=storage)
    assert new_study(storage).trials == []


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_a_retry_of_an_enqueued_trial_has_its_parameters(storage):
    study = new_study(storage)
    study.enqueue_trial({"x": 0.25})
    trial = asked(study)
    fail_dead(study, study.trials[trial.number])  # before it has suggested anything
    study.optimize(lambda retried: retried.suggest_float("x", 0, 1), n_trials=1)
    assert study.trials[1].value == 0.25
    assert RESUMES in study.trials[1].user_attrs


def test_a_trial_that_has_finished_takes_nothing(storage):
    study = new_study(storage)
    study.optimize(lambda trial: 1.0, n_trials=1)
    with pytest.raises(UpdateFinishedTrialError):
        storage.set_trial_user_attr(study.trials[0]._trial_id, "late", 1)
    running = study._storage.create_new_trial(study._study_id)
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


# -- the dead ----------------------------------------------------------------------------------------------------------


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


def test_a_folder_that_cannot_be_written_to_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    search = Search("s", SPACE, objective=lambda trial: 1.0, folder=tmp_path / "file" / "runs", tracking=None)
    with pytest.raises(ValueError, match="`folder` must be one to write to"):
        open_study(search)


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_a_dead_trial_is_tried_three_times_and_then_counts_as_failed(postgresql):
    told = []
    storage = connect(postgresql, Heartbeat(1, 1), lambda study, trial: told.append(trial.number))
    study = new_study(storage)
    for _ in range(3):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        storage.record_heartbeat(trial._trial_id)
        time.sleep(2.1)
        fail_stale(study)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL] * 3
    assert len({trial.params["x"] for trial in study.trials}) == 1
    assert [trial.user_attrs.get(RESUMES) for trial in study.trials] == [None, 0, 0]
    assert Quota(study, 5).look().finished == 1
    assert told == [0, 1, 2]


@pytest.mark.parametrize("moment", ["report", "tell", "claim"])
def test_a_moment_without_the_database_costs_no_trial_of_the_total(moment, postgresql, monkeypatch, caplog):
    def flaky(owner, name, when):
        original = getattr(owner, name)

        def fails(self, *arguments, **options):
            if when(*arguments, **options) and not failed:
                failed.append(name)
                raise StorageInternalError("the database is away")
            return original(self, *arguments, **options)

        monkeypatch.setattr(owner, name, fails)

    failed = []
    if moment == "report":
        flaky(BatchingStorage, "set_trial_intermediate_value", lambda *unused: True)
    elif moment == "tell":
        flaky(BatchingStorage, "set_trial_state_values", lambda _, state, values: state == TrialState.COMPLETE)
    else:
        flaky(Quota, "claim", lambda trial: True)

    def objective(trial):
        value = trial.suggest_float("x", 0, 1)
        trial.report(value, 1)
        return value

    search = Search(
        f"blip {moment} {time.time()}",
        SPACE,
        objective=objective,
        trials=3,
        storage=postgresql,
        tracking=None,
        heartbeat=Heartbeat(1, 1),
        pruner=optuna.pruners.NopPruner(),
        pictures=False,
    )
    result = run(search)
    states = [trial.state for trial in result.study.trials]
    assert failed
    assert states.count(TrialState.COMPLETE) == 3
    assert sorted(state.name for state in states if state != TrialState.COMPLETE) == ["FAIL"]
    assert "the storage does not answer" in caplog.text.lower()


def test_a_trial_that_was_taken_over_is_left_and_the_worker_goes_on(postgresql, caplog):
    def objective(trial):
        value = trial.suggest_float("x", 0, 1)
        if trial.number == 0:
            other = connect(postgresql)
            other.set_trial_state_values(trial._trial_id, TrialState.FAIL)  # by who thought this worker dead
        return value

    search = Search(
        f"taken {time.time()}", SPACE, objective=objective, trials=3, storage=postgresql, tracking=None, pictures=False
    )
    result = run(search)
    assert [trial.state.name for trial in result.study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert "was given to another worker" in caplog.text


def test_threads_on_sqlite_do_not_wait_for_a_trial_whose_end_was_not_written(tmp_path, monkeypatch):
    original, failed = BatchingStorage.set_trial_state_values, []

    def locked(self, trial_id, state, values=None):
        if state == TrialState.COMPLETE and len(failed) < 1 and trial_id >= 4:
            failed.append(trial_id)
            raise StorageInternalError("database is locked")
        return original(self, trial_id, state, values)

    monkeypatch.setattr(BatchingStorage, "set_trial_state_values", locked)
    search = Search(
        "locked",
        SPACE,
        objective=lambda trial: trial.suggest_float("x", 0, 1),
        trials=4,
        n_jobs=2,
        tracking=None,
        storage=f"sqlite:///{tmp_path / 'study.db'}",
        folder=tmp_path / "files",
        pictures=False,
    )
    result = run(search)
    assert failed
    assert sorted(trial.state.name for trial in result.study.trials) == ["COMPLETE"] * 4 + ["FAIL"]


# -- checkpoints that travel -------------------------------------------------------------------------------------------


def stopped_after(folder, store, n_steps):
    steps = []
    objective = make(
        folder=folder, store=store, should_stop=lambda: steps.append(1) or len(steps) >= n_steps, reuse_duplicates=False
    )
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    with pytest.raises(TrainingStopped):
        study.optimize(objective, n_trials=1)
    return study


def test_a_trial_goes_on_from_a_checkpoint_that_was_shared(tmp_path):
    store = artifact_store(str(tmp_path / "shared"))
    study = stopped_after(tmp_path / "one machine", store, n_steps=6)
    dead = study.trials[0]
    assert CHECKPOINT in dead.user_attrs
    attributes = {name: dead.user_attrs[name] for name in (CHECKPOINT,)} | {RESUMES: 0}
    study.enqueue_trial(dead.params, user_attrs=attributes)
    n_steps = []
    objective = make(folder=tmp_path / "another", store=store, should_stop=lambda: n_steps.append(1) and False)
    study.optimize(objective, n_trials=1)
    assert len(n_steps) == RECIPE.epochs * 4 - 6  # 72 images in batches of 18
    whole = optuna.create_study(direction="maximize")
    whole.enqueue_trial(dead.params)
    whole.optimize(make(), n_trials=1)
    assert study.trials[1].intermediate_values == whole.trials[0].intermediate_values
    assert [file.name[:8] for file in (tmp_path / "shared").iterdir()] == ["networks"], "no checkpoint is left"


def test_a_checkpoint_that_was_changed_is_refused_and_the_trial_starts_anew(tmp_path, caplog):
    store = artifact_store(str(tmp_path / "shared"))
    study = stopped_after(tmp_path / "one machine", store, n_steps=6)
    (file,) = (tmp_path / "shared").iterdir()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    dead = study.trials[0]
    study.enqueue_trial(dead.params, user_attrs={CHECKPOINT: dead.user_attrs[CHECKPOINT], RESUMES: 0})
    study.optimize(make(folder=tmp_path / "another", store=store), n_trials=1)
    assert study.trials[1].state == TrialState.COMPLETE
    assert "starts anew" in caplog.text
    assert "sha256" in caplog.text


def test_the_best_network_comes_from_where_it_was_trained(tmp_path):
    common = {"storage": f"sqlite:///{tmp_path / 'study.db'}", "artifacts": str(tmp_path / "shared"), "tracking": None}
    common["sampler"] = optuna.samplers.RandomSampler(seed=0)
    search = Search(
        "shared", SPACE_OF_IMAGES, objective=make(), trials=5, keep_networks=2, folder=tmp_path / "there", **common
    )
    run(search)
    assert len([file for file in (tmp_path / "shared").iterdir() if file.name.startswith("networks-")]) == 2
    here = replace(search, folder=tmp_path / "here")
    found = summarise(here, open_study(here, create=False))
    assert found.network.is_relative_to(tmp_path / "here")
    assert load_network(found.network).architecture == SPACE_OF_IMAGES.decode(found.best.params)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "a/b", "a\\b"])
def test_a_name_of_an_artifact_cannot_lead_out_of_its_folder(name, tmp_path):
    (tmp_path / "secret").write_text("secret")
    store = artifact_store(str(tmp_path / "store"))
    with pytest.raises(Unverified, match="is no name of an artifact"):
        fetch_file(store, {"artifact": name, "sha256": ""}, tmp_path / "taken")
    assert not (tmp_path / "taken").exists()


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("s3://bucket/folder", "must be a folder or s3://BUCKET"),
        ("gopher://place", "must be a folder or s3://BUCKET"),
        ("{file}/store", "must be a place to write to"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_sentence(address, sentence, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises((ValueError, ConnectionError), match=sentence):
        artifact_store(address.format(file=tmp_path / "file"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_bucket_is_a_store(tmp_path, monkeypatch):
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    try:
        with pytest.raises(ConnectionError, match="must be a place to write to"):
            artifact_store("s3://absent")
        boto3.client("s3").create_bucket(Bucket="searches")
        store = artifact_store("s3://searches")
        (tmp_path / "files").mkdir()
        (tmp_path / "files" / "file").write_bytes(b"weights")
        fetch_file(store, store_file(store, tmp_path / "files" / "file"), tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == b"weights"
        with pytest.raises(Unreachable):
            fetch_file(store, {"artifact": "gone", "sha256": ""}, tmp_path / "copy")
    finally:
        server.stop()


# -- GPUs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "per_trial", "here", "names", "share"),
    [
        (2, None, [], (None, None), 1.0),
        (2, 0, ["0"], ("", ""), 1.0),
        (2, None, ["0", "1", "2"], ("0", "1"), 1.0),
        (3, None, ["0", "1"], ("0", "1", "0"), 0.5),
        (4, 0.5, ["4", "7"], ("4", "7", "4", "7"), 0.5),
        (3, 0.3, ["0"], ("0", "0", "0"), 0.3),
        (2, 2, ["0", "1", "2", "3", "4"], ("0,1", "2,3"), 1.0),
    ],
)
def test_gpus_are_divided_among_workers(workers, per_trial, here, names, share):
    divided = GPUs.divide(workers, per_trial, here)
    assert divided.names == names
    assert divided.share == pytest.approx(share)


@pytest.mark.parametrize(
    ("workers", "per_trial", "here"), [(3, 0.5, ["0"]), (1, 1, []), (2, 2, ["0", "1", "2"]), (1, 1.5, ["0"])]
)
def test_gpus_that_are_not_there_are_one_sentence(workers, per_trial, here):
    with pytest.raises(ValueError, match="`gpus_per_trial`"):
        GPUs.divide(workers, per_trial, here)


def test_only_a_worker_runs_one_trial_at_a_time(tmp_path, monkeypatch):
    (tmp_path / "threads.py").write_text(
        "from optuna_nas import Search, nasbench201_space\n"
        "def search():\n"
        "    return Search('s', nasbench201_space(), objective=lambda trial: 1.0, n_jobs=2, tracking=None)\n"
    )
    search = Job(str(tmp_path / "threads.py")).search()
    assert search.n_jobs == 2, "`optuna-nas run` without workers does what the study says"
    monkeypatch.setattr(worker, "work", lambda search, listener, closes: search.n_jobs)
    monkeypatch.setenv("OPTUNA_NAS_GPU_SHARE", "1")  # which a worker sets
    assert worker.be_worker(search) == 1

"""Many processes on one study: a database that comes and goes, networks that travel, who gets which GPU."""

import time
from dataclasses import replace

import optuna
import pytest
from objectives import SPACE as SPACE_OF_IMAGES
from objectives import make
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

from optuna_nas.networks import load_network
from optuna_nas.search import Search, run
from optuna_nas.search.opening import open_study, read_study
from optuna_nas.search.results import summarise
from optuna_nas.space import nasbench201_space
from optuna_nas.storage import Heartbeat
from optuna_nas.storage.database import connect
from optuna_nas.storage.optuna_rdb import BatchingStorage
from optuna_nas.storage.quota import Quota
from optuna_nas.workers import worker
from optuna_nas.workers.worker import GPUs, Job

SPACE = nasbench201_space()


# -- a database that does not answer -----------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_to_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    search = Search("s", SPACE, objective=lambda trial: 1.0, folder=tmp_path / "file" / "runs", tracking=None)
    with pytest.raises(ValueError, match="`folder` must be one to write to"):
        open_study(search)


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


# -- networks that travel ----------------------------------------------------------------------------------------------


def test_the_best_network_comes_from_where_it_was_trained(tmp_path):
    common = {"storage": f"sqlite:///{tmp_path / 'study.db'}", "artifacts": str(tmp_path / "shared"), "tracking": None}
    common["sampler"] = optuna.samplers.RandomSampler(seed=0)
    search = Search(
        "shared", SPACE_OF_IMAGES, objective=make(), trials=5, keep_networks=2, folder=tmp_path / "there", **common
    )
    run(search)
    assert len([file for file in (tmp_path / "shared").iterdir() if file.name.startswith("networks-")]) == 2
    here = replace(search, folder=tmp_path / "here")
    found = summarise(here, read_study(here))
    assert found.network.is_relative_to(tmp_path / "here")
    assert load_network(found.network).architecture == SPACE_OF_IMAGES.decode(found.best.params)


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
    monkeypatch.setattr(worker, "work", lambda search, listener, **options: search.n_jobs)
    monkeypatch.setenv("OPTUNA_NAS_GPU_SHARE", "1")  # which a worker sets
    assert worker.be_worker(search) == 1

"""What the supervisor of workers does when one of them ends: by its objective, by a kill, by `study.stop()`."""

import os
import signal
import subprocess
import threading
import time

import optuna
import psutil
import pytest
from optuna.trial import TrialState
from terminal import command, here, start, wait_for, workers_of

from optuna_nas.storage.database import connect
from optuna_nas.storage.own_postgres import own_database
from optuna_nas.storage.quota import counted_trials
from optuna_nas.workers import local

pytestmark = [
    pytest.mark.process,
]

STUDY = """
import time
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
from optuna_nas import Search, nasbench201_space
from optuna_nas.storage import Heartbeat

SPACE = nasbench201_space()


def search(wrong: int = -1, stops: int = -1, seconds: float = 0.05, trials: int = 12, name: str = "ends") -> Search:
    def objective(trial):
        SPACE.suggest(trial)
        time.sleep(seconds)
        if trial.number == wrong:
            raise ValueError("this one architecture")
        if trial.number == stops:
            trial.study.stop()
        return trial.number / 100

    return Search(
        name=name, space=SPACE, objective=objective, sampler=RandomSampler(0), pruner=NopPruner(), trials=trials,
        heartbeat=Heartbeat(1, 3), pictures=False,
    )
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ends.py").write_text(STUDY)
    return tmp_path


def trials_of(address, name):
    return optuna.load_study(study_name=name, storage=connect(address)).trials


def test_one_value_error_of_an_objective_fails_one_trial(folder, postgresql):
    options = ("--storage", postgresql, "--no-mlflow", "--set", "name=wrong", "--set", "wrong=2")
    done = here("run", "ends.py", "--workers", "2", *options)
    assert done.exit_code == 0, done.output
    states = [trial.state for trial in trials_of(postgresql, "wrong")]
    assert states.count(TrialState.FAIL) == 1
    assert states.count(TrialState.COMPLETE) == 11


def test_a_study_that_stops_itself_ends_all_workers(folder, postgresql):
    options = ("--storage", postgresql, "--no-mlflow", "--set", "name=stopped", "--set", "stops=3")
    done = here("run", "ends.py", "--workers", "2", *options, "--trials", "1000")
    assert done.exit_code == 0, done.output
    assert "study.stop()" in done.output
    assert "Interrupted" not in done.output
    trials = trials_of(postgresql, "stopped")
    assert 4 <= len(trials) < 1000
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}


@pytest.fixture
def supervisor(monkeypatch):
    """A supervisor of one worker of which only the ends are looked at."""

    class Shared:
        n_succeeded = 0

    made = local._Supervisor(Shared(), local.GPUs((None,)))
    now = [0.0]
    monkeypatch.setattr(local.time, "monotonic", lambda: now[0])
    return made, now


@pytest.mark.parametrize(
    ("code", "most"), [(1, local.MAX_CRASHES), (-signal.SIGSEGV, local.MAX_CRASHES), (-signal.SIGKILL, local.MAX_KILLS)]
)
def test_crashes_of_its_own_end_soon_and_kills_late(code, most, supervisor):
    made, _ = supervisor
    worker = made._workers[0]
    for _ in range(most - 1):
        made._crashed(worker, code)
    assert 0 < worker.next_start <= local.MAX_PAUSE
    with pytest.raises(local.WorkersFailed, match=f"{most} times in a row"):
        made._crashed(worker, code)
    made._shared.n_succeeded += 1
    made._crashed(worker, code)
    assert worker.crashes + worker.kills == 1


def test_a_database_that_is_away_is_waited_for(supervisor):
    made, now = supervisor
    worker = made._workers[0]
    for _ in range(20):
        made._crashed(worker, local.AWAY)
        assert worker.next_start - now[0] <= local.MAX_PAUSE
        now[0] += local.MAX_PAUSE
    assert worker.crashes == 0
    now[0] += local.MAX_AWAY_SECONDS
    worker.error = "`storage` must answer"
    with pytest.raises(ConnectionError, match="must answer"):
        made._crashed(worker, local.AWAY)


@pytest.mark.chaos
def test_a_killed_supervisor_leaves_nothing_running_and_the_database_stops(folder):
    options = ("--workers", "2", "--no-mlflow")
    process = start("run", "ends.py", *options, "--trials", "1000", "--set", "seconds=0.2")
    data = folder / "runs/ends/postgresql"
    wait_for(lambda: len(workers_of(process)) == 2 and (data / "postmaster.pid").exists())
    server = psutil.Process(int((data / "postmaster.pid").read_text().split()[0]))
    wait_for(lambda: len([c for c in server.children() if "optuna_nas" in " ".join(c.cmdline())]) >= 3)
    workers = workers_of(process)
    process.kill()
    process.communicate()
    assert not psutil.wait_procs([*workers, server], timeout=60)[1]
    states = [trial.state for trial in trials_of(own_database(data), "ends")]
    assert TrialState.RUNNING not in states, "workers could put their trials back before the database stopped"


@pytest.mark.chaos
def test_a_worker_that_is_killed_over_and_over_does_not_end_the_others(folder, postgresql):
    options = ("--workers", "2", "--no-mlflow", "--storage", postgresql, "--set", "name=killed", "--set", "seconds=0.5")
    process = start("run", "ends.py", *options, "--trials", "20")
    over = threading.Event()

    def kill():
        while not over.wait(1):
            try:
                workers = sorted(workers_of(process), key=lambda worker: worker.create_time())
                if len(workers) == 2:
                    os.kill(workers[1].pid, signal.SIGKILL)
            except (psutil.Error, ProcessLookupError):
                time.sleep(0.1)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        _, error = process.communicate(timeout=200)
    finally:
        over.set()
        process.kill()
        thread.join()
    assert process.returncode == 0, error
    study = optuna.load_study(study_name="killed", storage=connect(postgresql))
    assert counted_trials(study) == 20
    assert {TrialState.RUNNING, TrialState.WAITING}.isdisjoint(trial.state for trial in study.trials)


def test_workers_that_cannot_be_started_are_one_sentence(folder, monkeypatch):
    long = folder / ("x" * 120)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    words = command("run", "ends.py", "--set", "trials=1", "--workers", "1", "--no-mlflow")
    ended = subprocess.run(words, capture_output=True, text=True, cwd=folder)
    assert ended.returncode != 0
    said = " ".join(ended.stderr.split())
    assert "worker 0 can't be started: AF_UNIX path too long; give TMPDIR a shorter path" in said
    assert "Traceback" not in said

"""Workers that are killed, paused and cut off from their database: what a study promises all the same."""

import os
import random
import signal
import threading
from collections import Counter

import optuna
import psutil
import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState
from servers import MLflowServer, address_of, postgresql_server
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.exc import SQLAlchemyError
from terminal import start, wait_for, workers_of

from optuna_nas.storage.database import connect
from optuna_nas.storage.quota import Quota
from optuna_nas.storage.retries import replaced_by

pytestmark = [
    pytest.mark.process,
    pytest.mark.chaos,
]

TRIALS = 200
STUDY = """
import time

from optuna.pruners import NopPruner

from optuna_nas import GHNSampler, Search, nasbench201_space
from optuna_nas.storage import Heartbeat

SPACE = nasbench201_space()


def score(architectures):
    return [len(architecture.summary) for architecture in architectures]


def objective(trial):
    SPACE.suggest(trial)
    for step in range(1, 6):
        time.sleep(0.01)
        trial.report(step / 10, step)
    return trial.number % 97 / 100


def search(trials: int = 200) -> Search:
    sampler = GHNSampler(SPACE, score=score, pool_size=1000, seed=0)
    return Search(
        name="chaos", space=SPACE, objective=objective, sampler=sampler, pruner=NopPruner(), trials=trials,
        heartbeat=Heartbeat(1, 3), pictures=False,
    )
"""


@pytest.fixture
def database():
    """A PostgreSQL of this test's, which it may restart."""
    with postgresql_server() as server:
        yield server


class Chaos(threading.Thread):
    """Kills a worker whenever a few more trials have succeeded, pauses one beyond its grace, restarts the database.

    Its pace is the study's, not the clock's: on a slow machine, too, workers live long enough to get on.
    """

    EVERY = 8  # successful trials from one blow to the next

    def __init__(self, process, database):
        super().__init__(daemon=True)
        self.process, self.database, self.over = process, database, threading.Event()
        self.did = Counter()

    def run(self):
        draw = random.Random(0)
        seen = 0
        while not self.over.wait(0.2):
            succeeded = self.succeeded()
            try:
                workers = workers_of(self.process)
                if succeeded >= seen + self.EVERY and workers:
                    seen = succeeded
                    self.strike(draw.choice(workers))
            except psutil.NoSuchProcess:  # one has just ended
                continue

    def succeeded(self):
        """Number of successful trials so far; 0 before there is a study."""
        engine = create_engine(address_of(self.database), poolclass=NullPool)
        try:
            with engine.connect() as connection:
                return connection.scalar(text("SELECT count(*) FROM trials WHERE state = 'COMPLETE'"))
        except SQLAlchemyError:
            return 0

    def strike(self, victim):
        if self.did["killed"] == 3 and not self.did["paused"]:
            victim.suspend()
            threading.Timer(5, lambda: victim.is_running() and victim.resume()).start()
            self.did["paused"] += 1
        elif self.did["killed"] == 6 and not self.did["restarted"]:
            postmaster = psutil.Process(self.database.get_pid())
            postmaster.send_signal(signal.SIGINT)  # "fast": cuts all connections
            postmaster.wait(20)
            self.database.ensure_postgres_running()
            self.did["restarted"] += 1
        else:
            victim.kill()
            self.did["killed"] += 1


@pytest.fixture
def mlflow(tmp_path):
    server = MLflowServer(tmp_path)
    server.wait()
    yield server
    server.kill()


@pytest.mark.timeout(600)  # nothing but a hang takes so long
def test_two_hundred_trials_are_two_hundred_whatever_happens_to_four_workers(tmp_path, database, mlflow, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chaos.py").write_text(STUDY)
    arguments = ("run", "chaos.py", "--workers", "4", "--storage", address_of(database), "--mlflow", mlflow.uri)
    process = start(*arguments)
    chaos = Chaos(process, database)
    chaos.start()
    try:
        output, error = process.communicate(timeout=540)
    finally:
        chaos.over.set()
        process.kill()
    assert process.returncode == 0, error
    assert chaos.did["killed"] >= 6
    assert chaos.did["paused"] == chaos.did["restarted"] == 1

    storage = connect(address_of(database))
    study = optuna.load_study(study_name="chaos", storage=storage)
    trials = study.trials
    states = Counter(trial.state for trial in trials)
    assert states[TrialState.RUNNING] == 0
    assert Quota(study, TRIALS).look().finished == TRIALS
    replaced = {number for trial in trials for number in replaced_by(trial)}
    counted = [trial for trial in trials if trial.state.is_finished() and trial.number not in replaced]
    assert len(counted) == TRIALS
    chosen = [tuple(trial.params.values()) for trial in counted if trial.params]
    assert len(set(chosen)) == len(chosen), "a candidate was used twice"
    best = max(trial.value for trial in counted if trial.state == TrialState.COMPLETE)
    assert f"{best:.4f}" in output

    client = MlflowClient(mlflow.uri)
    experiment = client.get_experiment_by_name("optuna_nas").experiment_id
    runs = client.search_runs([experiment], "tags.`optuna_nas.kind` = 'trial'", max_results=5000)
    numbers = Counter(int(run.data.tags["optuna.trial_number"]) for run in runs)
    assert set(numbers.values()) == {1}
    assert set(numbers) == {trial.number for trial in trials if trial.state.is_finished()}
    statuses = {int(run.data.tags["optuna.trial_number"]): run.info.status for run in runs}
    assert all(
        statuses[trial.number] == {"COMPLETE": "FINISHED", "FAIL": "FAILED"}[trial.state.name]
        for trial in trials
        if trial.state.is_finished()
    )
    storage._backend.engine.dispose()


LEARNING = """
import os
import time
from pathlib import Path

from optuna.pruners import NopPruner
from strategies import few_digits

from optuna_nas import SNAS, NetworkSpace, Search, SNASRecipe, SNASSampler, nasbench201_skeleton, nasbench201_space
from optuna_nas.storage import Heartbeat

SPACE, DATA = nasbench201_space(), few_digits(120)


def objective(trial):
    SPACE.suggest(trial)
    time.sleep(0.1)
    return 1.0


class LongSNAS(SNAS):
    def fit(self, *args, **kwargs):
        first = not Path("trainer").exists()
        if first:
            Path("trainer").write_text(str(os.getpid()))
        found = super().fit(*args, **kwargs)
        if first:
            time.sleep(200)  # until it is killed
        return found


def search() -> Search:
    skeleton = nasbench201_skeleton(1, 4, input_shape=DATA.input_shape, classes=DATA.classes)
    snas = LongSNAS(NetworkSpace(SPACE, skeleton), SNASRecipe(batch_size=16))
    sampler = SNASSampler(SPACE, snas, data=DATA, budget=8, n_trials=16, trials_per_round=4, seed=0)
    return Search(
        name="learning", space=SPACE, objective=objective, sampler=sampler, pruner=NopPruner(), trials=16,
        heartbeat=Heartbeat(1, 3), pictures=False,
    )
"""


def test_when_the_opener_of_a_round_is_killed_nobody_waits_and_a_later_one_goes_on(tmp_path, database, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(os.path.dirname(__file__)))
    (tmp_path / "learning.py").write_text(LEARNING)
    address = address_of(database)
    arguments = ("run", "learning.py", "--workers", "2", "--storage", address, "--no-mlflow")
    process = start(*arguments)
    storage = connect(address)

    def opener_and_others():
        trials = optuna.load_study(study_name="learning", storage=storage).trials
        return trials[0], trials[1:]

    def trains():
        opener, others = opener_and_others()
        return opener.state == TrialState.RUNNING and any(trial.state == TrialState.COMPLETE for trial in others)

    wait_for(trains)  # others have not waited for it
    told = tmp_path / "trainer"
    wait_for(lambda: told.exists() and told.read_text())
    psutil.Process(int(told.read_text())).kill()
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    study = optuna.load_study(study_name="learning", storage=storage)
    assert study.trials[0].state == TrialState.FAIL
    assert Quota(study, 16).look().finished == 16
    snapshots = [trial.number for trial in study.trials if "optuna_nas:snas:snapshot" in trial.system_attrs]
    assert snapshots, "a later opener has trained and published"
    assert min(snapshots) > 0
    assert all(trial.state != TrialState.RUNNING for trial in study.trials)
    storage._backend.engine.dispose()

"""`optuna-nas run --workers`, `create` and `worker`, as a person meets them, with a PostgreSQL of the study's own."""

import os
import re
import signal
import subprocess
import sys

import optuna
import psutil
import pytest
from optuna.trial import TrialState
from study_files import TINY
from terminal import here, start, wait_for, workers_of

from optuna_nas.storage.attributes import SETTING, VERSION, WORKER, read_json, snapshot_key
from optuna_nas.storage.database import connect
from optuna_nas.storage.own_postgres import own_database
from optuna_nas.storage.quota import Quota
from optuna_nas.storage.versions import versions
from optuna_nas.workers import local

pytestmark = [
    pytest.mark.process,
]

STUDY = """
import os, time
from optuna.pruners import NopPruner
from optuna_nas import SNAS, NetworkSpace, Search, SNASSampler, nasbench201_skeleton, nasbench201_space
from optuna_nas.storage import Heartbeat

SPACE = nasbench201_space()


def search(
    seconds: float = 0.02, trials: int = 12, fails: str = "", learns: bool = True, seed: int = 0, name: str = "fast",
    gate: str = "",
) -> Search:
    def objective(trial):
        architecture = SPACE.suggest(trial)
        while gate and not os.path.exists(gate):
            time.sleep(0.05)
        for step in range(1, 4):
            time.sleep(seconds / 3)
            trial.report(step / 10, step)
        if fails:
            raise RuntimeError(fails)
        return len(architecture.summary) / 100

    snas = None if learns else SNAS(NetworkSpace(SPACE, nasbench201_skeleton(1, 4)))
    sampler = SNASSampler(SPACE, snas, avoid_duplicates=learns, seed=seed)
    return Search(
        name=name, space=SPACE, objective=objective, sampler=sampler, pruner=NopPruner(), trials=trials,
        heartbeat=Heartbeat(1, 3), pictures=False,
    )
"""


MODULE = """
import optuna, torch
from torch import nn
from optuna_nas import (
    GHN, HMNAS, SNAS, GHNRecipe, GHNSampler, HMNASPruner, HMNASRecipe, ModuleSpace, Recipe, Search, SNASRecipe,
    SNASSampler, TensorData, choose, choose_op, choose_ops,
)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        width = choose("width", [8, 4])
        self.stem = nn.Linear(6, width)
        self.act = choose_op("act", {"relu": nn.ReLU, "deep": lambda: nn.Linear(width, width)})
        self.sums = choose_ops("sums", {"tanh": nn.Tanh, "linear": lambda: nn.Linear(width, width)})
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.sums(self.act(self.stem(x))))

SPACE = ModuleSpace(Net, example=torch.zeros(1, 6))

def search(model: str = "snas", trials: int = 8, seed: int = 0) -> Search:
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    data = TensorData.from_arrays(x.numpy(), (x[:, 0] > 0).long().numpy() + (x[:, 1] > 0).long().numpy(), name="signs")
    rounds = {"data": data, "budget": 2, "trials_per_round": 3}
    sampler, pruner = None, optuna.pruners.NopPruner()
    if model == "snas":
        sampler = SNASSampler(SPACE, SNAS(SPACE, SNASRecipe(batch_size=16)), seed=seed, **rounds)
        pruner = HMNASPruner(HMNAS(SPACE, HMNASRecipe(batch_size=16)), n_random=10, seed=seed, **rounds)
    else:
        ghn = GHN(SPACE, GHNRecipe(batch_size=16, phases=1, meta_batch=2))
        sampler = GHNSampler(SPACE, ghn, pool_size=12, seed=seed, **rounds)
    recipe = Recipe(epochs=2, batch_size=16)
    return Search(
        model, SPACE, data, recipe, sampler=sampler, pruner=pruner, trials=trials, pictures=False, cpu_threads=1
    )
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "fast.py").write_text(STUDY)
    return tmp_path


_storages = {}


@pytest.fixture(autouse=True)
def _fresh():
    _storages.clear()


def opened(address, name="fast"):
    if address not in _storages:
        _storages[address] = connect(address)
    return optuna.load_study(study_name=name, storage=_storages[address])


def states_of(address, name="fast"):
    return [trial.state for trial in opened(address, name).trials]


def test_three_workers_run_a_study_to_its_total_in_a_database_of_its_own(folder, caplog, open_connections):
    (folder / "tiny.py").write_text(TINY)
    alone = here("run", "tiny.py", "--trials", "2", "--no-mlflow")
    assert alone.exit_code == 0, alone.output
    done = here("run", "tiny.py", "--workers", "3", "--trials", "6")
    assert done.exit_code == 0, done.output
    assert "was copied to a PostgreSQL database beside it" in caplog.text
    assert not open_connections
    assert sorted(re.findall(r"trial (\d+): ", done.stdout)) == ["2", "3", "4", "5"]
    assert "tiny: the best of 6 trials" in done.stdout
    assert "Test accuracy" in done.stdout
    assert (folder / "runs/tiny/postgresql/PG_VERSION").exists()
    opened(own_database(folder / "runs/tiny/postgresql"), "tiny").enqueue_trial({})  # waits as a surplus trial does
    reported = here("report", "tiny.py")
    assert "tiny: the best of 6 trials" in reported.stdout, reported.stderr
    more = here("run", "tiny.py", "--trials", "7", "--no-mlflow")  # one process goes on with what many have begun
    assert "the best of 7 trials" in more.stdout, more.stderr


@pytest.mark.parametrize(("model", "models"), [("snas", ("snas", "hmnas")), ("ghn", ("ghn",))])
def test_two_workers_share_the_models_of_a_module(model, models, folder, postgresql):
    (folder / "net.py").write_text(MODULE)
    arguments = ("--workers", "2", "--no-mlflow", "--storage", postgresql, "--set", f"model={model}")
    done = here("run", "net.py", *arguments)
    assert done.exit_code == 0, done.output
    finished = [trial for trial in opened(postgresql, model).trials if trial.state.is_finished()]
    assert len(finished) == 8
    assert {trial.state.name for trial in finished} <= {"COMPLETE", "PRUNED"}
    assert len({trial.user_attrs[WORKER] for trial in finished}) == 2
    for name in models:
        found = [read_json(trial.system_attrs, snapshot_key(name)) for trial in finished]
        snapshots = [snapshot for snapshot in found if snapshot is not None]
        steps = [snapshot["step"] for snapshot in snapshots]
        assert 1 < len(steps) <= 3
        assert steps == sorted(steps)  # one model, which each round goes on with
        if name == "ghn":
            assert len(set(steps)) == 1  # it learns in the first round, and scores a pool in each
        else:
            assert snapshots[-1]["done"]


def test_an_objective_that_always_fails_ends_all_with_its_reason(folder, postgresql, monkeypatch):
    monkeypatch.setattr(local, "MAX_PAUSE", 0.1)
    arguments = ("--workers", "2", "--no-mlflow", "--storage", postgresql, "--set", "name=failing")
    done = here("run", "fast.py", *arguments, "--trials", "100", "--set", "fails=no luck today")
    assert done.exit_code == 1
    assert "times in a row: RuntimeError: no luck today" in done.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--workers", "0"), "`--workers` must be at least 1 but got 0."),
        (("--workers", "2", "--gpus-per-trial", "1"), "`--gpus-per-trial` 1 must leave room for 2 workers"),
        (("--gpus-per-trial", "1"), "`--gpus-per-trial` must go with --workers"),
        (("--workers", "2", "--storage", "postgresql://127.0.0.1:1/none"), "`--storage` must be the address of a"),
        (("--workers", "2", "--artifacts", "fast.py/store"), "`--artifacts` must be a place to write to"),
    ],
)
def test_bad_input_is_one_sentence(options, sentence, folder, postgresql):
    storage = () if "--storage" in options else ("--storage", postgresql)
    done = here("run", "fast.py", "--no-mlflow", *storage, *options)
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_torchrun_starts_workers_only(folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = here("run", "fast.py", "--no-mlflow")
    assert done.exit_code == 2
    assert "`torchrun` must start `optuna-nas worker` but started `run`" in done.output


def test_a_worker_joins_a_study_that_exists_and_no_other(folder, postgresql):
    options = ("--storage", postgresql, "--set", "name=joined")
    absent = here("worker", "fast.py", "--no-mlflow", *options)
    assert absent.exit_code == 2
    assert "`study` must exist but" in absent.stderr
    for _ in range(2):  # the second finds it made
        assert here("create", "fast.py", *options).exit_code == 0
    assert opened(postgresql, "joined").trials == []
    workers = [start("worker", "fast.py", "--no-mlflow", *options) for _ in range(2)]
    for worker in workers:
        output, error = worker.communicate(timeout=60)
        assert worker.returncode == 0, error
        assert "Total reached" in output
    assert states_of(postgresql, "joined").count(TrialState.COMPLETE) == 12
    other = here("worker", "fast.py", "--no-mlflow", *options, "--trials", "13", "--set", "seed=1")
    assert other.exit_code == 0, "another seed is the same setting"
    study = opened(postgresql, "joined")
    study.set_user_attr(VERSION, "0.0.1")
    wrong = here("worker", "fast.py", "--no-mlflow", *options)
    assert wrong.exit_code == 2
    assert (
        f"`optuna_nas` must be of the version that runs the study, 0.0.1, but is {versions()['optuna_nas']}"
        in wrong.stderr
    )
    study.set_user_attr(VERSION, versions()["optuna_nas"])
    study.set_user_attr(SETTING, {"space": "another"})
    wrong = here("worker", "fast.py", "--no-mlflow", *options)
    assert wrong.exit_code == 2
    assert "must be that of the existing study 'joined' but is another" in wrong.stderr


def test_ctrl_c_ends_all_workers_and_the_study_goes_on(folder, postgresql):
    options = ("--workers", "2", "--no-mlflow", "--storage", postgresql, "--set", "name=cut")
    process = start("run", "fast.py", *options, "--trials", "1000", "--set", "seconds=0.2")
    wait_for(lambda: TrialState.COMPLETE in states_of(postgresql, "cut"))
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "To resume           optuna-nas run fast.py --workers 2" in output
    states = states_of(postgresql, "cut")
    assert set(states) == {TrialState.COMPLETE}, "the running trials were ended first"
    total = len(states) + 3
    again = here("run", "fast.py", *options, "--trials", str(total))
    assert again.exit_code == 0, again.output
    assert states_of(postgresql, "cut").count(TrialState.COMPLETE) == total


def test_workers_end_with_their_supervisor_and_the_study_goes_on(folder, postgresql):
    options = ("--workers", "2", "--no-mlflow", "--storage", postgresql, "--set", "name=orphans")
    process = start("run", "fast.py", *options, "--trials", "1000", "--set", "seconds=0.2")
    wait_for(lambda: TrialState.COMPLETE in states_of(postgresql, "orphans"))
    workers = workers_of(process)
    assert len(workers) == 2
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    states = states_of(postgresql, "orphans")
    assert TrialState.RUNNING not in states, "their trials went back into the queue"
    finished = states.count(TrialState.COMPLETE)
    again = here("run", "fast.py", *options, "--trials", str(finished + 4))
    assert again.exit_code == 0, again.output
    assert states_of(postgresql, "orphans").count(TrialState.COMPLETE) == finished + 4


def test_ray_runs_two_tasks_on_one_gpu_and_starts_a_killed_one_again(folder, postgresql, monkeypatch):
    code = """
import ray
from pathlib import Path
from optuna_nas.workers import Job, run_on_ray
ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
import sys
settings = ("seconds=0.5", "name=ray", "gate=" + sys.argv[2])
result = run_on_ray(Job("fast.py", settings, storage=sys.argv[1], mirrored=False), 2, 0.5)
print("missing", result.missing, "of", len(result.study.trials))
ray.shutdown()
"""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # or tasks starve beside anything else that computes
    gate = folder / "gate"  # one task may start long after the other
    arguments = [sys.executable, "-c", code, postgresql, str(gate)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    running = []

    def two_run():
        running[:] = [t for t in opened(postgresql, "ray").trials if t.state == TrialState.RUNNING and t.params]
        return len(running) == 2

    wait_for(two_run, 120)
    before = psutil.Process(process.pid).children(recursive=True)
    shares = {psutil.Process(worker_of(trial)).environ().get("CUDA_VISIBLE_DEVICES") for trial in running}
    os.kill(worker_of(running[0]), signal.SIGKILL)
    gate.touch()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "missing 0" in output
    assert Quota(opened(postgresql, "ray"), 12).look().finished == 12
    assert TrialState.RUNNING not in states_of(postgresql, "ray")
    assert not psutil.wait_procs(before, timeout=20)[1], "no process is left"
    assert shares <= {"0", None}


def worker_of(trial):
    return int(trial.user_attrs[WORKER].split(":")[1])


def test_four_workers_choose_what_one_chooses_trial_by_trial(folder, postgresql):
    found = []
    for name, workers in (("one", "1"), ("four", "4")):
        options = ("--no-mlflow", "--storage", postgresql, "--set", f"name={name}", "--set", "learns=false")
        done = here("run", "fast.py", "--workers", workers, *options)
        assert done.exit_code == 0, done.output
        study = opened(postgresql, name)
        found.append([trial.params for trial in study.trials if trial.state.is_finished()])
    assert len(found[0]) == 12
    assert found[0] == found[1]

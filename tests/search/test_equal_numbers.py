"""What is equal, however a search is interrupted and spread over threads and processes; see docs/workers.md."""

import os
import random
import signal
import sys

import optuna
import pytest
from optuna.pruners import NopPruner
from optuna.trial import TrialState
from strategies import few_digits
from terminal import start

from optuna_nas import SNAS, CellKind, CellSpace, NetworkSpace, Recipe, Search, Skeleton, SNASSampler
from optuna_nas.storage.attributes import RETRY_OF, attribute
from optuna_nas.storage.own_postgres import own_database
from optuna_nas.storage.quota import counted_trials

TRIALS = 8
SPACE = NetworkSpace(
    CellSpace(("skip_connect", "avg_pool_3x3", "nor_conv_1x1", "nor_conv_3x3"), 2, 2, (CellKind("cell"),)),
    Skeleton(("cell",), 4, (1, 8, 8), 10, affine=False),
)


def search(folder=None, **changes):
    """Return a search whose proposals depend on seed and number of a trial only: nothing is learned from trials."""
    sampler = SNASSampler(SPACE, SNAS(SPACE), avoid_duplicates=False, seed=0)
    return Search(
        "equal", SPACE, few_digits(64), Recipe(epochs=2, batch_size=16), sampler=sampler, pruner=NopPruner(),
        trials=TRIALS, tracking=None, pictures=False, cpu_threads=1, folder=folder, **changes,
    )  # fmt: skip


def by_number(study):
    """Return parameters and value of every trial that is complete."""
    return {t.number: (t.params, t.value) for t in study.trials if t.state == TrialState.COMPLETE}


def by_params(study):
    """Return the value of every architecture, which must be one."""
    found = {}
    for params, value in by_number(study).values():
        assert found.setdefault(tuple(params.items()), value) == value
    return found


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    study = search(tmp_path_factory.mktemp("straight")).run().study
    assert len(by_params(study)) > 4
    return study


def test_four_threads_come_to_the_trials_of_one(straight, tmp_path):
    assert by_number(search(tmp_path, n_jobs=4).run().study) == by_number(straight)


class Interrupting:
    """Ends the trials of this process at a random place of one of the next, at once or after the running ones."""

    def __init__(self, draw, begun):
        self.number, self.fraction = begun + draw.randrange(3), draw.random()
        self.signal = draw.choice((signal.SIGTERM, signal.SIGINT))
        self.done = False

    def __getattr__(self, name):
        return lambda *unused: None

    def progress(self, trial_number, fraction):
        if not self.done and trial_number >= self.number and fraction >= self.fraction:
            self.done = True
            os.kill(os.getpid(), self.signal)  # which the main thread hears, as from a terminal


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n_jobs", [1, 4])
def test_a_search_interrupted_again_and_again_comes_to_the_same_values(n_jobs, seed, straight, tmp_path):
    draw, begun, interrupted = random.Random(seed), 0, []
    for _ in range(3):
        result = search(tmp_path, n_jobs=n_jobs).run(Interrupting(draw, begun))
        begun = len(result.study.trials)
        interrupted.append(result.interrupted)
    study = search(tmp_path, n_jobs=n_jobs).run().study
    assert interrupted[0]
    assert counted_trials(study) == TRIALS
    assert {t.state for t in study.trials} <= {TrialState.COMPLETE, TrialState.FAIL}
    again = {t.number for t in study.trials if attribute(t.user_attrs, RETRY_OF) is not None}
    expected, values = by_number(straight), by_params(straight)
    for number, (params, value) in by_number(study).items():
        if number in expected and number not in again:
            assert (params, value) == expected[number]  # proposed and trained as if nothing had happened
        elif tuple(params.items()) in values:
            assert value == values[tuple(params.items())]
    for trial in study.trials:
        if trial.number in again:  # what was interrupted goes on with its own parameters
            assert trial.params == study.trials[attribute(trial.user_attrs, RETRY_OF)].params


@pytest.mark.process
def test_four_processes_come_to_the_trials_of_one(straight, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    (tmp_path / "equal.py").write_text("from search.test_equal_numbers import search\n")
    process = start("run", "equal.py", "--workers", "4", "--no-mlflow")
    _, error = process.communicate()
    assert process.returncode == 0, error
    study = optuna.load_study(study_name="equal", storage=own_database(tmp_path / "runs/equal/postgresql"))
    assert by_number(study) == by_number(straight)

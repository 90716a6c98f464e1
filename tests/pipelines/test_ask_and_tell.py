"""Architectures asked for here and told there: in processes, on command lines, by Dask and joblib."""

import argparse
import json
import subprocess
import sys

import joblib
import numpy as np
import optuna
import pytest
import torch
from hypothesis import given
from optuna.artifacts import FileSystemArtifactStore
from optuna.samplers import RandomSampler
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from strategies import SPACES, architectures, few_digits
from torch import nn

from optuna_nas import (
    SNAS,
    GHNSampler,
    ModuleSpace,
    NetworkSpace,
    SNASRecipe,
    SNASSampler,
    choose,
    choose_depth,
    choose_inputs,
    choose_op,
    choose_ops,
    choose_optional,
    nasbench201_skeleton,
    nasbench201_space,
)
from optuna_nas.storage import Heartbeat
from optuna_nas.storage.attributes import SURROGATE_SCORE
from optuna_nas.storage.database import connect
from optuna_nas.storage.optuna_rdb import BatchingStorage, FlatStorage

pytestmark = [
    pytest.mark.process,
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),  # heartbeats
    pytest.mark.filterwarnings("ignore:Heartbeat of storage"),  # a trial that is asked for has none
]

CELLS = nasbench201_space()


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def n_convolutions(architectures):
    return np.array([float(str(architecture).count("conv")) for architecture in architectures])


# -- two processes -----------------------------------------------------------------------------------------------------

TELL = """
import sys
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
optuna.logging.set_verbosity(optuna.logging.ERROR)
file, kind = sys.argv[1:]
storage = JournalStorage(JournalFileBackend(file)) if kind == "journal" else f"sqlite:///{file}"
study = optuna.load_study(study_name="s", storage=storage)
study.tell(0, 0.5)
study.tell(1, state=optuna.trial.TrialState.PRUNED)
"""

STORAGES = {
    "optuna": lambda file: RDBStorage(f"sqlite:///{file}"),
    "journal": lambda file: JournalStorage(JournalFileBackend(str(file))),
    "ours": lambda file: connect(f"sqlite:///{file}"),
    "ours with heartbeats": lambda file: FlatStorage(BatchingStorage(f"sqlite:///{file}", heartbeat_interval=60)),
}


@pytest.mark.parametrize("kind", STORAGES)
def test_what_is_asked_here_and_told_there_is_whole(kind, tmp_path):
    file = tmp_path / "study"
    store = FileSystemArtifactStore(tmp_path)
    sampler = GHNSampler(CELLS, score=n_convolutions, pool_size=20, trials_per_round=10, artifact_store=store, seed=0)
    study = optuna.create_study(study_name="s", storage=STORAGES[kind](file), direction="maximize", sampler=sampler)
    rate = optuna.distributions.FloatDistribution(0.01, 0.1)
    trials = [study.ask({**CELLS.distributions(), "rate": rate}) for _ in range(2)]
    for trial in trials:
        trial.suggest_int("epochs", 1, 5)
        trial.set_user_attr("note", {"kept": True})
        trial.report(0.25, step=1)
        trial.set_user_attr("later", trial.number)
    subprocess.run([sys.executable, "-W", "ignore", "-c", TELL, file, kind], check=True)
    reader = optuna.load_study(study_name="s", storage=STORAGES[kind](file))
    for asked, told in zip(trials, reader.trials, strict=True):
        assert told.params == asked.params
        assert told.params.keys() == CELLS.distributions().keys() | {"rate", "epochs"}
        assert told.intermediate_values == {1: 0.25}
        score = n_convolutions([CELLS.decode(told.params)])[0]
        noted = {name: value for name, value in told.user_attrs.items() if not name.startswith("optuna_nas:")}
        assert noted == {"note": {"kept": True}, "later": asked.number}
        assert told.user_attrs[SURROGATE_SCORE] == score
    assert [(told.state, told.value) for told in reader.trials] == [
        (TrialState.COMPLETE, 0.5),
        (TrialState.PRUNED, 0.25),
    ]
    assert study.trials[0].state == TrialState.COMPLETE, "who asked sees what was told"


def test_a_server_keeps_what_is_told_elsewhere(postgresql):
    study = optuna.create_study(storage=connect(postgresql, Heartbeat(60, 120)), sampler=RandomSampler(seed=0))
    study.tell(study.ask(CELLS.distributions()), 1.0)  # distributions are compared with the study's once
    trial = study.ask(CELLS.distributions())
    trial.set_user_attr("note", 1)
    optuna.load_study(study_name=study.study_name, storage=postgresql).tell(1, 0.5)
    told = optuna.load_study(study_name=study.study_name, storage=postgresql).trials[1]
    assert (told.params, told.user_attrs, told.value) == (trial.params, {"note": 1}, 0.5)


def test_optunas_command_line_asks_and_tells(tmp_path):
    storage = f"sqlite:///{tmp_path / 'study.db'}"

    def optuna_says(*arguments):
        command = [sys.executable, "-W", "ignore", "-c", "from optuna.cli import main; main()", *arguments]
        done = subprocess.run([*command, "--storage", storage], capture_output=True, text=True, check=True)
        return done.stdout

    where = ("--study-name", "s")
    study = optuna.create_study(
        study_name="s", storage=storage, direction="maximize", sampler=SNASSampler(CELLS, seed=0)
    )
    asked = json.loads(optuna_says("ask", *where, "--search-space", CELLS.to_json(), "-f", "json"))
    assert CELLS.encode(CELLS.decode(asked["params"])) == asked["params"]
    optuna_says("tell", *where, "--trial-number", str(asked["number"]), "--values", "0.5")
    assert (study.trials[0].params, study.trials[0].value) == (asked["params"], 0.5)
    trial = study.ask(CELLS.distributions())  # the sampler learns from what was told
    assert study.sampler.n_outcomes(study) == 1
    assert trial.params.keys() == asked["params"].keys()


# -- command lines of users --------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Module with choices of every kind, and values of every type."""

    def __init__(self):
        super().__init__()
        width = choose("width", [8, 16])
        self.rate = choose("rate", [0.0, 0.1, 1e-5])
        self.norm = choose("norm", [None, "batch", "None of these"])
        self.stem = nn.Linear(4, width, bias=choose("bias", [True, False]))
        self.extra = choose_optional("extra", lambda: nn.Linear(width, width))
        self.act = choose_op("act", {"relu": nn.ReLU, "tanh": nn.Tanh})
        self.many = choose_ops("many", {"a": nn.Identity, "b": nn.ReLU}, least=1, most=2)
        self.deep = choose_depth("deep", lambda i: nn.Linear(width, width), 1, 3)
        self.reads = choose_inputs("reads", 2, least=0, most=2)
        self.head = nn.Linear(width, 1)

    def forward(self, x):
        x = self.deep(self.many(self.act(self.extra(self.stem(x)))))
        return self.head(self.reads([x, x]))


MODULES = ModuleSpace(Net, example=torch.zeros(1, 4))


def parsed(space, words):
    parser = argparse.ArgumentParser()
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--verbose", action="store_true")
    for path in space.distributions():
        parser.add_argument(f"--{path}")
    return vars(parser.parse_args(words))


@pytest.mark.parametrize("name", [*SPACES, "module"])
def test_arguments_of_a_program_give_the_architecture(name):
    space = {**SPACES, "module": MODULES}[name]

    @given(architectures(space, connected=False))
    def round_trip(architecture):
        words = [f"--{path}={choice}" for path, choice in space.encode(architecture).items()]
        assert space.decode(parsed(space, ["--verbose", *words])) == architecture

    round_trip()


def test_values_are_read_in_the_spelling_of_shells_and_json():
    params = MODULES.encode(MODULES.full_architecture())
    texts = {"width": "16", "rate": "0", "norm": "null", "bias": "false"}
    architecture = MODULES.decode({**params, **texts})
    typed = {"width": 16, "rate": 0.0, "norm": None, "bias": False}
    assert MODULES.encode(architecture) == {**params, **typed}
    assert MODULES.decode({**params, **texts, "rate": "1e-05", "bias": "true"})["rate"] == ("1e-05",)
    assert MODULES.decode({**params, "rate": "0.00001"})["rate"] == ("1e-05",)
    assert MODULES.decode({**params, "norm": "batch"})["norm"] == ("batch",)
    with pytest.raises(ValueError, match=r"`params\['bias'\]` must be one of the space's 2 choices but is '1'"):
        MODULES.decode({**params, "bias": "1"})
    with pytest.raises(ValueError, match=r"`params\['rate'\]` must be one of the space's 3 choices but is '0.3'"):
        MODULES.decode({**params, "rate": "0.3"})


def test_an_argument_that_was_not_given_is_named():
    words = [f"--{path}=none" for path in list(CELLS.distributions())[1:]]
    with pytest.raises(ValueError, match="`params` must hold every path of the space but lacks 'cell_0_1'"):
        CELLS.decode(parsed(CELLS, words))


# -- many processes ----------------------------------------------------------------------------------------------------


def made_worker(space, address, sampler):
    """Return a function that asks and tells in its own process, which does not know this file."""

    def work(_):
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        storage = address if "://" in address else JournalStorage(JournalFileBackend(address))
        study = optuna.load_study(study_name="s", storage=storage, sampler=sampler)
        trial = study.ask(space.distributions())
        study.tell(trial, float(str(space.decode(trial.params)).count("conv")))
        return trial.number

    return work


def place(kind, tmp_path):
    file = tmp_path / "study"
    return (f"sqlite:///{file}", f"sqlite:///{file}") if kind == "sqlite" else (str(file), STORAGES["journal"](file))


def fitted_sampler(space):
    """Return a sampler whose proposals depend on the number of the trial alone."""
    return SNASSampler(space, SNAS(space, SNASRecipe()), avoid_duplicates=False, seed=3)


def proposed(space, sampler, n_trials):
    study = optuna.create_study(direction="maximize", sampler=sampler)
    return [study.ask(space.distributions()).params for _ in range(n_trials)]


SPACE = NetworkSpace(CELLS, nasbench201_skeleton(1, 4, (1, 8, 8), 10))


def test_joblib_asks_and_tells_in_processes(tmp_path):
    address, storage = place("sqlite", tmp_path)
    study = optuna.create_study(study_name="s", storage=storage, direction="maximize")
    work = made_worker(SPACE, address, fitted_sampler(SPACE))
    numbers = joblib.Parallel(n_jobs=2)(joblib.delayed(work)(place) for place in range(6))
    assert sorted(numbers) == list(range(6))
    assert [trial.params for trial in study.trials] == proposed(SPACE, fitted_sampler(SPACE), 6)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


@pytest.mark.pipeline
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # of Dask
@pytest.mark.filterwarnings("ignore::DeprecationWarning:distributed.*", "ignore::DeprecationWarning:tornado.*")
def test_dask_workers_share_a_study_and_a_supernet(tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.chdir(tmp_path)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=tmp_path / "dask"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        address, storage = place("sqlite", tmp_path)
        study = optuna.create_study(study_name="s", storage=storage, direction="maximize")
        work = made_worker(SPACE, address, fitted_sampler(SPACE))
        numbers = client.gather(client.map(work, range(6), pure=False))
        assert sorted(numbers) == list(range(6))
        assert [trial.params for trial in study.trials] == proposed(SPACE, fitted_sampler(SPACE), 6)
        values = [float(str(SPACE.decode(trial.params)).count("conv")) for trial in study.trials]
        assert [trial.value for trial in study.trials] == values

        # The same with a supernet that the trials train together.
        (tmp_path / "second").mkdir()
        address, storage = place("journal", tmp_path / "second")
        snas, store = SNAS(SPACE, SNASRecipe(relaxation="one_path", batch_size=16)), FileSystemArtifactStore(tmp_path)
        settings = {"budget": 1, "n_trials": 4, "trials_per_round": 2, "artifact_store": store, "seed": 0}
        sampler = SNASSampler(SPACE, snas, data=few_digits(64), **settings)
        study = optuna.create_study(study_name="s", storage=storage, direction="maximize", sampler=sampler)
        client.gather(client.map(made_worker(SPACE, address, sampler), range(4), pure=False))
        assert snas.step == 0, "the workers have trained copies of it"
        assert sampler.catch_up(study).fitted
        assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}

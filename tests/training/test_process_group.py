"""Several processes that train one network: the numbers of one process, ends that all hear of, one worker of a study.

Batch norms see a rank's part of a batch, so that only networks without them have exactly the numbers of one process.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
import torch.multiprocessing
from optuna.trial import TrialState
from terminal import wait_for
from trainings import DATA, RECIPE, Wrapped, close, darts_network, same, small_network, state, without_seconds

from optuna_nas.data import REPORT
from optuna_nas.objective import train_objective, trial_training
from optuna_nas.objective.trial_training import checkpoint_path
from optuna_nas.oneshot import HMNAS
from optuna_nas.search.opening import open_study
from optuna_nas.search.study_file import load
from optuna_nas.search.torchrun import _shared_objective
from optuna_nas.training import TrainingStopped, evaluate, train
from optuna_nas.training.process_group import RankFailed, RankLost, Ranks, current_ranks, joined

# --- two ranks train one network --------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def outcome(training):
    """Return what a training ends with."""
    try:
        training()
    except Exception as error:
        return type(error).__name__
    return "finished"


def trained(network, data=DATA, recipe=RECIPE, **options):
    history = []
    train(network, data, recipe, on_epoch=history.append, **options)
    return state(network), without_seconds(history)


def tiny_batches():
    return replace(DATA, splits={**DATA.splits, "weights": DATA.splits["weights"][:3], "choices": torch.arange(0)})


def what_ranks_do(folder):
    """All that the tests below look at; every rank does it."""
    rank = current_ranks().rank
    found = {}
    found["plain"] = trained(small_network(seed=rank))  # the weights of rank 0 are everybody's
    found["adamw"] = trained(small_network(), recipe=replace(RECIPE, optimizer="adamw", batch_size=15))
    found["norm"] = trained(small_network(norm=True))
    found["darts"] = trained(darts_network(drop_path=0.4))
    found["alone"] = tuple(evaluate(rebuilt(found["norm"][0]), DATA, REPORT))
    found["few images"] = trained(small_network(), tiny_batches(), replace(RECIPE, batch_size=3))

    file = folder / "checkpoint.safetensors"

    def stop_at_step_6():
        return rank == 0 and next(steps) == 6

    steps = iter(range(1, 100))
    found["stopped"] = outcome(
        lambda: train(small_network(norm=True), DATA, RECIPE, checkpoint=file, should_stop=stop_at_step_6)
    )
    found["resumed"] = trained(small_network(seed=5, norm=True), checkpoint=file if rank == 0 else None)

    def stop(result):
        if rank == 0 and result.epoch == 1:
            raise Stop

    found["ended by rank 0"] = outcome(lambda: train(small_network(), DATA, RECIPE, on_epoch=stop))

    def too_large(call, images, scores):
        if rank == 1 and len(images) > 4:
            raise torch.OutOfMemoryError("out of memory")
        return scores

    result = train(Wrapped(small_network(), too_large), DATA, RECIPE)
    found["accumulation"] = result.accumulation

    def broken(call, images, scores):
        if rank == 1 and call == 3:
            raise ValueError("bad luck")
        return scores

    found["broken"] = outcome(lambda: train(Wrapped(small_network(), broken), DATA, RECIPE))
    found["adapt"] = outcome(lambda: train(small_network(), DATA, RECIPE, adapt=print))
    found["said"] = current_ranks().broadcast({"rank": rank, "text": "é", "none": None})
    found["any"] = [current_ranks().any(rank == 1), current_ranks().any(False)]
    torch.save(found, folder / f"rank{rank}.pt")


def rebuilt(weights):
    network = small_network(norm=True)
    network.load_state_dict(weights)
    return network


def be_a_rank(rank, folder, port):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with joined() as ranks:
        assert ranks == Ranks(rank, 2)
        what_ranks_do(folder)
        assert of_the_group()
        cycle = [torch.distributed.group.WORLD]  # as an exception is, with a trial in one of its frames
        cycle.append(cycle)
        del cycle
    assert current_ranks() == Ranks()
    assert not of_the_group(), "a thread that outlives the interpreter may abort the process"


def of_the_group():
    names = [file.read_text() for file in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(be_a_rank, (folder, port), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("name", ["plain", "adamw", "norm", "darts", "few images", "resumed"])
@pytest.mark.process
def test_all_ranks_have_the_same_weights_and_curves_to_the_bit(found, name):
    (weights, history), (others, other_history) = (ours[name] for ours in found)
    assert same(weights, others)
    assert history == other_history


@pytest.mark.parametrize(
    ("name", "data", "changes"),
    [
        ("plain", DATA, {}),
        ("adamw", DATA, {"optimizer": "adamw", "batch_size": 15}),
        ("few images", tiny_batches(), {"batch_size": 3}),
    ],
)
@pytest.mark.process
def test_two_ranks_train_as_one_process_does(found, name, data, changes):
    weights, history = found[0][name]
    expected, expected_history = trained(small_network(), data, replace(RECIPE, **changes))
    close(weights, expected, 1e-5)
    for ours, other in zip(history, expected_history, strict=True):
        assert ours.train_metric == other.train_metric
        assert ours.validation_metric == other.validation_metric
        assert ours.train_loss == pytest.approx(other.train_loss, abs=1e-5)
        assert ours.validation_loss == pytest.approx(other.validation_loss, abs=1e-5)


@pytest.mark.process
def test_what_ranks_report_is_what_the_network_is_worth(found):
    for ours in found:
        assert ours["norm"][1][-1].validation_metric == ours["alone"][1]
        assert ours["norm"][1][-1].validation_loss == pytest.approx(ours["alone"][0])


@pytest.mark.process
def test_a_stop_of_rank_0_stops_all_and_its_checkpoint_goes_on_to_the_same_numbers(found):
    assert [ours["stopped"] for ours in found] == [TrainingStopped.__name__] * 2
    close(found[0]["resumed"][0], found[0]["norm"][0])
    for ours, other in zip(found[0]["resumed"][1], found[0]["norm"][1], strict=True):
        assert ours.validation_loss == pytest.approx(other.validation_loss, abs=1e-6)


@pytest.mark.process
def test_an_error_on_one_rank_ends_the_training_of_all(found):
    assert [ours["ended by rank 0"] for ours in found] == [Stop.__name__, RankFailed.__name__]
    assert [ours["broken"] for ours in found] == [RankFailed.__name__, ValueError.__name__]


@pytest.mark.process
def test_all_ranks_halve_batches_that_do_not_fit_one(found):
    assert [ours["accumulation"] for ours in found] == [2, 2]


@pytest.mark.process
def test_ranks_hear_rank_0_and_each_other(found):
    for ours in found:
        assert ours["said"] == {"rank": 0, "text": "é", "none": None}
        assert ours["any"] == [True, False]
        assert ours["adapt"] == "ValueError"


def test_one_process_is_alone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # as some schedulers do, without a place to meet
    with joined() as ranks, ranks.together():
        assert ranks == current_ranks() == Ranks()
        assert ranks.broadcast({"a": {1}}) == {"a": {1}}
        tensor = torch.ones(2)
        ranks.sum_([tensor])
        ranks.mean_([tensor])
        assert tensor.tolist() == [1, 1]
        assert ranks.share({"a": tensor}, "b", tensor.device)[0]["a"] is tensor
        assert not ranks.any(False)


# --- several ranks are one worker -------------------------------------------------------------------------------------

STUDY = """
import json, os
from dataclasses import replace
import numpy as np
from optuna import TrialPruned
from optuna.pruners import BasePruner
from optuna.samplers import RandomSampler
from optuna_nas import ImageData, NetworkSpace, Recipe, Search, nasbench201_skeleton, nasbench201_space
from optuna_nas.objective import train_objective, trial_training

SPACE = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 4, (1, 6, 6), 3))
RANK = os.environ.get("RANK", "alone")
train = trial_training.train


def spied(*arguments, **options):
    with open(f"rank{RANK}.txt", "a") as file:
        try:
            result = train(*arguments, **options)
        except Exception as error:
            file.write(type(error).__name__ + "\\n")
            raise
        file.write(f"{result.last.validation_metric}\\n")
    return result


if train.__name__ == "train":  # the command line reads this file twice
    train_objective.train = trial_training.train = spied  # rank 0 runs trials, the others train along


class Fixed(RandomSampler):
    def reseed_rng(self):
        pass  # the same draws in every process: some cells lead nowhere, and those no worker trains


class Second(BasePruner):
    def prune(self, study, trial):
        return trial.number == 1 and trial.last_step == 1


def mine(trial):
    architecture = SPACE.suggest(trial)
    rate = trial.suggest_float("rate", 0, 1)
    trial.report(rate, 1)
    with open(f"rank{RANK}.txt", "a") as file:
        file.write(json.dumps([trial.number, rate, architecture.summary]) + "\\n")
    trial.set_user_attr("seen", trial.number)
    if trial.should_prune():
        raise TrialPruned
    return rate


def search(name: str = "two", epochs: int = 2, trials: int = 3, own: bool = False, n_jobs: int = 1) -> Search:
    labels = np.arange(120) % 3
    images = np.random.default_rng(0).normal(size=(120, 6, 6)).astype(np.float32) + labels[:, None, None]
    data = ImageData.from_arrays(images, labels)
    recipe = Recipe(epochs=epochs, batch_size=16, learning_rate=0.1)
    return Search(
        name, SPACE, data, recipe,
        objective=mine if own else None, sampler=Fixed(seed=0), pruner=Second(), trials=trials, cpu_threads=1,
        n_jobs=n_jobs, pictures=False, tracking=None,
    )
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for module in (train_objective, trial_training):
        monkeypatch.setattr(module, "train", module.train)  # where the study is read here, it puts another there
    (tmp_path / "study.py").write_text(STUDY)
    return tmp_path


@pytest.fixture
def torchrun(folder):
    """Start a worker of two ranks for a study that it creates."""
    started = []

    def start(storage, *settings):
        search = load(Path("study.py"), list(settings), storage)
        study = open_study(search)
        ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        worker = ["-m", "optuna_nas.cli", "worker", "study.py", "--storage", storage, "--no-mlflow"]
        given = [word for setting in settings for word in ("--set", setting)]
        started.append(
            subprocess.Popen([*ranks, *worker, *given], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return started[-1], lambda: study.trials

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
            print(*process.communicate(timeout=60))  # only where a test has failed


def lines(folder):
    return [(folder / f"rank{rank}.txt").read_text().splitlines() for rank in range(2)]


@pytest.mark.process
def test_two_ranks_run_a_study_and_a_pruned_trial_ends_on_both(folder, torchrun, postgresql):
    process, trials = torchrun(postgresql)
    output, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert "Total reached" in output
    found = trials()
    assert [trial.state for trial in found] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE]
    assert [sorted(trial.intermediate_values) for trial in found] == [[1, 2], [1], [1, 2]]
    first, second = lines(folder)
    assert first == [str(found[0].value), "TrialPruned", str(found[2].value)]
    assert second == [first[0], RankFailed.__name__, first[2]]


@pytest.mark.process
def test_an_objective_of_ones_own_sees_the_same_trial_on_all_ranks(folder, torchrun):
    pytest.importorskip("optuna_integration")
    process, trials = torchrun(f"sqlite:///{folder}/study.db", "own=true")
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    first, second = lines(folder)
    assert first == second
    seen = [json.loads(line) for line in first]
    assert [number for number, _, _ in seen] == [0, 1, 2]
    found = trials()
    assert [trial.state for trial in found] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE]
    for trial, (number, rate, _) in zip(found, seen, strict=True):
        assert trial.user_attrs["seen"] == number
        assert trial.value == rate == pytest.approx(trial.params["rate"], abs=1e-6)


def follower_of(process):
    (found,) = (p for p in psutil.Process(process.pid).children() if p.environ().get("RANK") == "1")
    return found


@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.chaos)])
@pytest.mark.process
def test_sigterm_with_a_checkpoint_or_a_killed_rank_ends_all_and_the_trial_is_tried_again(killed, folder, torchrun):
    process, trials = torchrun(f"sqlite:///{folder}/study.db", "epochs=100000")
    wait_for(lambda: trials()[0].intermediate_values)
    if killed:
        follower_of(process).kill()
    else:
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert (folder / "rank0.txt").read_text() == f"{(RankLost if killed else TrainingStopped).__name__}\n"
    assert killed or checkpoint_path(folder / "runs" / "two", 0).exists()
    assert [trial.state for trial in trials()] == [TrialState.FAIL, TrialState.WAITING]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"n_jobs": 2}, "`n_jobs` must be 1 for a worker of several ranks but is 2; start more workers."),
        ({"device": "cuda:1"}, "`device` must leave open which GPU for a worker of several ranks but is 'cuda:1'"),
        ({"masks": True}, "`masks` must be None for a worker of several ranks"),
    ],
)
def test_what_ranks_cannot_do_is_refused_in_one_sentence(changes, sentence, folder):
    search = load(Path("study.py"), None)
    if "masks" in changes:
        changes = {"masks": HMNAS(search.space)}
    if "n_jobs" in changes:
        search = replace(search, **changes)
    else:
        search = replace(search, objective=replace(search.resolved_objective, **changes))
    with pytest.raises(ValueError, match=re.escape(sentence)):
        _shared_objective(search, Ranks(0, 2))


def test_an_objective_of_ones_own_without_the_package_is_refused_in_one_sentence(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna_integration.pytorch_distributed", None)
    with pytest.raises(ValueError, match="must have the package `optuna-integration`"):
        _shared_objective(load(Path("study.py"), ["own=true"]), Ranks(0, 2))

"""Why a search ends, and what is left behind: damaged files, a full disk, threads that share a queue."""

import errno
import os
import signal
import threading
import time

import optuna
import pytest
import safetensors.torch
from optuna.pruners import NopPruner
from optuna.samplers import BruteForceSampler, GridSampler, RandomSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState
from strategies import few_digits

from optuna_nas import SNAS, CellKind, CellSpace, NetworkSpace, Recipe, Search, Skeleton, SNASRecipe, SNASSampler, run
from optuna_nas.search.config import SearchListener
from optuna_nas.search.opening import open_study
from optuna_nas.storage.attributes import WORKER, attribute
from optuna_nas.storage.database import connect, sqlite_address
from optuna_nas.storage.presence import this_worker
from optuna_nas.storage.quota import Quota, counted_trials
from optuna_nas.storage.retries import reap_dead_trials

pytestmark = pytest.mark.filterwarnings("ignore:BruteForceSampler is experimental")
TINY = CellSpace(("none", "skip_connect", "nor_conv_1x1"), 1, 2, (CellKind("cell"),))
NETWORKS = NetworkSpace(TINY, Skeleton(("cell",), 4, (1, 8, 8), 10))


def search(folder, **changes):
    options = {"trials": 10, "tracking": None, "pictures": False, "pruner": NopPruner(), "sampler": RandomSampler(0)}
    return Search("ends", folder=folder, **{"space": TINY, **options, **changes})


def plain(trial):
    TINY.suggest(trial)
    return 1.0


@pytest.mark.parametrize("n_jobs", [1, 3])
def test_a_study_that_stops_itself_ends_the_search_with_its_reason(n_jobs, tmp_path):
    def stopping(trial):
        TINY.suggest(trial)
        if trial.number == 2:
            trial.study.stop()
        return 1.0

    result = run(search(tmp_path, objective=stopping, n_jobs=n_jobs))
    assert 3 <= len(result.study.trials) < 3 + n_jobs
    assert "study.stop()" in result.ended
    assert not result.interrupted


def test_ctrl_c_while_threads_run_trials_is_no_stop_of_the_objective(tmp_path, caplog):
    running = threading.Barrier(4)

    def objective(trial):
        running.wait(20)
        if trial.number == 0:
            os.kill(os.getpid(), signal.SIGINT)  # which the main thread hears, as from a terminal
        while "Interrupted" not in caplog.text:  # the main thread has not heard of it yet
            time.sleep(0.01)
        return plain(trial)

    result = run(search(tmp_path, objective=objective, n_jobs=4))
    assert (result.interrupted, result.missing, result.ended) == (True, 6, None)
    assert [trial.state for trial in result.study.trials] == [TrialState.COMPLETE] * 4


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("kind", ["grid", "brute"])
def test_an_exhausted_sampler_ends_the_search(kind, n_jobs, tmp_path):
    grid = {name: distribution.choices for name, distribution in TINY.distributions().items()}
    sampler = GridSampler(grid, seed=0) if kind == "grid" else BruteForceSampler(seed=0, avoid_premature_stop=True)
    result = run(search(tmp_path, objective=plain, trials=30, sampler=sampler, n_jobs=n_jobs))
    points = {tuple(trial.params.values()) for trial in result.study.trials}
    assert len(points) == 9
    assert len(result.study.trials) < 9 + 2 * n_jobs
    assert result.ended is not None


def test_threads_on_sqlite_run_each_enqueued_trial_once(tmp_path):
    study = optuna.create_study(storage=connect(f"sqlite:///{tmp_path / 'study.db'}"), sampler=RandomSampler(0))
    for place in range(40):
        study.enqueue_trial({"x": place / 40})
    calls, start = [], threading.Barrier(4)

    def objective(trial):
        calls.append(trial.number)
        if trial.number < 4:
            start.wait(20)  # all four threads reach for the queue at once
        return trial.suggest_float("x", 0, 1)

    study.optimize(objective, n_trials=40, n_jobs=4)
    assert sorted(calls) == list(range(40))
    assert sorted(trial.value for trial in study.trials) == [place / 40 for place in range(40)]


def test_a_trial_that_waits_is_taken_by_one_of_many_threads(tmp_path):
    storage = connect(f"sqlite:///{tmp_path / 'study.db'}")
    study = optuna.create_study(storage=storage)
    for _ in range(5):
        study.enqueue_trial({})
    for trial in study.trials:
        gate, taken = threading.Barrier(8), []

        def take(trial=trial, gate=gate, taken=taken):
            gate.wait()
            taken.append(storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING))

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(taken) == [False] * 7 + [True]


def learning(folder, **changes):
    snas = SNAS(NETWORKS, SNASRecipe(batch_size=16, relaxation="one_path"))
    sampler = SNASSampler(TINY, snas, data=few_digits(64), budget=2, n_trials=4, trials_per_round=2, seed=0)
    return search(folder, objective=plain, sampler=sampler, trials=4, **changes)


def test_a_damaged_file_of_a_model_is_set_aside_with_a_word(tmp_path, caplog):
    open_study(learning(tmp_path))  # the folder is its own
    (tmp_path / "snas.safetensors").write_bytes(b"damaged")
    result = run(learning(tmp_path))
    assert [trial.state for trial in result.study.trials] == [TrialState.COMPLETE] * 4
    assert (tmp_path / "snas.safetensors.damaged").read_bytes() == b"damaged"
    assert "A damaged checkpoint is left in" in caplog.text


def training(folder, **changes):
    recipe = Recipe(epochs=2, batch_size=16)
    return search(folder, space=NETWORKS, data=few_digits(64), recipe=recipe, trials=2, cpu_threads=1, **changes)


def test_a_damaged_checkpoint_of_a_trial_begins_it_anew(tmp_path, caplog):
    open_study(training(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/trial-00000.safetensors").write_bytes(b"damaged")
    result = run(training(tmp_path))
    assert [trial.state for trial in result.study.trials] == [TrialState.COMPLETE] * 2
    assert "A damaged checkpoint is left in" in caplog.text


@pytest.mark.parametrize("kind", ["objective", "network"])
def test_a_full_disk_is_named_costs_no_attempt_and_loses_nothing(kind, tmp_path, monkeypatch):
    full = {"is": True}

    def objective(trial):
        TINY.suggest(trial)
        if full["is"] and trial.number >= 1:
            raise OSError(errno.ENOSPC, "No space left on device", "somewhere")
        return 1.0

    write = safetensors.torch.save_file

    def save_file(*arguments, **named):
        if full["is"]:
            raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")
        return write(*arguments, **named)

    monkeypatch.setattr(safetensors.torch, "save_file", save_file)

    def make():
        return search(tmp_path, objective=objective, trials=3) if kind == "objective" else training(tmp_path)

    for _ in range(4):  # more often than attempts that may fail
        with pytest.raises(ConnectionError, match=r"is full \(.*No space left on device.*\); free some, then run this"):
            run(make())
    full["is"] = False
    result = run(make())
    assert counted_trials(result.study) == make().total
    states = [trial.state for trial in result.study.trials]
    assert states.count(TrialState.COMPLETE) + states.count(TrialState.PRUNED) == make().total
    assert TrialState.RUNNING not in states
    assert TrialState.WAITING not in states


# -- what others do meanwhile ------------------------------------------------------------------------------------------


class Broken(SearchListener):
    """Listener of which one method raises."""

    def __init__(self, event):
        self.calls = 0

        def fail(*arguments):
            self.calls += 1
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

        setattr(self, event, fail)


@pytest.mark.parametrize("event", ["trial_started", "epoch", "progress", "trial_finished"])
def test_an_error_of_a_listener_is_none_of_a_trial(event, tmp_path, caplog):
    listener = Broken(event)
    result = run(training(tmp_path), listener)
    assert [trial.state for trial in result.study.trials] == [TrialState.COMPLETE] * 2
    assert listener.calls == 1
    said = f"`listener` must not raise errors but Broken.{event} has raised BrokenPipeError: [Errno 32] Broken pipe; "
    assert caplog.text.count(said + "the search goes on without it.") == 1


def journal(folder):
    return JournalStorage(JournalFileBackend(str(folder / "journal.log")))


@pytest.mark.process
@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_a_trial_whose_process_is_killed_as_it_takes_it_is_tried_again(kind, tmp_path, monkeypatch):
    def configured():
        storage = None if kind == "sqlite" else journal(tmp_path)
        return search(tmp_path, objective=plain, trials=2, storage=storage)

    params = dict.fromkeys(TINY.distributions(), "nor_conv_1x1")
    study = open_study(configured())
    study.enqueue_trial(params)
    process = os.fork()
    if process == 0:
        monkeypatch.setattr(Trial, "set_user_attr", lambda *arguments: os._exit(9))
        monkeypatch.setattr(Quota, "claim", lambda *arguments: os._exit(9))
        run(configured())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
    assert open_study(configured()).trials[0].state == TrialState.RUNNING
    result = run(configured())
    first, second, third = result.study.trials
    assert (first.state, second.state, third.state) == (TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE)
    assert second.params == params
    assert counted_trials(result.study) == 2


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_a_trial_that_another_program_asked_for_is_left_to_it(kind, tmp_path):
    configured = search(tmp_path, objective=plain, trials=2, storage=None if kind == "sqlite" else journal(tmp_path))
    study = open_study(configured)
    trial = study.ask(TINY.distributions())
    run(configured)
    study.tell(trial, 1.0)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 3


def test_a_trial_of_a_worker_has_its_name_from_the_moment_at_which_it_is_taken(tmp_path):
    study = open_study(search(tmp_path, objective=plain))
    study.enqueue_trial({})
    quota = Quota(study, 2)
    with quota.admitting(quota.look()):
        study.ask(), study.ask()
    reap_dead_trials(study)  # as another worker, which is not alone
    assert [attribute(trial.user_attrs, WORKER) for trial in study.trials] == [this_worker()] * 2
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING] * 2


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
@pytest.mark.parametrize("moment", ["in a trial", "between trials", "at the end"])
def test_a_study_that_is_deleted_while_it_runs_is_one_sentence(moment, kind, tmp_path):
    storage = sqlite_address(tmp_path / "study.db") if kind == "sqlite" else journal(tmp_path)

    def delete(number, study, trial):
        if trial.number == number:
            optuna.delete_study(study_name="ends", storage=study._storage)

    class Listener(SearchListener):
        def trial_finished(self, study, trial):
            if moment != "in a trial":
                delete(1 if moment == "between trials" else 2, study, trial)

    def objective(trial):
        if moment == "in a trial":
            delete(1, trial.study, trial)
        return plain(trial)

    with pytest.raises(ValueError, match=r"^`study` must stay in its storage .* but 'ends' was deleted; run it again "):
        run(search(tmp_path, objective=objective, trials=3, storage=storage), Listener())

"""Rounds of a model in a study: one trial opens each, the others use the newest snapshot that verifies."""

import json
import logging
import pickle
import socket
import threading

import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.trial import TrialState

from optuna_nas.storage.attributes import Unverified, find_trial, read_json, snapshot_key
from optuna_nas.storage.finished import PicklesSettings
from optuna_nas.storage.identity import study_uid
from optuna_nas.storage.model_rounds import Rounds
from optuna_nas.storage.presence import this_worker

FILE, KEY = "model.json", snapshot_key("Model")


class Worker(PicklesSettings):
    """A model that counts its rounds, in a process of its own: trained by one trial of four, three rounds in all."""

    def __init__(self, store, trials_per_round=4, n_rounds=3):
        self.store, self.trials_per_round, self.n_rounds = store, trials_per_round, n_rounds
        super().__init__()

    def _init_state(self):
        super()._init_state()
        self.rounds_trained, self.loaded = [], []
        self.rounds = Rounds("Model", self.trials_per_round, lambda study: self.store, self.is_fixed, self.load)

    def is_fixed(self, trial):
        return trial.state.is_finished()

    def load(self, value, fetch):
        known = json.loads(fetch(FILE).read_text())
        if known["rounds"] != value["rounds"]:
            raise Unverified("it holds other rounds")
        self.loaded.append(value["rounds"])
        return value["rounds"]

    def ask(self, study, on_prepare=lambda: None):
        """Begin a trial as a sampler does; return its number and the snapshot that it uses."""
        trial = find_trial(study, study.ask().number)
        trained = []

        def prepare(number, newest):
            on_prepare()
            trained[:] = [*(() if newest is None else newest.loaded), number]
            self.rounds_trained.append(number)

        def save(folder):
            (folder / FILE).write_text(json.dumps({"rounds": trained}))
            return {"rounds": trained, "step": len(trained), "done": trained[-1] + 1 >= self.n_rounds}

        self.rounds.open(study, trial, prepare, save, trial.number // self.trials_per_round >= self.n_rounds - 1)
        return trial.number, self.rounds.newest(study, trial.number)

    def run(self, study, n_trials):
        """Run trials one after the other; return the number of the snapshot that each used."""
        used = []
        for _ in range(n_trials):
            number, newest = self.ask(study)
            used.append(None if newest is None else newest.number)
            study.tell(number, 1.0)
        return used


@pytest.fixture
def store(tmp_path):
    (tmp_path / "store").mkdir()
    return FileSystemArtifactStore(str(tmp_path / "store"))


@pytest.fixture
def study(tmp_path):
    return optuna.create_study(storage=f"sqlite:///{tmp_path / 'study.db'}")


def openers(study):
    return [trial.number for trial in study.trials if KEY in trial.system_attrs]


def test_the_first_trial_of_each_round_opens_it_until_the_model_is_done(study, store):
    worker = Worker(store)
    assert worker.run(study, 14) == [0] * 4 + [4] * 4 + [8] * 6
    assert openers(study) == [0, 4, 8]
    assert worker.rounds_trained == [0, 1, 2]


def test_another_process_goes_on_from_the_newest_snapshot(study, store):
    Worker(store).run(study, 5)
    other = pickle.loads(pickle.dumps(Worker(store)))
    assert other.run(study, 7) == [4] * 3 + [8] * 4
    assert other.rounds_trained == [2]
    assert other.rounds.newest(study, 11).loaded == [0, 1, 2]


def test_a_snapshot_is_loaded_once(study, store):
    Worker(store).run(study, 1)
    other = Worker(store)
    other.run(study, 3)
    assert other.loaded == [[0]]


def test_a_trial_does_not_use_what_a_later_one_published(study, store):
    worker = Worker(store)
    worker.run(study, 5)
    assert Worker(store).rounds.newest(study, 3).number == 0
    assert Worker(store).rounds.newest(study, 4).number == 4


def test_nobody_waits_for_a_round_that_another_thread_prepares(study, store):
    worker = Worker(store)
    worker.run(study, 4)
    prepares, goes_on = threading.Event(), threading.Event()

    def wait():
        prepares.set()
        assert goes_on.wait(30)

    thread = threading.Thread(target=worker.ask, args=(study, wait))
    thread.start()
    assert prepares.wait(30)
    assert worker.ask(study)[1].number == 0
    goes_on.set()
    thread.join()
    assert worker.ask(study)[1].number == 4


def test_a_thread_that_prepares_makes_up_for_rounds_whose_turn_came_meanwhile(study, store):
    worker = Worker(store, n_rounds=9)
    running = []

    def others():
        if not running:
            running.extend(worker.ask(study)[0] for _ in range(5))  # trial 4 would open the second round

    worker.ask(study, others)
    assert worker.rounds_trained == [0, 1]
    assert openers(study) == [0]


def test_the_first_trial_after_the_end_of_another_process_round_makes_up_for_those_it_took(study, store):
    worker, other = Worker(store, n_rounds=9), Worker(store, n_rounds=9)
    used = []
    worker.ask(study, lambda: used.extend(other.run(study, 8)))  # trials 1 to 8: 4 and 8 would open rounds
    assert (used, other.rounds_trained) == ([None] * 8, [])
    assert other.run(study, 3) == [9, 9, 9]
    assert other.rounds_trained == [2]
    assert other.rounds.newest(study, 11).loaded == [0, 2]
    assert openers(study) == [0, 9]


def test_the_last_round_is_prepared_in_any_case(study, store):
    worker, other = Worker(store, n_rounds=2), Worker(store, n_rounds=2)
    worker.ask(study, lambda: other.run(study, 4))  # all trials begin while the first one prepares
    assert other.rounds_trained == [1]
    assert worker.rounds.newest(study, 4).done


@pytest.mark.parametrize(
    "mark",
    [
        [0, f"{socket.gethostname()}:{2**22 + 1}:1f", "own"],  # no process has this number
        [0, "another machine:7:1f", "own"],  # a study without heartbeats would not miss it
        [0, this_worker(), "of the study that this one is a copy of"],
        [3, this_worker(), "own"],  # of the trial that this one retries
        [0, "nonsense", "own"],
        "nonsense",
    ],
)
def test_a_leader_that_will_not_publish_is_not_waited_for(study, store, mark):
    leader = study.ask()
    mark = [study_uid(study) if part == "own" else part for part in mark] if isinstance(mark, list) else mark
    study._storage.set_trial_system_attr(leader._trial_id, f"{KEY}:leader", mark)
    assert Worker(store).run(study, 5) == [None, None, None, 4, 4]


@pytest.mark.parametrize("others", ["running", "failed", "fixed"])
def test_a_round_is_opened_by_the_first_trial_that_may(study, store, others):
    for _ in range(2):
        trial = study.ask()
        if others == "failed":
            study.tell(trial, state=TrialState.FAIL)
        elif others == "fixed":
            study.tell(trial, 1.0)
    assert Worker(store).run(study, 3) == ([None, None, 4] if others == "running" else [2, 2, 4])


def test_a_round_whose_opener_died_is_made_up_for_by_the_next(study, store):
    worker = Worker(store)
    worker.run(study, 4)
    study.ask()  # trial 4 runs for ever
    assert worker.run(study, 5) == [0, 0, 0, 8, 8]
    assert worker.rounds_trained == [0, 2]


@pytest.mark.parametrize("damage", ["changed", "missing", "attribute", "contents"])
def test_a_snapshot_that_does_not_verify_gives_way_to_the_one_before(study, store, tmp_path, caplog, damage):
    Worker(store, n_rounds=9).run(study, 8)
    newest = study.trials[4]
    file = tmp_path / "store" / read_json(newest.system_attrs, KEY)["files"][FILE]["artifact"]
    if damage == "changed":
        file.write_text("{}")
    elif damage == "missing":
        file.unlink()
    attributes = dict(newest.system_attrs)
    if damage == "attribute":
        attributes[f"{KEY}:0"] = "{"
    copy = optuna.create_study()
    for trial in study.trials:
        changed = attributes if trial.number == 4 else trial.system_attrs
        copy.add_trial(optuna.create_trial(value=1.0, system_attrs=changed))
    worker = Worker(store, n_rounds=9)
    if damage == "contents":
        load = worker.load

        def refuse(value, fetch):
            if value["rounds"] == [0, 1]:
                raise Unverified("it is of another model")
            return load(value, fetch)

        worker.rounds = Rounds("Model", 4, lambda study: store, worker.is_fixed, refuse)
    with caplog.at_level(logging.WARNING):
        used = [worker.rounds.newest(copy, 7).number for _ in range(3)]
    assert used == [0, 0, 0]
    assert caplog.text.count("The Model snapshot of trial 4 cannot be verified") == 1, "said once"
    assert worker.run(copy, 2) == [8, 8]
    assert worker.rounds.newest(copy, 9).loaded == [0, 2]


def test_what_cannot_be_read_now_is_tried_again(study, store, tmp_path):
    Worker(store).run(study, 5)
    file = tmp_path / "store" / read_json(study.trials[4].system_attrs, KEY)["files"][FILE]["artifact"]
    away = file.rename(file.with_name("away"))
    worker = Worker(store)
    assert worker.rounds.newest(study, 5).number == 0
    away.rename(file)
    assert worker.rounds.newest(study, 5).number == 4


def test_what_a_retried_trial_has_inherited_does_not_make_it_an_opener(study, store):
    Worker(store).run(study, 4)
    inherited = dict(study.trials[0].system_attrs)
    study.add_trial(optuna.create_trial(state=TrialState.FAIL, system_attrs=inherited))
    worker = Worker(store)
    assert worker.run(study, 2) == [5, 5]
    assert worker.rounds.newest(study, 6).loaded == [0, 1]


def test_two_snapshots_are_kept_and_what_a_dead_opener_left_is_removed(study, store, tmp_path):
    worker = Worker(store, n_rounds=9)
    worker.run(study, 12)
    dead = study.ask()  # trial 12 opens the fourth round, uploads a file, and dies
    half = tmp_path / FILE
    half.write_text("half")
    study._storage.set_trial_system_attr(dead._trial_id, f"{KEY}:study", study_uid(study))
    upload_artifact(artifact_store=store, file_path=str(half), study_or_trial=dead)
    study.tell(dead, state=TrialState.FAIL)
    assert len(list((tmp_path / "store").iterdir())) == 3
    worker.run(study, 1)
    kept = {file.name for file in (tmp_path / "store").iterdir()}
    assert kept == {read_json(study.trials[n].system_attrs, KEY)["files"][FILE]["artifact"] for n in (8, 13)}


def test_two_studies_of_one_process_have_rounds_of_their_own(store):
    worker, studies = Worker(store), [optuna.create_study() for _ in range(2)]
    assert [worker.run(study, 2) for study in studies] == [[0, 0], [0, 0]]
    assert worker.rounds_trained == [0, 0]

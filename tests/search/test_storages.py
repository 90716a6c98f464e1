"""A search on any storage: addresses, files, Optuna's storage objects; the same trials on all of them."""

from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from objectives import SPACE
from optuna.storages import InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from optuna_nas import Search, SNASSampler, run
from optuna_nas.search.config import SearchListener
from optuna_nas.search.opening import read_study
from optuna_nas.workers.shared import SharedStudy
from optuna_nas.workers.worker import Job

STORAGES = {
    "address": lambda folder: f"sqlite:///{folder / 'study.db'}",
    "path": lambda folder: folder / "study.db",
    "journal": lambda folder: JournalStorage(JournalFileBackend(str(folder / "journal.log"))),
    "rdb": lambda folder: RDBStorage(f"sqlite:///{folder / 'study.db'}"),
    "memory": lambda folder: InMemoryStorage(),
}


def objective(trial):
    """Return a value that depends on the architecture and on a parameter beside it."""
    architecture = SPACE.suggest(trial)
    return architecture.cost().params * trial.suggest_float("rate", 0.1, 1.0)


def make(folder, storage, **changes):
    return Search(
        "anywhere",
        SPACE,
        objective=objective,
        sampler=SNASSampler(SPACE, seed=0),
        pruner=optuna.pruners.NopPruner(),
        trials=6,
        storage=storage,
        tracking=None,
        folder=folder,
        pictures=False,
        **changes,
    )


def of(study):
    return [(trial.params, trial.value) for trial in study.trials if trial.state == TrialState.COMPLETE]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("default")
    return of(make(folder, None).run().study)


@pytest.mark.parametrize("kind", STORAGES)
def test_the_trials_are_the_same_on_every_storage(kind, tmp_path, expected):
    result = make(tmp_path, STORAGES[kind](tmp_path)).run()
    assert of(result.study) == expected
    assert len(expected) == 6
    assert result.best.value == max(value for _, value in expected)


@pytest.mark.parametrize("kind", [kind for kind in STORAGES if kind != "memory"])
def test_a_search_goes_on_on_every_storage(kind, tmp_path, expected):
    first = replace(make(tmp_path, STORAGES[kind](tmp_path)), trials=3).run()
    assert of(first.study) == expected[:3]
    assert of(make(tmp_path, STORAGES[kind](tmp_path)).run().study) == expected


def test_a_search_goes_on_in_memory(tmp_path, expected):
    storage = InMemoryStorage()
    replace(make(tmp_path, storage), trials=3).run()
    assert of(make(tmp_path, storage).run().study) == expected


@pytest.mark.parametrize("kind", STORAGES)
def test_an_interrupted_trial_is_tried_again_on_every_storage(kind, tmp_path, expected):
    storage = STORAGES[kind](tmp_path)

    def interrupted(trial):
        if trial.number == 2:
            raise KeyboardInterrupt
        return objective(trial)

    first = replace(make(tmp_path, storage), objective=interrupted).run()
    assert (first.interrupted, first.missing) == (True, 4)
    result = make(tmp_path, storage).run()
    assert not result.interrupted
    assert len(of(result.study)) == 6
    assert of(result.study)[:2] == expected[:2]


def test_the_method_is_the_function(tmp_path, expected):
    assert of(run(make(tmp_path, InMemoryStorage())).study) == expected


def test_a_listener_hears_of_the_method_too(tmp_path):
    numbers = []

    class Listener(SearchListener):
        def trial_finished(self, study, trial):
            numbers.append(trial.number)

    make(tmp_path, InMemoryStorage()).run(Listener())
    assert numbers == list(range(6))


def test_a_study_that_is_absent_is_told_by_the_kind_of_its_storage(tmp_path):
    with pytest.raises(ValueError, match="`study` must exist but InMemoryStorage has none named 'anywhere'"):
        read_study(make(tmp_path, InMemoryStorage()))


def test_a_storage_must_be_one():
    with pytest.raises(ValueError, match=r"`storage` must be an address .* but is a int"):
        make(Path(), 3)


def test_several_workers_need_an_address(tmp_path):
    file = tmp_path / "study.py"
    file.write_text(
        "import optuna, optuna_nas\n"
        "def search():\n"
        "    return optuna_nas.Search('x', optuna_nas.nasbench201_space(), objective=lambda trial: 0.0,\n"
        f"        storage=optuna.storages.InMemoryStorage(), tracking=None, folder={str(tmp_path)!r})\n"
    )
    with pytest.raises(ValueError, match="`storage` must be an address for several workers"):
        SharedStudy(Job(str(file)), None)


def test_files_of_a_database_in_memory_stay_in_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "files", "sqlite:///:memory:").run()
    assert [path.name for path in tmp_path.iterdir()] == ["files"]

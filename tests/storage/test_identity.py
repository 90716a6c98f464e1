"""Which storages are one, and which trials of workers are dead."""

import socket

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from optuna_nas.storage.attributes import HOME, UID_ATTRIBUTE
from optuna_nas.storage.database import sqlite_file
from optuna_nas.storage.identity import home_of, study_uid
from optuna_nas.storage.own_postgres import own_database
from optuna_nas.storage.presence import has_ended, this_worker


class At:
    """A study whose storage is at an address, which nobody asks."""

    def __init__(self, address):
        self.study_name, self._storage = "s", self
        self.url = address


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("postgresql://me:a@h:5432/db", "postgresql://you:b@h:5433/db", False),
        ("postgresql://me:a@h:5432/db", "postgresql+psycopg://you:b@h/db", True),
        ("postgresql://role@/db?host=/tmp/a&port=5432", "postgresql://role@/db?host=/tmp/b&port=5432", False),
        ("postgresql://role@/db?host=/tmp/a&sslmode=require", "postgresql://role@/db?host=/tmp/a", True),
        ("mysql://me@h/db?unix_socket=/a", "mysql://me@h/db?unix_socket=/b", False),
    ],
)
def test_servers_are_told_apart_by_what_leads_to_them_alone(one, other, same):
    assert (home_of(At(one)) == home_of(At(other))) is same


@pytest.mark.process
def test_a_copy_in_another_server_of_ones_own_has_an_identity_of_its_own(tmp_path):
    one, other = (own_database(tmp_path / name / "postgresql") for name in ("one", "other"))
    study = optuna.create_study(study_name="s", storage=one)
    uid = study_uid(study)
    optuna.copy_study(from_study_name="s", from_storage=one, to_storage=other)
    assert study_uid(optuna.load_study(study_name="s", storage=other)) != uid == study_uid(study)
    study.set_user_attr(HOME, ["s", "postgresql:///postgres"])  # as studies of before noted it
    assert study_uid(study) == uid
    assert study.user_attrs[HOME][1].startswith("own server ")


def test_a_server_that_only_a_class_names_may_be_another_one():
    class Storage(optuna.storages.InMemoryStorage):
        """A storage of the user's."""

    study = optuna.create_study(study_name="s", storage=Storage())
    study.set_user_attr(UID_ATTRIBUTE, "0" * 16)
    study.set_user_attr(HOME, ["other", "Storage"])
    assert study_uid(study) != "0" * 16, "that study may be in another storage of this class"


def test_the_file_of_an_address_of_sqlites_own_form():
    assert str(sqlite_file("sqlite:///file:runs/a%20b.db?uri=true")) == "runs/a b.db"
    assert sqlite_file("sqlite:///file:shared?mode=memory&cache=shared&uri=true") is None
    assert sqlite_file("sqlite://host:port/none") is None


HOST = socket.gethostname()


def test_who_has_ended():
    number = this_worker().split(":")[1]
    assert has_ended(this_worker()) is False
    assert has_ended(f"{HOST}:{number}:other") is True, "its number was given to this process"
    assert has_ended(f"{HOST}:{2**22 + 1}:1f") is True
    assert has_ended(f"{HOST}:{10**18}:1f") is True
    assert has_ended("elsewhere:7:1f") is None
    for odd in ("", HOST, *(f"{HOST}:{end}" for end in ("", "abc:1", "-1:1", "1", "1:2:3"))):
        assert has_ended(odd) is None


def test_a_journal_belongs_to_whoever_holds_the_lock_beside_it(tmp_path, monkeypatch):
    from optuna_nas import Search, nasbench201_space
    from optuna_nas.search.opening import open_study
    from optuna_nas.storage.attributes import WORKER

    space = nasbench201_space()

    def asked():
        storage = JournalStorage(JournalFileBackend(str(tmp_path / "study.log")))
        return Search(
            "s",
            space,
            objective=lambda trial: float(space.suggest(trial).connected),
            storage=storage,
            folder=tmp_path / "runs",
            tracking=None,
            pictures=False,
            trials=2,
        )

    study = open_study(asked())
    for worker in ("pod-a:1:1f", f"{HOST}:1:1f", f"{HOST}:"):  # of a machine of before; of a number that lives; odd
        trial = study.ask()
        space.suggest(trial)
        trial.set_user_attr(WORKER, worker)
    states = [trial.state.name for trial in asked().run().study.trials]
    assert "RUNNING" not in states
    assert states.count("COMPLETE") == 2

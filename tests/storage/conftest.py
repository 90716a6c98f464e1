"""Fixtures of the storage tests: databases as workers use them."""

import optuna
import pytest
import sqlalchemy

from optuna_nas.storage import Heartbeat
from optuna_nas.storage.attributes import WORKER
from optuna_nas.storage.database import connect
from optuna_nas.storage.presence import this_worker


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request, tmp_path):
    """The address of a database."""
    return f"sqlite:///{tmp_path / 'study.db'}" if request.param == "sqlite" else request.getfixturevalue("postgresql")


@pytest.fixture
def storage(address):
    """A storage as a worker has it."""
    return connect(address, Heartbeat(1, 3))


def new_study(storage):
    """A study of its own, whoever uses the database besides."""
    return optuna.create_study(storage=storage, direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))


def asked(study):
    """Ask as a worker's trial does, whose process is known."""
    trial = study.ask()
    trial.set_user_attr(WORKER, this_worker())
    return trial


def fall_silent(storage, *trials):
    """Let the last signs of life of trials be long ago."""
    with storage._backend.engine.begin() as connection:
        for trial in trials:
            query = "UPDATE trial_heartbeats SET heartbeat = '2000-01-01 00:00:00' WHERE trial_id = :trial"
            assert connection.execute(sqlalchemy.text(query), {"trial": trial._trial_id}).rowcount == 1

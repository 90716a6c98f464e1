"""Fixtures for all tests: where the real data lies, and fixed seeds."""

import logging
import os
from pathlib import Path

import pytest
import sqlalchemy
import torch
from hypothesis import Phase, settings
from servers import QUIET_MLFLOW, address_of, postgresql_server
from study_files import TINY

from optuna_nas import FreeScore

# Reproducible property tests that leave no folder behind; a test that needs fewer examples says so. Failures are not
# shrunk: what is drawn is small already, and shrinking a test that builds networks takes minutes.
settings.register_profile(
    "ours", max_examples=20, deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
)
settings.load_profile("ours")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The real tables and images, beside the repository unless OPTUNA_NAS_DATA names another place."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("OPTUNA_NAS_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"real data is absent: no folder {folder}; name one with OPTUNA_NAS_DATA")
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in, with the study `tiny.py`, and no address of MLflow in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "tiny.py").write_text(TINY)
    return tmp_path


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items):
    """Mark tests that need PostgreSQL, whose server is a process; put the long tests first, so that none is left alone.

    Tests of processes mostly wait, so that one beside another costs little.
    """
    for item in items:
        if "postgresql" in item.fixturenames:
            item.add_marker(pytest.mark.process)
    items.sort(key=lambda item: [item.get_closest_marker(name) is None for name in ("chaos", "process")])


@pytest.fixture(autouse=True)
def _seeded():
    torch.set_num_threads(min(2, torch.get_num_threads()))
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _quiet_mlflow():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET_MLFLOW.items():
            patch.setenv(name, value)
        # Without git, MLflow logs an error whose traceback, kept by pytest's log, would hold the study of the test.
        patch.setattr(logging.getLogger("mlflow.utils.git_utils"), "disabled", True)
        yield


@pytest.fixture(scope="session")
def postgresql():
    """The address of a PostgreSQL that all tests use, each a study of its own."""
    with postgresql_server() as server:
        yield address_of(server)


@pytest.fixture(autouse=True)
def closed_databases():
    """Close the connections that a test leaves open: Optuna's own storages and MLflow's clients never do."""
    used = set()

    def remember(connection):
        used.add(connection.engine)

    sqlalchemy.event.listen(sqlalchemy.Engine, "engine_connect", remember)
    yield
    sqlalchemy.event.remove(sqlalchemy.Engine, "engine_connect", remember)
    for engine in used:
        engine.dispose()


@pytest.fixture
def small_pools(monkeypatch):
    """Small pools of strategies, compared with few others: their scores are most of the seconds of a tiny study."""
    monkeypatch.setattr("optuna_nas.search.strategy.POOL_PER_TRIAL", 5)
    monkeypatch.setattr("optuna_nas.search.strategy.SMALL_POOL", 20)
    monkeypatch.setitem(FreeScore.__init__.__kwdefaults__, "reference", 10)


@pytest.fixture
def open_connections(tmp_path):
    """The connections to databases, Optuna's and MLflow's, that this test has opened and that are open now."""
    ours, connections = {}, []

    def connecting(dialect, record, arguments, named):
        # Threads that other tests have left may still write to files in the folders of those.
        ours[record] = dialect.name != "sqlite" or str(tmp_path) in str(arguments)

    def opened(connection, record):
        if ours[record]:
            connections.append(connection)

    def closed(connection, record):
        if connection in connections:
            connections.remove(connection)

    sqlalchemy.event.listen(sqlalchemy.Engine, "do_connect", connecting)
    sqlalchemy.event.listen(sqlalchemy.Pool, "connect", opened)
    sqlalchemy.event.listen(sqlalchemy.Pool, "close", closed)
    yield connections
    sqlalchemy.event.remove(sqlalchemy.Engine, "do_connect", connecting)
    sqlalchemy.event.remove(sqlalchemy.Pool, "connect", opened)
    sqlalchemy.event.remove(sqlalchemy.Pool, "close", closed)

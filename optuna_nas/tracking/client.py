"""Requests to MLflow at a tracking URI through `MlflowClient` with explicit run ids, independent of studies."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import ExitStack, contextmanager
from functools import cached_property
from math import isinf, nan
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import uuid4

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.file_utils import TempDir
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES
from mlflow.utils.rest_utils import http_request
from PIL import Image
from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from optuna_nas.storage.database import one_line, sqlite_address, sqlite_file, storage_reason
from optuna_nas.tracking.keys import MAX_PARAM_CHARACTERS, MAX_TAG_CHARACTERS, cut, keyed
from optuna_nas.tracking.records import CORRECT, THREAD_NAME, is_server, milliseconds_now, unreachable, unusable
from optuna_nas.tracking.tables import make_anew, make_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from mlflow.entities import Run
    from numpy.typing import NDArray

    from optuna_nas.tracking.records import Epoch

_logger = logging.getLogger("optuna_nas.tracking")

PROBE_SECONDS = 5
"""Timeout of a server's first answer in seconds."""
DATABASES = ("postgresql", "mysql", "mssql")
"""Databases besides SQLite that MLflow supports."""
TIMEOUTS = {
    **dict.fromkeys(("psycopg", "psycopg2"), ("connect_timeout",)),
    **dict.fromkeys(("mysqldb", "pymysql"), ("connect_timeout", "read_timeout")),
    "mysqlconnector": ("connection_timeout",),
    "pymssql": ("login_timeout",),
    "pyodbc": ("timeout",),
}
"""Arguments of databases' drivers that limit how long a connection is waited for."""
MAX_METRICS, MAX_PARAMS, MAX_TAGS = 800, 100, 100
"""Largest numbers in one request."""
NOISY_LOGGERS = ("mlflow", "alembic", "sqlalchemy", "urllib3")
"""Loggers whose messages in the tracker's thread are hidden."""
_EMPTY: Mapping[str, Any] = MappingProxyType({})


@contextmanager
def connected(uri: str, registry: bool = False) -> Iterator[MlflowClient]:
    """Connect to MLflow, and to its model registry, and close the database connections that MLflow keeps open."""
    client = MlflowClient(uri)
    try:
        yield client
    finally:
        for part in (client._tracking_client, *([client._get_registry_client()] if registry else [])):
            # Only databases have an engine, not servers. Other users of the engine in this process reconnect.
            if (engine := getattr(part.store, "engine", None)) is not None:
                engine.dispose()


def _open_database(file: Path) -> None:
    with connected(sqlite_address(file)):
        pass


class Client:
    """Client of MLflow at a tracking URI.

    Args:
        uri: `http(s)://...` of a server, or URL of a database.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.connections = ExitStack()  # closed by the calling thread at its end
        self.n_written = 0  # number of successful requests, to detect progress
        self._database = sqlite_file(uri)
        self._refused = False  # whether storing an artifact has failed

    @cached_property
    def mlflow(self) -> MlflowClient:
        """MLflow's own client; made on first use, since that opens the database."""
        if self._database is None:
            return self.connections.enter_context(connected(self.uri))
        make_tables(self._database, _open_database)
        try:
            return self.connections.enter_context(connected(self.uri))
        except Exception:  # of MLflow, SQLAlchemy or Alembic
            if not make_anew(self._database, _open_database):
                raise
        return self.connections.enter_context(connected(self.uri))

    @property
    def is_new(self) -> bool:
        """Whether the tracking URI is that of a SQLite file that is not there; whoever only reads must not make it."""
        return self._database is not None and not self._database.exists()

    def check(self) -> None:
        """Raise ConnectionError if MLflow cannot be used now, within about 5 seconds."""
        try:
            if is_server(self.uri):
                credentials = get_default_host_creds(self.uri)
                http_request(credentials, "/health", "GET", max_retries=0, timeout=PROBE_SECONDS)
            elif self._database is not None:
                sqlite3.connect(self._database).close()
            elif self.uri.partition(":")[0].partition("+")[0] in DATABASES:
                self._connect_once()
            elif not self.uri.startswith("databricks"):
                raise ValueError("this is neither a server nor a database")
        except MlflowException as error:
            raise unreachable(self.uri, "it does not answer") from error
        except (sqlite3.Error, OSError, ValueError) as error:
            raise unusable(self.uri, error) from error
        except (SQLAlchemyError, ImportError) as error:
            raise unreachable(self.uri, storage_reason(error), f"start its server, {CORRECT}") from error

    def _connect_once(self) -> None:
        """Connect to the database, without MLflow's retries, which take two minutes."""
        driver = make_url(self.uri).get_dialect().driver
        seconds = dict.fromkeys(TIMEOUTS.get(driver, ()), PROBE_SECONDS)
        create_engine(self.uri, poolclass=NullPool, connect_args=seconds).connect().close()

    def experiment_of(self, name: str, uid: str) -> str | None:
        """Return the id of the experiment that has the run of a study, first that of a name; None without one."""
        condition = f"tags.`optuna_nas.study_uid` = '{uid}' and tags.`optuna_nas.kind` = 'study'"
        named = self.mlflow.get_experiment_by_name(name)
        found = self.mlflow.search_runs([named.experiment_id], condition, max_results=1) if named else []
        if not found and (others := [other.experiment_id for other in self.mlflow.search_experiments()]):
            found = self.mlflow.search_runs(others, condition, max_results=1)
        return str(found[0].info.experiment_id) if found else None

    def find_experiment(self, name: str) -> str:
        """Return the id of an experiment, created if missing; the artifacts of a SQLite file are stored beside it."""
        experiment = self.mlflow.get_experiment_by_name(name)
        if experiment is None:
            folder = self._database and self._database.parent / "mlruns" / quote(name, safe="")
            try:
                kind = {"mlflow.experimentKind": "custom_model_development"}  # its page opens among runs, not traces
                return str(self.mlflow.create_experiment(name, folder and folder.as_uri(), kind))
            except MlflowException:  # another process created it first
                experiment = self.mlflow.get_experiment_by_name(name)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage != "active":
            again = f"`mlflow experiments restore --experiment-id {experiment.experiment_id}`"
            way_out = f"restore it ({again}), or give the tracker another `experiment`"
            raise unreachable(self.uri, f"experiment {name!r} was deleted there", way_out)
        return str(experiment.experiment_id)

    def search(self, experiment_id: str, condition: str) -> list[Run]:
        """Return the active runs of an experiment that satisfy a filter condition, oldest first."""
        order = ["attributes.start_time", "attributes.run_id"]
        runs: list[Run] = []
        token = None
        while True:
            page = self.mlflow.search_runs([experiment_id], condition, 1, 1000, order, token)
            runs += page
            if not (token := page.token):
                return runs

    def history(self, run_id: str, metric: str) -> list[Metric]:
        """Return the history of a metric, in the order of time."""
        return sorted(self.mlflow.get_metric_history(run_id, metric), key=lambda point: point.timestamp)

    def steps(self, run_id: str, metric: str) -> set[int]:
        """Return the steps of a metric's history."""
        return {point.step for point in self.history(run_id, metric)}

    def log(
        self,
        run_id: str,
        metrics: Sequence[Metric] = (),
        params: Mapping[str, str] = _EMPTY,
        tags: Mapping[str, str] = _EMPTY,
    ) -> None:
        """Log metrics, params and tags, in requests of the largest size that MLflow accepts."""
        infinite = {f"infinite.{m.key}": f"{m.value} at step {m.step}" for m in metrics if isinf(m.value)}
        # Databases would store 1.8e308; NaN is a gap in a curve, and the last in an order.
        metrics = [Metric(m.key, nan if isinf(m.value) else m.value, m.timestamp, m.step) for m in metrics]
        all_params = [Param(key, cut(value, MAX_PARAM_CHARACTERS)) for key, value in params.items()]
        all_tags = [RunTag(key, cut(value, MAX_TAG_CHARACTERS)) for key, value in {**tags, **infinite}.items()]
        while metrics or all_params or all_tags:
            self.mlflow.log_batch(run_id, metrics[:MAX_METRICS], all_params[:MAX_PARAMS], all_tags[:MAX_TAGS])
            metrics, all_params, all_tags = metrics[MAX_METRICS:], all_params[MAX_PARAMS:], all_tags[MAX_TAGS:]
            self.n_written += 1

    def end(self, run_id: str, status: str, end: int) -> None:
        """End a run; `end` in milliseconds since 1970."""
        end_run(self.mlflow, run_id, status, end)

    def store(self, save: Callable[[], None]) -> None:
        """Save an artifact, with one warning if that fails: artifacts have a storage of their own, which may fail."""
        try:
            save()
        except Exception as error:
            self.check()  # raises if MLflow itself is unreachable; the whole task is then repeated
            level = logging.DEBUG if self._refused else logging.WARNING
            self._refused = True
            _logger.log(level, "MLflow could not store an architecture or a table (%s).", one_line(error))


def end_run(client: MlflowClient, run_id: str, status: str, end: int) -> None:
    """End a run with MLflow's own client; `end` in milliseconds since 1970."""
    # `set_terminated` prints the URL of a server's run; the store behind the client does not.
    client._tracking_client.store.update_run_info(run_id, RunStatus.from_string(status), end, None)


def log_picture(client: MlflowClient, run_id: str, picture: NDArray[np.uint8], key: str) -> None:
    """Log a picture for MLflow's grid of images, which shows it as large as it is.

    `MlflowClient.log_image` stores a preview of 256 pixels beside the picture, and the grid shows the preview: letters
    are not legible there. This one stores a preview of the same size, under names as MLflow 3.17 gives them. The grid
    has squares, in whose middle it places a picture, out of sight in a low card; so there is white below one that is
    wider than high.

    Args:
        client: MLflow's client.
        run_id: Id of the run.
        picture: RGBA pixels, shape (height, width, 4).
        key: Key of the picture in the grid.
    """
    drawn = Image.fromarray(picture).convert("RGB")
    image = Image.new("RGB", (drawn.width, max(drawn.size)), "white")
    image.paste(drawn)
    with TempDir() as folder:
        name = folder.path(f"{key}+step+0+timestamp+{milliseconds_now()}+{uuid4()}")
        image.save(f"{name}.png")
        image.save(f"{name}+compressed.webp", lossless=True)
        for file in (f"{name}.png", f"{name}+compressed.webp"):
            client.log_artifact(run_id, file, "images")
    client.set_tag(run_id, MLFLOW_LOGGED_IMAGES, "True")


def metrics_of(epochs: Iterable[Epoch]) -> list[Metric]:
    """Return points of learning curves as MLflow's metrics."""
    return [
        Metric(key, float(value), epoch.time, epoch.step)
        for epoch in epochs
        for key, value in keyed(epoch.metrics).items()
    ]


def silence() -> None:
    """Hide messages of MLflow, Alembic and urllib3 in the tracker's thread."""
    logging.getLogger("urllib3.connectionpool").addFilter(_is_elsewhere)
    for handler in logging.getLogger("mlflow").handlers:
        handler.addFilter(_is_elsewhere)


def _is_elsewhere(record: logging.LogRecord) -> bool:
    return record.threadName != THREAD_NAME or not record.name.startswith(NOISY_LOGGERS)

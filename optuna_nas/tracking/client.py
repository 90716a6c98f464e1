"""Requests to MLflow at one address, through `MlflowClient` and explicit run ids; knows no study and no thread."""

from __future__ import annotations

import logging
import socket
import sqlite3
from contextlib import ExitStack, contextmanager
from functools import cached_property
from math import isinf
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from optuna_nas.storage.database import one_line
from optuna_nas.tracking.keys import MAX_PARAM_CHARACTERS, MAX_TAG_CHARACTERS, cut, keyed
from optuna_nas.tracking.records import SQLITE, THREAD_NAME, is_server, unreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from mlflow.entities import Run

    from optuna_nas.tracking.records import Epoch

_logger = logging.getLogger("optuna_nas.tracking")

PROBE_SECONDS = 5
"""In which a server must say something."""
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
"""Databases besides SQLite that MLflow writes to, and where they listen."""
MAX_METRICS, MAX_PARAMS, MAX_TAGS = 800, 100, 100
"""Of one request."""
NOISY_LOGGERS = ("mlflow", "alembic", "sqlalchemy", "urllib3")
"""What they say in the tracker's thread is nobody's business."""
_EMPTY: Mapping[str, Any] = MappingProxyType({})


@contextmanager
def connected(uri: str, registry: bool = False) -> Iterator[MlflowClient]:
    """Let a block talk to MLflow, and to its registry of models, and close what MLflow would keep open for good."""
    client = MlflowClient(uri)
    try:
        yield client
    finally:
        for part in (client._tracking_client, *([client._get_registry_client()] if registry else [])):
            # Of a database, not of a server. What else in this process uses it opens a connection again.
            if (engine := getattr(part.store, "engine", None)) is not None:
                engine.dispose()


class Client:
    """MLflow at one address.

    Args:
        uri: `http(s)://...` of a server, or a database.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.connections = ExitStack()  # to be closed by the thread that calls, once it is done
        self.n_written = 0  # requests; a number that grows tells that MLflow takes what it is given
        self._database = Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None
        self._refused = False  # an artifact could not be stored

    @cached_property
    def mlflow(self) -> MlflowClient:
        """MLflow's own client; made when first used, since that opens a database."""
        return self.connections.enter_context(connected(self.uri))

    def check(self) -> None:
        """Raise ConnectionError where MLflow can't be used now, within some 5 seconds."""
        parts = urlsplit(self.uri)
        try:
            if is_server(self.uri):
                credentials = get_default_host_creds(self.uri)
                http_request(credentials, "/health", "GET", max_retries=0, timeout=PROBE_SECONDS)
            elif self._database is not None:
                sqlite3.connect(self._database).close()
            elif (kind := parts.scheme.split("+")[0]) in DATABASE_PORTS:
                if parts.hostname is not None:
                    address = (parts.hostname, parts.port or DATABASE_PORTS[kind])
                    socket.create_connection(address, PROBE_SECONDS).close()
            elif not self.uri.startswith("databricks"):
                raise ValueError("this is neither a server nor a database")
        except MlflowException as error:
            raise unreachable(self.uri, "it does not answer") from error
        except (sqlite3.Error, OSError, ValueError) as error:
            raise unreachable(self.uri, one_line(error)) from error

    def find_experiment(self, name: str) -> str:
        """Return the id of an experiment, made where there is none; artifacts of a SQLite file lie beside it."""
        experiment = self.mlflow.get_experiment_by_name(name)
        if experiment is None:
            folder = self._database and self._database.parent / "mlruns" / quote(name, safe="")
            try:
                return str(self.mlflow.create_experiment(name, folder and folder.as_uri()))
            except MlflowException:  # another process was faster
                experiment = self.mlflow.get_experiment_by_name(name)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage != "active":
            raise unreachable(self.uri, f"experiment {name!r} was deleted there")
        return str(experiment.experiment_id)

    def search(self, experiment_id: str, condition: str) -> list[Run]:
        """Return the active runs of an experiment for which a condition holds, oldest first."""
        order = ["attributes.start_time", "attributes.run_id"]
        runs: list[Run] = []
        token = None
        while True:
            page = self.mlflow.search_runs([experiment_id], condition, 1, 1000, order, token)
            runs += page
            if not (token := page.token):
                return runs

    def history(self, run_id: str, metric: str) -> list[Metric]:
        """Return the points of a curve, in the order of their time."""
        return sorted(self.mlflow.get_metric_history(run_id, metric), key=lambda point: point.timestamp)

    def steps(self, run_id: str, metric: str) -> set[int]:
        """Return the steps at which a curve has a point."""
        return {point.step for point in self.history(run_id, metric)}

    def log(
        self,
        run_id: str,
        metrics: Sequence[Metric] = (),
        params: Mapping[str, str] = _EMPTY,
        tags: Mapping[str, str] = _EMPTY,
    ) -> None:
        """Write all of it, in pieces as large as MLflow takes."""
        infinite = {f"infinite.{m.key}": f"{m.value} at step {m.step}" for m in metrics if isinf(m.value)}
        metrics = [metric for metric in metrics if not isinf(metric.value)]  # a database would hold 1.8e308
        all_params = [Param(key, cut(value, MAX_PARAM_CHARACTERS)) for key, value in params.items()]
        all_tags = [RunTag(key, cut(value, MAX_TAG_CHARACTERS)) for key, value in {**tags, **infinite}.items()]
        while metrics or all_params or all_tags:
            self.mlflow.log_batch(run_id, metrics[:MAX_METRICS], all_params[:MAX_PARAMS], all_tags[:MAX_TAGS])
            metrics, all_params, all_tags = metrics[MAX_METRICS:], all_params[MAX_PARAMS:], all_tags[MAX_TAGS:]
            self.n_written += 1

    def end(self, run_id: str, status: str, end: int) -> None:
        """Close a run; `end` in milliseconds."""
        # `set_terminated` of a server's run prints its address; the store behind it does not.
        store = self.mlflow._tracking_client.store
        store.update_run_info(run_id, RunStatus.from_string(status), end, None)

    def store(self, save: Callable[[], None]) -> None:
        """Save an artifact, or do without: files go to a place of their own, which may refuse what MLflow takes."""
        try:
            save()
        except Exception as error:
            self.check()  # MLflow itself is away: then all of it is done again
            level = logging.DEBUG if self._refused else logging.WARNING
            self._refused = True
            _logger.log(level, "MLflow could not store an architecture or a table (%s).", one_line(error))


def metrics_of(epochs: Iterable[Epoch]) -> list[Metric]:
    """Return MLflow's form of points of curves."""
    return [
        Metric(key, float(value), epoch.time, epoch.step)
        for epoch in epochs
        for key, value in keyed(epoch.metrics).items()
    ]


def silence() -> None:
    """Keep what MLflow, Alembic and urllib3 have to say in the tracker's thread out of the user's terminal."""
    logging.getLogger("urllib3.connectionpool").addFilter(_is_elsewhere)
    for handler in logging.getLogger("mlflow").handlers:
        handler.addFilter(_is_elsewhere)


def _is_elsewhere(record: logging.LogRecord) -> bool:
    return record.threadName != THREAD_NAME or not record.name.startswith(NOISY_LOGGERS)

"""A study mirrored in MLflow: a run for the study, a child run for each trial, and a comparison view to open.

Optuna's storage is the truth. What MLflow misses while its server is away is written later from the study, by `finish`
or by the next `start`; nothing here ever raises into a search that has begun, or makes a trial wait.

    tracker = MLflowTracker()
    tracker.start(study, space=space)
    study.optimize(objective, callbacks=[tracker.trial_finished])    # the objective calls trial_started and epoch
    tracker.finish(study)
    print(tracker.command)

`MLflowTracker` is the queue and its thread and knows nothing of MLflow; `_Mirror` talks to MLflow and knows no threads.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import socket
import sqlite3
import threading
import time
import uuid
from collections import Counter, defaultdict, deque
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from math import inf
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from optuna.study import StudyDirection
from optuna.trial import TrialState

from optuna_nas.plots import plot_architecture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    import optuna
    from mlflow.entities import Run
    from optuna.trial import FrozenTrial

    from optuna_nas.space import Space

_logger = logging.getLogger(__name__)

STATUSES = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED", TrialState.FAIL: "FAILED"}
"""How a trial's state is called in MLflow."""

THREAD_NAME = "optuna_nas.tracking"
NOISY = ("mlflow", "alembic", "sqlalchemy", "urllib3")  # loggers whose messages from that thread are nobody's business
MAX_RECORDS = 10_000  # waiting for MLflow; about 10 MB
FLUSH_SECONDS = 0.5  # how long records are gathered, so that many epochs become one request
RETRY_PAUSES = (0.5, 1.0, 2.0)  # seconds between attempts, before a record is given up
DOWN_SECONDS = 5.0  # how long a server that was given up is left alone
PROBE_SECONDS = 5  # in which a server must say something
START_SECONDS = 120.0  # the tables of a new database take their time
FRESH_SECONDS = 10.0  # how long a trial of another process is left to that process
STALL_SECONDS = 30.0  # `finish` gives up after so long without progress

MAX_PARALLEL_AXES = 8  # more can't be read side by side
SCATTER_ATTRIBUTES = ("surrogate_score", "params")
"""User attributes to draw against the value, best first: what a one-shot model guessed, what the network costs."""

COLOURS = {"study": "#333333", "best": "#d62728", "COMPLETE": "#7fa8c9", "PRUNED": "#c8c8c8", "FAIL": "#e3b7b7"}
"""Of the runs' points and curves; all but the winner's are pale."""
BEST = " (best)"

PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
"""Databases besides SQLite that MLflow writes to, and where they listen."""
UID_ATTRIBUTE = "optuna_nas:study_uid"
RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
PICTURE_KEY = "architecture"
SQLITE = "sqlite:///"
LOCAL_SERVER = "http://127.0.0.1:5000"  # where `mlflow ui` listens

_EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class DatasetInfo:
    """What MLflow shows about a data set; nothing is read.

    Args:
        name: Such as `cifar10`.
        source: Where it comes from: an address, a path, a package.
        digest: What tells its versions apart; MLflow keeps the first 36 characters.
    """

    name: str
    source: str
    digest: str


def mlflow_keys(names: Iterable[str]) -> dict[str, str]:
    """Return for each name a key that MLflow accepts; different names get different keys.

    A name that MLflow accepts stays as it is. An edge `normal/2<-0` becomes `normal/2-0`, so that keys sort like the
    edges. What is still forbidden, taken or too long is spelt with underscores and a digest of the name.
    """
    ordered = sorted(set(names))
    keys = {name: name for name in ordered if _is_key(name)}
    for name in ordered:
        if name not in keys:
            key = name.replace("<-", "-")
            if not _is_key(key) or key in keys.values():
                key = f"{re.sub(r'[^a-zA-Z0-9-]', '_', key)[:200]}.{blake2b(name.encode(), digest_size=4).hexdigest()}"
            keys[name] = key
    return keys


def _is_key(name: str) -> bool:
    """Whether MLflow takes it: allowed characters, at most 250, and a path that is already as short as it can be."""
    parts = name.split("/")
    return len(name) <= 250 and re.fullmatch(r"[\w\-. :/]+", name) is not None and not {"", ".", ".."} & set(parts)


def comparison_view(
    metric: str, *, maximize: bool, params: Sequence[str], scatter: str, winner: str, study_uid: str
) -> dict[str, Any]:
    """Return the state of MLflow's run page that compares the trials of a study.

    This is what the page itself stores for "Share view", read off MLflow 3.17; it is documented nowhere. A page that
    does not understand it shows its own charts.

    Args:
        metric: The objective's value.
        maximize: Whether more of it is better.
        params: Keys of the parameters to draw as parallel axes.
        scatter: Key of the metric to draw against the value.
        winner: Key of the picture of the best architecture, empty as long as there is none.
        study_uid: Whose runs to show.
    """
    line = {"type": "LINE", "xAxisKey": "step", "useGlobalXaxisKey": False, "lineSmoothness": 0, "displayPoints": True}
    best_value = line | {"metricKey": "best_value", "selectedMetricKeys": ["best_value"]}
    scatter_plot = {"type": "SCATTER"} | {
        axis: {"key": key, "type": "METRIC"} for axis, key in (("xaxis", scatter), ("yaxis", metric))
    }
    choices = {"type": "PARALLEL", "selectedParams": list(params), "selectedMetrics": [metric], "showAllRuns": False}
    pictures = tuple(
        {"type": "IMAGE", "imageKeys": [key], "step": 0, "showRunParams": False} for key in (winner, PICTURE_KEY) if key
    )
    curves = line | {"metricKey": metric, "selectedMetricKeys": [metric]}
    sections: dict[str, tuple[dict[str, Any], ...]] = {
        "1. Which trial won": (best_value, scatter_plot),
        "2. What it chose": (choices,),
        "3. What it looks like": pictures,
        "4. How it learned": (curves,),
    }
    kept = {"isGenerated": False, "deleted": False}  # the page may neither replace nor hide it
    return {
        "searchFilter": f"tags.`optuna_nas.study_uid` = '{study_uid}'",
        "orderByKey": f"metrics.`{metric}`",
        "orderByAsc": not maximize,
        "runsHiddenMode": "SHOW_ALL",
        "compareRunSections": [
            {"uuid": name, "name": name, "display": True, "isReordered": True, "columns": len(charts), **kept}
            for name, charts in sections.items()
        ],
        "compareRunCharts": [
            chart | {"uuid": f"{name}{i}", "metricSectionId": name, "runsCountToCompare": 100, **kept}
            for name, charts in sections.items()
            for i, chart in enumerate(charts)
        ],
    }


class MLflowTracker:
    """Keeps MLflow a mirror of a study, from a thread of its own; safe to call from many threads.

    A call takes far less than a millisecond: it puts a record into a queue of bounded length. A server that goes away
    costs one warning; what it missed is written from the study by `finish` or by the next `start`. Before `start` has
    succeeded and after `finish`, calls do nothing. A pickled tracker has not started.

    MLflow tries to reach a lost server for four minutes. So `MLFLOW_HTTP_REQUEST_MAX_RETRIES`, which is all that MLflow
    listens to, is 1 in the whole process while the tracker of a server runs, unless you have set it.

    Args:
        tracking_uri: `http(s)://...` of an MLflow server, or a database such as `sqlite:///mlflow.db`. By default
            `MLFLOW_TRACKING_URI` of the environment, or else `sqlite:///mlflow.db` in the working folder.
        experiment: Name of the MLflow experiment; `optuna_nas` by default.
        metric: Name of the objective's value. `epoch` metrics of that name are its learning curve.
    """

    def __init__(
        self, tracking_uri: str | None = None, experiment: str | None = None, metric: str = "accuracy"
    ) -> None:
        self.tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
        self.experiment = experiment or "optuna_nas"
        self.metric = metric
        self.store_uri = self.tracking_uri  # with a database where it is now, whoever changes the folder later
        if self.tracking_uri.startswith(SQLITE):
            self.store_uri = SQLITE + str(Path(self.tracking_uri.removeprefix(SQLITE)).absolute())
        self._reset(None)

    def _reset(self, mirror: _Mirror | None) -> None:
        self._mirror = mirror
        self._thread: threading.Thread | None = None
        self._condition = threading.Condition()
        self._records: deque[_Epoch | _Task] = deque()
        self._awaited = False  # somebody waits for the last record
        self._limited = False  # MLflow's attempts, by us
        self._warned = False
        self._down_until = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("tracking_uri", "store_uri", "experiment", "metric")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset(None)

    # -- what a search calls --------------------------------------------------------------------------------------

    def start(
        self,
        study: optuna.Study,
        *,
        space: Space | None = None,
        description: str = "",
        dataset: DatasetInfo | None = None,
        params: Mapping[str, object] = _EMPTY,
    ) -> None:
        """Connect, and find or make the run of this study; what MLflow missed of it is then written in passing.

        Args:
            study: Gets the user attribute `optuna_nas:study_uid`, by which its run is found again. Of several
                objectives the first decides which trial is the best; the others are shown as metrics.
            space: Decodes the trials' parameters to the architectures to draw.
            description: Markdown, shown on the study's run.
            dataset: Shown on the study's run.
            params: Of the search, shown on the study's run. One that changed since the study began becomes a tag.

        Raises:
            ConnectionError: MLflow can't be used at the address; one that does not answer is found out within 10
                seconds.
        """
        self._stop()
        mirror = _Mirror(self.store_uri, self.experiment, self.metric, space)
        self._reset(mirror)
        if self.served and RETRIES not in os.environ:
            os.environ[RETRIES], self._limited = "1", True
        self._thread = threading.Thread(target=self._work, args=(mirror,), name=THREAD_NAME, daemon=True)
        self._thread.start()
        missed = _finished(study)  # what finishes from now on comes by `trial_finished`
        opened = self._put_awaited(partial(mirror.open, study, description, dataset, params), pauses=())
        try:
            opened.result(START_SECONDS)
        except Exception as error:
            self._stop()
            self._mirror = None
            if isinstance(error, ConnectionError):
                raise
            raise _unreachable(self.tracking_uri, _one_line(error)) from error
        self._put(_Task(partial(mirror.replay, study, missed)))

    def trial_started(self, trial: optuna.Trial | FrozenTrial, metrics: Mapping[str, float] = _EMPTY) -> None:
        """Open the run of a trial, with the parameters that it has by now.

        Args:
            trial: A running trial.
            metrics: What is known before training: costs, a guessed accuracy.
        """
        if (mirror := self._mirror) is None or self._thread is None:
            return
        begun = _Begun(trial.number, dict(trial.params), _milliseconds(trial.datetime_start))
        mirror.running[trial.number] = begun
        self._put(_Task(partial(mirror.trial_started, begun, _Epoch(trial.number, 0, dict(metrics), _now()))))

    def epoch(self, trial_number: int, step: int, metrics: Mapping[str, float]) -> None:
        """Add a point to the learning curves of a trial; `step` is the epoch, as reported to Optuna."""
        self._put(_Epoch(trial_number, step, dict(metrics), _now()))

    def trial_finished(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Close the run of a trial that Optuna has finished: value, attributes, architecture, status, end.

        An Optuna callback. Numbers among the user attributes become metrics, the others tags.
        """
        if (mirror := self._mirror) is None or self._thread is None:
            return
        mirror.own.add(trial.number)
        mirror.running.pop(trial.number, None)
        self._put(_Task(partial(mirror.trial_finished, study, trial)))

    def finish(self, study: optuna.Study, status: str = "FINISHED") -> None:
        """Write what MLflow missed and the leaderboard, close the study's run and stop the thread.

        Returns early, with a warning, where MLflow makes no progress for 30 seconds.

        Args:
            study: The study of `start`.
            status: `FINISHED`, or `KILLED` for a search that was interrupted.
        """
        if (mirror := self._mirror) is None or self._thread is None:
            return
        closed = self._put_awaited(partial(mirror.close, study, status), pauses=RETRY_PAUSES)
        n_written = -1
        while not closed.done() and n_written != mirror.n_written:
            n_written = mirror.n_written
            wait([closed], STALL_SECONDS)
        self._stop()
        stalled = TimeoutError(f"no progress for {STALL_SECONDS:.0f} seconds")
        if (error := closed.exception() if closed.done() else stalled) is not None:
            _logger.warning("MLflow lacks part of the study (%s); the next start writes it.", _one_line(error))

    @property
    def served(self) -> bool:
        """Whether the address is a server's; a database needs one of its own to be looked at."""
        return _is_server(self.tracking_uri)

    @property
    def view_url(self) -> str:
        """Address of the comparison view of the started study; of a database, once `command` runs."""
        if self._mirror is None:
            raise RuntimeError("`view_url` is known once the tracker has started; call `start(study)` first.")
        return self._mirror.view_url

    @property
    def command(self) -> str:
        """What to type to see the comparison view: a server's address, or what serves a database and the address."""
        if self.served:
            return self.view_url
        return f"mlflow ui --backend-store-uri {shlex.quote(self.tracking_uri)}\n{self.view_url}"

    def find_view(self, study: optuna.Study, local_server: str = LOCAL_SERVER) -> str:
        """Return the address of the comparison view of a study that was tracked before, without starting.

        Args:
            study: Of `start`, perhaps long ago.
            local_server: Where a database is or will be served.

        Raises:
            ConnectionError: MLflow can't be used at the address.
            ValueError: MLflow does not know the study.
        """
        _Mirror(self.store_uri, self.experiment, self.metric, None).check()
        uid = str(study.user_attrs.get(UID_ATTRIBUTE, ""))
        experiment = MlflowClient(self.store_uri).get_experiment_by_name(self.experiment) if uid else None
        if experiment is None:
            raise ValueError(
                f"`study` must have been tracked at {_shown(self.tracking_uri)} but MLflow does not know "
                f"{study.study_name!r}; run it with this tracker first."
            )
        return _view_url(self.store_uri, local_server, experiment.experiment_id, uid)

    # -- the queue and its thread ---------------------------------------------------------------------------------

    def _put(self, record: _Epoch | _Task) -> None:
        with self._condition:
            if self._thread is None:
                return
            awaited = isinstance(record, _Task) and record.done is not None
            if awaited or len(self._records) < MAX_RECORDS:
                self._records.append(record)
                self._awaited |= awaited
                self._condition.notify()
            else:
                self._warn(MemoryError(f"{MAX_RECORDS} records wait"))

    def _put_awaited(self, action: Callable[[], None], pauses: Sequence[float]) -> Future[None]:
        done: Future[None] = Future()
        self._put(_Task(action, done, pauses))
        return done

    def _stop(self) -> None:
        with self._condition:
            self._thread = None
            self._condition.notify()
        if self._limited:
            os.environ.pop(RETRIES, None)
            self._limited = False

    def _work(self, mirror: _Mirror) -> None:
        """Hand the records to the mirror in their order; epochs that follow each other go together."""
        me = threading.current_thread()
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._records or self._thread is not me)
                self._condition.wait_for(lambda: self._awaited or self._thread is not me, FLUSH_SECONDS)
                if self._thread is not me:
                    return
                records, self._awaited = list(self._records), False
                self._records.clear()
            for task in _merged(records, mirror):
                self._deliver(mirror, task)

    def _deliver(self, mirror: _Mirror, task: _Task) -> None:
        """Do a task; after some attempts give it up, the study still knows."""
        if task.done is None and time.monotonic() < self._down_until:
            return
        for pause in (*task.pauses, None):
            try:
                mirror.check()
                task.action()
            except Exception as error:  # a mirror must not break what it shows
                if pause is not None:
                    time.sleep(pause)
                    continue
                if isinstance(error, ConnectionError):
                    self._down_until = time.monotonic() + DOWN_SECONDS
                if task.done is not None:
                    task.done.set_exception(error)
                else:
                    self._warn(error)
            else:
                if task.done is not None:
                    task.done.set_result(None)
                return

    def _warn(self, error: BaseException) -> None:
        """Warn once: later failures are of the same kind."""
        level = logging.DEBUG if self._warned else logging.WARNING
        self._warned = True
        message = "MLflow misses part of the study (%s); the search goes on, and its end writes what is missing."
        _logger.log(level, message, _one_line(error))


class _Begun(NamedTuple):
    """A trial as its run is opened; `start` in milliseconds."""

    number: int
    params: dict[str, Any]
    start: int


class _Epoch(NamedTuple):
    """A point of the learning curves of a trial; `time` in milliseconds."""

    number: int
    step: int
    metrics: dict[str, float]
    time: int


class _Task(NamedTuple):
    """Something to do for the mirror; `done` where somebody waits for it."""

    action: Callable[[], None]
    done: Future[None] | None = None
    pauses: Sequence[float] = RETRY_PAUSES


class _Child(NamedTuple):
    """The run of a trial."""

    run_id: str
    status: str
    name: str

    @staticmethod
    def of(run: Run) -> _Child:
        return _Child(run.info.run_id, run.info.status, run.info.run_name)


class _Mirror:
    """Tells MLflow about a study. Everything may be done again after it failed half-way, with the same outcome.

    Used by one thread, but for `running`, which the trials' threads fill.
    """

    def __init__(self, uri: str, experiment: str, metric: str, space: Space | None) -> None:
        self._uri, self._experiment, self._metric, self._space = uri, experiment, metric, space
        self._database = Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None
        self.running: dict[int, _Begun] = {}
        self.n_written = 0
        self.view_url = ""
        self._children: dict[int, _Child] = {}
        self.own: set[int] = set()  # trials that finished in this process; filled by their threads, like `running`
        self._steps: set[int] = set()  # of the study's curves
        self._scatter = SCATTER_ATTRIBUTES[-1]
        self._refused = False  # an artifact could not be stored

    # -- the address ----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise ConnectionError where MLflow can't be used now, within some 5 seconds."""
        parts = urlsplit(self._uri)
        try:
            if _is_server(self._uri):
                credentials = get_default_host_creds(self._uri)
                http_request(credentials, "/health", "GET", max_retries=0, timeout=PROBE_SECONDS)
            elif self._database is not None:
                sqlite3.connect(self._database).close()
            elif (kind := parts.scheme.split("+")[0]) in PORTS:
                if parts.hostname is not None:
                    socket.create_connection((parts.hostname, parts.port or PORTS[kind]), PROBE_SECONDS).close()
            elif not self._uri.startswith("databricks"):
                raise ValueError("this is neither a server nor a database")
        except MlflowException as error:
            raise _unreachable(self._uri, "it does not answer") from error
        except (sqlite3.Error, OSError, ValueError) as error:
            raise _unreachable(self._uri, _one_line(error)) from error

    def open(
        self, study: optuna.Study, description: str, dataset: DatasetInfo | None, params: Mapping[str, object]
    ) -> None:
        """Find or make the experiment and the study's run."""
        _silence()
        self._client = MlflowClient(self._uri)
        self._experiment_id = self._find_experiment()
        self._maximize = study.directions[0] == StudyDirection.MAXIMIZE
        self._objectives = study.metric_names or [f"objective {i}" for i in range(len(study.directions))]
        uid = _study_uid(study)
        self._tags = {"optuna.study_name": study.study_name, "optuna_nas.study_uid": uid}
        self.view_url = _view_url(self._uri, LOCAL_SERVER, self._experiment_id, uid)

        parent = self._find_parent(study)
        self._parent_id = parent.info.run_id
        self._client.update_run(self._parent_id, status="RUNNING")
        keys = mlflow_keys(params)
        known = parent.data.params
        texts = {keys[name]: _text(value) for name, value in params.items()}
        changed = {f"changed.{key}": text for key, text in texts.items() if known.get(key, text) != text}
        note = {"mlflow.note.content": description} if description else {}
        self._log(self._parent_id, (), {key: text for key, text in texts.items() if key not in known}, note | changed)
        if dataset is not None:
            entity = Dataset(dataset.name, dataset.digest[:36], "external", json.dumps({"uri": dataset.source}))
            context = InputTag("mlflow.data.context", "search")
            self._client.log_inputs(self._parent_id, datasets=[DatasetInput(entity, [context])])
        self._save_view(study)

    def _find_experiment(self) -> str:
        experiment = self._client.get_experiment_by_name(self._experiment)
        if experiment is None:
            folder = self._database and self._database.parent / "mlruns" / quote(self._experiment, safe="")
            try:
                return str(self._client.create_experiment(self._experiment, folder and folder.as_uri()))
            except MlflowException:  # another process was faster
                experiment = self._client.get_experiment_by_name(self._experiment)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage != "active":
            raise _unreachable(self._uri, f"experiment {self._experiment!r} was deleted there")
        return str(experiment.experiment_id)

    def _find_parent(self, study: optuna.Study) -> Run:
        condition = "tags.`optuna_nas.kind` = 'study'"
        if not (found := self._search(condition)):
            starts = [trial.datetime_start for trial in study.get_trials(deepcopy=False) if trial.datetime_start]
            tags = self._tags | {"optuna_nas.kind": "study", "mlflow.runColor": COLOURS["study"]}
            start = _milliseconds(min(starts, default=None))
            made = self._client.create_run(self._experiment_id, start, tags, study.study_name)
            found = self._search(condition)
            if made.info.run_id != found[0].info.run_id:  # another process was as fast; both take the first
                self._client.delete_run(made.info.run_id)
        return found[0]

    def _search(self, condition: str) -> list[Run]:
        """Return the runs of this study for which the condition holds, oldest first."""
        query = f"tags.`optuna_nas.study_uid` = '{self._tags['optuna_nas.study_uid']}' and {condition}"
        order = ["attributes.start_time", "attributes.run_id"]
        runs: list[Run] = []
        token = None
        while True:
            page = self._client.search_runs([self._experiment_id], query, 1, 1000, order, token)
            runs += page
            if not (token := page.token):
                return runs

    # -- trials ---------------------------------------------------------------------------------------------------

    def trial_started(self, begun: _Begun, first: _Epoch) -> None:
        """Make the run of a trial, with what is known before training."""
        self._log(self._child(begun.number, begun.start), _points(first), _param_texts(begun.params))

    def epochs(self, epochs: Sequence[_Epoch]) -> None:
        """Add points to learning curves, one request a trial."""
        points: dict[int, list[Metric]] = defaultdict(list)
        for epoch in epochs:
            points[epoch.number] += _points(epoch)
        for number, metrics in points.items():
            if number in self._children:
                self._log(self._children[number].run_id, metrics)
            elif (begun := self.running.get(number)) is not None:
                self._log(self._child(number, begun.start), metrics, _param_texts(begun.params))

    def trial_finished(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Close the run of a trial of this process, and continue the study's curves."""
        self._write_trial(trial)
        self._write_curves(study, set(self.own))
        if self._scatter != SCATTER_ATTRIBUTES[0] and SCATTER_ATTRIBUTES[0] in trial.user_attrs:
            self._save_view(study)

    def _write_trial(self, trial: FrozenTrial) -> None:
        """Complete and close the run of a trial; the status comes last, so that a run that has it lacks nothing."""
        run_id = self._child(trial.number, _milliseconds(trial.datetime_start))
        run, end = self._client.get_run(run_id), _milliseconds(trial.datetime_complete)

        curve = {point.step: point for point in self._history(run_id, self._metric)}
        missing = {step: value for step, value in trial.intermediate_values.items() if step not in curve}
        metrics = [Metric(self._metric, value, end, step) for step, value in sorted(missing.items())]
        curve |= {point.step: point for point in metrics}
        if trial.values and (not curve or curve[max(curve)].value != trial.values[0]):
            step, after = max(curve, default=0), max((point.timestamp for point in curve.values()), default=0) + 1
            metrics.append(Metric(self._metric, trial.values[0], max(end, after), step))  # of a step, the latest counts
        numbers = {name: value for name, value in trial.user_attrs.items() if _is_number(name, value)}
        shown = numbers | dict(zip(self._objectives[1:], (trial.values or [])[1:], strict=False))
        attributes = {key: value for key, value in _keyed(shown).items() if key not in run.data.metrics}
        metrics += [Metric(key, float(value), end, 0) for key, value in attributes.items() if key != self._metric]
        texts = {name: _text(value) for name, value in trial.user_attrs.items() if name not in numbers}
        tags = _keyed(texts) | {"optuna.state": trial.state.name, "mlflow.runColor": COLOURS[trial.state.name]}
        self._log(run_id, metrics, _param_texts(trial.params), tags)
        if "mlflow.loggedImages" not in run.data.tags:
            self._store(partial(self._draw, trial, run_id))
        self._end(run_id, STATUSES[trial.state], end)
        self._children[trial.number] = self._children[trial.number]._replace(status=STATUSES[trial.state])

    def _draw(self, trial: FrozenTrial, run_id: str, key: str = PICTURE_KEY) -> None:
        try:
            architecture = None if self._space is None else self._space.decode(trial.params)
        except ValueError:  # it failed before everything was chosen, or an earlier search had another space
            architecture = None
        if architecture is not None:
            canvas = FigureCanvasAgg(plot_architecture(architecture))
            canvas.draw()  # type: ignore[no-untyped-call]
            picture = np.array(canvas.buffer_rgba(), np.uint8)  # type: ignore[no-untyped-call]
            self._client.log_text(run_id, architecture.to_json(), "architecture.json")
            self._client.log_image(run_id, picture, "architecture.png")
            self._client.log_image(run_id, picture, key=key, step=0)

    def _store(self, save: Callable[[], None]) -> None:
        """Save an artifact, or do without: files go to a place of their own, which may refuse what MLflow takes."""
        try:
            save()
        except Exception as error:
            self.check()  # MLflow itself is away: then all of it is done again
            level = logging.DEBUG if self._refused else logging.WARNING
            self._refused = True
            _logger.log(level, "MLflow could not store an architecture or a table (%s).", _one_line(error))

    def _child(self, number: int, start: int) -> str:
        """Return the run of a trial, made where MLflow has none."""
        if number not in self._children:
            if not (found := self._search(f"tags.`optuna.trial_number` = '{number}'")):
                own = {"mlflow.parentRunId": self._parent_id, "optuna.trial_number": str(number)}
                tags = self._tags | {"optuna_nas.kind": "trial"} | own
                found = [self._client.create_run(self._experiment_id, start, tags, f"trial {number}")]
            self._children[number] = _Child.of(found[0])
        return self._children[number].run_id

    # -- the study ------------------------------------------------------------------------------------------------

    def replay(self, study: optuna.Study, finished: Sequence[FrozenTrial]) -> None:
        """Write what MLflow misses of these trials, whoever ran them."""
        children = self._search("tags.`optuna_nas.kind` = 'trial'")
        self._children = {int(run.data.tags["optuna.trial_number"]): _Child.of(run) for run in reversed(children)}
        self._steps = {point.step for point in self._history(self._parent_id, "n_complete")}
        for trial in finished:
            child = self._children.get(trial.number)
            if child is None or not (child.status == STATUSES[trial.state] or self._is_being_closed(trial, child)):
                self._write_trial(trial)
        self._write_curves(study, {trial.number for trial in finished})
        self._save_view(study)

    def _is_being_closed(self, trial: FrozenTrial, child: _Child) -> bool:
        """Whether another process has only just finished the trial and still writes its curves."""
        fresh = _now() - _milliseconds(trial.datetime_complete) < FRESH_SECONDS * 1000
        return fresh and child.status == "RUNNING" and trial.number not in self.own

    def close(self, study: optuna.Study, status: str) -> None:
        """Write what is missing and the leaderboard, name the winner, close the study's run."""
        for number in self.running.keys() & self._children.keys():  # cut off in the middle
            self._end(self._children[number].run_id, "KILLED", _now())
        self.running.clear()
        self.replay(study, _finished(study))
        ranked = self._ranked(study)
        if ranked and self._counts(ranked[0]):
            self._crown(ranked[0])
        self._save_view(study)
        table = json.dumps(self._leaderboard(ranked))
        self._store(partial(self._client.log_text, self._parent_id, table, "leaderboard.json"))
        self._log(
            self._parent_id, (), tags={"mlflow.loggedArtifacts": '[{"path": "leaderboard.json", "type": "table"}]'}
        )
        self._end(self._parent_id, status, _now())

    def _crown(self, best: FrozenTrial) -> None:
        """Give the best trial its name, its colour and a picture that the view shows by itself."""
        for number, child in self._children.items():
            wins = number == best.number
            if (name := f"trial {number}" + BEST * wins) != child.name:
                if wins:
                    self._store(partial(self._draw, best, child.run_id, _winner_key(number)))
                colour = COLOURS["best" if wins else "COMPLETE"]
                self._log(child.run_id, (), tags={"mlflow.runColor": colour})
                self._client.update_run(child.run_id, name=name)
                self._children[number] = child._replace(name=name)

    def _counts(self, trial: FrozenTrial) -> bool:
        """Whether a trial can be the best."""
        return trial.state == TrialState.COMPLETE and all(excess <= 0 for excess in trial.constraints.values())

    def _ranked(self, study: optuna.Study) -> list[FrozenTrial]:
        """Return the finished trials, best first; those without a value or beyond a constraint come last."""

        def rank(trial: FrozenTrial) -> tuple[bool, float]:
            value = trial.values[0] if trial.values else inf
            return not self._counts(trial), -value if self._maximize and trial.values else value

        return sorted(_finished(study), key=rank)

    def _leaderboard(self, ranked: Sequence[FrozenTrial]) -> dict[str, Any]:
        """Return MLflow's form of a table (`log_table` would append to that of an earlier run)."""
        attributes = sorted({name for t in ranked for name, value in t.user_attrs.items() if _is_number(name, value)})
        params = list(dict.fromkeys(name for trial in ranked for name in trial.params))
        columns = ["trial", self._metric, "state", "seconds", *attributes, *params]
        rows = [
            [
                trial.number,
                trial.values[0] if trial.values else None,
                trial.state.name,
                round(trial.duration.total_seconds(), 1) if trial.duration else None,
                *(trial.user_attrs.get(name) for name in attributes),
                *(trial.params.get(name) for name in params),
            ]
            for trial in ranked
        ]
        return {"columns": columns, "data": rows}

    def _write_curves(self, study: optuna.Study, numbers: set[int]) -> None:
        """Continue the study's curves, trial numbers as steps; a trial waits for those begun before it.

        So a curve of the best value never falls, though trials finish in any order.
        """
        horizon = min(list(self.running), default=inf)
        best: float | None = None
        counts: Counter[TrialState] = Counter()
        points = []
        for trial in _finished(study):
            if trial.number > horizon:
                break
            counts[trial.state] += 1
            values = {"n_complete": TrialState.COMPLETE, "n_pruned": TrialState.PRUNED, "n_failed": TrialState.FAIL}
            point = {name: float(counts[state]) for name, state in values.items()}
            if self._counts(trial):
                value = trial.values[0]
                best = value if best is None else max(best, value) if self._maximize else min(best, value)
                point["trial_value"] = value
            if best is not None:
                point["best_value"] = best
            if trial.number in numbers - self._steps:
                points.append(_Epoch(trial.number, trial.number, point, _milliseconds(trial.datetime_complete)))
        self._log(self._parent_id, [metric for point in points for metric in _points(point)])
        self._steps |= {point.step for point in points}

    def _save_view(self, study: optuna.Study) -> None:
        finished = _finished(study)
        attributes = {name for trial in finished for name in trial.user_attrs}
        self._scatter = next((name for name in SCATTER_ATTRIBUTES if name in attributes), self._scatter)
        view = comparison_view(
            self._metric,
            maximize=self._maximize,
            params=_axes(finished, self._space),
            scatter=self._scatter,
            winner=next((_winner_key(n) for n, child in self._children.items() if child.name.endswith(BEST)), ""),
            study_uid=self._tags["optuna_nas.study_uid"],
        )
        tag = f"mlflow.sharedViewState.{_view_key(self._tags['optuna_nas.study_uid'])}"
        self._client.set_experiment_tag(self._experiment_id, tag, json.dumps(view))

    # -- MLflow ---------------------------------------------------------------------------------------------------

    def _history(self, run_id: str, metric: str) -> list[Metric]:
        return sorted(self._client.get_metric_history(run_id, metric), key=lambda point: point.timestamp)

    def _log(
        self,
        run_id: str,
        metrics: Sequence[Metric],
        params: Mapping[str, str] = _EMPTY,
        tags: Mapping[str, str] = _EMPTY,
    ) -> None:
        """Write all of it, in pieces as large as MLflow takes."""
        all_params = [Param(key, value[:6000]) for key, value in params.items()]
        all_tags = [RunTag(key, value[:8000]) for key, value in tags.items()]
        while metrics or all_params or all_tags:
            self._client.log_batch(run_id, metrics[:800], all_params[:100], all_tags[:100])
            metrics, all_params, all_tags = metrics[800:], all_params[100:], all_tags[100:]
            self.n_written += 1

    def _end(self, run_id: str, status: str, end: int) -> None:
        # `set_terminated` of a server's run prints its address; the store behind it does not.
        store = self._client._tracking_client.store
        store.update_run_info(run_id, RunStatus.from_string(status), end, None)


def _merged(records: Sequence[_Epoch | _Task], mirror: _Mirror) -> Iterator[_Task]:
    """Go over the tasks; epochs that follow each other become one."""
    epochs: list[_Epoch] = []
    for record in records:
        if isinstance(record, _Epoch):
            epochs.append(record)
            continue
        if epochs:
            yield _Task(partial(mirror.epochs, epochs))
            epochs = []
        yield record
    if epochs:
        yield _Task(partial(mirror.epochs, epochs))


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    return sorted(study.get_trials(deepcopy=False, states=tuple(STATUSES)), key=lambda trial: trial.number)


def _winner_key(number: int) -> str:
    return f"best - trial {number}"


def _axes(finished: Sequence[FrozenTrial], space: Space | None) -> list[str]:
    """Return the keys of the parameters that vary, those first that explain most of the values' variance."""
    valued = [trial for trial in finished if trial.values]
    names = {name: None for trial in valued for name in trial.params}
    varying = [name for name in names if len({trial.params.get(name) for trial in valued}) > 1]
    if not varying and space is not None:
        varying = [path for path, options in space.options().items() if len(options) > 1]
    varying.sort(key=lambda name: -_explained_variance([(t.params.get(name), t.values[0]) for t in valued]))
    keys = mlflow_keys(varying)
    return [keys[name] for name in varying[:MAX_PARALLEL_AXES]]


def _explained_variance(pairs: Sequence[tuple[Any, float]]) -> float:
    """Return how much of the values' variance the parameter's groups explain (adjusted R squared; quarters of numbers).

    Coarse but cheap, and silent where Optuna's importances warn of too few trials.
    """
    if len({parameter for parameter, _ in pairs}) > len(pairs) / 4:
        try:
            pairs = [(4 * rank // len(pairs), value) for rank, (_, value) in enumerate(sorted(pairs))]
        except TypeError:  # not numbers
            return 0.0
    groups: dict[Any, list[float]] = defaultdict(list)
    for parameter, value in pairs:
        groups[parameter].append(value)
    total = np.var([value for _, value in pairs]) if pairs else 0.0
    if total == 0 or len(pairs) <= len(groups):
        return 0.0
    within = sum(len(values) * np.var(values) for values in groups.values()) / (len(pairs) - len(groups))
    return float(1 - within / (total * len(pairs) / (len(pairs) - 1)))


def _points(epoch: _Epoch) -> list[Metric]:
    return [Metric(key, float(value), epoch.time, epoch.step) for key, value in _keyed(epoch.metrics).items()]


def _param_texts(params: Mapping[str, object]) -> dict[str, str]:
    return {key: _text(value) for key, value in _keyed(params).items()}


def _keyed(values: Mapping[str, Any]) -> dict[str, Any]:
    keys = mlflow_keys(values)
    return {keys[name]: value for name, value in values.items()}


def _text(value: object) -> str:
    return json.dumps(value, default=str) if isinstance(value, (dict, list, tuple)) else str(value)


def _is_number(name: str, value: object) -> bool:
    """Whether a user attribute is a metric: a number that is no bookkeeping of this package."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not name.startswith("optuna_nas:")


def _milliseconds(moment: datetime | None) -> int:
    """Return MLflow's time; now for None. Optuna's times without a zone are local."""
    return _now() if moment is None else int(moment.timestamp() * 1000)


def _now() -> int:
    return int(time.time() * 1000)


def _study_uid(study: optuna.Study) -> str:
    """Return what tells this study from one of the same name in another storage."""
    if UID_ATTRIBUTE not in study.user_attrs:
        study.set_user_attr(UID_ATTRIBUTE, uuid.uuid4().hex[:16])
    return str(study.user_attrs[UID_ATTRIBUTE])


def _view_key(uid: str) -> str:
    return f"optuna_nas_{uid}"


def _view_url(uri: str, local_server: str, experiment_id: str, uid: str) -> str:
    server = _shown(uri).rstrip("/") if _is_server(uri) else local_server
    query = urlencode({"viewStateShareKey": _view_key(uid), "compareRunsMode": "CHART"})
    return f"{server}/#/experiments/{experiment_id}/runs?{query}"


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _shown(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//", uri)  # without a password


def _unreachable(uri: str, why: str) -> ConnectionError:
    way_out = "start a server there with `mlflow server`, or write to a file: `tracking_uri='sqlite:///mlflow.db'`"
    return ConnectionError(f"MLflow can't be used at {_shown(uri)}: {why}; {way_out}.")


def _one_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _silence() -> None:
    """Keep what MLflow, Alembic and urllib3 have to say in the tracker's thread out of the user's terminal."""
    logging.getLogger("urllib3.connectionpool").addFilter(_is_elsewhere)
    for handler in logging.getLogger("mlflow").handlers:
        handler.addFilter(_is_elsewhere)


def _is_elsewhere(record: logging.LogRecord) -> bool:
    return record.threadName != THREAD_NAME or not record.name.startswith(NOISY)

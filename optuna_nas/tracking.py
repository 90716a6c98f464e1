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
import sqlite3
import threading
import time
import uuid
from collections import Counter, defaultdict, deque
from concurrent.futures import Future, wait
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

import numpy as np
import optuna
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
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from mlflow.entities import Run
    from numpy.typing import NDArray
    from optuna.trial import FrozenTrial

    from optuna_nas.space import Architecture, Space

_logger = logging.getLogger(__name__)

STATUSES = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED", TrialState.FAIL: "FAILED"}
"""How a trial's state is called in MLflow."""

THREAD_NAME = "optuna_nas.tracking"
MAX_RECORDS = 10_000  # waiting for MLflow; about 10 MB
FLUSH_SECONDS = 0.5  # how long records are gathered, so that many epochs become one request
RETRY_PAUSES = (0.5, 1.0, 2.0)  # seconds between attempts, before a record is given up
DOWN_SECONDS = 5.0  # how long a server that was given up is left alone
PROBE_SECONDS = 5.0
START_SECONDS = 120.0  # the tables of a new database take their time
STALL_SECONDS = 30.0  # `finish` gives up after so long without progress

MAX_PARALLEL_AXES = 8  # more can't be read side by side
SCATTER_ATTRIBUTES = ("surrogate_score", "params")
"""User attributes to draw against the value, best first: what a one-shot model guessed, what the network costs."""

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
    metric: str, *, maximize: bool, params: Sequence[str], scatter: str, study_uid: str
) -> dict[str, Any]:
    """Return the state of MLflow's run page that compares the trials of a study.

    This is what the page itself stores for "Share view", read off MLflow 3.17; it is documented nowhere. A page that
    does not understand it shows its own charts.

    Args:
        metric: The objective's value.
        maximize: Whether more of it is better.
        params: Keys of the parameters to draw as parallel axes.
        scatter: Key of the metric to draw against the value.
        study_uid: Whose runs to show.
    """
    sections = {
        "Which trial won": {"columns": 2, "cardHeight": 400},
        "What it chose": {"columns": 1, "cardHeight": 440},
        "How it learned": {"columns": 2, "cardHeight": 440},
    }
    won, chose, learned = sections
    line = {
        "type": "LINE",
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "yAxisKey": "metric",
        "scaleType": "linear",
        "lineSmoothness": 0,
        "useGlobalXaxisKey": False,
        "displayPoints": True,
    }
    charts: list[tuple[str, str, dict[str, Any]]] = [
        (won, "Best so far, by trial number", line | {"metricKey": "best_value", "selectedMetricKeys": ["best_value"]}),
        (
            won,
            f"{metric} against {scatter}",
            {"type": "SCATTER", "xaxis": _axis(scatter), "yaxis": _axis(metric)},
        ),
        (
            chose,
            f"Choices and {metric}",
            {"type": "PARALLEL", "selectedParams": list(params), "selectedMetrics": [metric], "showAllRuns": False},
        ),
        (learned, f"{metric} by epoch", line | {"metricKey": metric, "selectedMetricKeys": [metric]}),
        (learned, "Architectures", {"type": "IMAGE", "imageKeys": ["architecture"], "step": 0}),
    ]
    return {
        "searchFilter": f"tags.`optuna_nas.study_uid` = '{study_uid}'",
        "orderByKey": f"metrics.`{metric}`",
        "orderByAsc": not maximize,
        "runsHiddenMode": "SHOW_ALL",
        "compareRunSections": [
            {"uuid": name, "name": name, "display": True, "isReordered": False, "deleted": False, "isGenerated": False}
            | layout
            for name, layout in sections.items()
        ],
        "compareRunCharts": [
            chart
            | {
                "uuid": title,
                "displayName": title,
                "metricSectionId": section,
                "isGenerated": False,
                "deleted": False,
                "runsCountToCompare": 100,
            }
            for section, title, chart in charts
        ],
    }


def _axis(metric: str) -> dict[str, str]:
    return {"key": metric, "type": "METRIC"}


class MLflowTracker:
    """Keeps MLflow a mirror of a study, from a thread of its own; safe to call from many threads.

    A call takes far less than a millisecond: it puts a record into a queue of bounded length. A server that goes away
    costs one warning; what it missed is written from the study by `finish` or by the next `start`. Until `start` has
    succeeded and after `finish`, calls do nothing. A pickled tracker has not started.

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
        self._folder = Path.cwd()  # a relative database stays where it was named, whoever changes the folder
        self._reset()

    def _reset(self) -> None:
        self._condition = threading.Condition()
        self._records: deque[_Epoch | _Task] = deque()
        self._mirror: _Mirror | None = None
        self._hurry = self._warned = self._down = False
        self._down_until = 0.0
        self._progress = 0

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("tracking_uri", "experiment", "metric", "_folder")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

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
            study: With one objective. Gets the user attribute `optuna_nas:study_uid`, by which its run is found again.
            space: Decodes the trials' parameters to the architectures to draw.
            description: Markdown, shown on the study's run.
            dataset: Shown on the study's run.
            params: Of the search; shown on the study's run. One that changed since the study began becomes a tag.

        Raises:
            ConnectionError: MLflow can't be reached or used at the address, found out within 10 seconds.
            ValueError: The study has several objectives.
        """
        if len(study.directions) > 1:
            raise ValueError(
                f"`study` must have one objective but has {len(study.directions)}; leave the tracker out for it."
            )
        self.finish_thread()
        self._reset()
        mirror = _Mirror(self._store_uri, self.experiment, self.metric, space)
        self._mirror = mirror
        threading.Thread(target=self._work, args=(mirror,), name=THREAD_NAME, daemon=True).start()
        opened = self._put(lambda: mirror.open(study, description, dataset, params), wanted=True)
        try:
            opened.result(START_SECONDS)
        except Exception as error:
            self.finish_thread()
            if isinstance(error, ConnectionError):
                raise
            why = "no answer" if isinstance(error, TimeoutError) else str(error).strip().splitlines()[0]
            raise _unreachable(self.tracking_uri, why) from error
        self._put(lambda: mirror.replay(study))

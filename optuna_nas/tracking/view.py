"""Saved comparison view of MLflow's run page: its charts, keys and URL."""

from __future__ import annotations

from collections import defaultdict
from math import isfinite
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import numpy as np

from optuna_nas.storage.database import without_password
from optuna_nas.tracking.keys import mlflow_keys
from optuna_nas.tracking.records import is_server

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.trial import FrozenTrial

    from optuna_nas.space import Space

PICTURE_KEY = "architecture"
LOCAL_SERVER = "http://127.0.0.1:5000"
"""Default URL of `mlflow ui`."""
MIN_VERSION = (3, 17)
"""First version of MLflow with which saved views were tested."""
VERSION_SECONDS = 5
"""Timeout of the query of a server's version in seconds."""
MAX_PARALLEL_AXES = 8
"""Largest number of parallel axes; more are not readable."""


def comparison_view(
    metric: str, *, maximize: bool, params: Sequence[str], scatter: str, winner: str, search_filter: str
) -> dict[str, Any]:
    """Return the state of MLflow's run page that compares the trials of a study.

    The page stores this undocumented JSON for "Share view"; the format is that of MLflow 3.17. Versions that do not
    support it show their own charts.

    Args:
        metric: Key of the objective's value.
        maximize: Whether larger values are better.
        params: Keys of the parameters to draw as parallel axes.
        scatter: Key of the metric to draw against the value.
        winner: Key of the picture of the best architecture; empty if there is none.
        search_filter: MLflow's filter of the runs to show; empty for all runs of the experiment.

    Returns:
        State of the page, to be stored as JSON in a tag of the experiment.

    Example:
        >>> from optuna_nas.tracking import comparison_view
        >>> keys = {"params": ["normal_0_2"], "scatter": "params", "winner": "", "search_filter": ""}
        >>> view = comparison_view("accuracy", maximize=True, **keys)
        >>> [section["name"] for section in view["compareRunSections"]][:2]
        ['1. Which trial won', '2. What it chose']
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
    kept = {"isGenerated": False, "deleted": False}  # the page must neither replace nor hide a chart
    return {
        "searchFilter": search_filter,
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


def study_filter(uid: str) -> str:
    """Return the filter of MLflow for the runs of a study."""
    return f"tags.`optuna_nas.study_uid` = '{uid}'"


def winner_key(number: int) -> str:
    """Return the key of the picture of the best architecture."""
    return f"best - trial {number}"


def view_key(uid: str) -> str:
    """Return the key of the view in its URL and its tag."""
    return f"optuna_nas_{uid}"


def view_url(uri: str, local_server: str, experiment_id: str, uid: str) -> str:
    """Return the URL of the view."""
    server = without_password(uri).rstrip("/") if is_server(uri) else local_server
    query = urlencode({"viewStateShareKey": view_key(uid), "compareRunsMode": "CHART"})
    return f"{server}/#/experiments/{experiment_id}/runs?{query}"


def page_url(uri: str, local_server: str, experiment_id: str, uid: str, metric: str, *, maximize: bool) -> str:
    """Return the URL of the saved view, or of MLflow's own charts if the server does not support saved views."""
    if understands_view(uri):
        return view_url(uri, local_server, experiment_id, uid)
    return plain_url(uri, local_server, experiment_id, metric, maximize=maximize)


def plain_url(uri: str, local_server: str, experiment_id: str, metric: str, *, maximize: bool) -> str:
    """Return the URL of MLflow's own charts of all trials, best first, for servers without saved views."""
    server = without_password(uri).rstrip("/") if is_server(uri) else local_server
    query = {"searchFilter": "tags.`optuna.trial_number` != ''", "orderByKey": f"metrics.`{metric}`"}
    query |= {"orderByAsc": str(not maximize).lower(), "compareRunsMode": "CHART"}
    return f"{server}/#/experiments/{experiment_id}/runs?{urlencode(query)}"


def understands_view(uri: str) -> bool:
    """Return whether MLflow at a tracking URI supports saved views, as version 3.17 does; True if unknown."""
    if not is_server(uri):
        return True
    # importing MLflow was measured to take more than a second
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        answer = http_request(get_default_host_creds(uri), "/version", "GET", max_retries=0, timeout=VERSION_SECONDS)
        major, minor = map(int, answer.text.split(".")[:2])
    except Exception:  # the server does not tell its version
        return True
    return (major, minor) >= MIN_VERSION


def parallel_axes(finished: Sequence[FrozenTrial], space: Space | None) -> list[str]:
    """Return the keys of the parameters that vary, sorted by the variance of the values that they explain."""
    valued = [trial for trial in finished if trial.values and isfinite(trial.values[0])]
    names = {name: None for trial in valued for name in trial.params}
    varying = [name for name in names if len({trial.params.get(name) for trial in valued}) > 1]
    if not varying and space is not None:
        varying = [path for path, options in space.options().items() if len(options) > 1]
    varying.sort(key=lambda name: -_explained_variance([(t.params.get(name), t.values[0]) for t in valued]))
    keys = mlflow_keys(varying)
    return [keys[name] for name in varying[:MAX_PARALLEL_AXES]]


def _explained_variance(pairs: Sequence[tuple[Any, float]]) -> float:
    """Return the fraction of the values' variance that a parameter explains: adjusted R squared of its groups.

    Numeric parameters with many values are grouped by quartiles. This is coarse but cheap, and gives no warnings for
    few trials as Optuna's importances do.
    """
    if len({parameter for parameter, _ in pairs}) > len(pairs) / 4:
        try:
            pairs = [(4 * rank // len(pairs), value) for rank, (_, value) in enumerate(sorted(pairs))]
        except TypeError:  # the parameter is not numeric
            return 0.0
    groups: dict[Any, list[float]] = defaultdict(list)
    for parameter, value in pairs:
        groups[parameter].append(value)
    total = np.var([value for _, value in pairs]) if pairs else 0.0
    if total == 0 or len(pairs) <= len(groups):
        return 0.0
    within = sum(len(values) * np.var(values) for values in groups.values()) / (len(pairs) - len(groups))
    return float(1 - within / (total * len(pairs) / (len(pairs) - 1)))

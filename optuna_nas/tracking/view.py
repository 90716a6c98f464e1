"""Saved comparison view of MLflow's run page: its charts, keys and URL."""

from __future__ import annotations

from collections import defaultdict
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode

import numpy as np

from optuna_nas.storage.secrets import without_password
from optuna_nas.tracking.keys import mlflow_keys
from optuna_nas.tracking.records import is_server

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna.trial import FrozenTrial

    from optuna_nas.space import Space

PICTURE_KEY = "architecture"
TABLE_KEY, CURVES_KEY = "all strategies", "best value, mean and standard error"
LOCAL_SERVER = "http://127.0.0.1:5000"
"""Default URL of `mlflow ui`."""
MIN_VERSION = (3, 17)
"""First version of MLflow with which saved views were tested."""
VERSION_SECONDS = 5
"""Timeout of the query of a server's version in seconds."""
WORKFLOW = {"workflowType": "machine_learning"}
"""Query of MLflow's pages, which else open among traces, prompts and judges."""
SPENT = "seconds_training"
"""Key of the curve of a study's seconds of training, up to each trial."""
BY_SECOND = "best_value_by_second"
"""Key of the curve of a study's best value whose steps are seconds of training."""
TESTED = "test_metric"
"""Key of the metric of a study's best network on the test split."""
MAX_PARALLEL_AXES = 8
"""Largest number of parallel axes; more are not readable."""


class Shown(NamedTuple):
    """What the view of a study has to show; charts of what it lacks are left out.

    Args:
        metrics: Keys of the values, one for each objective.
        maximize: Whether larger first values are better.
        params: Keys of the parameters to draw as parallel axes.
        scatter: Key of the metric to draw against the value; empty for none.
        pictures: Keys of the pictures of architectures.
        curves: Whether trials have learning curves.
    """

    metrics: Sequence[str]
    maximize: bool = True
    params: Sequence[str] = ()
    scatter: str = ""
    pictures: Sequence[str] = ()
    curves: bool = True


def comparison_view(shown: Shown, search_filter: str) -> dict[str, Any]:
    """Return the state of MLflow's run page that compares the trials of a study.

    The page stores this undocumented JSON for "Share view"; the format is that of MLflow 3.17. Versions that do not
    support it show their own charts.

    Args:
        shown: What there is to show.
        search_filter: MLflow's filter of the runs to show; empty for all runs of the experiment.

    Returns:
        State of the page, to be stored as JSON in a tag of the experiment.

    Example:
        >>> from optuna_nas.tracking.view import Shown, comparison_view
        >>> view = comparison_view(Shown(["accuracy"], params=["normal_0_2"], scatter="params"), "")
        >>> [section["name"] for section in view["compareRunSections"]]
        ['1. Which trial won', '2. What it chose', '4. How it learned']
    """
    metric, *others = shown.metrics
    fronts = [_scatter(other, metric) for other in others]  # the front of each further objective and the first
    costs = [_scatter(shown.scatter, metric)] if shown.scatter and shown.scatter not in others else []
    axes = {"selectedParams": list(shown.params), "selectedMetrics": list(shown.metrics)}
    pictures = [_image(key) for key in shown.pictures]
    sections = {
        "1. Which trial won": [_line("best_value"), *fronts, *costs],
        "2. What it chose": [{"type": "PARALLEL", "showAllRuns": False, **axes}] if shown.params else [],
        "3. What it looks like": pictures,
        "4. How it learned": [_line(metric)] if shown.curves else [],
    }
    columns = [f"metrics.`{key}`" for key in [*shown.metrics, "params", "multiply_adds", "train_seconds"]]
    return _page(sections, search_filter, metric, shown.maximize) | {
        "selectedColumns": ["attributes.`Duration`", *columns, "tags.`optuna.state`", "tags.`reason`"]
    }


def strategies_view(values: Sequence[float], headlines: Sequence[str], *, maximize: bool) -> dict[str, Any]:
    """Return the state of MLflow's run page that compares strategies.

    The list groups the runs of studies by strategy. Charts show the seeds one by one: MLflow hides pictures where
    charts are of groups, so that the bands over seeds are in a picture.

    Args:
        values: Values of the curves, whose range the charts show.
        headlines: Titles of the sections: table, curves, where strategies ended.
        maximize: Whether larger values are better.

    Returns:
        State of the page; see `comparison_view`.

    Example:
        >>> from optuna_nas.tracking.view import strategies_view
        >>> view = strategies_view([0.9, 0.95], ["a is ahead", "Best from 0.9 to 0.95", "Seconds"], maximize=True)
        >>> [section["name"] for section in view["compareRunSections"]]
        ['1. a is ahead', '2. Best from 0.9 to 0.95', '3. Seconds']
    """
    seen = [value for value in values if isfinite(value)]
    room = 0.05 * (max(seen) - min(seen)) if seen else 0.0
    span = {"range": {"yMin": min(seen) - room, "yMax": max(seen) + room}} if room else {}  # else from 0, for bands
    lines = [_line(key) | span for key in ("best_value", BY_SECOND)]
    bars = [{"type": "BAR", "metricKey": key} for key in ("best_value", TESTED, SPENT)]
    pictures = [_image(key) for key in (TABLE_KEY, CURVES_KEY)]
    titles = [f"{number}. {headline}" for number, headline in enumerate(headlines, 1)]
    sections = dict(zip(titles, (pictures, lines, bars), strict=True))
    return _page(sections, _without("trial", "fit", "final"), "best_value", maximize) | {
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "strategy"}]},
        "useGroupedValuesInCharts": False,
        "groupsExpanded": {"tag.strategy": True},  # of runs without a strategy, such as that with the pictures
        "selectedColumns": ["tags.`strategy`", "tags.`seed`", "metrics.`best_value`", f"metrics.`{TESTED}`"],
    }


def _line(metric: str) -> dict[str, Any]:
    line = {"type": "LINE", "xAxisKey": "step", "useGlobalXaxisKey": False, "lineSmoothness": 0, "displayPoints": True}
    return line | {"metricKey": metric, "selectedMetricKeys": [metric]}


def _image(key: str) -> dict[str, Any]:
    return {"type": "IMAGE", "imageKeys": [key], "step": 0, "showRunParams": False}


def _scatter(x: str, y: str) -> dict[str, Any]:
    return {"type": "SCATTER"} | {axis: {"key": key, "type": "METRIC"} for axis, key in (("xaxis", x), ("yaxis", y))}


def _page(
    sections: Mapping[str, Sequence[Mapping[str, Any]]], search_filter: str, metric: str, maximize: bool
) -> dict[str, Any]:
    """Return the state of a page with charts in sections; sections without charts are left out."""
    filled = {name: charts for name, charts in sections.items() if charts}
    kept = {"isGenerated": False, "deleted": False}  # the page must neither replace nor hide a chart
    return {
        "searchFilter": search_filter,
        "orderByKey": f"metrics.`{metric}`",
        "orderByAsc": not maximize,
        "runsHiddenMode": "SHOW_ALL",
        "hideEmptyCharts": True,
        "compareRunSections": [
            {"uuid": name, "name": name, "display": True, "isReordered": True, "columns": _columns(charts), **kept}
            for name, charts in filled.items()
        ],
        "compareRunCharts": [
            {**chart, "uuid": f"{name}{i}", "metricSectionId": name, "runsCountToCompare": 100, **kept}
            for name, charts in filled.items()
            for i, chart in enumerate(charts)
        ],
    }


def _columns(charts: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of charts in a row: pictures are legible only alone."""
    return 1 if charts[0]["type"] == "IMAGE" else min(len(charts), 3)


def study_filter(uid: str) -> str:
    """Return the filter of MLflow for the runs of a study."""
    return f"tags.`optuna_nas.study_uid` = '{uid}'"


def trials_filter(uid: str) -> str:
    """Return the filter for a study's run and those of its trials, without one-shot models and final trainings.

    The study's own run is among them, as the curve of the best value is one of its metrics.
    """
    return f"{study_filter(uid)} and {_without('fit', 'final')}"


def _without(*kinds: str) -> str:
    """Return the filter for runs of all kinds but these."""
    return " and ".join(f"tags.`optuna_nas.kind` != '{kind}'" for kind in kinds)


def winner_key(number: int) -> str:
    """Return the key of the picture of the best architecture."""
    return f"best - trial {number}"


def view_key(uid: str) -> str:
    """Return the key of the view in its URL and its tag."""
    return f"optuna_nas_{uid}"


def view_tag(uid: str) -> str:
    """Return the tag of the experiment that holds the state of the view."""
    return f"mlflow.sharedViewState.{view_key(uid)}"


def view_url(uri: str, local_server: str, experiment_id: str, uid: str) -> str:
    """Return the URL of the view."""
    server = without_password(uri).rstrip("/") if is_server(uri) else local_server
    query = urlencode({"viewStateShareKey": view_key(uid), "compareRunsMode": "CHART", **WORKFLOW})
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
    query |= {"orderByAsc": str(not maximize).lower(), "compareRunsMode": "CHART", **WORKFLOW}
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

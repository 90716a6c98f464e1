"""Comparison of strategies in MLflow: a run with table and picture, and a saved view of the studies' runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from mlflow.entities import Metric

from optuna_nas.storage.database import sqlite_file
from optuna_nas.storage.plain import json_text, markdown_table, markdown_text
from optuna_nas.tracking.client import connected, end_run, log_picture
from optuna_nas.tracking.pictures import pixels
from optuna_nas.tracking.records import DEFAULT_EXPERIMENT, milliseconds_now
from optuna_nas.tracking.view import (
    BY_SECOND,
    CURVES_KEY,
    LOCAL_SERVER,
    TABLE_KEY,
    page_url,
    plain_url,
    strategies_view,
    view_tag,
    view_url,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import optuna
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

    from optuna_nas.tracking.tracker import MLflowTracker

KIND = "comparison"
PREFIX = "compare-"
"""Beginning of the name of a comparison's experiment."""
CURVES_SIZE, CURVES_DPI = (5.2, 2.6), 100
"""Width and height of a plot in MLflow's grid in inches, dots per inch: two make a square, as tiles are."""


class Compared(NamedTuple):
    """What MLflow shows of a comparison.

    Args:
        metric: Name of the first value.
        headings: Headings of the table.
        rows: Rows of the table, best first.
        finding: Who is ahead, or that nothing can be told; without a full stop.
        headlines: Titles of the view's sections: who is ahead, where strategies ended, what they spent.
        leader: Name of the strategy that is ahead by more than chance, None for none.
        note: Plain text: what can be told from the table, and from how much.
        table: Picture of the table.
        figures: Plots of the best value against the spent budget, and against seconds.
        curves: Best value after each second of training, (second, value) at the same seconds for all, by study name.
    """

    metric: str
    headings: Sequence[str]
    rows: Sequence[Sequence[object]]
    finding: str
    headlines: tuple[str, str, str]
    leader: str | None
    note: str
    table: Figure
    figures: Sequence[Figure]
    curves: Mapping[str, Sequence[tuple[int, float]]]


def save_comparison(tracker: MLflowTracker, studies: Sequence[optuna.Study], compared: Compared) -> str:
    """Write table, pictures and view of a comparison whose runs are in one experiment; return the URL of the view.

    Repeated calls update the same run. The descriptions of the run and of the experiment begin with who is ahead.

    Args:
        tracker: Tracker with the experiment of the studies.
        studies: All studies of the comparison.
        compared: What there is to show.
    """
    metric = tracker.metric or compared.metric
    maximize = studies[0].directions[0].name == "MAXIMIZE"
    with connected(tracker.store_uri) as client:
        experiment = client.get_experiment_by_name(tracker.experiment or DEFAULT_EXPERIMENT)
        assert experiment is not None  # the studies are in it
        name = f"comparison: {compared.leader} first" if compared.leader else "comparison: nothing told"
        runs = client.search_runs([experiment.experiment_id], f"tags.`optuna_nas.kind` = '{KIND}'")
        if runs:
            run_id = runs[0].info.run_id
            client.update_run(run_id, name=name)
        else:
            tags = {"optuna_nas.kind": KIND}
            run_id = client.create_run(experiment.experiment_id, tags=tags, run_name=name).info.run_id
        content = {"columns": list(compared.headings), "data": [list(row) for row in compared.rows]}
        client.log_text(run_id, json_text(content, spells=True), "table.json")
        client.log_figure(run_id, compared.figures[0], "best_against_spent.png")
        _show_pictures(client, run_id, compared)
        client.set_tag(run_id, "mlflow.loggedArtifacts", '[{"path": "table.json", "type": "table"}]')
        trials = plain_url("", "", experiment.experiment_id, metric, maximize=maximize).lstrip("/")
        picture = f"![best values](get-artifact?path=best_against_spent.png&run_uuid={run_id})"
        table = markdown_table(compared.headings, [list(map(str, row)) for row in compared.rows])
        parts = [f"**{markdown_text(compared.finding)}.**", table, markdown_text(compared.note), picture]
        text = "\n\n".join([*parts, f"[All trials, best first]({trials})"])  # pages show the first line alone
        client.set_tag(run_id, "mlflow.note.content", text)
        client.set_experiment_tag(experiment.experiment_id, "mlflow.note.content", text)
        end_run(client, run_id, "FINISHED", milliseconds_now())
        for run in client.search_runs([experiment.experiment_id], "tags.`optuna_nas.kind` = 'study'"):
            curve = compared.curves.get(run.data.tags["optuna.study_name"], ())
            client.log_batch(run.info.run_id, [Metric(BY_SECOND, value, 0, second) for second, value in curve])
        key = f"{KIND}_{experiment.experiment_id}"
        values = [value for curve in compared.curves.values() for _, value in curve]
        view = json.dumps(strategies_view(values, compared.headlines, maximize=maximize))
        client.set_experiment_tag(experiment.experiment_id, view_tag(key), view)
        for tag in _views(experiment):
            if tag != view_tag(key):  # of earlier versions, by the study that was the best then
                client.delete_experiment_tag(experiment.experiment_id, tag)
    return page_url(tracker.tracking_uri, LOCAL_SERVER, experiment.experiment_id, key, metric, maximize=maximize)


def _views(experiment: Experiment | None) -> list[str]:
    """Return the tags of an experiment that hold views of a comparison."""
    return [tag for tag in (experiment.tags if experiment else ()) if tag.startswith(view_tag(f"{KIND}_"))]


def _show_pictures(client: MlflowClient, run_id: str, compared: Compared) -> None:
    """Log table and curves as pictures of MLflow's grid, which shows the newest of each."""
    log_picture(client, run_id, pixels(compared.table), TABLE_KEY)
    for figure in compared.figures:
        figure.set_size_inches(*CURVES_SIZE)
        figure.set_dpi(CURVES_DPI)
    log_picture(client, run_id, np.vstack([pixels(figure) for figure in compared.figures]), CURVES_KEY)


def find_comparison(tracker: MLflowTracker, local_server: str = LOCAL_SERVER) -> str:
    """Return the URL of the view of a comparison that `save_comparison` has written before.

    Args:
        tracker: Tracker with the experiment of the comparison.
        local_server: URL of the server of a database.

    Raises:
        ValueError: MLflow has no comparison of that name.
        ConnectionError: MLflow does not answer.
    """
    absent = ValueError(
        f"`study` must be a study or a comparison but MLflow has no comparison {tracker.experiment!r}; run "
        "`optuna-nas compare`, or name the right database with --mlflow."
    )
    if (file := sqlite_file(tracker.store_uri)) is not None and not file.exists():
        raise absent  # before MLflow creates the file
    with connected(tracker.store_uri) as client:
        experiment = client.get_experiment_by_name(tracker.experiment or DEFAULT_EXPERIMENT)
        views = _views(experiment)
        if experiment is None or not views:
            raise absent
    uid = views[-1].removeprefix(view_tag(""))
    return view_url(tracker.tracking_uri, local_server, experiment.experiment_id, uid)

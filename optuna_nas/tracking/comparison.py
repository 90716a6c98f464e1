"""Comparison of strategies in MLflow: a run with table and picture, and a saved view of the experiment."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from optuna_nas.storage.attributes import PARAMS, SHOWN_NAMES, SURROGATE_SCORE, UID_ATTRIBUTE, attribute, has_attribute
from optuna_nas.storage.database import sqlite_file
from optuna_nas.tracking.client import connected
from optuna_nas.tracking.records import DEFAULT_EXPERIMENT
from optuna_nas.tracking.view import LOCAL_SERVER, comparison_view, page_url, parallel_axes, view_key, view_url

if TYPE_CHECKING:
    from collections.abc import Sequence

    import optuna
    from matplotlib.figure import Figure

    from optuna_nas.space import Space
    from optuna_nas.tracking.tracker import MLflowTracker

KIND = "comparison"
PREFIX = "compare-"
"""Beginning of the name of a comparison's experiment."""
_STATE = "mlflow.sharedViewState."


def save_comparison(
    tracker: MLflowTracker,
    studies: Sequence[optuna.Study],
    space: Space,
    metric: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[object]],
    figure: Figure,
    note: str,
) -> str:
    """Write table, picture and view of a comparison whose runs are in one experiment; return the URL of the view.

    Repeated calls update the same run.

    Args:
        tracker: Tracker with the experiment of the studies.
        studies: All studies of the comparison.
        space: Search space of the studies.
        metric: Name of the first value.
        headings: Headings of the table.
        rows: Rows of the table.
        figure: Plot of the best value against the spent budget.
        note: Markdown text of the run.
    """
    with connected(tracker.store_uri) as client:
        experiment = client.get_experiment_by_name(tracker.experiment or DEFAULT_EXPERIMENT)
        assert experiment is not None  # the studies are in it
        runs = client.search_runs([experiment.experiment_id], f"tags.`optuna_nas.kind` = '{KIND}'")
        if runs:
            run_id = runs[0].info.run_id
        else:
            run_id = client.create_run(
                experiment.experiment_id, tags={"optuna_nas.kind": KIND}, run_name="comparison"
            ).info.run_id
        client.log_text(
            run_id, json.dumps({"columns": list(headings), "data": [list(row) for row in rows]}), "table.json"
        )
        client.log_figure(run_id, figure, "best_against_spent.png")
        client.set_tag(run_id, "mlflow.loggedArtifacts", '[{"path": "table.json", "type": "table"}]')
        client.set_tag(run_id, "mlflow.note.content", note)
        client.set_terminated(run_id)
        finished = [
            trial for study in studies for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()
        ]
        maximize = studies[0].directions[0].name == "MAXIMIZE"
        key = str(attribute(studies[0].user_attrs, UID_ATTRIBUTE, KIND))
        scored = any(has_attribute(trial.user_attrs, SURROGATE_SCORE) for trial in finished)
        view = comparison_view(
            tracker.metric or metric,
            maximize=maximize,
            params=parallel_axes(finished, space),
            scatter=SHOWN_NAMES[SURROGATE_SCORE if scored else PARAMS],
            winner="",
            search_filter="",
        )
        state = f"{_STATE}{view_key(f'{KIND}_{key}')}"
        client.set_experiment_tag(experiment.experiment_id, state, json.dumps(view))
    where = (tracker.tracking_uri, LOCAL_SERVER, experiment.experiment_id, f"{KIND}_{key}", tracker.metric or metric)
    return page_url(*where, maximize=maximize)


def find_comparison(tracker: MLflowTracker, local_server: str = LOCAL_SERVER) -> str:
    """Return the URL of the view of a comparison that `save_comparison` has written before.

    Args:
        tracker: Tracker with the experiment of the comparison.
        local_server: URL of the server of a database.

    Raises:
        ValueError: MLflow has no comparison of that name.
        ConnectionError: MLflow does not answer.
    """
    begin = f"{_STATE}{view_key(f'{KIND}_')}"
    absent = ValueError(
        f"`study` must be a study or a comparison but MLflow has no comparison {tracker.experiment!r}; run "
        "`optuna-nas compare`, or name the right database with --mlflow."
    )
    if (file := sqlite_file(tracker.store_uri)) is not None and not file.exists():
        raise absent  # before MLflow creates the file
    with connected(tracker.store_uri) as client:
        experiment = client.get_experiment_by_name(tracker.experiment or DEFAULT_EXPERIMENT)
        views = [tag for tag in (experiment.tags if experiment else ()) if tag.startswith(begin)]
        if experiment is None or not views:
            raise absent
    uid = f"{KIND}_{views[-1].removeprefix(begin)}"
    return view_url(tracker.tracking_uri, local_server, experiment.experiment_id, uid)

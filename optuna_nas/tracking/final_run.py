"""Runs of trained networks in MLflow: that of a trial, or of a final training, a child of its study's run."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from mlflow.exceptions import MlflowException

from optuna_nas.storage.identity import study_uid
from optuna_nas.storage.secrets import without_password
from optuna_nas.tracking.client import Client, metrics_of
from optuna_nas.tracking.keys import mlflow_keys, text_of
from optuna_nas.tracking.records import CORRECT, DEFAULT_EXPERIMENT, Epoch, milliseconds_now, unusable
from optuna_nas.tracking.view import study_filter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import optuna

    from optuna_nas.tracking.tracker import MLflowTracker

FINAL = "optuna_nas.final"
"""Tag of the run of a final training: the name of its files."""


class FinalRecord(NamedTuple):
    """What MLflow shows of a final training, or of what else a study ends with.

    Args:
        name: Name of its files, which identifies it.
        curve: Metrics of every epoch, from the first.
        metrics: Metrics of the network, such as its test metric.
        params: Architecture and recipe.
        title: What it is; the run is called by title and name.
        note: Markdown text.
    """

    name: str
    curve: Sequence[Mapping[str, float]]
    metrics: Mapping[str, float]
    params: Mapping[str, Any]
    title: str = "final training"
    note: str = ""


class NotMirrored(ValueError):
    """Raised where MLflow has no run of a study, or of its trial, that a network could be shown on or beside."""

    def __init__(self, tracker: MLflowTracker, what: str) -> None:
        self.reason = f"{without_password(tracker.tracking_uri)} has no run of {what}"
        super().__init__(
            f"`study` must be in MLflow to log its network there but {self.reason}; write it there with `optuna-nas "
            "mirror`, or name the right address with --mlflow."
        )


@contextmanager
def _experiment_of(tracker: MLflowTracker, study: optuna.Study) -> Iterator[tuple[Client, str]]:
    """Connect to MLflow, and yield the client and the id of the experiment that has the run of a study."""
    client, absent = Client(tracker.store_uri), NotMirrored(tracker, f"study {study.study_name!r}")
    if client.is_new:
        raise absent
    client.check()
    with client.connections:
        try:
            experiment_id = client.experiment_of(tracker.experiment or DEFAULT_EXPERIMENT, study_uid(study))
        except MlflowException as error:  # of Databricks, which `check` does not ask
            raise unusable(client.uri, error, CORRECT) from error
        if experiment_id is None:
            raise absent
        yield client, experiment_id


def log_final(tracker: MLflowTracker, study: optuna.Study, record: FinalRecord) -> str:
    """Write a final training to MLflow, unless it is there, and return the id of its run.

    Raises:
        ConnectionError: MLflow cannot be used at the tracking URI.
        NotMirrored: MLflow has no run of the study.
    """
    with _experiment_of(tracker, study) as (client, experiment_id):
        uid = study_uid(study)
        condition = f"{study_filter(uid)} and tags.`{FINAL}` = '{record.name}'"
        if found := client.search(experiment_id, condition):
            return str(found[0].info.run_id)
        parents = client.search(experiment_id, f"{study_filter(uid)} and tags.`optuna_nas.kind` = 'study'")
        tags = {"optuna.study_name": study.study_name, "optuna_nas.study_uid": uid, "optuna_nas.kind": "final"}
        if record.note:
            tags["mlflow.note.content"] = record.note
        tags["mlflow.parentRunId"] = parents[0].info.run_id
        now = milliseconds_now()
        run = client.mlflow.create_run(experiment_id, now, tags, f"{record.title} {record.name}")
        run_id = str(run.info.run_id)
        points = [Epoch(0, number, dict(metrics), now) for number, metrics in enumerate(record.curve, 1)]
        points.append(Epoch(0, len(record.curve), dict(record.metrics), now))
        keys = mlflow_keys(record.params)
        params = {keys[name]: text_of(value) for name, value in record.params.items()}
        client.log(run_id, metrics_of(points), params, {FINAL: record.name})  # the tag last: it says that all is there
        client.end(run_id, "FINISHED", now)
    return run_id


def find_trial_run(tracker: MLflowTracker, study: optuna.Study, number: int) -> str:
    """Return the id of a trial's run.

    Raises:
        ConnectionError: MLflow cannot be used at the tracking URI.
        NotMirrored: MLflow has no run of the trial.
    """
    with _experiment_of(tracker, study) as (client, experiment_id):
        condition = f"{study_filter(study_uid(study))} and tags.`optuna.trial_number` = '{number}'"
        found = client.search(experiment_id, condition)
    if not found:
        raise NotMirrored(tracker, f"trial {number} of study {study.study_name!r}")
    return str(found[0].info.run_id)

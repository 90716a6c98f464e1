"""The best trial's network as a model of the experiment in MLflow: its metrics, and where its file is."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mlflow.entities import LoggedModelStatus, Metric
from mlflow.models.utils import get_external_mlflow_model_spec
from mlflow.utils.file_utils import TempDir
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL

from optuna_nas.storage.plain import visible

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from optuna_nas.tracking.runs import StudyRuns

KIND = "best_network"
"""Value of the tag `optuna_nas.kind` of the model."""


def show_winner(runs: StudyRuns, study_name: str, number: int, network: str) -> None:
    """Show the network of the best trial as a model, unless it is shown; that of an earlier best trial is removed.

    The model is external, as MLflow calls it: the file stays where it is. `optuna-nas export --format mlflow` makes a
    model that MLflow can load.

    Args:
        runs: Runs of the study.
        study_name: Name of the study, after which the model is named.
        number: Number of the best trial.
        network: Path of the file.
    """
    client, run_id = runs.client.mlflow, runs.trials[number].run_id
    condition = f"tags.`optuna_nas.study_uid` = '{runs.uid}' AND tags.`optuna_nas.kind` = '{KIND}'"
    shown = client.search_logged_models([runs.experiment_id], condition)
    for model in shown:
        if model.source_run_id != run_id:
            client.delete_logged_model(model.model_id)
    if any(model.source_run_id == run_id for model in shown):
        return
    run = client.get_run(run_id)
    tags = {"optuna_nas.study_uid": runs.uid, "optuna_nas.kind": KIND, MLFLOW_MODEL_IS_EXTERNAL: "true"}
    name = re.sub(r"[/:.%\"']", "_", f"best of {study_name}")  # which MLflow forbids
    params = {**run.data.params, "load_with": visible(f'optuna_nas.load_network("{network}")')}
    made = client.create_logged_model(runs.experiment_id, name, run_id, tags, params, "optuna_nas")
    with TempDir() as folder:  # so that the registry takes it, too
        get_external_mlflow_model_spec(made).save(folder.path("MLmodel"))
        client.log_model_artifacts(made.model_id, folder.path())
    give_metrics(client, run, made.model_id)
    client.finalize_logged_model(made.model_id, LoggedModelStatus.READY)


def give_metrics(client: MlflowClient, run: Run, model_id: str) -> None:
    """Give a model the last value of every metric of its run."""
    last = [client.get_metric_history(run.info.run_id, name)[-1] for name in run.data.metrics]
    metrics = [
        Metric(point.key, point.value, point.timestamp, point.step, model_id=model_id, run_id=run.info.run_id)
        for point in last
    ]
    client.log_batch(run.info.run_id, metrics)

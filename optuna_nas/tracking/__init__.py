"""Mirror of a study in MLflow: a run for the study, a child run for each trial, and a saved comparison view."""

from optuna_nas.tracking.keys import mlflow_keys
from optuna_nas.tracking.records import DatasetInfo
from optuna_nas.tracking.tracker import MLflowTracker

__all__ = ["DatasetInfo", "MLflowTracker", "mlflow_keys"]

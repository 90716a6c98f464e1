"""What a study keeps and workers share: database, attributes, artifacts, model rounds, quota, retries."""

from optuna_nas.storage.database import Heartbeat
from optuna_nas.storage.in_study_fit import InStudyFit

__all__ = ["Heartbeat", "InStudyFit"]

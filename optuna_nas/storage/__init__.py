"""What a study keeps and workers share: database, attributes, artifacts, model rounds, quota, retries."""

from optuna_nas.storage.database import Heartbeat

__all__ = ["Heartbeat"]

"""What a trial does."""

from optuna_nas.objective.suggestions import suggest_categorical, suggest_float, suggest_int
from optuna_nas.objective.train_objective import TrainObjective

__all__ = ["TrainObjective", "suggest_categorical", "suggest_float", "suggest_int"]

"""Objectives of trials: suggest an architecture, train it, return its metric."""

from optuna_nas.objective.initial_weights import GeneratedWeights, GivenWeights
from optuna_nas.objective.protocol import TrialListener, TrialRun
from optuna_nas.objective.suggestions import suggest_categorical, suggest_float, suggest_int
from optuna_nas.objective.train_objective import TrainObjective

__all__ = [
    "GeneratedWeights",
    "GivenWeights",
    "TrainObjective",
    "TrialListener",
    "TrialRun",
    "suggest_categorical",
    "suggest_float",
    "suggest_int",
]

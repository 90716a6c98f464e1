"""Training loop, tasks, recipes, evaluation, checkpoints, devices and process groups."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna_nas.training.checkpoints import load_tensors, save_tensors
    from optuna_nas.training.evaluation import evaluate
    from optuna_nas.training.loop import EpochResult, TrainingDiverged, TrainingResult, TrainingStopped, train
    from optuna_nas.training.recipe import Recipe
    from optuna_nas.training.task import Calling, Evaluation, ImageClassification, Regression, SummedTask, Task
else:
    from optuna_nas.lazy import lazy_names

    __getattr__ = lazy_names(
        __name__,
        {
            "checkpoints": "load_tensors save_tensors",
            "evaluation": "evaluate",
            "loop": "EpochResult TrainingDiverged TrainingResult TrainingStopped train",
            "recipe": "Recipe",
            "task": "Calling Evaluation ImageClassification Regression SummedTask Task",
        },
    )

__all__ = [
    "Calling",
    "EpochResult",
    "Evaluation",
    "ImageClassification",
    "Recipe",
    "Regression",
    "SummedTask",
    "Task",
    "TrainingDiverged",
    "TrainingResult",
    "TrainingStopped",
    "evaluate",
    "load_tensors",
    "save_tensors",
    "train",
]

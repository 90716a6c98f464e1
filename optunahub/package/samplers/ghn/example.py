import tempfile

import numpy as np
import optuna
from optuna.artifacts import FileSystemArtifactStore
from optuna.distributions import CategoricalDistribution
import optunahub


OPS = ["conv_1x1", "conv_3x3", "skip", "none"]


def score(architectures: list) -> np.ndarray:
    """Guess how good candidates are: the more convolutions, the better."""
    params = [architecture.space.encode(architecture) for architecture in architectures]
    return np.array([sum(op.startswith("conv") for op in one.values()) for one in params], dtype=float)


def objective(trial: optuna.Trial) -> float:
    ops = [trial.suggest_categorical(f"op{number}", OPS) for number in range(6)]
    return ops.count("conv_3x3") + 0.5 * ops.count("conv_1x1")


GHNSampler = optunahub.load_module("samplers/ghn").GHNSampler
with tempfile.TemporaryDirectory() as folder:
    sampler = GHNSampler(
        {f"op{number}": CategoricalDistribution(OPS) for number in range(6)},
        score=score,
        artifact_store=FileSystemArtifactStore(folder),
        seed=0,
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(objective, n_trials=30)
print(study.best_value, study.best_params)

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
import optunahub


OPS = ["conv_1x1", "conv_3x3", "skip", "none"]


def score(architectures: list) -> np.ndarray:
    """Guess how good candidates are: the more convolutions, the better."""
    params = [architecture.space.encode(architecture) for architecture in architectures]
    return np.array([sum(op.startswith("conv") for op in one.values()) for one in params], dtype=float)


def objective(trial: optuna.Trial) -> float:
    ops = [trial.suggest_categorical(f"op{number}", OPS) for number in range(6)]
    if trial.should_prune():  # before anything is trained
        raise optuna.TrialPruned
    return ops.count("conv_3x3") + 0.9 * ops.count("conv_1x1")


GHNPruner = optunahub.load_module("pruners/ghn").GHNPruner
space = {f"op{number}": CategoricalDistribution(OPS) for number in range(6)}
sampler = optuna.samplers.RandomSampler(seed=0)
study = optuna.create_study(direction="maximize", sampler=sampler, pruner=GHNPruner(space=space, score=score))
study.optimize(objective, n_trials=60)
print(sum(trial.state == optuna.trial.TrialState.PRUNED for trial in study.trials), "trials were pruned")

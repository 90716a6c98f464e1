import optuna
from optuna.distributions import CategoricalDistribution
import optunahub


OPS = ["conv_1x1", "conv_3x3", "skip", "none"]


def objective(trial: optuna.Trial) -> float:
    ops = [trial.suggest_categorical(f"op{number}", OPS) for number in range(6)]
    return ops.count("conv_3x3") + 0.5 * ops.count("skip")


SNASSampler = optunahub.load_module("samplers/snas").SNASSampler
sampler = SNASSampler({f"op{number}": CategoricalDistribution(OPS) for number in range(6)}, seed=0)
study = optuna.create_study(direction="maximize", sampler=sampler)
study.optimize(objective, n_trials=50)
print(study.best_value, study.best_params)

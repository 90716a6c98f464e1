import optuna
from optuna_nas import HMNAS, HMNASRecipe, NetworkSpace, Skeleton, digits, hmnas_space
import optunahub


data = digits()
skeleton = Skeleton(("normal", "reduction"), 4, data.input_shape, data.classes, affine=False)
space = NetworkSpace(hmnas_space(), skeleton)
model = HMNAS(space, HMNASRecipe(batch_size=32))
model.fit(data, budget=0.05)


def objective(trial: optuna.Trial) -> float:
    architecture = space.suggest(trial)
    if trial.should_prune():  # before anything is trained
        raise optuna.TrialPruned
    return architecture.cost().params  # train and evaluate `architecture.build()` here


HMNASPruner = optunahub.load_module("pruners/hmnas").HMNASPruner
study = optuna.create_study(pruner=HMNASPruner(model))
study.optimize(objective, n_trials=5)
print(study.best_value)

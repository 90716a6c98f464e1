"""Which NAS-Bench-201 cell reads handwritten digits best?

Command:   optuna-nas run studies/digits.py
Cost:      about a minute on 2 CPU cores; nothing to download
Expected:  about 0.97 on the report split within 30 trials, and the same on the test split
"""

from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler

from optuna_nas import Recipe, Search, digits, nasbench201_skeleton, nasbench201_space


def search(trials: int = 30, epochs: int = 8, seed: int = 0) -> Search:
    """Search with Optuna's TPE; every trial trains a small network from scratch."""
    data = digits(seed=seed)
    return Search(
        name="digits",
        space=nasbench201_space(),
        skeleton=nasbench201_skeleton(repeats=1, channels=8, input_shape=data.input_shape, classes=data.classes),
        data=data,
        recipe=Recipe(epochs=epochs, learning_rate=0.1, warmup_fraction=0.1, seed=seed),
        sampler=TPESampler(seed=seed),
        pruner=MedianPruner(n_startup_trials=8, n_warmup_steps=4),
        trials=trials,
        cpu_threads=1,
        description=__doc__ or "",
    )

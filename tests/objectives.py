"""An objective that trains small networks in seconds."""

import numpy as np

from optuna_nas.data import ImageData
from optuna_nas.networks import NetworkSpace
from optuna_nas.objective import (
    TrainObjective,
)
from optuna_nas.space import NONE, CellKind, CellSpace, Skeleton
from optuna_nas.training import Recipe

OPS = (NONE, "skip_connect", "nor_conv_1x1", "avg_pool_3x3")


CELLS = CellSpace(OPS, nodes=2, inputs=1, cell_kinds=(CellKind("cell", outputs=(2,)),))


SPACE = NetworkSpace(CELLS, Skeleton(("cell", "residual_reduction", "cell"), 4, (1, 8, 8), 3))


RECIPE = Recipe(epochs=3, batch_size=18, learning_rate=0.1)


def images(n=120, seed=0):
    """Noise with a bright column per class; 72 images to train, 24 to report."""
    draw = np.random.default_rng(seed)
    y = np.arange(n) % 3
    x = draw.normal(size=(n, 8, 8)) + 1.2 * (np.arange(8) == 2 * y[:, None])[:, None, :]
    return ImageData.from_arrays(x.astype(np.float32), y)


DATA = images()


def make(**changes):
    return TrainObjective(**{"space": SPACE, "data": DATA, "recipe": RECIPE, **changes})

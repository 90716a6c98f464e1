"""Study files that several tests run."""

TINY = """
import numpy as np
from optuna.samplers import RandomSampler
from optuna_nas import ImageData, NetworkSpace, Recipe, Search, nasbench201_skeleton, nasbench201_space

def search(epochs: int = 2, trials: int = 3, name: str = "tiny") -> Search:
    labels = np.arange(120) % 3
    images = np.random.default_rng(0).normal(size=(120, 6, 6)).astype(np.float32) + labels[:, None, None]
    data = ImageData.from_arrays(images, labels)
    space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 4, data.input_shape, 3))
    return Search(
        name, space, data, Recipe(epochs=epochs, batch_size=16),
        sampler=RandomSampler(seed=0), trials=trials, cpu_threads=1,
    )
"""

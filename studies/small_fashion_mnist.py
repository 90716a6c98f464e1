"""Fashion-MNIST small enough for a search on a CPU."""

import numpy as np
import torch

from optuna_nas import ImageData, fashion_mnist


def small_fashion_mnist(folder: str, seed: int) -> ImageData:
    """Return 5,000 images of Fashion-MNIST to learn from and 2,000 that report, halved in height and width."""
    data = fashion_mnist(folder) if folder else fashion_mnist()
    chosen = torch.from_numpy(np.random.default_rng(seed).permutation(60_000)[:7000])
    images = data.images[chosen, 0].reshape(-1, 14, 2, 14, 2).float().mean((2, 4)).numpy() / 255
    return ImageData.from_arrays(
        images[..., None].astype(np.float32),
        data.labels[chosen].numpy(),
        name="Fashion-MNIST at 14x14",
        channels="last",
        fractions={"choices": 0.0, "report": 2 / 7, "test": 0.0},
        seed=seed,
    )

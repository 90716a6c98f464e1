"""Are cells that a hypernetwork ranks first better than random ones, and is the best of ten worth finding?

Command:   optuna-nas surrogate studies/fashion_ghn.py --set images=FOLDER      # without a folder, to download (30 MB)
Cost:      a quarter of an hour on one CPU core a seed; `--set seed=1` for another one
Expected:  the protocols of tables 1 and 2 of GHN (Zhang et al. 2019): Top, the ten best of 300 trained in full;
           Top-Best, the best of the ten after brief trainings, in full five times; ten Random ones beside them

NAS-Bench-201's cells in three of 8 channels in place of the paper's 18 blocks of 32, 5,000 images of Fashion-MNIST at
14 x 14 in place of CIFAR-10, 2,000 more to judge by; ten epochs in place of 600, and two of a brief training. All
kernels are generated, as in the paper (`freeze_fraction=0`).
"""

from small_fashion_mnist import small_fashion_mnist

from optuna_nas import (
    GHN,
    GHNRecipe,
    GHNSampler,
    NetworkSpace,
    Recipe,
    Search,
    nasbench201_skeleton,
    nasbench201_space,
)


def search(images: str = "", epochs: int = 10, ghn_epochs: float = 15, pool: int = 300, seed: int = 0) -> Search:
    """Train a GHN and score a pool; the protocols are those of `optuna-nas surrogate`."""
    data = small_fashion_mnist(images, seed)
    space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 8, data.input_shape, data.classes))
    ghn = GHN(space, GHNRecipe(meta_batch=2, freeze_fraction=0.0, seed=seed))
    return Search(
        name=f"fashion-ghn-{seed}",
        space=space,
        data=data,
        recipe=Recipe(epochs=epochs, learning_rate=0.05, warmup_fraction=0.1, seed=seed),
        sampler=GHNSampler(
            space,
            ghn,
            data=data,
            budget=ghn_epochs,
            pool_size=pool,
            trials_per_round=10,
            exploration=0.0,
            seed=seed,
        ),
        trials=10,
        cpu_threads=1,
        description=__doc__ or "",
    )

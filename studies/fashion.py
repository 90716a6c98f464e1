"""Which NAS-Bench-201 cell tells clothes apart best, in two minutes?

Command:   optuna-nas run studies/fashion.py                                     # downloads Fashion-MNIST, 30 MB
           optuna-nas run studies/fashion.py --set images=FOLDER                 # torchvision's, if you have it
           optuna-nas compare studies/fashion.py --strategy auto --strategy ghn --budget seconds=70 --seeds 5
Cost:      two minutes, on one core
Expected:  0.85 to 0.87 on the report split
"""

from small_fashion_mnist import small_fashion_mnist

from optuna_nas import NetworkSpace, Recipe, Search, nasbench201_skeleton, nasbench201_space


def search(images: str = "", seconds: float = 120.0, trials: int = 12, seed: int = 0) -> Search:
    """Let the package choose the strategy; every trial trains a small network on 5,000 images of 14 x 14."""
    data = small_fashion_mnist(images, seed)
    skeleton = nasbench201_skeleton(repeats=1, channels=8, input_shape=data.input_shape, classes=data.classes)
    return Search(
        name="fashion",
        space=NetworkSpace(nasbench201_space(), skeleton),
        data=data,
        recipe=Recipe(epochs=5, learning_rate=0.05, warmup_fraction=0.1, seed=seed),
        strategy="auto",
        trials=trials,
        seconds=seconds,
        cpu_threads=1,
        description=__doc__ or "",
    )

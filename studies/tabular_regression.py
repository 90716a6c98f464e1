"""Which perceptron predicts the progress of diabetes? Width, norm, dropout, depth, and what the head reads.

Command:   optuna-nas run studies/tabular_regression.py
Cost:      less than a minute on 2 CPU cores; the data come with scikit-learn (442 patients, 10 measurements)
Expected:  R2 about 0.5 on the validation split, 0.4 to 0.5 on the test split, which has 88 patients
"""

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

from optuna_nas import (
    ModuleSpace,
    Recipe,
    Regression,
    Search,
    TensorData,
    choose,
    choose_depth,
    choose_inputs,
    choose_op,
)


class Net(nn.Module):
    """A perceptron with five hesitations."""

    def __init__(self) -> None:
        super().__init__()
        width = choose("width", [16, 8, 32, 64])
        self.stem = nn.Linear(10, width)
        self.norm = choose_op("norm", {"none": nn.Identity, "layer": lambda: nn.LayerNorm(width)})
        self.dropout = nn.Dropout(choose("dropout", [0.0, 0.1, 0.3]))
        self.deep = choose_depth("depth", lambda number: nn.Sequential(nn.Linear(width, width), nn.GELU()), 1, 4)
        self.reads = choose_inputs("head_reads", 2, most=2)
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.norm(self.stem(x))
        return self.head(self.dropout(self.reads([stem, self.deep(stem)])))  # type: ignore[no-any-return]


SPACE = ModuleSpace(Net, example=torch.zeros(1, 10))


def search(trials: int = 40, epochs: int = 20, strategy: str = "auto", seed: int = 0) -> Search:
    """Search the module; the strategy is one of those of `optuna-nas run --strategy`."""
    patients = load_diabetes()
    targets = (patients.target - patients.target.mean()) / patients.target.std()
    return Search(
        name="tabular_regression",
        space=SPACE,
        data=TensorData.from_arrays(patients.data, targets, name="diabetes", seed=seed),
        recipe=Recipe(epochs=epochs, batch_size=32, optimizer="adamw", learning_rate=0.003, seed=seed),
        task=Regression(),
        strategy=strategy,
        trials=trials,
        cpu_threads=1,
        description=__doc__ or "",
    )

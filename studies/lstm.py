"""Which recurrent network reads digits column by column? Its kind, width, layers, directions, and what is read of it.

Command:   optuna-nas run studies/lstm.py
Cost:      two minutes on 2 CPU cores; the data come with scikit-learn (1,797 digits of 8 columns)
Expected:  the best by validation loss has accuracy 0.981 on the validation split, 0.972 on the test split (one seed)
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from optuna_nas import ModuleSpace, Recipe, Search, TensorData, choose, choose_op, choose_optional


class Recurrent(nn.Module):
    """Reads one column of pixels a step."""

    def __init__(self) -> None:
        super().__init__()
        width, layers, both = (
            choose("width", [32, 16, 64]),
            choose("layers", [1, 2]),
            choose("both_ways", [False, True]),
        )
        arguments = {"num_layers": layers, "bidirectional": both, "batch_first": True}
        kinds = {
            "lstm": lambda: nn.LSTM(8, width, **arguments),
            "gru": lambda: nn.GRU(8, width, **arguments),
            "rnn": lambda: nn.RNN(8, width, **arguments),
        }
        self.layer = choose_op("kind", kinds)
        outputs = width * (1 + both)
        self.norm = choose_optional("norm", lambda: nn.LayerNorm(outputs))
        self.read = choose("read", ["last", "mean"])
        self.head = nn.Linear(outputs, 10)

    def forward(self, columns: Tensor) -> Tensor:
        steps, _ = self.layer(columns)
        read = steps[:, -1] if self.read == "last" else steps.mean(1)
        return self.head(self.norm(read))  # type: ignore[no-any-return]


SPACE = ModuleSpace(Recurrent, example=torch.zeros(1, 8, 8))


def search(trials: int = 20, epochs: int = 10, strategy: str = "free", seed: int = 0) -> Search:
    """Search the module. States of an LSTM and of a GRU can't be added: SNAS needs one-path steps here."""
    digits = load_digits()
    columns = digits.images.transpose(0, 2, 1).copy()
    return Search(
        name="lstm",
        space=SPACE,
        data=TensorData.from_arrays(columns, digits.target, name="columns of digits", normalize=False, seed=seed),
        recipe=Recipe(epochs=epochs, batch_size=32, optimizer="adamw", learning_rate=0.005, seed=seed),
        strategy=strategy,
        trials=trials,
        cpu_threads=1,
        description=__doc__ or "",
    )

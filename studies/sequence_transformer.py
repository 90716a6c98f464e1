"""Which small transformer reads digits row by row? Width, depth, what mixes the rows in each layer, how it pools.

Command:   optuna-nas run studies/sequence_transformer.py
Cost:      three minutes on 2 CPU cores; the data come with scikit-learn (1,797 digits of 8 rows)
Expected:  accuracy about 0.97 on the validation split
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from optuna_nas import ModuleSpace, Recipe, Search, TensorData, choose, choose_depth, choose_op, choose_ops

ROWS = COLUMNS = 8


class Attention(nn.Module):
    """Self-attention of a number of heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        attended: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return attended


class Convolution(nn.Module):
    """Convolution over the rows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        convolved: Tensor = self.convolution(x.transpose(1, 2)).transpose(1, 2)
        return convolved


class Layer(nn.Module):
    """Layer of a transformer; what mixes its rows is a sum of one or two ops."""

    def __init__(self, number: int, width: int) -> None:
        super().__init__()
        hidden = choose(f"hidden_{number}", [64, 32])
        self.before_mix, self.before_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        ops = {
            "heads4": lambda: Attention(width, 4),
            "heads1": lambda: Attention(width, 1),
            "convolution": lambda: Convolution(width),
        }
        self.mix = choose_ops(f"mix_{number}", ops, most=2)
        self.feed = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.before_mix(x))
        return x + self.feed(self.before_feed(x))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Reads one row of pixels a step."""

    def __init__(self) -> None:
        super().__init__()
        width = choose("width", [32, 16])
        self.embed = nn.Linear(COLUMNS, width)
        self.place = nn.Parameter(0.1 * torch.randn(ROWS, width))
        self.layers = choose_depth("layers", lambda number: Layer(number, width), 1, 3)
        self.norm = choose_op("norm", {"layer": lambda: nn.LayerNorm(width), "none": nn.Identity})
        self.pool = choose("pool", ["mean", "last", "max"])
        self.head = nn.Linear(width, 10)

    def forward(self, rows: Tensor) -> Tensor:
        x = self.norm(self.layers(self.embed(rows) + self.place))
        pooled = {"mean": x.mean(1), "last": x[:, -1], "max": x.amax(1)}[self.pool]
        return self.head(pooled)  # type: ignore[no-any-return]


SPACE = ModuleSpace(Transformer, example=torch.zeros(1, ROWS, COLUMNS))


def search(trials: int = 20, epochs: int = 8, strategy: str = "auto", seed: int = 0) -> Search:
    """Search the module; the strategy is one of those of `optuna-nas run --strategy`."""
    digits = load_digits()
    return Search(
        name="sequence_transformer",
        space=SPACE,
        data=TensorData.from_arrays(digits.images, digits.target, name="rows of digits", normalize=False, seed=seed),
        recipe=Recipe(epochs=epochs, batch_size=32, optimizer="adamw", learning_rate=0.002, seed=seed),
        strategy=strategy,
        trials=trials,
        cpu_threads=1,
        description=__doc__ or "",
    )

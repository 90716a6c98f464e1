"""Modules with choices of every kind, as a user would write them."""

import torch
from torch import nn

from optuna_nas import ModuleSpace, choose, choose_depth, choose_inputs, choose_op, choose_ops, choose_optional

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


class Gate(nn.Module):
    """Gated linear unit."""

    def __init__(self, width):
        super().__init__()
        self.both = nn.Linear(width, 2 * width)

    def forward(self, x):
        return nn.functional.glu(self.both(x), -1)


class Perceptron(nn.Module):
    """Every kind of choice; one of them nested."""

    def __init__(self):
        super().__init__()
        width = choose("width", [8, 4, 12])
        self.stem = nn.Linear(6, width)
        self.norm = choose_op("norm", {"layer": lambda: nn.LayerNorm(width), "none": nn.Identity})
        self.block = choose_op("block", {"mlp": lambda: hidden_block(width), "gate": lambda: Gate(width)})
        self.deep = choose_depth("depth", lambda number: nn.Sequential(nn.Linear(width, width), nn.Tanh()), 0, 2)
        self.reads = choose_inputs("reads", 3, most=2)
        self.sums = choose_ops(
            "sums", {"linear": lambda: nn.Linear(width, width), "tanh": nn.Tanh, "same": nn.Identity}
        )
        self.after = choose_optional("after", lambda: nn.RMSNorm(width))
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        stem = self.norm(self.stem(x))
        block = stem + self.block(stem)
        return self.head(self.after(self.sums(self.reads([stem, block, self.deep(block)]))))


def hidden_block(width):
    """A layer whose width and activation are chosen only where it is."""
    hidden = choose("block_hidden", [16, 8])
    activation = ACTIVATIONS[choose("activation", ["relu", "gelu"])]()
    return nn.Sequential(nn.Linear(width, hidden), activation, nn.Linear(hidden, width))


class Attention(nn.Module):
    """Self-attention of a number of heads."""

    def __init__(self, width, heads):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Convolution(nn.Module):
    """Convolution over the steps of a sequence."""

    def __init__(self, width, kernel):
        super().__init__()
        self.convolution = nn.Conv1d(width, width, kernel, padding=kernel // 2)

    def forward(self, x):
        return self.convolution(x.transpose(1, 2)).transpose(1, 2)


class Last(nn.Module):
    """A recurrent layer, of which only the sequence is passed on."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


class Block(nn.Module):
    """Block of a transformer with choices of its own."""

    def __init__(self, number, width):
        super().__init__()
        hidden = choose(f"hidden_{number}", [16, 8])
        self.norm = nn.LayerNorm(width)
        self.mix = choose_op(
            f"mix_{number}",
            {
                "four_heads": lambda: Attention(width, 4),
                "convolution": lambda: Convolution(width, choose(f"kernel_{number}", [3, 5])),
                "lstm": lambda: Last(nn.LSTM(width, width, batch_first=True)),
                "gru": lambda: Last(nn.GRU(width, width, batch_first=True)),
            },
        )
        self.feed = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x):
        x = x + self.mix(self.norm(x))
        return x + self.feed(x)


class Transformer(nn.Module):
    """Reads tokens; the last layer has the weights of the embedding, and a buffer depends on the width."""

    def __init__(self):
        super().__init__()
        width = choose("width", [8, 16])
        self.embed = nn.Embedding(7, width)
        self.register_buffer("place", torch.arange(5.0 * width).reshape(5, width).sin(), persistent=False)
        self.layers = choose_depth("layers", lambda number: Block(number, width), 1, 2)
        self.pool = choose("pool", ["mean", "last"])
        self.head = nn.Linear(width, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.layers(self.embed(tokens) + self.place)
        return self.head(x.mean(1) if self.pool == "mean" else x[:, -1])


class Convolutional(nn.Module):
    """Channels, kernels, groups, norms of a batch, three-dimensional convolutions."""

    def __init__(self):
        super().__init__()
        channels, kernel = choose("channels", [8, 4]), choose("kernel", [3, 5])
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.first = nn.Conv2d(4, channels, kernel, padding=kernel // 2)
        self.norm = nn.BatchNorm2d(channels)
        self.op = choose_op(
            "op",
            {
                "grouped": lambda: nn.Conv2d(channels, channels, 3, padding=1, groups=2),
                "depthwise": lambda: nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
                "pool": lambda: nn.MaxPool2d(3, 1, 1),
                "volume": lambda: Volume(channels),
                "groups": lambda: nn.GroupNorm(2, channels),
                "instance": lambda: nn.InstanceNorm2d(channels, affine=True),
            },
        )
        self.head = nn.Linear(channels, 3)

    def forward(self, x):
        return self.head(self.op(self.norm(self.first(self.stem(x))).relu()).mean((2, 3)))


class Volume(nn.Module):
    """Convolution in three dimensions, one of them alone."""

    def __init__(self, channels):
        super().__init__()
        self.convolution = nn.Conv3d(channels, channels, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, x):
        return self.convolution(x[:, :, None])[:, :, 0]


PERCEPTRON = ModuleSpace(Perceptron, example=torch.zeros(1, 6))
TRANSFORMER = ModuleSpace(Transformer, example=torch.zeros(1, 5, dtype=torch.int64))
CONVOLUTIONAL = ModuleSpace(Convolutional, example=torch.zeros(1, 1, 8, 8))
SPACES = {"perceptron": PERCEPTRON, "transformer": TRANSFORMER, "convolutional": CONVOLUTIONAL}


def inputs_of(space, batch_size=4, seed=0):
    """Return random inputs of a space above."""
    draw = torch.Generator().manual_seed(seed)
    if space is TRANSFORMER:
        return torch.randint(7, (batch_size, 5), generator=draw)
    return torch.randn(batch_size, *space.example.shape[1:], generator=draw)

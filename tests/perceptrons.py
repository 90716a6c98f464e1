"""A space of one's own, without cells: perceptrons with as many options as each choice needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import nn

from optuna_nas import Architecture
from optuna_nas.space import Cost, ModelSpace

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU}


@dataclass(frozen=True)
class MLPSpace(ModelSpace):
    """Perceptrons on vectors: three widths, two depths, four activations."""

    type_name: ClassVar[str] = "MLPSpace"

    n_inputs: int
    widths: tuple[int, ...] = (4, 8, 16)

    def options(self) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        names = {"width": map(str, self.widths), "depth": ("1", "2"), "activation": ACTIVATIONS}
        return {path: {name: (name,) for name in options} for path, options in names.items()}

    def check_choice(self, path, chosen):
        if len(chosen) != 1 or chosen[0] not in self.options()[path]:
            raise ValueError(f"`choices` must name one option at {path!r} but name {chosen}.")

    def full_architecture(self):
        return Architecture(self, tuple((path, tuple(options)) for path, options in self.options().items()))

    def summary(self, architecture):
        return " ".join(name for _, (name,) in architecture.choices)

    def build(self, architecture, weights=None, seed=None):
        with torch.random.fork_rng():
            if seed is not None:
                torch.manual_seed(seed)
            (width,), (depth,), (activation,) = (architecture[path] for path in ("width", "depth", "activation"))
            sizes = [self.n_inputs] + [int(width)] * int(depth)
            layers = [
                part
                for inputs, outputs in pairwise(sizes)
                for part in (nn.Linear(inputs, outputs), ACTIVATIONS[activation]())
            ]
            network = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))
        if weights is not None:
            network.load_state_dict(weights)
        return network

    def supernet(self, seed=None):
        raise NotImplementedError

    def cost(self, architecture):
        linear = [layer for layer in self.build(architecture, seed=0) if isinstance(layer, nn.Linear)]
        multiply_adds = sum(layer.weight.numel() for layer in linear)
        return Cost(multiply_adds + sum(layer.bias.numel() for layer in linear), multiply_adds, 0)

    def graph(self, architecture):
        raise NotImplementedError

    def example_inputs(self, batch_size=1):
        return torch.zeros(batch_size, self.n_inputs)

    def check_data(self, data):
        if data.input_shape != (self.n_inputs,):
            raise ValueError(f"`data` must have inputs of shape ({self.n_inputs},) but have {data.input_shape}.")

    def to_dict(self):
        return {"type": self.type_name, "n_inputs": self.n_inputs, "widths": list(self.widths)}

    @classmethod
    def _from_dict(cls, description):
        return cls(description["n_inputs"], tuple(description["widths"]))


SPACE = MLPSpace(10)
SIZES = {"width": 3, "depth": 2, "activation": 4}

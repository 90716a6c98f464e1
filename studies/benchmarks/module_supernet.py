"""What does a step of a user's module as a supernet cost, beside the plain module?

Command:   python studies/benchmarks/module_supernet.py
Cost:      two minutes on one core
Expected:  one path about as much as the plain module, a soft mixture about as much as all options together

Forward and backward pass in CPU milliseconds, the median of rounds in which all take turns, so that a machine that
becomes slower meanwhile slows all of them alike.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import sequence_transformer

from optuna_nas import Architecture, ModuleSpace, choose_op
from optuna_nas.networks import one_hot, use_batch_statistics

if TYPE_CHECKING:
    from collections.abc import Callable


def resnet() -> nn.Module:
    """Return a ResNet-18 whose last block is one of three."""
    model: nn.Module = resnet18()
    stage: Any = model.layer4
    kept = stage[1]
    stage[1] = choose_op("last", {"kept": kept, "thin": lambda: nn.Conv2d(512, 512, 1), "skip": nn.Identity})
    return model


def wide() -> nn.Module:
    """Return three equal options, in a layer that does nearly all of the work."""
    ops = {
        f"op{number}": lambda: nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256))
        for number in range(3)
    }
    return nn.Sequential(choose_op("op", ops), nn.Linear(256, 1))


def step(module: "Callable[..., Tensor]", *inputs: Any) -> float:
    """Return the CPU milliseconds of a forward and a backward pass."""
    begun = time.process_time()
    module(*inputs).float().square().mean().backward()
    return (time.process_time() - begun) * 1e3


def compare(name: str, space: ModuleSpace, inputs: Tensor, rounds: int, architectures: dict[str, Architecture]) -> None:
    """Print the cost of one path beside the plain module's."""
    supernet = space.supernet(seed=0)
    for label, architecture in architectures.items():
        module = architecture.build(seed=0)
        use_batch_statistics(module)
        weights = one_hot(architecture)
        pairs = [(step(module, inputs), step(supernet, inputs, weights)) for _ in range(rounds)]
        plain, path = (median(column) for column in zip(*pairs[2:], strict=True))
        ratios = median(one / other for other, one in pairs[2:])
        print(f"{name:12} {label:9} plain {plain:7.2f} ms, one path {path:7.2f} ms, {ratios:.2f}x", flush=True)


def main() -> None:
    """Print the cost of one path and of a mixture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    space = ModuleSpace(resnet, example=torch.zeros(1, 3, 64, 64))
    kept = {"kept": space.architecture({"last": "kept"})}
    compare("ResNet-18", space, torch.randn(8, 3, 64, 64), options.rounds, kept)
    space = sequence_transformer.SPACE
    small = {"width": 16, "layers": 2, "mix_0": "heads1", "mix_1": "heads1", "hidden_0": 32, "hidden_1": 32}
    chosen = {
        "largest": space.architecture({"layers": 3, "width": 32}),
        "smallest": space.architecture(small),
        "random": space.sample(np.random.default_rng(0)),
    }
    compare("transformer", space, torch.randn(32, 8, 8), options.rounds, chosen)
    space = ModuleSpace(wide, example=torch.zeros(1, 256))
    supernet, modules = space.supernet(seed=0), [space.architecture({"op": f"op{n}"}).build(seed=0) for n in range(3)]
    inputs, mixing = torch.randn(256, 256), {"op": torch.full((3,), 1 / 3, requires_grad=True)}
    pairs = [
        (sum(step(module, inputs) for module in modules), step(supernet, inputs, mixing)) for _ in range(options.rounds)
    ]
    options_alone, mixture = (median(column) for column in zip(*pairs[2:], strict=True))
    ratio = median(one / other for other, one in pairs[2:])
    print(f"mixture      of three  alone {options_alone:7.2f} ms, mixture  {mixture:7.2f} ms, {ratio:.2f}x")


if __name__ == "__main__":
    main()

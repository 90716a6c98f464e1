"""What does a step of a user's module as a supernet cost, beside the plain module?

Command:   python studies/benchmarks/module_supernet.py            # or some of: steps profile costs layout
Cost:      three minutes on one core
Expected:  one path about as much as the plain module, a soft mixture about as much as all options together

`steps` compares, `profile` takes a step of the small transformer apart, `costs` counts parameters and multiply-adds,
`layout` compares kernels whose channels lie first and last.

Forward and backward pass in CPU milliseconds, the median of rounds in which all take turns, so that a machine that
becomes slower meanwhile slows all of them alike.
"""

import argparse
import copy
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.models import resnet18

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import lstm
import segmentation_unet
import sequence_transformer
import tabular_regression

from optuna_nas import Architecture, ModuleSpace, choose_op
from optuna_nas.networks import one_hot, use_batch_statistics

if TYPE_CHECKING:
    from collections.abc import Callable

SWAPS, COUNTED = 20, 30
"""Swaps of tensors that are timed together, and architectures whose multiply-adds are counted."""


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


def steps(rounds: int) -> None:
    """Print the cost of one path and of a mixture."""
    space = ModuleSpace(resnet, example=torch.zeros(1, 3, 64, 64))
    compare("ResNet-18", space, torch.randn(8, 3, 64, 64), rounds, {"kept": space.architecture({"last": "kept"})})
    compare("transformer", sequence_transformer.SPACE, torch.randn(32, 8, 8), rounds, transformers())
    space = ModuleSpace(wide, example=torch.zeros(1, 256))
    supernet, modules = space.supernet(seed=0), [space.architecture({"op": f"op{n}"}).build(seed=0) for n in range(3)]
    inputs, mixing = torch.randn(256, 256), {"op": torch.full((3,), 1 / 3, requires_grad=True)}
    pairs = [(sum(step(module, inputs) for module in modules), step(supernet, inputs, mixing)) for _ in range(rounds)]
    options_alone, mixture = (median(column) for column in zip(*pairs[2:], strict=True))
    ratio = median(one / other for other, one in pairs[2:])
    print(f"mixture      of three  alone {options_alone:7.2f} ms, mixture  {mixture:7.2f} ms, {ratio:.2f}x")


def transformers() -> dict[str, Architecture]:
    """Return three architectures of the small transformer."""
    space = sequence_transformer.SPACE
    small = {"width": 16, "layers": 2, "mix_0": "heads1", "mix_1": "heads1", "hidden_0": 32, "hidden_1": 32}
    return {
        "largest": space.architecture({"layers": 3, "width": 32}),
        "smallest": space.architecture(small),
        "random": space.sample(np.random.default_rng(0)),
    }


def profile(rounds: int) -> None:
    """Print what of a step is swapping tensors, what slicing them, and what the rest.

    Swapping is `functional_call` of the same module and tensors with a `forward` that does nothing; slicing the
    difference to the same supernet whose tensors are stored in the sizes that this architecture takes.
    """
    space, inputs = sequence_transformer.SPACE, torch.randn(32, 8, 8)
    for label, architecture in transformers().items():
        module, sliced, at_size = architecture.build(seed=0), space.supernet(seed=0), space.supernet(seed=0)
        use_batch_statistics(module)
        weights, chosen = one_hot(architecture), dict(architecture.choices)
        frame = at_size._frames.of(chosen, torch.device("cpu"))
        taken = {
            name: name.replace(".", "/")
            for name in frame.used({name: dict.fromkeys(of) for name, of in chosen.items()})
        }
        n_sliced = 0
        for name, key in taken.items():
            stored = at_size.get_parameter(key)
            own = frame.cut(name, stored)
            n_sliced += own.shape != stored.shape
            at_size._parameters[key] = nn.Parameter(own.detach().clone(), stored.requires_grad)
        idle = copy.deepcopy(frame.module)
        idle.forward = lambda x: x
        tensors: dict[str, Tensor] = {
            alias: at_size.get_parameter(key) for name, key in taken.items() for alias in frame.tied[name]
        }
        rows = []
        for _ in range(rounds):
            times = [step(module, inputs), step(at_size, inputs, weights), step(sliced, inputs, weights)]
            begun = time.process_time()
            for _ in range(SWAPS):
                functional_call(idle, tensors, (inputs,), tie_weights=False)
            rows.append([*times, (time.process_time() - begun) * 1e3 / SWAPS])
        plain, whole, cut, swap = (median(column) for column in zip(*rows[2:], strict=True))
        slicing, path = (median(row[2] - row[1] for row in rows[2:]), median(row[1] - row[0] for row in rows[2:]))
        ratios = [median(row[column] / row[0] for row in rows[2:]) for column in (1, 2)]
        print(
            f"transformer {label:9} plain {plain:5.2f} ms, stored at size {whole:5.2f} ({ratios[0]:.2f}x), sliced "
            f"{cut:5.2f} ({ratios[1]:.2f}x); of {len(taken)} tensors {n_sliced} sliced: slices {slicing:4.2f} ms, the "
            f"path {path:4.2f}, of which swapping {swap:4.2f}",
            flush=True,
        )


def costs(number: int) -> None:
    """Print what parameters of a pool, and multiply-adds of an architecture cost where nothing is remembered."""
    for study in (tabular_regression, sequence_transformer, segmentation_unet, lstm):
        made = study.SPACE
        space = ModuleSpace(made.make, example=made.example, name=f"costs of {made.name}")
        draw = np.random.default_rng(0)
        pool = [space.sample(draw) for _ in range(number)]
        begun = time.process_time()
        for architecture in pool:
            space.params(architecture)
        seconds = time.process_time() - begun
        times = []
        for architecture in pool[:COUNTED]:
            begun = time.process_time()
            architecture.cost()
            times.append((time.process_time() - begun) * 1e3)
        print(
            f"{study.__name__:21} parameters of {number:,} drawn {seconds:5.2f} CPU s; multiply-adds of one "
            f"{median(times):5.1f} ms ({min(times):.1f} to {max(times):.1f})",
            flush=True,
        )


def layout(rounds: int) -> None:
    """Print a step of the U-Net with kernels in either format."""
    space, inputs = segmentation_unet.SPACE, torch.randn(16, 1, segmentation_unet.SIZE, segmentation_unet.SIZE)
    for width in (16, 8):
        architecture = space.architecture({"width": width})
        modules = [architecture.build(seed=0) for _ in range(2)]
        modules[1].to(memory_format=torch.channels_last)
        rows = [[step(module, inputs) for module in modules] for _ in range(rounds)]
        first, last = (median(column) for column in zip(*rows[2:], strict=True))
        ratio = median(one / other for other, one in rows[2:])
        print(f"U-Net, width {width:2}  channels first {first:5.2f} ms, last {last:5.2f} ms, {ratio:.2f}x", flush=True)


def main() -> None:
    """Print the parts that are asked for."""
    parts = {"steps": steps, "profile": profile, "costs": costs, "layout": layout}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(parts), help=f"some of {', '.join(parts)}; all by default")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--pool", type=int, default=1000, help="architectures whose parameters are counted")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for part in options.parts:
        parts[part](options.pool if part == "costs" else options.rounds)


if __name__ == "__main__":
    main()

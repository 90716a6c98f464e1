"""What does a step of a supernet cost, beside a plain one, beside its convolutions alone, and for a single path?

Command:   python studies/benchmarks/supernet.py                    # both spaces, full size, about six minutes
           python studies/benchmarks/supernet.py --small            # half a minute
           python studies/benchmarks/supernet.py --spaces nasbench201 --compile    # ours compiled too: ten minutes more
Cost:      one thread
Expected:  the soft mixture at most 0.45 times the plain one and 2.0 times the convolutions; a path at most 1.10 times a
           plain network of it

Subjects take turns in one process; CPU seconds, medians. The plain reference is what public implementations do: every
op a module with a ReLU, convolutions and norms of its own, executed one after another, `none` a product with zero,
images laid out by channels (NCHW). A path is a sample that carries the gradient of its logits, as SNAS learns from; its
reference is the network of that path alone as we train it (`DiscreteNetwork`), which is faster than the plain one. The
floor is all convolutions of the supernet, forward and backward, `channels_last`, with neither norms nor mixing. Memory
is what a process of its own takes above its data and weights.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from timing import race
from torch import Tensor, nn

from optuna_nas import NetworkSpace, darts_search_skeleton, darts_space, nasbench201_skeleton, nasbench201_space
from optuna_nas.networks import Supernet
from optuna_nas.networks.ops import build_op, has_module
from optuna_nas.networks.supernet import one_hot
from optuna_nas.oneshot.snas.distribution import one_path_sample
from optuna_nas.space.graph import ComputationGraph
from optuna_nas.space.ops import NONE, STRUCTURAL, get_op
from optuna_nas.training.device import autocast
from optuna_nas.training.finite_steps import fused

BATCH = 64
SUBJECTS = ("plain", "ours", "floor", "path", "plain path")
Step = Callable[[], None]


def setting(name: str, small: bool) -> NetworkSpace:
    """Return a space at the size at which public implementations were timed."""
    side = 16 if small else 32
    if name == "nasbench201":
        skeleton = nasbench201_skeleton(1 if small else 5, 16, (3, side, side), affine=False)
        return NetworkSpace(nasbench201_space(), skeleton)
    return NetworkSpace(darts_space(), darts_search_skeleton(3 if small else 8, 16, (3, side, side)))


class Zero(nn.Module):
    """`none`, as public implementations compute it."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros."""
        return x[:, :, :: self.stride, :: self.stride].mul(0.0)


def plainly(module: nn.Module) -> None:
    """Let a convolution be PyTorch's own, whatever its class."""
    if isinstance(module, nn.Conv2d):
        module.__class__ = nn.Conv2d


class Plain(nn.Module):
    """A network as a loop over its graph: every op by itself, times its weight if any, terms added."""

    def __init__(self, graph: ComputationGraph, names: Mapping[str, Sequence[str]] | None = None) -> None:
        super().__init__()
        self.graph, self.names = graph, names or {}
        self.parts = nn.ModuleDict()
        for position, node in enumerate(self.graph):
            if node.op in STRUCTURAL or position not in self.graph.live:
                continue
            op = build_op(node.op, node.site) if has_module(node.op, node.site) else nn.Identity()
            op = op.apply(plainly)
            self.parts[node.name] = nn.Sequential(nn.ReLU(), op) if get_op(node.op).relu_first else op

    def take(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of a network of ours, all of them."""
        moved = {}
        for key, tensor in weights.items():
            _, name, rest = key.split(".", 2)
            part = self.parts[name]
            behind = isinstance(part, nn.Sequential) and isinstance(part[0], nn.ReLU)
            moved[f"parts.{name}.{'1.' if behind else ''}{rest}"] = tensor
        missing, unexpected = self.load_state_dict(moved, strict=False)
        if unexpected or set(missing) & {name for name, _ in self.named_parameters()}:
            raise ValueError(f"`weights` must be those of this network but lack {missing} and hold {unexpected}.")

    def forward(self, images: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return class scores."""
        values: list[Tensor] = []
        for position, node in enumerate(self.graph):
            sources = [source for source in node.inputs if source in self.graph.live or node.op == "concat"]
            inputs = [values[source] for source in sources]
            if position not in self.graph.live:
                values.append(images.new_zeros((len(images), *node.site.out_shape)))
            elif node.op == "input":
                values.append(images)
            elif node.op == "concat":
                values.append(torch.cat(inputs, 1))
            elif node.op == "sum":
                total: Tensor | float = 0.0 if inputs else images.new_zeros((len(images), *node.site.out_shape))
                zeroed = set()
                for source, value in zip(sources, inputs, strict=True):
                    read = self.graph.nodes[source]
                    if weights is None or not read.path:
                        total = total + value
                        continue
                    names = self.names[read.path]
                    total = total + weights[read.path][names.index(read.op)] * value
                    if NONE in names and read.path not in zeroed:
                        zeroed.add(read.path)
                        before = values[read.inputs[0]]
                        zero = Zero(read.site.stride)(before)
                        total = total + weights[read.path][names.index(NONE)] * zero
                values.append(total)
            else:
                values.append(self.parts[node.name](inputs[0]))
        return values[self.graph.outputs[0]]


def subjects(
    name: str,
    small: bool,
    wanted: Collection[str] = SUBJECTS,
    device: str = "cpu",
    precision: str = "float32",
) -> dict[str, Step]:
    """Return one training step of each wanted subject."""
    space = setting(name, small)
    torch.manual_seed(0)
    shape, options = space.skeleton.input_shape, space.cells.mixed_names()
    images, labels = torch.randn(BATCH, *shape, device=device), torch.randint(0, 10, (BATCH,), device=device)
    logits = {path: torch.zeros(len(names), device=device, requires_grad=True) for path, names in options.items()}

    def trained(network: nn.Module, forward: Callable[[], Tensor]) -> Step:
        parameters = list(network.parameters())
        optimizer = torch.optim.SGD(parameters, 0.01, 0.9, fused=fused(parameters))

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with autocast(images.device, precision):
                loss = F.cross_entropy(forward(), labels)
            loss.backward()
            optimizer.step()

        return step

    plain = Plain(space.supernet_graph(), options).to(device)
    ours = space.supernet(seed=0).to(device)
    draw = np.random.default_rng(0)
    path = space.sample(draw)
    while not path.connected:
        path = space.sample(draw)
    fixed = one_hot(path)
    active = {place: {names[int(fixed[place].argmax())]} for place, names in options.items()}
    peaked = (100 * torch.stack([fixed[place] for place in logits])).to(device).requires_grad_()
    network = space.build(path, seed=0).apply(plainly).to(device)

    def mixed(network: nn.Module, forward: Callable[..., Tensor]) -> Step:
        return trained(network, lambda: forward(images, {path: F.softmax(logit, 0) for path, logit in logits.items()}))

    def one_path() -> Tensor:
        sample, _ = one_path_sample(peaked)
        return ours(images, dict(zip(logits, sample.unbind(), strict=True)), active, ones=True)

    makes: dict[str, Callable[[], Step]] = {
        "plain": lambda: mixed(plain, plain),
        "ours": lambda: mixed(ours, ours),
        "compiled": lambda: mixed(ours, torch.compile(ours)),
        "floor": lambda: convolutions(space.supernet(seed=0).apply(plainly).to(device), images),
        "path": lambda: trained(ours, one_path),
        "plain path": lambda: trained(network, lambda: network(images)),
    }
    return {subject: makes[subject]() for subject in wanted}


def convolutions(network: Supernet, images: Tensor) -> Step:
    """Return a step of the convolutions of a supernet alone, each on an input of the shape that it has there."""
    shapes: dict[nn.Module, torch.Size] = {}
    found = [module for module in network.modules() if isinstance(module, nn.Conv2d)]

    def remember(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shapes[module] = inputs[0].shape

    handles = [module.register_forward_pre_hook(remember) for module in found]
    with torch.no_grad():
        network(images, {path: torch.ones(len(names)) for path, names in network.names.items()})
    for handle in handles:
        handle.remove()
    inputs = {
        shape: torch.randn(shape, device=images.device).contiguous(memory_format=torch.channels_last).requires_grad_()
        for shape in set(shapes.values())
    }

    def step() -> None:
        for module, shape in shapes.items():
            output = module(inputs[shape])
            output.backward(output.detach())
        for tensor in inputs.values():
            tensor.grad = None
        network.zero_grad(set_to_none=True)

    return step


def floors(name: str, small: bool) -> dict[str, float]:
    """Return the seconds that a step's operations take at the rate of a product of matrices, and its bytes at a copy's.

    The backward pass counts twice the forward pass; a byte that an op reads or writes is counted once a pass.
    """
    graph = setting(name, small).supernet_graph()
    costs = [graph.node_cost(node) for node in graph]
    operations = 3 * 2 * BATCH * sum(cost.multiply_adds for cost in costs)
    moved = 3 * 4 * sum(BATCH * (cost.memory_access - cost.params) + cost.params for cost in costs)
    matrix, long, target = torch.randn(1024, 1024), torch.randn(2**26), torch.empty(2**26)
    rate = 2 * 1024**3 / min(race({"": lambda: matrix @ matrix}, 5)[""])
    bandwidth = 2 * long.nbytes / min(race({"": lambda: target.copy_(long)}, 5)[""])
    print(
        f"{name}: {operations / 1e9:.0f} GFLOP at {rate / 1e9:.0f}/s, {moved / 1e9:.1f} GB at {bandwidth / 1e9:.1f}/s"
    )
    return {"floor of operations": operations / rate, "floor of bytes": moved / bandwidth}


def peak(name: str, small: bool, subject: str) -> float:
    """Return the peak memory of one subject in a process of its own, in GB."""
    arguments = [sys.executable, __file__, "--spaces", name, "--only", subject, *(["--small"] if small else [])]
    return float(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)


def most_memory() -> float:
    """Return the most memory that this process has had, in GB; `ru_maxrss` would begin with the parent's."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return float(line.split()[1]) / 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spaces", nargs="+", default=["nasbench201", "darts"])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--compile", action="store_true", help="measure our soft mixture by `torch.compile` too")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", help="one step of one subject; prints its peak memory in GB")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.only:
        step = subjects(arguments.spaces[0], arguments.small, [arguments.only])[arguments.only]
        before = most_memory()
        step()
        print(most_memory() - before)
        return
    figures = {}
    for name in arguments.spaces:
        steps = subjects(name, arguments.small, [*SUBJECTS, *(["compiled"] if arguments.compile else [])])
        if arguments.compile:
            begun = time.monotonic()
            steps["compiled"]()
            print(f"{name}: compiled in {time.monotonic() - begun:.0f} s", flush=True)
        found = {subject: median(times) for subject, times in race(steps, arguments.repeats).items()}
        found |= floors(name, arguments.small)
        memory = {subject: peak(name, arguments.small, subject) for subject in ("plain", "ours")}
        ratios = {
            "mixture to plain (aim 0.45)": found["ours"] / found["plain"],
            "mixture to floor (aim 2.0)": found["ours"] / found["floor"],
            "path to plain path (aim 1.10)": found["path"] / found["plain path"],
            "memory to plain (aim 0.6)": memory["ours"] / memory["plain"],
        }
        if arguments.compile:
            ratios["compiled mixture to plain"] = found["compiled"] / found["plain"]
        print(f"{name}: CPU seconds a step")
        for subject, seconds in found.items():
            print(f"  {subject:20}{seconds:8.3f}")
        for subject, size in memory.items():
            print(f"  peak memory, {subject:6}{size:6.2f} GB")
        for ratio, value in ratios.items():
            print(f"  {ratio:32}{value:6.2f}", flush=True)
        figures[name] = {"seconds": found, "memory": memory, "ratios": ratios}
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()

"""The graph of a user's module: its layers and functions, traced by `torch.fx`."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, NamedTuple

from torch import fx, nn

from optuna_nas.modules.probing import run_without_weights
from optuna_nas.modules.remembering import remembered
from optuna_nas.space.cost import Site
from optuna_nas.space.graph import ComputationGraph, Node

if TYPE_CHECKING:
    from collections.abc import Iterator

    from optuna_nas.modules.module_space import ModuleSpace
    from optuna_nas.space import Architecture

logger = logging.getLogger(__name__)

INPUT, OUTPUT = "input", "output"
MOVING = frozenset(
    {
        "getitem", "getattr", "size", "dim", "view", "reshape", "flatten", "unflatten", "transpose", "permute",
        "contiguous", "squeeze", "unsqueeze", "expand", "chunk", "split", "unbind", "to", "float", "clone", "detach",
    }
)  # fmt: skip
"""Functions that compute nothing: their readers read what they read."""
NORMS = (
    nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm,
)  # fmt: skip
_told: set[tuple[str, str]] = set()


class Layer(NamedTuple):
    """A layer or function in the order of computation.

    Args:
        name: Unique name.
        kind: What it does: `input`, `output`, the class of a layer, or the name of a function.
        part: Path of the layer, or of a parameter that is read by itself; empty for functions.
        reads: Names that it reads.
    """

    name: str
    kind: str
    part: str
    reads: tuple[str, ...]


class Parameter(NamedTuple):
    """A parameter of a node.

    Args:
        name: Name of the parameter in the module.
        node: Position of the node that it belongs to.
        shape: Its shape.
        number: Its place among the parameters of its layer.
        norm: Whether it is scale (`weight`) or shift (`bias`) of a norm; empty for others.
        kernel: Whether it is the kernel of a convolution.
    """

    name: str
    node: int
    shape: tuple[int, ...]
    number: int
    norm: str
    kernel: bool

    @property
    def folded(self) -> tuple[int, ...]:
        """Its shape with at most four dimensions, of a kernel, or at most two of others."""
        if self.kernel:
            spatial = self.shape[2:]
            return (*self.shape[:2], *spatial) if len(spatial) <= 2 else (
                *self.shape[:2], math.prod(spatial[:-1]), spatial[-1],
            )  # fmt: skip
        return self.shape if len(self.shape) < 2 else (math.prod(self.shape[:-1]), self.shape[-1])


class Traced(NamedTuple):
    """The graph of a module, and the parameters of its nodes that learn.

    Args:
        graph: Nodes in the order of computation.
        tensors: Parameters.
    """

    graph: ComputationGraph
    tensors: tuple[Parameter, ...]


@remembered(maxsize=8192)
def traced(space: ModuleSpace, architecture: Architecture) -> Traced:
    """Return the graph of the module of an architecture.

    A node is a layer of `torch.nn`, a function on tensors, or a parameter that is read by itself. Functions that only
    move values (`view`, `transpose`, indexing) are left out. A module that `torch.fx` can't trace is seen as the chain
    of its layers, in the order in which they are called first; a warning says so.

    Args:
        space: Space of the module.
        architecture: Architecture of the space.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from optuna_nas import ModuleSpace, choose_op
        >>> from optuna_nas.modules.tracing import traced
        >>> net = lambda: nn.Sequential(nn.Linear(3, 4), choose_op("act", {"relu": nn.ReLU, "tanh": nn.Tanh}))
        >>> space = ModuleSpace(net, example=torch.zeros(1, 3), name="traced")
        >>> [node.op for node in traced(space, space.architecture({"act": "tanh"})).graph]
        ['input', 'Linear', 'Tanh', 'output']
    """
    module = space.blank(architecture)
    try:
        layers = list(_layers(module))
    except Exception as error:  # tracing runs the user's code
        key = space.name, type(error).__name__
        if key not in _told:
            _told.add(key)
            logger.warning("%s is seen as a chain of layers, since torch.fx can't trace it (%s).", space.name, error)
        layers = list(_chain(module, space))
    return _graph(module, layers)


def _layers(module: nn.Module) -> Iterator[Layer]:
    """Yield what a module computes, without what only moves values."""
    read_as: dict[str, tuple[str, ...]] = {}
    parts = dict(module.named_modules())
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for node in fx.symbolic_trace(module).graph.nodes:
        target = getattr(node.target, "__name__", str(node.target))
        reads = tuple(dict.fromkeys(name for source in node.all_input_nodes for name in read_as[source.name]))
        if node.op in ("call_function", "call_method") and target in MOVING:
            read_as[node.name] = reads
            continue
        read_as[node.name] = (node.name,)
        if node.op == "call_module":
            yield Layer(node.name, type(parts[str(node.target)]).__name__, str(node.target), reads)
        elif node.op == "get_attr":
            yield Layer(node.name, INPUT, str(node.target) if str(node.target) in parameters else "", ())
        elif node.op == "placeholder":
            yield Layer(node.name, INPUT, "", ())
        else:
            yield Layer(node.name, OUTPUT if node.op == "output" else target, "", reads)


def _chain(module: nn.Module, space: ModuleSpace) -> Iterator[Layer]:
    """Yield the layers of a module in the order of their first call; without example, in the order of its parts."""
    leaves = [
        name
        for name, part in module.named_modules()
        if not list(part.children()) or isinstance(part, nn.MultiheadAttention)
    ]
    leaves = [name for name in leaves if not any(name.startswith(f"{other}.") for other in leaves if other)]
    called: list[str] = []
    if space.example is not None:
        for name in leaves:
            part = module.get_submodule(name)
            part.register_forward_hook(lambda *_, name=name: called.append(name))
        try:
            run_without_weights(module, space.example, space.declared.device)
        except Exception as error:  # it may need real numbers
            logger.debug("%s can't be run without weights: %s", space.name, error)
            called = []
    before = INPUT
    yield Layer(INPUT, INPUT, "", ())
    for name in dict.fromkeys(called or leaves):
        yield Layer(name, type(module.get_submodule(name)).__name__, name, (before,))
        before = name
    yield Layer(OUTPUT, OUTPUT, "", (before,))


def _graph(module: nn.Module, layers: list[Layer]) -> Traced:
    parts, parameters = dict(module.named_modules()), dict(module.named_parameters(remove_duplicate=False))
    places: dict[str, int] = {}
    nodes: list[Node] = []
    tensors: dict[int, Parameter] = {}  # by identity: a tied one belongs to the first that reads it
    for layer in layers:
        places[layer.name] = position = len(nodes)
        part = parts.get(layer.part) if layer.part else None
        own = {} if part is None else {f"{layer.part}.{name}": p for name, p in part.named_parameters()}
        if layer.part in parameters:
            own = {layer.part: parameters[layer.part]}
        for number, (name, parameter) in enumerate(own.items()):
            if parameter.requires_grad and id(parameter) not in tensors:
                role = name.rpartition(".")[2] if isinstance(part, NORMS) else ""
                kernel = isinstance(part, nn.modules.conv._ConvNd) and parameter.ndim > 1
                tensors[id(parameter)] = Parameter(name, position, tuple(parameter.shape), number, role, kernel)
        shape = next((parameter.shape for parameter in own.values() if parameter.ndim > 1), (1, 1))
        site = Site((int(shape[1]), 1, 1), (int(shape[0]), 1, 1))
        nodes.append(Node(layer.name, layer.kind, tuple(places[name] for name in layer.reads), cell=0, site=site))
    return Traced(ComputationGraph(tuple(nodes), (len(nodes) - 1,)), tuple(tensors.values()))

"""What a GHN asks of a space: graphs of its networks, their tensors, and their outputs with given weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from optuna_nas.modules import ModuleSpace
from optuna_nas.modules.frames import Frames
from optuna_nas.modules.tracing import traced
from optuna_nas.networks import DiscreteNetwork, NetworkSpace, build_op, has_module, use_batch_statistics
from optuna_nas.oneshot.ghn.decoder import SCALE, SHIFT, WEIGHT, Slot, slots_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from optuna_nas.modules.tracing import Parameter
    from optuna_nas.space import Architecture, ComputationGraph, ModelSpace, Site
    from optuna_nas.space.graph import Node

FIXED, FIXED_IN_TRAINING = "fixed", "fixed_in_training"
"""Names of the modules that hold the kernels of fixed parts, of the space and of the training space."""
OTHER = "other"
"""Op of what no graph had when the GHN was made."""
PROBES_PER_OPTION = 3
"""Random architectures that are looked at for each option of a space."""
Slots = dict[int, dict[str, Slot]]
"""Tensors to generate: by position of their node and by name in the network."""


class Networks(ABC):
    """Networks of a space, for a hypernetwork.

    Attributes:
        graphs: Graphs that have all ops, scales and modules.
        slots: All tensors that may have to be generated.
        modules: Modules with tensors that are not generated, to be kept in checkpoints.
    """

    graphs: Sequence[ComputationGraph]
    slots: Sequence[Slot]
    modules: dict[str, nn.Module]

    @abstractmethod
    def placed(self, architecture: Architecture) -> Architecture:
        """Return an architecture as one whose network can be built."""

    @abstractmethod
    def graph(self, architecture: Architecture) -> ComputationGraph:
        """Return the graph of a network."""

    @abstractmethod
    def slots_of(self, architecture: Architecture, graph: ComputationGraph) -> Slots:
        """Return the tensors of a network's nodes."""

    @abstractmethod
    def fixed(self, architecture: Architecture) -> dict[str, Tensor]:
        """Return tensors by name that are not generated."""

    @abstractmethod
    def outputs(self, architecture: Architecture, weights: Mapping[str, Tensor], inputs: Any) -> list[Any]:
        """Return the outputs of every classifier with given weights, by the statistics of the batch."""


class CellNetworks(Networks):
    """Networks of cells in a skeleton.

    Args:
        space: Space of the networks.
        training_space: Space whose networks are trained.
        seed: Seed of the kernels of fixed parts; None generates them.

    Raises:
        ValueError: The training space has an op or a scale that the space lacks.
    """

    def __init__(self, space: NetworkSpace, training_space: NetworkSpace, seed: int | None) -> None:
        self._space = space
        self._slots: dict[tuple[str, Site], dict[str, Slot]] = {}
        everything, training = space.supernet_graph(), training_space.supernet_graph()
        names = {"input", "sum", "concat"} | {node.op for node in everything}
        unknown = sorted({node.op for node in training} - names)
        if unknown:
            raise ValueError(f"`training_space` must use ops of `space` but has {unknown[0]!r}; add it to `space`.")
        scales = {node.scale for node in everything} | {1}
        strange = sorted({node.scale for node in training} - scales)
        if strange:
            raise ValueError(f"`training_space` must use scales of `space` but has {strange[0]}; add it to `space`.")
        self.graphs = [everything]
        self.slots = [slot for node in everything for slot in self._slots_at(node).values()]
        self.modules = {}
        if seed is not None:
            self.modules[FIXED] = space.fixed_parts(seed)
            if training_space != space:
                self.modules[FIXED_IN_TRAINING] = training_space.fixed_parts(seed)

    def placed(self, architecture: Architecture) -> Architecture:
        return architecture if isinstance(architecture.space, NetworkSpace) else self._space.adopt(architecture)

    def graph(self, architecture: Architecture) -> ComputationGraph:
        return architecture.graph()

    def slots_of(self, architecture: Architecture, graph: ComputationGraph) -> Slots:
        return {
            position: {f"parts.{node.name}.{name}": slot for name, slot in self._slots_at(node).items()}
            for position, node in enumerate(graph.nodes)
        }

    def _slots_at(self, node: Node) -> dict[str, Slot]:
        """Return the tensors of a node's module by name."""
        if not has_module(node.op, node.site):
            return {}
        key = (node.op, node.site)
        if key not in self._slots:
            with torch.device("meta"):
                self._slots[key] = slots_of(build_op(node.op, node.site))
        return self._slots[key]

    def fixed(self, architecture: Architecture) -> dict[str, Tensor]:
        module = self.modules.get(FIXED if architecture.space == self._space else FIXED_IN_TRAINING)
        if module is None:
            return {}
        return {name: kernel.detach() for name, kernel in module.named_parameters() if kernel.ndim > 1}

    def outputs(self, architecture: Architecture, weights: Mapping[str, Tensor], inputs: Any) -> list[Any]:
        network = DiscreteNetwork(architecture, blank=True)
        use_batch_statistics(network)
        results = functional_call(network.train(), dict(weights), (inputs,), tie_weights=False)
        outputs = dict(zip(network.graph.outputs, results if isinstance(results, tuple) else (results,), strict=False))
        return [outputs[end].float() for end in network.graph.exits]


class TracedNetworks(Networks):
    """Modules of a `ModuleSpace`, whose graphs are traced.

    Parameters that do not learn, and with `freeze` kernels that no choice touches, are not generated.

    Args:
        space: Space of the modules.
        seed: Seed of what is not generated.
        freeze: Whether kernels that no choice touches are not generated.
        n_ops: Number of different ops that a hypernetwork can tell apart.
    """

    def __init__(self, space: ModuleSpace, seed: int, freeze: bool, n_ops: int) -> None:
        self._space = space
        self._frames = Frames(space, seed)
        supernet = space.supernet(seed)
        kernels = space.fixed_kernels() if freeze else frozenset()
        initial = nn.Module()
        for name, parameter in supernet.named_parameters():
            initial.register_parameter(name, nn.Parameter(parameter.detach().clone(), requires_grad=False))
        self.modules = {FIXED: initial}
        kept = {name for name, p in supernet.named_parameters() if not p.requires_grad or name in kernels}
        architectures = list(_probes(space))
        probes = [traced(space, architecture) for architecture in architectures]
        ops = [node.op for probe in probes for node in probe.graph]
        known = sorted(set(ops), key=lambda op: (op != "input", -ops.count(op), op))[: n_ops - 1]
        self._known = {*known, OTHER}
        first = probes[0].graph
        vocabulary = tuple(first.nodes[0]._replace(op=op) for op in sorted(self._known))
        self.graphs = [replace(first, nodes=vocabulary, outputs=(0,))]
        shapes = {name: tuple(p.shape) for name, p in supernet.named_parameters()}
        covered: set[str] = set()
        largest = []
        for architecture, probe in zip(architectures, probes, strict=True):
            chosen = dict(architecture.choices)
            in_store = self._frames.of(chosen, torch.device("cpu")).own_names(chosen)
            for tensor in probe.tensors:
                name = in_store[tensor.name].replace(".", "/")  # a chosen op has its own name there
                covered.add(name)
                largest.append(tensor._replace(shape=shapes[name]))
        self._kept = kept | ({name for name, _ in supernet.named_parameters()} - covered)
        """Names of what is not generated; nothing that a trace shows computes with the latter."""
        self.slots = [_slot(parameter) for parameter in largest] or [Slot((1,), 0, WEIGHT)]

    def placed(self, architecture: Architecture) -> Architecture:
        return self._space.adopt(architecture)

    def graph(self, architecture: Architecture) -> ComputationGraph:
        graph = traced(self._space, architecture).graph
        if all(node.op in self._known for node in graph):
            return graph
        nodes = tuple(node if node.op in self._known else node._replace(op=OTHER) for node in graph)
        return replace(graph, nodes=nodes)

    def slots_of(self, architecture: Architecture, graph: ComputationGraph) -> Slots:
        slots: Slots = {}
        for parameter in traced(self._space, architecture).tensors:
            slots.setdefault(parameter.node, {})[parameter.name] = _slot(parameter)
        return slots

    def fixed(self, architecture: Architecture) -> dict[str, Tensor]:
        return self._initial(architecture, self._kept)

    def _initial(self, architecture: Architecture, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Return initial values of the parameters of a module, of all or of those with some names in the store."""
        chosen, initial = dict(architecture.choices), self.modules[FIXED]
        frame = self._frames.of(chosen, next(initial.parameters()).device)
        return {
            own: frame.cut(name, initial.get_parameter(name.replace(".", "/")).detach())
            for own, name in frame.own_names(chosen).items()
            if names is None or name.replace(".", "/") in names
        }

    def outputs(self, architecture: Architecture, weights: Mapping[str, Tensor], inputs: Any) -> list[Any]:
        chosen = dict(architecture.choices)
        frame = self._frames.of(chosen, next(self.modules[FIXED].parameters()).device)
        frame.set_mode(torch.is_grad_enabled())
        frame.mixer.ones = False
        names = frame.own_names(chosen)
        # What leads nowhere has no generated weights, but the module may compute it.
        tensors = {names[own]: tensor for own, tensor in self._initial(architecture).items()}
        tensors |= {names[own]: tensor.reshape(frame.shapes[names[own]]) for own, tensor in weights.items()}
        used = {path: dict.fromkeys(of_path, 1.0) for path, of_path in chosen.items()}
        return [frame.run(tensors, used, inputs)]


def _slot(parameter: Parameter) -> Slot:
    role = {"weight": SCALE, "bias": SHIFT}.get(parameter.norm, WEIGHT)
    return Slot(parameter.folded, parameter.number, role)


def _probes(space: ModuleSpace) -> Iterator[Architecture]:
    """Yield architectures that together have every option of every choice."""
    yield space.full_architecture()
    random = np.random.default_rng(0)
    missing = {(name, names) for name, choice in space.choices.items() for _, names in choice.options}
    for _ in range(PROBES_PER_OPTION * len(missing)):
        architecture = space.sample(random)
        new = {(name, architecture[name]) for name in space.asked(architecture)} & missing
        if new:
            missing -= new
            yield architecture


def networks_of(space: ModelSpace, training_space: ModelSpace, seed: int, freeze: bool, n_ops: int) -> Networks:
    """Return the networks of a space for a hypernetwork.

    Args:
        space: Space of the networks.
        training_space: Space whose networks are trained.
        seed: Seed of the kernels of fixed parts.
        freeze: Whether these are left out of what is generated.
        n_ops: Number of different ops that the hypernetwork can tell apart.

    Raises:
        ValueError: The space has no graphs that a hypernetwork reads.
    """
    if isinstance(space, ModuleSpace):
        if training_space != space:
            raise ValueError("`training_space` must be left out for a ModuleSpace, which has no smaller twin.")
        return TracedNetworks(space, seed, freeze, n_ops)
    if not isinstance(space, NetworkSpace):
        raise ValueError(
            f"`space` must be a NetworkSpace or a ModuleSpace but is a {type(space).__name__}; a GHN reads the graphs "
            "of those."
        )
    return CellNetworks(space, cast("NetworkSpace", training_space), seed if freeze else None)

"""Computation graphs of many networks as index tensors, module by module and level by level.

A network is a chain of modules: its stem, each of its cells, its head. A module is a graph of its own whose input nodes
stand for the modules that it reads (Zhang, Ren and Urtasun 2019, section 4.3). Networks of one skeleton have the same
modules, so that module m of all of them is worked on at once.

N nodes of one module of all graphs, G graphs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from optuna_nas.space.ops import STRUCTURAL

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from optuna_nas.space import ComputationGraph, Site

INPUT = "input"
Topology = tuple[tuple[int, ...], ...]
"""For every node, in topological order, the nodes it reads."""


class Module(NamedTuple):
    """One module of one network, with live nodes only: what computes nothing changes no embedding.

    Args:
        ops: Op of every node, input nodes first.
        scales: Scale of every node.
        topology: Topology of the nodes.
        sources: For every input node the number of the module it reads.
        nodes: Position in the graph of every node after the input nodes.
    """

    ops: tuple[str, ...]
    scales: tuple[int, ...]
    topology: Topology
    sources: tuple[int, ...]
    nodes: tuple[int, ...]


class Level(NamedTuple):
    """Nodes that may be updated at once, since none reads another.

    Args:
        nodes: Their positions, shape (n,).
        sources: For every message the node it comes from, shape (m,).
        targets: For every message the place in `nodes` that it goes to, shape (m,).
        far_sources, far_targets: The same for virtual edges, of which the edges themselves are the shortest.
        far_weights: Their weights, one over the length of the shortest path.
    """

    nodes: Tensor
    sources: Tensor
    targets: Tensor
    far_sources: Tensor
    far_targets: Tensor
    far_weights: Tensor


@dataclass(frozen=True)
class ModuleBatch:
    """Module m of many graphs.

    Args:
        number: Its number, see `modules_of`.
        properties: Number of the op of every node, and of its scale where it has one, else -1; shape (N, 2).
        features: What the shape embedding reads of every node, shape (N, 4).
        graphs: Graph of every node, shape (N,).
        forward: Levels from the inputs to the output.
        backward: Levels from the output to the inputs; the output itself is left out, so that a phase of one graph
            with V nodes is 2 V - 1 updates.
        readers: Positions of the input nodes that read a module, shape (R,).
        read: For them, `module * G + graph`, shape (R,).
    """

    number: int
    properties: Tensor
    features: Tensor
    graphs: Tensor
    forward: tuple[Level, ...]
    backward: tuple[Level, ...]
    readers: Tensor
    read: Tensor


@dataclass(frozen=True)
class GraphBatch:
    """Many networks of one skeleton, ready for a hypernetwork.

    Args:
        size: Number of graphs, G.
        modules: Their modules in order.
        rows: For every graph, the row of every live node of the network among the nodes of all modules.
        sizes: Number of nodes of every graph, input nodes of modules included, shape (G,).
    """

    size: int
    modules: tuple[ModuleBatch, ...]
    rows: tuple[Mapping[int, int], ...]
    sizes: Tensor


def modules_of(graph: ComputationGraph) -> dict[int, Module]:
    """Cut a network into modules by number: 0 is the stem, `cell + 1` a cell, the last one the head.

    Sums and concatenations of one term compute nothing and are left out; their readers read the term.
    """
    live = graph.live
    read_as: dict[int, int] = {}  # what stands for a node: itself, or the one term of a sum
    sources: dict[int, tuple[int, ...]] = {}
    for position in sorted(live):
        node = graph.nodes[position]
        sources[position] = tuple(read_as[source] for source in node.inputs if source in live)
        alone = node.op in STRUCTURAL and len(sources[position]) == 1 and position not in graph.outputs
        read_as[position] = sources[position][0] if alone else position
    kept = [position for position, standing in read_as.items() if position == standing]
    n_cells = 1 + max(graph.nodes[position].cell for position in live)
    numbers: dict[int, int] = {}
    members: dict[int, list[int]] = {}
    for position in kept:
        cell = graph.nodes[position].cell
        in_stem = cell < 0 and not any(number > 0 for number in members)
        numbers[position] = 0 if in_stem else cell + 1 if cell >= 0 else n_cells + 1
        members.setdefault(numbers[position], []).append(position)
    modules = {}
    for number, positions in members.items():
        nodes = [graph.nodes[position] for position in positions]
        outside = sorted({s for position in positions for s in sources[position] if numbers[s] != number})
        local = {position: i for i, position in enumerate([*outside, *positions])}
        inputs = ((),) * len(outside)
        topology = inputs + tuple(tuple(local[source] for source in sources[position]) for position in positions)
        ops = (INPUT,) * len(outside) + tuple(node.op for node in nodes)
        scales = (1,) * len(outside) + tuple(node.scale for node in nodes)
        modules[number] = Module(ops, scales, topology, tuple(numbers[source] for source in outside), tuple(positions))
    return modules


Edge = tuple[int, int, int]
"""Source, target, and length of the path that it stands for."""
Levels = tuple[tuple[tuple[int, ...], tuple[Edge, ...]], ...]
"""Nodes of every level and the edges that they read."""


class Schedule(NamedTuple):
    """The order of one module, there and back."""

    forward: Levels
    backward: Levels


@lru_cache(maxsize=16384)
def schedule(topology: Topology, reach: int = 1) -> Schedule:
    """Return the levels of a graph and the edges that each of them reads.

    A node's level is the length of the longest path to it. Updating whole levels equals updating node by node in
    topological order, since a node reads nodes of lower levels only.

    Args:
        topology: Topology of the graph.
        reach: Longest path that a virtual edge stands for; 1 for none.
    """
    n_nodes = len(topology)
    readers: list[list[int]] = [[] for _ in range(n_nodes)]
    for node, sources in enumerate(topology):
        for source in sources:
            readers[source].append(node)
    reverse = tuple(tuple(numbers) for numbers in readers)
    forward = _levels(topology, range(n_nodes), reach)
    backward = _levels(reverse, range(n_nodes - 1, -1, -1), reach, left_out=n_nodes - 1)
    return Schedule(forward, backward)


def _levels(reads: Topology, order: range, reach: int, left_out: int = -1) -> Levels:
    level: dict[int, int] = {}
    distances: dict[int, dict[int, int]] = {}
    for node in order:
        level[node] = 1 + max((level[source] for source in reads[node]), default=-1)
        lengths: dict[int, int] = {}
        for source in reads[node]:
            for origin, length in [(source, 0), *distances[source].items()]:
                lengths[origin] = min(lengths.get(origin, length + 1), length + 1)
        distances[node] = {origin: length for origin, length in lengths.items() if length <= max(reach, 1)}
    levels = []
    for number in range(1 + max(level.values())):
        nodes = tuple(sorted(node for node in level if level[node] == number and node != left_out))
        if nodes:
            edges = [(source, node, 1) for node in nodes for source in reads[node]]
            far = [(o, node, s) for node in nodes for o, s in sorted(distances[node].items()) if s > 1]
            levels.append((nodes, tuple(edges + far)))
    return tuple(levels)


class _Packer:
    """Collects index arrays and sends them to a device in one transfer."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._arrays: list[NDArray[np.int64]] = []

    def add(self, values: Sequence[int] | NDArray[np.int64]) -> int:
        self._arrays.append(np.asarray(values, dtype=np.int64))
        return len(self._arrays) - 1

    def tensors(self) -> list[Tensor]:
        sizes = [len(array) for array in self._arrays]
        flat = torch.from_numpy(np.concatenate(self._arrays))
        return list(flat.to(self._device).split(sizes))


def scale_property(scale: int) -> str:
    """Return the name of a scale among the properties of a node."""
    return f"scale/{scale}"


def batch_graphs(
    graphs: Sequence[ComputationGraph], op_numbers: Mapping[str, int], device: torch.device, reach: int = 1
) -> GraphBatch:
    """Lay many graphs of one skeleton out for propagation.

    Args:
        graphs: Graphs of whole networks.
        op_numbers: Number of every op that may occur, and of every scale but 1 (`scale/2`).
        device: Where the tensors go.
        reach: Longest path that a virtual edge stands for; 1 for none.

    Raises:
        ValueError: A graph has an op without a number.
    """
    cut = [modules_of(graph) for graph in graphs]
    numbers = sorted({number for modules in cut for number in modules})
    places = {number: place for place, number in enumerate(numbers)}
    packer, plans, row = _Packer(device), [], 0
    rows: list[dict[int, int]] = [{} for _ in graphs]
    sizes = [0] * len(graphs)
    packed: dict[tuple[Topology, ...], tuple[list[tuple[int, int, int, int]], ...]] = {}  # copies of a cell are alike
    for number in numbers:
        held = [(g, modules[number]) for g, modules in enumerate(cut) if number in modules]
        starts = [0, *accumulate(len(module.ops) for _, module in held)]
        properties: list[tuple[int, int]] = []
        features: list[tuple[int, int, int, int]] = []
        owners, readers, read = list[int](), list[int](), list[int]()
        for (g, module), start in zip(held, starts, strict=False):
            n_inputs = len(module.sources)
            properties += [
                _properties(op, scale, op_numbers) for op, scale in zip(module.ops, module.scales, strict=True)
            ]
            nodes = [graphs[g].nodes[position] for position in module.nodes]
            features += [(0, 0, 0, 0)] * n_inputs + [shape_features(node.site) for node in nodes]
            owners += [g] * len(module.ops)
            readers += range(start, start + n_inputs)
            read += [places[source] * len(graphs) + g for source in module.sources]
            for i, position in enumerate(module.nodes):
                rows[g][position] = row + start + n_inputs + i
            sizes[g] += len(module.ops)
        topologies = tuple(module.topology for _, module in held)
        if topologies not in packed:
            schedules = [schedule(topology, reach) for topology in topologies]
            both = [s.forward for s in schedules], [s.backward for s in schedules]
            packed[topologies] = tuple([_pack_level(packer, level) for level in _merged(one, starts)] for one in both)
        plans.append(
            (
                number,
                [packer.add(np.array(column).reshape(-1)) for column in (properties, features, owners)],
                [packer.add(readers), packer.add(read)],
                topologies,
            )
        )
        row += starts[-1]
    sizes_at = packer.add(sizes)
    tensors = packer.tensors()

    levels = {
        key: tuple(tuple(_level([tensors[i] for i in at], reach) for at in one) for one in both)
        for key, both in packed.items()
    }
    modules = tuple(
        ModuleBatch(
            number,
            tensors[values[0]].reshape(-1, 2),
            tensors[values[1]].reshape(-1, 4),
            tensors[values[2]],
            levels[topologies][0],
            levels[topologies][1],
            tensors[links[0]],
            tensors[links[1]],
        )
        for number, values, links, topologies in plans
    )
    return GraphBatch(len(graphs), modules, tuple(rows), tensors[sizes_at])


def _level(parts: Sequence[Tensor], reach: int) -> Level:
    """Return a level of its nodes, sources, targets and lengths of paths."""
    nodes, sources, targets, lengths = parts
    if reach <= 1:  # nothing but edges: no need to tell them apart
        nothing = nodes[:0]
        return Level(nodes, sources, targets, nothing, nothing, nothing.float())
    near = lengths == 1
    return Level(nodes, sources[near], targets[near], sources, targets, 1.0 / lengths)


def _properties(op: str, scale: int, op_numbers: Mapping[str, int]) -> tuple[int, int]:
    """Return the numbers of a node's op and of its scale, -1 for scale 1."""
    if op not in op_numbers:
        raise ValueError(f"`architectures` must use the ops of the GHN, {sorted(op_numbers)}, not {op!r}.")
    if scale != 1 and scale_property(scale) not in op_numbers:
        raise ValueError(f"`architectures` must use the scales of the GHN but one works at 1/{scale}.")
    return op_numbers[op], -1 if scale == 1 else op_numbers[scale_property(scale)]


def _merged(schedules: Sequence[Levels], starts: Sequence[int]) -> Iterator[tuple[list[int], list[Edge]]]:
    """Join level l of all modules; a node's position moves by its module's start."""
    for number in range(max(len(levels) for levels in schedules)):
        nodes: list[int] = []
        edges: list[Edge] = []
        for levels, start in zip(schedules, starts, strict=False):
            if number < len(levels):
                nodes += [start + node for node in levels[number][0]]
                edges += [(start + source, start + target, length) for source, target, length in levels[number][1]]
        yield nodes, edges


def _pack_level(packer: _Packer, level: tuple[list[int], list[Edge]]) -> tuple[int, int, int, int]:
    nodes, edges = level
    place = {node: i for i, node in enumerate(nodes)}
    sources = [source for source, _, _ in edges]
    targets = [place[target] for _, target, _ in edges]
    return (
        packer.add(nodes),
        packer.add(sources),
        packer.add(targets),
        packer.add([length for _, _, length in edges]),
    )


def all_at_once(levels: Sequence[Level]) -> Level:
    """Return all nodes as one level, for synchronous propagation."""
    starts = [0, *accumulate(len(level.nodes) for level in levels)]
    moved = [
        level._replace(targets=level.targets + start, far_targets=level.far_targets + start)
        for level, start in zip(levels, starts, strict=False)
    ]
    return Level(*(torch.cat(parts) for parts in zip(*moved, strict=True)))


@lru_cache(maxsize=1024)
def shape_features(site: Site) -> tuple[int, int, int, int]:
    """Return what a shape embedding sees of a node: channels in and out and height in half octaves, and the stride."""
    in_channels, out_channels, height = (
        min(SHAPE_SIZES - 1, round(2 * np.log2(max(1, size)))) for size in (site.in_shape[0], *site.out_shape[:2])
    )
    return in_channels, out_channels, height, min(site.stride, SHAPE_SIZES - 1)


SHAPE_SIZES = 32
"""Entries of each of the four shape embeddings: half octaves up to 2^15.5."""

"""The one description of a network that the builder, the hypernetwork, the cost table and the drawing share."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from optuna_nas.space.canonical import canonical_nodes
from optuna_nas.space.cost import Cost, Site
from optuna_nas.space.ops import STRUCTURAL, get_op
from optuna_nas.space.ways import live_positions, reachable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Node(NamedTuple):
    """One step of a computation.

    Args:
        name: Unique in its graph; also the name of the node's module, so that networks of one space share names.
        op: A registered op or one of `input`, `sum`, `concat`.
        inputs: Positions of the nodes it reads, always smaller than its own. An op applies itself to each and sums.
        path: The choice it came from (`normal_0_2`), empty for fixed parts.
        cell: Position of its cell in the network (in a graph of cells only: number of the kind), -1 outside cells.
        site: Shapes and stride; shapes are (0, 0, 0) in a graph of cells only.
        scale: By what the height and width of its cell are divided where it works.
    """

    name: str
    op: str
    inputs: tuple[int, ...] = ()
    path: str = ""
    cell: int = -1
    site: Site = Site((0, 0, 0), (0, 0, 0))
    scale: int = 1


@dataclass(frozen=True)
class ComputationGraph:
    """Nodes in topological order and which of them are the results.

    A graph of cells (`architecture.cells`) holds one copy of every kind of cell and has one output a kind; a
    graph of a network (`architecture.graph()`) goes from the image to the class scores, with shapes.
    Early exits are further outputs, the last ones.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    def __getitem__(self, name: str) -> Node:
        return self.nodes[self._index[name]]

    @cached_property
    def _index(self) -> dict[str, int]:
        return {node.name: position for position, node in enumerate(self.nodes)}

    def index(self, name: str) -> int:
        """Return the position of the node of this name."""
        return self._index[name]

    def cell(self, cell: int) -> list[Node]:
        """Return the nodes of one cell."""
        return [node for node in self.nodes if node.cell == cell]

    @property
    def n_cells(self) -> int:
        """How many cells there are; in a graph of cells, how many kinds."""
        return 1 + max(node.cell for node in self.nodes)

    @cached_property
    def live(self) -> frozenset[int]:
        """Positions of the nodes that read something and reach an output."""
        inputs = [position for position, node in enumerate(self.nodes) if node.op == "input"]
        return frozenset(live_positions([node.inputs for node in self.nodes], set(inputs), self.outputs))

    @property
    def connected(self) -> bool:
        """Whether every output depends on an input."""
        return all(output in self.live for output in self.outputs)

    def node_cost(self, node: Node) -> Cost:
        """Return the cost of one node; a kept op counts even where it leads nowhere.

        An op with several inputs runs once for each and holds its parameters once.
        """
        if node.op in STRUCTURAL:
            return Cost()
        cost, runs = get_op(node.op).cost(node.site), len(node.inputs)
        return Cost(cost.params, runs * cost.multiply_adds, runs * cost.memory_access)

    @property
    def cost(self) -> Cost:
        """Parameters, multiply-adds and memory access of one image; the auxiliary head is left out."""
        return sum((self.node_cost(node) for node in self.nodes if node.name != AUXILIARY), Cost())

    @cached_property
    def exits(self) -> tuple[int, ...]:
        """Positions of all classifiers of a network in the order in which they are computed, the last one last."""
        return (*(output for output in self.outputs if self.nodes[output].op == EXIT), self.outputs[0])

    @cached_property
    def exit_costs(self) -> tuple[int, ...]:
        """Multiply-adds of one image up to every classifier, those before it included; what it needs not is not run."""
        computed: set[int] = set()
        costs = [0]
        for end in self.exits:
            new = self.needed([end]) - computed
            costs.append(costs[-1] + sum(self.node_cost(self.nodes[position]).multiply_adds for position in new))
            computed |= new
        return tuple(costs[1:])

    def needed(self, ends: Iterable[int]) -> set[int]:
        """Return the live nodes that nodes depend on, themselves included."""
        live = self.live
        return reachable(
            (end for end in ends if end in live),
            lambda position: [source for source in self.nodes[position].inputs if source in live],
        )

    def canonical(self) -> ComputationGraph:
        """Return the graph that all graphs computing the same function share.

        Two graphs are one when their expressions are: an op that nothing feeds or that feeds nothing is dropped, a
        skip is inlined, a sum is a multiset, an op without parameters equals itself on equal inputs, an op with
        parameters is a node of its own, and the order of such nodes (and of a concatenation) does not matter.
        Idempotent. On the 15,625 cells of NAS-Bench-201 it finds 5,260 classes, as brute force over that definition
        does.
        """
        nodes, outputs = canonical_nodes(
            [(node.op, node.inputs, node.site.stride) for node in self.nodes],
            self.outputs,
        )
        return ComputationGraph(
            tuple(
                Node(str(i), op, inputs, site=Site((0, 0, 0), (0, 0, 0), stride))
                for i, (op, inputs, stride) in enumerate(nodes)
            ),
            outputs,
        )

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that equal graphs share; stable across processes and versions of Python."""
        described = [[node.name, node.op, node.inputs, node.path, node.cell, node.site] for node in self.nodes]
        text = json.dumps([described, self.outputs])
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


EXIT = "exit"
"""Op of an early exit: a classifier inside a cell."""
AUXILIARY = "auxiliary"
"""Name of the node of the auxiliary head, used while training only."""

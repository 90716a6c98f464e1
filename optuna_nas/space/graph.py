"""Computation graphs, as the builder, the hypernetwork, the cost table and the drawings read them."""

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
    """A node of a computation graph.

    Args:
        name: Unique name in the graph, and the name of the node's module, so that networks of a space share parameter
            names.
        op: Name of a registered op, or `input`, `sum` or `concat`.
        inputs: Positions of the nodes that it reads, smaller than its own. An op is applied to each, and the results
            are summed.
        path: Path of the choice that it belongs to (`normal_0_2`); empty for fixed parts.
        cell: Position of its cell in the network, or number of the kind in a graph of cells; -1 outside cells.
        site: Shapes and stride; shapes are (0, 0, 0) in a graph of cells.
        scale: Divisor of the cell's height and width at this node.

    Example:
        >>> from optuna_nas import published_cell
        >>> node = published_cell("DARTS_V2").cells["normal/2<-0/sep_conv_3x3"]
        >>> node.op, node.path
        ('sep_conv_3x3', 'normal_0_2')
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
    """Nodes in topological order, and the positions of the outputs.

    A graph of cells (`architecture.cells`) contains one copy of every kind of cell and has one output per kind. A graph
    of a network (`architecture.graph()`) leads from the image to the class scores and has shapes. Early exits are
    further outputs, after the others.

    Args:
        nodes: Nodes in topological order.
        outputs: Positions of the outputs.

    Example:
        >>> from optuna_nas import NetworkSpace, nasbench201_skeleton, nasbench201_space
        >>> cell = nasbench201_space().architecture({"cell_0_3": ["nor_conv_1x1"]})
        >>> [node.op for node in cell.cells.canonical()]
        ['input', 'nor_conv_1x1']
        >>> graph = NetworkSpace(cell.space, nasbench201_skeleton(repeats=1, channels=4)).adopt(cell).graph()
        >>> graph.nodes[graph.outputs[0]].name, graph.cost.params
        ('classifier', 5286)
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
        """Return the nodes of the cell at this position."""
        return [node for node in self.nodes if node.cell == cell]

    @property
    def n_cells(self) -> int:
        """Number of cells; in a graph of cells, number of kinds."""
        return 1 + max(node.cell for node in self.nodes)

    @cached_property
    def live(self) -> frozenset[int]:
        """Positions of the nodes that depend on an input and that an output depends on."""
        inputs = [position for position, node in enumerate(self.nodes) if node.op == "input"]
        return frozenset(live_positions([node.inputs for node in self.nodes], set(inputs), self.outputs))

    @property
    def trimmed(self) -> ComputationGraph:
        """The graph without what nothing reads or feeds; itself if an output depends on no input.

        A slot of a concatenation that nothing feeds stays, as a sum of nothing: it has channels.
        """
        if not self.connected:
            return self
        live = self.live
        empty = {
            source
            for position in live
            if self.nodes[position].op == "concat"
            for source in self.nodes[position].inputs
            if source not in live
        }
        kept = sorted(live | empty)
        if len(kept) == len(self.nodes):
            return self
        place = {position: number for number, position in enumerate(kept)}

        def moved(position: int) -> Node:
            node = self.nodes[position]
            if position in empty:
                return node._replace(op="sum", inputs=(), path="")
            return node._replace(inputs=tuple(place[source] for source in node.inputs if source in place))

        return ComputationGraph(tuple(map(moved, kept)), tuple(place[output] for output in self.outputs))

    @property
    def connected(self) -> bool:
        """Whether every output depends on an input."""
        return all(output in self.live for output in self.outputs)

    def node_cost(self, node: Node) -> Cost:
        """Return the cost of one node, also if no output depends on it.

        An op with several inputs is applied to each with the same parameters.
        """
        if node.op in STRUCTURAL:
            return Cost()
        cost, runs = get_op(node.op).cost(node.site), len(node.inputs)
        return Cost(cost.params, runs * cost.multiply_adds, runs * cost.memory_access)

    @property
    def cost(self) -> Cost:
        """Parameters, multiply-adds (MACs) and memory access of one image, without the auxiliary head."""
        return sum((self.node_cost(node) for node in self.nodes if node.name != AUXILIARY), Cost())

    @cached_property
    def exits(self) -> tuple[int, ...]:
        """Positions of all classifiers of a network in the order of computation; the final one is last."""
        return (*(output for output in self.outputs if self.nodes[output].op == EXIT), self.outputs[0])

    @cached_property
    def exit_costs(self) -> tuple[int, ...]:
        """Multiply-adds of one image up to every classifier, with all classifiers before it.

        Only the nodes that these classifiers depend on count.
        """
        computed: set[int] = set()
        costs = [0]
        for end in self.exits:
            new = self.needed([end]) - computed
            costs.append(costs[-1] + sum(self.node_cost(self.nodes[position]).multiply_adds for position in new))
            computed |= new
        return tuple(costs[1:])

    def needed(self, ends: Iterable[int]) -> set[int]:
        """Return the positions of all live nodes that the nodes at `ends` depend on, including themselves."""
        live = self.live
        return reachable(
            (end for end in ends if end in live),
            lambda position: [source for source in self.nodes[position].inputs if source in live],
        )

    def canonical(self) -> ComputationGraph:
        """Return the canonical graph, the same for all graphs that compute the same function.

        Two graphs are equal if their expressions are: ops without an input or a reader are dropped, skips are inlined,
        a sum is a multiset, ops without parameters on equal inputs are merged, ops with parameters stay separate, and
        the order of such nodes (and of a concatenation) does not matter. The operation is idempotent. The 15,625 cells
        of NAS-Bench-201 have 5,260 canonical graphs, which equals a brute-force count.
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
        """Hash of 16 hexadecimal digits, equal for equal graphs; stable across processes and versions of Python."""
        described = [[node.name, node.op, node.inputs, node.path, node.cell, node.site] for node in self.nodes]
        text = json.dumps([described, self.outputs])
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


EXIT = "exit"
"""Name of the op of an early exit, which is a classifier inside a cell."""
AUXILIARY = "auxiliary"
"""Name of the node of the auxiliary head, which is used in training only."""

"""Spaces of cells: what a network repeats, with or without the skeleton that it is placed into."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from optuna_nas.space.base import Space
from optuna_nas.space.cost import Cost, Site
from optuna_nas.space.graph import EXIT, ComputationGraph, Node
from optuna_nas.space.network_builder import NetworkBuilder
from optuna_nas.space.ops import FIXED_PARTS, NONE, choosable_ops, get_op
from optuna_nas.space.skeleton import FIXED_CELLS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna_nas.space.architecture import Architecture
    from optuna_nas.space.skeleton import Skeleton


class CellNode(NamedTuple):
    """A node of a cell before it is placed: topology only.

    Inputs name other nodes of the cell; `in0`, `in1`, ... are the cell's inputs, `output` is its last node. `strided`:
    the op takes the stride of the cell's kind; else it has one of its own. `scale`: as that of `Node`.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    path: str = ""
    strided: bool = False
    stride: int = 1
    scale: int = 1


@dataclass(frozen=True)
class CellKind:
    """A kind of cell: all cells of a kind share one architecture.

    Args:
        name: As used in `Skeleton.cells` and in parameter names.
        stride: Stride of the ops that read an input of the cell; 2 halves the image and doubles the channels.
        outputs: Nodes whose concatenation is the cell's output; empty means every node made by the cell.
    """

    name: str
    stride: int = 1
    outputs: tuple[int, ...] = ()


@dataclass(frozen=True)
class CellularSpace(Space):
    """A space of cells. Subclasses say how a choice makes a cell; graphs and costs follow from that here."""

    @property
    @abstractmethod
    def kinds(self) -> tuple[CellKind, ...]:
        """Kinds of cells."""

    @property
    @abstractmethod
    def n_inputs(self) -> int:
        """How many of the previous cells a cell reads."""

    @abstractmethod
    def cell_nodes(self, kind: CellKind, choices: Mapping[str, tuple[str, ...]], mixed: bool = False) -> list[CellNode]:
        """Return the nodes of a cell of this kind, in topological order, `output` last.

        Args:
            kind: Kind of the cell.
            choices: What is kept at every path.
            mixed: The choices are everything, for a supernet to weigh; keep all connections that any choice may need.
        """

    @abstractmethod
    def mixed_names(self) -> dict[str, tuple[str, ...]]:
        """Return, for every path, the names that a supernet weighs there: ops, or the nodes that may be read."""

    def connected(self, architecture: Architecture) -> bool:
        return architecture.cells.connected

    def cell_graph(self, architecture: Architecture) -> ComputationGraph:
        choices = dict(architecture.choices)
        nodes: list[Node] = []
        outputs = []
        for number, kind in enumerate(self.kinds):
            places: dict[str, int] = {}
            inputs = [CellNode(f"in{i}", "input", ()) for i in range(self.n_inputs)]
            for node in [*inputs, *self.cell_nodes(kind, choices)]:
                places[node.name] = len(nodes)
                stride = kind.stride if node.strided else node.stride
                nodes.append(
                    Node(
                        f"{kind.name}/{node.name}",
                        node.op,
                        tuple(places[name] for name in node.inputs),
                        node.path,
                        number,
                        Site((0, 0, 0), (0, 0, 0), stride),
                        node.scale,
                    )
                )
            outputs.append(len(nodes) - 1)
        exits = [position for position, node in enumerate(nodes) if node.op == EXIT]
        return ComputationGraph(tuple(nodes), (*outputs, *exits))

    def network_graph(self, architecture: Architecture, skeleton: Skeleton, mixed: bool = False) -> ComputationGraph:
        """Return the graph of the network of an architecture in a skeleton, with shapes.

        Args:
            architecture: What the cells keep.
            skeleton: Frame around the cells.
            mixed: The architecture is the full one, for a supernet to weigh.

        Raises:
            ValueError: The skeleton names a cell that the space lacks, or reduces its image away.
        """
        return NetworkBuilder(self, dict(architecture.choices), skeleton, mixed).graph()

    def network_cost(self, architecture: Architecture, skeleton: Skeleton) -> Cost:
        """Return parameters, multiply-adds and memory access in a skeleton, exactly, with no module built."""
        return self.network_graph(architecture, skeleton).cost


def check_kinds(names: Sequence[str], argument: str = "cell_kinds") -> None:
    """Raise ValueError unless the kinds of cells have different names that can stand in a path and in a skeleton."""
    if not names or len(set(names)) < len(names):
        raise ValueError(f"`{argument}` must be one or more kinds with different names but got {list(names)}.")
    for name in names:
        if not name.isidentifier() or name in FIXED_CELLS:
            raise ValueError(
                f"`{argument}` must have names of letters, digits and underscores, unlike the fixed blocks "
                f"{FIXED_CELLS}, but got {name!r}."
            )


def check_ops(ops: Sequence[str], none_allowed: bool = True) -> None:
    """Raise ValueError unless `ops` are different, registered and at least one of them does something."""
    for name in ops:
        if name != NONE:
            get_op(name)
            if name in FIXED_PARTS:
                raise ValueError(
                    f"`ops` must be choosable but {name!r} is a fixed part of skeletons; known: "
                    f"{', '.join(choosable_ops())}."
                )
        elif not none_allowed:
            raise ValueError("`ops` must not hold 'none' here: keeping no op says it already; leave it out.")
    repeated = sorted({name for name in ops if list(ops).count(name) > 1})
    if repeated:
        raise ValueError(f"`ops` must differ but {repeated[0]!r} stands more than once; remove it.")
    if all(name == NONE for name in ops):
        raise ValueError(f"`ops` must hold an op that computes something but got {tuple(ops)}; add 'skip_connect'.")

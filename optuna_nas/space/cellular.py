"""Base class of spaces of cells, their graphs and costs."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from optuna_nas.space.base import Space
from optuna_nas.space.cost import Cost, Site
from optuna_nas.space.graph import EXIT, ComputationGraph, Node
from optuna_nas.space.network_builder import NetworkBuilder
from optuna_nas.space.ops import FIXED_PARTS, NONE, Op, choosable_ops, get_op
from optuna_nas.space.skeleton import FIXED_CELLS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna_nas.space.architecture import Architecture
    from optuna_nas.space.skeleton import Skeleton


class CellNode(NamedTuple):
    """A node of a cell without shapes, before the cell is placed in a skeleton.

    Args:
        name: Name within the cell; `in0`, `in1`, ... are the cell's inputs, `output` is its last node.
        op: Name of an op, or `sum` or `concat`.
        inputs: Names of the nodes that it reads.
        path: Path of the choice that it belongs to; empty for fixed nodes.
        strided: Whether the op has the stride of the cell's kind instead of `stride`.
        stride: Stride of the op.
        scale: Divisor of the cell's height and width, as in `Node`.
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
    """A kind of cell. All cells of a kind have the same architecture.

    Args:
        name: Name in `Skeleton.cells` and in parameter names; a Python identifier.
        stride: Stride of the ops that read an input of the cell; 2 halves height and width and doubles the channels.
        outputs: Nodes whose concatenation is the cell's output; empty for all nodes besides the inputs.

    Example:
        >>> from optuna_nas import CellKind, CellSpace
        >>> kinds = (CellKind("normal"), CellKind("reduction", stride=2))
        >>> CellSpace(("skip_connect", "nor_conv_3x3"), nodes=1, cell_kinds=kinds).paths
        ('normal_0_2', 'normal_1_2', 'reduction_0_2', 'reduction_1_2')
    """

    name: str
    stride: int = 1
    outputs: tuple[int, ...] = ()


@dataclass(frozen=True)
class CellularSpace(Space):
    """Base class of spaces of cells. A subclass defines the nodes of a cell; graphs and costs follow from them.

    Example:
        >>> from optuna_nas import darts_space
        >>> from optuna_nas.space import CellularSpace
        >>> isinstance(darts_space(), CellularSpace), [kind.name for kind in darts_space().kinds]
        (True, ['normal', 'reduction'])
    """

    @property
    @abstractmethod
    def kinds(self) -> tuple[CellKind, ...]:
        """Kinds of cells."""

    @property
    @abstractmethod
    def n_inputs(self) -> int:
        """Number of previous cells that a cell reads."""

    @abstractmethod
    def cell_nodes(self, kind: CellKind, choices: Mapping[str, tuple[str, ...]], mixed: bool = False) -> list[CellNode]:
        """Return the nodes of a cell of this kind, in topological order, `output` last.

        Args:
            kind: Kind of the cell.
            choices: Names chosen at every path.
            mixed: The cell is that of a supernet: the choices are those of the full architecture, and every connection
                that an architecture may need is present.
        """

    @abstractmethod
    def mixed_names(self) -> dict[str, tuple[str, ...]]:
        """Return the names that a supernet mixes at every path: ops, or predecessors."""

    @property
    def known_ops(self) -> list[Op]:
        """Ops that can be chosen, in the order in which ops were registered.

        Example:
            >>> from optuna_nas import nasbench201_space
            >>> sorted(op.label for op in nasbench201_space().known_ops)
            ['avg3', 'conv1', 'conv3', 'skip']
        """
        known = {name for options in self.options().values() for chosen in options.values() for name in chosen}
        return [get_op(name) for name in choosable_ops() if name in known]

    @property
    def writes_names(self) -> bool:
        """Whether parameters write ops with their names; those that choose several ops write short labels.

        Example:
            >>> from optuna_nas import darts_space, hmnas_space
            >>> darts_space().writes_names, hmnas_space(max_ops=2).writes_names
            (True, False)
        """
        one = {(written, *chosen) for options in self.options().values() for written, chosen in options.items()}
        return all(names[0] == names[1] for names in one if len(names) == 2)

    def connected(self, architecture: Architecture) -> bool:
        return architecture.cells.connected

    def canonical(self, architecture: Architecture) -> ComputationGraph:
        """Return the canonical graph of cells; see `ComputationGraph.canonical` for what it identifies."""
        return architecture.cells.canonical()

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

    def network_graph(
        self, architecture: Architecture, skeleton: Skeleton, mixed: bool = False, whole: bool = False
    ) -> ComputationGraph:
        """Return the graph of the network of an architecture in a skeleton, with shapes.

        Args:
            architecture: Choices of the cells.
            skeleton: Skeleton around the cells.
            mixed: The graph is that of a supernet, and the architecture is the full one.
            whole: The graph also has what nothing reads, which published sizes count and `build` does not make.

        Raises:
            ValueError: The skeleton names a cell that the space lacks, or its image is too small for its reductions.
        """
        graph = NetworkBuilder(self, dict(architecture.choices), skeleton, mixed).graph()
        return graph if whole or mixed else graph.trimmed

    def network_cost(self, architecture: Architecture, skeleton: Skeleton) -> Cost:
        """Return parameters, multiply-adds and memory access in a skeleton, without building a module."""
        return self.network_graph(architecture, skeleton).cost


def check_kinds(names: Sequence[str], argument: str = "cell_kinds") -> None:
    """Check that kinds of cells have different names that are valid in a path and in a skeleton.

    Raises:
        ValueError: They do not.
    """
    if not names or len(set(names)) < len(names):
        raise ValueError(f"`{argument}` must be one or more kinds with different names but got {list(names)}.")
    for name in names:
        if not name.isidentifier() or name in FIXED_CELLS:
            raise ValueError(
                f"`{argument}` must have names of letters, digits and underscores, unlike the fixed blocks "
                f"{FIXED_CELLS}, but got {name!r}."
            )


def check_ops(ops: Sequence[str], none_allowed: bool = True) -> None:
    """Check that ops are different and registered, and that at least one of them computes something.

    Raises:
        ValueError: They are not.
    """
    for name in ops:
        if name != NONE:
            get_op(name)
            if name in FIXED_PARTS:
                raise ValueError(
                    f"`ops` must be choosable but {name!r} is a fixed part of skeletons; known: "
                    f"{', '.join(choosable_ops())}."
                )
        elif not none_allowed:
            raise ValueError("`ops` must not hold 'none' here: choosing no op means the same; leave it out.")
    repeated = sorted({name for name in ops if list(ops).count(name) > 1})
    if repeated:
        raise ValueError(f"`ops` must differ but {repeated[0]!r} stands more than once; remove it.")
    if all(name == NONE for name in ops):
        raise ValueError(f"`ops` must hold an op that computes something but got {tuple(ops)}; add 'skip_connect'.")

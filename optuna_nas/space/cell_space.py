"""Spaces with ops on the edges of a cell: DARTS, SNAS, HM-NAS, NAS-Bench-201."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations
from math import comb
from typing import TYPE_CHECKING, Any, ClassVar

from optuna_nas.space.cellular import CellKind, CellNode, CellularSpace, check_kinds, check_ops
from optuna_nas.space.cost import Cost
from optuna_nas.space.ops import NONE, Op, get_op
from optuna_nas.space.reading import MAX_NODES, check_choices, checked_integer
from optuna_nas.space.ways import cheapest_way

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from optuna_nas.space.architecture import Architecture
    from optuna_nas.space.graph import ComputationGraph
    from optuna_nas.space.skeleton import Skeleton

NORMAL_AND_REDUCTION = (CellKind("normal"), CellKind("reduction", stride=2))


@dataclass(frozen=True)
class CellSpace(CellularSpace):
    """Space of cells in which every edge between two nodes chooses one op, or a subset of ops.

    A cell has `inputs` input nodes (outputs of previous cells) and `nodes` further nodes, each the sum over all edges
    from earlier nodes. Its output is the concatenation of nodes. An edge is one Optuna parameter, `normal_0_2` for the
    edge from node 0 to node 2, and its choices are names of ops. With `max_ops > 1` its choices are the subsets of at
    most `max_ops` ops, written with short labels (`sep3+skip`, `none`).

    Args:
        ops: Names of the ops of an edge; `none` removes the edge. With `max_ops > 1` the empty subset is always a
            choice, and `none` is not allowed.
        nodes: Number of nodes besides the inputs, at least 1.
        inputs: Number of previous cells that a cell reads, 1 or 2.
        cell_kinds: Kinds of cells; by default `normal` and `reduction` (stride 2).
        max_ops: Maximum number of ops of an edge, from 1 to `len(ops)`.

    Raises:
        ValueError: A value is out of range, or an op is unknown.

    Example:
        >>> from optuna_nas import CellKind, CellSpace
        >>> ops = ("none", "skip_connect", "nor_conv_3x3")
        >>> space = CellSpace(ops, nodes=2, inputs=1, cell_kinds=(CellKind("cell"),))
        >>> list(space.distributions())
        ['cell_0_1', 'cell_0_2', 'cell_1_2']
        >>> space.size
        27
        >>> space.decode({"cell_0_1": "nor_conv_3x3", "cell_0_2": "skip_connect", "cell_1_2": "none"}).summary
        'conv3 | skip none'
    """

    type_name: ClassVar[str] = "CellSpace"

    ops: tuple[str, ...]
    nodes: int = 4
    inputs: int = 2
    cell_kinds: tuple[CellKind, ...] = NORMAL_AND_REDUCTION
    max_ops: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "ops", tuple(self.ops))
        object.__setattr__(self, "cell_kinds", tuple(self.cell_kinds))
        for name in ("nodes", "inputs", "max_ops"):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), int):
                raise ValueError(f"`{name}` must be an integer but got {getattr(self, name)!r}.")
        if self.nodes > MAX_NODES:
            raise ValueError(f"`nodes` must be at most {MAX_NODES} but got {self.nodes}.")
        check_ops(self.ops, none_allowed=self.max_ops == 1)
        if not 1 <= self.inputs <= 2:
            raise ValueError(f"`inputs` must be 1 or 2 but got {self.inputs}; DARTS reads two cells.")
        if self.nodes < 1:
            raise ValueError(f"`nodes` must be at least 1 but got {self.nodes}; DARTS uses 4.")
        if not 1 <= self.max_ops <= len(self.ops):
            raise ValueError(f"`max_ops` must be from 1 to {len(self.ops)}, the number of ops, but got {self.max_ops}.")
        check_kinds([kind.name for kind in self.cell_kinds])
        n_edges = sum(range(self.inputs, self.inputs + self.nodes)) * len(self.cell_kinds)
        check_choices(n_edges * sum(comb(len(self.ops), n_chosen) for n_chosen in range(1, self.max_ops + 1)))
        for kind in self.cell_kinds:
            checked_integer("stride", kind.stride, 1, 2)
            for node in kind.outputs:
                if not self.inputs <= node < self.inputs + self.nodes:
                    raise ValueError(
                        f"`outputs` of cell kind {kind.name!r} must be nodes from {self.inputs} to "
                        f"{self.inputs + self.nodes - 1} but got {node}."
                    )

    @property
    def kinds(self) -> tuple[CellKind, ...]:
        return self.cell_kinds

    @property
    def n_inputs(self) -> int:
        return self.inputs

    @cached_property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """Every edge of a cell as (target, source), in the order of the parameters."""
        return tuple((j, i) for j in range(self.inputs, self.inputs + self.nodes) for i in range(j))

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """Names of the Optuna parameters: all edges of all kinds of cells."""
        return tuple(self.path(kind, j, i) for kind in self.cell_kinds for j, i in self.edges)

    def path(self, kind: CellKind, target: int, source: int) -> str:
        """Return the path of an edge, such as `normal_0_2` from node 0 to node 2; zero-padded, so that paths sort."""
        width = len(str(self.inputs + self.nodes - 1))
        return f"{kind.name}_{source:0{width}}_{target:0{width}}"

    @cached_property
    def places(self) -> Mapping[str, tuple[CellKind, int, int]]:
        """Kind of cell, target node and source node of every path."""
        return {self.path(kind, j, i): (kind, j, i) for kind in self.cell_kinds for j, i in self.edges}

    def old_names(self) -> Mapping[str, str]:
        return {path: f"{kind.name}/{target}<-{source}" for path, (kind, target, source) in self.places.items()}

    def group(self, path: str) -> str:
        return self.places[path][0].name

    def label(self, path: str) -> str:
        _, target, source = self.places[path]
        return f"{source}\N{RIGHTWARDS ARROW}{target}"

    def mixed_names(self) -> dict[str, tuple[str, ...]]:
        return dict.fromkeys(self.paths, self.ops)

    def options(self) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        return self._options

    def best(self, scores: Sequence[NDArray[np.float64]]) -> NDArray[np.int64]:
        """Return, for every edge, the option of the largest score, such that every kind of cell reaches its output.

        The sum of scores is the largest possible: if the argmax is not connected, the edges of the way that loses least
        take their best option that keeps something.
        """
        import numpy as np

        score_EO = np.asarray(scores)
        chosen_E = np.asarray(score_EO.argmax(axis=1))
        nothing_O = np.array([not kept for kept in next(iter(self.options().values())).values()])
        if not nothing_O.any():
            return chosen_E
        something_E = np.where(nothing_O, -np.inf, score_EO).argmax(axis=1)
        rows = np.arange(len(chosen_E))
        regret_E = score_EO[rows, chosen_E] - score_EO[rows, something_E]
        for kind in self.kinds:
            way = list(cheapest_way(self, kind, regret_E))
            chosen_E[way] = something_E[way]
        return chosen_E

    @cached_property
    def _options(self) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        if self.max_ops == 1:
            choices: dict[str, tuple[str, ...]] = {name: () if name == NONE else (name,) for name in self.ops}
        else:
            choices = {
                _labels(chosen): tuple(sorted(chosen))
                for n_chosen in range(self.max_ops + 1)
                for chosen in combinations(self.ops, n_chosen)
            }
        return dict.fromkeys(self.paths, choices)

    def check_choice(self, path: str, chosen: tuple[str, ...]) -> None:
        if len(chosen) > MAX_NODES:
            raise ValueError(f"`choices[{path!r}]` must name at most {MAX_NODES} ops but names {len(chosen)}.")
        for name in chosen:
            if name not in self.ops:
                raise ValueError(f"`choices[{path!r}]` must name ops of the space {self.ops} but got {name!r}.")

    def full_architecture(self) -> Architecture:
        return self.architecture(dict.fromkeys(self.paths, self.ops))

    def cell_nodes(self, kind: CellKind, choices: Mapping[str, tuple[str, ...]], mixed: bool = False) -> list[CellNode]:
        def name(node: int) -> str:
            return f"in{node}" if node < self.inputs else str(node)

        nodes = []
        for target in range(self.inputs, self.inputs + self.nodes):
            terms = []
            for source in range(target):
                path = self.path(kind, target, source)
                chosen = choices[path]
                for number, op in enumerate(chosen):
                    copy = chosen[:number].count(op)
                    term = f"{target}<-{source}/{op}" + (f"#{copy + 1}" if copy else "")
                    nodes.append(CellNode(term, op, (name(source),), path, source < self.inputs))
                    terms.append(term)
            nodes.append(CellNode(str(target), "sum", tuple(terms)))
        outputs = kind.outputs or tuple(range(self.inputs, self.inputs + self.nodes))
        return [*nodes, CellNode("output", "concat", tuple(map(str, outputs)))]

    def summary(self, architecture: Architecture) -> str:
        kinds = []
        for kind in self.cell_kinds:
            nodes = [
                " ".join(_labels(architecture[self.path(kind, target, source)]) for source in range(target))
                for target in range(self.inputs, self.inputs + self.nodes)
            ]
            kinds.append(f"{kind.name}: {' | '.join(nodes)}" if len(self.cell_kinds) > 1 else " | ".join(nodes))
        return "; ".join(kinds)

    @property
    def notation(self) -> str:
        """Explanation of `summary` and of the names of parameters, for readers of tables and pictures.

        Example:
            >>> from optuna_nas import nasbench201_space
            >>> print(nasbench201_space().notation[:108])
            A cell is written node by node, as a | b c | d e f: node 0 is its input; node 1 reads node 0 through the op
        """
        letters = iter("abcdefghijklmnopqrstuvwxyz")
        shown = min(self.nodes, 3)
        nodes = [[next(letters) for _ in range(self.inputs + place)] for place in range(shown)]
        pattern = " | ".join(map(" ".join, nodes)) + " | ..." * (self.nodes > shown)
        inputs = "node 0 is its input" if self.inputs == 1 else "nodes 0 and 1 are the outputs of the two cells before"
        reads = []
        for node, ops in enumerate(nodes[:2], self.inputs):
            if node == 1:
                reads.append("node 1 reads node 0 through the op a")
            else:
                sources = f"{', '.join(map(str, range(node - 1)))} and {node - 1}"
                reads.append(f"node {node} reads nodes {sources} through {', '.join(ops[:-1])} and {ops[-1]}")
        last = self.inputs + min(shown, 2) - 1
        more = " A plus sign joins the ops of one edge." if self.max_ops > 1 else ""
        return (
            f"A cell is written node by node, as {pattern}: {inputs}; {'; '.join(reads)}.{more} The parameter "
            f"{self.path(self.cell_kinds[0], last, last - 1)} is the edge from node {last - 1} to node {last}, here "
            f"{nodes[min(shown, 2) - 1][-1]}."
        )

    def network_cost(self, architecture: Architecture, skeleton: Skeleton) -> Cost:
        cells = architecture.cells
        if not all(position in cells.live or node.op in ("sum", "concat") for position, node in enumerate(cells)):
            return super().network_cost(architecture, skeleton)  # costs add up only where everything is read
        table = cost_table(self, skeleton)
        return sum(
            (table.ops[path, op] for path, chosen in architecture.choices for op in chosen),
            table.fixed,
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "type": self.type_name,
            "ops": list(self.ops),
            "nodes": self.nodes,
            "inputs": self.inputs,
            "cell_kinds": [[kind.name, kind.stride, list(kind.outputs)] for kind in self.cell_kinds],
            "max_ops": self.max_ops,
        }

    @classmethod
    def _from_dict(cls, description: Mapping[str, Any]) -> CellSpace:
        return cls(
            tuple(description["ops"]),
            description["nodes"],
            description["inputs"],
            tuple(CellKind(name, stride, tuple(outputs)) for name, stride, outputs in description["cell_kinds"]),
            description["max_ops"],
        )


@dataclass(frozen=True)
class CostTable:
    """Cost of every op at every path. Costs add up, so sums over the table are exact where every op is read.

    An op that leads nowhere is not built and costs nothing; sums over the table count it, as published sizes do.

    Args:
        fixed: Cost of the parts that do not depend on the choices.
        ops: Additional cost of (path, op) if the op is chosen.

    Example:
        >>> from optuna_nas import darts_search_skeleton, darts_space
        >>> from optuna_nas.space import cost_table
        >>> table = cost_table(darts_space(), darts_search_skeleton(n_cells=3, channels=4))
        >>> table.ops["normal_0_2", "skip_connect"].params, table.ops["normal_0_2", "dil_conv_3x3"].params
        (0, 52)
    """

    fixed: Cost
    ops: Mapping[tuple[str, str], Cost]


def cost_table(space: CellSpace, skeleton: Skeleton) -> CostTable:
    """Return the costs of all ops of a space in a skeleton; expected costs follow from it in closed form.

    Shapes do not depend on the choices (SNAS, Xie et al. 2019, section 2.4), so one graph with all ops is enough.

    Args:
        space: Space of the cells.
        skeleton: Skeleton around the cells.

    Raises:
        ValueError: The skeleton names a cell that the space lacks, or its image is too small for its reductions.

    Example:
        >>> from optuna_nas import nasbench201_skeleton, nasbench201_space
        >>> from optuna_nas.space import cost_table
        >>> table = cost_table(nasbench201_space(), nasbench201_skeleton(repeats=1, channels=4))
        >>> table.fixed.params > 0, table.ops["cell_0_1", "none"].params
        (True, 0)
    """
    return _cost_table(space, skeleton, tuple(get_op(name) for name in space.ops if name != NONE))


@lru_cache(maxsize=64)
def _cost_table(space: CellSpace, skeleton: Skeleton, defined: tuple[Op, ...]) -> CostTable:
    """Return the table; `defined` is part of the cache's key, since an op may be registered anew under an old name."""
    graph: ComputationGraph = space.network_graph(space.full_architecture(), skeleton)
    ops: dict[tuple[str, str], Cost] = {(path, op): Cost() for path in space.paths for op in (NONE, *space.ops)}
    for node in graph:
        if node.path:
            ops[node.path, node.op] += graph.node_cost(node)
    return CostTable(graph.cost - sum(ops.values(), Cost()), ops)


def _labels(chosen: Sequence[str]) -> str:
    return "+".join(get_op(name).label for name in chosen) or NONE

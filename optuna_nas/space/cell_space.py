"""Spaces whose ops sit on the edges of a cell: DARTS, SNAS, HM-NAS, NAS-Bench-201."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar

from optuna_nas.space.cellular import CellKind, CellNode, CellularSpace, check_kinds, check_ops
from optuna_nas.space.cost import Cost
from optuna_nas.space.ops import NONE, Op, get_op

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna_nas.space.architecture import Architecture
    from optuna_nas.space.graph import ComputationGraph
    from optuna_nas.space.skeleton import Skeleton

NORMAL_AND_REDUCTION = (CellKind("normal"), CellKind("reduction", stride=2))


@dataclass(frozen=True)
class CellSpace(CellularSpace):
    """Every edge between two nodes of a cell keeps one op, or several.

    A cell has `n_inputs` input nodes (outputs of the cells before), then `nodes` nodes, each the sum over all edges
    from earlier nodes; its output is the concatenation of nodes. One Optuna parameter an edge, `normal_0_2` for the
    edge from node 0 to node 2, with op names as choices. Where up to `max_ops` ops may be kept, the choices are the
    subsets, written with short labels (`sep3+skip`, `none`): a multi-op DARTS space still has 28 parameters.

    Args:
        ops: Names of the ops an edge may choose from; `none` makes the edge vanish. With `max_ops > 1` the empty
            subset is always a choice and `none` is left out.
        nodes: Number of nodes that are not inputs.
        inputs: How many previous cells a cell reads, 1 or 2.
        cell_kinds: Kinds of cells; by default `normal` and `reduction` (stride 2).
        max_ops: Most ops kept on an edge.

    Raises:
        ValueError: A value is out of range or an op is unknown.
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
        check_ops(self.ops, none_allowed=self.max_ops == 1)
        if not 1 <= self.inputs <= 2:
            raise ValueError(f"`inputs` must be 1 or 2 but got {self.inputs}; DARTS reads two cells.")
        if self.nodes < 1:
            raise ValueError(f"`nodes` must be at least 1 but got {self.nodes}; DARTS uses 4.")
        if not 1 <= self.max_ops <= len(self.ops):
            raise ValueError(f"`max_ops` must be from 1 to {len(self.ops)}, the number of ops, but got {self.max_ops}.")
        check_kinds([kind.name for kind in self.cell_kinds])
        for kind in self.cell_kinds:
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
        """(target, source) of every edge of a cell, in the order of the parameters."""
        return tuple((j, i) for j in range(self.inputs, self.inputs + self.nodes) for i in range(j))

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """Names of all edges of all kinds: the Optuna parameters."""
        return tuple(self.path(kind, j, i) for kind in self.cell_kinds for j, i in self.edges)

    def path(self, kind: CellKind, target: int, source: int) -> str:
        """Return the name of an edge, such as `normal_0_2` from node 0 to node 2; of one width, so that names sort."""
        width = len(str(self.inputs + self.nodes - 1))
        return f"{kind.name}_{source:0{width}}_{target:0{width}}"

    @cached_property
    def places(self) -> Mapping[str, tuple[CellKind, int, int]]:
        """Kind of cell, target and source of every path."""
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

    @cached_property
    def _options(self) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        if self.max_ops == 1:
            choices: dict[str, tuple[str, ...]] = {name: () if name == NONE else (name,) for name in self.ops}
        else:
            choices = {
                _labels(kept): tuple(sorted(kept))
                for n_kept in range(self.max_ops + 1)
                for kept in combinations(self.ops, n_kept)
            }
        return dict.fromkeys(self.paths, choices)

    def check_choice(self, path: str, kept: tuple[str, ...]) -> None:
        for name in kept:
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
                kept = choices[path]
                for number, op in enumerate(kept):
                    copy = kept[:number].count(op)
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

    def network_cost(self, architecture: Architecture, skeleton: Skeleton) -> Cost:
        table = cost_table(self, skeleton)
        return sum(
            (table.ops[path, op] for path, kept in architecture.choices for op in kept),
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
    """Costs that do not depend on the choice, and what every (path, op) adds when kept; exact, since costs add up."""

    fixed: Cost
    ops: Mapping[tuple[str, str], Cost]


def cost_table(space: CellSpace, skeleton: Skeleton) -> CostTable:
    """Return the table from which costs, expected costs and their gradients follow in closed form.

    The shapes in a skeleton do not depend on the choices (SNAS, section 2.4), so one graph that keeps every op prices
    them all.
    """
    return _cost_table(space, skeleton, tuple(get_op(name) for name in space.ops if name != NONE))


@lru_cache(maxsize=64)
def _cost_table(space: CellSpace, skeleton: Skeleton, defined: tuple[Op, ...]) -> CostTable:
    """Make the table; `defined` tells an op registered anew under an old name."""
    graph: ComputationGraph = space.network_graph(space.full_architecture(), skeleton)
    ops: dict[tuple[str, str], Cost] = {(path, op): Cost() for path in space.paths for op in (NONE, *space.ops)}
    for node in graph:
        if node.path:
            ops[node.path, node.op] += graph.node_cost(node)
    return CostTable(graph.cost - sum(ops.values(), Cost()), ops)


def _labels(kept: Sequence[str]) -> str:
    return "+".join(get_op(name).label for name in kept) or NONE

"""Spaces whose ops sit on the nodes of a block: the GHN paper's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar

from optuna_nas.space.base import CellKind, CellNode, Space, check_kinds, check_ops
from optuna_nas.space.ops import get_op

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna_nas.space.architecture import Architecture


@dataclass(frozen=True)
class BlockSpace(Space):
    """Every node of a block has one op and one or more predecessors.

    The op is applied to each predecessor's output with the same weights, and the results are summed (GHN, Zhang et al.
    2019, section 3). Node 0 is the block's input; the block's output is the sum of the nodes that no other node reads.
    Two Optuna parameters a node: `block/5` its op, `block/5/inputs` its predecessors (`0+3`).

    Args:
        ops: Names of the ops; `none` is not among them, since every node does something.
        nodes: Number of nodes with an op; 17 in the paper.
        max_inputs: Most predecessors of a node.
        kind: Name of the block in `Skeleton.cells`.

    Raises:
        ValueError: A value is out of range or an op is unknown.
    """

    type_name: ClassVar[str] = "BlockSpace"

    ops: tuple[str, ...]
    nodes: int = 17
    max_inputs: int = 2
    kind: str = "block"

    def __post_init__(self) -> None:
        object.__setattr__(self, "ops", tuple(self.ops))
        check_ops(self.ops, none_allowed=False)
        if self.nodes < 1:
            raise ValueError(f"`nodes` must be at least 1 but got {self.nodes}; the paper uses 17.")
        check_kinds((self.kind,), "kind")
        if self.max_inputs < 1:
            raise ValueError(f"`max_inputs` must be at least 1 but got {self.max_inputs}; every node reads another.")

    @property
    def kinds(self) -> tuple[CellKind, ...]:
        return (CellKind(self.kind),)

    @property
    def n_inputs(self) -> int:
        return 1

    def options(self) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        return self._options

    @cached_property
    def _options(self) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        options: dict[str, Mapping[str, tuple[str, ...]]] = {}
        ops = {name: (name,) for name in self.ops}
        for node in range(1, self.nodes + 1):
            options[f"{self.kind}/{node}"] = ops
            options[f"{self.kind}/{node}/inputs"] = {
                "+".join(map(str, kept)): tuple(sorted(map(str, kept)))
                for n_kept in range(1, min(self.max_inputs, node) + 1)
                for kept in combinations(range(node), n_kept)
            }
        return options

    def check_choice(self, path: str, kept: tuple[str, ...]) -> None:
        if not kept:
            raise ValueError(f"`choices[{path!r}]` must keep at least one name: every node has an op and an input.")
        if path.endswith("/inputs"):
            node = int(path.split("/")[1])
            known = tuple(map(str, range(node)))
            if len(set(kept)) < len(kept):
                raise ValueError(f"`choices[{path!r}]` must name different nodes but got {kept}.")
        else:
            known = self.ops
        for name in kept:
            if name not in known:
                raise ValueError(f"`choices[{path!r}]` must be among {known} but got {name!r}.")

    def everything(self) -> Architecture:
        return self.architecture(
            {
                path: tuple(map(str, range(int(path.split("/")[1])))) if path.endswith("/inputs") else self.ops
                for path in self._options
            }
        )

    def cell_nodes(self, kind: CellKind, choices: Mapping[str, tuple[str, ...]], mixed: bool = False) -> list[CellNode]:
        nodes = []
        read = set()
        for node in range(1, self.nodes + 1):
            path = f"{kind.name}/{node}"
            sources = sorted(choices[f"{path}/inputs"], key=int)
            read.update(sources)
            inputs = tuple("in0" if source == "0" else source for source in sources)
            terms = []
            for op in choices[path]:
                nodes.append(CellNode(f"{node}/{op}", op, inputs, path))
                terms.append(f"{node}/{op}")
            nodes.append(CellNode(str(node), "sum", tuple(terms)))
        # In a supernet any node may turn out unread, so all are listed and weighed there.
        ends = [str(node) for node in range(1, self.nodes + 1) if mixed or str(node) not in read]
        return [*nodes, CellNode("output", "sum", tuple(ends))]

    def summary(self, architecture: Architecture) -> str:
        nodes = []
        for node in range(1, self.nodes + 1):
            path = f"{self.kind}/{node}"
            sources = "+".join(sorted(architecture[f"{path}/inputs"], key=int))
            ops = "+".join(get_op(name).label for name in architecture[path])
            nodes.append(f"{ops}({sources})")
        return " ".join(nodes)

    def to_dict(self) -> dict[str, Any]:
        return {
            "type": self.type_name,
            "ops": list(self.ops),
            "nodes": self.nodes,
            "max_inputs": self.max_inputs,
            "kind": self.kind,
        }

    @classmethod
    def _from_dict(cls, description: Mapping[str, Any]) -> BlockSpace:
        return cls(tuple(description["ops"]), description["nodes"], description["max_inputs"], description["kind"])

"""Spaces with ops on the nodes of a block (GHN, Zhang, Ren and Urtasun 2019, arXiv 1810.05749)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, pairwise
from math import comb
from typing import TYPE_CHECKING, Any, ClassVar

from optuna_nas.space.cellular import CellKind, CellNode, CellularSpace, check_kinds, check_ops
from optuna_nas.space.graph import EXIT
from optuna_nas.space.ops import NONE, get_op
from optuna_nas.space.reading import MAX_NODES, check_choices, checked_integer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna_nas.space.architecture import Architecture


class NodeSpace(CellularSpace):
    """Base class of spaces of blocks: every node chooses an op, its predecessors and, in subclasses, more.

    The op is applied to each predecessor's output with the same weights, and the results are summed (GHN, Zhang et al.
    2019, section 3). Node 0 is the block's input. The block's output is the sum of the nodes that no other node reads.
    """

    ops: tuple[str, ...]
    max_inputs: int
    scales: tuple[int, ...] = (1,)
    """Divisors of the block's height and width that a node may choose."""
    has_exits: ClassVar[bool] = False
    """Whether a node may have a classifier of its own."""

    @property
    @abstractmethod
    def blocks(self) -> Mapping[str, int]:
        """Number of nodes of every kind of block."""

    @property
    def kinds(self) -> tuple[CellKind, ...]:
        return tuple(CellKind(name) for name in self.blocks)

    @property
    def n_inputs(self) -> int:
        return 1

    def options(self) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        return self._options

    @cached_property
    def _options(self) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        options: dict[str, Mapping[str, tuple[str, ...]]] = {}
        ops = {name: (name,) for name in self.ops}
        scales = {str(scale): (str(scale),) for scale in self.scales}
        exits: dict[str, tuple[str, ...]] = {NONE: (), EXIT: (EXIT,)}
        for path, (_, node, role) in self.places.items():
            if role:
                continue
            options[path] = ops
            options[f"{path}_inputs"] = {
                "+".join(map(str, chosen)): tuple(sorted(map(str, chosen)))
                for n_chosen in range(1, min(self.max_inputs, node) + 1)
                for chosen in combinations(range(node), n_chosen)
            }
            if len(scales) > 1:
                options[f"{path}_scale"] = scales
            if self.has_exits:
                options[f"{path}_exit"] = exits
        return options

    def path(self, kind: str, node: int) -> str:
        """Return the path of a node's op, such as `block_05`; numbers are padded with zeros, so that paths sort."""
        return f"{kind}_{node:0{len(str(self.blocks[kind]))}}"

    @cached_property
    def places(self) -> Mapping[str, tuple[str, int, str]]:
        """Kind, node and role of every path; the role is `inputs`, `scale`, `exit` or, for the op, empty."""
        roles = ["", "inputs", *(["scale"] if len(self.scales) > 1 else []), *(["exit"] if self.has_exits else [])]
        return {
            f"{self.path(kind, node)}_{role}".removesuffix("_"): (kind, node, role)
            for kind, nodes in self.blocks.items()
            for node in range(1, nodes + 1)
            for role in roles
        }

    def old_names(self) -> Mapping[str, str]:
        return {path: f"{kind}/{node}/{role}".removesuffix("/") for path, (kind, node, role) in self.places.items()}

    def group(self, path: str) -> str:
        return self.places[path][0]

    def label(self, path: str) -> str:
        _, node, role = self.places[path]
        return f"{node} {role}".rstrip()

    def mixed_names(self) -> dict[str, tuple[str, ...]]:
        return {
            path: tuple(sorted(names, key=int)) if self.places[path][2] == "inputs" else names
            for path, names in self.full_architecture().choices
        }

    def _names(self, path: str) -> tuple[str, ...]:
        """Return all names that can be chosen at a path."""
        _, node, role = self.places[path]
        names = {"": self.ops, "inputs": range(node), "scale": self.scales, "exit": (EXIT,)}
        return tuple(map(str, names[role]))

    def check_choice(self, path: str, chosen: tuple[str, ...]) -> None:
        role = self.places[path][2]
        if not chosen and role != "exit":
            raise ValueError(f"`choices[{path!r}]` must keep at least one name: every node has an op and an input.")
        if role and len(set(chosen)) < len(chosen):
            raise ValueError(f"`choices[{path!r}]` must name different ones but got {chosen}.")
        for name in chosen:
            if name not in self._names(path):
                raise ValueError(f"`choices[{path!r}]` must be among {self._names(path)} but got {name!r}.")

    def full_architecture(self) -> Architecture:
        return self.architecture({path: self._names(path) for path in self._options})

    def cell_nodes(self, kind: CellKind, choices: Mapping[str, tuple[str, ...]], mixed: bool = False) -> list[CellNode]:
        nodes: list[CellNode] = []
        scales = {"in0": 1}

        def at(name: str, scale: int) -> str:
            """Return the name of a node that holds this value at another scale; add the node if needed."""
            if scales[name] == scale:
                return name
            resized = f"{name}@{scale}"
            if resized not in scales:
                op = "downsample" if scale > scales[name] else "upsample"
                factor = max(scale, scales[name]) // min(scale, scales[name])
                nodes.append(CellNode(resized, op, (name,), stride=factor, scale=scale))
                scales[resized] = scale
            return resized

        read = set()
        for node in range(1, self.blocks[kind.name] + 1):
            path = self.path(kind.name, node)
            sources = sorted(choices[f"{path}_inputs"], key=int)
            read.update(sources)
            own, *coarser = sorted(map(int, choices.get(f"{path}_scale", ("1",))))
            terms = []
            for scale in (own, *coarser):  # several in the full architecture only
                inputs = tuple(at("in0" if source == "0" else source, scale) for source in sources)
                for op in choices[path]:
                    name = f"{node}/{op}" + (f"@{scale}" if scale != own else "")
                    nodes.append(CellNode(name, op, inputs, path, scale=scale))
                    scales[name] = scale
                    terms.append(at(name, own))
            nodes.append(CellNode(str(node), "sum", tuple(terms), scale=own))
            scales[str(node)] = own
            if EXIT in choices.get(f"{path}_exit", ()):
                nodes.append(CellNode(f"{node}/{EXIT}", EXIT, (str(node),), scale=own))
        # In a supernet any node may turn out unread: all are terms of the output, and their weights decide.
        names = map(str, range(1, self.blocks[kind.name] + 1))
        ends = [at(name, 1) for name in names if mixed or name not in read]
        return [*nodes, CellNode("output", "sum", tuple(ends))]

    def summary(self, architecture: Architecture) -> str:
        blocks: dict[str, list[str]] = {kind: [] for kind in self.blocks}
        for path, (kind, _, role) in self.places.items():
            if role:
                continue
            sources = "+".join(sorted(architecture[f"{path}_inputs"], key=int))
            ops = "+".join(get_op(name).label for name in architecture[path])
            scale = f"/{architecture[f'{path}_scale'][0]}" if len(self.scales) > 1 else ""
            exits = "!" if self.has_exits and architecture[f"{path}_exit"] else ""
            blocks[kind].append(f"{ops}{scale.removesuffix('/1')}({sources}){exits}")
        one_line = {kind: " ".join(nodes) for kind, nodes in blocks.items()}
        if len(blocks) == 1:
            return one_line[self.kinds[0].name]
        return "; ".join(f"{kind}: {nodes}" for kind, nodes in one_line.items())

    @property
    def notation(self) -> str:
        """Explanation of `summary` and of the names of parameters, for readers of tables and pictures.

        Example:
            >>> from optuna_nas import BlockSpace
            >>> print(BlockSpace(("skip_connect", "nor_conv_3x3"), nodes=2).notation[:90])
            A block is written as op(nodes that it reads), from node 1 on; node 0 is the block's input
        """
        name = self.path(self.kinds[0].name, 1)
        scales = " /2 means half the height and width." if len(self.scales) > 1 else ""
        exits = " ! means an early exit." if self.has_exits else ""
        return (
            f"A block is written as op(nodes that it reads), from node 1 on; node 0 is the block's input.{scales}"
            f"{exits} The parameter {name} is the op of node 1, and {name}_inputs are the nodes that it reads."
        )


@dataclass(frozen=True)
class BlockSpace(NodeSpace):
    """Space of blocks in which every node chooses one op and its predecessors.

    The op is applied to each predecessor's output with the same weights, and the results are summed (GHN, Zhang et al.
    2019, section 3). Node 0 is the block's input. The block's output is the sum of the nodes that no other node reads.
    A node has two Optuna parameters: `block_05` is its op, `block_05_inputs` its predecessors (`0+3`).

    Args:
        ops: Names of the ops; `none` is not allowed, since every node has an op.
        nodes: Number of nodes with an op, at least 1; 17 in the paper.
        max_inputs: Maximum number of predecessors of a node, at least 1.
        kind: Name of the block in `Skeleton.cells`.

    Raises:
        ValueError: A value is out of range, or an op is unknown.

    Example:
        >>> from optuna_nas import BlockSpace
        >>> space = BlockSpace(("skip_connect", "nor_conv_3x3"), nodes=2)
        >>> list(space.distributions())
        ['block_1', 'block_1_inputs', 'block_2', 'block_2_inputs']
        >>> params = {"block_1": "nor_conv_3x3", "block_1_inputs": "0", "block_2": "skip_connect"}
        >>> space.decode({**params, "block_2_inputs": "0+1"}).summary
        'conv3(0) skip(0+1)'
    """

    type_name: ClassVar[str] = "BlockSpace"

    ops: tuple[str, ...]
    nodes: int = 17
    max_inputs: int = 2
    kind: str = "block"

    def __post_init__(self) -> None:
        object.__setattr__(self, "ops", tuple(self.ops))
        check_ops(self.ops, none_allowed=False)
        checked_integer("nodes", self.nodes, 1, MAX_NODES)
        check_kinds((self.kind,), "kind")
        _check_inputs((self.nodes,), self.max_inputs)

    @property
    def blocks(self) -> Mapping[str, int]:
        return {self.kind: self.nodes}

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


@dataclass(frozen=True)
class AnytimeSpace(NodeSpace):
    """Space of blocks for anytime prediction: every node also chooses a scale and an early exit.

    Extends `BlockSpace` (GHN, Zhang et al. 2019, section 5.2). A node works at its own spatial scale and may have a
    classifier of its own, an early exit. Inputs at another scale are pooled or upsampled; a block's output is at the
    block's scale. A node has four Optuna parameters: `cell1_05`, `cell1_05_inputs`, `cell1_05_scale` (2 halves height
    and width) and `cell1_05_exit`. Every block is chosen separately; place them with `anytime_skeleton`.

    Args:
        ops: Names of the ops; `none` is not allowed.
        nodes: Number of nodes of `cell1`, `cell2`, ..., each at least 1; 24, 16 and 8 in the paper.
        max_inputs: Maximum number of predecessors of a node, at least 1.
        scales: Divisors of height and width that a node may choose: 1 first, each a multiple of the one before. The
            paper does not specify them.

    Raises:
        ValueError: A value is out of range, or an op is unknown.

    Example:
        >>> from optuna_nas import AnytimeSpace
        >>> space = AnytimeSpace(("skip_connect", "nor_conv_3x3"), nodes=(1,), scales=(1, 2))
        >>> list(space.distributions())
        ['cell1_1', 'cell1_1_inputs', 'cell1_1_scale', 'cell1_1_exit']
        >>> space.size
        8
    """

    type_name: ClassVar[str] = "AnytimeSpace"
    has_exits: ClassVar[bool] = True

    ops: tuple[str, ...]
    nodes: tuple[int, ...] = (24, 16, 8)
    max_inputs: int = 2
    scales: tuple[int, ...] = (1, 2, 4)

    def __post_init__(self) -> None:
        for name in ("nodes", "scales"):
            numbers = getattr(self, name)
            if not isinstance(numbers, list | tuple) or not all(type(number) is int for number in numbers):
                raise ValueError(f"`{name}` must be a tuple of integers but got {numbers!r}.")
        for name in ("ops", "nodes", "scales"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_ops(self.ops, none_allowed=False)
        if not self.nodes or min(self.nodes) < 1:
            raise ValueError(f"`nodes` must be one or more positive numbers but got {self.nodes}; try (24, 16, 8).")
        for number in self.nodes:
            checked_integer("nodes", number, 1, MAX_NODES)
        _check_inputs(self.nodes, self.max_inputs)
        growing = all(fine >= 1 and coarse > fine and coarse % fine == 0 for fine, coarse in pairwise(self.scales))
        if self.scales[:1] != (1,) or not growing:
            raise ValueError(
                f"`scales` must begin with 1, each a multiple of the one before, but got {self.scales}; try (1, 2, 4)."
            )

    @property
    def blocks(self) -> Mapping[str, int]:
        return {f"cell{number}": nodes for number, nodes in enumerate(self.nodes, 1)}

    def to_dict(self) -> dict[str, Any]:
        return {
            "type": self.type_name,
            "ops": list(self.ops),
            "nodes": list(self.nodes),
            "max_inputs": self.max_inputs,
            "scales": list(self.scales),
        }

    @classmethod
    def _from_dict(cls, description: Mapping[str, Any]) -> AnytimeSpace:
        names = ("ops", "nodes", "max_inputs", "scales")
        return cls(*(description[name] for name in names))


def _check_inputs(nodes: Sequence[int], max_inputs: int) -> None:
    checked_integer("max_inputs", max_inputs, 1, MAX_NODES)
    checked_integer("len(nodes)", len(nodes), 1, MAX_NODES)
    ways = (comb(node, n) for last in nodes for node in range(1, last + 1) for n in range(1, min(max_inputs, node) + 1))
    check_choices(sum(ways))

"""What every space of architectures can do, and how its cells are placed into a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from optuna_nas.space.architecture import Architecture
from optuna_nas.space.cost import Cost, Shape, Site
from optuna_nas.space.graph import AUXILIARY, EXIT, ComputationGraph, Node
from optuna_nas.space.ops import FIXED_PARTS, NONE, choosable_ops, get_op
from optuna_nas.space.skeleton import FIXED_CELLS, Skeleton

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    from optuna.distributions import CategoricalDistribution
    from optuna.trial import BaseTrial


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
class Space(ABC):
    """What may be chosen. A frozen value: equal spaces have equal parameters.

    Subclasses say which paths there are, what each may keep, and how a choice makes a cell; everything else (Optuna
    parameters, sampling, graphs, costs) follows from that here.
    """

    type_name: ClassVar[str]
    _types: ClassVar[dict[str, type[Space]]] = {}

    def __init_subclass__(cls) -> None:
        if "type_name" in vars(cls):
            Space._types[cls.type_name] = cls

    # -- what a subclass says -------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def kinds(self) -> tuple[CellKind, ...]:
        """Kinds of cells."""

    @property
    @abstractmethod
    def n_inputs(self) -> int:
        """How many of the previous cells a cell reads."""

    @abstractmethod
    def options(self) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        """Return, for every path, what may be chosen: the Optuna choice and the names that it keeps."""

    @abstractmethod
    def cell_nodes(self, kind: CellKind, choices: Mapping[str, tuple[str, ...]], mixed: bool = False) -> list[CellNode]:
        """Return the nodes of a cell of this kind, in topological order, `output` last.

        `mixed`: the choices are everything, for a supernet to weigh; keep all connections that any choice may need.
        """

    @abstractmethod
    def check_choice(self, path: str, kept: tuple[str, ...]) -> None:
        """Raise ValueError where `kept` can't stand at `path` (it may still be none of the options)."""

    @abstractmethod
    def everything(self) -> Architecture:
        """Return the architecture that keeps every op at every place: the supernet's."""

    @abstractmethod
    def summary(self, architecture: Architecture) -> str:
        """Return an architecture in one short line, for tables: labels of the ops, node by node."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold, with the key `type`."""

    @classmethod
    @abstractmethod
    def _from_dict(cls, description: Mapping[str, Any]) -> Space:
        """Make a space of this class from `to_dict`."""

    # -- architectures --------------------------------------------------------------------------------------------

    @staticmethod
    def from_dict(description: Mapping[str, Any]) -> Space:
        """Make a space from `to_dict`; ops of your own must be registered before.

        Raises:
            ValueError: The type is unknown, or the space refuses a value.
        """
        type_name = description.get("type")
        if type_name not in Space._types:
            raise ValueError(f"`type` of a space must be one of {sorted(Space._types)} but got {type_name!r}.")
        return Space._types[type_name]._from_dict(description)

    def architecture(self, choices: Mapping[str, Iterable[str]]) -> Architecture:
        """Return the architecture that keeps these names; a path left out keeps nothing.

        The order of names does not matter. A name may stand twice (two ops of one kind in parallel, as in NASNet's
        cell) although no option of the space offers it.

        Raises:
            ValueError: A path or a name is unknown.
        """
        known = self.options()
        unknown = sorted(set(choices) - set(known))
        if unknown:
            raise ValueError(
                f"`choices` must use the paths of the space but got {unknown[0]!r}; "
                f"the first of {len(known)} is {next(iter(known))!r}."
            )
        kept_at = []
        for path in known:
            names = choices.get(path, ())
            if isinstance(names, str):
                names = (names,)
            kept = tuple(sorted(name for name in names if name != NONE))
            self.check_choice(path, kept)
            kept_at.append((path, kept))
        return Architecture(self, tuple(kept_at))

    def distributions(self) -> dict[str, CategoricalDistribution]:
        """Return the Optuna distributions: one categorical for every path, the same in every trial."""
        return dict(_distributions(self))

    def encode(self, architecture: Architecture) -> dict[str, str]:
        """Return the Optuna parameters of an architecture.

        Raises:
            ValueError: The architecture is not among the options of this space.
        """
        if architecture.space != self:
            raise ValueError(
                "`architecture` must be of this space but comes from another; "
                "rebuild it with `space.architecture(...)`."
            )
        table = _choice_of_kept(self)
        params = {}
        for path, kept in architecture.choices:
            if (path, kept) not in table:
                raise ValueError(
                    f"`architecture` must use the options of the space but keeps {kept} at {path!r}; "
                    "it can be built, not proposed."
                )
            params[path] = table[path, kept]
        return params

    def decode(self, params: Mapping[str, Any]) -> Architecture:
        """Return the architecture of Optuna parameters; foreign parameters are ignored.

        Raises:
            ValueError: A parameter of the space is missing or is none of its choices.
        """
        kept_at = []
        for path, options in self.options().items():
            if path not in params:
                raise ValueError(f"`params` must hold every path of the space but lacks {path!r}.")
            if params[path] not in options:
                raise ValueError(
                    f"`params[{path!r}]` must be one of the space's {len(options)} choices but is {params[path]!r}."
                )
            kept_at.append((path, options[params[path]]))
        return Architecture(self, tuple(kept_at))

    def suggest(self, trial: BaseTrial) -> Architecture:
        """Ask an Optuna trial for every parameter of the space and return the architecture."""
        return self.decode(
            {
                path: trial.suggest_categorical(path, distribution.choices)
                for path, distribution in _distributions(self).items()
            }
        )

    def sample(self, generator: np.random.Generator, connected: bool = True) -> Architecture:
        """Return an architecture drawn uniformly from the options.

        Args:
            generator: Source of randomness.
            connected: Draw again until every kind of cell reaches its output.
        """
        while True:
            kept_at = []
            for path, options in self.options().items():
                kept = list(options.values())
                kept_at.append((path, kept[int(generator.integers(len(kept)))]))
            architecture = Architecture(self, tuple(kept_at))
            if not connected or architecture.connected:
                return architecture

    @property
    def size(self) -> int:
        """How many architectures there are, those computing one function counted apart."""
        return prod(len(options) for options in self.options().values())

    # -- graphs and costs -----------------------------------------------------------------------------------------

    def supernet_graph(self, skeleton: Skeleton) -> ComputationGraph:
        """Return the graph of the network that holds all architectures."""
        return _NetworkBuilder(self, dict(self.everything().choices), skeleton, mixed=True).graph()

    def graph(self, architecture: Architecture, skeleton: Skeleton | None = None) -> ComputationGraph:
        """Return the cells of an architecture, or its whole network when a skeleton is given.

        Raises:
            ValueError: The skeleton names a cell that the space lacks, or reduces its image away.
        """
        choices = dict(architecture.choices)
        if skeleton is not None:
            return _NetworkBuilder(self, choices, skeleton).graph()
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

    def cost(self, architecture: Architecture, skeleton: Skeleton) -> Cost:
        """Return parameters, multiply-adds and memory access, exactly, with no module built."""
        return self.graph(architecture, skeleton).cost


@lru_cache(maxsize=64)
def _distributions(space: Space) -> dict[str, CategoricalDistribution]:
    from optuna.distributions import CategoricalDistribution  # networks and their training do without Optuna

    return {path: CategoricalDistribution(tuple(options)) for path, options in space.options().items()}


@lru_cache(maxsize=64)
def _choice_of_kept(space: Space) -> dict[tuple[str, tuple[str, ...]], str]:
    return {(path, kept): choice for path, options in space.options().items() for choice, kept in options.items()}


def _half(shape: Shape) -> Shape:
    return (shape[0], -(-shape[1] // 2), -(-shape[2] // 2))


class _NetworkBuilder:
    """Places cells one after another into a skeleton; used once."""

    def __init__(
        self, space: Space, choices: Mapping[str, tuple[str, ...]], skeleton: Skeleton, mixed: bool = False
    ) -> None:
        self._space, self._choices, self._skeleton, self._mixed = space, choices, skeleton, mixed
        self._nodes: list[Node] = []

    def graph(self) -> ComputationGraph:
        skeleton, space = self._skeleton, self._space
        kinds = {kind.name: kind for kind in space.kinds}
        unknown = sorted(set(skeleton.cells) - set(kinds) - set(FIXED_CELLS))
        if unknown:
            raise ValueError(
                f"`skeleton.cells` must name the space's cells {sorted(kinds)} or {list(FIXED_CELLS)} "
                f"but got {unknown[0]!r}."
            )
        image = self._add("image", "input", (), skeleton.input_shape)
        reads = self._stem(image)  # outputs of the previous cells, oldest first
        channels = skeleton.channels
        last_reduction = -1
        for position, name in enumerate(skeleton.cells):
            reducing = name in FIXED_CELLS or kinds[name].stride > 1
            if reducing:
                height, width = self._shape(reads[-1])[1:]
                if min(height, width) < 2:
                    raise ValueError(
                        f"`skeleton` must not reduce an image below one pixel but cell {position} ({name}) gets "
                        f"{height} x {width} from an input of {skeleton.input_shape}; use fewer reductions or "
                        "larger images."
                    )
                channels *= 2
            if name in FIXED_CELLS:
                out = self._fixed_cell(position, name, reads[-1], channels)
            else:
                out = self._cell(position, kinds[name], reads, channels)
            reads = [*reads[1:], out] if len(reads) > 1 else [out]
            if reducing:
                last_reduction = out
        outputs = [self._head(reads[-1])]
        if skeleton.auxiliary:
            outputs.append(self._auxiliary_head(last_reduction))
        exits = [position for position, node in enumerate(self._nodes) if node.op == EXIT]
        if exits and skeleton.auxiliary:
            raise ValueError(
                "`skeleton.auxiliary` must be off where nodes have early exits, which do its work; unset it."
            )
        if exits and not skeleton.budget:
            raise ValueError(
                "`skeleton.budget` must say for a space with early exits how many multiply-adds a prediction may take "
                "but is 0; use `anytime_skeleton(budget=...)`."
            )
        return ComputationGraph(tuple(self._nodes), (*outputs, *exits))

    def _add(
        self,
        name: str,
        op: str,
        inputs: Sequence[int],
        out_shape: Shape,
        *,
        stride: int = 1,
        path: str = "",
        cell: int = -1,
        scale: int = 1,
    ) -> int:
        in_shape = self._shape(inputs[0]) if inputs else out_shape
        site = Site(in_shape, out_shape, stride, self._skeleton.affine, self._skeleton.pool_norm)
        self._nodes.append(Node(name, op, tuple(inputs), path, cell, site, scale))
        return len(self._nodes) - 1

    def _shape(self, position: int) -> Shape:
        return self._nodes[position].site.out_shape

    def _stem(self, image: int) -> list[int]:
        skeleton = self._skeleton
        _, height, width = skeleton.input_shape
        if skeleton.stem == "conv":
            channels = skeleton.stem_multiplier * skeleton.channels
            return [self._add("stem", "stem", [image], (channels, height, width))] * self._space.n_inputs
        first = _half(_half((skeleton.channels, height, width)))
        second = _half(first)
        if min(height, width) < 8:
            raise ValueError(
                f"`stem='imagenet'` must get images of at least 8 x 8 but got {height} x {width}; use stem='conv'."
            )
        stem0 = self._add("stem0", "stem_stride4", [image], first, stride=4)
        stem1 = self._add("stem1", "stem_stride8", [stem0], second, stride=2)
        return [stem0, stem1][-self._space.n_inputs :]

    def _fixed_cell(self, position: int, op: str, source: int, channels: int) -> int:
        shape = _half((channels, *self._shape(source)[1:]))
        return self._add(f"cell{position}/{op}", op, [source], shape, stride=2, cell=position)

    def _cell(self, position: int, kind: CellKind, reads: Sequence[int], channels: int) -> int:
        height, width = self._shape(reads[-1])[1:]
        inside = (channels, height, width)
        outside = _half(inside) if kind.stride > 1 else inside
        places = {f"in{i}": self._preprocess(position, i, source, inside) for i, source in enumerate(reads)}
        for node in self._space.cell_nodes(kind, self._choices, self._mixed):
            sources = [places[name] for name in node.inputs]
            joined = sum(self._shape(i)[0] for i in sources) if node.op == "concat" else channels
            height, width = (-(-size // node.scale) for size in outside[1:])
            places[node.name] = self._add(
                f"cell{position}/{node.name}",
                node.op,
                sources,
                (self._skeleton.classes, 1, 1) if node.op == EXIT else (joined, height, width),
                stride=kind.stride if node.strided else node.stride,
                path=node.path,
                cell=position,
                scale=node.scale,
            )
        return len(self._nodes) - 1

    def _preprocess(self, position: int, number: int, source: int, inside: Shape) -> int:
        """Bring a cell's input to the cell's shape: always a 1 x 1 convolution where cells read two others (DARTS)."""
        shape, name = self._shape(source), f"cell{position}/preprocess{number}"
        if shape[1:] != inside[1:]:
            return self._add(name, "factorized_reduction", [source], inside, stride=2, cell=position)
        if self._space.n_inputs > 1 or shape != inside:
            return self._add(name, "preprocess", [source], inside, cell=position)
        return source

    def _head(self, source: int) -> int:
        if self._skeleton.norm_before_head:
            source = self._add("norm", "norm_relu", [source], self._shape(source))
        return self._add("classifier", "classifier", [source], (self._skeleton.classes, 1, 1))

    def _auxiliary_head(self, source: int) -> int:
        if source < 0:
            raise ValueError(
                "`skeleton.auxiliary` must have a reduction to stand after but `cells` has none; "
                "set auxiliary=False or add a reduction."
            )
        op = "auxiliary_head_imagenet" if self._skeleton.stem == "imagenet" else "auxiliary_head"
        return self._add(AUXILIARY, op, [source], (self._skeleton.classes, 1, 1))


def check_kinds(names: Sequence[str], argument: str = "cell_kinds") -> None:
    """Raise ValueError unless the kinds of cells have different names that can stand in a path and in a skeleton."""
    if not names or len(set(names)) < len(names):
        raise ValueError(f"`{argument}` must be one or more kinds with different names but got {list(names)}.")
    for name in names:
        if not name or "/" in name or name in FIXED_CELLS:
            raise ValueError(
                f"`{argument}` must have names without '/' and unlike the fixed blocks {FIXED_CELLS} but got {name!r}."
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

"""Latency of every op at its place, measured once on a device, from which that of any network is predicted."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F

from optuna_nas.networks.graph_network import seeded_building
from optuna_nas.networks.measures import latency_name, median_seconds
from optuna_nas.networks.network_space import NetworkSpace
from optuna_nas.networks.ops import build_op, has_module
from optuna_nas.space.base import Space
from optuna_nas.space.block_space import NodeSpace
from optuna_nas.space.graph import AUXILIARY
from optuna_nas.space.ops import NONE, STRUCTURAL, get_op
from optuna_nas.space.reading import reading
from optuna_nas.training.device import choose_device
from optuna_nas.training.rules import Rule, anything, at_least, checked, mapping, not_negative, text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from optuna_nas.space.architecture import Architecture
    from optuna_nas.space.cost import Shape, Site
    from optuna_nas.space.graph import ComputationGraph, Node

CALLS_ON_A_GPU = 10
"""Calls of an op between two waits for a GPU: to start an op there overlaps with computing the ones before."""
N_REFERENCES = 5
"""Whole networks that are measured beside the ops; their seconds set the scale of the table."""


class LatencyResidual(NamedTuple):
    """Predicted latencies of networks beside measured ones.

    Args:
        pairs: (predicted, measured) seconds of every network.

    Example:
        >>> from optuna_nas.networks import LatencyResidual
        >>> residual = LatencyResidual(((0.010, 0.011), (0.020, 0.019), (0.030, 0.030)))
        >>> print(residual)
        Spearman 1.00, median relative error 5.3 % of 3 networks
    """

    pairs: tuple[tuple[float, float], ...]

    @property
    def rank_correlation(self) -> float:
        """Spearman's correlation of the ranks, in [-1, 1]; NaN where one side is constant."""
        predicted, measured = zip(*self.pairs, strict=True)
        if len(set(predicted)) == 1 or len(set(measured)) == 1:
            return math.nan
        from scipy.stats import spearmanr  # a second to import, for each process

        return float(spearmanr(predicted, measured).statistic)

    @property
    def median_relative_error(self) -> float:
        """Median of `|predicted / measured - 1|`."""
        return median(abs(predicted / measured - 1) for predicted, measured in self.pairs)

    def __str__(self) -> str:
        error = f"median relative error {100 * self.median_relative_error:.1f} %"
        return f"Spearman {self.rank_correlation:.2f}, {error} of {len(self.pairs)} networks"


DESCRIBED: dict[str, Rule] = {
    "space": mapping(anything()),
    "device": text(),
    "batch_size": at_least(1),
    "fixed": not_negative(),
    "ops": mapping(mapping(not_negative())),
}
"""Rules of the JSON values of a table."""


@dataclass(frozen=True)
class LatencyTable:
    """Seconds of every op at its place on a device. They add up, so that a latency is predicted without a network.

    It is a cost for `SNAS(space, recipe, costs=(table,))`, whose `resource` may then bound it or weigh it, for
    `GHNSampler(..., costs=("params", table))`, and for the objectives and constraints of `TrainObjective`. Its name is
    that of the measure, `latency_cpu_1`, since it predicts what `latency()` measures. Architectures may come from
    another skeleton around the same cells, such as the small one of a search; the latency is that in the table's.

    Args:
        space: Cells in the skeleton to which the seconds apply.
        device: Device in the name, such as `cpu` or `cuda:0`; of a table from elsewhere, any name (`phone`).
        batch_size: Number of inputs in the batch; a latency is that of the whole batch.
        fixed: Seconds of the parts that do not depend on the choices.
        ops: Further seconds of (path, op) where the op is computed, for each of its inputs, over all cells of its kind.

    Raises:
        ValueError: An op has no seconds, a number is negative or not finite, or nodes choose scales or exits.

    Example:
        >>> import numpy as np
        >>> from optuna_nas import LatencyTable, NetworkSpace, nasbench201_skeleton, nasbench201_space
        >>> space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(repeats=1, channels=2))
        >>> table = LatencyTable.measure(space, device="cpu", repeats=3)
        >>> table.name
        'latency_cpu_1'
        >>> architecture = space.architecture({"cell_0_3": ["nor_conv_3x3"]})
        >>> table.of(architecture) == table.fixed + table.ops["cell_0_3", "nor_conv_3x3"]
        True
        >>> print(table.residual([space.sample(np.random.default_rng(seed)) for seed in range(3)], repeats=3))
        Spearman ..., median relative error ... % of 3 networks
    """

    space: NetworkSpace
    device: str
    batch_size: int
    fixed: float
    ops: Mapping[tuple[str, str], float] = field(repr=False, hash=False)

    def __post_init__(self) -> None:
        _check_space(self.space)
        if self.batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1 but got {self.batch_size}.")
        if not self.name.isidentifier():
            raise ValueError(f"`device` must make an identifier of `name` but got {self.device!r}; use letters.")
        places = {(node.path, node.op) for node in self.space.supernet_graph() if node.path}
        if wrong := sorted(places ^ set(self.ops)):
            raise ValueError(f"`ops` must hold every (path, op) of the space and no others but differs in {wrong[0]}.")
        for place, seconds in (("fixed", self.fixed), *self.ops.items()):
            if not 0 <= seconds < math.inf:
                raise ValueError(f"Seconds must be finite and not negative but those of {place} are {seconds}.")

    @property
    def name(self) -> str:
        """Name in trials and tables, such as `latency_cpu_1`."""
        return latency_name(self.device, self.batch_size)

    @property
    def digest(self) -> str:
        """Hash of 16 hexadecimal digits, equal for equal tables."""
        return hashlib.blake2b(json.dumps(self.to_dict()).encode(), digest_size=8).hexdigest()

    def of(self, architecture: Architecture) -> float:
        """Return the predicted seconds of an architecture: `fixed` and those of the ops that its network computes.

        An op that no output depends on is never computed (`DiscreteNetwork`) and costs nothing here.

        Args:
            architecture: Architecture of this space, or of another skeleton around the same cells.

        Raises:
            ValueError: The architecture is of another space.
        """
        cells = self.space.adopt(architecture).cells
        computed = [cells.nodes[position] for position in sorted(cells.live)]
        seconds = (len(node.inputs) * self.ops[node.path, node.op] for node in computed if node.path)
        return self.fixed + math.fsum(seconds)

    @classmethod
    def measure(cls, space: NetworkSpace, batch_size: int = 1, device: str = "auto", repeats: int = 20) -> LatencyTable:
        """Measure a table on a device.

        Every different op (one name at one site) is timed by itself, after the ReLU that it begins with and up to its
        addition to the other terms of its node. Rounds over all of them, and over five random networks, take turns, so
        that a machine that becomes slower meanwhile slows all alike. The networks set the scale: what comes between
        ops, and what a busy machine adds to longer runs, counts in proportion.

        Args:
            space: Cells in a skeleton.
            batch_size: Number of inputs in the batch, at least 1.
            device: `auto` (a GPU if there is one), or a torch device.
            repeats: Number of timed rounds, at least 1; medians count.

        Raises:
            ValueError: The device does not exist, an argument is out of range, or nodes choose scales or exits.
        """
        _check_space(space)
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1 but got {batch_size}.")
        place = choose_device(device)
        parts, graph = _Parts(place, batch_size), space.supernet_graph()
        with seeded_building(0):
            for node in graph:
                parts.add(graph, node)
        random = np.random.default_rng(0)
        references = [space.sample(random) for _ in range(N_REFERENCES)]
        networks = _networks(space, references, place, batch_size)
        runs = [*parts.runs.values(), *networks]
        seconds = median_seconds(runs, place, repeats, f"Measuring {len(parts.runs)} ops")
        by_part = {part: value / parts.calls for part, value in zip(parts.runs, seconds, strict=False)}
        fixed, ops = _add_up(graph, by_part)
        raw = cls(space, str(place), batch_size, fixed, ops)
        scale = median(
            measured / predicted if (predicted := raw.of(architecture)) else 1.0
            for measured, architecture in zip(seconds[len(parts.runs) :], references, strict=True)
        )
        return cls(space, str(place), batch_size, scale * fixed, {key: scale * value for key, value in ops.items()})

    def residual(self, architectures: Sequence[Architecture], repeats: int = 20) -> LatencyResidual:
        """Compare predicted with measured latencies of whole networks, which take turns.

        Args:
            architectures: Architectures of this space, or of another skeleton around the same cells; two or more.
            repeats: Number of timed rounds, at least 1.

        Raises:
            ValueError: The device does not exist here, or an architecture is of another space or not connected.
        """
        if len(architectures) < 2:
            raise ValueError(f"`architectures` must be two or more, to be ranked, but got {len(architectures)}.")
        device = choose_device(self.device)
        runs = _networks(self.space, architectures, device, self.batch_size)
        measured = median_seconds(runs, device, repeats, f"Measuring {len(runs)} networks")
        return LatencyResidual(tuple(zip(map(self.of, architectures), measured, strict=True)))

    def to_dict(self) -> dict[str, Any]:
        """Return the table as JSON values."""
        ops: dict[str, dict[str, float]] = {}
        for (path, op), seconds in self.ops.items():
            ops.setdefault(path, {})[op] = seconds
        return {
            "space": self.space.to_dict(),
            "device": self.device,
            "batch_size": self.batch_size,
            "fixed": self.fixed,
            "ops": ops,
        }

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> LatencyTable:
        """Return the table that `to_dict` described; register your own ops first.

        Raises:
            ValueError: An op is unknown, or the seconds are not those of the space.
        """
        with reading("description", description):
            found = checked(description, DESCRIBED)
            ops = {(path, op): seconds for path, of_path in found["ops"].items() for op, seconds in of_path.items()}
            space = cast("NetworkSpace", Space.from_dict(found["space"]))
            return cls(space, found["device"], found["batch_size"], found["fixed"], ops)


def _check_space(space: NetworkSpace) -> None:
    if not isinstance(space, NetworkSpace):
        raise ValueError(f"`space` must be a `NetworkSpace` but is a {type(space).__name__}.")
    cells = space.cells
    if isinstance(cells, NodeSpace) and (cells.has_exits or len(cells.scales) > 1):
        raise ValueError("`space` must not let nodes choose scales or exits, whose seconds do not add up.")


def _networks(
    space: NetworkSpace, architectures: Sequence[Architecture], device: torch.device, batch_size: int
) -> list[Callable[[], object]]:
    """Return the forward passes of networks of random weights."""
    inputs = space.example_inputs(batch_size).to(device)
    networks = [space.build(architecture, seed=0).to(device).eval() for architecture in architectures]
    return [partial(network, inputs) for network in networks]


Part = tuple[str, "Site"] | tuple[str, "tuple[Shape, ...]"]
"""Op at a site, or a sum or a concatenation of feature maps of these shapes."""


class _Parts:
    """The different parts of a network, each as a function to time.

    Args:
        device: Where they compute.
        batch_size: Number of inputs in the batch.
    """

    def __init__(self, device: torch.device, batch_size: int) -> None:
        self._device, self._batch_size = device, batch_size
        self._maps: dict[Shape, Tensor] = {}
        self.calls = CALLS_ON_A_GPU if device.type == "cuda" else 1
        self.runs: dict[Part, Callable[[], object]] = {}

    def add(self, graph: ComputationGraph, node: Node) -> None:
        """Add the parts of a node, unless they are there."""
        for part in _parts_of(graph, node):
            if part not in self.runs:
                self.runs[part] = self._repeated(self._run(part))

    def _run(self, part: Part) -> Callable[[], object]:
        op, where = part
        if op == "sum":
            (shape,) = cast("tuple[Shape, ...]", where)
            total, term = self._map(shape).clone(), self._map(shape)
            return lambda: total.add_(term)
        if op == "concat":
            maps = [self._map(shape) for shape in cast("tuple[Shape, ...]", where)]
            return lambda: torch.cat(maps, 1)
        site = cast("Site", where)
        inputs = self._map(site.in_shape)
        if not has_module(op, site):
            return (lambda: F.relu(inputs)) if get_op(op).relu_first else (lambda: inputs)
        module = build_op(op, site).to(memory_format=torch.channels_last).to(self._device).eval()
        return (lambda: module(F.relu(inputs))) if get_op(op).relu_first else (lambda: module(inputs))

    def _map(self, shape: Shape) -> Tensor:
        """Return a feature map, the same for all that read this shape."""
        if shape not in self._maps:
            values = torch.ones(self._batch_size, *shape, device=self._device)
            self._maps[shape] = values.contiguous(memory_format=torch.channels_last)
        return self._maps[shape]

    def _repeated(self, run: Callable[[], object]) -> Callable[[], object]:
        if self.calls == 1:
            return run

        def repeated() -> None:
            for _ in range(self.calls):
                run()

        return repeated


def _parts_of(graph: ComputationGraph, node: Node) -> list[Part]:
    """Return what is computed for one input of a node, in a network in evaluation mode."""
    if node.name == AUXILIARY or node.op in ("input", "sum", NONE):
        return []
    if node.op == "concat":
        shapes = tuple(graph.nodes[source].site.out_shape for source in node.inputs)
        return [("concat", shapes)] if len(shapes) > 1 else []
    assert node.op not in STRUCTURAL, node.op
    op: list[Part] = [(node.op, node.site)]
    return [*op, ("sum", (node.site.out_shape,))] if node.path else op


def _add_up(graph: ComputationGraph, seconds: Mapping[Part, float]) -> tuple[float, dict[tuple[str, str], float]]:
    """Return the seconds of what is fixed, and of every (path, op) over all cells, for each of its inputs."""
    fixed, ops = 0.0, dict.fromkeys([(node.path, node.op) for node in graph if node.path], 0.0)
    for node in graph:
        own = sum(seconds[part] for part in _parts_of(graph, node))
        if node.path:
            ops[node.path, node.op] += own
        else:
            fixed += own
    return fixed, ops

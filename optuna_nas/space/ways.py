"""Reachability in a graph, and the cheapest path through a cell.

E edges (paths of a space).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from optuna_nas.space.cell_space import CellSpace
    from optuna_nas.space.cellular import CellKind


def reachable(starts: Iterable[int], reads: Callable[[int], Iterable[int]]) -> set[int]:
    """Return all positions that can be reached from `starts`, including themselves.

    Args:
        starts: Positions to start from.
        reads: Function from a position to the positions one step away.

    Example:
        >>> from optuna_nas.space.ways import reachable
        >>> sorted(reachable([3], {3: [1], 2: [0], 1: [0], 0: []}.__getitem__))
        [0, 1, 3]
    """
    reached: set[int] = set()
    stack = list(starts)
    while stack:
        position = stack.pop()
        if position not in reached:
            reached.add(position)
            stack.extend(reads(position))
    return reached


def live_positions(reads: Sequence[Collection[int]], inputs: Collection[int], outputs: Iterable[int]) -> set[int]:
    """Return the positions of a graph that depend on an input and that an output depends on.

    Args:
        reads: Positions that every node reads, in topological order.
        inputs: Positions of the inputs.
        outputs: Positions of the outputs.

    Example:
        >>> from optuna_nas.space.ways import live_positions
        >>> live_positions([[], [0], [], [1, 2]], inputs=[0], outputs=[3])  # node 2 reads nothing
        {0, 1, 3}
    """
    fed: set[int] = set()
    for position, sources in enumerate(reads):
        if position in inputs or any(source in fed for source in sources):
            fed.add(position)
    ends = [output for output in outputs if output in fed]
    return reachable(ends, lambda position: [source for source in reads[position] if source in fed])


def cheapest_way(space: CellSpace, kind: CellKind, cost_E: NDArray[np.float64] | Sequence[float]) -> tuple[int, ...]:
    """Return the edges with the smallest sum of costs from an input to the output of a cell.

    Args:
        space: Space of cells with ops on edges.
        kind: Kind of cell of this space.
        cost_E: Cost of every edge in the order of `space.paths`; may be negative or infinite.

    Returns:
        Positions in `space.paths`, from the input to the output.

    Example:
        >>> from optuna_nas.space import CellKind, CellSpace
        >>> from optuna_nas.space.ways import cheapest_way
        >>> kind = CellKind("cell", outputs=(2,))
        >>> space = CellSpace(("skip_connect", "none"), nodes=2, inputs=1, cell_kinds=(kind,))
        >>> [space.paths[edge] for edge in cheapest_way(space, kind, [1.0, 5.0, 1.0])]
        ['cell_0_1', 'cell_1_2']
    """
    position = {path: number for number, path in enumerate(space.paths)}
    ways: dict[int, tuple[float, tuple[int, ...]]] = dict.fromkeys(range(space.inputs), (0.0, ()))
    nodes = range(space.inputs, space.inputs + space.nodes)
    for node in nodes:  # in topological order
        edges = [(source, position[space.path(kind, node, source)]) for source in range(node)]
        ways[node] = min((ways[source][0] + float(cost_E[edge]), (*ways[source][1], edge)) for source, edge in edges)
    return min(ways[node] for node in kind.outputs or nodes)[1]

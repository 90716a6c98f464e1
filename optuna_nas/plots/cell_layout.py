"""Layout of the nodes and edges of a cell, independent of matplotlib."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, inf
from typing import TYPE_CHECKING, NamedTuple

from optuna_nas.plots.style import (
    BEND,
    BETWEEN,
    FONT_SIZE,
    MARGIN,
    PADDING,
    PORT,
    ROW,
    SPACE,
    TITLE_ROOM,
    TITLE_SIZE,
    row_width,
    text_width,
)
from optuna_nas.space.graph import EXIT
from optuna_nas.space.ops import RESIZING, STRUCTURAL, get_op

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna_nas.space import ComputationGraph


SWEEPS, ORDER_SWEEPS = 200, 12  # iterations of the searches for heights and orders


class Word(NamedTuple):
    """Word of a label.

    Args:
        text: Text of the word.
        family: Family of the op that it names, empty for other words.
        x: Left end, inches.
        y: Vertical centre, inches.
        struck: Whether it is struck through.
    """

    text: str
    family: str
    x: float
    y: float
    struck: bool = False


class Box(NamedTuple):
    """Rectangle by its centre and size, in inches."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class DrawnNode:
    """Node of a drawing: an input, a sum or the output of a cell.

    Args:
        name: Name in the graph.
        box: Position and size.
        words: Label: its number, as in names of parameters; with its op in spaces of blocks, and with c and its
            subscript k-2 for the first input of DARTS.
        ops: Names of the op nodes of the graph that its label shows (blocks).
        dead: Whether it has no effect on the output.
    """

    name: str
    box: Box
    words: tuple[Word, ...]
    ops: tuple[str, ...]
    dead: bool

    @property
    def label(self) -> str:
        """The text as one string."""
        return " ".join(word.text for word in self.words)


@dataclass(frozen=True)
class DrawnEdge:
    """Arrow of a drawing, from a node to a later one.

    Args:
        source: Name of the node at its start.
        target: Name of the node at its end.
        route: Points from source to target: bends alternating with horizontal lines, first and last a bend.
        ops: Names of the op nodes of the graph between source and target; empty if the value is passed on unchanged, to
            the output or the op of a block.
        words: Short labels of the ops, joined by plus signs.
        box: Position and size of the label, None without words.
        dead: Whether it has no effect on the output.
        width: Line width in points; 0 for the default.
    """

    source: str
    target: str
    route: tuple[tuple[float, float], ...]
    ops: tuple[str, ...]
    words: tuple[Word, ...]
    box: Box | None
    dead: bool
    width: float = 0.0

    @property
    def label(self) -> str:
        """The text as one string."""
        return " ".join(word.text for word in self.words)


@dataclass(frozen=True)
class CellDrawing:
    """Drawing of a cell: positions of nodes, arrows and labels, in inches from the lower left corner.

    Args:
        title: Name of the kind of cell.
        nodes: Nodes in the order of the graph.
        edges: Arrows between the nodes.
        width: Width of the drawing, inches.
        height: Height of the drawing, inches.

    Example:
        >>> from optuna_nas import published_cell
        >>> from optuna_nas.plots import cell_drawing
        >>> drawing = cell_drawing(published_cell("DARTS_V2").cells, 0)
        >>> drawing.edges[0].source, drawing.edges[0].label
        ('normal/in0', 'sep3')
    """

    title: str
    nodes: tuple[DrawnNode, ...]
    edges: tuple[DrawnEdge, ...]
    width: float
    height: float

    @property
    def positions(self) -> Mapping[str, tuple[float, float]]:
        """Centres (x, y) of the nodes by name, inches."""
        return {node.name: (node.box.x, node.box.y) for node in self.nodes}


def cell_drawing(graph: ComputationGraph, cell: int, *, names: bool = False) -> CellDrawing:
    """Return the layout of a cell: positions of its nodes, arrows and labels.

    Args:
        graph: Graph of cells, `architecture.cells`.
        cell: Number of the kind of cell, from 0.
        names: Whether ops are written with their names instead of their short labels.

    Raises:
        ValueError: The graph has no such cell, or it is the graph of a network.

    Example:
        >>> from optuna_nas import published_cell
        >>> from optuna_nas.plots import cell_drawing
        >>> drawing = cell_drawing(published_cell("DARTS_V2").cells, 1)
        >>> drawing.title, len(drawing.nodes)
        ('reduction', 7)
    """
    sketch = _contract(graph, cell)
    layer = _layers(graph, sketch)
    texts = {value: _node_text(graph, sketch, value, names) for value in sketch.values}
    op_texts = {arrow: _Text(_op_words(graph, arrow.ops, names)) for arrow in sketch.arrows if arrow.ops}

    # Columns: each layer has a column of nodes, and before it a column of labels if its nodes sum ops.
    column: dict[int, int] = {}
    n_columns = 0
    for number in range(max(layer.values()) + 1):
        members = [value for value in sketch.values if layer[value] == number]
        n_columns += any(arrow.ops for arrow in sketch.arrows if arrow.target in members)
        column.update(dict.fromkeys(members, n_columns))
        n_columns += 1

    plan = _Plan(n_columns)
    vertex = {value: plan.add(column[value], texts[value].width, texts[value].height) for value in sketch.values}
    chains = []  # vertices of each arrow, from source to target
    for arrow in sketch.arrows:
        between = range(column[arrow.source] + 1, column[arrow.target])
        chain = [plan.add(number) for number in between]
        if arrow.ops:
            text = op_texts[arrow]
            plan.width[chain[-1]], plan.height[chain[-1]] = text.width, text.height
        chains.append([vertex[arrow.source], *chain, vertex[arrow.target]])
        plan.connect(chains[-1])
    plan.solve(len(sketch.values), same_width=bool(sketch.ops))

    nodes = tuple(
        DrawnNode(
            graph.nodes[value].name,
            plan.box(vertex[value]),
            texts[value].words(plan.box(vertex[value])),
            tuple(graph.nodes[op].name for op in sketch.ops.get(value, ())),
            value not in graph.live,
        )
        for value in sketch.values
    )
    edges = []
    for arrow, chain in zip(sketch.arrows, chains, strict=True):
        box = plan.box(chain[-2]) if arrow.ops else None
        edges.append(
            DrawnEdge(
                graph.nodes[arrow.source].name,
                graph.nodes[arrow.target].name,
                plan.route(chain),
                tuple(graph.nodes[op].name for op in arrow.ops),
                op_texts[arrow].words(box) if box else (),
                box,
                not {arrow.source, arrow.target} <= graph.live,
            )
        )
    title = graph.nodes[sketch.values[0]].name.rpartition("/")[0]
    width, height = plan.size
    title_width = 2 * MARGIN + 1.2 * TITLE_SIZE / FONT_SIZE * text_width(title)  # bold text is wider
    return CellDrawing(title, nodes, tuple(edges), max(width, title_width), height)


# -- contents: ops become labels of the arrow or node that they were chosen for ----------------------------------------


class _Arrow(NamedTuple):
    """Arrow by the positions of source, target and ops in the graph."""

    source: int
    target: int
    ops: tuple[int, ...]


class _Sketch(NamedTuple):
    """Contents of a drawing, by positions in the graph.

    Args:
        values: Nodes that hold values.
        arrows: Arrows between them.
        ops: Ops in the label of each node (blocks).
        exits: Nodes with an early exit.
    """

    values: list[int]
    arrows: list[_Arrow]
    ops: dict[int, list[int]]
    exits: frozenset[int]


def _contract(graph: ComputationGraph, cell: int) -> _Sketch:
    if not 0 <= cell < graph.n_cells:
        raise ValueError(f"`cell` must be from 0 to {graph.n_cells - 1} but got {cell}.")

    def unscaled(position: int) -> int:
        """Return the node whose value this node resizes, or the node itself."""
        node = graph.nodes[position]
        return unscaled(node.inputs[0]) if node.op in RESIZING else position

    values: list[int] = []
    on_arrow: dict[tuple[int, int], list[int]] = {}
    on_node: dict[int, list[int]] = {}
    for position, node in enumerate(graph.nodes):
        if node.cell != cell or node.op not in STRUCTURAL:
            continue
        values.append(position)
        for term in map(unscaled, node.inputs):
            if graph.nodes[term].op in STRUCTURAL:
                on_arrow.setdefault((term, position), [])
            elif "<-" in graph.nodes[term].name:  # an op on an edge
                on_arrow.setdefault((graph.nodes[term].inputs[0], position), []).append(term)
            else:  # an op of a node
                on_node.setdefault(position, []).append(term)
                for source in map(unscaled, graph.nodes[term].inputs):
                    on_arrow.setdefault((source, position), [])
    if not values or any(source not in values for source, _ in on_arrow):
        raise ValueError("`graph` must be a graph of cells but is that of a network; pass `architecture.cells`.")
    arrows = [_Arrow(source, target, tuple(ops)) for (source, target), ops in on_arrow.items()]
    exits = frozenset(node.inputs[0] for node in graph.cell(cell) if node.op == EXIT)
    return _Sketch(values, arrows, on_node, exits)


def _layers(graph: ComputationGraph, sketch: _Sketch) -> dict[int, int]:
    """Return the layer of every node: after all nodes that it reads; the output is alone in the last layer."""
    layer: dict[int, int] = {}
    for value in sketch.values:
        first = 0 if graph.nodes[value].op == "input" else 1
        layer[value] = max((layer[arrow.source] + 1 for arrow in sketch.arrows if arrow.target == value), default=first)
    fed = {arrow.target for arrow in sketch.arrows}
    for value in reversed(sketch.values):
        if graph.nodes[value].op != "input" and value not in fed:  # nodes without inputs go close to their readers
            readers = [layer[arrow.target] for arrow in sketch.arrows if arrow.source == value]
            layer[value] = max(1, min(readers, default=1) - 1)
    output = sketch.values[-1]
    layer[output] = 1 + max((layer[value] for value in sketch.values[:-1]), default=0)
    return layer


def _op_words(graph: ComputationGraph, ops: Sequence[int], names: bool) -> list[list[tuple[str, str]]]:
    words = []
    for position in ops:
        op = get_op(graph.nodes[position].op)
        plus = " +" if position != ops[-1] else ""
        words.append(((op.name if names else op.label) + plus, op.family))
    # Up to three labels in one row, up to eight in two rows, more in rows of four.
    n_rows = 1 if len(words) <= 3 else max(2, ceil(len(words) / 4))
    bounds = [ceil(i * len(words) / n_rows) for i in range(n_rows + 1)]
    return [words[start:end] for start, end in pairwise(bounds)]


def _node_text(graph: ComputationGraph, sketch: _Sketch, value: int, names: bool) -> _Text:
    name = graph.nodes[value].name.rpartition("/")[2]
    if graph.nodes[value].op == "input":
        n_inputs = sum(graph.nodes[other].op == "input" for other in sketch.values)
        number = int(name.removeprefix("in"))
        what = "input" if n_inputs == 1 else f"c\u2096\u208b{chr(0x2080 + n_inputs - number)}"  # c with index k-2
        return _Text([[(f"{number}: {what}", "")]])
    if value not in sketch.ops:
        return _Text([[(name, "")]])
    first, *rest = _op_words(graph, sketch.ops[value], names)
    scale = graph.nodes[value].scale
    properties = [f"1/{scale} size"] * (scale > 1) + ["exit"] * (value in sketch.exits)
    if properties:
        rest.append([(", ".join(properties), "")])
    return _Text([[(f"{name}:", ""), *first], *rest])


# -- layout ------------------------------------------------------------------------------------------------------------


class _Plan:
    """Vertices in columns, whose positions `solve` finds. A vertex is a node, a label or an arrow through a column."""

    def __init__(self, n_columns: int) -> None:
        self.columns: list[list[int]] = [[] for _ in range(n_columns)]  # vertices from bottom to top
        self.width: list[float] = []
        self.height: list[float] = []
        self._chains: list[Sequence[int]] = []
        self._links: dict[tuple[int, int], tuple[float, float]] = {}  # heights of both ends above the vertices' centres
        self._right: dict[int, list[int]] = defaultdict(list)
        self._left: dict[int, list[int]] = defaultdict(list)
        self._x: list[float] = []
        self._y: list[float] = []
        self._column_of: list[int] = []
        self._half_width: list[float] = []  # half the width of each column

    def add(self, column: int, width: float = 0.0, height: float = 0.0) -> int:
        """Add a vertex and return its number."""
        self.columns[column].append(len(self.width))
        self._column_of.append(column)
        self.width.append(width)
        self.height.append(height)
        return len(self.width) - 1

    def connect(self, chain: Sequence[int]) -> None:
        """Add an arrow through vertices of adjacent columns."""
        self._chains.append(chain)
        for left, right in pairwise(chain):
            self._links[left, right] = 0.0, 0.0
            self._right[left].append(right)
            self._left[right].append(left)

    def solve(self, n_nodes: int, same_width: bool) -> None:
        """Find the positions of all vertices.

        Args:
            n_nodes: Number of nodes, which are the first vertices.
            same_width: Whether all nodes of a column get the width of the widest.
        """
        self.columns = _min_crossings(self.columns, self._left, self._right)
        if self._upside_down(n_nodes):
            self.columns = [column[::-1] for column in self.columns]
        self._spread_ports()
        self._find_heights()
        for _ in range(3):  # an arrow that moved may leave space for another one
            self._level_arrows()
        self._find_columns()
        if same_width:
            for vertex, column in enumerate(self._column_of):
                if self.width[vertex]:
                    self.width[vertex] = 2 * self._half_width[column]

    def _upside_down(self, n_nodes: int) -> bool:
        """Return whether inputs, or else most nodes, have the earlier one below the later one."""
        wrong = []
        for column in self.columns:
            nodes = [vertex for vertex in column if vertex < n_nodes]
            wrong.append(sum(1 if below < above else -1 for below, above in pairwise(nodes)))
        return (wrong[0] or sum(wrong)) > 0

    def _spread_ports(self) -> None:
        """Spread the ends of the arrows at each node in the order of their other ends; enlarge the node if needed."""
        place = {vertex: i for column in self.columns for i, vertex in enumerate(column)}
        ends: dict[tuple[int, int], list[float]] = {link: [0.0, 0.0] for link in self._links}
        for vertex in range(len(self.width)):
            for side, others in enumerate((self._right[vertex], self._left[vertex])):
                others.sort(key=place.__getitem__)
                for i, other in enumerate(others):
                    link = (vertex, other) if side == 0 else (other, vertex)
                    ends[link][side] = PORT * (i - (len(others) - 1) / 2)
                if self.width[vertex]:
                    self.height[vertex] = max(self.height[vertex], PORT * len(others))
        self._links = {link: (start, end) for link, (start, end) in ends.items()}

    def _find_heights(self) -> None:
        """Make arrows as horizontal as the distances within columns allow, by least squares column by column."""
        self._y = [0.0] * len(self.width)
        for column in self.columns:
            for below, above in pairwise(column):
                self._y[above] = self._y[below] + self._distance(below, above)
            middle = (self._y[column[0]] + self._y[column[-1]]) / 2
            for vertex in column:
                self._y[vertex] -= middle
        forth = list(range(len(self.columns)))
        for sweep in range(SWEEPS):
            moved = 0.0
            for number in forth if sweep % 2 else reversed(forth):
                moved = max(moved, self._settle(self.columns[number]))
            if moved < 1e-4:
                break

    def _level_arrows(self) -> None:
        """Remove small steps from long arrows if there is space beside them."""
        below = {above: below for column in self.columns for below, above in pairwise(column)}
        above = {below: above for above, below in below.items()}
        for chain in sorted(self._chains, key=len, reverse=True):
            run: list[int] = []
            low, high = -inf, inf
            for vertex in chain[1:-1]:
                floor = self._y[below[vertex]] + self._distance(below[vertex], vertex) if vertex in below else -inf
                ceiling = self._y[above[vertex]] - self._distance(vertex, above[vertex]) if vertex in above else inf
                if max(low, floor) > min(high, ceiling) + 1e-6:
                    self._level(run, low, high)
                    run, low, high = [], -inf, inf
                run.append(vertex)
                low, high = max(low, floor), min(high, ceiling)
            self._level(run, low, high)

    def _level(self, run: Sequence[int], low: float, high: float) -> None:
        if len(run) > 1:
            mean = sum(self._y[vertex] for vertex in run) / len(run)
            for vertex in run:
                self._y[vertex] = min(max(mean, low), high)

    def _settle(self, column: Sequence[int]) -> float:
        """Move the vertices of a column towards their neighbours in other columns; return the largest move."""
        goals, weights, offsets = [], [], [0.0]
        for below, above in pairwise(column):
            offsets.append(offsets[-1] + self._distance(below, above))
        for vertex in column:
            pulls = [
                (self._pull(left, vertex), self._y[left] + self._slant(left, vertex)) for left in self._left[vertex]
            ]
            pulls += [
                (self._pull(vertex, right), self._y[right] - self._slant(vertex, right))
                for right in self._right[vertex]
            ]
            weight = sum(pull for pull, _ in pulls)
            goals.append(sum(pull * goal for pull, goal in pulls) / weight if pulls else self._y[vertex])
            weights.append(weight or 1e-3)
        settled = _isotonic([goal - offset for goal, offset in zip(goals, offsets, strict=True)], weights)
        moved = 0.0
        for vertex, height, offset in zip(column, settled, offsets, strict=True):
            moved = max(moved, abs(self._y[vertex] - height - offset))
            self._y[vertex] = height + offset
        return moved

    def _distance(self, below: int, above: int) -> float:
        return (self.height[below] + self.height[above]) / 2 + BETWEEN

    def _pull(self, left: int, right: int) -> float:
        # Weights of Gansner et al. 1993, section 4: bends in the middle of an arrow are worse than at its ends.
        return (1.0, 2.0, 6.0)[(self.height[left] == 0) + (self.height[right] == 0)]

    def _slant(self, left: int, right: int) -> float:
        """Return the height of the right vertex above the left one at which their arrow is horizontal."""
        start, end = self._links[left, right]
        return start - end

    def _find_columns(self) -> None:
        self._half_width = [max(self.width[vertex] for vertex in column) / 2 for column in self.columns]
        self._x = []
        x = 0.0
        for number, half_width in enumerate(self._half_width):
            if number:
                climbs = [
                    abs(self._y[right] - self._y[left] - self._slant(left, right))
                    for left in self.columns[number - 1]
                    for right in self._right[left]
                ]
                x += BEND[0] + BEND[1] * max(climbs, default=0.0)
            self._x.append(x + half_width)
            x += 2 * half_width
        # Move the lower left corner to (0, 0).
        bottom = min(self._y[v] - self.height[v] / 2 for v in range(len(self._y))) - MARGIN
        top = max(self._y[v] + self.height[v] / 2 for v in range(len(self._y))) + TITLE_ROOM
        self._x = [x + MARGIN for x in self._x]
        self._y = [y - bottom for y in self._y]
        self.size = x + 2 * MARGIN, top - bottom

    def box(self, vertex: int) -> Box:
        """Return position and size of a vertex."""
        return Box(self._x[self._column_of[vertex]], self._y[vertex], self.width[vertex], self.height[vertex])

    def route(self, chain: Sequence[int]) -> tuple[tuple[float, float], ...]:
        """Return the points of an arrow: bends between columns alternating with horizontal lines through them."""
        source, target = self.box(chain[0]), self.box(chain[-1])
        start, _ = self._links[chain[0], chain[1]]
        _, end = self._links[chain[-2], chain[-1]]
        points = [(source.x + source.width / 2, source.y + start)]
        for vertex in chain[1:-1]:
            box, half_width = self.box(vertex), self._half_width[self._column_of[vertex]]
            points += [(box.x - half_width, box.y), (box.x + half_width, box.y)]
        return (*points, (target.x - target.width / 2, target.y + end))


def _min_crossings(
    columns: list[list[int]], left: Mapping[int, list[int]], right: Mapping[int, list[int]]
) -> list[list[int]]:
    """Return the best order of vertices within columns after sorting by the mean place of neighbours, back and forth.

    Sugiyama, Tagawa and Toda 1981, with swaps of adjacent vertices as in Gansner et al. 1993.
    """
    best, best_count = columns, _count_crossings(columns, right)
    for start in ([column[::-1] for column in columns], columns):
        order = [list(column) for column in start]
        for sweep in range(ORDER_SWEEPS):
            neighbours, beside = (right, 1) if sweep % 2 else (left, -1)
            numbers = range(len(order) - 2, -1, -1) if sweep % 2 else range(1, len(order))
            for number in numbers:
                place, mean = _places(order[number + beside]), _places(order[number])
                for vertex in order[number]:
                    if neighbours[vertex]:
                        mean[vertex] = sum(place[other] for other in neighbours[vertex]) / len(neighbours[vertex])
                order[number].sort(key=mean.__getitem__)
            _swap(order, left, right)
            count = _count_crossings(order, right)
            if count < best_count:
                best, best_count = [list(column) for column in order], count
    return best


def _places(column: Sequence[int]) -> dict[int, float]:
    return {vertex: (i + 0.5) / len(column) for i, vertex in enumerate(column)}


def _count_crossings(columns: Sequence[Sequence[int]], right: Mapping[int, list[int]]) -> int:
    count = 0
    for column, following in pairwise(columns):
        place = _places(following)
        ends: list[float] = []
        for vertex in column:
            others = sorted(place[other] for other in right[vertex])
            count += sum(len(ends) - bisect_right(ends, end) for end in others)
            for end in others:
                insort(ends, end)
    return count


def _swap(columns: list[list[int]], left: Mapping[int, list[int]], right: Mapping[int, list[int]]) -> None:
    """Swap adjacent vertices within columns while that removes crossings."""

    def inversions(below: int, above: int, sides: Sequence[tuple[Mapping[int, list[int]], dict[int, float]]]) -> int:
        return sum(
            place[first] > place[second]
            for neighbours, place in sides
            for first in neighbours[below]
            for second in neighbours[above]
        )

    improved = True
    while improved:
        improved = False
        for number, column in enumerate(columns):
            sides = []
            if number:
                sides.append((left, _places(columns[number - 1])))
            if number + 1 < len(columns):
                sides.append((right, _places(columns[number + 1])))
            for i in range(len(column) - 1):
                below, above = column[i], column[i + 1]
                if inversions(above, below, sides) < inversions(below, above, sides):
                    column[i], column[i + 1] = above, below
                    improved = True


def _isotonic(goals: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Return the weighted least-squares fit to `goals` that does not decrease (pool adjacent violators)."""
    pools: list[tuple[float, float, int]] = []  # mean, weight, length
    for goal, weight in zip(goals, weights, strict=True):
        mean, total, length = goal, weight, 1
        while pools and pools[-1][0] > mean:
            other, other_weight, other_length = pools.pop()
            mean = (mean * total + other * other_weight) / (total + other_weight)
            total += other_weight
            length += other_length
        pools.append((mean, total, length))
    return [mean for mean, _, length in pools for _ in range(length)]


class _Text(NamedTuple):
    """Label: rows of pairs (word, family of its op)."""

    rows: list[list[tuple[str, str]]]

    @property
    def width(self) -> float:
        return max(map(row_width, self.rows)) + 2 * PADDING

    @property
    def height(self) -> float:
        return len(self.rows) * ROW + PADDING

    def words(self, box: Box) -> tuple[Word, ...]:
        """Return the words with their positions, with every row centred in the box."""
        words = []
        y = box.y + (len(self.rows) - 1) / 2 * ROW
        for row in self.rows:
            x = box.x - row_width(row) / 2
            for text, family in row:
                words.append(Word(text, family, x, y))
                x += text_width(text) + SPACE
            y -= ROW
        return tuple(words)

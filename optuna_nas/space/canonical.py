"""Canonical form of graphs: equal for graphs that compute the same function up to a renaming of weights.

A *term* is one op applied to a value; a *value* is a multiset of terms, which are summed. Skips disappear, since their
value is that of their input. Ops without parameters are shared, since their terms are compared by content. Ops with
parameters stay separate, so the terms form a directed acyclic graph whose nodes need an order that depends on the
structure only. It is found by colour refinement; ties are broken by trying all members, and the smallest description
is chosen (McKay 1981, Practical graph isomorphism).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple, Protocol

from optuna_nas.space.ops import get_op
from optuna_nas.space.ways import reachable

if TYPE_CHECKING:
    from collections.abc import Sequence

Plain = tuple[str, tuple[int, ...], int]
"""A node as (op, positions of inputs, stride)."""

_Value = tuple[int, ...]  # sorted term numbers, with repetition


class _Term:
    """An op applied to each of `values`, with the results summed; inputs and concatenations are terms, too."""

    def __init__(self, op: str, values: Sequence[_Value], stride: int, label: str = "") -> None:
        self.op, self.values, self.stride, self.label = op, tuple(sorted(values)), stride, label


def canonical_nodes(nodes: Sequence[Plain], outputs: Sequence[int]) -> tuple[list[Plain], tuple[int, ...]]:
    """Return nodes and outputs of the canonical graph.

    Args:
        nodes: (op, positions of inputs, stride) of every node, in topological order.
        outputs: Positions of the outputs.
    """
    terms, values = _expressions(nodes)
    roots = [values[output] for output in outputs]
    # Unread inputs stay, since a function of the first input differs from the same function of the second.
    ends = [*(i for i, term in enumerate(terms) if term.op == "input"), *(term for root in roots for term in root)]
    live = reachable(ends, lambda term: (below for value in terms[term].values for below in value))
    order = _canonical_order(terms, roots, sorted(live))
    return _write(terms, roots, order)


def _expressions(nodes: Sequence[Plain]) -> tuple[list[_Term], list[_Value]]:
    """Return the terms of a graph, and the value of every node."""
    terms: list[_Term] = []
    numbers: dict[tuple[object, ...], int] = {}
    values: list[_Value] = []
    n_inputs = 0

    def add(term: _Term, shared: bool) -> _Value:
        key = (term.op, term.values, term.stride, term.label)
        if not shared or key not in numbers:
            terms.append(term)
            numbers[key] = len(terms) - 1
            return (len(terms) - 1,)
        return (numbers[key],)

    for op, inputs, stride in nodes:
        sources = [values[i] for i in inputs]
        fed = [value for value in sources if value]
        if op == "input":
            # The label is the number of the input, since inputs are not interchangeable.
            values.append(add(_Term("input", [], 1, f"{n_inputs:04d}"), shared=False))
            n_inputs += 1
        elif op == "concat" and len(sources) > 1:
            # Empty slots count, too: the number of slots determines the channels of the output.
            values.append(add(_Term("concat", sources, 1), shared=True) if fed else ())
        elif op in ("sum", "concat") or (get_op(op).identity and stride == 1):
            values.append(tuple(sorted(term for value in fed for term in value)))
        elif get_op(op).free_at(stride):
            each = [add(_Term(op, [value], stride), shared=True) for value in fed]
            values.append(tuple(sorted(term for value in each for term in value)))
        else:
            values.append(add(_Term(op, fed, stride), shared=False) if fed else ())
    return terms, values


def _canonical_order(terms: Sequence[_Term], roots: Sequence[_Value], live: list[int]) -> list[int]:
    """Return the live terms in an order that depends on structure only: the one with the smallest certificate."""
    uses: dict[int, list[tuple[int, int]]] = {term: [] for term in live}
    for user in live:
        for slot, value in enumerate(terms[user].values):
            for term in value:
                uses[term].append((user, slot))
    in_roots = {term: [i for i, root in enumerate(roots) for t in root if t == term] for term in live}

    def refine(colour: dict[int, int]) -> dict[int, int]:
        while True:
            value_colour = {
                (term, slot): sorted(colour[below] for below in value)
                for term in live
                for slot, value in enumerate(terms[term].values)
            }
            signature = {
                term: (
                    colour[term],
                    sorted(value_colour[term, slot] for slot in range(len(terms[term].values))),
                    sorted((colour[user], value_colour[user, slot]) for user, slot in uses[term]),
                )
                for term in live
            }
            ranks = {key: rank for rank, key in enumerate(sorted({repr(s): s for s in signature.values()}))}
            refined = {term: ranks[repr(signature[term])] for term in live}
            if len(ranks) == len(set(colour.values())):
                return refined
            colour = refined

    start = {term: repr((terms[term].op, terms[term].stride, terms[term].label, in_roots[term])) for term in live}
    names = {text: rank for rank, text in enumerate(sorted(set(start.values())))}
    best: tuple[str, list[int]] | None = None

    def twins(first: int, second: int) -> bool:
        """Return whether swapping two tied terms changes nothing, since they have the same inputs and readers."""
        return terms[first].values == terms[second].values and Counter(uses[first]) == Counter(uses[second])

    leaves: dict[str, list[int]] = {}  # by the certificate of an order, the terms that were chosen to break its ties

    def search(colour: dict[int, int], path: list[int]) -> int | None:
        """Visit the orders of a branch; return the depth at which it equals an earlier one, None if it is new.

        Two paths with one certificate are images of each other under an automorphism that fixes their common prefix, so
        the rest of the later branch can be skipped (McKay 1981).
        """
        nonlocal best
        colour = refine(colour)
        counts = Counter(colour.values())
        tied = min((c for c, n in counts.items() if n > 1), default=None)
        if tied is None:
            # Inputs come first and in their own order, so that the canonical form is idempotent.
            order = _topological(terms, sorted(live, key=lambda t: (terms[t].op != "input", terms[t].label, colour[t])))
            certificate = repr(_write(terms, roots, order))
            if certificate in leaves:
                pairs = zip(path, leaves[certificate], strict=False)
                return next(depth for depth, (term, earlier) in enumerate(pairs) if term != earlier)
            leaves[certificate] = path
            if best is None or certificate < best[0]:
                best = (certificate, order)
            return None
        tried: list[int] = []
        for term in (t for t in live if colour[t] == tied):
            if any(twins(term, other) for other in tried):
                continue
            tried.append(term)
            depth = search({t: 2 * c - (t == term) for t, c in colour.items()}, [*path, term])
            if depth is not None and depth < len(path):
                return depth
        return None

    search({term: names[start[term]] for term in live}, [])
    assert best is not None
    return best[1]


def _topological(terms: Sequence[_Term], ranked: list[int]) -> list[int]:
    """Return terms in topological order, lowest rank first."""
    order: list[int] = []
    done: set[int] = set()
    waiting = list(ranked)
    while waiting:
        ready = next(t for t in waiting if all(below in done for value in terms[t].values for below in value))
        waiting.remove(ready)
        done.add(ready)
        order.append(ready)
    return order


def _write(
    terms: Sequence[_Term], roots: Sequence[_Value], order: Sequence[int]
) -> tuple[list[Plain], tuple[int, ...]]:
    """Return terms as nodes; every distinct value of several terms becomes one `sum`."""
    nodes: list[Plain] = []
    place: dict[int, int] = {}
    sums: dict[tuple[int, ...], int] = {}

    def value_node(value: _Value) -> int:
        members = tuple(sorted(place[term] for term in value))
        if len(members) == 1:
            return members[0]
        if members not in sums:
            nodes.append(("sum", members, 1))
            sums[members] = len(nodes) - 1
        return sums[members]

    for term in order:
        described = terms[term]
        # The order of values depends on structure only, since that of their members does.
        values = sorted(described.values, key=lambda value: tuple(sorted(place[t] for t in value)))
        inputs = tuple(value_node(value) for value in values)
        nodes.append((described.op, inputs, described.stride))
        place[term] = len(nodes) - 1
    ends = tuple(value_node(root) for root in roots)
    return nodes, ends


class Canonical(Protocol):
    """Value that is equal for architectures that compute the same function."""

    @property
    def digest(self) -> str:
        """Hash of 16 hexadecimal digits, equal for equal values; stable across processes and versions of Python."""


class CanonicalChoices(NamedTuple):
    """Canonical form of an architecture without cells: its choices.

    Args:
        choices: (path, chosen names) for every path of the space.

    Example:
        >>> CanonicalChoices((("depth", ("2",)),)).digest
        '01f9a910a60a3272'
    """

    choices: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def digest(self) -> str:
        """Hash of 16 hexadecimal digits."""
        return hashlib.blake2b(json.dumps(self.choices).encode(), digest_size=8).hexdigest()

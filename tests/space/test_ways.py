"""Ways through cells and graphs, against the obvious slow way."""

from itertools import product

import numpy as np
import pytest

from optuna_nas import CellKind, CellSpace
from optuna_nas.space.ways import cheapest_way, live_positions, reachable

SPACE = CellSpace(("skip_connect", "none"), 3, 2, (CellKind("a", outputs=(3, 4)), CellKind("b")))


def all_ways(space, kind):
    """Every list of edges from an input to a node that the output reads."""
    place = {path: number for number, path in enumerate(space.paths)}

    def to(node):
        if node < space.inputs:
            return [()]
        return [(*way, place[f"{kind.name}_{source}_{node}"]) for source in range(node) for way in to(source)]

    ends = kind.outputs or range(space.inputs, space.inputs + space.nodes)
    return [way for end in ends for way in to(end)]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", SPACE.kinds, ids=lambda kind: kind.name)
def test_the_cheapest_way_is_the_cheapest_of_all(kind, seed):
    cost = np.random.default_rng(seed).normal(size=len(SPACE.paths))
    cost[seed % len(cost)] = np.inf
    found = cheapest_way(SPACE, kind, cost)
    assert found in all_ways(SPACE, kind)
    assert sum(cost[list(found)]) == pytest.approx(min(sum(cost[list(way)]) for way in all_ways(SPACE, kind)))


@pytest.mark.parametrize("edges", list(product([False, True], repeat=6)))
def test_live_nodes_lie_on_a_way_from_an_input_to_an_output(edges):
    pairs = [(target, source) for target in range(1, 4) for source in range(target)]
    reads = [
        [source for (t, source), there in zip(pairs, edges, strict=True) if there and t == target]
        for target in range(4)
    ]
    feeds = {node: [target for target in range(4) if node in reads[target]] for node in range(4)}
    below, above = reachable([0], feeds.__getitem__), reachable([3], reads.__getitem__)
    assert live_positions(reads, {0}, [3]) == (below & above if 3 in below else set())

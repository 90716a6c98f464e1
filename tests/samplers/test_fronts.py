"""Fronts of several objectives, against the obvious slow ways."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optuna_nas.samplers.fronts import non_dominated_ranks, spread_out


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_ranks_are_those_of_peeling_off_what_nobody_dominates(rows):
    table = np.array(rows, dtype=float)

    def dominated(i, among):
        return any((table[j] >= table[i]).all() and (table[j] > table[i]).any() for j in among)

    left, wanted, front = set(range(len(rows))), {}, 0
    while left:
        best = {i for i in left if not dominated(i, left)}
        wanted |= dict.fromkeys(best, front)
        left, front = left - best, front + 1
    assert non_dominated_ranks(table).tolist() == [wanted[i] for i in range(len(rows))]


def area(points):
    """The oracle: the area below some points in the unit square, by the strip of each."""
    points = sorted(points, reverse=True)
    heights = np.maximum.accumulate([y for _, y in points])
    widths = -np.diff([x for x, _ in points] + [0.0])
    return float((heights * widths).sum())


@pytest.mark.parametrize("seed", range(5))
def test_each_candidate_adds_most_to_the_area_of_those_before(seed):
    random = np.random.default_rng(seed)
    objectives = random.normal(size=(60, 2)) * [1.0, 1e6]  # units do not matter
    ranks = (objectives.argsort(0).argsort(0) + 0.5) / 60
    order = spread_out(objectives, 12, np.random.default_rng(0))
    assert sorted(order) == list(range(60))
    greedy = []
    for _ in range(5):
        greedy.append(max(range(60), key=lambda i: area([tuple(ranks[j]) for j in [*greedy, i]])))
    best, found = (area([tuple(ranks[i]) for i in chosen]) for chosen in (greedy, order[:5]))
    assert found == pytest.approx(best, rel=0.03)
    for place, later in enumerate(order):
        dominators = np.flatnonzero((objectives > objectives[later]).all(1))
        assert set(dominators) <= set(order[:place])


def test_an_order_of_equal_or_few_candidates():
    random = np.random.default_rng(0)
    assert sorted(spread_out(np.zeros((4, 3)), 9, random)) == [0, 1, 2, 3]
    assert spread_out(np.zeros((1, 2)), 9, random).tolist() == [0]

"""The score function: rank advantages, natural-gradient steps, an order in which nothing is compared wrongly."""

import numpy as np
import pytest

from optuna_nas.oneshot.snas.score_function import FLOOR, Outcome, ScoreFunction

INFINITE = float("inf")


def complete(*values, violation=0.0):
    return Outcome(violation, INFINITE, values)


def after(outcomes, last):
    policy = ScoreFunction([3], first_judged=0)
    for outcome in outcomes:
        policy.learn([0], outcome)
    return policy.learn([0], last)


def advantage(n_beaten, n_ties, n_known):
    """The mean utility of the ranks that an outcome takes, numerically."""
    places = (n_beaten + (np.arange(200_000) + 0.5) / 200_000 * (n_ties + 1)) / (n_known + 1)
    return min(1.5, float(np.mean(-np.log(1 - places) - 1)) / 2)


def test_the_advantage_is_that_of_the_rank_among_earlier_outcomes():
    values = np.random.default_rng(0).normal(size=40)
    for value in (-3.0, 0.0, 0.4, 3.0):
        n_beaten = np.sum(values < value)
        found = after([complete(v) for v in values], complete(value))
        assert found == pytest.approx(advantage(n_beaten, 0, 40), abs=1e-4)


def test_ties_share_their_ranks_so_that_the_first_outcome_and_equal_ones_count_nothing():
    assert after([], complete(1.0)) == 0.0
    assert after([complete(1.0)] * 4, complete(1.0)) == 0.0
    mixed = [complete(0.0), complete(1.0), complete(1.0), complete(2.0)]
    assert after(mixed, complete(1.0)) == pytest.approx(advantage(1, 2, 4), abs=1e-4)


def test_only_the_last_fifty_are_compared_with():
    outcomes = [complete(10.0)] * 60 + [complete(0.0)] * 50
    assert after(outcomes, complete(1.0)) == pytest.approx(advantage(50, 0, 50), abs=1e-4)


def test_the_mean_advantage_of_outcomes_that_do_not_change_is_about_nothing():
    random = np.random.default_rng(0)
    policy = ScoreFunction([3])
    advantages = [policy.learn([0], complete(random.normal())) for _ in range(3000)]
    assert abs(np.mean(advantages[50:])) < 0.05


ORDER = [  # from worst to best
    Outcome(2.0, INFINITE, (9.0,)),
    Outcome(1.0, INFINITE, (5.0,)),
    Outcome(0.0, -1, (0.0,)),
    Outcome(0.0, 2, (9.0,)),
    Outcome(0.0, 3, (7.0,)),
    Outcome(0.0, INFINITE, (-5.0,)),
    Outcome(0.0, INFINITE, (1.0,)),
]


@pytest.mark.parametrize("place", range(len(ORDER)))
def test_constraints_come_before_completion_and_that_before_the_value(place):
    others = ORDER[:place] + ORDER[place + 1 :]
    assert after(others, ORDER[place]) == pytest.approx(advantage(place, 0, len(others)), abs=1e-4)


def test_of_several_objectives_domination_decides():
    others = [complete(0.0, 0.0), complete(2.0, 2.0), complete(-1.0, 5.0), complete(1.0, 1.0)]
    # (1, 1) beats (0, 0), loses to (2, 2), is neither with (-1, 5) and ties with itself.
    assert after(others, complete(1.0, 1.0)) == pytest.approx(advantage(1, 2, 4), abs=1e-4)


def test_a_step_is_the_natural_gradient_and_rows_stay_distributions():
    policy = ScoreFunction([3, 5], learning_rate=0.1, first_judged=1)
    policy.learn([0, 0], complete(0.0))
    before = policy.probabilities.copy()
    gained = policy.learn([2, 4], complete(1.0))
    chosen = np.zeros((2, 5))
    chosen[0, 2] = chosen[1, 4] = 1
    np.testing.assert_allclose(policy.probabilities, before + 0.1 * gained * (chosen - before))
    for value in range(200):
        policy.learn([1, 3], complete(float(value)))
    np.testing.assert_allclose(policy.probabilities.sum(1), 1)
    assert policy.probabilities[0, 3:].tolist() == [0, 0]
    assert policy.probabilities[0, :3].min() == pytest.approx(FLOOR / 3, rel=0.1)
    assert policy.probabilities.argmax(1).tolist() == [1, 3]


@pytest.mark.parametrize("rate", [0.0, -0.1, 0.67, 1.0])
def test_rates_out_of_range_are_refused(rate):
    with pytest.raises(ValueError, match="`learning_rate` must be in"):
        ScoreFunction([3], rate)

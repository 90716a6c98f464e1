"""What share of the variance of values parameters explain: the numbers, their intervals, and what chance gives."""

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from optuna_nas.plots.importances import MIN_TRIALS, draw_importances, importances

OPS = CategoricalDistribution(("a", "b", "c"))
RATE = FloatDistribution(0, 1)


def study(values, params):
    made = optuna.create_study(direction="maximize")
    for value, chosen in zip(values, params, strict=True):
        distributions = {name: OPS if isinstance(choice, str) else RATE for name, choice in chosen.items()}
        made.add_trial(optuna.create_trial(value=float(value), params=chosen, distributions=distributions))
    return made


def drawn(n_trials, seed=0):
    random = np.random.default_rng(seed)
    return [{"first": str(random.choice(OPS.choices)), "rate": float(random.random())} for _ in range(n_trials)]


def test_a_share_is_the_adjusted_squared_correlation_ratio():
    params = drawn(30)
    values = np.array([{"a": 0.0, "b": 1.0, "c": 3.0}[chosen["first"]] for chosen in params])
    values += np.random.default_rng(1).normal(size=30)
    groups = [values[[chosen["first"] == op for chosen in params]] for op in OPS.choices]
    within = sum(((group - group.mean()) ** 2).sum() for group in groups) / (30 - 3)
    found = importances(study(values, params)).by_parameter["first"]
    assert found.share == pytest.approx(1 - within / values.var(ddof=1))
    assert 0 <= found.lower < found.share < found.upper <= 1


def test_numbers_are_grouped_and_the_largest_comes_first():
    params = drawn(40)
    found = importances(study([chosen["rate"] for chosen in params], params))
    assert list(found.by_parameter) == ["rate", "first"]
    assert found.by_parameter["rate"].share > 0.8
    assert found.told == ["rate"]


def test_of_noise_nearly_nothing_is_told():
    told = [importances(study(np.random.default_rng(s).normal(size=30), drawn(30, s))).told for s in range(20)]
    assert sum(map(bool, told)) <= 3


def test_an_interval_shrinks_with_trials():
    def width(n_trials):
        params = drawn(n_trials)
        noise = np.random.default_rng(1).normal(size=n_trials)
        values = [{"a": 0, "b": 1, "c": 2}[chosen["first"]] for chosen in params] + noise
        found = importances(study(values, params)).by_parameter["first"]
        return found.upper - found.lower

    assert width(200) < 0.6 * width(30)


@pytest.mark.parametrize(
    ("values", "params"),
    [
        (range(MIN_TRIALS - 1), drawn(MIN_TRIALS - 1)),
        ([1] * 30, drawn(30)),
        (range(30), [{}] * 30),
        (range(30), [{"first": "a"}] * 30),
    ],
)
def test_nothing_is_said_of_few_trials_of_equal_values_and_of_what_does_not_vary(values, params):
    found = importances(study(values, params))
    assert found.by_parameter == {}
    with pytest.raises(ValueError, match="must have 20 completed trials"):
        draw_importances(found)


def test_what_a_trial_was_not_asked_for_is_a_group_of_its_own():
    params = [chosen if number % 2 else {"first": chosen["first"]} for number, chosen in enumerate(drawn(40))]
    found = importances(study(["rate" in chosen for chosen in params], params))
    assert found.told == ["rate"]


def test_bars_differ_in_grey():
    params = drawn(40)
    figure = draw_importances(importances(study([chosen["rate"] for chosen in params], params)))
    hatches = {bar.get_hatch() for bar in figure.axes[0].patches}
    assert hatches == {"", "////"}

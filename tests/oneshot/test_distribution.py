"""The factorised distribution: its samples, gradients, expected costs and most likely architectures."""

import itertools

import numpy as np
import pytest
import torch
from strategies import placed, whole

from optuna_nas import (
    CellKind,
    CellSpace,
    NetworkSpace,
    Skeleton,
    darts_search_skeleton,
    darts_space,
    nasbench201_space,
)
from optuna_nas.oneshot.snas.costs import EdgeCosts, most_likely
from optuna_nas.oneshot.snas.distribution import (
    architecture_of,
    concrete_sample,
    draw,
    entropies,
    gumbel_noise,
    one_path_sample,
    softmax,
)
from optuna_nas.space.cost import COSTS

LOGITS = torch.tensor([0.5, -1.0, 0.0, 2.0, 0.3])
TINY = CellSpace(("none", "skip_connect", "nor_conv_3x3"), nodes=2, inputs=1, cell_kinds=(CellKind("cell"),))
TINY_NO_NONE = CellSpace(("skip_connect", "nor_conv_3x3"), nodes=2, inputs=1, cell_kinds=(CellKind("cell"),))
TINY_SETS = CellSpace(("skip_connect", "nor_conv_1x1"), 2, 1, (CellKind("cell"),), max_ops=2)
TWO_KINDS = CellSpace(
    ("none", "skip_connect", "nor_conv_1x1"), 1, 2, (CellKind("normal"), CellKind("reduction", stride=2))
)
FRAME = Skeleton(("cell", "cell"), 4, (1, 8, 8), 10, affine=False)
FRAMES = {
    "tiny": (TINY, FRAME),
    "no none": (TINY_NO_NONE, FRAME),
    "sets": (TINY_SETS, FRAME),
    "two kinds": (TWO_KINDS, Skeleton(("normal", "reduction"), 4, (1, 8, 8), 10)),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("temperature", [10.0, 1.0, 0.1, 0.03])
def test_the_largest_entry_has_the_law_of_the_softmax_at_every_temperature(temperature):
    n_draws = 40_000
    sample = concrete_sample(LOGITS.expand(n_draws, -1), temperature, generator())
    counts = torch.bincount(sample.argmax(1), minlength=5).double()
    wanted = LOGITS.double().softmax(0) * n_draws
    assert float(((counts - wanted).abs() / wanted.sqrt()).max()) < 4


@pytest.mark.parametrize("temperature", [1.0, 0.03, 1e-3])
def test_relaxed_rows_are_finite_and_sum_to_one_even_in_autocast(temperature):
    logits = torch.randn(200, 8, generator=generator()) * 30
    with torch.autocast("cpu", torch.bfloat16):
        sample = concrete_sample(logits.bfloat16(), temperature, generator())
    assert sample.dtype == torch.float32
    assert bool(sample.isfinite().all())
    torch.testing.assert_close(sample.sum(1), torch.ones(200))


def test_a_generator_that_returns_exact_zeros_gives_finite_noise(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda self, generator=None: self.zero_())
    assert bool(gumbel_noise(torch.zeros(3, 4)).isfinite().all())


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(ValueError, match="`temperature` must be positive"):
        concrete_sample(LOGITS[None], temperature)


def test_the_pathwise_gradient_tends_to_the_exact_one_while_its_spread_grows():
    # A linear loss of one edge, `v . Z`: the gradient of its hard expectation is p (v - p . v). SNAS section 2.2.
    v, n_draws = torch.tensor([1.0, -0.5, 2.0, 0.0, 0.7]), 200_000
    p = LOGITS.softmax(0)
    exact = p * (v - p @ v)
    errors, spreads = [], []
    for temperature in (1.0, 0.33, 0.1):
        logits = LOGITS.repeat(n_draws, 1).requires_grad_()
        (concrete_sample(logits, temperature, generator()) @ v).sum().backward()
        errors.append(float((logits.grad.mean(0) - exact).norm()))
        spreads.append(float(logits.grad.std(0).norm()))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.02
    assert spreads[0] < spreads[1] < spreads[2]


def test_one_path_is_hard_and_carries_the_credit_times_the_gradient_of_log_p():
    logits = torch.randn(6, 4, generator=generator()).requires_grad_()
    credit = torch.randn(6, 4, generator=generator(1))
    sample, chosen = one_path_sample(logits, generator(2))
    assert torch.equal(sample.detach(), torch.nn.functional.one_hot(chosen, 4).float())
    (sample * credit).sum().backward()
    rows = torch.arange(6)
    wanted = credit[rows, chosen][:, None] * (sample.detach() - logits.detach().softmax(1))
    torch.testing.assert_close(logits.grad, wanted)


def test_the_one_path_gradient_is_unbiased_on_a_linear_edge():
    v, n_draws = torch.tensor([1.0, -0.5, 2.0, 0.0, 0.7]), 200_000
    p = LOGITS.softmax(0)
    logits = LOGITS.repeat(n_draws, 1).requires_grad_()
    (one_path_sample(logits, generator())[0] @ v).sum().backward()
    error = (logits.grad.mean(0) - p * (v - p @ v)) / (logits.grad.std(0) / n_draws**0.5)
    assert float(error.abs().max()) < 4


@pytest.mark.parametrize("space", [nasbench201_space(), darts_space()], ids=["nasbench201", "darts"])
def test_the_expected_cost_is_the_mean_cost_of_samples(space):
    skeleton = (
        darts_search_skeleton(3, 4)
        if len(space.kinds) > 1
        else Skeleton(("cell", "residual_reduction", "cell"), 4, (3, 8, 8), 10)
    )
    costs, random = EdgeCosts(NetworkSpace(space, skeleton)), np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(len(space.ops)), size=len(space.paths))
    drawn = []
    for _ in range(1500):
        chosen = (probabilities.cumsum(1) < random.random((len(probabilities), 1))).sum(1)
        cost = whole(placed(architecture_of(space, chosen), skeleton)).cost
        drawn.append([getattr(cost, name) for name in COSTS])
    error = (np.mean(drawn, 0) - costs.expected(probabilities)) / (np.std(drawn, 0) / len(drawn) ** 0.5)
    assert np.abs(error).max() < 4


def every_choice(space):
    return itertools.product(range(len(next(iter(space.options().values())))), repeat=len(space.paths))


@pytest.mark.parametrize("name", FRAMES)
def test_the_most_likely_architecture_is_the_best_connected_one_by_brute_force(name):
    space, skeleton = FRAMES[name]
    costs = EdgeCosts(NetworkSpace(space, skeleton))
    for seed in range(6):
        log_p = np.random.default_rng(seed).normal(size=costs.table.shape[:2]) * 3
        rows = np.arange(len(log_p))
        best = max(
            (float(log_p[rows, list(chosen)].sum()), chosen)
            for chosen in every_choice(space)
            if architecture_of(space, np.array(chosen)).connected
        )
        assert tuple(space.best(list(log_p)).tolist()) == best[1]
        assert most_likely(NetworkSpace(space, skeleton), log_p, costs, {}) == architecture_of(
            NetworkSpace(space, skeleton), np.array(best[1])
        )


@pytest.mark.parametrize("name", FRAMES)
def test_the_cheapest_architecture_is_that_of_brute_force(name):
    space, skeleton = FRAMES[name]
    costs = EdgeCosts(NetworkSpace(space, skeleton))
    connected = [a for a in (architecture_of(space, np.array(c)) for c in every_choice(space)) if a.connected]
    for cost in COSTS:
        assert costs.cheapest(cost) == min(getattr(whole(placed(a, skeleton)).cost, cost) for a in connected)


@pytest.mark.parametrize("cost", COSTS)
def test_upper_bounds_are_kept_at_little_loss_of_probability(cost):
    costs = EdgeCosts(NetworkSpace(TINY, FRAME))
    choices = [np.array(chosen) for chosen in every_choice(TINY)]
    all_costs = [counted(architecture_of(TINY, chosen), cost) for chosen in choices]
    for seed in range(5):
        log_p = np.random.default_rng(seed).normal(size=(3, 3)) * 2
        for bound in np.quantile(all_costs, [0.4, 0.7]):
            if bound < costs.cheapest(cost):
                continue
            found = most_likely(NetworkSpace(TINY, FRAME), log_p, costs, {cost: float(bound)})
            assert found.connected
            assert getattr(found.cost(), cost) <= counted(found, cost) <= bound
            # On the convex hull of probability against cost: nothing likelier is also cheaper.
            own = log_p[np.arange(3), [TINY.ops.index((found[path] or ("none",))[0]) for path in TINY.paths]].sum()
            for chosen in choices:
                architecture = architecture_of(TINY, chosen)
                if architecture.connected and log_p[np.arange(3), chosen].sum() > own + 1e-9:
                    assert counted(architecture, cost) > counted(found, cost)


def counted(architecture, cost):
    """Cost of a network with what nothing reads, as the distribution counts."""
    return getattr(whole(placed(architecture, FRAME)).cost, cost)


def test_entropy_runs_from_zero_to_log_n():
    table = np.array([[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0, 0]])
    np.testing.assert_allclose(entropies(table), [0, np.log(4), np.log(2)])


# -- edges with different numbers of options ---------------------------------------------------------------------------

SIZES = (2, 4, 3)


def padded(columns=4):
    """Return logits of three edges, each padded to the same number of columns."""
    logits = torch.full((len(SIZES), columns), -torch.inf)
    drawn = torch.randn(logits.shape[0], max(SIZES), generator=torch.Generator().manual_seed(0))
    for row, (size, values) in enumerate(zip(SIZES, drawn, strict=True)):
        logits[row, :size] = values[:size]
    return logits


PADDING = torch.isneginf(padded())


@pytest.mark.parametrize("temperature", [1.0, 0.03])
def test_a_relaxed_sample_gives_padding_no_weight_and_no_gradient(temperature):
    logits = padded().requires_grad_()
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        sample = concrete_sample(logits, temperature, generator)
        assert (sample[PADDING] == 0).all()
        torch.testing.assert_close(sample.sum(1), torch.ones(3))
    (gradient,) = torch.autograd.grad((sample * torch.randn(sample.shape)).sum(), logits)
    assert gradient.isfinite().all()
    assert (gradient[PADDING] == 0).all()


def test_a_hard_sample_never_chooses_padding():
    logits = padded().requires_grad_()
    generator = torch.Generator().manual_seed(1)
    seen = set()
    for _ in range(200):
        hard, chosen = one_path_sample(logits, generator)
        assert (hard[PADDING] == 0).all()
        seen.update(enumerate(chosen.tolist()))
    assert seen == {(row, option) for row, size in enumerate(SIZES) for option in range(size)}
    (gradient,) = torch.autograd.grad((hard * torch.randn(hard.shape)).sum(), logits)
    assert gradient.isfinite().all()
    assert (gradient[PADDING] == 0).all()


def test_padded_rows_have_the_probabilities_and_entropies_of_rows_without():
    table = softmax(padded().double().numpy())
    assert (table[PADDING.numpy()] == 0).all()
    for row, size in enumerate(SIZES):
        alone = softmax(padded().double().numpy()[row : row + 1, :size])
        np.testing.assert_allclose(table[row, :size], alone[0], rtol=1e-15)
        assert entropies(table)[row] == pytest.approx(entropies(alone)[0], rel=1e-14)


def test_a_draw_never_takes_padding():
    table = softmax(padded().double().numpy())

    class Largest:
        """Returns the largest random numbers there are."""

        def random(self, shape):
            return np.full(shape, np.nextafter(1.0, 0.0))

    assert draw(table, Largest()).tolist() == [size - 1 for size in SIZES]
    random = np.random.default_rng(0)
    drawn = np.array([draw(table, random) for _ in range(500)])
    assert (drawn.max(axis=0) == np.array(SIZES) - 1).all()


def test_more_padding_changes_no_draw():
    few, many = (softmax(padded(columns).double().numpy()) for columns in (4, 9))
    for seed in range(20):
        first, second = (draw(table, np.random.default_rng(seed)) for table in (few, many))
        assert first.tolist() == second.tolist()


def test_rectangular_tables_keep_their_numbers():
    """Numbers written down before rows could be of different lengths."""
    logits = torch.linspace(-2, 2, 12).reshape(3, 4)
    sample = concrete_sample(logits, 0.5, torch.Generator().manual_seed(7))
    hard, chosen = one_path_sample(logits, torch.Generator().manual_seed(7))
    table = softmax(logits.double().numpy())
    assert chosen.tolist() == [1, 2, 3]
    assert hard.tolist() == torch.nn.functional.one_hot(chosen, 4).float().tolist()
    assert sample.double().sum(0).tolist() == pytest.approx([0.245863, 0.539947, 1.031361, 1.182829], abs=1e-5)
    assert draw(table, np.random.default_rng(7)).tolist() == [3, 3, 3]
    assert entropies(table).tolist() == pytest.approx([1.3080470460856473] * 3, abs=1e-7)

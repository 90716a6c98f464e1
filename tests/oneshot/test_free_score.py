"""Scores of untrained networks, against what their formulas say, written down plainly."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from perceptrons import MLPSpace
from scipy.stats import spearmanr
from strategies import few_digits
from torch import nn

from optuna_nas import (
    FreeScore,
    ImageClassification,
    NetworkSpace,
    Regression,
    TensorData,
    darts_search_skeleton,
    darts_space,
    nasbench201_skeleton,
    nasbench201_space,
)
from optuna_nas.oneshot import RankScore
from optuna_nas.oneshot.free.indicators import INDICATORS, NOTHING, Untrained
from optuna_nas.oneshot.free.prior import main_effects

SPACE = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 4, (1, 8, 8), 10))
CELL = {"cell_0_1": ["nor_conv_3x3"], "cell_0_3": ["skip_connect"], "cell_1_3": ["nor_conv_1x1"]}


@pytest.fixture(scope="module")
def data():
    return few_digits(128)


@pytest.fixture(scope="module")
def batch(data):
    return next(iter(data.batches(["weights"], 8, seed=0, epoch=0)))


class Net(nn.Module):
    """Two nonlinearities in a row, whose inputs are easy to get at."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(5, 7), nn.Linear(7, 6), nn.LayerNorm(6)
        self.last = nn.Linear(6, 3)

    def forward(self, inputs):
        return self.last(torch.relu(self.norm(self.second(F.gelu(self.first(inputs))))))


class Words(nn.Module):
    """Reads tokens, as a language model does."""

    def __init__(self):
        super().__init__()
        self.table, self.layer, self.last = nn.Embedding(11, 6), nn.TransformerEncoderLayer(6, 2, 8), nn.Linear(6, 3)

    def forward(self, tokens):
        return self.last(self.layer(self.table(tokens)).mean(1))


class Given:
    """Stands for an architecture whose network is given."""

    def __init__(self, make):
        self._make = make

    def build(self, seed):
        torch.manual_seed(seed)
        return self._make()


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    return torch.randn(9, 5)


@pytest.fixture
def untrained(inputs):
    return Untrained(Given(Net), (inputs, torch.zeros(9, dtype=torch.int64)), ImageClassification(), seed=3)


def responses(net, inputs):
    first = net.first(inputs)
    return [first, net.norm(net.second(F.gelu(first)))]


def correlations(rows):
    return np.corrcoef(rows.detach().double().numpy())


def test_codes_count_the_units_on_which_two_examples_agree(untrained, inputs):
    net = Given(Net).build(3)
    signs = torch.cat(responses(net, inputs), dim=1) > 0
    kernel = np.array([[float((one == other).sum()) for other in signs] for one in signs])
    value = INDICATORS["codes"](untrained)
    if np.linalg.matrix_rank(kernel) < len(kernel):  # the determinant is 0, up to the rounding of a processor
        assert value < -15
    else:
        assert value == pytest.approx(np.linalg.slogdet(kernel)[1])


def test_patterns_are_the_distinct_signs_of_units(untrained, inputs):
    signs = torch.cat(responses(Given(Net).build(3), inputs), dim=1) > 0
    assert INDICATORS["patterns"](untrained) == len({tuple(unit.tolist()) for unit in signs.T})


def test_jacobian_is_of_the_correlations_of_gradients(untrained, inputs):
    net = Given(Net).build(3)
    learning = inputs.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(net(learning).sum(), learning)
    eigenvalues = np.linalg.eigvalsh(correlations(gradient)).clip(0) + 1e-5
    wanted = -(np.log(eigenvalues) + 1 / eigenvalues).sum()
    assert INDICATORS["jacobian"](untrained) == pytest.approx(wanted, rel=1e-3)


def test_flow_is_that_of_absolute_weights_without_norms(untrained):
    net = Given(Net).build(3).double()
    kernels = [layer.weight.detach().abs().requires_grad_(True) for layer in (net.first, net.second, net.last)]
    biases = [layer.bias.detach().abs() for layer in (net.first, net.second, net.last)]
    hidden = torch.ones(1, 5, dtype=torch.float64)
    for number, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        hidden = F.linear((F.gelu if number == 1 else torch.relu)(hidden) if number else hidden, kernel, bias)
    gradients = torch.autograd.grad(hidden.sum(), kernels)
    total = sum(float((kernel.detach() * gradient).sum()) for kernel, gradient in zip(kernels, gradients, strict=True))
    assert INDICATORS["flow"](untrained) == pytest.approx(math.log(total))


def test_responses_weigh_later_nonlinearities_twice_as_much(untrained, inputs):
    net = Given(Net).build(3)
    values = responses(net, inputs)
    slopes = torch.autograd.grad(net.last(torch.relu(values[1])).sum(), values)
    total = sum(
        2**depth * (abs(correlations(value)) + abs(correlations(slope)))
        for depth, (value, slope) in enumerate(zip(values, slopes, strict=True))
    )
    assert INDICATORS["responses"](untrained) == pytest.approx(np.linalg.slogdet(total)[1], rel=1e-3)


def test_entropies_are_those_of_principal_components(untrained, inputs):
    entropies = []
    for value in responses(Given(Net).build(3), inputs):
        variances = np.linalg.eigvalsh(np.cov(value.detach().double().numpy().T)).clip(0)
        shares = variances / variances.sum()
        entropies.append(-sum(share * math.log(share) for share in shares if share > 1e-12))
    assert INDICATORS["expressivity"](untrained) == pytest.approx(sum(entropies), rel=1e-3)
    assert INDICATORS["progressivity"](untrained) == pytest.approx(entropies[1] - entropies[0], abs=1e-3)


def test_indicators_of_a_cell_are_those_of_its_network_written_out(batch):
    """A cell's ReLUs are shared between ops; each is read once for every place that reads it."""
    architecture = SPACE.architecture(CELL)
    seen = []
    network = architecture.build(seed=0).train()
    original = F.relu
    try:
        F.relu = lambda value, inplace=False: seen.append(value.detach()) or original(value)
        network(batch.inputs)
    finally:
        F.relu = original
    signs = torch.cat([value.flatten(1) > 0 for value in seen], dim=1)
    kernel = np.array([[float((one == other).sum()) for other in signs] for one in signs])
    found = INDICATORS["codes"](Untrained(architecture, batch, ImageClassification(), seed=0))
    assert found == pytest.approx(np.linalg.slogdet(kernel)[1])


def test_a_network_of_words_is_read_by_its_embeddings():
    tokens = torch.randint(0, 11, (6, 4))
    network = Untrained(Given(Words), (tokens, torch.zeros(6, dtype=torch.int64)), ImageClassification(), seed=0)
    for name in ("codes", "jacobian", "flow", "patterns", "responses", "expressivity"):
        assert math.isfinite(INDICATORS[name](network)), name


def test_a_network_without_nonlinearities_has_nothing_to_read():
    inputs = torch.randn(6, 5)
    network = Untrained(Given(lambda: nn.Linear(5, 3)), (inputs, torch.zeros(6).long()), ImageClassification(), 0)
    assert INDICATORS["codes"](network) == INDICATORS["progressivity"](network) == NOTHING
    assert math.isfinite(INDICATORS["flow"](network))


@pytest.mark.parametrize(
    "space", [SPACE, NetworkSpace(darts_space(), darts_search_skeleton(3, 4, (1, 8, 8), 10))], ids=["nb201", "darts"]
)
def test_a_score_depends_on_no_other_architecture_and_changes_nothing(space, data):
    score = FreeScore(space, data, reference=5, indicators=list(INDICATORS))
    random = np.random.default_rng(0)
    cells = [space.sample(random) for _ in range(4)]
    before = torch.get_rng_state()
    together = score(cells)
    assert torch.equal(torch.get_rng_state(), before)
    assert together.tolist() == pytest.approx([score([cell])[0] for cell in cells])
    assert ((together >= 0) & (together <= 1)).all()
    assert FreeScore(space, data, reference=5, indicators=list(INDICATORS))(cells).tolist() == together.tolist()


def test_an_architecture_that_reaches_no_output_scores_nothing(data):
    assert FreeScore(SPACE, data, reference=3)([SPACE.architecture({})]).tolist() == [0.0]


def test_any_space_of_networks_is_scored():
    random = np.random.default_rng(0)
    data = TensorData.from_arrays(random.random((60, 4), dtype=np.float32), random.random(60, dtype=np.float32))
    space = MLPSpace(4)
    score = FreeScore(space, data, Regression(), reference=8)
    scores = score([space.sample(random) for _ in range(6)])
    assert np.isfinite(scores).all()
    assert len(set(scores.tolist())) > 3


def test_what_beats_more_reference_architectures_scores_more():
    space = nasbench201_space()

    def n_convolutions(architectures):
        return np.array([float(str(architecture).count("conv")) for architecture in architectures])

    score = RankScore(space, [n_convolutions], reference=50)
    reference = sorted(n_convolutions(score.reference_architectures()))
    cells = [space.architecture({path: ["nor_conv_3x3"] for path in space.paths[:n]}) for n in (3, 4, 6)]
    wanted = [
        (sum(other < value for other in reference) + sum(other <= value for other in reference)) / 100
        for value in n_convolutions(cells)
    ]
    found = [share for cell, share in zip(cells, score(cells), strict=True) if cell.connected]
    assert found == [share for cell, share in zip(cells, wanted, strict=True) if cell.connected]


def test_weights_say_how_much_each_score_counts():
    space = nasbench201_space()

    def n_convolutions(architectures):
        return np.array([float(str(architecture).count("conv")) for architecture in architectures])

    cells = [space.architecture({path: [op] for path in space.paths}) for op in ("nor_conv_3x3", "avg_pool_3x3")]
    both = RankScore(space, [n_convolutions, lambda cells: -n_convolutions(cells)], weights=[3, 1])
    first, second = both(cells)
    assert first > second
    assert RankScore(space, [n_convolutions, lambda cells: -n_convolutions(cells)])(cells)[0] == pytest.approx(0.5)


def test_main_effects_are_those_of_a_sum():
    space = nasbench201_space()
    worth = {"nor_conv_3x3": 2.0, "nor_conv_1x1": 1.0}

    def score(architectures):
        return np.array([sum(worth.get(op, 0.0) for _, ops in a.choices for op in ops) for a in architectures])

    effects = main_effects(space, score, architectures=400)
    options = list(space.distributions()["cell_0_1"].choices)
    assert effects.shape == (6, 5)
    np.testing.assert_allclose(effects.sum(axis=1), 0, atol=1e-9)
    best = [options[place] for place in effects.argmax(axis=1)]
    assert best == ["nor_conv_3x3"] * 6
    gaps = effects[:, options.index("nor_conv_3x3")] - effects[:, options.index("nor_conv_1x1")]
    assert gaps.max() / gaps.min() < 1.5, "an op is worth the same on every edge"


def test_effects_of_a_score_that_is_constant_are_none():
    assert not main_effects(nasbench201_space(), lambda architectures: np.ones(len(architectures))).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"indicators": ["accuracy"]}, "`indicators` must be among .* but got 'accuracy'"),
        ({"indicators": {"flow": -1.0}}, "`weights` must be numbers from 0 and not all 0"),
        ({"examples": 1}, "`examples` must be at least 2, which are compared, but got 1"),
        ({"reference": 1}, "`reference` must be at least 2 but got 1"),
    ],
)
def test_arguments_out_of_range_are_refused(data, arguments, message):
    with pytest.raises(ValueError, match=message):
        FreeScore(SPACE, data, **arguments)
    with pytest.raises(ValueError, match="`space` must be one whose architectures can be built"):
        FreeScore(nasbench201_space(), data)


def test_it_ranks_cells_of_nasbench201(data_folder, monkeypatch):
    """On real accuracies; published scores of its parts are .6 to .8."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "studies"))
    from nasbench201_on_cifar10 import ops, read_truth, skeleton, small_cifar10

    truth = read_truth(str(data_folder / "nasbench201" / "nb201_accuracy.csv.gz"), "cifar10_test_200ep")
    data = small_cifar10(str(data_folder / "cifar10"), seed=0)
    space = NetworkSpace(nasbench201_space(), skeleton(data))
    random = np.random.default_rng(11)
    cells = [space.sample(random) for _ in range(80)]
    came = [truth[ops(cell)] for cell in cells]
    assert spearmanr(FreeScore(space, data, reference=30)(cells), came).statistic > 0.75

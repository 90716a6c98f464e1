"""Networks that may be stopped at any time: what exits cost, what they answer, how both make one number."""

import numpy as np
import optuna
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import TINY_ANYTIME, architectures, counted_multiply_adds, few_digits, placed, small_skeleton

from optuna_nas import (
    GHN,
    AnytimeSpace,
    DiscreteNetwork,
    GHNRecipe,
    GHNSampler,
    MLflowTracker,
    NetworkSpace,
    Recipe,
    Search,
    anytime_accuracy,
    anytime_skeleton,
    anytime_space,
    plot_anytime,
    run,
    train,
)
from optuna_nas.networks import use_batch_statistics
from optuna_nas.plots.anytime import AnytimeCurve
from optuna_nas.storage.attributes import ANYTIME_CURVE
from optuna_nas.training import ImageClassification, evaluate

SPACE = NetworkSpace(TINY_ANYTIME, anytime_skeleton(2, 4, (1, 8, 8), 10, budget=2e4))
BUDGET = SPACE.skeleton.budget


@pytest.fixture(scope="module")
def data():
    return few_digits(96)


def choices(**changes):
    """Three nodes in a row and two in a row, convolutions at full size, exits at nodes 1 of both."""
    chosen = {}
    for kind, nodes in TINY_ANYTIME.blocks.items():
        for node in range(1, nodes + 1):
            path = f"{kind}_{node}"
            chosen |= {path: "nor_conv_1x1", f"{path}_inputs": str(node - 1), f"{path}_scale": "1"}
            chosen[f"{path}_exit"] = "exit" if node == 1 else "none"
    return SPACE.decode(chosen | changes)


# -- one number ---------------------------------------------------------------------------------------------------


def test_a_few_exits_by_hand():
    assert anytime_accuracy([25], [0.8], 100) == pytest.approx(0.8 * 0.75)
    assert anytime_accuracy([100], [0.8], 100) == 0
    assert anytime_accuracy([10, 20, 200], [0.5, 0.4, 0.9], 100) == pytest.approx((0.5 * 10 + 0.4 * 80) / 100)


@given(st.lists(st.tuples(st.integers(1, 120), st.floats(0, 1)), min_size=1, max_size=6), st.integers(1, 100))
def test_the_area_is_the_mean_over_budgets_of_the_latest_answer(exits, budget):
    costs, accuracies = sorted(cost for cost, _ in exits), [accuracy for _, accuracy in exits]
    answers = []
    for within in range(budget):
        known = [accuracy for cost, accuracy in zip(costs, accuracies, strict=True) if cost <= within + 0.5]
        answers.append(known[-1] if known else 0.0)
    assert anytime_accuracy(costs, accuracies, budget) == pytest.approx(np.mean(answers))


# -- the network --------------------------------------------------------------------------------------------------


class Bounded(torch.nn.Module):
    """Answers within a budget."""

    def __init__(self, network, budget):
        super().__init__()
        self.network, self.budget = network, budget

    def forward(self, images):
        return self.network.anytime(images, self.budget)


@settings(max_examples=20)
@given(st.data())
def test_an_exit_costs_what_is_computed_up_to_it(data):
    architecture = placed(data.draw(architectures(TINY_ANYTIME)), small_skeleton(TINY_ANYTIME))
    network = architecture.build().eval()
    images = torch.randn(2, 3, 8, 8)
    costs = network.graph.exit_costs
    assert list(costs) == sorted(costs)
    assert costs[-1] == architecture.cost().multiply_adds
    for number, cost in enumerate(costs, 1):
        assert counted_multiply_adds(Bounded(network, cost), images) == cost
        assert len(network.anytime(images, cost)) >= number


def test_exits_come_in_order_and_the_last_is_the_network():
    network = DiscreteNetwork(choices(), seed=0).double().eval()
    names = [network.graph.nodes[position].name for position in network.graph.exits]
    assert names == ["cell0/1/exit", "cell2/1/exit", "classifier"]
    images = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    first, _, last = network.anytime(images)
    assert torch.equal(last, network(images))
    assert torch.equal(first, network.anytime(images, network.graph.exit_costs[0])[-1])
    use_batch_statistics(network)
    network.train()
    last, *others = network(images)  # the last one first, as everybody else expects it
    for one, other in zip((*others, last), network.anytime(images), strict=True):
        assert torch.equal(one, other)


def test_an_exit_is_a_classifier_of_what_is_positive_in_its_node():
    network = DiscreteNetwork(choices(), seed=0).double().eval()
    images, part = torch.randn(3, 1, 8, 8, dtype=torch.float64), network.parts
    node = part["cell0/1/nor_conv_1x1"](F.relu(part["stem"](images)))
    expected = part["cell0/1/exit"].linear(F.relu(node).mean((2, 3)))
    torch.testing.assert_close(network.anytime(images)[0], expected)


@pytest.mark.parametrize("side", [8, 7])
def test_what_a_node_reads_is_averaged_down_and_what_it_gives_is_repeated_up(side):
    architecture = choices(cell1_2_scale="2", cell1_2="skip_connect", cell1_3="skip_connect")
    space = SPACE.with_skeleton(input_shape=(1, side, side))
    network = space.build(architecture, seed=0).double().eval()
    images, part, seen = torch.randn(3, 1, side, side, dtype=torch.float64), network.parts, []
    part["cell1/factorized_reduction"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(images)
    first = part["cell0/1/nor_conv_1x1"](F.relu(part["stem"](images)))
    halves = [slice(i, min(i + 2, side)) for i in range(0, side, 2)]
    expected = torch.zeros_like(first)
    for rows in halves:
        for columns in halves:
            expected[:, :, rows, columns] = first[:, :, rows, columns].mean((2, 3), keepdim=True)
    torch.testing.assert_close(seen[0], F.relu(expected))  # the reduction begins with a ReLU


def test_a_budget_below_the_first_exit_is_refused():
    network = DiscreteNetwork(choices(), seed=0)
    with pytest.raises(
        ValueError, match=r"`budget` must be enough for the first classifier, \d+ multiply-adds, but is 1;"
    ):
        network.anytime(torch.zeros(2, 1, 8, 8), 1)


def test_exits_and_scales_tell_functions_apart():
    assert choices().canonical() != choices(cell1_2_exit="exit").canonical()
    assert choices().canonical() != choices(cell1_2_scale="2").canonical()
    # Where the second of two skips works changes nothing, where the first does changes what is lost.
    halved = {"cell1_2": "skip_connect", "cell1_2_scale": "2", "cell1_3": "skip_connect"}
    assert choices(**halved).canonical() == choices(**halved, cell1_3_scale="2").canonical()
    assert choices(**halved).canonical() != choices(**{**halved, "cell1_2_scale": "1"}).canonical()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AnytimeSpace(("none",)), "`ops` must not hold 'none'"),
        (lambda: AnytimeSpace(("skip_connect",), ()), r"`nodes` must be one or more positive numbers but got \(\)"),
        (lambda: AnytimeSpace(("skip_connect",), (2, 0)), "`nodes` must be one or more positive numbers"),
        (lambda: anytime_space(5), "`nodes` must be a tuple of integers but got 5"),
        (lambda: AnytimeSpace(("skip_connect",), (2,), scales=(1, 2.0)), "`scales` must be a tuple of integers"),
        (lambda: AnytimeSpace(("skip_connect",), (2,), 0), "`max_inputs` must be at least 1"),
        (lambda: AnytimeSpace(("skip_connect",), (2,), scales=(2, 4)), "`scales` must begin with 1"),
        (lambda: AnytimeSpace(("skip_connect",), (2,), scales=(1, 2, 3)), "each a multiple of the one before"),
        (lambda: choices(cell1_1_scale="3"), r"`params\['cell1_1_scale'\]` must be one of the space's 2 choices"),
        (lambda: anytime_skeleton(0, budget=1.0), "`cells` must be at least 1"),
        (lambda: anytime_skeleton(budget=-1.0), "`budget` must be a number of multiply-adds but got -1"),
        (lambda: SPACE.with_skeleton(budget=0), "`skeleton.budget` must be the maximum"),
        (lambda: SPACE.with_skeleton(auxiliary=True), "`skeleton.auxiliary` must be False"),
    ],
)
def test_refuses_with_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_papers_space_has_cells_of_24_16_and_8_nodes():
    space, between = anytime_space(), "factorized_reduction"
    assert dict(space.blocks) == {"cell1": 24, "cell2": 16, "cell3": 8}
    assert len(space.options()) == 4 * 48
    assert len(space.ops) == 8
    assert set(space.options()["cell1_05_scale"]) == {"1", "2", "4"}
    assert anytime_skeleton(budget=1.0).cells == ("cell1", between, "cell2", between, "cell3")


# -- training, scoring, searching ---------------------------------------------------------------------------------


def test_all_exits_learn_alike(data):
    recipe = Recipe(epochs=1, batch_size=32, learning_rate=0.1, momentum=0.0, weight_decay=0.0, clip_norm=0.0)
    network, plain = (DiscreteNetwork(choices(), seed=0) for _ in range(2))
    seen, losses = [], []
    train(network, data, recipe, splits=["weights"], on_epoch=seen.append)
    batches = list(data.batches(["weights"], 32, seed=0, epoch=0))
    for step, (images, labels) in enumerate(batches):
        loss = torch.stack([F.cross_entropy(scores, labels) for scores in plain.train()(images)]).mean()
        plain.zero_grad()
        loss.backward()
        losses.append(loss.item())
        rate = 0.1 * 0.5 * (1 + np.cos(np.pi * step / len(batches)))
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter -= rate * parameter.grad
    assert seen[0].train_loss == pytest.approx(np.mean(losses), rel=1e-5)
    for one, other in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_accuracy_of_a_network_with_exits_is_that_of_a_prediction_stopped_anywhere(data):
    network = DiscreteNetwork(choices(), seed=0)
    train(network, data, Recipe(epochs=2, batch_size=16, learning_rate=0.05))
    loss, accuracy, accuracies, error = evaluate(network, data, "report")
    images, labels = batch = next(iter(data.batches(["report"], 1000)))
    with torch.no_grad():
        outputs = network.eval().anytime(images)
        sums = ImageClassification().sums(network, batch)
    assert accuracies == pytest.approx([float((scores.argmax(1) == labels).float().mean()) for scores in outputs])
    losses = (sums[:, 0] / len(labels)).tolist()
    assert losses == pytest.approx([float(F.cross_entropy(scores, labels)) for scores in outputs], rel=1e-4)
    assert loss == pytest.approx(np.mean(losses))
    each = torch.stack([F.cross_entropy(scores, labels, reduction="none") for scores in outputs]).mean(0)
    assert error == pytest.approx(float(each.std()) / len(labels) ** 0.5, rel=1e-4)
    assert accuracy == pytest.approx(anytime_accuracy(network.exit_costs, accuracies, BUDGET))


def test_a_network_that_drew_no_exit_is_judged_as_the_others_are(data):
    without = choices(cell1_1_exit="none", cell2_1_exit="none")
    network = without.build(seed=0)
    seen = []
    train(network, data, Recipe(epochs=1, batch_size=16, learning_rate=0.05), on_epoch=seen.append)
    found = evaluate(network, data, "report")
    (accuracy,) = found.exit_metrics
    share = 1 - network.graph.cost.multiply_adds / BUDGET
    assert found.metric == pytest.approx(share * accuracy)
    assert seen[0].validation_metric == pytest.approx(share * seen[0].exit_metrics[0])
    ghn, plain = (GHN(space, GHNRecipe(phases=1, batch_size=32)) for space in (SPACE, SPACE.with_skeleton(budget=1e9)))
    ghn.fit(data, 1)
    plain.network.load_state_dict(ghn.network.state_dict())
    plain.attach(data)
    (score,), (accuracy,) = ghn.score([without]), plain.score([without])  # the second is nearly the plain accuracy
    assert score == pytest.approx(share * accuracy, rel=1e-3)
    assert score > 0


def test_a_ghn_learns_on_scales_that_it_knows():
    coarser = AnytimeSpace(TINY_ANYTIME.ops, (2, 2), scales=(1, 2, 4))
    with pytest.raises(ValueError, match="`training_space` must use scales of `space` but has 4"):
        GHN(SPACE, training_space=NetworkSpace(coarser, SPACE.skeleton))


def test_a_ghn_scores_by_the_area_under_the_curve(data):
    ghn = GHN(SPACE, GHNRecipe(phases=1, batch_size=32))
    ghn.fit(data, 2)
    images, labels = next(iter(data.batches(["report"], 512)))
    random = np.random.default_rng(0)
    for architecture in [choices(), *(SPACE.sample(random) for _ in range(3))]:
        network = architecture.build().train()
        network.load_state_dict(ghn.generate([architecture])[0], strict=False)
        use_batch_statistics(network)
        accuracies = [float((scores.argmax(1) == labels).double().mean()) for scores in network.anytime(images)]
        expected = anytime_accuracy(network.exit_costs, accuracies, BUDGET)
        assert ghn.score([architecture])[0] == pytest.approx(expected)


def test_the_scale_of_a_node_is_one_of_its_properties():
    ghn = GHN(SPACE, GHNRecipe(phases=1))
    graph = choices(**{f"cell1_{node}_scale": "2" for node in (1, 2, 3)}).graph()
    batch = ghn.batch([graph])
    scales = torch.cat([module.properties[:, 1] for module in batch.modules]).tolist()
    for position, row in batch.rows[0].items():
        assert (scales[row] >= 0) == (graph.nodes[position].scale == 2), graph.nodes[position].name
    # Three ops, an exit, the input brought down; sums of one term are read as their term.
    assert sum(scale >= 0 for scale in scales) == 3 + 1 + 1


def test_a_study_of_anytime_networks_from_the_pool_to_the_pictures(data, tmp_path):
    from mlflow import MlflowClient

    ghn = GHN(SPACE, GHNRecipe(phases=1, batch_size=32))
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    wanted = Search(
        name="anytime",
        space=SPACE,
        data=data,
        recipe=Recipe(epochs=1, batch_size=32),
        sampler=GHNSampler(SPACE, ghn, data=data, budget=1, pool_size=10, trials_per_round=5, seed=0),
        trials=3,
        folder=tmp_path / "runs",
        tracking=MLflowTracker(uri),
    )
    study = run(wanted).study
    for trial in study.trials:
        curve = trial.user_attrs[ANYTIME_CURVE]
        assert curve["budget"] == BUDGET
        area = anytime_accuracy(curve["multiply_adds"], curve["accuracy"], curve["budget"])
        assert trial.value == pytest.approx(area, abs=1e-5)
    figure = plot_anytime(study)
    assert f"{study.best_value:.4f}" in figure.axes[0].get_title(loc="left")
    assert len(figure.axes[0].get_lines()) == 3
    client = MlflowClient(uri)
    runs = [
        found for experiment in client.search_experiments() for found in client.search_runs([experiment.experiment_id])
    ]
    (parent,) = (found for found in runs if found.data.tags["optuna_nas.kind"] == "study")
    assert "anytime.png" in {file.path for file in client.list_artifacts(parent.info.run_id)}


def test_a_curve_begins_with_nothing_and_holds_each_answer_until_the_next():
    curve = AnytimeCurve(0, 0.5, (10, 20), (0.4, 0.7), 50)
    assert curve.steps() == ([10, 10, 20, 20, 50], [0.0, 0.4, 0.4, 0.7, 0.7])


def test_a_study_without_exits_has_no_such_picture():
    with pytest.raises(ValueError, match="must have finished trials with early exits"):
        plot_anytime(optuna.create_study())

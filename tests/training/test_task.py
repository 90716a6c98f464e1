"""What a network is trained for: regression's metrics are scikit-learn's, a task of one's own trains like ours."""

import math
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import optuna
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, log_loss, mean_absolute_error, mean_squared_error, r2_score
from strategies import few_digits
from torch import nn
from torch.utils.data import Dataset

from optuna_nas.data import REPORT, TEST, TRAIN, Batch, DatasetData, TensorData
from optuna_nas.networks import NetworkSpace
from optuna_nas.objective import TrainObjective, TrialRun
from optuna_nas.objective.trial_training import network_path
from optuna_nas.space import CellKind, CellSpace, Skeleton
from optuna_nas.training import (
    Evaluation,
    ImageClassification,
    Recipe,
    Regression,
    SummedTask,
    Task,
    TrainingStopped,
    evaluate,
    train,
)
from optuna_nas.training.task import standard_error

METRICS = {
    "r2": lambda y, p: r2_score(y.ravel(), p.ravel()),
    "rmse": lambda y, p: mean_squared_error(y.ravel(), p.ravel()) ** 0.5,
    "mae": lambda y, p: mean_absolute_error(y.ravel(), p.ravel()),
}
DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(200, 4)).astype(np.float32)
Y = (X @ np.array([1.0, -2.0, 0.5, 0.0]) + 0.1 * DRAW.normal(size=200)).astype(np.float32)
DATA = TensorData.from_arrays(X, Y)
RECIPE = Recipe(epochs=2, batch_size=20, learning_rate=0.05, weight_decay=0.0)


def linear(outputs=1, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(4, outputs)


def batches_of(x, y, size):
    return [Batch(torch.from_numpy(x[i : i + size]), torch.from_numpy(y[i : i + size])) for i in range(0, len(x), size)]


# -- regression ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@given(
    shape=st.sampled_from([(), (1,), (3,)]),
    n_examples=st.integers(2, 40),
    size=st.integers(1, 40),
    offset=st.sampled_from([0.0, 100.0]),
    seed=st.integers(0, 1000),
)
def test_a_metric_of_several_batches_is_that_of_scikit_learn(metric, shape, n_examples, size, offset, seed):
    draw = np.random.default_rng(seed)
    y = (offset + draw.normal(size=(n_examples, *shape))).astype(np.float32)
    p = (y + draw.normal(size=y.shape)).astype(np.float32)
    task = Regression(metric)
    found = task.evaluation(nn.Identity(), batches_of(p, y, size))
    expected = METRICS[metric](y.astype(np.float64), p.astype(np.float64))
    assert found.metric == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert found.loss == pytest.approx(mean_squared_error(y.ravel(), p.ravel()), rel=1e-5)
    assert found.exit_metrics == (found.metric,)
    assert task.evaluate(nn.Identity(), batches_of(p, y, size)) == found.metric


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_the_error_of_a_loss_is_that_of_the_losses_of_single_examples(shape):
    y = DRAW.normal(size=(23, *shape)).astype(np.float32)
    p = (y + DRAW.normal(size=y.shape)).astype(np.float32)
    single = [Regression().evaluation(nn.Identity(), [one]).loss for one in batches_of(p, y, 1)]
    found = Regression().evaluation(nn.Identity(), batches_of(p, y, 5))
    assert found.loss_error == pytest.approx(np.std(single, ddof=1) / 23**0.5, rel=1e-5)
    scores, labels = DRAW.normal(size=(23, 4)).astype(np.float32), DRAW.integers(0, 4, 23)
    single = [ImageClassification().evaluation(nn.Identity(), [one]).loss for one in batches_of(scores, labels, 1)]
    found = ImageClassification().evaluation(nn.Identity(), batches_of(scores, labels, 5))
    assert found.loss_error == pytest.approx(np.std(single, ddof=1) / 23**0.5, rel=1e-5)
    assert math.isnan(ImageClassification().evaluation(nn.Identity(), batches_of(scores[:1], labels[:1], 1)).loss_error)
    for task, whole in ((Regression(), (p, y)), (ImageClassification(), (scores, labels))):
        with_empty = [*batches_of(*whole, 5), Batch(*(torch.from_numpy(values[:0]) for values in whole))]
        assert task.evaluation(nn.Identity(), with_empty) == task.evaluation(nn.Identity(), batches_of(*whole, 5))


@pytest.mark.parametrize(("mean", "square"), [(math.nan, math.nan), (math.inf, math.inf), (1.0, math.nan)])
def test_what_is_not_finite_has_no_error(mean, square):
    assert math.isnan(standard_error(mean, square, 10))


class FlatSums(SummedTask):
    """A task whose sums are a row, and whose metric a single batch of one class does not have."""

    metric, direction = "accuracy", "maximize"

    def loss(self, model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    def sums(self, model, batch):
        scores, labels = model(batch[0]), batch[1]
        right = (scores.argmax(1) == labels).sum()
        counts = [
            F.cross_entropy(scores, labels, reduction="sum"),
            right,
            (labels == 0).sum(),
            torch.tensor(len(labels)),
        ]
        return torch.stack([value.double() for value in counts])

    def summarise(self, model, sums):
        loss, right, of_first, n_examples = sums.tolist()
        if of_first in (0, n_examples):
            raise ValueError("one class only")
        return Evaluation(loss / n_examples, right / n_examples)


def test_a_task_of_ones_own_is_evaluated_without_an_error_where_batches_have_none():
    scores, labels = DRAW.normal(size=(24, 2)).astype(np.float32), np.arange(24) % 2
    found = FlatSums().evaluation(nn.Identity(), batches_of(scores, labels, 2))
    assert found.loss == pytest.approx(log_loss(labels, torch.softmax(torch.tensor(scores), 1).numpy()), rel=1e-5)
    assert found.loss_error > 0
    assert math.isnan(FlatSums().evaluation(nn.Identity(), batches_of(scores, labels, 1)).loss_error)


def test_a_loss_of_numpy_is_noted_as_a_number():
    data = few_digits(32)
    cells = CellSpace(("skip_connect", "none"), 1, 1, (CellKind("cell"),))
    space = NetworkSpace(cells, Skeleton(("cell",), 2, (1, 8, 8), 10))
    objective = TrainObjective(space, data, Recipe(epochs=1, batch_size=16), NumpyLoss())
    study = optuna.create_study(storage="sqlite://", direction="maximize")
    study.enqueue_trial({"cell_0_1": "skip_connect"})
    study.optimize(objective, n_trials=1)
    assert isinstance(study.trials[0].user_attrs["optuna_nas:validation_loss"][0], float)


class NumpyLoss(ImageClassification):
    """Image classification that tells its loss as NumPy does."""

    def summarise(self, model, sums):
        found = super().summarise(model, sums)
        return found._replace(loss=np.float32(found.loss), loss_error=np.float32(found.loss_error))


def test_predictions_may_be_columns_of_one():
    y = DRAW.normal(size=10).astype(np.float32)
    p = DRAW.normal(size=(10, 1)).astype(np.float32)
    assert Regression("mae").evaluate(nn.Identity(), batches_of(p, y, 3)) == pytest.approx(
        mean_absolute_error(y, p[:, 0]), rel=1e-6
    )


def test_larger_is_better_for_r2_and_worse_for_errors():
    assert [Regression(metric).direction for metric in METRICS] == ["maximize", "minimize", "minimize"]
    assert [Regression(metric).oriented(2.0) for metric in METRICS] == [2.0, -2.0, -2.0]
    assert Regression().metric == "r2"
    assert Regression("mae").describe() == {"task": "Regression", "metric": "mae", "direction": "minimize"}


def test_r2_of_equal_targets_is_0_rather_than_a_division_by_it():
    y = np.full(6, 2.0, dtype=np.float32)
    assert Regression().evaluate(nn.Identity(), batches_of(y + 1, y, 4)) == 0


def test_the_loss_is_the_mean_squared_error_and_has_its_gradient():
    network, other = linear(), linear()
    batch = next(DATA.batches(TRAIN, 16, epoch=0))
    Regression().loss(network, batch).backward()
    ((other(batch.inputs)[:, 0] - batch.targets) ** 2).mean().backward()
    torch.testing.assert_close(network.weight.grad, other.weight.grad)


def test_a_regression_learns_and_reports_what_evaluate_finds():
    history, network = [], linear()
    result = train(network, DATA, replace(RECIPE, epochs=10), Regression(), on_epoch=history.append)
    assert history[-1] == result.last
    assert result.last.validation_metric > 0.95
    found = evaluate(network, DATA, REPORT, Regression())
    assert (result.last.validation_loss, result.last.validation_metric) == (found.loss, found.metric)
    y = DATA.targets[DATA.splits[REPORT]].numpy()
    p = network(DATA.inputs[DATA.splits[REPORT]]).detach()[:, 0].numpy()
    assert found.metric == pytest.approx(r2_score(y, p), abs=1e-6)
    assert [epoch.train_metric for epoch in history] == [None] * 10
    assert history[0].train_loss > history[-1].train_loss > 0


@pytest.mark.parametrize("batch_size", [1, 7, 40, 512])
def test_no_result_depends_on_the_batches_of_an_evaluation(batch_size):
    network = linear()
    whole = evaluate(network, DATA, REPORT, Regression("rmse"))
    assert evaluate(network, DATA, REPORT, Regression("rmse"), batch_size=batch_size)[:2] == pytest.approx(whole[:2])


def test_mixed_precision_leaves_targets_as_they_are():
    # In bfloat16 a target of 100.3 would be 100.5.
    data = TensorData.from_arrays(X, 100.3 + 0 * Y)
    network = linear()
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    found = evaluate(network, data, REPORT, Regression("mae"), precision="bfloat16")
    assert found.metric == pytest.approx(100.3, rel=1e-6)
    batch = next(data.batches(TRAIN, 16, epoch=0))
    with torch.autocast("cpu", torch.bfloat16):
        loss = Regression().loss(network, batch)
    assert loss.item() == pytest.approx(100.3**2, rel=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Regression("mse"), r"`metric` must be one of \('r2', 'rmse', 'mae'\) but got 'mse'"),
        (
            lambda: Regression().loss(linear(3), Batch(torch.zeros(5, 4), torch.zeros(5, 2))),
            r"`targets` must have the shape of the predictions \(5, 3\) but have \(5, 2\); give the network as many",
        ),
        (
            lambda: Regression().loss(linear(3), Batch(torch.zeros(5, 4), torch.zeros(5))),
            r"`targets` must have the shape of the predictions \(5, 3\) but have \(5,\)",
        ),
        (lambda: ImageClassification(label_smoothing=1.0), r"`label_smoothing` must be in \[0, 1.0\) but got 1.0"),
        (lambda: ImageClassification(label_smoothing=-0.1), r"`label_smoothing` must be in \[0, 1.0\) but got -0.1"),
        (lambda: ImageClassification(label_smoothing=math.nan), r"`label_smoothing` must be in .* but got nan"),
        (lambda: ImageClassification(auxiliary_weight=-0.4), r"`auxiliary_weight` must be in \[0, inf\) but got -0.4"),
        (lambda: ImageClassification(auxiliary_weight=math.inf), r"`auxiliary_weight` must be in \[0, inf\) .* inf"),
    ],
)
def test_refuses_with_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- classification -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 50])
def test_accuracy_and_loss_of_several_batches_are_those_of_scikit_learn(size):
    scores, labels = DRAW.normal(size=(50, 3)).astype(np.float32), np.arange(50) % 3
    found = ImageClassification(label_smoothing=0.5).evaluation(nn.Identity(), batches_of(scores, labels, size))
    assert found.metric == accuracy_score(labels, scores.argmax(1))
    probabilities = torch.from_numpy(scores).softmax(1).numpy()
    assert found.loss == pytest.approx(log_loss(labels, probabilities), rel=1e-5)  # without smoothing
    assert found.exit_metrics == (found.metric,)
    assert (ImageClassification.metric, ImageClassification.direction) == ("accuracy", "maximize")


class Exits(nn.Module):
    """The first two inputs are the scores of an early exit, the others those of the end."""

    exit_costs, budget = (20, 60), 100.0

    def forward(self, images):
        return images[:, 2:], images[:, :2]

    def anytime(self, images):
        return [images[:, :2], images[:, 2:]]


class PassesOn(nn.Module):
    """Has the attributes of another module, as what `torch.compile` returns."""

    def __init__(self, module):
        super().__init__()
        self.inner = module

    def __getattr__(self, name):
        return super().__getattr__(name) if name in ("inner", "_modules") else getattr(self.inner, name)

    def forward(self, images):
        return self.inner(images)


@pytest.mark.parametrize("network", [Exits(), PassesOn(Exits())], ids=["itself", "attributes passed on"])
def test_any_module_with_exits_and_a_budget_is_judged_by_the_area_under_its_curve(network):
    batch = Batch(torch.tensor([[1.0, 0, 0, 1], [1, 0, 0, 1], [1, 0, 0, 1], [0, 1, 0, 1]]), torch.ones(4).long())
    found = ImageClassification().evaluation(network, [batch])
    assert found.exit_metrics == (0.25, 1.0)
    assert found.metric == pytest.approx((0.25 * 40 + 1.0 * 40) / 100)


@pytest.mark.parametrize("network", [Exits(), PassesOn(Exits())], ids=["itself", "attributes passed on"])
def test_exits_weigh_alike_in_the_loss_unlike_an_auxiliary_head(network):
    images, labels = torch.from_numpy(DRAW.normal(size=(6, 4)).astype(np.float32)), torch.arange(6) % 2
    losses = [F.cross_entropy(scores, labels) for scores in (images[:, :2], images[:, 2:])]
    found = ImageClassification(auxiliary_weight=0.1).loss(network, Batch(images, labels))
    torch.testing.assert_close(found, sum(losses) / 2)


# -- a task of one's own ------------------------------------------------------------------------------------------


class Sequences(Dataset):
    """Sequences that count up from a random token, as dictionaries."""

    def __len__(self):
        return 120

    def __getitem__(self, index):
        return {"tokens": (torch.arange(6) + index) % 5, "index": index}


@dataclass(frozen=True)
class NextToken(Task):
    """Perplexity of the next token, smaller is better; no inputs and targets, a batch is a dictionary."""

    scale: float = 1.0

    metric = "perplexity"
    direction = "minimize"

    def loss(self, model, batch):
        tokens = batch["tokens"]
        return self.scale * F.cross_entropy(model(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:])

    def evaluate(self, model, batches):
        losses = [self.loss(model, batch).item() for batch in batches]
        return math.exp(sum(losses) / len(losses))


SEQUENCES = DatasetData(Sequences())
TOKENS = Recipe(epochs=4, batch_size=12, optimizer="adamw", learning_rate=0.05)


def language_model(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 5))


def state(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_task_of_ones_own_trains_and_is_reported():
    history, network = [], language_model()
    result = train(network, SEQUENCES, TOKENS, NextToken(), on_epoch=history.append)
    assert history[0].validation_metric > history[-1].validation_metric
    assert 1 < result.last.validation_metric < 1.5
    assert result.last.validation_metric == evaluate(network, SEQUENCES, REPORT, NextToken()).metric
    assert math.isnan(result.last.validation_loss)  # it has not told one
    assert result.last.train_metric is None
    assert history[0].train_loss > history[-1].train_loss > 0


def test_the_training_loss_of_a_task_of_ones_own_is_the_mean_over_what_was_seen():
    history, network = [], language_model()
    recipe = replace(TOKENS, epochs=1, learning_rate=1e-9, weight_decay=0.0)  # weights hardly move
    train(network, SEQUENCES, recipe, NextToken(), on_epoch=history.append)
    losses = [NextToken().loss(network, batch).item() for batch in SEQUENCES.batches(TRAIN, 12, epoch=0)]
    assert history[0].train_loss == pytest.approx(np.mean(losses), abs=1e-5)


def test_a_training_of_a_task_of_ones_own_goes_on_to_the_same_numbers(tmp_path):
    file, steps = tmp_path / "training", []
    expected, resumed = language_model(), language_model(seed=9)
    train(expected, SEQUENCES, TOKENS, NextToken())
    with pytest.raises(TrainingStopped):
        train(
            language_model(),
            SEQUENCES,
            TOKENS,
            NextToken(),
            on_step=steps.append,
            checkpoint=file,
            should_stop=lambda: len(steps) == 9,
        )
    with pytest.raises(ValueError, match=r"`checkpoint` must be of the same configuration but .* differs in task;"):
        train(resumed, SEQUENCES, TOKENS, NextToken(scale=2.0), checkpoint=file)
    train(resumed, SEQUENCES, TOKENS, NextToken(), checkpoint=file)
    assert same(state(resumed), state(expected))


def test_memory_that_suffices_for_halves_of_any_batch_gives_the_same_numbers():
    class Limited(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = language_model()

        def forward(self, tokens):
            if len(tokens) > 6 and self.training:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return self.model(tokens)

    limited, plain = Limited(), language_model()
    # Adam, or a clipped gradient, would not mind a loss that is too large.
    recipe = replace(TOKENS, optimizer="sgd", learning_rate=0.5, clip_norm=0.0)
    assert train(limited, SEQUENCES, recipe, NextToken()).accumulation == 2
    train(plain, SEQUENCES, recipe, NextToken())
    for ours, theirs in zip(limited.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_task_of_sums_needs_two_methods_and_a_loss():
    class Share(SummedTask):
        """Share of predictions within 0.5 of the target."""

        metric, direction = "share_within", "maximize"

        def loss(self, model, batch):
            return F.l1_loss(model(batch.inputs)[:, 0], batch.targets)

        def sums(self, model, batch):
            errors = (model(batch.inputs)[:, 0] - batch.targets).abs()
            return torch.stack([errors.sum(), (errors < 0.5).sum(), torch.tensor(float(len(errors)))]).double()[None]

        def summarise(self, model, sums):
            error, within, n_examples = sums[0].tolist()
            return Evaluation(error / n_examples, within / n_examples)

    network = linear()
    result = train(network, DATA, replace(RECIPE, epochs=8), Share())
    errors = (network(DATA.inputs[DATA.splits[REPORT]])[:, 0] - DATA.targets[DATA.splits[REPORT]]).abs().detach()
    assert result.last.validation_metric == pytest.approx((errors < 0.5).double().mean().item())
    assert result.last.validation_loss == pytest.approx(errors.mean().item(), rel=1e-5)
    assert result.last.validation_metric > 0.8
    assert math.isnan(result.last.validation_loss_error)  # of one batch
    batches = list(DATA.batches([REPORT], 2))
    means = [Share().loss(network, batch).item() for batch in batches]
    error = np.std(means, ddof=1) / len(means) ** 0.5
    assert Share().evaluation(network, batches).loss_error == pytest.approx(error, rel=1e-4)
    assert math.isnan(Share().evaluation(network, batches[:9]).loss_error)


def test_what_decides_a_result_is_in_the_description():
    class Bare(Task):
        metric, direction = "bare", "maximize"
        loss = evaluate = None

    assert NextToken(2.0).describe() == {
        "task": "NextToken",
        "metric": "perplexity",
        "direction": "minimize",
        "scale": 2.0,
    }
    assert Bare().describe() == {"task": "Bare", "metric": "bare", "direction": "maximize"}


# -- networks that hear how far they are --------------------------------------------------------------------------


def test_any_network_with_a_step_context_hears_its_progress_and_a_seeded_generator():
    class Hearing(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.inside, self.heard = linear(), False, []

        @contextmanager
        def step_context(self, progress, generator):
            self.heard.append((progress, torch.rand((), generator=generator).item()))
            self.inside = True
            yield
            self.inside = False

        def forward(self, inputs):
            assert self.inside == self.training
            return self.linear(inputs)

    first, again, other = Hearing(), Hearing(), Hearing()
    for network, seed in ((first, 0), (again, 0), (other, 1)):
        train(network, DATA, replace(RECIPE, batch_size=40, epochs=4, seed=seed), Regression())
    assert [progress for progress, _ in first.heard] == [0, 0, 0, 0.25, 0.25, 0.25, 0.5, 0.5, 0.5, 0.75, 0.75, 0.75]
    assert len({drawn for _, drawn in first.heard}) == 12
    assert first.heard == again.heard != other.heard


# -- in a study ---------------------------------------------------------------------------------------------------

CELLS = CellSpace(("skip_connect", "nor_conv_1x1", "nor_conv_3x3"), 1, 1, (CellKind("cell"),))


def image_regression():
    """Images whose mean is what to predict."""
    x = np.random.default_rng(1).normal(size=(160, 1, 6, 6)).astype(np.float32)
    x += np.linspace(-2, 2, 160, dtype=np.float32)[:, None, None, None]
    return TensorData.from_arrays(x, x.mean((1, 2, 3)), normalize=False)


@pytest.mark.parametrize("metric", METRICS)
def test_a_study_of_regressions_returns_their_metric_in_their_direction(metric):
    data = image_regression()
    space = NetworkSpace(CELLS, Skeleton(("cell",), 4, data.input_shape, data.outputs))
    recipe = Recipe(epochs=4, batch_size=24, learning_rate=0.05)
    objective = TrainObjective(space, data, recipe, Regression(metric), reuse_duplicates=False)
    assert objective.metric == metric
    assert objective.directions == (Regression(metric).direction,)
    study = optuna.create_study(directions=objective.directions, sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=3)
    for trial in study.trials:
        network = space.decode(trial.params).build(seed=0)
        history = []
        train(network, data, recipe, Regression(metric), on_epoch=history.append)
        assert trial.intermediate_values == {epoch.epoch: epoch.validation_metric for epoch in history}
        assert trial.value == evaluate(network, data, REPORT, Regression(metric)).metric
    best = max if metric == "r2" else min
    assert study.best_value == best(trial.value for trial in study.trials)


class TopTwo(Task):
    """A task of one's own for images: correct if the label is one of the two best."""

    metric, direction = "top_two", "maximize"

    def loss(self, model, batch):
        return F.cross_entropy(model(batch.inputs), batch.targets)

    def evaluate(self, model, batches):
        hits = [(model(x).topk(2).indices == y[:, None]).any(1).double() for x, y in batches]
        return torch.cat(hits).mean().item()


def test_a_study_of_a_task_of_ones_own_names_and_judges_by_its_metric(tmp_path):
    x = np.random.default_rng(1).normal(size=(160, 1, 6, 6)).astype(np.float32)
    data = TensorData.from_arrays(x + (np.arange(160) % 4)[:, None, None, None], np.arange(160) % 4)
    heard = []

    class Listener:
        def trial_started(self, trial, metrics): ...
        def progress(self, trial_number, fraction): ...
        def epoch(self, trial_number, step, metrics):
            heard.append(metrics)

    space = NetworkSpace(CELLS, Skeleton(("cell",), 4, data.input_shape, data.outputs))
    recipe = Recipe(epochs=6, batch_size=24, learning_rate=0.05)
    objective = TrainObjective(space, data, recipe, TopTwo(), run=TrialRun(tmp_path, Listener()))
    study = optuna.create_study(directions=objective.directions)
    study.enqueue_trial({"cell_0_1": "nor_conv_3x3"})
    study.optimize(objective, n_trials=1)
    assert [metrics["top_two"] for metrics in heard] == list(study.trials[0].intermediate_values.values())
    assert study.trials[0].value == heard[-1]["top_two"] > 0.5
    assert "train_top_two" not in heard[-1]
    network = space.decode(study.trials[0].params).build(seed=0)
    train(network, data, recipe, TopTwo())
    assert objective.judge(network_path(tmp_path, 0)) == evaluate(network, data, TEST, TopTwo()).metric

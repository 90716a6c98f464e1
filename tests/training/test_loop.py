"""Promises of the training loop: plain PyTorch's numbers, the same numbers after any interruption, outcomes by name."""

import math
import multiprocessing
import os
import random
import re
import signal
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from trainings import (
    AUGMENTED,
    DATA,
    RECIPE,
    TASK,
    Wrapped,
    close,
    darts_network,
    images,
    not_finite,
    plain_training,
    same,
    small_network,
    state,
    without_seconds,
)

from optuna_nas.data import CHOICES, REPORT, TEST, TRAIN, WEIGHTS
from optuna_nas.networks import DiscreteNetwork
from optuna_nas.training import (
    ImageClassification,
    Recipe,
    TrainingDiverged,
    TrainingStopped,
    evaluate,
    load_tensors,
    save_tensors,
    train,
)
from optuna_nas.training.device import is_out_of_memory
from optuna_nas.training.evaluation import EVALUATION_BATCH
from optuna_nas.training.rules import settings_of

# --- the same numbers as plain PyTorch --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "task"),
    [
        ({}, TASK),
        ({"momentum": 0.0, "weight_decay": 0.0, "clip_norm": 0.0}, TASK),
        ({"weight_decay": 0.1, "warmup_fraction": 0.5, "final_learning_rate": 0.01}, TASK),
        ({"clip_norm": 0.1, "seed": 4}, ImageClassification(label_smoothing=0.3)),
        ({"optimizer": "adamw", "learning_rate": 0.01, "weight_decay": 0.5}, TASK),
    ],
)
def test_training_equals_a_plain_loop_to_the_bit(changes, task):
    recipe = replace(RECIPE, **changes)
    network, plain = small_network(norm=True), small_network(norm=True)
    untrained = state(network)
    train(network, AUGMENTED, recipe, task)
    plain_training(plain, AUGMENTED, recipe, task)
    assert same(state(network), state(plain))
    assert not same(state(network), untrained)


@pytest.mark.parametrize("auxiliary_weight", [0.0, 0.4])
def test_an_auxiliary_head_equals_a_plain_loop_to_the_bit(auxiliary_weight):
    recipe, task = replace(RECIPE, epochs=1, batch_size=24), ImageClassification(auxiliary_weight=auxiliary_weight)
    network, plain = darts_network(), darts_network()
    train(network, DATA, recipe, task)
    plain_training(plain, DATA, recipe, task)
    assert same(state(network), state(plain))


@pytest.mark.parametrize(
    ("changes", "task"),
    [
        ({}, ImageClassification(label_smoothing=0.2)),
        ({"clip_norm": 0.05}, TASK),
        ({"weight_decay": 0.3}, TASK),
        ({"optimizer": "adamw"}, TASK),
    ],
)
def test_every_field_acts(changes, task):
    def trained(*how):
        network = small_network()
        train(network, DATA, *how)
        return state(network)

    assert not same(trained(RECIPE), trained(replace(RECIPE, **changes), task))


def one_step(recipe, task=TASK):
    """Take one step of all 72 training images; returns (weights before, weights after, loss's gradient by hand)."""
    network = small_network()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    (batch,) = DATA.batches(TRAIN, 72, epoch=0)
    log_probability = small_network()
    scores = log_probability(batch.inputs).log_softmax(1)
    smoothing = task.label_smoothing
    wanted = F.one_hot(batch.targets, 3) * (1 - smoothing) + smoothing / 3
    (-(wanted * scores).sum(1).mean()).backward()
    gradient = {name: p.grad for name, p in log_probability.named_parameters()}
    norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradient.values()))
    if recipe.clip_norm and norm > recipe.clip_norm:
        gradient = {name: g * (recipe.clip_norm / norm) for name, g in gradient.items()}
    train(network, DATA, replace(recipe, epochs=1, batch_size=72), task)
    return before, {name: p.detach() for name, p in network.named_parameters()}, gradient, norm


@pytest.mark.parametrize("smoothing", [0.0, 0.4])
@pytest.mark.parametrize("clip_norm", [0.0, 0.01])
def test_one_sgd_step_by_hand(smoothing, clip_norm):
    recipe = replace(RECIPE, clip_norm=clip_norm, weight_decay=0.01)
    before, after, gradient, norm = one_step(recipe, ImageClassification(label_smoothing=smoothing))
    assert norm > 0.02  # clipping acts
    close(after, {name: w - 0.1 * (gradient[name] + 0.01 * w) for name, w in before.items()})


def test_one_adamw_step_by_hand():
    before, after, gradient, _ = one_step(replace(RECIPE, optimizer="adamw", weight_decay=0.2, learning_rate=0.01))
    # In the first step both moments are the gradient's own: the step is its sign, plus the decoupled decay.
    expected = {n: w * (1 - 0.01 * 0.2) - 0.01 * gradient[n] / (gradient[n].abs() + 1e-8) for n, w in before.items()}
    close(after, expected)


@pytest.mark.parametrize(
    ("warmup_fraction", "final", "expected"),
    [
        (0.0, 0.0, [1, 0.853553, 0.5, 0.146447]),
        (0.5, 0.0, [0.5, 1, 1, 0.5]),
        (0.25, 0.2, [1, 1, 0.8, 0.4]),
        (1.0, 0.0, [0.25, 0.5, 0.75, 1]),
    ],
)
def test_learning_rate_warms_up_and_falls_along_a_cosine(warmup_fraction, final, expected):
    recipe = Recipe(4, 72, learning_rate=1.0, final_learning_rate=final, warmup_fraction=warmup_fraction)
    history = []
    train(small_network(), DATA, recipe, on_epoch=history.append)  # one step an epoch
    assert [result.learning_rate for result in history] == pytest.approx(expected, abs=1e-6)


def test_an_exponential_decay_is_pytorchs_stepped_once_an_epoch():
    recipe = replace(RECIPE, epochs=3, schedule="exponential", decay_per_epoch=0.5, clip_norm=0.0)
    network, plain, history = small_network(norm=True), small_network(norm=True), []
    train(network, AUGMENTED, recipe, on_epoch=history.append)
    optimizer = torch.optim.SGD(plain.parameters(), 0.1, recipe.momentum, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for epoch in range(3):
        assert history[epoch].learning_rate == schedule.get_last_lr()[0]
        for batch, labels in AUGMENTED.batches(TRAIN, 16, epoch=epoch):
            optimizer.zero_grad()
            F.cross_entropy(plain(batch), labels).backward()
            optimizer.step()
        schedule.step()
    assert same(state(network), state(plain))


@pytest.mark.parametrize(
    ("warmup_fraction", "final", "expected"),
    [(0.0, 0.0, [1, 0.5, 0.25, 0.125]), (0.25, 0.0, [1, 1, 0.5, 0.25]), (0.0, 0.2, [1, 0.5, 0.25, 0.2])],
)
def test_an_exponential_decay_begins_after_the_warm_up_and_ends_at_the_final_rate(warmup_fraction, final, expected):
    recipe = Recipe(4, 72, learning_rate=1.0, final_learning_rate=final, warmup_fraction=warmup_fraction)
    history = []
    exponential = replace(recipe, schedule="exponential", decay_per_epoch=0.5)
    train(small_network(), DATA, exponential, on_epoch=history.append)  # one step an epoch
    assert [result.learning_rate for result in history] == expected


def test_what_earlier_versions_lack_changes_nothing_that_is_compared(tmp_path):
    """Hashes of trainings, settings of studies and checkpoints of before are those of the defaults."""
    before = (
        "Recipe(epochs=10, batch_size=64, optimizer='sgd', learning_rate=0.025, final_learning_rate=0.0, momentum=0.9, "
        "weight_decay=0.0003, warmup_fraction=0.0, clip_norm=5.0, precision='auto', compile=False, seed=0)"
    )
    assert repr(Recipe()) == before
    assert repr(Recipe(schedule="exponential")) == f"{before[:-1]}, schedule='exponential')"
    assert settings_of(Recipe()).keys() == vars(Recipe()).keys() - {"schedule", "decay_per_epoch"}
    file = tmp_path / "checkpoint"
    train(small_network(), DATA, RECIPE, checkpoint=file, checkpoint_seconds=0)
    _, description = load_tensors(file)
    assert description["configuration"]["recipe"] == settings_of(RECIPE)
    with pytest.raises(ValueError, match=r"differs in recipe \(schedule by default, not exponential\)"):
        train(small_network(), DATA, replace(RECIPE, schedule="exponential"), checkpoint=file)


def test_an_epoch_reports_the_means_over_what_was_seen():
    history = []
    network = small_network()
    recipe = replace(RECIPE, learning_rate=1e-9, momentum=0.0)  # weights hardly move
    result = train(network, DATA, recipe, ImageClassification(label_smoothing=0.1), on_epoch=history.append)
    assert [r.epoch for r in history] == [1, 2]
    assert result.last == history[-1]
    for epoch, epoch_result in enumerate(history):
        losses, correct = [], []
        for batch, labels in DATA.batches(TRAIN, 16, epoch=epoch):
            scores = network(batch)
            losses.append(F.cross_entropy(scores, labels, label_smoothing=0.1).item())
            correct.append((scores.argmax(1) == labels).float().mean().item())
        assert epoch_result.train_loss == pytest.approx(np.mean(losses), abs=1e-5)
        assert epoch_result.train_metric == pytest.approx(np.mean(correct), abs=1e-9)
        assert (epoch_result.validation_loss, epoch_result.validation_metric) == pytest.approx(
            evaluate(network, DATA, REPORT)[:2], abs=1e-6
        )
    assert result.seconds >= sum(r.seconds for r in history) * 0.99 > 0


def test_it_learns():
    result = train(small_network(), DATA, replace(RECIPE, epochs=10))
    assert result.last.validation_metric > 0.8
    assert (result.skipped_steps, result.accumulation, result.peak_memory_bytes) == (0, 1, 0)


def test_on_step_hears_the_fraction_done_after_every_step():
    fractions = []
    train(small_network(), DATA, RECIPE, on_step=fractions.append)
    assert fractions == pytest.approx(np.arange(1, 9) / 8)


def test_a_batch_larger_than_the_data_is_one_step():
    fractions = []
    train(small_network(), DATA, replace(RECIPE, batch_size=1000), on_step=fractions.append)
    assert fractions == [0.5, 1.0]


def test_drop_path_rises_by_epoch_and_is_seeded():
    seen = []

    class Recording(DiscreteNetwork):
        def step_context(self, progress, generator):
            seen.append((self.skeleton.drop_path * progress, generator.initial_seed()))
            return super().step_context(progress, generator)

    def trained(seed, drop_path=0.6):
        network = darts_network(drop_path)
        network.__class__ = Recording
        train(network, DATA, replace(RECIPE, epochs=3, batch_size=36, seed=seed))
        return state(network)

    first = trained(0)
    assert [p for p, _ in seen] == pytest.approx([0, 0, 0.2, 0.2, 0.4, 0.4])
    assert len({s for _, s in seen}) == 6
    assert same(first, trained(0))
    assert not same(first, trained(1))
    assert not same(first, trained(0, drop_path=0.0))


# --- what is trained on, what is looked at ----------------------------------------------------------------------------


def with_nan(data, *splits):
    pixels = data.images.clone()
    for split in splits:
        pixels[data.splits[split]] = math.nan
    return replace(data, images=pixels)


def test_report_and_test_images_never_reach_the_weights():
    network, spoiled = small_network(norm=True), small_network(norm=True)
    train(network, AUGMENTED, RECIPE)
    result = train(spoiled, with_nan(AUGMENTED, REPORT, TEST), RECIPE)
    assert same(state(network), state(spoiled))
    assert math.isnan(result.last.validation_loss)
    assert result.skipped_steps == 0


def test_choices_are_left_out_where_only_weights_are_trained():
    network, spoiled = small_network(norm=True), small_network(norm=True)
    train(network, AUGMENTED, RECIPE, splits=[WEIGHTS])
    train(spoiled, with_nan(AUGMENTED, CHOICES, REPORT, TEST), RECIPE, splits=[WEIGHTS])
    assert same(state(network), state(spoiled))


class SpiedData:
    """Data that remember what they were asked for."""

    def __init__(self, data):
        self._data, self.asked = data, []

    def __getattr__(self, name):
        return getattr(self._data, name)

    def batches(self, splits, batch_size, **kwargs):
        self.asked.append((tuple(splits), kwargs.get("epoch")))
        return self._data.batches(splits, batch_size, **kwargs)


def test_a_training_asks_for_training_splits_and_for_a_plain_report_split():
    data = SpiedData(DATA)
    train(small_network(), data, RECIPE)
    assert data.asked == [(TRAIN, 0), ((REPORT,), None), (TRAIN, 1), ((REPORT,), None)]


def test_training_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    train(darts_network(drop_path=0.3), AUGMENTED, replace(RECIPE, epochs=2))  # from the second epoch on paths drop
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("split", [REPORT, TEST, WEIGHTS])
def test_evaluate_equals_one_image_at_a_time(split):
    network = small_network(norm=True)
    train(network, DATA, RECIPE)
    before = state(network)
    network.train()
    loss, accuracy, exits, error = evaluate(network, DATA, split)
    assert exits == (accuracy,)
    assert network.training  # as it was
    assert same(state(network), before)  # running statistics too
    network.eval()
    losses, correct = [], []
    for position in DATA.splits[split]:
        image = (DATA.images[position] - DATA.mean[:, None, None]) / DATA.std[:, None, None]
        score = network(image[None])[0].detach().double()
        losses.append(float(score.logsumexp(0) - score[DATA.labels[position]]))
        correct.append(int(score.argmax()) == int(DATA.labels[position]))
    assert error == pytest.approx(np.std(losses, ddof=1) / len(losses) ** 0.5, rel=1e-4)
    assert loss == pytest.approx(np.mean(losses), abs=1e-6)
    assert accuracy == np.mean(correct)


def test_evaluate_weighs_an_incomplete_last_batch_by_its_images():
    n_images = EVALUATION_BATCH + 88
    data = images(2 * n_images, fractions={REPORT: 0.5, TEST: 0.0, CHOICES: 0.0})
    assert data.size([REPORT]) == n_images
    network = small_network()
    (batch,) = data.batches([REPORT], n_images)
    expected = F.cross_entropy(network(batch.inputs), batch.targets).item()
    assert evaluate(network, data, REPORT)[0] == pytest.approx(expected, abs=1e-6)


def test_evaluating_an_empty_split_is_refused():
    data = images(fractions={TEST: 0.0})
    with pytest.raises(ValueError, match="`split` must hold examples but 'test'"):
        evaluate(small_network(), data, TEST)


@pytest.mark.parametrize(
    ("fractions", "splits", "sentence"),
    [({REPORT: 0.0}, TRAIN, "'report'"), ({CHOICES: 0.0}, [CHOICES], "`splits` must hold examples")],
)
def test_training_on_or_reporting_from_nothing_is_refused(fractions, splits, sentence):
    with pytest.raises(ValueError, match=sentence):
        train(small_network(), images(fractions=fractions), RECIPE, splits=splits)


# --- precision and compilation ----------------------------------------------------------------------------------------


def test_bfloat16_runs_on_a_cpu_and_keeps_float32_weights():
    seen = []
    network = Wrapped(small_network(), lambda call, images, scores: seen.append(scores.dtype) or scores)
    result = train(network, DATA, replace(RECIPE, epochs=6, precision="bfloat16"))
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert result.last.validation_metric > 0.7


def test_auto_is_float32_on_a_cpu():
    auto, full = small_network(), small_network()
    train(auto, DATA, replace(RECIPE, precision="auto"))
    train(full, DATA, replace(RECIPE, precision="float32"))
    assert same(state(auto), state(full))


def test_compile_compiles_and_trains_the_same_weights(monkeypatch, tmp_path):
    compiled = []

    def compile_(network):
        compiled.append(network)
        return lambda *args: network(*args)

    monkeypatch.setattr(torch, "compile", compile_)
    network, plain = small_network(), small_network()
    train(network, DATA, replace(RECIPE, compile=True))
    train(plain, DATA, RECIPE)
    assert compiled == [network]
    assert same(state(network), state(plain))


# --- out of memory ----------------------------------------------------------------------------------------------------


def too_large(limit, error=torch.OutOfMemoryError, seen=None):
    """Make a hook that fails for more than `limit` images and notes how many came."""

    def hook(call, images, scores):
        if seen is not None:
            seen.append(len(images))
        if len(images) > limit:
            raise error("CUDA out of memory. Tried to allocate 2.00 GiB")
        return scores

    return hook


@pytest.mark.parametrize(("batch_size", "clip_norm"), [(16, 0.0), (17, 0.0), (16, 0.5)])
def test_out_of_memory_halves_the_batch_and_keeps_the_numbers(batch_size, clip_norm):
    recipe = replace(RECIPE, batch_size=batch_size, clip_norm=clip_norm)
    task = ImageClassification(label_smoothing=0.1)
    seen = []
    network, plain = Wrapped(small_network(), too_large(9, seen=seen)), small_network()
    history, plain_history = [], []
    result = train(network, DATA, recipe, task, on_epoch=history.append)
    train(plain, DATA, recipe, task, on_epoch=plain_history.append)
    assert result.accumulation == 2
    half = -(-batch_size // 2)
    assert seen == [batch_size] + [half, batch_size - half] * 8  # once, and never tried whole again
    close(state(network.network), state(plain))
    for ours, theirs in zip(history, plain_history, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, abs=1e-5)
        assert ours.train_metric == theirs.train_metric


def test_out_of_memory_in_a_later_step_loses_no_step():
    def hook(call, images, scores):
        if len(images) > 8 and call > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return scores

    network, plain = Wrapped(small_network(), hook), small_network()
    train(network, DATA, RECIPE)
    train(plain, DATA, RECIPE)
    close(state(network.network), state(plain))


def test_out_of_memory_with_halves_too_is_raised_and_changes_no_weight():
    seen = []
    network = Wrapped(small_network(), too_large(7, seen=seen))
    before = state(network)
    with pytest.raises(torch.OutOfMemoryError):
        train(network, DATA, RECIPE)
    assert seen == [16, 8]
    assert same(state(network), before)


def test_halves_that_no_longer_fit_are_not_tried_again():
    seen = []

    def hook(call, images, scores):
        seen.append(len(images))
        if len(images) > 8 or call > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return scores

    with pytest.raises(torch.OutOfMemoryError):
        train(Wrapped(small_network(), hook), DATA, RECIPE)
    assert seen == [16, 8, 8, 8, 8, 8]


def test_one_image_cannot_be_halved():
    seen = []
    with pytest.raises(torch.OutOfMemoryError):
        train(Wrapped(small_network(), too_large(0, seen=seen)), DATA, replace(RECIPE, batch_size=1))
    assert seen == [1]


def test_another_error_is_not_taken_for_out_of_memory():
    def hook(call, images, scores):
        raise RuntimeError("shapes disagree")

    network = Wrapped(small_network(), hook)
    with pytest.raises(RuntimeError, match="shapes disagree"):
        train(network, DATA, RECIPE)
    assert network.calls == 1


def test_evaluation_halves_its_batches_until_they_fit():
    class Small(nn.Module):
        def __init__(self, limit):
            super().__init__()
            self.network, self.limit, self.seen = small_network(), limit, []

        def forward(self, images):
            self.seen.append(len(images))
            if len(images) > self.limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return self.network(images)

    data = images(600)
    network = Small(32)
    whole = evaluate(network.network, data, REPORT)
    assert evaluate(network, data, REPORT)[:2] == pytest.approx(whole[:2], abs=1e-9)
    assert network.seen == [120, 120, 120, 64, 32, 32, 32, 24]
    assert network.training  # as it was
    assert train(Small(32), data, RECIPE).accumulation == 1
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(Small(0), data, REPORT)


def test_what_counts_as_out_of_memory():
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert not is_out_of_memory(RuntimeError("x"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_halved_batches_go_on_halved_after_a_restart(tmp_path):
    file = tmp_path / "training"
    first, seen = Wrapped(small_network(), too_large(8)), []
    with pytest.raises(TrainingStopped):
        train(first, DATA, RECIPE, checkpoint=file, should_stop=lambda: first.calls >= 7)
    network = Wrapped(small_network(), too_large(8, seen=seen))
    result = train(network, DATA, RECIPE, checkpoint=file)
    assert seen == [8] * 10  # 3 of the 8 steps were done
    assert result.accumulation == 2


# --- losses that are not finite ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [{1}, {3, 4, 8}])
def test_a_step_without_a_finite_loss_is_skipped_and_counted(bad):
    network, plain = Wrapped(small_network(), not_finite(bad)), small_network()
    history = []
    result = train(network, DATA, RECIPE, on_epoch=history.append)
    plain_training(plain, DATA, RECIPE, skip=bad)
    assert result.skipped_steps == len(bad)
    assert same(state(network.network), state(plain))
    assert all(math.isfinite(r.train_loss) for r in history)


def test_a_step_with_a_finite_loss_but_an_infinite_gradient_is_skipped():
    class Overflow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, scores):
            return scores.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * math.inf

    def hook(call, images, scores):
        return Overflow.apply(scores) if call == 2 else scores

    network, plain = Wrapped(small_network(), hook), small_network()
    assert train(network, DATA, RECIPE).skipped_steps == 1
    plain_training(plain, DATA, RECIPE, skip={2})
    assert same(state(network.network), state(plain))


def test_a_step_with_an_infinite_loss_but_a_finite_gradient_is_skipped():
    def hook(call, images, scores):
        return scores + torch.tensor([-math.inf, 0, 0]) if call == 2 else scores  # class 0 is impossible

    (batch,) = DATA.batches(TRAIN, 72, epoch=0)
    scores = (torch.zeros(72, 3) + torch.tensor([-math.inf, 0, 0])).requires_grad_()
    loss = F.cross_entropy(scores, batch.targets)
    loss.backward()
    assert loss.isinf()
    assert scores.grad.isfinite().all()
    network, plain = Wrapped(small_network(), hook), small_network()
    assert train(network, DATA, RECIPE).skipped_steps == 1
    plain_training(plain, DATA, RECIPE, skip={2})
    assert same(state(network.network), state(plain))


def test_an_epoch_of_skipped_steps_has_finite_numbers():
    history = []
    network = Wrapped(small_network(), not_finite({1, 2, 3, 4}))
    train(network, DATA, RECIPE, on_epoch=history.append)
    assert (history[0].train_loss, history[0].train_metric) == (0, 0)
    assert history[1].train_loss > 0


def test_ten_steps_in_a_row_are_a_divergence_and_no_weight_moves():
    network = Wrapped(small_network(), not_finite(range(1000)))
    before = state(network)
    with pytest.raises(TrainingDiverged, match="`learning_rate` must keep the loss finite but 10 steps in a row"):
        train(network, DATA, replace(RECIPE, epochs=5))
    assert network.calls == 10
    assert same(state(network), before)


def test_nine_steps_in_a_row_twice_are_no_divergence():
    network = Wrapped(small_network(), not_finite({*range(1, 10), *range(11, 20)}))
    assert train(network, DATA, replace(RECIPE, epochs=5)).skipped_steps == 18


def test_the_row_of_skipped_steps_goes_on_after_a_restart(tmp_path):
    file = tmp_path / "training"
    first = Wrapped(small_network(), not_finite(range(1000)))
    recipe = replace(RECIPE, epochs=5)
    with pytest.raises(TrainingStopped):
        train(first, DATA, recipe, checkpoint=file, should_stop=lambda: first.calls == 6)
    second = Wrapped(small_network(), not_finite(range(1000)))
    with pytest.raises(TrainingDiverged):
        train(second, DATA, recipe, checkpoint=file)
    assert second.calls == 4


@pytest.mark.parametrize("factor", [math.inf, 1e25])  # 1e25: the mean stays finite
def test_a_skipped_step_leaves_usable_running_statistics(factor):
    class Overflowing(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.calls = small_network(norm=True), 0

        def forward(self, images):
            if not self.training:
                return self.network(images)
            self.calls += 1
            return self.network(images * factor) * math.nan if self.calls == 3 else self.network(images)

    network = Overflowing()
    result = train(network, DATA, replace(RECIPE, epochs=10))
    assert result.skipped_steps == 1
    assert all(tensor.isfinite().all() for tensor in network.state_dict().values())
    assert result.last.validation_metric > 0.7


# --- interrupted and gone on ------------------------------------------------------------------------------------------

INTERRUPTED = {
    "sgd": (Recipe(4, 12, learning_rate=0.05, warmup_fraction=0.2), ImageClassification(label_smoothing=0.1)),
    "adamw": (Recipe(4, 12, "adamw", 0.005, weight_decay=0.01, clip_norm=1.0, schedule="exponential"), TASK),
}  # 6 steps an epoch, 24 in all


def train_in_child(optimizer, checkpoint, final, progress):
    """Train with a checkpoint after every step, write the end to `final`; runs in a process of its own."""
    torch.set_num_threads(1)
    network, history = darts_network(drop_path=0.4), []
    result = train(
        network,
        AUGMENTED,
        *INTERRUPTED[optimizer],
        on_epoch=history.append,
        on_step=progress.send,
        checkpoint=checkpoint,
        checkpoint_seconds=0,
    )
    assert result.last == history[-1]
    description = {"history": [asdict(epoch) for epoch in history], "skipped": result.skipped_steps}
    save_tensors(final, network.state_dict(), description)


@pytest.fixture(scope="module")
def processes():
    """Processes forked from a server that has imported torch: a start takes milliseconds, and no threads are copied."""
    context = multiprocessing.get_context("forkserver")
    slow = ["pytest", "sklearn.model_selection", "torch._dynamo"]  # torch's optimizers import the last one
    context.set_forkserver_preload([*slow, "optuna_nas.training", "optuna_nas.networks"])
    return context


@pytest.mark.process
@pytest.mark.parametrize("optimizer", list(INTERRUPTED))
def test_a_training_killed_again_and_again_ends_with_the_numbers_of_an_uninterrupted_one(
    optimizer, processes, tmp_path
):
    draw = random.Random(optimizer)

    def run(name, final, steps=None):
        """Run a child and kill it when it has done `steps` steps, or a moment later; returns its first step."""
        receive, send = processes.Pipe(duplex=False)
        checkpoint = tmp_path / name
        child = processes.Process(target=train_in_child, args=(optimizer, checkpoint, tmp_path / final, send))
        child.start()
        send.close()
        heard = []
        with receive:
            while steps is None or len(heard) < steps:
                try:
                    heard.append(receive.recv())
                except EOFError:
                    break
            if steps is not None:
                if receive.poll(draw.random() * 0.02):  # a moment later, or in the midst of writing
                    heard.append(receive.recv())
                os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == (0 if steps is None else -signal.SIGKILL)
        child.close()
        return round(heard[0] * 24)

    assert run("untouched", "expected") == 1
    first_steps = [run("killed", "never", draw.randint(2, 4)) for _ in range(4)]
    first_steps.append(run("killed", "resumed"))
    assert first_steps[0] == 1
    assert all(late > early for early, late in pairwise(first_steps))  # it went on, it did not start anew
    assert not (tmp_path / "never").exists()
    expected, told = load_tensors(tmp_path / "expected")
    found, found_told = load_tensors(tmp_path / "resumed")
    assert same(expected, found)
    for description in (told, found_told):
        for epoch in description["history"]:
            epoch.pop("seconds")
    assert told == found_told
    assert len(told["history"]) == 4


@pytest.mark.parametrize("optimizer", list(INTERRUPTED))
@pytest.mark.parametrize("stop_after", [1, 6, 9, 23, 24])
def test_a_stopped_training_goes_on_to_the_same_numbers(optimizer, stop_after, tmp_path):
    file, (recipe, task) = tmp_path / "training", INTERRUPTED[optimizer]
    run = partial(train, data=AUGMENTED, recipe=recipe, task=task)
    network, history = small_network(norm=True), []
    run(network, on_epoch=history.append)

    steps = []
    with pytest.raises(TrainingStopped):
        run(
            small_network(norm=True),
            on_step=steps.append,
            checkpoint=file,
            checkpoint_seconds=math.inf,
            should_stop=lambda: len(steps) == stop_after,
        )
    assert len(steps) == stop_after
    assert os.listdir(tmp_path) == ["training"]

    resumed, heard, told = small_network(seed=9, norm=True), [], []
    run(resumed, on_step=heard.append, on_epoch=told.append, checkpoint=file)
    assert len(heard) == 24 - stop_after
    assert same(state(resumed), state(network))
    assert without_seconds(told) == without_seconds(history)  # epochs before the stop are told again


def test_a_resumed_training_counts_the_seconds_before(tmp_path):
    file = tmp_path / "training"
    with pytest.raises(TrainingStopped):
        train(small_network(), DATA, RECIPE, checkpoint=file, should_stop=lambda: True)
    tensors, description = load_tensors(file)
    description["progress"]["seconds"] = 100.0
    save_tensors(file, tensors, description)
    with pytest.raises(TrainingStopped):
        train(small_network(), DATA, RECIPE, checkpoint=file, should_stop=lambda: True)
    assert 100 < load_tensors(file)[1]["progress"]["seconds"] < 110
    history = []
    result = train(small_network(), DATA, RECIPE, checkpoint=file, on_epoch=history.append)
    assert 100 < result.seconds < 110
    assert result.seconds == pytest.approx(sum(epoch.seconds for epoch in history), abs=0.05)


def test_stopping_without_a_checkpoint_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrainingStopped):
        train(small_network(), DATA, RECIPE, should_stop=lambda: True)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, 8), (25.0, 3), (math.inf, 0)])
def test_checkpoints_are_written_when_their_time_has_come(seconds, expected, tmp_path, monkeypatch):
    now, written = [0.0], []
    monkeypatch.setattr("optuna_nas.training.loop.time.monotonic", lambda: now[0])
    monkeypatch.setattr("optuna_nas.training.loop.save_tensors", lambda path, *_: written.append(path))

    def on_step(fraction):
        now[0] += 10  # the eight steps end at 10, 20, ..., 80; every 25 means at 30, 60 and then 90

    train(
        small_network(),
        DATA,
        replace(RECIPE, epochs=2),
        on_step=on_step,
        checkpoint=tmp_path / "training",
        checkpoint_seconds=seconds,
    )
    assert len(written) in (expected, expected - (seconds == 25.0))


@pytest.fixture
def stopped(tmp_path):
    """Give the file of a training stopped after a step."""
    file = tmp_path / "training"
    with pytest.raises(TrainingStopped):
        train(small_network(), DATA, RECIPE, checkpoint=file, configuration={"name": "mine"}, should_stop=lambda: True)
    return file


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"recipe": replace(RECIPE, epochs=3)}, r"recipe \(epochs 2, not 3\)"),
        ({"task": ImageClassification(label_smoothing=0.2)}, "task"),
        ({"splits": [WEIGHTS]}, "splits"),
        ({"configuration": {"name": "yours"}}, "name"),
        ({"configuration": {"name": "mine", "more": 1}}, "more"),
        ({"data": images(seed=1)}, "data"),
        (
            {"data": images(), "recipe": replace(RECIPE, seed=1), "task": ImageClassification(auxiliary_weight=0.1)},
            r"recipe \(seed 0, not 1\), task",
        ),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(stopped, changes, differing):
    arguments = {"data": DATA, "recipe": RECIPE, "configuration": {"name": "mine"}, **changes}
    network, before = small_network(), stopped.read_bytes()
    untouched = state(network)
    with pytest.raises(
        ValueError, match=f"`checkpoint` must be of the same configuration but .* differs in {differing}; use another"
    ):
        train(network, checkpoint=stopped, **arguments)
    assert stopped.read_bytes() == before
    assert same(state(network), untouched)


def test_a_refused_checkpoint_names_a_key_that_only_it_has(stopped):
    with pytest.raises(ValueError, match="differs in name;"):
        train(small_network(), DATA, RECIPE, checkpoint=stopped)


@pytest.mark.parametrize("damage", ["empty", "half", "text", "foreign", "header"])
def test_a_damaged_or_foreign_checkpoint_is_refused_with_one_sentence(damage, stopped):
    whole = stopped.read_bytes()
    if damage == "foreign":
        save_file({"weight": torch.zeros(3)}, stopped)
    else:
        stopped.write_bytes(
            {"empty": b"", "half": whole[: len(whole) // 2], "text": b"hello" * 9, "header": whole[100:]}[damage]
        )
    with pytest.raises(ValueError, match=r"`path` must be a checkpoint of optuna_nas but .* is not readable"):
        train(small_network(), DATA, RECIPE, checkpoint=stopped, configuration={"name": "mine"})


def test_a_file_of_ours_that_is_no_checkpoint_is_refused(tmp_path):
    file = tmp_path / "network"
    save_tensors(file, small_network().state_dict(), {"architecture": {}})
    with pytest.raises(ValueError, match="`checkpoint` must be of the same configuration"):
        train(small_network(), DATA, RECIPE, checkpoint=file)


# --- files ------------------------------------------------------------------------------------------------------------


def test_tensors_and_their_description_come_back(tmp_path):
    file = tmp_path / "new" / "folders" / "file"
    images = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    tensors = {"a": images, "b": torch.tensor(3), "c": torch.rand(4, 6, requires_grad=True).T}
    save_tensors(file, tensors, {"words": "ü", "list": [1, None, math.inf]})
    loaded, description = load_tensors(file)
    assert same(loaded, {name: tensor.detach() for name, tensor in tensors.items()})
    assert description == {"words": "ü", "list": [1, None, math.inf]}
    assert load_file(file).keys() == {"a", "b", "c"}  # an ordinary safetensors file


@pytest.mark.parametrize("step", ["safetensors.torch.save_file", "os.fsync", "os.replace"])
def test_writing_that_fails_leaves_the_old_file_and_nothing_else(step, tmp_path, monkeypatch):
    file = tmp_path / "file"
    save_tensors(file, {"a": torch.zeros(2)}, {"number": 1})

    def fail(*arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr(step, fail)
    with pytest.raises(OSError, match="no space left"):
        save_tensors(file, {"a": torch.ones(2)}, {"number": 2})
    assert os.listdir(tmp_path) == ["file"]
    assert load_tensors(file)[1] == {"number": 1}


def test_a_file_is_whole_before_it_has_its_name(tmp_path, monkeypatch):
    """Look at the folder at the very moment of the renaming."""
    file, replaced = tmp_path / "file", []
    rename = os.replace

    def look(source, target):
        assert target == file
        assert os.path.dirname(source) == str(tmp_path)  # the same file system: the renaming is atomic
        assert not file.exists()
        assert load_tensors(source)[1] == {"number": 1}
        replaced.append(source)
        rename(source, target)

    monkeypatch.setattr("optuna_nas.training.disk.os.replace", look)
    save_tensors(file, {"a": torch.ones(2)}, {"number": 1})
    assert len(replaced) == 1
    assert os.listdir(tmp_path) == ["file"]


def test_no_temporary_file_is_left_after_many_checkpoints(tmp_path):
    train(small_network(), DATA, RECIPE, checkpoint=tmp_path / "training", checkpoint_seconds=0)
    assert os.listdir(tmp_path) == ["training"]


# --- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("epochs", 0, "in [1, inf)"),
        ("batch_size", 0, "in [1, inf)"),
        ("seed", -1, "in [0, inf)"),
        ("learning_rate", 0.0, "in (0, inf)"),
        ("learning_rate", -1.0, "in (0, inf)"),
        ("learning_rate", math.nan, "in (0, inf)"),
        ("learning_rate", math.inf, "in (0, inf)"),
        ("final_learning_rate", -0.1, "in [0, inf)"),
        ("weight_decay", -1e-4, "in [0, inf)"),
        ("clip_norm", -1, "in [0, inf)"),
        ("momentum", 1.0, "in [0, 1)"),
        ("warmup_fraction", -0.1, "in [0, 1]"),
        ("warmup_fraction", 1.1, "in [0, 1]"),
        ("epochs", 2.5, "an integer"),
        ("batch_size", 16.0, "an integer"),
        ("seed", 0.5, "an integer"),
        ("optimizer", "adam", "one of ('sgd', 'adamw')"),
        ("schedule", "step", "one of ('cosine', 'exponential')"),
        ("decay_per_epoch", 0.0, "in (0, 1]"),
        ("precision", "float16", "one of ('auto', 'float32', 'bfloat16')"),
    ],
)
def test_a_recipe_out_of_range_is_refused(field, value, rule):
    with pytest.raises(ValueError, match=re.escape(f"`{field}` must be {rule} but got {value!r}")):
        Recipe(**{field: value})

"""One-shot models trained by a loop of the user's own: `plan`, `loss`, an optimizer over `parameters()`."""

import numpy as np
import pytest
import torch
from declared import PERCEPTRON, inputs_of

from optuna_nas import (
    GHN,
    HMNAS,
    SNAS,
    GHNRecipe,
    HMNASRecipe,
    NetworkSpace,
    Skeleton,
    SNASRecipe,
    digits,
    hmnas_space,
    nasbench201_skeleton,
    nasbench201_space,
)
from optuna_nas.oneshot.base import OneShotModel

SPACE = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 2, (1, 8, 8), 10, affine=False))
SETS = NetworkSpace(hmnas_space(), Skeleton(("normal", "reduction"), 2, (1, 8, 8), 10, affine=False))


@pytest.fixture(scope="module")
def batches():
    data = digits()
    return list(data.batches(["weights"], 32, seed=0))[:12]


def train(model, batches, rate=0.01):
    """Train by plain Adam; return the losses and, for every step, which parameters had a gradient."""
    parameters = model.parameters()
    optimizer = torch.optim.Adam(parameters, rate)
    model.plan(len(batches))
    losses, learned = [], []
    for batch in batches:
        optimizer.zero_grad()
        loss = model.loss(batch)
        loss.backward()
        losses.append(float(loss.detach()))
        learned.append([parameter.grad is not None and bool(parameter.grad.any()) for parameter in parameters])
        optimizer.step()
    return losses, np.array(learned)


@pytest.mark.parametrize("relaxation", ["concrete", "one_path"])
def test_snas_learns_weights_and_after_the_warm_up_logits(batches, relaxation):
    recipe = SNASRecipe(relaxation=relaxation, warmup_fraction=0.5, freeze_fraction=0.0)
    snas = SNAS(SPACE, recipe)
    position = next(i for i, p in enumerate(snas.parameters()) if p is snas.logits_EO)
    before, cold = snas.logits, snas.temperature(0.0)
    _, learned = train(snas, batches)
    assert learned[:, position].tolist() == [False] * 6 + [True] * 6
    assert learned.any(axis=0).mean() > 0.9
    assert not np.allclose(snas.logits, before)
    assert snas.fitted
    assert snas.temperature(snas.fraction) < cold
    assert snas.most_likely().connected


def test_a_loop_of_ones_own_lowers_what_fit_lowers():
    """With the optimizers and rates of `fit`, a step of the loop ends with the weights of a step of `fit`."""
    recipe = SNASRecipe(warmup_fraction=0.0, clip_norm=0.0, precision="float32", batch_size=32)
    fitted, own, data = SNAS(SPACE, recipe), SNAS(SPACE, recipe), digits()
    fitted.fit(data, budget=32 / data.size(["weights", "choices"]), show_progress=False)
    assert fitted.step == 1
    (batch,) = own.batches(data, ["weights", "choices"], 0, 1)
    own.plan(1)
    own.loss(batch).backward()
    own.optimizers["weights"].step()
    theirs, ours = fitted.supernet.state_dict(), own.supernet.state_dict()
    torch.testing.assert_close(ours, theirs)


def test_ghn_lowers_its_loss(batches):
    losses, learned = train(GHN(SPACE, GHNRecipe(phases=1, meta_batch=2)), batches * 2, 0.003)
    assert np.mean(losses[-6:]) < np.mean(losses[:6])
    assert learned.any(axis=0).mean() > 0.8


def test_hmnas_learns_weights_then_choices_then_masks_alone(batches):
    recipe = HMNASRecipe(mask_fraction=0.5, warmup_fraction=0.5, freeze_fraction=0.0)
    hmnas = HMNAS(SETS, recipe)
    numbers = {id(parameter): i for i, parameter in enumerate(hmnas.parameters())}
    weights = [numbers[id(p)] for p in hmnas.supernet.parameters()]
    logits, masks = ([numbers[id(p)] for p in group] for group in (hmnas.masks.logits, hmnas.masks.masks))
    before = [mask.detach().clone() for mask in hmnas.masks.masks]
    _, learned = train(hmnas, batches)
    assert hmnas.mask_steps == hmnas.supernet_steps == 6
    assert learned[:6, weights].all(axis=0).mean() > 0.9
    assert not learned[6:, weights].any()
    assert learned[:, logits].all(axis=1).tolist() == [False] * 3 + [True] * 3 + [False] * 6
    assert not learned[:6, masks].any()
    assert learned[6:, masks].any(axis=1).all()
    assert any(not torch.equal(mask, old) for mask, old in zip(hmnas.masks.masks, before, strict=True))


def test_a_module_of_ones_own_is_trained_too():
    inputs, targets = inputs_of(PERCEPTRON, 16), torch.arange(16) % 3
    for model in (SNAS(PERCEPTRON, SNASRecipe(warmup_fraction=0.0)), GHN(PERCEPTRON, GHNRecipe(phases=1))):
        losses, _ = train(model, [(inputs, targets)] * 4)
        assert np.isfinite(losses).all()


def test_refusals_say_what_to_do(batches):
    snas = SNAS(SPACE)
    with pytest.raises(ValueError, match=r"`loss` must be called at most as often as planned but 0 of 0 .*`plan"):
        snas.loss(batches[0])
    with pytest.raises(ValueError, match=r"`total_steps` must be at least 1 .* but is 0"):
        snas.plan(0)
    snas.plan(1)
    snas.loss(batches[0])
    with pytest.raises(ValueError, match=r"`loss` must be called at most as often as planned but 1 of 1"):
        snas.loss(batches[0])

    class Other(OneShotModel):
        name = "Other"
        train_step = predict = make_optimizers = lambda self, *_: {}

    other = Other(SPACE, SNASRecipe())
    other.plan(1)
    with pytest.raises(ValueError, match=r"`loss` must be the loss of a step, which a Other does not name; train it"):
        other.loss(batches[0])

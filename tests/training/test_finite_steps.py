"""Steps that a device decides on: a CPU plays a GPU that tells nothing unless asked; and a GPU where there is one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from strategies import few_digits
from torch.utils._python_dispatch import TorchDispatchMode
from trainings import DATA, RECIPE, Wrapped, not_finite, plain_training, small_network, state

from optuna_nas import (
    GHN,
    HMNAS,
    SNAS,
    CellKind,
    CellSpace,
    DiscreteNetwork,
    GHNRecipe,
    HMNASRecipe,
    NetworkSpace,
    Recipe,
    Skeleton,
    SNASRecipe,
    train,
)
from optuna_nas.oneshot import base as one_shot_model
from optuna_nas.training import TrainingDiverged
from optuna_nas.training import finite_steps as stepping
from optuna_nas.training.finite_steps import Verdicts, fused, step_where

CELLS = CellSpace(("none", "skip_connect", "nor_conv_1x1"), 2, 1, (CellKind("cell"), CellKind("reduction", 2)))
SPACE = NetworkSpace(CELLS, Skeleton(("cell", "reduction"), 4, (1, 8, 8), 10, affine=False))
CONVOLUTIONS = dict.fromkeys(CELLS.paths, "nor_conv_1x1")
MODELS = {
    "snas": lambda: SNAS(SPACE, SNASRecipe(warmup_fraction=0.3)),
    "snas, softmax, bounds": lambda: SNAS(
        SPACE, SNASRecipe(relaxation="softmax", warmup_fraction=0.0, resource={"params": 400.0})
    ),
    "ghn": lambda: GHN(SPACE, GHNRecipe(hidden=8, meta_batch=1)),
    "hmnas": lambda: HMNAS(SPACE, HMNASRecipe(mask_fraction=0.5)),
    "hmnas, second order": lambda: HMNAS(SPACE, HMNASRecipe(mask_fraction=0.0, second_order=True)),
}


@pytest.fixture
def deciding(monkeypatch):
    """Let the CPU decide about steps, and tell the host only when it waits or is too far ahead."""
    monkeypatch.setattr(stepping, "DECIDING", frozenset({"cpu"}))
    monkeypatch.setattr(Verdicts, "_is_ready", staticmethod(lambda event: False))


class Asked(TorchDispatchMode):
    """Counts how often the host asks a device for a number."""

    def __init__(self):
        super().__init__()
        self.times = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.times += function.overloadpacket.__name__ in ("_local_scalar_dense", "is_nonzero", "equal")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("bad", [{1}, {3, 4, 8}])
def test_a_device_leaves_out_the_steps_that_the_host_would(bad, optimizer, deciding):
    recipe = replace(RECIPE, optimizer=optimizer)
    network, plain = Wrapped(small_network(), not_finite(bad)), small_network()
    history = []
    result = train(network, DATA, recipe, on_epoch=history.append)
    assert result.skipped_steps == len(bad)
    assert all(np.isfinite(epoch.train_loss) for epoch in history)
    if optimizer == "sgd":
        plain_training(plain, DATA, recipe, skip=bad)
        for ours, theirs in zip(state(network.network).values(), state(plain).values(), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_the_host_may_be_some_steps_ahead_of_a_divergence(deciding):
    network = Wrapped(small_network(), not_finite(range(1000)))
    with pytest.raises(TrainingDiverged, match="10 steps in a row"):
        train(network, DATA, replace(RECIPE, epochs=20))
    # Between epochs it waits; the first step's state is made before anything is left out.
    assert 10 <= network.calls <= 10 + stepping.MAX_PENDING


@pytest.mark.parametrize("name", MODELS)
def test_no_step_of_a_one_shot_model_waits_for_its_device(name, deciding, monkeypatch):
    monkeypatch.setattr(one_shot_model, "MAX_RECORDS", 1)
    model, told = MODELS[name](), []
    epochs = 12.0 if "hmnas" in name else 6.0  # of one split, for as many steps
    with Asked() as asked:
        model.fit(few_digits(130), epochs, on_step=lambda fraction: told.append(asked.times))
    steps = np.diff([0, *told])
    assert len(steps) > 10
    assert sum(steps > 0) <= 1, steps  # the record at the end


def test_a_device_may_decide_about_paths_whose_weights_move_for_the_first_time_later(monkeypatch):
    recipe = SNASRecipe(relaxation="one_path", batch_size=32)
    by_host = SNAS(SPACE, recipe)
    by_host.fit(few_digits(130), 4.0)
    monkeypatch.setattr(stepping, "DECIDING", frozenset({"cpu"}))
    by_device = SNAS(SPACE, recipe)
    by_device.fit(few_digits(130), 4.0)
    for host, device in zip(
        by_host.supernet.state_dict().values(), by_device.supernet.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(host, device)


def test_the_first_step_may_be_left_out_too(deciding):
    for momentum in (0.0, 0.9):
        parameter = torch.ones(3, requires_grad=True)
        optimizer = torch.optim.SGD([parameter], 1.0, momentum, fused=fused([parameter]))
        parameter.grad = torch.ones(3)
        with Asked() as asked:
            for finite in (False, True, True):
                step_where(torch.tensor(finite), optimizer)
        assert asked.times == 0
        torch.testing.assert_close(parameter.detach(), torch.full((3,), -1.0 - momentum))


def test_no_step_of_a_training_waits_for_its_device(deciding):
    network, recipe = DiscreteNetwork(SPACE.architecture(CONVOLUTIONS)), Recipe(epochs=1, batch_size=32)
    told = []
    with Asked() as asked:
        train(network, few_digits(300), recipe, on_step=lambda fraction: told.append(asked.times))
    assert len(told) > 5
    assert set(np.diff(told)) == {0}


def test_verdicts_come_in_order_and_all_when_waited_for(deciding):
    verdicts = Verdicts()
    given = [number % 3 > 0 for number in range(stepping.MAX_PENDING + 5)]
    known = []
    for finite in given:
        verdicts.put(torch.tensor(finite))
        known += verdicts.take()
    assert known == given[:5]  # too far ahead, the host waits for the first of them
    assert known + verdicts.take(wait=True) == given


def test_a_step_left_out_by_a_fused_optimiser_can_be_followed_by_one_of_the_host(deciding, monkeypatch):
    parameter = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], 1.0, fused=fused([parameter]))
    parameter.grad = torch.ones(3)
    for finite, expected in ((True, 0.0), (False, 0.0), (True, -1.0)):
        step_where(torch.tensor(finite), optimizer)
        assert torch.equal(parameter.detach(), torch.full((3,), expected))
    monkeypatch.setattr(stepping, "DECIDING", frozenset())
    step_where(torch.tensor(False), optimizer)
    step_where(torch.tensor(True), optimizer)
    assert torch.equal(parameter.detach(), torch.full((3,), -2.0))


# --- where there is a GPU ---------------------------------------------------------------------------------------------


@pytest.fixture
def cuda():
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    return torch.device("cuda")


@pytest.mark.gpu
def test_a_gpu_trains_to_what_a_cpu_trains_to(cuda):
    accuracies = []
    for data in (few_digits(600), few_digits(600).to(cuda)):
        network = DiscreteNetwork(SPACE.architecture(CONVOLUTIONS), seed=0)
        recipe = Recipe(epochs=10, batch_size=32, learning_rate=0.1, precision="float32")
        accuracies.append(train(network, data, recipe).last.validation_metric)
    assert abs(accuracies[0] - accuracies[1]) < 0.1


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_no_step_waits_for_a_gpu(name, cuda, monkeypatch):
    monkeypatch.setattr(one_shot_model, "MAX_RECORDS", 1)
    data, model, steps = few_digits(130).to(cuda), MODELS[name](), []

    def on_step(fraction):
        steps.append(fraction)
        torch.cuda.set_sync_debug_mode("error" if 0.6 < fraction < 0.95 else "default")

    try:
        model.fit(data, 10.0, on_step=on_step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(steps) > 10


@pytest.mark.gpu
def test_a_gpu_leaves_out_what_is_not_finite(cuda):
    network = Wrapped(small_network(), not_finite({3, 4, 8}))
    result = train(network, DATA.to(cuda), RECIPE)
    assert result.skipped_steps == 3
    assert all(tensor.isfinite().all() for tensor in network.state_dict().values())

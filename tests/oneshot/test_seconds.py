"""A fit whose budget changes: lowered to what some seconds hold, or another when it goes on."""

import shutil
from itertools import count
from pathlib import Path

import pytest
from strategies import few_digits

from optuna_nas import (
    GHN,
    HMNAS,
    SNAS,
    CellKind,
    CellSpace,
    GHNRecipe,
    HMNASRecipe,
    NetworkSpace,
    Skeleton,
    SNASRecipe,
)
from optuna_nas.data import TRAIN
from optuna_nas.oneshot import base

OPS = ("none", "skip_connect", "nor_conv_3x3")
SPACE = NetworkSpace(CellSpace(OPS, 2, 1, (CellKind("cell"),)), Skeleton(("cell",), 2, (1, 8, 8), 10, affine=False))
MODELS = {
    "snas": lambda: SNAS(SPACE, SNASRecipe(batch_size=16)),
    "ghn": lambda: GHN(SPACE, GHNRecipe(batch_size=16, phases=1)),
    "hmnas": lambda: HMNAS(SPACE, HMNASRecipe(batch_size=16, mask_fraction=0.3)),
}


@pytest.fixture(scope="module")
def data():
    return few_digits(128)


@pytest.fixture
def clock(monkeypatch):
    """A second passes whenever the clock is read, which is once a step."""
    seconds = count()
    monkeypatch.setattr(base.time, "monotonic", lambda: float(next(seconds)))


@pytest.mark.parametrize("name", MODELS)
def test_the_budget_is_lowered_to_what_the_seconds_hold(name, data, clock):
    model = MODELS[name]()
    model.fit(data, 1000, seconds=30, show_progress=False)
    assert model.fitted
    assert 27 <= model.step <= 31
    if name == "hmnas":
        whole = MODELS[name]()
        whole.begin(data, 1000, TRAIN)
        assert model.mask_steps / model.step == pytest.approx(whole.mask_steps / whole.total_steps, abs=0.05)
        assert model.step == model.supernet_steps + model.mask_steps
    else:
        rates = [group["lr"] for optimizer in model.optimizers.values() for group in optimizer.param_groups]
        assert min(rates) < 0.1 * model.recipe.learning_rate, "schedules are at their end"


def test_seconds_that_hold_the_budget_change_nothing(data, clock):
    limited, free = MODELS["snas"](), MODELS["snas"]()
    limited.fit(data, 2, seconds=1000, show_progress=False)
    free.fit(data, 2, show_progress=False)
    assert limited.step == free.step == limited.total_steps
    assert (limited.logits == free.logits).all()


def test_a_lowered_fit_that_was_stopped_goes_on_to_its_end(data, clock, tmp_path):
    path = tmp_path / "snas.safetensors"
    first = MODELS["snas"]()
    with pytest.raises(base.TrainingStopped):
        first.fit(data, 1000, seconds=30, checkpoint=path, should_stop=lambda: first.step >= 10)
    again = MODELS["snas"]()
    again.fit(data, 1000, seconds=30, checkpoint=path)
    assert again.fitted
    assert 10 < again.step <= 31


@pytest.mark.parametrize("name", MODELS)
def test_more_seconds_train_a_model_further_and_none_to_its_budget(name, data, clock, tmp_path):
    model, again, whole = (MODELS[name]() for _ in range(3))
    whole.begin(data, 20, TRAIN)
    model.fit(data, 20, seconds=30, show_progress=False)
    assert model.step < 32
    model.save(tmp_path / "model.safetensors")
    again.load(tmp_path / "model.safetensors")
    again.fit(data, 20, seconds=60, show_progress=False)
    assert 55 <= again.step <= 62
    again.fit(data, 20, seconds=60, show_progress=False)
    assert again.step <= 62, "the same seconds are spent"
    again.fit(data, 20, show_progress=False)
    assert again.fitted
    assert again.step == again.budget_steps == whole.total_steps


def test_a_slow_first_step_says_nothing_about_the_pace(data, monkeypatch):
    now, model = [0.0], MODELS["snas"]()
    monkeypatch.setattr(base.time, "monotonic", lambda: now[0])

    def step(batch, own=model.train_step):
        now[0] += 1.0 if model.step else 15.0
        return own(batch)

    model.train_step = step
    model.fit(data, 1000, seconds=60, show_progress=False)
    assert 43 <= model.step <= 48, "fifteen seconds for the first step, forty-five for others"


def test_no_seconds_are_refused(data):
    with pytest.raises(ValueError, match="`seconds` must be larger than 0 but got 0; None keeps the whole `budget`"):
        MODELS["snas"]().fit(data, 1, seconds=0)


# -- another budget ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("until", [0.4, 1.0], ids=["on the way", "fitted"])
def test_a_fit_goes_on_with_a_larger_budget(name, until, data, tmp_path):
    model, whole = MODELS[name](), MODELS[name]()
    model.fit(data, 4, until=until, checkpoint=tmp_path / "begun.safetensors", show_progress=False)
    before, supernet_steps = model.step, getattr(model, "supernet_steps", None)
    whole.begin(data, 8, TRAIN)
    for place, resumed in enumerate((MODELS[name](), model)):
        checkpoint = Path(shutil.copy(tmp_path / "begun.safetensors", tmp_path / f"{place}.safetensors"))
        resumed.fit(data, 8, until=0.9, checkpoint=checkpoint, show_progress=False)
        assert before < resumed.step < resumed.total_steps
        resumed.fit(data, 8, checkpoint=checkpoint, show_progress=False)
        assert resumed.fitted
        if name != "hmnas" or until < 1:
            assert resumed.step == whole.total_steps
        else:
            assert resumed.supernet_steps == supernet_steps, "masks come last: they have all that came later"
            assert resumed.mask_steps == pytest.approx(before - supernet_steps + whole.mask_steps / 2, abs=2)


@pytest.mark.parametrize("name", MODELS)
def test_a_smaller_budget_ends_a_fit_where_it_stands(name, data):
    model = MODELS[name]()
    model.fit(data, 4, until=0.6, show_progress=False)
    before = model.step
    model.fit(data, 1, show_progress=False)
    assert model.fitted
    assert model.step == before + getattr(model, "mask_steps", 0), "masks come last, and come"


def test_a_loop_of_ones_own_goes_on_with_masks_when_it_is_planned_longer(data):
    hmnas = MODELS["hmnas"]()
    for total in (10, 20):
        hmnas.plan(total)
        while not hmnas.fitted:
            hmnas.loss(next(iter(data.batches(TRAIN, 16, seed=0)))).backward()
        assert (hmnas.supernet_steps, hmnas.mask_steps) == (7, total - 7)

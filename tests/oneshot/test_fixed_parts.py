"""Fixed parts, which no choice touches: their kernels keep their values while a one-shot model learns."""

import numpy as np
import pytest
import torch
from strategies import few_digits

from optuna_nas import (
    GHN,
    HMNAS,
    SNAS,
    GHNRecipe,
    HMNASRecipe,
    NetworkSpace,
    SNASRecipe,
    darts_search_skeleton,
    darts_space,
    nasbench201_skeleton,
    nasbench201_space,
)
from optuna_nas.training.checkpoints import save_tensors

SPACE = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 4, (1, 8, 8), 10, affine=False))
MODELS = {"snas": (SNAS, SNASRecipe), "hmnas": (HMNAS, HMNASRecipe)}


@pytest.fixture(scope="module")
def data():
    return few_digits(128)


def changed(before, after):
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}


def copied(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


@pytest.mark.parametrize(
    "space", [SPACE, NetworkSpace(darts_space(), darts_search_skeleton(3, 4, (1, 8, 8), 10))], ids=["nb201", "darts"]
)
def test_fixed_kernels_are_those_of_all_networks_that_no_choice_removes(space):
    """The oracle: parameters that every random network has and that keep their name, without norms and outputs."""
    random = np.random.default_rng(0)
    drawn = [space.sample(random) for _ in range(40)]
    networks = [dict(a.build(seed=0).named_parameters()) for a in drawn if a.connected]
    common = set.intersection(*(set(network) for network in networks))
    supernet = dict(space.supernet(0).named_parameters())
    kernels = {name for name in common if supernet[name].ndim > 1 and "classifier" not in name}
    assert space.fixed_kernels() == kernels
    assert kernels


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("freeze_fraction", "when"), [(1.0, "never"), (0.5, "late"), (0.0, "at once")])
def test_fixed_kernels_keep_their_values_for_their_share_of_the_budget(data, name, freeze_fraction, when):
    model, recipe = MODELS[name]
    masks = {"mask_fraction": 0.0} if name == "hmnas" else {}
    model = model(SPACE, recipe(batch_size=16, freeze_fraction=freeze_fraction, **masks))
    before, fixed = copied(model.supernet), SPACE.fixed_kernels()
    model.fit(data, 2, until=0.5)
    half = changed(before, copied(model.supernet))
    assert half, "the rest learns"
    assert bool(half & fixed) == (when == "at once")
    model.fit(data, 2)
    assert bool(changed(before, copied(model.supernet)) & fixed) == (when != "never")


@pytest.mark.parametrize("name", MODELS)
def test_a_fit_that_thaws_and_goes_on_in_another_process_ends_with_the_same_numbers(data, name, tmp_path):
    make, recipe = MODELS[name]
    recipe = recipe(batch_size=16, freeze_fraction=0.5)
    straight = make(SPACE, recipe)
    straight.fit(data, 4)
    first, second = make(SPACE, recipe), make(SPACE, recipe)
    first.fit(data, 4, until=0.7, checkpoint=tmp_path / "model.safetensors")
    second.fit(data, 4, checkpoint=tmp_path / "model.safetensors")
    assert not changed(copied(straight.supernet), copied(second.supernet))


def test_a_network_that_inherits_trains_as_a_whole(data):
    snas = SNAS(SPACE, SNASRecipe(batch_size=16))
    snas.fit(data, 1)
    network = SPACE.build(snas.most_likely(), snas.weights(snas.most_likely()))
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_a_hypernetwork_does_not_generate_them(data):
    space = SPACE.with_skeleton(affine=True)
    ghn = GHN(space, GHNRecipe(batch_size=16, phases=1))
    before = copied(ghn.modules["fixed"])
    ghn.fit(data, 1)
    assert not changed(before, copied(ghn.modules["fixed"]))
    wanted = [{"cell_0_3": ["nor_conv_1x1"]}, {"cell_0_3": ["nor_conv_3x3"]}]
    one, other = ghn.generate([space.architecture(choices) for choices in wanted])
    for name in space.fixed_kernels() & one.keys() & other.keys():
        assert torch.equal(one[name], other[name])
        assert torch.equal(one[name], before[name])
    all_generated = GHN(space, GHNRecipe(batch_size=16, phases=1, freeze_fraction=0))
    assert "fixed" not in all_generated.modules
    (weights,) = all_generated.generate([space.architecture(wanted[0])])
    assert all(weights[name].grad_fn is not None for name in space.fixed_kernels())


def test_a_share_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"`freeze_fraction` must be in \[0, 1\] but got 1.5"):
        SNASRecipe(freeze_fraction=1.5)
    with pytest.raises(ValueError, match=r"`freeze_fraction` must be one of \(0, 1\) but got 0.5"):
        GHNRecipe(freeze_fraction=0.5)


def test_a_fit_of_before_goes_on_where_nothing_is_frozen_and_says_what_differs_elsewhere(data, tmp_path):
    path = tmp_path / "snas.safetensors"
    snas = SNAS(SPACE, SNASRecipe(batch_size=16, freeze_fraction=0.0))
    snas.fit(data, 2, until=0.5)
    progress = {"step": snas.step, "total_steps": snas.total_steps, "skipped": 0, "seconds": 1.0}
    configuration = snas.configuration
    del configuration["recipe"]["freeze_fraction"]  # as an earlier version wrote it
    description = {"kind": "SNAS", "configuration": configuration, "progress": {**progress, **snas.progress()}}
    save_tensors(path, snas.tensors(), description)
    again = SNAS(SPACE, SNASRecipe(batch_size=16, freeze_fraction=0.0))
    again.fit(data, 2, checkpoint=path)
    assert again.fitted
    with pytest.raises(ValueError, match=r"differs in recipe \(freeze_fraction 0.0, not 1.0\)"):
        SNAS(SPACE, SNASRecipe(batch_size=16)).load(path)

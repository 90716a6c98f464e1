"""HM-NAS: masks act on normalised weights, their gradient goes straight through, what survives computes the same."""

import logging
import math
import pickle
from dataclasses import replace
from itertools import pairwise

import numpy as np
import optuna
import pytest
import torch
import torch.nn.functional as F
from strategies import TINY, TINY_BLOCK, TINY_MULTI, few_digits, placed, small_skeleton
from torch.func import functional_call

from optuna_nas import (
    CellKind,
    CellSpace,
    NetworkSpace,
    Recipe,
    Skeleton,
    TrainObjective,
    hmnas_space,
    load_network,
    train,
)
from optuna_nas.data import Batch
from optuna_nas.networks import DiscreteNetwork, use_batch_statistics
from optuna_nas.objective import TrialRun
from optuna_nas.objective.trial_training import network_path
from optuna_nas.oneshot import HMNAS, HMNASRecipe, OneShotModel
from optuna_nas.oneshot.hmnas import bilevel
from optuna_nas.space import NONE
from optuna_nas.storage.attributes import MASKED, MULTIPLY_ADDS, PARAMS
from optuna_nas.training import TrainingStopped, evaluate, load_tensors, save_tensors

SPACE = CellSpace(
    ("skip_connect", "nor_conv_3x3", "avg_pool_3x3"), 2, 1, (CellKind("cell"), CellKind("reduction", 2)), max_ops=3
)
FRAME = Skeleton(("cell", "reduction", "cell"), 4, (1, 8, 8), 10, affine=False)
FIRST = "cell_0_1"


@pytest.fixture(scope="module")
def data():
    return few_digits(96)


def model(seed=0, space=SPACE, frame=FRAME, **changes):
    return HMNAS(NetworkSpace(space, frame), HMNASRecipe(**{"batch_size": 16, "seed": seed, **changes}))


def images(batch=8):
    return torch.randn(batch, 1, 8, 8)


def scores(hmnas, x, masked):
    weights = hmnas.masks.masked_weights() if masked else {}
    return functional_call(hmnas.supernet, weights, (x, hmnas.masks.mixing(masked)))


def drop(hmnas, edges=(), ops=(), weights=0.0):
    """Let masks of edges, of (edge, op) and a share of the weights fall."""
    with torch.no_grad():
        for path in edges:
            hmnas.masks.edge_masks_E[hmnas.paths.index(path)] = 0.0
        for path, op in ops:
            hmnas.masks.op_masks_EO[hmnas.paths.index(path), hmnas.masks.ops.index(op)] = 0.0
        random = torch.Generator().manual_seed(0)
        for mask in hmnas.masks.weight_masks.values():
            mask[torch.rand(mask.shape, generator=random) < weights] = 0.0


def in_double(hmnas):
    hmnas.supernet.double()
    for parameter in (*hmnas.masks.logits, *hmnas.masks.masks):
        parameter.data = parameter.data.double()
    return hmnas


# -- weights of edges and ops -------------------------------------------------------------------------------------


@pytest.mark.parametrize("softmax", ["node", "cell"])
def test_edges_are_normalised_over_their_node_or_their_cell(softmax):
    hmnas = model(edge_softmax=softmax)
    sums = {}
    for path, weight in hmnas.edge_weights.items():
        kind, target, _ = SPACE.places[path]
        group = (kind.name, target) if softmax == "node" else kind.name
        sums[group] = sums.get(group, 0.0) + weight
    assert list(sums.values()) == pytest.approx([1.0] * len(sums))
    assert len(sums) == (4 if softmax == "node" else 2)
    assert all(sum(row.values()) == pytest.approx(1.0) for row in hmnas.op_weights.values())


def test_none_is_left_out_because_masks_do_its_work():
    hmnas = HMNAS(NetworkSpace(TINY, small_skeleton(TINY)))
    assert hmnas.masks.ops == tuple(op for op in TINY.ops if op != NONE)
    assert all(
        float(vector.detach()[TINY.ops.index(NONE)]) == 0 for vector in hmnas.masks.mixing(masked=False).values()
    )


def test_the_papers_supernet_has_its_size():
    frame = Skeleton(
        ("normal", "reduction", "reduction"), 36, (3, 32, 32), 10, stem_multiplier=3, affine=False, pool_norm=True
    )
    hmnas = HMNAS(NetworkSpace(hmnas_space(), frame))
    assert sum(parameter.numel() for parameter in hmnas.supernet.parameters()) == pytest.approx(2.95e6, rel=2e-3)


# -- masks --------------------------------------------------------------------------------------------------------


def test_masks_that_keep_everything_change_nothing():
    hmnas, x = model(), images()
    weights = dict(hmnas.supernet.named_parameters())
    assert all(torch.equal(weights[name], tensor) for name, tensor in hmnas.masks.masked_weights().items())
    plain = hmnas.masks.mixing(masked=False)
    assert all(torch.equal(plain[path], vector) for path, vector in hmnas.masks.mixing(masked=True).items())
    torch.testing.assert_close(scores(hmnas, x, masked=True), scores(hmnas, x, masked=False))


def test_an_edge_whose_mask_fell_is_as_good_as_deleted():
    hmnas, x = model(), images()
    drop(hmnas, edges=[FIRST], ops=[("cell_0_2", "nor_conv_3x3")])
    mixing = {path: vector.detach().clone() for path, vector in hmnas.masks.mixing(masked=False).items()}
    mixing[FIRST][:] = 0.0
    mixing["cell_0_2"][SPACE.ops.index("nor_conv_3x3")] = 0.0
    expected = hmnas.supernet(x, mixing)
    torch.testing.assert_close(scores(hmnas, x, masked=True), expected)
    assert not torch.equal(expected, scores(hmnas, x, masked=False))


def test_the_gradient_of_a_real_mask_is_that_of_the_binary_one():
    hmnas, x, labels = in_double(model()), images().double(), torch.arange(8)
    drop(hmnas, edges=["cell_1_2"], ops=[(FIRST, "skip_connect")], weights=0.3)
    masks = hmnas.masks.masks
    loss, _ = hmnas.loss_of(Batch(x, labels), hmnas.masks.masked_weights(), hmnas.masks.mixing(masked=True))
    ours = torch.autograd.grad(loss, masks)
    # The same loss as a function of the ones and zeros themselves.
    binary = [(mask.detach() > hmnas.recipe.threshold).double().requires_grad_() for mask in masks]
    ops, edges, *weights = binary
    mixed = (hmnas.masks.edge_weights() * edges)[:, None] * (hmnas.masks.op_logits_EO.softmax(-1) * ops)
    named = dict(hmnas.supernet.named_parameters())
    cut = {name: named[name].detach() * mask for name, mask in zip(hmnas.masks.weight_masks, weights, strict=True)}
    out = functional_call(hmnas.supernet, cut, (x, dict(zip(hmnas.paths, mixed.unbind(), strict=True))))
    for one, other in zip(ours, torch.autograd.grad(F.cross_entropy(out, labels), binary), strict=True):
        torch.testing.assert_close(one, other)


def test_a_budget_in_which_no_mask_can_fall_is_refused(data):
    with pytest.raises(ValueError, match="`mask_learning_rate` must let a mask fall within the budget"):
        model(mask_learning_rate=1e-5).fit(data, 2)
    model().fit(data, 1)  # the rate that follows from the budget


# -- learning -----------------------------------------------------------------------------------------------------


def test_ops_and_edges_learn_after_the_warm_up_and_ever_more_rarely(data):
    hmnas = model(warmup_fraction=0.2, mask_fraction=0.0)
    hmnas.begin(data, 200, ("weights", "choices"))
    n_steps = hmnas.total_steps
    learns = np.array([hmnas.recipe.choices_learn(step, n_steps) for step in range(n_steps)])
    warm = round(0.2 * n_steps)
    assert not learns[: warm - 1].any()
    assert learns[warm + 1 : warm + 15].mean() > 0.9
    quarters = [part.mean() for part in np.array_split(learns[warm:], 4)]
    assert quarters == sorted(quarters, reverse=True)
    assert quarters[-1] < 0.1


def test_weights_are_frozen_while_masks_learn_and_masks_while_weights_do(data):
    hmnas = model(mask_fraction=0.5)
    hmnas.fit(data, 4, until=0.5)
    assert hmnas.step == hmnas.supernet_steps
    assert all((mask == 1e-2).all() for mask in hmnas.masks.weight_masks.values())
    weights = {name: tensor.clone() for name, tensor in hmnas.supernet.state_dict().items()}
    logits = hmnas.masks.op_logits_EO.detach().clone()
    hmnas.fit(data, 4)
    assert all(torch.equal(weights[name], tensor) for name, tensor in hmnas.supernet.state_dict().items())
    assert torch.equal(logits, hmnas.masks.op_logits_EO)
    assert any((mask != 1e-2).any() for mask in hmnas.masks.weight_masks.values())


def test_the_supernet_sees_the_split_for_weights_and_masks_see_both(data):
    hmnas = model(mask_fraction=0.5)
    both = ("weights", "choices")
    hmnas.begin(data, 2, both)
    half = hmnas.supernet_steps
    seen = [labels for _, labels in hmnas.batches(data, both, 0, hmnas.total_steps)]
    first = [labels for epoch in range(3) for _, labels in data.batches(["weights"], 16, seed=0, epoch=epoch)]
    then = [labels for epoch in range(3) for _, labels in data.batches(both, 16, seed=0, epoch=epoch)]
    expected = [*first[:half], *then[: hmnas.total_steps - half]]
    assert all(torch.equal(one, other) for one, other in zip(seen, expected, strict=True))
    later = [labels for _, labels in hmnas.batches(data, both, half + 2, hmnas.total_steps)]
    assert all(torch.equal(one, other) for one, other in zip(later, seen[half + 2 :], strict=True))


def test_epochs_are_counted_as_in_the_paper(data):
    """100 of the 40,000 images for weights, then 20 of all 50,000."""
    splits = {"weights": 40_000, "choices": 10_000, "report": 0, "test": 0}
    images = replace(data, splits={split: torch.zeros(n, dtype=torch.int64) for split, n in splits.items()})
    hmnas = HMNAS(NetworkSpace(SPACE, FRAME))
    hmnas.begin(images, 120, ("weights", "choices"))
    assert (hmnas.supernet_steps, hmnas.mask_steps) == (100 * (40_000 // 128), 20 * (50_000 // 128))


def test_a_share_of_the_budget_is_one_of_epochs(data):
    hmnas, shares = model(mask_fraction=0.25), []
    hmnas.fit(data, 4, until=0.75, on_step=shares.append)
    assert hmnas.step == hmnas.supernet_steps == 3 * 6  # steps of an epoch of the split for weights, of two of both
    hmnas.fit(data, 4, until=0.875, on_step=shares.append)
    assert hmnas.step == 3 * 6 + 6
    hmnas.fit(data, 4, on_step=shares.append)
    assert hmnas.step == hmnas.total_steps == 3 * 6 + 12
    assert shares == pytest.approx([step / 24 for step in range(1, 19)] + [0.75 + step / 48 for step in range(1, 13)])


@pytest.mark.parametrize("by", ["checkpoint", "load"])
def test_a_fit_of_before_goes_on_with_the_steps_that_it_counted(data, tmp_path, by, monkeypatch):
    path = tmp_path / "hmnas.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(HMNAS, "plan_epochs", OneShotModel.plan_epochs)  # all epochs of both splits
        whole, stopped = model(mask_fraction=0.5), model(mask_fraction=0.5)
        whole.fit(data, 2)
        stopped.fit(data, 2, until=0.25, checkpoint=path)
    tensors, description = load_tensors(path)
    del description["progress"]["mask_share"]
    save_tensors(path, tensors, description)
    again = model(mask_fraction=0.5)
    if by == "load":
        again.load(path)
    again.fit(data, 2, checkpoint=path)
    assert (again.supernet_steps, again.total_steps) == (12, 24)
    assert_same(again, whole)


def test_masks_slow_down_in_the_second_half_and_those_of_weights_are_faster(data):
    hmnas = model(mask_fraction=0.5)
    rates = []
    for share in (0.7, 0.9):
        hmnas.fit(data, 4, until=share)
        rates.append([group["lr"] for group in hmnas.optimizers["optimizers/masks"].param_groups])
    (ops, weights), late = rates
    # As far as in the paper's 20 epochs of 391 steps at 1e-5, and as widely spread as at 1e-4.
    assert ops * hmnas.mask_steps == pytest.approx(1e-5 * 7820)
    assert weights * hmnas.mask_steps**0.5 == pytest.approx(1e-4 * 7820**0.5)
    assert late == pytest.approx([0.1 * ops, 0.1 * weights])


def test_masks_fall_when_they_are_given_the_time(data):
    hmnas = model(mask_fraction=0.5)
    hmnas.fit(data, 40)
    last = hmnas.records[-1].metrics
    assert 0 < last["weights"] < 0.95
    assert hmnas.derive().kept_weights < 0.95


def test_the_pressure_is_the_share_of_ops_kept_and_its_gradient_goes_straight_through():
    hmnas = model()
    drop(hmnas, edges=["cell_1_2"], ops=[(FIRST, "skip_connect")])
    masks, n_ops = hmnas.masks, hmnas.masks.valid_EO.sum()
    share = masks.kept_share()
    assert share.item() == pytest.approx(masks.shares()["ops"])
    of_ops, of_edges = torch.autograd.grad(share, masks.choice_masks)
    ops, edges = ((mask.detach() > masks.threshold).float() for mask in masks.choice_masks)
    torch.testing.assert_close(of_ops, edges[:, None].expand_as(ops) / n_ops)
    torch.testing.assert_close(of_edges, ops.sum(1) / n_ops)


def test_with_a_sparsity_weight_more_falls(data):
    kept = {}
    for weight in (0.0, 10.0):
        hmnas = model(mask_fraction=0.5, sparsity_weight=weight)
        hmnas.fit(data, 4)
        kept[weight] = hmnas.masks.shares()["ops"]
    assert kept[10.0] < 0.5 < kept[0.0]


def test_without_a_sparsity_weight_it_is_the_fit_of_before(data, tmp_path):
    path, whole = tmp_path / "hmnas.safetensors", model(mask_fraction=0.5)
    whole.fit(data, 2, until=0.75, checkpoint=path)
    _, description = load_tensors(path)
    assert description["configuration"]["recipe"].keys() == vars(whole.recipe).keys() - {"sparsity_weight"}
    with pytest.raises(ValueError, match=r"recipe \(sparsity_weight by default, not 0.5\)"):
        model(mask_fraction=0.5, sparsity_weight=0.5).load(path)


@pytest.mark.parametrize("second_order", [False, True])
def test_ops_learn_from_the_split_for_choices(data, second_order, monkeypatch):
    monkeypatch.setattr(bilevel, "DIFFERENCE", 1e-5)
    hmnas = model(warmup_fraction=0.0, second_order=second_order)
    in_double(hmnas)
    x, t = images().double(), images().double()  # noise: no two activations meet a kink of the ReLU at once
    labels, train_labels = torch.arange(8), torch.arange(8).flip(0)
    rate, logits = 0.1, hmnas.masks.logits
    weights = dict(hmnas.supernet.named_parameters())
    if second_order:
        ours = hmnas.choice_gradients(Batch(x, labels), Batch(t, train_labels), rate)
        loss, _ = hmnas.loss_of(Batch(t, train_labels), weights)
        slope = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        decay = hmnas.recipe.weight_decay
        ahead = {n: w - rate * (g + decay * w) for (n, w), g in zip(weights.items(), slope, strict=True)}
        loss, _ = hmnas.loss_of(Batch(x, labels), ahead)
        expected = torch.autograd.grad(loss, logits)
        for one, other in zip(ours, expected, strict=True):  # differences stand in for a second derivative
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    else:
        loss, _ = hmnas.loss_of(Batch(x, labels), {})
        expected = torch.autograd.grad(loss, logits)
        hmnas.begin(data, 4, ("weights", "choices"))
        before = [logit.detach().clone() for logit in logits]
        hmnas.train_choices(Batch(x, labels), Batch(t, train_labels), rate)
        for logit, old, gradient in zip(logits, before, expected, strict=True):  # Adam's first step is of its rate
            moved = (logit.detach() - old)[gradient.abs() > 1e-3]
            towards = -gradient.sign()[gradient.abs() > 1e-3]
            torch.testing.assert_close(
                moved, hmnas.recipe.logit_rate(hmnas.supernet_steps) * towards, rtol=0.05, atol=1e-6
            )


def test_the_step_ahead_with_momentum_is_where_the_optimizer_goes(data, monkeypatch):
    monkeypatch.setattr(bilevel, "DIFFERENCE", 1e-5)
    hmnas = model(warmup_fraction=0.0, second_order="momentum", clip_norm=0.0)
    hmnas.fit(data, 4, until=0.2)
    in_double(hmnas)
    choices, batch = (Batch(images().double(), labels) for labels in (torch.arange(8), torch.arange(8).flip(0)))
    weights = {name: w for name, w in hmnas.supernet.named_parameters() if w.requires_grad}
    states = hmnas.optimizers["optimizers/weights"].state
    for weight in weights.values():
        states[weight]["momentum_buffer"] = torch.randn(weight.shape, dtype=torch.float64)
    rate, recipe, before = 0.1, hmnas.recipe, {name: w.detach().clone() for name, w in weights.items()}
    ours = hmnas.choice_gradients(choices, batch, rate)
    # PyTorch's own step of SGD ends at the weights ahead, which is where autograd differentiates through it.
    slope = torch.autograd.grad(hmnas.loss_of(batch, weights)[0], list(weights.values()), create_graph=True)
    ahead = {
        name: w - rate * (recipe.momentum * states[w]["momentum_buffer"] + g + recipe.weight_decay * w)
        for (name, w), g in zip(weights.items(), slope, strict=True)
    }
    expected = torch.autograd.grad(hmnas.loss_of(choices, ahead)[0], hmnas.masks.logits)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    assert all(torch.equal(before[name], w) for name, w in weights.items())  # it only looks
    optimizer = torch.optim.SGD(weights.values(), rate, recipe.momentum, weight_decay=recipe.weight_decay)
    for weight, gradient in zip(weights.values(), slope, strict=True):
        optimizer.state[weight]["momentum_buffer"] = states[weight]["momentum_buffer"].clone()
        weight.grad = gradient.detach()
    optimizer.step()
    for name, weight in weights.items():
        torch.testing.assert_close(weight.detach(), ahead[name].detach())


@pytest.mark.parametrize("stop_at", [3, 9, 14])
@pytest.mark.parametrize("second_order", [False, True, "momentum"])
def test_a_fit_that_was_stopped_ends_with_the_same_numbers(data, tmp_path, stop_at, second_order):
    through = model(mask_fraction=0.5, warmup_fraction=0.1, second_order=second_order)
    through.fit(data, 2)
    assert through.total_steps > stop_at
    stopped = model(mask_fraction=0.5, warmup_fraction=0.1, second_order=second_order)
    path = tmp_path / "hmnas.safetensors"
    with pytest.raises(TrainingStopped):
        stopped.fit(data, 2, checkpoint=path, should_stop=lambda: stopped.step == stop_at)
    again = model(mask_fraction=0.5, warmup_fraction=0.1, second_order=second_order)
    again.fit(data, 2, checkpoint=path)
    assert_same(again, through)


def test_a_pickled_model_goes_on_alike(data):
    one = model(mask_fraction=0.5)
    one.fit(data, 2, until=0.7)
    other = pickle.loads(pickle.dumps(one))
    one.fit(data, 2)
    other.fit(data, 2)
    assert_same(one, other)


def assert_same(one, other):
    assert one.step == other.step
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, other.tensors()[name]), name
    assert [record.metrics for record in one.records] == [record.metrics for record in other.records]


# -- what survives ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [SPACE, TINY_MULTI])
def test_the_compact_network_computes_what_the_masked_supernet_does(space):
    frame = FRAME if space is SPACE else small_skeleton(space, affine=False, pool_norm=True)
    hmnas = in_double(model(space=space, frame=frame))
    rest = list(hmnas.paths)
    drop(hmnas, edges=rest[1::4], ops=[(rest[0], hmnas.masks.ops[0]), (rest[2], hmnas.masks.ops[1])], weights=0.4)
    x = torch.randn(8, *frame.input_shape, dtype=torch.float64)
    network = hmnas.compact().double().train()
    use_batch_statistics(network)
    torch.testing.assert_close(network(x), scores(hmnas, x, masked=True), atol=1e-9, rtol=1e-6)
    # What fell costs nothing: it is not there.
    names = {node.path + "/" + node.op for node in network.graph if node.path}
    assert not any(name.startswith(rest[1] + "/") for name in names)
    assert f"{rest[0]}/{hmnas.masks.ops[0]}" not in names


def test_fine_tuning_moves_only_what_survived(data):
    hmnas = model()
    hmnas.attach(data)
    drop(hmnas, weights=0.5)
    derived = hmnas.derive()
    assert all((derived.weights[name][mask == 0] == 0).all() for name, mask in derived.masks.items())
    network = hmnas.compact(derived)
    train(network, data, Recipe(epochs=2, batch_size=16, learning_rate=0.1))
    network.eval()(images())
    weights = dict(network.named_parameters())
    for name, mask in derived.masks.items():
        assert (weights[name][mask == 0] == 0).all()
        assert (weights[name][mask == 1] != derived.weights[name][mask == 1]).float().mean() > 0.9
    assert 0.45 < derived.kept_weights < 0.55


def test_what_survives_is_fine_tuned_as_a_trial_and_its_file_computes_the_same(data, tmp_path):
    hmnas = model(mask_fraction=0.5)
    hmnas.fit(data, 4)
    drop(hmnas, edges=["cell_1_2"], ops=[(FIRST, "skip_connect")], weights=0.3)
    derived = hmnas.derive()
    recipe = Recipe(epochs=2, batch_size=16, learning_rate=0.05)
    objective = TrainObjective(
        NetworkSpace(SPACE, FRAME), data, recipe, initial_weights=hmnas.inherited, run=TrialRun(folder=tmp_path)
    )
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(SPACE.encode(derived.architecture))
    study.optimize(objective, n_trials=2)
    network = load_network(network_path(tmp_path, 0))
    assert network.mixing is not None
    assert evaluate(network, data, "report").metric == study.trials[0].value
    assert all((network.get_parameter(name)[mask == 0] == 0).all() for name, mask in derived.masks.items())
    assert load_network(network_path(tmp_path, 1)).mixing is None
    copied = pickle.loads(pickle.dumps(network))
    x = images()
    assert torch.equal(copied.eval()(x), network(x))


def test_a_mixed_network_weighs_every_op():
    with pytest.raises(ValueError, match=r"`mixing` must weigh every op that is kept but lacks 'avg_pool_3x3' at"):
        DiscreteNetwork(placed(SPACE.full_architecture(), FRAME), mixing={})


def test_masks_that_cut_every_way_leave_the_heaviest(caplog):
    hmnas = model()
    with torch.no_grad():
        hmnas.masks.op_logits_EO[:, SPACE.ops.index("avg_pool_3x3")] += 2.0
        hmnas.masks.edge_logits_E[hmnas.paths.index("reduction_0_2")] += 5.0
    drop(hmnas, edges=[path for path in hmnas.paths if path.startswith("reduction")])
    with caplog.at_level(logging.WARNING):
        derived = hmnas.derive()
    assert "its heaviest way is kept" in caplog.text
    assert derived.architecture.connected
    kept = {path: names for path, names in derived.architecture.choices if path.startswith("reduction") and names}
    assert list(kept.values()) == [("avg_pool_3x3",)] * len(kept)
    derived.build()(images())


def test_another_threshold_gives_another_member_of_the_family():
    hmnas = model()
    with torch.no_grad():
        hmnas.masks.op_masks_EO.copy_(
            torch.linspace(0.0, 0.02, hmnas.masks.op_masks_EO.numel()).view_as(hmnas.masks.op_masks_EO)
        )
    sizes = [sum(map(len, hmnas.kept(threshold).values())) for threshold in (0.0, 0.005, 0.015)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3


def test_a_family_grows_smaller_until_no_way_is_left():
    hmnas = model()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for mask in (hmnas.masks.op_masks_EO, *hmnas.masks.weight_masks.values()):
            mask.copy_(0.02 * torch.rand(mask.shape, generator=random))
    family = hmnas.family(12)
    assert len(family) > 3
    assert family[0].params == hmnas.derive().params
    for larger, smaller in pairwise(family):
        assert larger.params > smaller.params
        assert larger.threshold < smaller.threshold
    for member in family:
        network = hmnas.compact(member)
        nonzero = sum(int((p != 0).sum()) for name, p in network.named_parameters() if name in member.masks)
        others = sum(p.numel() for name, p in network.named_parameters() if name not in member.masks)
        assert member.params == network.params_left == nonzero + others
    whole = hmnas.derive(-math.inf)
    assert whole.params == sum(p.numel() for p in hmnas.supernet.parameters())
    x = images()
    assert torch.allclose(hmnas.compact(whole)(x), scores(hmnas, x, masked=False), atol=1e-5)
    with pytest.raises(ValueError, match="`members` must be at least 1"):
        hmnas.family(0)


# -- a running network grows smaller ----------------------------------------------------------------------------------


def live(data, hmnas, folder=None, listener=None, **changes):
    recipe = Recipe(epochs=3, batch_size=16, learning_rate=0.05)
    return TrainObjective(
        NetworkSpace(SPACE, FRAME), data, recipe, masks=hmnas, run=TrialRun(folder, listener), **changes
    )


def optimize(objective, architecture, **changes):
    study = optuna.create_study(direction="maximize", **changes)
    study.enqueue_trial(SPACE.encode(architecture))
    study.optimize(objective, n_trials=1)
    return study.trials[0]


def test_masks_make_a_running_trial_cheaper_and_its_file_computes_the_same(data, tmp_path):
    hmnas = model()
    gone = [(FIRST, "skip_connect"), ("cell_1_2", "nor_conv_3x3")]
    drop(hmnas, edges=["reduction_0_2"], ops=gone)
    heard = []

    class Listener:
        def trial_started(self, trial, metrics): ...

        def progress(self, number, fraction): ...

        def epoch(self, number, step, metrics):
            heard.append((step, metrics))

    trial = optimize(live(data, hmnas, tmp_path, listener=Listener()), SPACE.full_architecture())
    (row,) = trial.user_attrs[MASKED]
    assert row["epoch"] == 1
    assert row["params"] < trial.user_attrs[PARAMS]
    assert row["multiply_adds"] < trial.user_attrs[MULTIPLY_ADDS]
    assert row["accuracy_before"] == trial.intermediate_values[1]
    assert (1, row["accuracy_after"]) in [(s, m["masked_accuracy"]) for s, m in heard if "masked_accuracy" in m]
    network = load_network(network_path(tmp_path, 0))
    assert network.architecture["reduction_0_2"] == ()
    assert "skip_connect" not in network.architecture[FIRST]
    assert sum(p.numel() for p in network.parameters()) == row["params"]
    assert evaluate(network, data, "report").metric == trial.value


def test_masks_that_fall_while_a_trial_trains_are_seen_after_the_epoch(data):
    hmnas = model()

    class Falling:
        """The masks of a model that is trained meanwhile: an edge falls after the second epoch."""

        asked = 0

        def fallen(self, remaining):
            self.asked += 1
            drop(hmnas, edges=["cell_1_2"] if self.asked == 2 else [])
            return hmnas.fallen(remaining)

        def __getattr__(self, name):
            return getattr(hmnas, name)

    recipe = Recipe(epochs=4, batch_size=16)
    trial = optimize(
        TrainObjective(NetworkSpace(SPACE, FRAME), data, recipe, masks=Falling()), SPACE.full_architecture()
    )
    assert [row["epoch"] for row in trial.user_attrs[MASKED]] == [2]


def test_inherited_weights_are_cut_in_the_running_network_too(data, tmp_path):
    hmnas = model()
    drop(hmnas, weights=0.5)
    weights = hmnas.supernet.weights_of(SPACE.full_architecture())
    trial = optimize(live(data, hmnas, tmp_path, initial_weights=lambda _: weights), SPACE.full_architecture())
    (row,) = trial.user_attrs[MASKED]
    network = load_network(network_path(tmp_path, 0))
    assert row["params"] == network.params_left < sum(p.numel() for p in network.parameters())
    assert all((network.get_parameter(name)[mask == 0] == 0).all() for name, mask in hmnas.weight_masks().items())
    scratch = optimize(live(data, hmnas), SPACE.full_architecture())
    assert MASKED not in scratch.user_attrs  # masks on weights say nothing about fresh ones


@pytest.mark.parametrize("stop_after", [7, 15])
def test_a_training_that_was_stopped_after_a_removal_ends_with_the_same_numbers(data, tmp_path, stop_after):
    hmnas = model()
    drop(hmnas, edges=["cell_1_2"], weights=0.4)
    weights = hmnas.supernet.weights_of(SPACE.full_architecture())

    def curve(checkpoint=None, should_stop=None):
        network = DiscreteNetwork(placed(SPACE.full_architecture(), FRAME), weights)
        found = []

        def adapt(result):
            network.remove(hmnas.fallen(network.remaining), hmnas.weight_masks())

        train(
            network,
            data,
            Recipe(epochs=3, batch_size=16),
            on_epoch=found.append,
            adapt=adapt,
            checkpoint=checkpoint,
            should_stop=should_stop,
        )
        return [result.validation_loss for result in found], network

    expected, whole = curve()
    steps = iter(range(1000))
    with pytest.raises(TrainingStopped):
        curve(tmp_path / "c", lambda: next(steps) == stop_after)
    found, resumed = curve(tmp_path / "c")
    assert found == expected
    assert resumed.remaining == whole.remaining
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_what_was_removed_is_neither_computed_nor_trained():
    network = DiscreteNetwork(placed(SPACE.full_architecture(), FRAME), seed=0)
    ran = set()
    for name, part in network.parts.items():
        part.register_forward_hook(lambda *_, name=name: ran.add(name))
    x = images()
    network(x)
    assert {name for name, part in network.parts.items() if list(part.parameters())} <= ran
    gone = [("cell_1_2", op) for op in SPACE.ops] + [(FIRST, "nor_conv_3x3")]
    network.remove(gone)
    ran.clear()
    F.cross_entropy(network(x), torch.zeros(8, dtype=torch.long)).backward()
    nodes = {node.name: node for node in network.graph}
    assert not [name for name in ran if (nodes[name].path, nodes[name].op) in gone]
    removed = [name for name in network.parts if (nodes[name].path, nodes[name].op) in gone]
    assert len(removed) > 3
    assert all(p.grad is None for name in removed for p in network.parts[name].parameters())
    small = network.compact()
    assert sum(p.numel() for p in small.parameters()) == network.params_left
    assert torch.equal(small.eval()(x), network.eval()(x))
    with pytest.raises(ValueError, match="`ops` must leave a way"):
        network.remove([(path, op) for path in SPACE.paths for op in SPACE.ops])


def test_masks_leave_the_heaviest_way_of_what_a_trial_has(caplog):
    hmnas = model()
    drop(hmnas, edges=SPACE.paths)
    architecture = SPACE.architecture(dict.fromkeys(SPACE.paths, ("nor_conv_3x3",)))
    fallen = hmnas.fallen(architecture)
    assert "heaviest way is kept" in caplog.text
    left = SPACE.architecture({p: () if (p, "nor_conv_3x3") in fallen else ("nor_conv_3x3",) for p in SPACE.paths})
    assert left.connected
    assert 0 < len(fallen) < len(SPACE.paths)


def test_an_objective_takes_masks_of_its_own_space_only(data):
    with pytest.raises(ValueError, match="`masks` must be an HMNAS of the space of the objective"):
        TrainObjective(NetworkSpace(SPACE, FRAME), data, Recipe(), masks=model(space=replace(SPACE, max_ops=2)))


# -- survival ---------------------------------------------------------------------------------------------------------


def test_survival_by_hand():
    hmnas = model()
    everything = SPACE.full_architecture()
    assert hmnas.survival(everything) == pytest.approx((1.0, 1.0, 1.0, 1.0))
    drop(hmnas, edges=["cell_0_2"], ops=[(FIRST, "nor_conv_3x3")])
    edges, ops = hmnas.edge_weights, hmnas.op_weights
    chosen = {
        FIRST: ("nor_conv_3x3", "skip_connect"),
        "cell_0_2": ("skip_connect",),
        "reduction_0_2": ("skip_connect",),
    }
    architecture = SPACE.architecture(chosen)
    worth = {(path, op): edges[path] * ops[path][op] for path, names in chosen.items() for op in names}
    total = sum(worth.values())
    found = hmnas.survival(architecture)
    fallen = worth[FIRST, "nor_conv_3x3"]
    assert found.share == pytest.approx(1 - (fallen + worth["cell_0_2", "skip_connect"]) / total)
    assert found.ops == pytest.approx(1 - fallen / total)
    used = [edges[path] for path in chosen]
    assert found.edges == pytest.approx(1 - edges["cell_0_2"] / sum(used))
    nothing = SPACE.architecture({})
    assert hmnas.survival(nothing) == (0.0, 0.0, 0.0, 0.0)


def test_scores_are_negative_losses_of_the_supernet_without_the_other_ops(data):
    hmnas = model()
    hmnas.fit(data, 20)
    better = hmnas.score([SPACE.full_architecture()])[0]
    assert better > -math.log(10)
    assert hmnas.score([SPACE.architecture({})])[0] < better


# -- bad input ----------------------------------------------------------------------------------------------------


def test_what_cannot_work_is_refused(data):
    with pytest.raises(ValueError, match="`space` must have ops on edges"):
        HMNAS(NetworkSpace(TINY_BLOCK, small_skeleton(TINY_BLOCK)))
    without = replace(data, splits={**data.splits, "choices": data.splits["choices"][:0]})
    with pytest.raises(ValueError, match="`data` must have examples in the split 'choices'"):
        model().fit(without, 1)
    with pytest.raises(ValueError, match="`architecture` must be of the space of this HMNAS"):
        model().survival(TINY.full_architecture())


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("edge_softmax", "all", "must be one of"),
        ("precision", "float16", "must be one of"),
        ("batch_size", 0, "must be at least 1"),
        ("scoring_images", 1, "must be at least 2"),
        ("batch_size", 1.5, "must be an integer"),
        ("second_order", 1, "must be True, False or 'momentum'"),
        ("learning_rate", "fast", "must be a number"),
        ("learning_rate", 0.0, "must be positive"),
        ("mask_learning_rate", -1.0, "must be positive"),
        ("weight_decay", -1.0, "must not be negative"),
        ("sparsity_weight", -1.0, "must not be negative"),
        ("mask_fraction", 1.0, r"must be in \[0, 1\)"),
        ("threshold", 0.02, "must be from 0 and below `mask_start`"),
    ],
)
def test_a_recipe_out_of_range_is_refused(field, value, sentence):
    with pytest.raises(ValueError, match=rf"`{field}` {sentence}"):
        HMNASRecipe(**{field: value})


def test_the_compact_network_can_be_exported():
    hmnas = model()
    drop(hmnas, edges=["cell_1_2"], ops=[(FIRST, "skip_connect")], weights=0.3)
    network = hmnas.compact().eval()
    x = images(3)
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(network, (x,), dynamic_shapes=({0: batch},))
    more = images(5)
    assert torch.allclose(exported.module()(more), network(more), atol=1e-6)


def test_endurance_is_the_share_of_thresholds_survived():
    hmnas = model()
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        hmnas.masks.op_masks_EO.copy_(torch.rand(hmnas.masks.op_masks_EO.shape, generator=random))
        hmnas.masks.edge_masks_E.copy_(torch.rand(hmnas.masks.edge_masks_E.shape, generator=random))
    draws = np.random.default_rng(0)
    cells = [SPACE.sample(draws) for _ in range(20)]
    lowest = (
        torch.minimum(hmnas.masks.op_masks_EO, hmnas.masks.edge_masks_E[:, None])
        .detach()
        .flatten()
        .sort()
        .values.tolist()
    )
    expected = []
    for cell in cells:
        edges = []
        for path in SPACE.paths:
            # Just below every mask a threshold; what an edge keeps of its ops at each.
            kept = [
                [op in hmnas.kept(threshold - 1e-7)[path] for op in cell[path]] for threshold in lowest if cell[path]
            ]
            edges.append(np.mean(kept) if kept else 0.0)
        expected.append(np.mean(edges))
    # Masks of one edge are equal where the edge's own is the lowest: such ties share a rank.
    ties = 1 / len(lowest)
    assert hmnas.endurance(cells) == pytest.approx(expected, abs=ties)
    assert np.argsort(hmnas.endurance(cells))[0] == np.argmin(expected)
    weakest = hmnas.weakest(SPACE.full_architecture())
    masks = [
        float(torch.minimum(hmnas.masks.op_masks_EO.detach()[e, o], hmnas.masks.edge_masks_E.detach()[e]))
        for e, o in ((hmnas.paths.index(path), hmnas.masks.ops.index(op)) for path, op in weakest)
    ]
    assert masks == sorted(masks)

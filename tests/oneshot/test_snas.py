"""SNAS: learns weights and distribution at once, resumes to the same numbers, and its child keeps the accuracy."""

import copy
import gc
import itertools
import math
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from strategies import few_digits, placed, small_skeleton

from optuna_nas import (
    SNAS,
    CellKind,
    CellSpace,
    DiscreteNetwork,
    NetworkSpace,
    Skeleton,
    SNASRecipe,
    Supernet,
    digits,
    ghn_space,
    nasbench201_skeleton,
    nasbench201_space,
)
from optuna_nas.data import Batch, seeded_generator
from optuna_nas.oneshot.snas import model
from optuna_nas.oneshot.snas.distribution import architecture_of, concrete_sample
from optuna_nas.oneshot.snas.recipe import RELAXATIONS
from optuna_nas.training import TrainingDiverged, TrainingStopped, evaluate, task
from optuna_nas.training.task import Calling

SPACE = CellSpace(
    ("none", "skip_connect", "nor_conv_3x3", "avg_pool_3x3"), 2, 1, (CellKind("cell"), CellKind("reduction", 2))
)
SETS = CellSpace(("skip_connect", "nor_conv_1x1"), 2, 1, (CellKind("cell"), CellKind("reduction", 2)), max_ops=2)
TWO_OPS = CellSpace(("skip_connect", "nor_conv_1x1"), 2, 1, (CellKind("cell"),))
FRAME = Skeleton(("cell", "reduction"), 4, (1, 8, 8), 10, affine=False)
ONE_CELL = Skeleton(("cell",), 4, (1, 8, 8), 10, affine=False)
STEPS_PER_EPOCH = 22  # 64 images a step of the 1,438 that the digits' training splits hold


@pytest.fixture(scope="module")
def data():
    return few_digits(128)


def fitted(data, budget=3, space=SPACE, skeleton=FRAME, **recipe):
    snas = SNAS(NetworkSpace(space, skeleton), SNASRecipe(batch_size=16, learning_rate=0.1, **recipe))
    snas.fit(data, budget, show_progress=False)
    return snas


def state(snas):
    return {
        **{name: tensor.clone() for name, tensor in snas.supernet.state_dict().items()},
        "logits": torch.from_numpy(snas.logits),
        **{f"probabilities {r.step}": torch.from_numpy(r.probabilities) for r in snas.records},
        **{f"credit {r.step}": torch.from_numpy(r.credit) for r in snas.records},
        **{f"{name} {r.step}": torch.tensor(v) for r in snas.records for name, v in r.metrics.items()},
    }


def assert_equal(one, other):
    first, second = state(one), state(other)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


# -- resuming -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relaxation", RELAXATIONS)
@pytest.mark.parametrize("resource", [0.0, {"params": 700.0}], ids=["free", "bounded"])
def test_a_fit_that_was_stopped_goes_on_to_the_same_numbers(data, tmp_path, relaxation, resource):
    recipe = {"relaxation": relaxation, "resource": resource, "warmup_fraction": 0.2}
    straight = fitted(data, **recipe)
    for stop in (5, 17):
        snas = SNAS(NetworkSpace(SPACE, FRAME), straight.recipe)
        with pytest.raises(TrainingStopped):
            snas.fit(
                data, 3, checkpoint=tmp_path / f"{stop}.safetensors", should_stop=lambda s=snas, n=stop: s.step >= n
            )
        resumed = SNAS(NetworkSpace(SPACE, FRAME), straight.recipe)
        resumed.fit(data, 3, checkpoint=tmp_path / f"{stop}.safetensors")
        assert_equal(straight, resumed)


def test_rounds_end_with_the_numbers_of_one_fit(data):
    straight, rounds = fitted(data), SNAS(NetworkSpace(SPACE, FRAME), SNASRecipe(batch_size=16, learning_rate=0.1))
    for until in (0.1, 0.35, 0.35, 1.0):
        rounds.fit(data, 3, until=until)
        assert rounds.step == round(until * rounds.total_steps)
    assert_equal(straight, rounds)


def test_a_pickled_snas_goes_on_to_the_same_numbers(data):
    straight, snas = fitted(data), SNAS(NetworkSpace(SPACE, FRAME), SNASRecipe(batch_size=16, learning_rate=0.1))
    snas.fit(data, 3, until=0.5)
    copy = pickle.loads(pickle.dumps(snas))
    copy.fit(data, 3)
    assert_equal(straight, copy)


def test_a_file_of_an_snas_that_has_not_begun_can_be_read(data, tmp_path):
    snas = SNAS(NetworkSpace(SPACE, FRAME), SNASRecipe(batch_size=16, learning_rate=0.1))
    snas.save(tmp_path / "new.safetensors")
    snas.load(tmp_path / "new.safetensors")
    snas.fit(data, 3, checkpoint=tmp_path / "new.safetensors")
    assert_equal(fitted(data), snas)


def test_two_fits_at_once_are_one_after_the_other(data):
    straight, snas = fitted(data), SNAS(NetworkSpace(SPACE, FRAME), SNASRecipe(batch_size=16, learning_rate=0.1))
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: snas.fit(data, 3), range(3)))
    assert_equal(straight, snas)


def test_weights_leave_the_global_random_state_alone(data):
    snas = fitted(data)
    before = torch.random.get_rng_state()
    snas.weights(snas.most_likely())
    assert torch.equal(before, torch.random.get_rng_state())


def empty(data, split):
    return replace(data, splits={**data.splits, split: data.splits[split][:0]})


def test_a_finished_fit_returns_at_once(data):
    snas = fitted(data)
    before = state(snas)
    snas.fit(data, 3, on_step=lambda fraction: pytest.fail("it trained again"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(snas).items())


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(data):
    assert_equal(fitted(data, seed=3), fitted(data, seed=3))
    assert not np.array_equal(fitted(data, seed=3).logits, fitted(data, seed=4).logits)


# -- the method ---------------------------------------------------------------------------------------------------


def test_one_backward_pass_a_step(data, monkeypatch):
    calls = []
    backward = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda self, *args, **kwargs: calls.append(1) or backward(self))
    snas = fitted(data, budget=1, resource="mild")
    assert len(calls) == snas.step == 16


def test_logits_learn_only_after_the_warmup_and_weights_always(data):
    snas = SNAS(NetworkSpace(SPACE, FRAME), SNASRecipe(batch_size=16, warmup_fraction=0.5, resource=0.5))
    before = snas.supernet.state_dict()["parts.classifier.linear.weight"].clone()
    snas.fit(data, 2, until=0.5)
    assert np.array_equal(snas.logits, np.zeros_like(snas.logits))
    assert not torch.equal(snas.supernet.state_dict()["parts.classifier.linear.weight"], before)
    snas.fit(data, 2, until=0.6)
    assert np.abs(snas.logits).max() > 0


def test_the_warmup_may_train_one_path_at_a_time(data, monkeypatch):
    seen = []
    forward = Supernet.forward
    monkeypatch.setattr(
        Supernet,
        "forward",
        lambda self, *given, **named: (
            (seen.append(given[2] is not None) if torch.is_grad_enabled() else None) or forward(self, *given, **named)
        ),
    )
    fitted(data, 2, warmup_fraction=0.5, warmup_relaxation="one_path")
    assert seen == [True] * 16 + [False] * 16


def test_the_credit_of_an_edge_is_what_scaling_its_output_would_lower_the_loss_by(data):
    # R = -dL/dx_j . O~_ij (section 2.3) is minus the derivative of the loss in a factor on the edge's whole output.
    snas = fitted(data, budget=1)
    images, labels = next(iter(data.batches(("weights", "choices"), 16, seed=0, epoch=1)))
    mixing = concrete_sample(
        torch.from_numpy(snas.logits), snas.temperature(16 / 32), seeded_generator(images.device, 0, 16, 1)
    )
    factors = torch.ones(len(snas.paths), requires_grad=True)
    weights = {path: mixing[e] * factors[e] for e, path in enumerate(snas.paths)}
    F.cross_entropy(snas.supernet(images, weights), labels).backward()
    again = SNAS(NetworkSpace(SPACE, FRAME), SNASRecipe(batch_size=16, learning_rate=0.1))
    again.total_steps = 0
    again.supernet.load_state_dict(snas.supernet.state_dict())
    again.logits_EO.data.copy_(torch.from_numpy(snas.logits))
    again.begin(data, 2, ("weights", "choices"))
    again.step = 16
    again.train_step(Batch(images, labels))
    for e, path in enumerate(snas.paths):
        assert again.edge_credit()[path] == pytest.approx(-float(factors.grad[e]), abs=2e-5)


@pytest.mark.parametrize("relaxation", ["concrete", "one_path"])
def test_entropy_falls_where_it_samples(data, relaxation):
    snas = fitted(data, 12, skeleton=ONE_CELL, space=one_kind(), relaxation=relaxation)
    assert np.mean(list(snas.entropy().values())) < 0.9 * math.log(4)


def one_kind():
    return CellSpace(SPACE.ops, 2, 1, (CellKind("cell"),))


def test_the_child_keeps_the_accuracy_where_ops_were_sampled_and_loses_it_where_they_were_mixed():
    full, gaps, entropy = digits(), {}, {}
    skeleton = nasbench201_skeleton(1, 8, full.input_shape, full.classes, affine=False)
    for relaxation in ("concrete", "softmax"):
        snas = SNAS(NetworkSpace(nasbench201_space(), skeleton), SNASRecipe(relaxation=relaxation, warmup_fraction=0.3))
        snas.fit(full, 14, show_progress=False)
        entropy[relaxation] = np.mean(list(snas.entropy().values()))
        gaps[relaxation] = snas.evaluate(full) - snas.evaluate(full, architecture=snas.most_likely())
    assert gaps["concrete"] <= 0.03
    assert gaps["softmax"] > 0.1
    assert entropy["concrete"] < 0.9 * math.log(5)
    assert entropy["softmax"] > 0.95 * math.log(5)


def test_dearer_costs_give_cheaper_cells_with_fewer_edges(data):
    for seed in range(3):
        params, kept = [], []
        for level in ("mild", "moderate", "aggressive"):
            snas = fitted(data, 6, space=one_kind(), skeleton=ONE_CELL, resource=level, relaxation="softmax", seed=seed)
            params.append(snas.expected_cost()["params"])
            kept.append(np.mean([1 - options["none"] for options in snas.probabilities.values()]))
        assert params[0] > params[1] > params[2]
        assert kept[0] > kept[1] > kept[2]


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_an_upper_bound_is_reached_by_the_distribution_and_kept_by_the_most_likely(data, share):
    free = fitted(data, 1, space=one_kind(), skeleton=ONE_CELL)
    fixed = free.costs.fixed[0]
    bound = fixed + share * free.costs.uniform[0]
    snas = fitted(data, 25, space=one_kind(), skeleton=ONE_CELL, resource={"params": bound})
    assert snas.expected_cost()["params"] <= fixed + 1.15 * (bound - fixed)
    assert placed(snas.most_likely(), ONE_CELL).cost().params <= bound
    assert snas.most_likely().connected


def test_the_penalty_has_the_closed_form_gradient(data):
    snas = SNAS(NetworkSpace(SPACE, FRAME), SNASRecipe(resource=0.7))
    snas.logits_EO.data.normal_(generator=torch.Generator().manual_seed(0))
    snas.penalty(snas.logits_EO, 100).backward()
    p = snas.probabilities_EO
    relative = 0.7 * (snas.costs.table / snas.costs.uniform).mean(2)
    wanted = p * (relative - (p * relative).sum(1, keepdims=True))
    np.testing.assert_allclose(snas.logits_EO.grad.numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize("schedule", ["linear", "exponential"])
def test_the_temperature_falls_with_the_share_of_the_budget_that_the_logits_learn(schedule):
    snas = SNAS(NetworkSpace(SPACE, FRAME), SNASRecipe(schedule=schedule, warmup_fraction=0.2))
    middle = {"linear": 0.515, "exponential": 0.03**0.5}[schedule]
    temperatures = [snas.temperature(fraction) for fraction in (0, 0.2, 0.6, 1.0)]
    assert temperatures == pytest.approx([1.0, 1.0, middle, 0.03])


def test_logits_may_travel_as_far_in_a_short_budget_as_in_the_papers():
    snas = SNAS(NetworkSpace(SPACE, FRAME))
    for steps, rate in ((117_150, 3e-4), (1_000_000, 3e-4), (11_715, 3e-3), (10, 0.05)):
        assert snas.recipe.logit_rate(steps) == pytest.approx(rate)
    assert SNASRecipe(logit_learning_rate=0.01).logit_rate(10) == 0.01


def test_edges_that_keep_several_ops_choose_among_sets(data):
    snas = fitted(data, space=SETS, skeleton=FRAME)
    assert snas.table.labels[0] == ("none", "skip", "conv1", "skip+conv1")
    assert set(snas.probabilities["cell_0_1"]) == set(snas.table.labels[0])
    assert snas.most_likely().connected


def test_reduced_precision_learns_too(data):
    snas = fitted(data, precision="bfloat16")
    assert np.isfinite(snas.logits).all()
    assert snas.skipped == 0


# -- what one path learns from ------------------------------------------------------------------------------------


def gradients_of_every_path(credit, monkeypatch):
    """The mean gradient of the logits over all eight cells, and the gradient of the mean loss from the eight losses."""
    space = NetworkSpace(CellSpace(("none", "nor_conv_3x3"), 2, 1, (CellKind("cell"),)), ONE_CELL)
    snas = SNAS(space, SNASRecipe(batch_size=64, relaxation="one_path", path_credit=credit, learning_rate=0.1))
    full = digits()
    snas.fit(full, 4, until=0.5, show_progress=False)
    batch = next(iter(full.batches(["weights"], 64)))
    logits_EO = snas.logits_EO
    p_EO, mean, exact = logits_EO.detach().softmax(1), torch.zeros(3, 2), torch.zeros(3, 2)
    baselines = snas._baselines.clone()
    for chosen in itertools.product(range(2), repeat=3):
        hard_EO = F.one_hot(torch.tensor(chosen), 2).float()
        snas._baselines, logits_EO.grad = baselines.clone(), None

        def fixed(logits_EO, generator=None, hard_EO=hard_EO):
            log_p_E1 = logits_EO.log_softmax(-1).gather(1, hard_EO.argmax(1, keepdim=True))
            return hard_EO * (1 + log_p_E1 - log_p_E1.detach()), hard_EO.argmax(1)

        monkeypatch.setattr(model, "one_path_sample", fixed)
        p = float((p_EO * hard_EO).sum(1).prod())
        snas.step_loss(batch).backward()
        if logits_EO.grad is not None:  # nothing learns from a path that no input reaches
            mean += p * logits_EO.grad
        path = Calling(partial(snas.predict, architecture_of(space, np.array(chosen))))
        exact += p * float(snas.task.loss(path, batch).detach()) * (hard_EO - p_EO)
    return mean, exact


def test_one_path_learns_the_exact_gradient_on_average_if_it_learns_from_the_loss(monkeypatch):
    mean, exact = gradients_of_every_path("loss", monkeypatch)
    torch.testing.assert_close(mean, exact, rtol=1e-3, atol=1e-6)


def test_to_first_order_an_op_is_worth_less_than_it_is_so_that_none_is_favoured(monkeypatch):
    mean, exact = gradients_of_every_path("first_order", monkeypatch)
    assert (mean[:, 0] < exact[:, 0]).all()  # of `none`: a descent raises it more
    assert float((mean - exact).norm()) > 0.1 * float(exact.norm())


# -- asking -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks, and hides its own warning
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")  # and not on a later one
def test_a_compiled_supernet_learns_the_same_and_is_compiled_once(data, monkeypatch):
    compiled, compile_ = [], torch.compile

    def spied(network):
        compiled.append(network)
        return compile_(network, backend="aot_eager")  # as fast to compile as it gets

    monkeypatch.setattr(torch, "compile", spied)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, snas = (fitted(data, 0.5, skeleton=ONE_CELL, space=TWO_OPS, compile=value) for value in (False, True))
    assert compiled == [snas.supernet]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # though each of eleven steps mixes otherwise
    assert not torch._dynamo.utils.counters["graph_break"]
    torch.testing.assert_close(torch.tensor(snas.logits), torch.tensor(plain.logits), rtol=1e-3, atol=1e-4)
    assert pickle.loads(pickle.dumps(snas)).step == copy.deepcopy(snas).step == snas.step
    supernet = weakref.ref(snas.supernet)
    compiled.clear()
    del snas
    torch._dynamo.reset()
    gc.collect()
    assert supernet() is None


def test_samples_have_the_learned_law(data):
    snas = fitted(data, 6)
    random = np.random.default_rng(0)
    drawn = [snas.sample(random, connected=False) for _ in range(3000)]
    for path, wanted in snas.probabilities.items():
        for option, p in wanted.items():
            kept = () if option == "none" else (option,)
            n_seen = sum(architecture[path] == kept for architecture in drawn)
            assert abs(n_seen - 3000 * p) < 4 * math.sqrt(3000 * p * (1 - p)) + 1


def test_asked_for_connected_samples_all_are_even_when_hardly_any_is(data):
    snas = SNAS(NetworkSpace(SPACE, FRAME))
    snas.logits_EO.data[:, 0] = 50.0
    random = np.random.default_rng(0)
    assert all(snas.sample(random).connected for _ in range(5))
    assert snas.most_likely().connected


def test_a_score_is_the_negative_loss_of_the_network_that_inherits(data):
    snas = fitted(data, 8)
    random = np.random.default_rng(0)
    architectures = [SPACE.sample(random) for _ in range(5)]
    before = state(snas)
    scores = snas.score(architectures)
    images, labels = next(iter(data.batches(["report"], 512)))
    for architecture, score in zip(architectures, scores, strict=True):
        network = DiscreteNetwork(placed(architecture, FRAME), snas.weights(architecture))
        # Its running statistics are those of the scoring batch, up to the unbiased variance.
        assert -evaluate(network, data, "report").loss == pytest.approx(score, rel=0.02)
        network.train()
        assert -F.cross_entropy(network(images), labels).item() == pytest.approx(score, rel=1e-5)
    assert np.array_equal(snas.score(architectures), scores)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(snas).items())


def test_weights_are_copies(data):
    snas = fitted(data)
    weights = snas.weights(snas.most_likely())
    for tensor in weights.values():
        tensor.zero_()
    assert float(snas.supernet.state_dict()["parts.stem.0.weight"].abs().sum()) > 0


def test_records_show_the_whole_way(data):
    snas = fitted(data, 6, warmup_fraction=0.3)
    assert [record.step for record in snas.records] == list(range(1, 97))
    assert {"entropy", "params", "multiply_adds", "memory_access", "temperature", "loss", "accuracy"} == set(
        snas.records[0].metrics
    )
    assert snas.records[-1].metrics["params"] == pytest.approx(snas.expected_cost()["params"])
    assert snas.records[-1].metrics["loss"] < snas.records[0].metrics["loss"]


# -- what goes wrong ----------------------------------------------------------------------------------------------


def test_a_few_steps_without_a_finite_loss_are_skipped_and_counted(data, monkeypatch):
    calls = []

    def broken(scores, labels, **_):
        calls.append(1)
        return F.nll_loss(scores.log_softmax(1), labels) * (float("nan") if len(calls) in (3, 40) else 1.0)

    monkeypatch.setattr(task.F, "cross_entropy", broken)
    snas = SNAS(NetworkSpace(SPACE, FRAME), SNASRecipe(batch_size=16))
    snas.fit(data, 4)
    assert snas.skipped == 2
    assert np.isfinite(snas.logits).all()
    assert all(bool(tensor.isfinite().all()) for tensor in snas.supernet.state_dict().values())


def test_a_short_fit_without_any_finite_loss_is_an_error_too(data, monkeypatch):
    monkeypatch.setattr(task.F, "cross_entropy", lambda scores, labels, **_: scores.sum() * float("nan"))
    with pytest.raises(TrainingDiverged, match="16 of 16 steps"):
        SNAS(NetworkSpace(SPACE, FRAME), SNASRecipe(batch_size=16)).fit(data, 1)


def test_many_steps_without_a_finite_loss_are_an_error(data, monkeypatch):
    monkeypatch.setattr(task.F, "cross_entropy", lambda scores, labels, **_: scores.sum() * float("inf"))
    with pytest.raises(TrainingDiverged, match="must keep the loss finite"):
        SNAS(NetworkSpace(SPACE, FRAME), SNASRecipe(batch_size=16)).fit(data, 4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("first_temperature", 0.0),
        ("last_temperature", 0.0),
        ("last_temperature", -0.1),
        ("warmup_fraction", 1.0),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("logit_learning_rate", 0.0),
        ("momentum", 1.0),
        ("relaxation", "gumbel"),
        ("schedule", "cosine"),
        ("warmup_relaxation", "none"),
        ("precision", "float16"),
        ("resource", "strong"),
        ("resource", -1.0),
        ("resource", {"flops": 1e6}),
        ("resource", {"params": 0}),
        ("resource", {"params": "2"}),
        ("resource", None),
        ("resource", ["params"]),
        ("batch_size", 16.0),
        ("seed", 0.5),
        ("learning_rate", "0.1"),
    ],
)
def test_a_recipe_out_of_range_is_refused(field, value):
    with pytest.raises(ValueError, match=f"`{field}` must"):
        SNASRecipe(**{field: value})


def test_a_bound_that_no_architecture_keeps_is_refused():
    with pytest.raises(ValueError, match="no architecture has at most 5 params; the cheapest in this skeleton has"):
        SNAS(NetworkSpace(SPACE, FRAME), SNASRecipe(resource={"params": 5}))


def test_bounds_that_no_architecture_keeps_at_once_are_refused_and_others_kept():
    # These two ops trade parameters against memory access.
    space = CellSpace(("sep_conv_3x3", "nor_conv_3x3"), 2, 1, (CellKind("cell"),))
    costs = [placed(space.architecture(dict.fromkeys(space.paths, (op,))), ONE_CELL).cost() for op in space.ops]
    least = {"params": min(c.params for c in costs), "memory_access": min(c.memory_access for c in costs)}
    with pytest.raises(ValueError, match="no architecture was found that keeps params"):
        SNAS(NetworkSpace(space, ONE_CELL), SNASRecipe(resource=least))
    random = np.random.default_rng(0)
    # What one op of three costs at most, whichever it is.
    mixed = [("sep_conv_3x3",), ("nor_conv_3x3",), ("nor_conv_3x3",)], [("sep_conv_3x3",)] * 2 + [("nor_conv_3x3",)]
    costs = [placed(space.architecture(dict(zip(space.paths, kept, strict=True))), ONE_CELL).cost() for kept in mixed]
    middle = {name: max(getattr(cost, name) for cost in costs) for name in least}
    snas = SNAS(NetworkSpace(space, ONE_CELL), SNASRecipe(resource=middle))
    for _ in range(20):
        snas.logits_EO.data.copy_(torch.from_numpy(random.normal(size=(3, 2)) * 3))
        cost = placed(snas.most_likely(), ONE_CELL).cost()
        assert all(getattr(cost, name) <= bound for name, bound in middle.items())


def test_spaces_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="must leave a choice"):
        SNAS(NetworkSpace(CellSpace(("skip_connect",), 2, 1, (CellKind("cell"),)), ONE_CELL))
    with pytest.raises(ValueError, match="must have ops on edges"):
        SNAS(NetworkSpace(ghn_space(3), small_skeleton(ghn_space(3))))


@pytest.mark.parametrize(("budget", "until"), [(0, 1.0), (-1, 1.0), (math.inf, 1.0), (1, 1.5), (1, -0.1)])
def test_a_budget_out_of_range_is_refused(data, budget, until):
    with pytest.raises(ValueError, match=r"`(budget|until)` must"):
        SNAS(NetworkSpace(SPACE, FRAME)).fit(data, budget, until=until)


def test_a_fit_does_not_change_its_terms_on_the_way(data, tmp_path):
    snas = fitted(data)
    with pytest.raises(ValueError, match="`splits` must be that of the fit"):
        snas.fit(data, 3, splits=("choices",))
    snas.save(tmp_path / "snas.safetensors")
    with pytest.raises(ValueError, match="differs in recipe"):
        SNAS(NetworkSpace(SPACE, FRAME), SNASRecipe(seed=1)).load(tmp_path / "snas.safetensors")
    with pytest.raises(ValueError, match="differs in space"):
        SNAS(NetworkSpace(SPACE, Skeleton(("cell", "reduction"), 8, (1, 8, 8), 10)), snas.recipe).load(
            tmp_path / "snas.safetensors"
        )


def test_files_that_hold_something_else_are_refused(data, tmp_path):
    (tmp_path / "noise").write_bytes(b"noise")
    with pytest.raises(ValueError, match="is not readable"):
        SNAS(NetworkSpace(SPACE, FRAME)).load(tmp_path / "noise")
    from optuna_nas.training import save_tensors

    save_tensors(tmp_path / "other", {"a": torch.zeros(1)}, {})
    with pytest.raises(ValueError, match="holds something else"):
        SNAS(NetworkSpace(SPACE, FRAME)).load(tmp_path / "other")


def test_scores_need_data_and_data_that_fit(data):
    snas = SNAS(NetworkSpace(SPACE, FRAME))
    with pytest.raises(ValueError, match="call `fit` or `attach"):
        snas.score([SPACE.full_architecture()])
    with pytest.raises(ValueError, match="`data` must fit the skeleton"):
        SNAS(NetworkSpace(SPACE, Skeleton(("cell",), 4, (3, 8, 8), 10))).fit(data, 1)
    with pytest.raises(ValueError, match="`data` must fit the skeleton"):
        SNAS(NetworkSpace(SPACE, Skeleton(("cell",), 4, (3, 8, 8), 10))).attach(data)
    snas.attach(data)
    with pytest.raises(ValueError, match="must be of the space"):
        snas.weights(nasbench201_space().full_architecture())
    with pytest.raises(ValueError, match="`split` must hold examples"):
        snas.evaluate(empty(data, "choices"), "choices")
    with pytest.raises(ValueError, match="must be of the space"):
        snas.score([nasbench201_space().full_architecture()])


def test_logits_start_from_a_prior_and_a_resumed_fit_does_not_ask_it_again(data, tmp_path):
    asked = []

    def prior(architectures):
        asked.append(len(architectures))
        return np.array([float(str(architecture).count("conv")) for architecture in architectures])

    space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 2, (1, 8, 8), 10, affine=False))
    recipe = SNASRecipe(batch_size=16, warmup_fraction=0.5)
    straight = SNAS(space, recipe, prior=prior)
    straight.fit(data, 1, until=0.25)
    options = list(straight.table.labels[0])
    assert all(row[options.index("nor_conv_3x3")] > row[options.index("none")] for row in straight.logits)
    straight.fit(data, 1)
    assert len(asked) == 1
    first, second = SNAS(space, recipe, prior=prior), SNAS(space, recipe, prior=prior)
    first.fit(data, 1, until=0.5, checkpoint=tmp_path / "snas.safetensors")
    second.fit(data, 1, checkpoint=tmp_path / "snas.safetensors")
    assert len(asked) == 2
    assert np.array_equal(second.logits, straight.logits)
    with pytest.raises(ValueError, match="another"):
        SNAS(space, recipe).load(tmp_path / "snas.safetensors")

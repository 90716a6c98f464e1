"""A table of latencies is exact under a clock that modules move; SNAS, samplers and objectives take it as a cost."""

import io
import itertools
import json
import math
import sys
from dataclasses import dataclass, replace

import numpy as np
import optuna
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from optuna.artifacts import FileSystemArtifactStore
from strategies import (
    SMALL_SUPERNETS,
    TINY,
    TINY_ANYTIME,
    TINY_BLOCK,
    architectures,
    few_digits,
    small_skeleton,
    whole,
)
from torch import nn

from optuna_nas import SNAS, GHNSampler, LatencyTable, Recipe, SNASRecipe, TrainObjective, nasbench201_space
from optuna_nas.networks import LatencyResidual, NetworkSpace, latency, measures
from optuna_nas.samplers.fronts import non_dominated_ranks
from optuna_nas.space import Space
from optuna_nas.space.cost import COSTS
from optuna_nas.storage.attributes import cost_key

TICKS = {nn.Conv2d: 8, nn.BatchNorm2d: 1, nn.AvgPool2d: 4, nn.Linear: 16}
"""Ticks of 1/1024 s that a layer takes, so that sums are exact."""


class Clock:
    """A clock that stands still unless layers compute."""

    def __init__(self):
        self.now, self.readings = 0.0, 0
        self.ticks, self.slowness = TICKS, lambda reading: 1.0

    def __call__(self):
        self.readings += 1
        return self.now

    def tick(self, module, inputs, output):
        ticks = next((ticks for kind, ticks in self.ticks.items() if isinstance(module, kind)), 0)
        self.now += ticks / 1024 * self.slowness(self.readings)


@pytest.fixture
def clock(monkeypatch):
    fake = Clock()
    monkeypatch.setattr(measures, "clock", fake)
    hook = nn.modules.module.register_module_forward_hook(fake.tick)
    yield fake
    hook.remove()


def space_of(cells, **changes):
    return NetworkSpace(cells, small_skeleton(cells, **changes))


def table_of(space, seconds, fixed=0.0, device="cpu"):
    """Return a table in which an op takes the same seconds at every place."""
    places = {(node.path, node.op) for node in space.supernet_graph() if node.path}
    return LatencyTable(space, device, 1, fixed, {(path, op): seconds[op] for path, op in sorted(places)})


SPACE = space_of(TINY)
SECONDS = {"skip_connect": 1 / 64, "nor_conv_3x3": 1 / 8, "avg_pool_3x3": 1 / 16}
TABLE = table_of(SPACE, SECONDS, fixed=1 / 4)


# -- measuring ---------------------------------------------------------------------------------------------------------


def test_an_op_takes_what_its_modules_take_in_all_cells_of_the_kind(clock):
    table = LatencyTable.measure(SPACE, device="cpu", repeats=3)
    ticks = {place: 1024 * seconds for place, seconds in table.ops.items()}
    assert table.ops.keys() == {(path, op) for path in TINY.paths for op in TINY.ops if op != "none"}
    assert ticks["normal_2_3", "nor_conv_3x3"] == 2 * (8 + 1)  # a convolution and a norm in two normal cells
    assert ticks["reduction_2_3", "nor_conv_3x3"] == 8 + 1
    assert ticks["normal_0_2", "avg_pool_3x3"] == 2 * 4
    assert ticks["normal_0_2", "skip_connect"] == 0
    assert ticks["reduction_0_2", "skip_connect"] == 2 * 8 + 1  # halved by two convolutions and a norm
    # Stem, two inputs of three cells (one of them halved by two convolutions), classifier.
    assert 1024 * table.fixed == (8 + 1) + 6 * (8 + 1) + 8 + 16


def computes_all_fixed_parts(architecture):
    graph = whole(architecture)
    return all(node.path or position in graph.live for position, node in enumerate(graph))


@pytest.mark.parametrize("name", SMALL_SUPERNETS)
def test_predictions_add_up_to_what_networks_take(name, clock):
    clock.ticks = {**TICKS, nn.AvgPool2d: 0}  # on one input of several, a network computes it once
    space = space_of(SMALL_SUPERNETS[name])
    table = LatencyTable.measure(space, device="cpu", repeats=2)
    random = np.random.default_rng(1)
    drawn = [architecture for _ in range(12) if computes_all_fixed_parts(architecture := space.sample(random))]
    residual = table.residual(drawn, repeats=1)
    assert len({measured for _, measured in residual.pairs}) > 3
    assert all(predicted == measured for predicted, measured in residual.pairs)
    assert residual.rank_correlation == pytest.approx(1)
    assert residual.median_relative_error == 0


@pytest.mark.parametrize(("fast_rounds", "slowness"), [(3, 1.0), (2, 2.0)])
def test_a_machine_that_becomes_slower_slows_all_alike(clock, fast_rounds, slowness):
    steady = LatencyTable.measure(SPACE, device="cpu", repeats=5)
    slow_after = clock.readings // (2 + 5) * (2 + fast_rounds)
    clock.readings, clock.slowness = 0, lambda reading: 2.0 if reading > slow_after else 1.0
    drifting = LatencyTable.measure(SPACE, device="cpu", repeats=5)
    assert drifting.ops == {place: slowness * seconds for place, seconds in steady.ops.items()}
    assert drifting.fixed == slowness * steady.fixed


def test_what_comes_between_ops_counts_in_proportion(clock):
    class Between(NetworkSpace):
        """Networks that take as long again as their layers."""

        def build(self, architecture, weights=None, seed=None):
            network = super().build(architecture, weights, seed)
            started = []
            network.register_forward_pre_hook(lambda *_: started.append(clock.now))
            network.register_forward_hook(lambda *_: setattr(clock, "now", 2 * clock.now - started.pop()))
            return network

    clock.ticks = {**TICKS, nn.AvgPool2d: 0}
    alone = LatencyTable.measure(SPACE, device="cpu", repeats=1)
    together = LatencyTable.measure(Between(TINY, SPACE.skeleton), device="cpu", repeats=1)
    assert together.ops == {place: 2 * seconds for place, seconds in alone.ops.items()}
    assert together.fixed == 2 * alone.fixed


def test_an_op_of_several_inputs_runs_once_for_each():
    space = space_of(TINY_BLOCK)
    table = table_of(space, {"skip_connect": 0.0, "nor_conv_1x1": 1 / 8, "sep_conv_3x3": 1 / 4, "max_pool_3x3": 1 / 2})
    choices = {"block_1": ["nor_conv_1x1"], "block_1_inputs": ["0"], "block_2": ["sep_conv_3x3"]}
    choices |= {"block_2_inputs": ["0", "1"], "block_3": ["skip_connect"], "block_3_inputs": ["2"]}
    choices |= {"block_4": ["max_pool_3x3"], "block_4_inputs": ["3"]}
    assert table.of(space.architecture(choices)) == 1 / 8 + 2 / 4 + 1 / 2


def test_an_op_that_no_output_depends_on_takes_no_time():
    space = space_of(nasbench201_space())
    table = table_of(space, {"nor_conv_3x3": 1.0, "nor_conv_1x1": 2.0, "skip_connect": 4.0, "avg_pool_3x3": 8.0})
    read = space.architecture(
        {"cell_0_3": ["nor_conv_3x3"], "cell_0_1": ["skip_connect"], "cell_1_3": ["skip_connect"]}
    )
    unread = space.architecture({"cell_0_3": ["nor_conv_3x3"], "cell_0_1": ["skip_connect"]})
    assert table.of(read) == 9.0
    assert table.of(unread) == 1.0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(architectures(TINY))
def test_a_prediction_is_at_most_the_sum_of_what_is_kept(architecture):
    kept = sum(TABLE.ops[path, op] for path, chosen in architecture.choices for op in chosen)
    assert TABLE.fixed < TABLE.of(architecture) <= TABLE.fixed + kept


def test_a_real_measurement_is_positive_and_leaves_the_random_numbers_alone():
    torch.manual_seed(3)
    table = LatencyTable.measure(SPACE, batch_size=2, device="cpu", repeats=2)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(3))
    assert table.name == latency(2, "cpu").name == "latency_cpu_2"
    assert table.ops.keys() == TABLE.ops.keys()
    assert all(0 < seconds < math.inf for seconds in (table.fixed, *table.ops.values()))
    random = np.random.default_rng(0)
    residual = table.residual([SPACE.sample(random) for _ in range(3)], repeats=2)
    assert all(0 < seconds < math.inf for pair in residual.pairs for seconds in pair)
    assert residual.median_relative_error >= 0


def test_the_default_device_is_that_of_latency():
    assert LatencyTable.measure(SPACE, repeats=1).name == latency().name


# -- residuals, JSON, errors -------------------------------------------------------------------------------------------


def test_a_residual_tells_rank_correlation_and_relative_error():
    residual = LatencyResidual(((1.0, 2.0), (2.0, 2.5), (3.0, 4.0), (4.0, 3.0)))
    assert residual.rank_correlation == pytest.approx(0.8)
    assert residual.median_relative_error == pytest.approx((0.25 + 1 / 3) / 2)
    assert str(residual) == "Spearman 0.80, median relative error 29.2 % of 4 networks"
    assert math.isnan(LatencyResidual(((1.0, 2.0), (1.0, 3.0))).rank_correlation)


@pytest.mark.parametrize("name", SMALL_SUPERNETS)
def test_a_table_goes_through_json(name):
    space = space_of(SMALL_SUPERNETS[name])
    ops = {node.op for node in space.supernet_graph() if node.path}
    table = table_of(space, {op: 0.1 * number for number, op in enumerate(sorted(ops))}, fixed=0.3)
    again = LatencyTable.from_dict(json.loads(json.dumps(table.to_dict())))
    assert again == table
    assert hash(again) == hash(table)
    assert again.digest == table.digest
    assert replace(table, fixed=0.4).digest != table.digest


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LatencyTable.measure(TINY), "`space` must be a `NetworkSpace` but is a CellSpace"),
        (lambda: LatencyTable.measure(space_of(TINY_ANYTIME)), "`space` must not let nodes choose scales or exits"),
        (lambda: LatencyTable.measure(SPACE, batch_size=0), "`batch_size` must be at least 1 but got 0"),
        (lambda: LatencyTable.measure(SPACE, repeats=0), "`repeats` must be at least 1 but got 0"),
        (lambda: LatencyTable.measure(SPACE, device="moon"), "`device` must be"),
        (lambda: replace(TABLE, fixed=-1.0), "must be finite and not negative but those of fixed are -1.0"),
        (lambda: table_of(SPACE, {**SECONDS, "skip_connect": math.nan}), "those of .*skip_connect.* are nan"),
        (lambda: replace(TABLE, ops={}), "`ops` must hold every .* differs in .'normal_0_2', 'avg_pool_3x3'."),
        (lambda: replace(TABLE, device="my phone"), "`device` must make an identifier of `name` but got 'my phone'"),
        (lambda: TABLE.of(nasbench201_space().full_architecture()), "`architecture` must be of this space"),
        (lambda: TABLE.residual([]), "`architectures` must be two or more, to be ranked, but got 0"),
        (lambda: replace(TABLE, device="phone").residual([SPACE.full_architecture()] * 2), "`device` must be"),
    ],
)
def test_refuses_with_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("seconds", "terminal", "shown"), [(10, True, True), (0.1, True, False), (10, False, False)])
def test_only_long_waits_show_a_bar_and_only_on_a_terminal(monkeypatch, seconds, terminal, shown):
    stream, times = Terminal() if terminal else io.StringIO(), itertools.count(step=seconds)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(measures.time, "monotonic", lambda: next(times))
    measures.median_seconds([lambda: None], torch.device("cpu"), repeats=4, description="Measuring 7 ops")
    assert ("Measuring 7 ops" in stream.getvalue()) is shown
    assert ("100%" in stream.getvalue()) is shown


# -- SNAS --------------------------------------------------------------------------------------------------------------


def test_the_expected_latency_is_the_mean_over_the_distribution():
    snas = SNAS(SPACE, costs=(TABLE,))
    expected = snas.expected_cost()
    assert list(expected) == [*COSTS, "latency_cpu_1"]
    per_edge = sum(SECONDS.values()) / 4  # `none` takes no time
    assert expected["latency_cpu_1"] == pytest.approx(TABLE.fixed + per_edge * len(TINY.paths))
    assert {name: expected[name] for name in COSTS} == SNAS(SPACE).expected_cost()


@pytest.mark.parametrize("bound", [0.6, 0.9, 1.2])
def test_the_most_likely_architecture_keeps_a_bound_on_the_latency(bound):
    snas = SNAS(SPACE, SNASRecipe(resource={"latency_cpu_1": bound}), costs=(TABLE,))
    favourite = TINY.ops.index("nor_conv_3x3")
    snas.logits_EO.data[:, favourite] = torch.linspace(1, 3, len(TINY.paths))
    found = snas.most_likely()
    unbounded = SNAS(SPACE)
    unbounded.logits_EO.data.copy_(snas.logits_EO.data)
    assert TABLE.of(unbounded.most_likely()) > bound >= TABLE.of(found)
    assert found.connected
    assert sum(kept == ("nor_conv_3x3",) for _, kept in found.choices) >= 1


def test_a_bound_on_the_latency_is_learned():
    data, cells = few_digits(64), replace(TINY, nodes=1)
    space = space_of(cells, input_shape=data.input_shape, classes=data.classes)
    table = table_of(space, SECONDS, fixed=1 / 4)
    settings = {"batch_size": 16, "scoring_images": 32, "relaxation": "one_path"}
    free, bounded, weighed = (
        SNAS(space, SNASRecipe(resource=resource, **settings), costs=(table,))
        for resource in (0.0, {"latency_cpu_1": 0.3}, "aggressive")
    )
    for snas in (free, bounded, weighed):
        snas.fit(data, budget=8)
    seconds = [snas.expected_cost()["latency_cpu_1"] for snas in (free, bounded, weighed)]
    assert seconds[1] < seconds[0]
    assert seconds[2] < seconds[0]
    assert bounded.penalty.prices["latency_cpu_1"] > 0
    assert "latency_cpu_1" in bounded.records[-1].metrics
    assert table.of(bounded.most_likely()) <= 0.3


def test_a_checkpoint_of_another_table_is_refused(tmp_path):
    SNAS(SPACE, costs=(TABLE,)).save(tmp_path / "snas.safetensors")
    SNAS(SPACE, costs=(TABLE,)).load(tmp_path / "snas.safetensors")
    SNAS(SPACE).save(tmp_path / "without.safetensors")
    SNAS(SPACE).load(tmp_path / "without.safetensors")
    for file, costs in (("snas", ()), ("snas", (replace(TABLE, fixed=1.0),)), ("without", (TABLE,))):
        with pytest.raises(ValueError, match="recipe"):
            SNAS(SPACE, costs=costs).load(tmp_path / f"{file}.safetensors")


@pytest.mark.parametrize(
    ("resource", "costs", "message"),
    [
        ({"latency_cpu_1": 0.5}, (), "`resource` must bound one of .* but got 'latency_cpu_1'; pass the table"),
        ({"latency_cpu_8": 0.5}, (TABLE,), "`resource` must bound one of .* but got 'latency_cpu_8'; pass the table"),
        ({"latency_cpu_1": 0.25}, (TABLE,), "no architecture has at most 0.25 latency_cpu_1; the cheapest"),
        (0.0, (TABLE, TABLE), "`costs` must differ in their names but 'latency_cpu_1' stands twice"),
        (0.0, (table_of(space_of(replace(TINY, nodes=1)), SECONDS),), "'latency_cpu_1' is of another"),
    ],
)
def test_snas_refuses_with_one_sentence(resource, costs, message):
    with pytest.raises(ValueError, match=message):
        SNAS(SPACE, SNASRecipe(resource=resource), costs=costs)


def test_a_table_may_be_of_another_skeleton():
    bigger = table_of(SPACE.with_skeleton(channels=16), SECONDS, fixed=1.0)
    assert SNAS(SPACE, costs=(bigger,)).expected_cost()["latency_cpu_1"] > 1.0


# -- samplers and objectives -------------------------------------------------------------------------------------------


def n_convolutions(found):
    return np.array([float(str(architecture).count("conv")) for architecture in found])


@dataclass(frozen=True)
class Skips:
    """A predicted cost of one's own."""

    space: Space
    name: str = "skips"

    def of(self, architecture):
        return float(sum("skip_connect" in kept for _, kept in architecture.choices))


@pytest.mark.parametrize("costs", [(TABLE,), ("params", TABLE), (TABLE, Skips(TINY))])
def test_a_sampler_hands_out_fronts_of_score_and_latency(tmp_path, costs):
    small = replace(TINY, nodes=1)
    space = space_of(small)
    table = table_of(space, SECONDS, fixed=1 / 4)
    costs = [table if cost is TABLE else Skips(space) if isinstance(cost, Skips) else cost for cost in costs]
    sampler = GHNSampler(
        space,
        score=n_convolutions,
        costs=costs,
        pool_size=100,
        trials_per_round=100,
        exploration=0.0,
        artifact_store=FileSystemArtifactStore(str(tmp_path)),
        seed=0,
    )
    study = optuna.create_study(sampler=sampler, directions=["maximize", *["minimize"] * len(costs)])
    study.optimize(lambda trial: (n_convolutions([space.suggest(trial)])[0], *[0.0] * len(costs)), n_trials=40)
    proposed = [space.decode(trial.params) for trial in study.trials if "score" in str(trial.user_attrs)]

    def values(architecture):
        exact = architecture.cost()
        numbers = [getattr(exact, cost) if isinstance(cost, str) else cost.of(architecture) for cost in costs]
        return [float(n_convolutions([architecture])[0]), *(-number for number in numbers)]

    points = np.array([values(architecture) for architecture in proposed])
    assert len(proposed) > 10
    assert max(non_dominated_ranks(points)) > 0
    for place, later in enumerate(points):
        dominates = (points >= later).all(1) & (points > later).any(1)
        assert not dominates[place:].any(), "no candidate comes before one that beats it"


def test_an_objective_predicts_without_measuring(clock):
    data = few_digits(32)
    space = space_of(TINY, input_shape=data.input_shape, classes=data.classes)
    table, skips = table_of(space, SECONDS, fixed=1 / 4), Skips(space)
    objective = TrainObjective(
        space,
        data,
        Recipe(epochs=1, batch_size=16),
        objectives=("accuracy", table, skips),
        constraints={table: 1.0, "params": 1e6},
        device="cpu",
    )
    assert objective.objective_names == ("accuracy", "latency_cpu_1", "skips")
    assert objective.directions == ("maximize", "minimize", "minimize")
    study = optuna.create_study(directions=objective.directions, sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=3)
    completed = [trial for trial in study.trials if trial.values]
    assert completed
    for trial in completed:
        predicted = table.of(space.decode(trial.params))
        assert trial.values[1] == trial.user_attrs[cost_key("latency_cpu_1")] == predicted
        assert trial.values[2] == skips.of(space.decode(trial.params))
        assert trial.constraints["latency_cpu_1"] == predicted - 1.0
    assert clock.readings == 0


def test_an_objective_refuses_with_one_sentence():
    data = few_digits(32)
    space = space_of(TINY, input_shape=data.input_shape, classes=data.classes)
    table = table_of(space, SECONDS)
    for fields, message in (
        (
            {"objectives": ("accuracy", table), "constraints": {latency(device="cpu"): 1}},
            "not both measure and predict",
        ),
        ({"constraints": {table_of(space_of(nasbench201_space()), dict.fromkeys(OTHER_OPS, 0.0)): 1}}, "of another"),
    ):
        with pytest.raises(ValueError, match=message):
            TrainObjective(space, data, **fields)


OTHER_OPS = ("nor_conv_3x3", "nor_conv_1x1", "skip_connect", "avg_pool_3x3")

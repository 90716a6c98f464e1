"""Costs agree with real tables, with published networks and with hooks on a forward pass."""

import csv
import gzip
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    ALL_OPS,
    SPACES,
    TINY,
    architectures,
    counted_multiply_adds,
    counted_parameters,
    placed,
    small_skeleton,
    spaces,
    whole,
)

from optuna_nas.networks import DiscreteNetwork, NetworkSpace
from optuna_nas.space import (
    PUBLISHED_CELLS,
    BlockSpace,
    CellKind,
    CellSpace,
    Cost,
    Skeleton,
    convolution_cost,
    cost_table,
    darts_cifar_skeleton,
    darts_imagenet_skeleton,
    darts_space,
    elementwise_cost,
    linear_cost,
    nasbench201_skeleton,
    nasbench201_space,
    norm_cost,
    published_cell,
)
from optuna_nas.space.graph import EXIT

# -- formulas by hand ---------------------------------------------------------------------------------------------


def test_convolution_cost_by_hand():
    cost = convolution_cost((4, 8, 6), (10, 4, 3), (3, 5), groups=2, bias=True)
    weights = 3 * 5 * (4 // 2) * 10
    assert cost == Cost(weights + 10, weights * 4 * 3, 4 * 8 * 6 + 10 * 4 * 3 + weights)


def test_small_costs_by_hand():
    assert norm_cost(7, affine=True) == Cost(params=14)
    assert norm_cost(7, affine=False) == Cost()
    assert elementwise_cost((2, 4, 4), (2, 2, 2)) == Cost(memory_access=32 + 8)
    assert linear_cost(5, 3) == Cost(18, 15, 15 + 5 + 3)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)), max_size=4), st.integers(0, 5))
def test_costs_add_and_scale_like_vectors(triples, factor):
    costs = [Cost(*triple) for triple in triples]
    total = sum(costs, Cost())
    assert total == Cost(*(sum(triple[i] for triple in triples) for i in range(3)))
    assert total.times(factor) == sum([total] * factor, Cost())
    assert total - total == Cost()


# -- NAS-Bench-201: the whole table -------------------------------------------------------------------------------

NASBENCH201 = nasbench201_space()
CIFAR10 = NetworkSpace(NASBENCH201, nasbench201_skeleton())
EDGES = [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]


@pytest.fixture(scope="module")
def table(data_folder):
    with gzip.open(data_folder / "nasbench201" / "nb201_accuracy.csv.gz", "rt") as lines:
        return list(csv.DictReader(lines))


def cell(row):
    return CIFAR10.architecture({f"cell_{s}_{t}": row[f"op_{t}_{s}"] for t, s in EDGES})


def test_params_equal_the_table_for_all_15625_cells(table):
    assert len(table) == 15_625
    priced = cost_table(NASBENCH201, CIFAR10.skeleton)
    leads_nowhere = 0
    for row in table:
        architecture, counted = cell(row), 1e6 * float(row["params_M"])
        kept = sum((priced.ops[place, op] for place, chosen in architecture.choices for op in chosen), priced.fixed)
        assert abs(kept.params - counted) < 0.501, row["index"]
        # What nothing reads is in the table, and is not built.
        all_read = all(i in architecture.cells.live for i, node in enumerate(architecture.cells) if node.path)
        if all_read:
            assert architecture.cost() == kept, row["index"]
        leads_nowhere += not all_read
    assert leads_nowhere == 6_180


@settings(max_examples=10)
@given(architectures(NASBENCH201))
def test_the_whole_network_of_a_cell_has_the_tables_size(architecture):
    priced = cost_table(NASBENCH201, CIFAR10.skeleton)
    kept = sum((priced.ops[place, op] for place, chosen in architecture.choices for op in chosen), priced.fixed)
    assert whole(CIFAR10.adopt(architecture)).cost == kept


def test_multiply_adds_of_cell_0_are_nasbench201s_own(table):
    assert f"{cell(table[0]).cost().multiply_adds / 1e6:.2f}" == "15.65"


def other_counter(graph, node):
    """Flops of a node by the table's counter: multiply-adds, 3 an output element for ReLU + norm, 9 for a pool."""
    channels, height, width = node.site.out_shape
    an_element = {"nor_conv_1x1": 3, "nor_conv_3x3": 3, "avg_pool_3x3": 9}.get(node.op, 0)
    return graph.node_cost(node).multiply_adds + an_element * channels * height * width


def test_flops_of_the_table_follow_from_the_cost_of_each_node(table):
    added = {}
    for op in NASBENCH201.ops:
        graph = CIFAR10.architecture({"cell_0_3": op}).graph()
        added[op] = sum(other_counter(graph, node) for node in graph if node.path)
    assert added == {
        "none": 0,
        "skip_connect": 0,
        "nor_conv_1x1": 4_362_240,
        "nor_conv_3x3": 35_819_520,
        "avg_pool_3x3": 1_290_240,
    }
    rest = {round(1e6 * float(row["flops_M"])) - sum(added[row[f"op_{t}_{s}"]] for t, s in EDGES) for row in table}
    assert rest == {7_943_872}  # the frame: one number for all cells


def test_flops_of_the_tables_frame_are_our_multiply_adds_plus_its_norms_and_pools():
    graph = CIFAR10.architecture({}).graph()
    # Norms count 2 an element written, ReLUs 1 an element read.
    stem = 2 * 16 * 32 * 32
    residuals = (16 * 32 * 32 + 5 * 32 * 16 * 16) + (32 * 16 * 16 + 5 * 64 * 8 * 8)
    last = 3 * 64 * 8 * 8
    pools = 29_760  # two 2 x 2 pools and the global one; how the counter splits them is not known
    assert graph.cost.multiply_adds == 7_783_040
    assert graph.cost.multiply_adds + stem + residuals + last + pools == 7_943_872


# -- published networks -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(data_folder):
    cells = json.loads((data_folder / "published_cells" / "published_cells.json").read_text())
    return {entry["name"]: entry for entry in cells if entry["built_with_quark0_darts"]}


def published_architecture(entry):
    kinds = (
        CellKind("normal", outputs=tuple(entry["normal_concat"])),
        CellKind("reduction", stride=2, outputs=tuple(entry["reduce_concat"])),
    )
    choices = {}
    for kind, genes in (("normal", entry["normal"]), ("reduction", entry["reduce"])):
        for position, (op, source) in enumerate(genes):
            choices.setdefault(f"{kind}_{source}_{2 + position // 2}", []).append(op)
    return CellSpace(ALL_OPS, len(entry["normal"]) // 2, cell_kinds=kinds).architecture(choices)


def test_published_cells_load_by_name(data_folder):
    cells = json.loads((data_folder / "published_cells" / "published_cells.json").read_text())
    assert [entry["name"] for entry in cells] == list(PUBLISHED_CELLS)
    for entry in cells:
        expected, found = published_architecture(entry), published_cell(entry["name"])
        assert found.canonical() == expected.canonical()
        assert placed(found, darts_cifar_skeleton()).cost() == placed(expected, darts_cifar_skeleton()).cost()
    assert published_cell("darts-v2").space == darts_space()


def test_published_cells_have_the_published_size():
    # Of the published genotypes, built by quark0/darts: 36 channels, 20 cells, no auxiliary head.
    sizes = {"DARTS_V2": 3_349_342, "SNAS_mild": 2_661_382, "NASNet": 3_830_950, "AmoebaNet": 3_145_078}
    for name, size in sizes.items():
        assert placed(published_cell(name), darts_cifar_skeleton()).cost().params == size
    with pytest.raises(ValueError, match=r"`name` must be one of NASNet, AmoebaNet, .* but got 'ENAS'"):
        published_cell("ENAS")


def test_published_cells_cost_what_quark0_darts_builds(published):
    assert len(published) == 12
    for name, entry in published.items():
        expected, architecture = entry["built_with_quark0_darts"], published_architecture(entry)
        graph = whole(placed(architecture, darts_cifar_skeleton()))
        cifar, imagenet = graph.cost, whole(placed(architecture, darts_imagenet_skeleton())).cost
        assert {
            "params_cifar_C36_L20": cifar.params,
            "params_with_auxiliary": cifar.params + graph.node_cost(graph["auxiliary"]).params,
            "conv_linear_macs_cifar_C36_L20": cifar.multiply_adds,
            "params_imagenet_C48_L14": imagenet.params,
            "conv_linear_macs_imagenet_C48_L14": imagenet.multiply_adds,
        } == {key: expected[key] for key in expected}, name


def not_built(architecture):
    """Cost of the parts of the whole network that its graph lacks."""
    names = {node.name for node in architecture.graph()}
    graph = whole(architecture)
    return sum((graph.node_cost(node) for node in graph if node.name not in names), Cost())


@pytest.mark.parametrize("name", ["NASNet", "AmoebaNet", "DARTS_V2", "SNAS_aggressive", "PNASNet"])
def test_published_cells_built_have_the_published_size(published, name):
    expected, architecture = published[name]["built_with_quark0_darts"], published_architecture(published[name])
    with torch.device("meta"):  # shapes only: no weights drawn, nothing computed
        cifar = DiscreteNetwork(placed(architecture, darts_cifar_skeleton())).eval()
        imagenet = DiscreteNetwork(placed(architecture, darts_imagenet_skeleton())).eval()
        cifar_images, imagenet_images = torch.empty(1, 3, 32, 32), torch.empty(1, 3, 224, 224)
    # SNAS_aggressive never reads one input of its normal cells; quark0/darts prepares it all the same.
    unread_cifar, unread_imagenet = not_built(cifar.architecture), not_built(imagenet.architecture)
    assert (unread_cifar != Cost()) == (name == "SNAS_aggressive")
    assert counted_parameters(cifar) + unread_cifar.params == expected["params_with_auxiliary"]
    without = counted_parameters(imagenet) - counted_parameters(imagenet.parts["auxiliary"])
    assert without + unread_imagenet.params == expected["params_imagenet_C48_L14"]
    macs = counted_multiply_adds(cifar, cifar_images) + unread_cifar.multiply_adds
    assert macs == expected["conv_linear_macs_cifar_C36_L20"]
    macs = counted_multiply_adds(imagenet, imagenet_images) + unread_imagenet.multiply_adds
    assert macs == expected["conv_linear_macs_imagenet_C48_L14"]


def test_darts_v2_with_real_weights_has_the_published_size(published):
    architecture = published_architecture(published["DARTS_V2"])
    network = placed(architecture, darts_cifar_skeleton()).build().eval()
    assert counted_parameters(network) - counted_parameters(network.parts["auxiliary"]) == 3_349_342
    assert counted_multiply_adds(network, torch.zeros(1, 3, 32, 32)) == 528_359_040


# -- random architectures, against what is built ------------------------------------------------------------------


def check_cost_against_built(architecture, skeleton):
    architecture = placed(architecture, skeleton)
    network, graph, cost = DiscreteNetwork(architecture).eval(), architecture.graph(), architecture.cost()
    assert cost == graph.cost
    auxiliary = counted_parameters(network.parts["auxiliary"]) if skeleton.auxiliary else 0
    assert cost.params == counted_parameters(network) - auxiliary
    exits = sum(graph.node_cost(node).multiply_adds for node in graph if node.op == EXIT)  # asked in training only
    assert cost.multiply_adds == exits + counted_multiply_adds(network, torch.zeros(2, *skeleton.input_shape))
    assert whole(architecture).cost - not_built(architecture) == cost


@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=6)
@given(data=st.data())
def test_cost_is_what_a_built_network_has_and_does(name, data):
    space = SPACES[name]
    architecture = data.draw(architectures(space))
    skeleton = small_skeleton(
        space,
        channels=data.draw(st.integers(1, 5)),
        input_shape=(data.draw(st.integers(1, 3)), data.draw(st.integers(2, 15)), data.draw(st.integers(2, 15))),
        affine=data.draw(st.booleans()),
        pool_norm=data.draw(st.booleans()),
        auxiliary=name != "anytime" and data.draw(st.booleans()),
    )
    check_cost_against_built(architecture, skeleton)


@settings(max_examples=30)
@given(st.data())
def test_cost_is_exact_in_any_space_and_frame(data):
    space = data.draw(spaces())
    architecture = data.draw(architectures(space))
    kinds = [kind.name for kind in space.kinds] + ["residual_reduction", "factorized_reduction"]
    cells = [kind.name for kind in space.kinds] + data.draw(st.lists(st.sampled_from(kinds), max_size=3))
    stem = data.draw(st.sampled_from(["conv", "imagenet"]))
    side = st.integers(16, 33) if stem == "conv" else st.integers(65, 80)
    skeleton = Skeleton(
        tuple(data.draw(st.permutations(cells))),
        channels=data.draw(st.integers(2, 5)),
        input_shape=(3, data.draw(side), data.draw(side)),
        stem=stem,
        stem_multiplier=data.draw(st.integers(1, 3)),
        norm_before_head=data.draw(st.booleans()),
        auxiliary="reduction" in cells,
        affine=data.draw(st.booleans()),
        budget=1.0,
    )
    check_cost_against_built(architecture, skeleton)


@pytest.mark.parametrize("op", ALL_OPS)
@pytest.mark.parametrize("size", [8, 15])
def test_every_op_is_priced_at_both_strides_and_odd_sizes(op, size):
    space = CellSpace((op,), nodes=1)
    skeleton = small_skeleton(space, channels=3, input_shape=(3, size, size))
    check_cost_against_built(space.full_architecture(), skeleton)


@given(architectures(TINY, connected=False))
def test_cost_table_prices_every_architecture_by_a_sum(architecture):
    skeleton = small_skeleton(TINY)
    table = cost_table(TINY, skeleton)
    kept = [table.ops[path, op] for path, names in architecture.choices for op in names]
    assert sum(kept, table.fixed) == whole(placed(architecture, skeleton)).cost
    assert {(path, op) for path in TINY.paths for op in TINY.ops} == set(table.ops)
    assert all(table.ops[path, "none"] == Cost() for path in TINY.paths)


def test_an_op_that_leads_nowhere_costs_nothing():
    reached = CIFAR10.architecture({"cell_0_3": "nor_conv_3x3"})
    for dead_end in ({"cell_1_2": "nor_conv_3x3"}, {"cell_0_1": "nor_conv_3x3"}, {"cell_1_3": "nor_conv_3x3"}):
        assert CIFAR10.architecture({"cell_0_3": "nor_conv_3x3", **dead_end}).cost() == reached.cost()


def test_an_op_of_a_block_runs_once_for_each_predecessor_and_has_its_weights_once():
    skeleton = Skeleton(("block",), channels=4, input_shape=(3, 8, 8))
    space = NetworkSpace(BlockSpace(("nor_conv_1x1",), nodes=2), skeleton)
    ops = {"block_1": "nor_conv_1x1", "block_2": "nor_conv_1x1", "block_1_inputs": "0"}
    one = space.architecture({**ops, "block_2_inputs": "1"})
    two = space.architecture({**ops, "block_2_inputs": ("0", "1")})
    assert two.cost().params == one.cost().params
    assert two.cost().multiply_adds - one.cost().multiply_adds == 4 * 4 * 8 * 8


def test_memory_access_is_what_convolutions_and_pools_read_write_and_hold():
    cells = CellSpace(("sep_conv_5x5", "max_pool_3x3", "skip_connect"), nodes=1, inputs=1, cell_kinds=(CellKind("c"),))
    space = NetworkSpace(cells, Skeleton(("c",), channels=4, input_shape=(3, 8, 8)))
    fixed, elements = cost_table(cells, space.skeleton).fixed, 4 * 8 * 8

    def added(op):
        return space.architecture({"c_0_1": op}).cost().memory_access - fixed.memory_access

    assert added("max_pool_3x3") == added("skip_connect") == 2 * elements
    assert added("sep_conv_5x5") == 4 * 2 * elements + 2 * (25 * 4 + 4 * 4)


def test_a_skeleton_may_leave_out_a_kind_of_cell():
    space = NetworkSpace(darts_space(), Skeleton(("normal", "normal"), channels=4))
    architecture = space.architecture({"normal_0_2": "sep_conv_3x3", "reduction_0_2": "sep_conv_5x5"})
    assert architecture.cost() == architecture.graph().cost

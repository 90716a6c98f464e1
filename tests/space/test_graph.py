"""One graph describes a network: its nodes, their shapes, what is alive in it."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SPACES, TINY, TINY_BLOCK, architectures, placed, small_skeleton

from optuna_nas.space import Cost, Skeleton, nasbench201_skeleton, nasbench201_space

ALL = list(SPACES.values())


@settings(max_examples=30)
@given(st.data())
def test_nodes_come_in_topological_order_with_names_of_their_own(data):
    space = data.draw(st.sampled_from(ALL))
    architecture = data.draw(architectures(space, connected=False))
    for graph in (architecture.cells, placed(architecture, small_skeleton(space)).graph()):
        assert all(source < i for i, node in enumerate(graph) for source in node.inputs)
        names = [node.name for node in graph]
        assert len(set(names)) == len(names) == len(graph)
        assert [graph.index(name) for name in names] == list(range(len(graph)))
        assert all(graph[name].name == name for name in names)
        # A network's modules are named after nodes, and torch forbids dots.
        assert not any("." in name for name in names)


@settings(max_examples=30)
@given(st.data())
def test_every_kept_op_is_one_node_a_cell_and_nothing_else_has_a_path(data):
    space = data.draw(st.sampled_from(ALL))
    architecture = data.draw(architectures(space, connected=False))
    properties = ("_inputs", "_scale", "_exit")
    kept = sorted((path, op) for path, names in architecture.choices if not path.endswith(properties) for op in names)
    assert sorted((node.path, node.op) for node in architecture.cells if node.path) == kept
    skeleton = small_skeleton(space)
    found = sorted(
        (node.path, node.op) for node in space.network_graph(architecture, skeleton, whole=True) if node.path
    )
    assert found == sorted((path, op) for path, op in kept for cell in skeleton.cells if cell == path.split("_")[0])


@settings(max_examples=30)
@given(st.data())
def test_shapes_fit_from_node_to_node(data):
    space = data.draw(st.sampled_from(ALL))
    size = data.draw(st.integers(2, 15))
    graph = placed(data.draw(architectures(space)), small_skeleton(space, input_shape=(2, size, size + 1))).graph()
    for node in graph:
        sources = [graph.nodes[source].site.out_shape for source in node.inputs]
        if node.op == "concat":
            assert node.site.out_shape == (sum(shape[0] for shape in sources), *sources[0][1:])
        elif sources:
            assert set(sources) == {node.site.in_shape}
            if node.op == "sum":
                assert node.site.out_shape == node.site.in_shape
            elif node.op == "upsample":
                sizes = zip(node.site.in_shape[1:], node.site.out_shape[1:], strict=True)
                assert all(small == -(-large // node.site.stride) for small, large in sizes)
            elif node.op not in ("classifier", "exit"):
                halved = tuple(-(-side // node.site.stride) for side in node.site.in_shape[1:])
                assert node.site.out_shape[1:] == halved


def test_a_nasbench201_network_node_by_node():
    space = nasbench201_space()
    architecture = space.architecture({"cell_0_1": "nor_conv_3x3", "cell_0_3": "skip_connect", "cell_1_3": "none"})
    skeleton = nasbench201_skeleton(repeats=1, channels=4, input_shape=(3, 9, 8), classes=5)
    built = [node.name for node in placed(architecture, skeleton).graph().cell(0)]  # without what leads nowhere
    assert built == ["cell0/3<-0/skip_connect", "cell0/3", "cell0/output"]
    graph = space.network_graph(architecture, skeleton, whole=True)
    assert [(node.name, node.op, node.inputs, node.site.out_shape) for node in graph.cell(0)] == [
        ("cell0/1<-0/nor_conv_3x3", "nor_conv_3x3", (1,), (4, 9, 8)),
        ("cell0/1", "sum", (2,), (4, 9, 8)),
        ("cell0/2", "sum", (), (4, 9, 8)),
        ("cell0/3<-0/skip_connect", "skip_connect", (1,), (4, 9, 8)),
        ("cell0/3", "sum", (5,), (4, 9, 8)),
        ("cell0/output", "concat", (6,), (4, 9, 8)),
    ]
    (reduction,) = graph.cell(1)
    assert (reduction.op, reduction.inputs, reduction.site.out_shape) == ("residual_reduction", (7,), (8, 5, 4))
    assert graph["classifier"].site.in_shape == (16, 3, 2)
    assert graph["classifier"].site.out_shape == (5, 1, 1)
    assert [graph.nodes[output].name for output in graph.outputs] == ["classifier"]


def test_live_is_what_reads_something_and_is_read():
    space = nasbench201_space()
    cells = space.architecture(
        {"cell_0_1": "nor_conv_3x3", "cell_1_2": "none", "cell_2_3": "nor_conv_1x1", "cell_0_3": "skip_connect"}
    ).cells
    assert {cells.nodes[i].name for i in cells.live} == {
        "cell/in0",
        "cell/3<-0/skip_connect",
        "cell/3",
        "cell/output",
    }
    assert cells.connected


@given(st.data())
def test_connected_means_that_every_output_reads_an_input(data):
    architecture = data.draw(architectures(data.draw(st.sampled_from(ALL)), connected=False))
    cells = architecture.cells
    reach = []  # the slow way: does the node depend on an input?
    for node in cells:
        reach.append(node.op == "input" or any(reach[source] for source in node.inputs))
    assert architecture.connected == cells.connected == all(reach[output] for output in cells.outputs)


def test_the_auxiliary_head_is_a_second_output_and_has_no_price():
    architecture = TINY.full_architecture()
    plain, headed = (
        placed(architecture, small_skeleton(TINY, auxiliary=auxiliary)).graph() for auxiliary in (False, True)
    )
    assert [headed.nodes[output].name for output in headed.outputs] == ["classifier", "auxiliary"]
    assert headed["auxiliary"].inputs == (headed.index("cell1/output"),)
    assert headed.cost == plain.cost
    assert headed.node_cost(headed["auxiliary"]).params > 0


def test_sums_concatenations_and_inputs_are_free():
    graph = placed(TINY.full_architecture(), small_skeleton(TINY)).graph()
    assert {graph.node_cost(node) for node in graph if node.op in ("input", "sum", "concat")} == {Cost()}


def test_the_output_of_a_block_is_the_sum_of_what_nobody_reads():
    ops = {f"block_{node}": "nor_conv_1x1" for node in range(1, 5)}
    inputs = {"block_1_inputs": "0", "block_2_inputs": "1", "block_3_inputs": ("0", "1"), "block_4_inputs": "2"}
    cells = TINY_BLOCK.architecture({**ops, **inputs}).cells
    assert [cells.nodes[source].name for source in cells["block/output"].inputs] == ["block/3", "block/4"]


@given(st.data())
def test_the_digest_tells_graphs_apart(data):
    one, other = data.draw(architectures(TINY)), data.draw(architectures(TINY))
    assert (one.cells == other.cells) == (one.cells.digest == other.cells.digest) == (one == other)
    assert len(one.cells.digest) == 16
    shifted = replace(one.cells, outputs=one.cells.outputs[::-1])
    assert shifted.digest != one.cells.digest


def test_digests_stay_the_same_between_versions():
    # Digests are keys in storages: a change here is a change of format, for the changelog.
    architecture = TINY.architecture({"normal_0_2": "nor_conv_3x3", "reduction_0_2": "skip_connect"})
    assert architecture.canonical().digest == "5942989ca10c3acf"


@pytest.mark.parametrize(
    ("space", "changes", "message"),
    [
        (TINY, {"cells": ("normal", "moon")}, r"`skeleton.cells` must name .*\['normal', 'reduction'\] .*'moon'"),
        (TINY, {"cells": ("reduction",) * 6}, r"`skeleton` must not reduce .* 5 \(reduction\) gets 1 x 1 .*use fewer"),
        (TINY, {"input_shape": (3, 1, 40)}, r"`skeleton` must not reduce .* 1 x 40 .*larger images"),
        (TINY, {"stem": "imagenet", "input_shape": (3, 7, 32)}, r"`stem='imagenet'` .*8 x 8 but got 7 x 32; use"),
        (
            TINY,
            {"cells": ("normal",), "auxiliary": True},
            r"`skeleton.auxiliary` must have a reduction .*set auxiliary=False or add a reduction",
        ),
        (TINY_BLOCK, {"cells": ("cell",)}, r"`skeleton.cells` must name the space's cells \['block'\] or .* 'cell'"),
    ],
)  # fmt: skip
def test_a_frame_that_does_not_fit_is_refused_with_one_sentence(space, changes, message):
    with pytest.raises(ValueError, match=message):
        placed(space.full_architecture(), Skeleton(**{"cells": ("normal", "reduction"), **changes})).graph()

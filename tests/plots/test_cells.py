import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import combinations, pairwise
from threading import Barrier

import numpy as np
import pytest
from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Text
from strategies import placed

from optuna_nas.plots import cell_drawing, plot_architecture
from optuna_nas.space import (
    NONE,
    BlockSpace,
    CellSpace,
    darts_search_skeleton,
    darts_space,
    ghn_space,
    hmnas_space,
    nasbench201_space,
)

DARTS, NASBENCH201, HMNAS, GHN = darts_space(), nasbench201_space(), hmnas_space(), ghn_space()
SPACES = {"darts": DARTS, "nasbench201": NASBENCH201, "hmnas": HMNAS, "hmnas2": hmnas_space(max_ops=2), "ghn": GHN}

ARCHITECTURES = {
    f"{name}-{seed}": space.sample(np.random.default_rng(seed), connected=seed > 0)
    for name, space in SPACES.items()
    for seed in range(2)
}
ARCHITECTURES |= {
    "dense": DARTS.architecture({path: [DARTS.ops[1 + i % 7]] for i, path in enumerate(DARTS.paths)}),
    "everything": HMNAS.full_architecture(),
    "block-everything": ghn_space(5).full_architecture(),
    "twice": CellSpace(("skip_connect", "sep_conv_3x3")).architecture({"normal_0_2": ["sep_conv_3x3"] * 2}),
    "nothing": NASBENCH201.architecture({}),
    # 1 is fed by nothing and feeds 2, which leads nowhere.
    "dead": NASBENCH201.architecture(
        {"cell_1_2": ["nor_conv_3x3"], "cell_0_2": ["skip_connect"], "cell_0_3": ["nor_conv_1x1"]}
    ),
}


@pytest.fixture(params=ARCHITECTURES, scope="module")  # module: every architecture is drawn once for all promises
def architecture(request):
    return ARCHITECTURES[request.param]


@pytest.fixture(scope="module")
def drawings(architecture):
    return [cell_drawing(architecture.cells, cell) for cell in range(len(architecture.space.kinds))]


@pytest.fixture(scope="module")
def figure(architecture):
    return plot_architecture(architecture)


def png(architecture):
    buffer = BytesIO()
    plot_architecture(architecture).savefig(buffer, format="png")
    return buffer.getvalue()


def inside(point, box, rim=1e-6):
    return abs(point[0] - box.x) < box.width / 2 - rim and abs(point[1] - box.y) < box.height / 2 - rim


def apart(first, second):
    return (
        abs(first.x - second.x) >= (first.width + second.width) / 2
        or abs(first.y - second.y) >= (first.height + second.height) / 2
    )


def points_along(route):
    """Points on the drawn arrow: bends are cubic curves with level ends, between them are straight lines."""
    for i, ((x0, y0), (x1, y1)) in enumerate(pairwise(route)):
        for t in np.linspace(0, 1, 20):
            if i % 2:
                yield x0 + t * (x1 - x0), y0 + t * (y1 - y0)
            else:
                along = 1.5 * t * (1 - t) + t**3  # Bernstein polynomials with the two inner corners at the middle
                yield x0 + along * (x1 - x0), y0 + (3 * t**2 - 2 * t**3) * (y1 - y0)


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_every_kept_op_is_drawn_once(architecture, drawings):
    drawn = [op for drawing in drawings for part in (*drawing.nodes, *drawing.edges) for op in part.ops]
    assert sorted(drawn) == sorted(node.name for node in architecture.cells if node.path)


def test_an_op_stands_between_the_nodes_of_its_path(architecture, drawings):
    for drawing in drawings:
        for edge in drawing.edges:
            for op in edge.ops:
                assert isinstance(architecture.space, CellSpace)
                node = architecture.cells[op]
                assert architecture.cells.nodes[node.inputs[0]].name == edge.source
                assert op.split("<-")[0] == edge.target
        for node in drawing.nodes:
            for op in node.ops:
                assert isinstance(architecture.space, BlockSpace)
                read = {architecture.cells.nodes[i].name for i in architecture.cells[op].inputs}
                assert read == {edge.source for edge in drawing.edges if edge.target == node.name}


def test_the_output_is_reached_from_the_nodes_that_it_reads(architecture, drawings):
    graph = architecture.cells
    for output, drawing in zip(graph.outputs, drawings, strict=True):
        last = graph.nodes[output]
        arrows = [edge.source for edge in drawing.edges if edge.target == last.name]
        assert sorted(arrows) == sorted(graph.nodes[i].name for i in last.inputs)


def test_what_has_no_share_in_the_output_is_flagged(architecture, drawings):
    graph = architecture.cells
    for drawing in drawings:
        for node in drawing.nodes:
            assert node.dead == (graph.index(node.name) not in graph.live)
        for edge in drawing.edges:
            ends = {graph.index(edge.source), graph.index(edge.target)}
            ops = {graph.index(op) for op in edge.ops}
            assert all((op in graph.live) != edge.dead for op in ops)
            assert edge.dead == (not ends <= graph.live)


def test_dead_ops_by_hand():
    drawing = cell_drawing(ARCHITECTURES["dead"].cells, 0)
    assert {(edge.label, edge.dead) for edge in drawing.edges} == {
        ("conv1", False),
        ("conv3", True),
        ("skip", True),
        ("", False),
    }
    assert {node.label for node in drawing.nodes if node.dead} == {"1", "2"}


def test_arrows_run_from_left_to_right(drawings):
    for drawing in drawings:
        for edge in drawing.edges:
            assert drawing.positions[edge.source][0] < drawing.positions[edge.target][0]
            assert all(x0 <= x1 for (x0, _), (x1, _) in pairwise(edge.route))


def test_arrows_begin_and_end_at_their_nodes(drawings):
    for drawing in drawings:
        boxes = {node.name: node.box for node in drawing.nodes}
        for edge in drawing.edges:
            for box, side, (x, y) in ((boxes[edge.source], 1, edge.route[0]), (boxes[edge.target], -1, edge.route[-1])):
                assert x == pytest.approx(box.x + side * box.width / 2)
                assert abs(y - box.y) < box.height / 2


def test_nodes_and_labels_stand_apart(drawings):
    for drawing in drawings:
        boxes = [node.box for node in drawing.nodes] + [edge.box for edge in drawing.edges if edge.box]
        assert all(apart(first, second) for first, second in combinations(boxes, 2))


def test_no_arrow_crosses_a_node_or_the_label_of_another(drawings):
    for drawing in drawings:
        boxes = {node.name: node.box for node in drawing.nodes}
        boxes |= {edge.ops: edge.box for edge in drawing.edges if edge.ops}
        for edge in drawing.edges:
            others = np.array([box for key, box in boxes.items() if key != edge.ops])
            distance = np.abs(np.array([*points_along(edge.route)])[:, None] - others[:, :2])
            assert not (distance < others[:, 2:] / 2 - 1e-6).all(axis=2).any()


def test_an_arrow_runs_level_through_its_own_label(drawings):
    for drawing in drawings:
        for edge in drawing.edges:
            if edge.ops:
                (x0, y0), (x1, y1) = edge.route[-3:-1]
                assert y0 == y1 == pytest.approx(edge.box.y)
                assert x0 <= edge.box.x - edge.box.width / 2 + 1e-9
                assert x1 >= edge.box.x + edge.box.width / 2 - 1e-9


def test_everything_is_within_the_panel(drawings):
    for drawing in drawings:
        boxes = [node.box for node in drawing.nodes] + [edge.box for edge in drawing.edges if edge.box]
        points = [point for edge in drawing.edges for point in edge.route]
        points += [(b.x + sx * b.width / 2, b.y + sy * b.height / 2) for b in boxes for sx in (-1, 1) for sy in (-1, 1)]
        assert all(0 < x < drawing.width and 0 < y < drawing.height for x, y in points)


def test_ops_have_the_labels_that_summaries_have():
    space = CellSpace(("skip_connect", "sep_conv_3x3", "max_pool_3x3"), nodes=1, max_ops=3)
    for ops in (("sep_conv_3x3",), ("sep_conv_3x3", "skip_connect"), space.ops):
        architecture = space.architecture({"normal_0_2": ops})
        label = architecture.summary.removeprefix("normal: ").split()[0]
        drawing = cell_drawing(architecture.cells, 0)
        assert [edge.label for edge in drawing.edges] == [label.replace("+", " + "), ""]


def test_labels_of_nodes():
    def labels(architecture):
        return [node.label for node in cell_drawing(architecture.cells, 0).nodes]

    assert labels(ARCHITECTURES["dense"]) == ["0: c\u2096\u208b\u2082", "1: c\u2096\u208b\u2081", *"2345", "output"]
    assert labels(ARCHITECTURES["dead"]) == ["0: input", *"123", "output"]
    block = GHN.sample(np.random.default_rng(0))
    ops = [word.split("(")[0] for word in block.summary.split()]
    assert labels(block) == ["0: input", *(f"{i}: {op}" for i, op in enumerate(ops, 1)), "output"]


def test_inputs_stand_from_top_to_bottom(drawings):
    for drawing in drawings:
        inputs = [node.box.y for node in drawing.nodes if "/in" in node.name]
        assert inputs == sorted(inputs, reverse=True)


def test_an_unused_input_and_none_edges_are_no_trouble():
    space = CellSpace((NONE, "skip_connect"), nodes=1)
    drawing = cell_drawing(space.architecture({"normal_0_2": ["skip_connect"]}).cells, 0)
    assert [node.name for node in drawing.nodes if node.dead] == ["normal/in1"]
    assert len(drawing.edges) == 2


def test_a_cell_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="`cell` must be from 0 to 1 but got 2"):
        cell_drawing(ARCHITECTURES["dense"].cells, 2)


def test_the_graph_of_a_network_is_refused():
    graph = placed(ARCHITECTURES["dense"], darts_search_skeleton()).graph()
    with pytest.raises(ValueError, match=r"pass `architecture\.cells`"):
        cell_drawing(graph, 0)


# -- figure ------------------------------------------------------------------------------------------------------------


def test_rendered_text_overlaps_no_other_and_stays_in_its_panel(figure):
    renderer = figure.canvas.get_renderer()
    extents = []
    for axes in figure.axes:
        panel = axes.get_window_extent(renderer)
        for text in axes.texts:
            extent = text.get_window_extent(renderer)
            assert panel.x0 <= extent.x0 < extent.x1 <= panel.x1
            assert panel.y0 <= extent.y0 < extent.y1 <= panel.y1
            extents.append(extent)
    assert not any(first.overlaps(second) for first, second in combinations(extents, 2))


def test_rendered_words_lie_in_their_boxes(figure, drawings):
    renderer = figure.canvas.get_renderer()
    for drawing, axes in zip(drawings, figure.axes, strict=True):
        boxes = [node.box for node in drawing.nodes] + [edge.box for edge in drawing.edges if edge.box]
        for text in axes.texts[1:]:  # the first is the title
            corners = axes.transData.inverted().transform(text.get_window_extent(renderer))
            assert any(all(inside(corner, box) for corner in corners) for box in boxes)


def test_one_panel_a_kind_under_its_name():
    for space in SPACES.values():
        figure = plot_architecture(space.sample(np.random.default_rng(0)))
        assert [axes.texts[0].get_text() for axes in figure.axes] == [kind.name for kind in space.kinds]
        tops = [axes.get_position().y1 for axes in figure.axes]
        assert tops == sorted(tops, reverse=True)


def test_a_legend_within_the_figure_says_what_the_signs_in_it_mean():
    for name, signs in {
        "dense": {"op with weights", "op without weights", "identity", "value passed on"},
        "dead": {"op with weights", "identity", "value passed on", "no effect on the output"},
        "nothing": {"value passed on", "no effect on the output"},
    }.items():
        figure = plot_architecture(ARCHITECTURES[name])
        texts = [artist for artist in figure.artists if isinstance(artist, Text)]
        assert {text.get_text() for text in texts} == signs
        panels = [axes.get_window_extent() for axes in figure.axes]
        for text in texts:
            extent = text.get_window_extent(figure.canvas.get_renderer())
            assert extent.x1 <= figure.bbox.x1
            assert not any(extent.overlaps(panel) for panel in panels)


def test_families_of_ops_differ_in_shape_where_colours_cannot_be_seen():
    space = CellSpace(("skip_connect", "sep_conv_3x3", "max_pool_3x3"), nodes=1)
    shapes = set()
    for op in space.ops:
        (axes, _) = plot_architecture(space.architecture({"normal_0_2": [op]})).axes
        box = next(patch for patch in axes.patches if isinstance(patch, FancyBboxPatch) and patch.get_linewidth() < 1)
        shapes.add((type(box.get_boxstyle()), getattr(box.get_boxstyle(), "rounding_size", None)))
    assert len(shapes) == 3


def test_the_figure_grows_with_the_cell():
    small, large = (plot_architecture(ARCHITECTURES[name]).get_size_inches() for name in ("nasbench201-1", "dense"))
    assert (small < large).all()


@pytest.mark.parametrize("name", ["darts-0", "nasbench201-0", "ghn-0", "dead"])
def test_the_same_picture_twice(name):
    assert png(ARCHITECTURES[name]) == png(ARCHITECTURES[name])


@pytest.mark.process
def test_the_same_numbers_in_a_fresh_process_which_never_imports_pyplot():
    script = (
        "import sys, hashlib; from optuna_nas.space import hmnas_space; from optuna_nas.plots import *\n"
        "plot_architecture(hmnas_space().full_architecture()).savefig(sys.stderr.buffer, format='png')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    picture = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True).stderr
    assert picture == png(ARCHITECTURES["everything"])


def test_threads_draw_at_once():
    names = ["darts-0", "hmnas-1", "ghn-1", "dead"]
    alone = [png(ARCHITECTURES[name]) for name in names]
    barrier = Barrier(len(names))

    def draw(name):
        barrier.wait()
        return [png(ARCHITECTURES[name]) for _ in range(2)]

    with ThreadPoolExecutor(len(names)) as pool:
        assert list(pool.map(draw, names)) == [[picture] * 2 for picture in alone]

"""Pictures of a distribution that learns: the numbers behind them, and that they are drawn."""

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from perceptrons import SIZES
from perceptrons import SPACE as PERCEPTRONS

from optuna_nas import darts_space, ghn_space, hmnas_space, nasbench201_space, plot_distribution, plot_most_likely
from optuna_nas.oneshot import DistributionRecord
from optuna_nas.plots.distribution import MAX_ROWS, distribution_pages, heat_maps, likeliest_over_time

SPACES = {
    "nasbench201": nasbench201_space(),
    "darts": darts_space(),
    "ghn": ghn_space(4),
    "hmnas": hmnas_space(),
}


def records(space, n_records=5, costs=True, seed=0):
    random = np.random.default_rng(seed)
    sizes = [len(options) for options in space.options().values()]
    made = []
    for number in range(n_records):
        table = np.zeros((len(sizes), max(sizes)))
        for row, size in enumerate(sizes):
            table[row, :size] = random.dirichlet(np.ones(size))
        metrics = {"entropy": 1.0, **({"params": 1e6, "multiply_adds": 1e8, "memory_access": 1e7} if costs else {})}
        made.append(DistributionRecord(10 * number, metrics, table))
    return made


@pytest.mark.parametrize("name", SPACES)
def test_rows_are_the_options_of_the_edges_with_their_probabilities(name):
    space = SPACES[name]
    made = records(space)
    options = space.options()
    maps = heat_maps(space, made)
    assert [heat.kind for heat in maps] == [kind.name for kind in space.kinds]
    paths = list(options)
    for heat in maps:
        assert heat.steps.tolist() == [0, 10, 20, 30, 40]
        for row, (path, option) in enumerate(heat.rows):
            place = paths.index(path), list(options[path]).index(option)
            assert heat.probabilities[row].tolist() == [record.probabilities[place] for record in made]
        for path in {path for path, _ in heat.rows}:
            shown = [option for other, option in heat.rows if other == path]
            assert len(shown) == min(MAX_ROWS, len(options[path]))
            hidden = [
                made[-1].probabilities[paths.index(path), i] for i, o in enumerate(options[path]) if o not in shown
            ]
            assert max(hidden, default=0) <= min(
                heat.probabilities[i, -1] for i, r in enumerate(heat.rows) if r[0] == path
            )


@pytest.mark.parametrize("name", ["nasbench201", "darts"])
@pytest.mark.parametrize("costs", [True, False])
def test_a_picture_shows_curves_and_a_heat_map_for_every_kind(name, costs, tmp_path):
    figure = plot_distribution(SPACES[name], records(SPACES[name], costs=costs))
    n_kinds = len(SPACES[name].kinds)
    assert len(figure.axes) == 1 + costs + n_kinds * 4  # two columns, the scale and the title
    figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_the_scale_tells_an_eighth_from_a_quarter_in_grey_too():
    picture = plot_distribution(SPACES["darts"], records(SPACES["darts"]))
    (image, *_) = [mesh for axes in picture.axes for mesh in axes.collections if isinstance(mesh, QuadMesh)]
    greys = [to_rgb(image.to_rgba(share)) @ np.array([0.299, 0.587, 0.114]) for share in (1 / 16, 1 / 8, 1 / 4, 1 / 2)]
    assert all(lighter - darker > 0.1 for lighter, darker in pairwise(greys))


@pytest.mark.parametrize("space", [*SPACES.values(), ghn_space()], ids=[*SPACES, "more than a page of blocks"])
def test_pages_fit_paper_with_labels_of_eight_points_that_nothing_covers(space):
    pages = distribution_pages(space, records(space))
    edges = []
    for _, draw in pages:
        figure = draw()
        width, height = figure.get_size_inches()
        assert width <= 7.5
        assert height <= 9.3
        texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
        figure.draw_without_rendering()
        assert all(text.get_fontsize() >= 8 for text in texts)
        for axes in figure.axes:
            legend = axes.get_legend()
            assert legend is None or not legend.get_window_extent().overlaps(axes.get_window_extent())
        edges += [text.get_text() for text in texts if text.get_text() in space.options()]
    assert sorted(edges) == sorted(space.options())


def test_one_record_and_blocks_are_drawn_too():
    plot_distribution(SPACES["ghn"], records(SPACES["ghn"], 1, costs=False))
    plot_most_likely(SPACES["ghn"], records(SPACES["ghn"], 1))


def test_the_likeliest_is_listed_where_it_changes_and_not_while_all_are_alike():
    space = SPACES["nasbench201"]
    uniform, first, second = np.full((6, 5), 0.2), np.full((6, 5), 0.1), np.full((6, 5), 0.1)
    first[:, 3], second[:, 1] = 0.6, 0.6
    made = [DistributionRecord(i, {"entropy": 1.0}, t) for i, t in enumerate([uniform, first, first, second, second])]
    changes = likeliest_over_time(space, made)
    assert [(record.step, set(architecture["cell_0_1"])) for record, architecture in changes] == [
        (1, {"nor_conv_3x3"}),
        (3, {"skip_connect"}),
    ]
    figure = plot_most_likely(space, made)
    assert [text.get_text() for text in figure.texts] == ["from step 1", "from step 3"]
    assert len(plot_most_likely(space, records(space, 30), moments=4).texts) == 4
    assert plot_most_likely(space, made[:1]).texts[0].get_text() == "from step 0"


def test_a_distribution_that_is_certain_counts_as_a_change():
    space = SPACES["nasbench201"]
    certain = np.zeros((6, 5))
    certain[:, 3] = 1
    made = [
        DistributionRecord(0, {"entropy": 1.0}, np.full((6, 5), 0.2)),
        DistributionRecord(1, {"entropy": 0.0}, certain),
    ]
    assert [record.step for record, _ in likeliest_over_time(space, made)] == [1]


def test_a_space_without_cells_has_one_heat_map_of_rows_of_all_lengths(tmp_path):
    made = records(PERCEPTRONS, costs=False)
    (heat,) = heat_maps(PERCEPTRONS, made)
    assert heat.rows == tuple((path, name) for path, options in PERCEPTRONS.options().items() for name in options)
    assert heat.probabilities.sum(axis=0) == pytest.approx([len(SIZES)] * len(made))
    assert (heat.probabilities > 0).all()
    plot_distribution(PERCEPTRONS, made).savefig(tmp_path / "picture.png")
    uniform = np.zeros((3, 4))
    for row, size in zip(uniform, SIZES.values(), strict=True):
        row[:size] = 1 / size
    assert likeliest_over_time(PERCEPTRONS, [DistributionRecord(0, {"entropy": 1.0}, uniform)]) == []


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="`records` must hold at least one"):
        plot_distribution(SPACES["nasbench201"], [])
    with pytest.raises(ValueError, match="must not be empty"):
        plot_most_likely(SPACES["nasbench201"], [])

"""Pictures of HM-NAS: the numbers behind them, and that they are drawn."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from strategies import few_digits

from optuna_nas import CellKind, CellSpace, NetworkSpace, Skeleton, plot_edge_weights, plot_family, plot_masks
from optuna_nas.oneshot import HMNAS, HMNASRecipe
from optuna_nas.plots.masks import MAX_WIDTH, MIN_WIDTH, family_members, masked_drawing

SPACE = CellSpace(
    ("skip_connect", "nor_conv_3x3", "avg_pool_3x3"), 2, 1, (CellKind("cell"), CellKind("reduction", 2)), max_ops=3
)
FRAME = Skeleton(("cell", "reduction"), 4, (1, 8, 8), 10, affine=False)


def model(seed=0, spread=0.0):
    hmnas = HMNAS(NetworkSpace(SPACE, FRAME), HMNASRecipe(seed=seed, batch_size=16))
    with torch.no_grad():
        random = torch.Generator().manual_seed(seed)
        hmnas.masks.edge_logits_E += torch.randn(len(hmnas.paths), generator=random)
        for mask in (hmnas.masks.op_masks_EO, *hmnas.masks.weight_masks.values()):
            mask += spread * torch.randn(mask.shape, generator=random)
    return hmnas


def test_what_is_cut_is_struck_out_and_arrows_are_as_thick_as_edges_weigh():
    hmnas = model()
    with torch.no_grad():
        hmnas.masks.edge_masks_E[hmnas.paths.index("cell_0_2")] = 0
        hmnas.masks.op_masks_EO[hmnas.paths.index("cell_0_1"), hmnas.masks.ops.index("skip_connect")] = 0
        hmnas.masks.op_masks_EO[hmnas.paths.index("reduction_1_2")] = 0
    weights, kept = hmnas.edge_weights, hmnas.kept()
    seen = set()
    for kind in range(2):
        drawing = masked_drawing(SPACE, kept, weights, kind)
        for edge in drawing.edges:
            if edge.ops:
                path = SPACE.full_architecture().cells[edge.ops[0]].path
                struck = [word.text.removesuffix(" +") for word in edge.words if word.struck]
                assert len(struck) == 3 - len(kept[path])
                assert edge.dead == (not kept[path])
                assert MIN_WIDTH < edge.width <= MAX_WIDTH
                share = (edge.width - MIN_WIDTH) / (MAX_WIDTH - MIN_WIDTH)
                assert share == pytest.approx(weights[path] / max(weights.values()))
                seen.add(path)
                if path == "cell_0_1":
                    assert struck == ["skip"]
    assert seen == set(SPACE.paths)


def test_nodes_that_nothing_reaches_are_pale():
    hmnas = model()
    with torch.no_grad():
        for path in ("cell_0_2", "cell_1_2"):
            hmnas.masks.edge_masks_E[hmnas.paths.index(path)] = 0
    dead = {node.name for node in masked_drawing(SPACE, hmnas.kept(), hmnas.edge_weights, 0).nodes if node.dead}
    assert dead == {"cell/2"}


def test_sizes_and_metrics_of_a_family():
    hmnas = model(spread=0.01)
    data = few_digits(96)
    hmnas.attach(data)
    members = family_members(hmnas, 6)
    assert members[0].params == sum(p.numel() for p in hmnas.supernet.parameters())
    assert members[1].params == hmnas.derive().params
    assert all(larger.params > smaller.params for larger, smaller in pairwise(members))
    assert members[1].metric == hmnas.metric_of()
    assert all(0 <= member.metric <= 1 for member in members)


def test_pictures_are_drawn(tmp_path):
    models = [model(seed, 0.005) for seed in range(3)]
    models[0].attach(few_digits(96))
    figures = {"masks": plot_masks(models[0]), "family": plot_family(models[0]), "edges": plot_edge_weights(models)}
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.png")
        assert np.asarray(Image.open(tmp_path / f"{name}.png")).std() > 10
    axes = figures["edges"].axes[0]
    heights = [bar.get_height() for bar in axes.patches]
    means = np.mean([[m.edge_weights[path] for path in ("cell_0_1", "cell_0_2", "cell_1_2")] for m in models], 0)
    assert heights == pytest.approx(means.tolist())
    assert len(axes.get_lines()) == 3


def test_edge_weights_of_different_spaces_are_not_compared():
    other = HMNAS(
        NetworkSpace(CellSpace(SPACE.ops, 2, 1, (CellKind("cell"),), max_ops=3), Skeleton(("cell",), 4, (1, 8, 8), 10))
    )
    for models in ([], [model(), other]):
        with pytest.raises(ValueError, match="`models` must be one or more HMNAS of the same space"):
            plot_edge_weights(models)

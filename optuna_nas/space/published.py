"""Cells of published papers.

Sources: the authors' repositories; quark0/darts for NASNet, AmoebaNet and DARTS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from optuna_nas.space.cell_space import CellSpace
from optuna_nas.space.cellular import CellKind
from optuna_nas.space.ops import NONE, choosable_ops, get_op
from optuna_nas.space.presets import darts_space

if TYPE_CHECKING:
    from optuna_nas.space.architecture import Architecture


DARTS_OUTPUTS = (2, 3, 4, 5)


class _Published(NamedTuple):
    """Two `op:source` per node, with ops as short labels; sources 0 and 1 are the two previous cells."""

    paper: str
    normal: str
    reduction: str
    normal_outputs: tuple[int, ...] = DARTS_OUTPUTS
    reduction_outputs: tuple[int, ...] = DARTS_OUTPUTS


_CELLS = {
    "NASNet": _Published(
        "Zoph, Vasudevan, Shlens and Le 2018, NASNet-A",
        "sep5:1 sep3:0 sep5:0 sep3:0 avg3:1 skip:0 avg3:0 avg3:0 sep3:1 skip:1",
        "sep5:1 sep7:0 max3:1 sep7:0 avg3:1 sep5:0 skip:3 avg3:2 sep3:2 max3:1",
        (2, 3, 4, 5, 6),
        (4, 5, 6),
    ),
    "AmoebaNet": _Published(
        "Real, Aggarwal, Huang and Le 2019, AmoebaNet-A",
        "avg3:0 max3:1 sep3:0 sep5:2 sep3:0 avg3:3 sep3:1 skip:1 skip:0 avg3:1",
        "avg3:0 sep3:1 max3:0 sep7:2 sep7:0 avg3:1 max3:0 max3:1 conv7x1:0 sep3:5",
        (4, 5, 6),
        (3, 4, 6),
    ),
    "DARTS_V1": _Published(
        "Liu, Simonyan and Yang 2019, first order",
        "sep3:1 sep3:0 skip:0 sep3:1 skip:0 sep3:1 sep3:0 skip:2",
        "max3:0 max3:1 skip:2 max3:0 max3:0 skip:2 skip:2 avg3:0",
    ),
    "DARTS_V2": _Published(
        "Liu, Simonyan and Yang 2019, second order",
        "sep3:0 sep3:1 sep3:0 sep3:1 sep3:1 skip:0 skip:0 dil3:2",
        "max3:0 max3:1 skip:2 max3:1 max3:0 skip:2 skip:2 max3:1",
    ),
    "SNAS_mild": _Published(
        "Xie, Zheng, Liu and Lin 2019, mild constraint",
        "sep3:0 sep3:1 skip:0 dil3:1 skip:0 skip:1 skip:0 sep3:1",
        "max3:0 max3:1 max3:1 skip:2 max3:1 skip:2 max3:0 dil5:2",
    ),
    "SNAS_moderate": _Published(
        "Xie, Zheng, Liu and Lin 2019, moderate constraint",
        "dil5:0 skip:1 sep3:0 skip:1 skip:0 skip:1 sep3:0 dil5:1",
        "max3:0 max3:1 sep5:0 dil5:1 sep5:0 sep5:1 sep5:0 sep5:1",
    ),
    "SNAS_aggressive": _Published(
        "Xie, Zheng, Liu and Lin 2019, aggressive constraint",
        "sep5:0 skip:1 skip:0 skip:1 dil5:1 skip:0 skip:0 dil5:1",
        "sep5:0 none:1 sep5:0 none:1 none:1 none:0 none:1 none:0",
    ),
    "PC_DARTS_cifar": _Published(
        "Xu et al. 2020, searched on CIFAR-10",
        "sep3:1 skip:0 sep3:0 dil3:1 sep5:0 sep3:1 avg3:0 dil3:1",
        "sep5:1 max3:0 sep5:1 sep5:2 sep3:0 sep3:3 sep3:1 sep3:2",
    ),
    "PC_DARTS_image": _Published(
        "Xu et al. 2020, searched on ImageNet",
        "skip:1 sep3:0 sep3:0 skip:1 sep3:1 sep3:3 sep3:1 dil5:4",
        "sep3:0 skip:1 dil5:2 max3:1 sep3:2 sep3:1 sep5:0 sep3:3",
    ),
    "PDARTS": _Published(
        "Chen, Xie, Wu and Tian 2019, searched on CIFAR-10",
        "skip:0 dil3:1 skip:0 sep3:1 sep3:1 sep3:3 sep3:0 dil5:4",
        "avg3:0 sep5:1 sep3:0 dil5:2 max3:0 dil3:1 dil3:1 dil5:3",
    ),
    "GDAS_V1": _Published(
        "Dong and Yang 2019, GDAS",
        "skip:0 skip:1 skip:0 sep5:2 sep3:3 skip:0 sep5:4 sep3:3",
        "sep5:0 sep3:1 sep5:2 sep5:1 dil5:2 sep3:1 sep5:0 sep5:1",
    ),
    "SETN": _Published(
        "Dong and Yang 2019, SETN",
        "skip:0 sep5:1 sep5:0 sep3:1 sep5:1 sep5:3 max3:1 conv3x1:4",
        "sep3:0 sep5:1 avg3:0 sep5:1 avg3:0 sep5:1 avg3:0 skip:1",
    ),
    "PNASNet": _Published(
        "Liu et al. 2018, progressive search",
        "sep5:0 max3:0 sep7:1 max3:1 sep5:1 sep3:1 sep3:4 max3:1 sep3:0 skip:1",
        "sep5:0 max3:0 sep7:1 max3:1 sep5:1 sep3:1 sep3:4 max3:1 sep3:0 skip:1",
        (2, 3, 4, 5, 6),
        (2, 3, 4, 5, 6),
    ),
}
PUBLISHED_CELLS = tuple(_CELLS)
"""Names of the published cells."""


def published_cell(name: str) -> Architecture:
    """Return a published pair of normal and reduction cell, for skeletons such as `darts_cifar_skeleton()`.

    Cells with DARTS' ops and nodes are architectures of `darts_space()`, others of a space with their ops and nodes.

    Args:
        name: One of `optuna_nas.space.PUBLISHED_CELLS`; case does not matter, nor does `-` for `_`.

    Raises:
        ValueError: The name is unknown.

    Example:
        >>> from optuna_nas import darts_space, published_cell
        >>> cell = published_cell("DARTS_V2")
        >>> cell["normal_2_5"], cell.space == darts_space()
        (('dil_conv_3x3',), True)
    """

    def plain(text: str) -> str:
        return text.lower().replace("-", "_")

    cells = {plain(published): cells for published, cells in _CELLS.items()}.get(plain(name))
    if cells is None:
        raise ValueError(f"`name` must be one of {', '.join(_CELLS)} but got {name!r}.")
    ops = {get_op(op).label: op for op in choosable_ops() if op != NONE}
    ops_of_edge: dict[tuple[str, int, int], list[str]] = {}
    for kind, genes in (("normal", cells.normal), ("reduction", cells.reduction)):
        for position, gene in enumerate(genes.split()):
            label, _, source = gene.partition(":")
            edge_ops = ops_of_edge.setdefault((kind, 2 + position // 2, int(source)), [])
            if label != NONE:
                edge_ops.append(ops[label])
    space = darts_space()
    used = {op for edge_ops in ops_of_edge.values() for op in edge_ops}
    if not used <= set(space.ops) or {cells.normal_outputs, cells.reduction_outputs} != {DARTS_OUTPUTS}:
        kinds = (CellKind("normal", outputs=cells.normal_outputs), CellKind("reduction", 2, cells.reduction_outputs))
        space = CellSpace((NONE, *sorted(used)), len(cells.normal.split()) // 2, cell_kinds=kinds)
    paths = {(kind.name, target, source): path for path, (kind, target, source) in space.places.items()}
    return space.architecture({paths[edge]: edge_ops for edge, edge_ops in ops_of_edge.items()})

"""The published spaces by name."""

from __future__ import annotations

from optuna_nas.space.block_space import AnytimeSpace, BlockSpace
from optuna_nas.space.cell_space import CellSpace
from optuna_nas.space.cellular import CellKind
from optuna_nas.space.ops import NONE

DARTS_OPS = (
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
NASBENCH201_OPS = (NONE, "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
GHN_OPS = (
    "skip_connect",
    "nor_conv_1x1",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "conv_7x1_1x7",
    "max_pool_3x3",
    "avg_pool_3x3",
)


def darts_space() -> CellSpace:
    """Two kinds of cells of 4 nodes and 14 edges, 8 ops an edge with `none` (DARTS, Liu et al. 2019; SNAS)."""
    return CellSpace((NONE, *DARTS_OPS))


def hmnas_space(max_ops: int = len(DARTS_OPS)) -> CellSpace:
    """DARTS' cells where an edge keeps any subset of 7 ops, the empty one included (HM-NAS, Yan et al. 2019)."""
    return CellSpace(DARTS_OPS, max_ops=max_ops)


def nasbench201_space() -> CellSpace:
    """One kind of cell of 4 nodes and 6 edges, 5 ops an edge: 15,625 cells (Dong and Yang 2020)."""
    return CellSpace(NASBENCH201_OPS, nodes=3, inputs=1, cell_kinds=(CellKind("cell", outputs=(3,)),))


def ghn_space(nodes: int = 17) -> BlockSpace:
    """One block of `nodes` nodes, 8 ops a node (GHN, Zhang, Ren and Urtasun 2019, section 5.1)."""
    return BlockSpace(GHN_OPS, nodes=nodes)


def anytime_space(nodes: tuple[int, ...] = (24, 16, 8)) -> AnytimeSpace:
    """Networks that may be stopped at any time: cells of 24, 16 and 8 nodes (GHN, Zhang et al. 2019, section 5.2)."""
    return AnytimeSpace(GHN_OPS, nodes)

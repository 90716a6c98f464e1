"""Search spaces of published papers."""

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
    """Return the space of DARTS and SNAS: two kinds of cells with 14 edges each, and 8 ops per edge.

    A cell has 4 nodes besides its 2 inputs; one of the ops is `none` (Liu, Simonyan and Yang 2019, arXiv 1806.09055).

    Example:
        >>> from optuna_nas import darts_space
        >>> space = darts_space()
        >>> len(space.distributions()), space.size == 8**28
        (28, True)
    """
    return CellSpace((NONE, *DARTS_OPS))


def hmnas_space(max_ops: int = len(DARTS_OPS)) -> CellSpace:
    """Return the space of HM-NAS: DARTS' cells, in which an edge chooses a subset of 7 ops, which may be empty.

    HM-NAS: Yan et al. 2019, arXiv 1909.00122.

    Args:
        max_ops: Maximum number of ops of an edge, from 1 to 7.

    Example:
        >>> from optuna_nas import hmnas_space
        >>> hmnas_space().size == 2 ** (7 * 28)
        True
    """
    return CellSpace(DARTS_OPS, max_ops=max_ops)


def nasbench201_space() -> CellSpace:
    """Return the space of NAS-Bench-201: one kind of cell with 6 edges and 5 ops per edge, 15,625 cells.

    NAS-Bench-201: Dong and Yang 2020, arXiv 2001.00326.

    Example:
        >>> from optuna_nas import nasbench201_space
        >>> nasbench201_space().size
        15625
    """
    return CellSpace(NASBENCH201_OPS, nodes=3, inputs=1, cell_kinds=(CellKind("cell", outputs=(3,)),))


def ghn_space(nodes: int = 17) -> BlockSpace:
    """Return the space of GHN: one kind of block, and 8 ops per node (Zhang, Ren and Urtasun 2019, section 5.1).

    The paper says 17 nodes, 8 ops, and that ten random networks of 18 blocks and 32 filters have 4.6 +- 0.6 M
    parameters. Its appendix, which was not available, says which ops these are, whether input, sums and output
    are among the 17, and how predecessors are drawn. Here the ops are a best guess, every node has one or two
    predecessors, and all choices are equally likely. 300 random blocks then have 5.7 +- 2.3 M parameters (standard
    deviation of one network; that of the mean of ten is 0.7 M), with 14 nodes 4.6 +- 2.1 M. How predecessors are
    drawn has no effect on them.

    Args:
        nodes: Number of nodes with an op, at least 1.

    Example:
        >>> from optuna_nas import ghn_space
        >>> len(ghn_space(nodes=3).distributions())
        6
    """
    return BlockSpace(GHN_OPS, nodes=nodes)


def anytime_space(nodes: tuple[int, ...] = (24, 16, 8)) -> AnytimeSpace:
    """Return the space of anytime prediction of GHN (Zhang, Ren and Urtasun 2019, section 5.2).

    Args:
        nodes: Number of nodes of every cell.

    Example:
        >>> from optuna_nas import anytime_space
        >>> len(anytime_space().distributions()) == 4 * (24 + 16 + 8)
        True
    """
    return AnytimeSpace(GHN_OPS, nodes)

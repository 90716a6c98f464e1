"""Search spaces, architectures, computation graphs and costs."""

from optuna_nas.space.architecture import Architecture
from optuna_nas.space.base import Space
from optuna_nas.space.block_space import AnytimeSpace, BlockSpace
from optuna_nas.space.cell_space import CellSpace, CostTable, cost_table
from optuna_nas.space.cellular import CellKind, CellularSpace
from optuna_nas.space.choice_space import ChoiceSpace
from optuna_nas.space.cost import (
    Cost,
    PredictedCost,
    Site,
    anytime_accuracy,
    convolution_cost,
    elementwise_cost,
    linear_cost,
    norm_cost,
)
from optuna_nas.space.graph import ComputationGraph, Node
from optuna_nas.space.model_space import ModelSpace
from optuna_nas.space.ops import NONE, Op
from optuna_nas.space.presets import anytime_space, darts_space, ghn_space, hmnas_space, nasbench201_space
from optuna_nas.space.published import PUBLISHED_CELLS, published_cell
from optuna_nas.space.skeleton import (
    Skeleton,
    anytime_skeleton,
    cells_with_reductions,
    darts_cifar_skeleton,
    darts_imagenet_skeleton,
    darts_search_skeleton,
    ghn_mobile_skeleton,
    ghn_skeleton,
    nasbench201_skeleton,
    widest_skeleton,
)

__all__ = [
    "NONE",
    "PUBLISHED_CELLS",
    "AnytimeSpace",
    "Architecture",
    "BlockSpace",
    "CellKind",
    "CellSpace",
    "CellularSpace",
    "ChoiceSpace",
    "ComputationGraph",
    "Cost",
    "CostTable",
    "ModelSpace",
    "Node",
    "Op",
    "PredictedCost",
    "Site",
    "Skeleton",
    "Space",
    "anytime_accuracy",
    "anytime_skeleton",
    "anytime_space",
    "cells_with_reductions",
    "convolution_cost",
    "cost_table",
    "darts_cifar_skeleton",
    "darts_imagenet_skeleton",
    "darts_search_skeleton",
    "darts_space",
    "elementwise_cost",
    "ghn_mobile_skeleton",
    "ghn_skeleton",
    "ghn_space",
    "hmnas_space",
    "linear_cost",
    "nasbench201_skeleton",
    "nasbench201_space",
    "norm_cost",
    "published_cell",
    "widest_skeleton",
]

"""Plots: cells, learned distributions and masks, scores against values, progress, costs and early exits."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna_nas.plots.anytime import plot_anytime
    from optuna_nas.plots.cell_layout import CellDrawing, cell_drawing
    from optuna_nas.plots.cells import plot_architecture
    from optuna_nas.plots.distribution import plot_distribution, plot_most_likely
    from optuna_nas.plots.masks import plot_edge_weights, plot_family, plot_masks
    from optuna_nas.plots.network_graph import plot_graph
    from optuna_nas.plots.objectives import plot_objectives
    from optuna_nas.plots.progress import plot_importances, plot_pareto, plot_progress
    from optuna_nas.plots.surrogate import plot_surrogate
else:
    from optuna_nas.lazy import lazy_names

    __getattr__ = lazy_names(
        __name__,
        {
            "anytime": "plot_anytime",
            "cell_layout": "CellDrawing cell_drawing",
            "cells": "plot_architecture",
            "distribution": "plot_distribution plot_most_likely",
            "masks": "plot_edge_weights plot_family plot_masks",
            "network_graph": "plot_graph",
            "objectives": "plot_objectives",
            "progress": "plot_importances plot_pareto plot_progress",
            "surrogate": "plot_surrogate",
        },
    )

__all__ = [
    "CellDrawing",
    "cell_drawing",
    "plot_anytime",
    "plot_architecture",
    "plot_distribution",
    "plot_edge_weights",
    "plot_family",
    "plot_graph",
    "plot_importances",
    "plot_masks",
    "plot_most_likely",
    "plot_objectives",
    "plot_pareto",
    "plot_progress",
    "plot_surrogate",
]

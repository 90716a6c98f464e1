"""Figures: cells, and how a distribution over them learned."""

from optuna_nas.plots.cells import CellDrawing, cell_drawing, plot_architecture
from optuna_nas.plots.distribution import plot_distribution, plot_most_likely

__all__ = ["CellDrawing", "cell_drawing", "plot_architecture", "plot_distribution", "plot_most_likely"]

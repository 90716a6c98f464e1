"""Draw how a trial runs, the picture of concepts.md: `python docs/trial_picture.py` writes docs/trial.svg."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEPS = (
    ("Sampler", "proposes what to choose"),
    ("Architecture", "the choices, as one value"),
    ("Pruner", "is asked before the first step"),
    ("Network", "built, and given initial weights"),
    ("Training", "epoch by epoch, on the training splits"),
    ("Value", "metric or loss on the validation split"),
)
BESIDE = {
    0: ("One-shot model", "learns in rounds, shared by all"),
    1: ("Same function as before?", "then that trial's result is taken"),
    2: ("Clearly behind?", "the trial ends as PRUNED"),
    4: ("After each epoch", "pruner, checkpoint, MLflow"),
    5: ("Optuna's storage", "what all workers and MLflow read"),
}
INTO = (0,)
"""Steps into which the arrow of the box beside them leads."""
WIDTH, HEIGHT, LEFT, RIGHT = 3.1, 0.72, 0.1, 3.9
INK, STEP, OTHER = "#22304a", "#dfe7f7", "#fbeed9"


def draw() -> Figure:
    """Return the picture: the steps of a trial from top to bottom, and what happens beside them."""
    figure = Figure(figsize=(7.1, 6.2), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 7.1), ylim=(0, 6.2))
    axes.axis("off")
    for number, (title, text) in enumerate(STEPS):
        y = 5.3 - 1.02 * number
        _box(axes, LEFT, y, title, text, STEP)
        if number + 1 < len(STEPS):
            _arrow(axes, (LEFT + WIDTH / 2, y), (LEFT + WIDTH / 2, y - 0.3))
        if number in BESIDE:
            _box(axes, RIGHT, y, *BESIDE[number], OTHER)
            ends = (LEFT + WIDTH, y + HEIGHT / 2), (RIGHT, y + HEIGHT / 2)
            _arrow(axes, *(reversed(ends) if number in INTO else ends))
    return figure


def _box(axes: Axes, x: float, y: float, title: str, text: str, colour: str) -> None:
    axes.add_patch(
        FancyBboxPatch((x, y), WIDTH, HEIGHT, "round,pad=0,rounding_size=0.1", facecolor=colour, edgecolor=INK)
    )
    axes.text(x + WIDTH / 2, y + 0.47, title, ha="center", va="center", fontsize=12, weight="bold", color=INK)
    axes.text(x + WIDTH / 2, y + 0.21, text, ha="center", va="center", fontsize=10.5, color=INK)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": INK, "shrinkA": 0, "shrinkB": 0, "lw": 1.4})


def main() -> None:
    """Write the picture beside this file; text stays text, so that it can be searched and read aloud."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "trial", "font.family": "sans-serif"}):
        draw().savefig(Path(__file__).with_name("trial.svg"), metadata={"Date": None, "Title": "How a trial runs"})


if __name__ == "__main__":
    main()

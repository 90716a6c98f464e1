"""Pictures in MLflow: a trial's architecture; of the study its scores, early exits, distribution and masks."""

from __future__ import annotations

from collections import Counter
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

from optuna_nas.plots import plot_architecture, plot_distribution, plot_most_likely
from optuna_nas.plots.anytime import anytime_curves, draw_anytime
from optuna_nas.plots.masks import draw_masks
from optuna_nas.plots.surrogate import draw_guesses, guesses
from optuna_nas.space import CellularSpace
from optuna_nas.storage.attributes import masks_of
from optuna_nas.tracking.view import PICTURE_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from optuna.study import StudyDirection
    from optuna.trial import FrozenTrial

    from optuna_nas.oneshot import DistributionRecord
    from optuna_nas.space import Architecture, Space
    from optuna_nas.tracking.client import Client
    from optuna_nas.tracking.runs import StudyRuns

MIN_SCORES = 5
"""Scored trials from which scores are drawn against values."""
REDRAW_GROWTH = 1.2
"""A picture of the study is drawn again when so many times more trials are in it."""


def save_architecture(
    client: Client, run_id: str, space: Space | None, trial: FrozenTrial, key: str = PICTURE_KEY
) -> None:
    """Save a trial's architecture as a value, as a picture and as a tile of MLflow's grid; nothing where it has none.

    Args:
        client: MLflow.
        run_id: Run of the trial.
        space: Decodes its parameters.
        trial: The trial.
        key: Name of the tile.
    """
    try:
        architecture = None if space is None else space.decode(trial.params)
    except ValueError:  # it failed before everything was chosen, or an earlier search had another space
        architecture = None
    if architecture is not None:
        picture = architecture_picture(architecture)
        client.mlflow.log_text(run_id, architecture.to_json(), "architecture.json")
        client.mlflow.log_image(run_id, picture, "architecture.png")
        client.mlflow.log_image(run_id, picture, key=key, step=0)


def architecture_picture(architecture: Architecture) -> NDArray[np.uint8]:
    """Return the drawing of an architecture as colours, shape (height, width, 4)."""
    canvas = FigureCanvasAgg(plot_architecture(architecture))
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.array(canvas.buffer_rgba(), np.uint8)  # type: ignore[no-untyped-call]


class StudyPictures:
    """Draws on the study's run; a picture is drawn again only where there is more to show.

    Args:
        runs: Of the study.
        metric: Name of the first value.
        direction: Of the first objective.
        space: Whose distribution and masks are drawn; None draws neither.
    """

    def __init__(self, runs: StudyRuns, metric: str, direction: StudyDirection, space: Space | None) -> None:
        self._runs, self._client = runs, runs.client
        self._metric, self._direction, self._space = metric, direction, space
        self._drawn: Counter[str] = Counter()  # trials in each picture, by its name
        self._distribution: dict[int, DistributionRecord] = {}  # how the sampler's distribution stood, by step
        self._masks_step = -1  # of the masks that are drawn

    def draw(self, trials: Sequence[FrozenTrial], growth: float = REDRAW_GROWTH) -> None:
        """Draw scores against values, and early exits, where more than `growth` times as many trials have them."""
        scores, curves = guesses(trials, self._direction), anytime_curves(trials, self._direction)
        n_scores = len(scores.numbers)
        self._draw_grown("surrogate.png", n_scores, MIN_SCORES, growth, lambda: draw_guesses(scores, self._metric))
        self._draw_grown("anytime.png", len(curves), 1, growth, lambda: draw_anytime(curves))

    def _draw_grown(
        self, name: str, n_trials: int, min_trials: int, growth: float, figure: Callable[[], Figure]
    ) -> None:
        if n_trials >= min_trials and n_trials > growth * self._drawn[name]:
            self._save(figure, name)
            self._drawn[name] = n_trials

    def add_distribution(self, records: Iterable[DistributionRecord]) -> None:
        """Remember how the sampler's distribution stood."""
        self._distribution |= {record.step: record for record in records}

    def draw_distribution(self) -> None:
        """Draw how the distribution changed and, in a space of cells, the most likely cells."""
        if (space := self._space) is not None:
            records = [self._distribution[step] for step in sorted(self._distribution)]
            self._save(partial(plot_distribution, space, records), "distribution.png")
            if isinstance(space.core, CellularSpace):
                self._save(partial(plot_most_likely, space, records), "most_likely_cells.png")

    def draw_masks(self, trials: Sequence[FrozenTrial]) -> None:
        """Draw what the newest masks keep."""
        newest = max((masks for trial in trials if (masks := masks_of(trial))), key=itemgetter("step"), default=None)
        if newest is not None and newest["step"] > self._masks_step and self._space is not None:
            self._save(partial(draw_masks, self._space, newest["kept"], newest["weights"]), "masks.png")
            self._masks_step = newest["step"]

    def _save(self, figure: Callable[[], Figure], name: str) -> None:
        self._client.store(lambda: self._client.mlflow.log_figure(self._runs.study_id, figure(), name))

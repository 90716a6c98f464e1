"""Pictures in MLflow: architectures of trials; scores, early exits, distribution and masks of the study."""

from __future__ import annotations

from collections import Counter
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from optuna_nas.plots import plot_architecture, plot_distribution, plot_most_likely, plot_objectives
from optuna_nas.plots.anytime import anytime_curves, draw_anytime
from optuna_nas.plots.cells import draw_card, fits_card
from optuna_nas.plots.masks import draw_masks
from optuna_nas.plots.surrogate import draw_scores, scores_of
from optuna_nas.samplers.snas import records_of_space
from optuna_nas.space import CellularSpace
from optuna_nas.storage.attributes import masks_of
from optuna_nas.tracking.client import log_picture
from optuna_nas.tracking.view import PICTURE_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import optuna
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from optuna.study import StudyDirection
    from optuna.trial import FrozenTrial

    from optuna_nas.oneshot import DistributionRecord
    from optuna_nas.space import Architecture, Space
    from optuna_nas.tracking.client import Client
    from optuna_nas.tracking.runs import StudyRuns

MIN_SCORES = 5
"""Smallest number of scored trials for a plot of scores against values."""
REDRAW_GROWTH = 1.2
"""A picture of the study is drawn again whenever the number of its trials has grown by this factor."""


def save_architecture(
    client: Client, run_id: str, space: Space | None, trial: FrozenTrial, key: str = PICTURE_KEY
) -> None:
    """Save the architecture of a trial as JSON, as a picture and as a logged image; do nothing if it has none.

    Args:
        client: Client of MLflow.
        run_id: Id of the trial's run.
        space: Search space that decodes the parameters; None for no architecture.
        trial: Trial with the architecture.
        key: Key of the logged image.
    """
    try:
        architecture = None if space is None else space.decode(trial.params)
    except ValueError:  # the trial failed before all suggestions, or belongs to an earlier search of another space
        architecture = None
    if architecture is not None:
        core = architecture.space.core
        drawing = plot_architecture(architecture, names=isinstance(core, CellularSpace) and core.writes_names)
        client.mlflow.log_text(run_id, architecture.to_json(), "architecture.json")
        client.mlflow.log_image(run_id, pixels(drawing), "architecture.png")
        log_picture(client.mlflow, run_id, card_picture(architecture, drawing), key)


def card_picture(architecture: Architecture, drawing: Figure) -> NDArray[np.uint8]:
    """Return a picture for the grid of images in MLflow, whose tiles are square: 480 pixels wide, with legible words.

    Args:
        architecture: Architecture whose choices are options of its space.
        drawing: Its drawing.

    Returns:
        The drawing of its cells, where it is legible at this width, above the table of its choices, RGBA pixels.
    """
    table = pixels(draw_card(architecture))
    if not isinstance(architecture.space.core, CellularSpace) or not fits_card(drawing):
        return table
    large, width = pixels(drawing), table.shape[1]
    size = (width, max(1, round(large.shape[0] * width / large.shape[1])))
    return np.vstack([np.asarray(Image.fromarray(large).resize(size, Image.Resampling.LANCZOS)), table])


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """Return a figure as RGBA pixels, shape (height, width, 4)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.array(canvas.buffer_rgba(), np.uint8)  # type: ignore[no-untyped-call]


class StudyPictures:
    """Pictures of the study's run; each is drawn again only if there are more data.

    Args:
        runs: Runs of the study.
        metric: Name of the first value.
        direction: Direction of the first objective.
        space: Search space of distribution and masks; None to draw neither.
    """

    def __init__(self, runs: StudyRuns, metric: str, direction: StudyDirection, space: Space | None) -> None:
        self._runs, self._client = runs, runs.client
        self._metric, self._direction, self._space = metric, direction, space
        self._drawn: Counter[str] = Counter()  # number of trials in each picture, by its name
        self._distribution: dict[int, DistributionRecord] = {}  # records of the sampler's distribution, by step
        self._masks_step = -1  # training step of the masks that are drawn

    def draw(self, trials: Sequence[FrozenTrial], growth: float = REDRAW_GROWTH) -> None:
        """Draw scores against values, and early exits, if the number of trials with them has grown enough.

        Args:
            trials: Finished trials.
            growth: Factor by which the number of trials must have grown, at least 1.
        """
        scores, curves = scores_of(trials, self._direction, self._space), anytime_curves(trials, self._direction)
        n_scores = len(scores.numbers)
        self._draw_grown("surrogate.png", n_scores, MIN_SCORES, growth, lambda: draw_scores(scores, self._metric))
        self._draw_grown("anytime.png", len(curves), 1, growth, lambda: draw_anytime(curves))

    def draw_objectives(self, study: optuna.Study, names: Sequence[str]) -> None:
        """Draw the values of a study of several objectives, and their Pareto front."""
        self._save(partial(plot_objectives, study, names), "pareto_front.png")

    def _draw_grown(
        self, name: str, n_trials: int, min_trials: int, growth: float, figure: Callable[[], Figure]
    ) -> None:
        if n_trials >= min_trials and n_trials > growth * self._drawn[name]:
            self._save(figure, name)
            self._drawn[name] = n_trials

    def add_distribution(self, records: Iterable[DistributionRecord]) -> None:
        """Add records of the sampler's distribution, for the next drawing."""
        self._distribution |= {record.step: record for record in records}

    def draw_distribution(self) -> None:
        """Draw the history of the distribution and, in a space of cells, its most likely cells."""
        if (space := self._space) is not None:
            records = records_of_space(space, (self._distribution[step] for step in sorted(self._distribution)))
            if not records:
                return
            self._save(partial(plot_distribution, space, records), "distribution.png")
            if isinstance(space.core, CellularSpace):
                self._save(partial(plot_most_likely, space, records), "most_likely_cells.png")

    def draw_masks(self, trials: Sequence[FrozenTrial]) -> None:
        """Draw the newest masks."""
        if (space := self._space) is None:
            return
        stored = (masks for trial in trials if (masks := masks_of(trial, space)))
        newest = max(stored, key=itemgetter("step"), default=None)
        if newest is not None and newest["step"] > self._masks_step:
            self._save(partial(draw_masks, space, newest["kept"], newest["weights"]), "masks.png")
            self._masks_step = newest["step"]

    def _save(self, figure: Callable[[], Figure], name: str) -> None:
        self._client.store(lambda: self._client.mlflow.log_figure(self._runs.study_id, figure(), name))

"""How the one-shot models of a study learned: curves on the study's run, and on a run of each model's own below it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optuna_nas.samplers.snas import records_of
from optuna_nas.storage.attributes import fit_records_of
from optuna_nas.tracking.client import metrics_of
from optuna_nas.tracking.records import Epoch, milliseconds, milliseconds_now

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.trial import FrozenTrial

    from optuna_nas.tracking.pictures import StudyPictures
    from optuna_nas.tracking.runs import StudyRuns

SNAS_MODEL = "SNAS"
"""The model whose fits the records of a distribution tell."""


class FitRuns:
    """Writes what trials noted about the models that were trained before them.

    Args:
        runs: Of the study.
        pictures: Draws distribution and masks.
    """

    def __init__(self, runs: StudyRuns, pictures: StudyPictures) -> None:
        self._runs, self._client, self._pictures = runs, runs.client, pictures
        self._known: set[int] = set()  # trials whose fits are in MLflow
        self._distribution_steps: set[int] = set()  # of the distribution's records that are in MLflow

    def find(self) -> None:
        """Find what is in MLflow already."""
        self._distribution_steps = self._client.steps(self._runs.study_id, "distribution/entropy")

    def write(self, trials: Sequence[FrozenTrial]) -> None:
        """Write what these trials noted and MLflow misses."""
        for trial in trials:
            if trial.number in self._known:
                continue
            for model, records in fit_records_of(trial).items():
                moment, group = milliseconds(trial.datetime_complete), model.lower()
                known = self._client.steps(self._runs.study_id, f"{group}/loss")
                points = [Epoch(step, step, metrics, moment) for step, metrics in records if step not in known]
                self._log_on_model(model, points)
                self._log_on_study(group, points)
            self._known.add(trial.number)
        self._write_distribution(trials)
        self._pictures.draw_masks(trials)

    def _write_distribution(self, trials: Sequence[FrozenTrial]) -> None:
        """Show how the sampler's distribution stood: curves, heat map, most likely cells."""
        noted = {record.step: (record, trial) for trial in trials for record in records_of(trial)}
        self._pictures.add_distribution(record for record, _ in noted.values())
        new = sorted(noted.keys() - self._distribution_steps)
        if not new:
            return
        points = []
        for step in new:
            record, trial = noted[step]
            points.append(Epoch(step, step, record.metrics, milliseconds(trial.datetime_complete)))
        self._log_on_study("distribution", points)
        self._log_on_model(SNAS_MODEL, points)
        self._distribution_steps |= set(new)
        self._pictures.draw_distribution()

    def _log_on_study(self, group: str, points: Sequence[Epoch]) -> None:
        """Continue the curves of a group on the study's run."""
        named = [
            point._replace(metrics={f"{group}/{name}": value for name, value in point.metrics.items()})
            for point in points
        ]
        self._client.log(self._runs.study_id, metrics_of(named))

    def _log_on_model(self, model: str, points: Sequence[Epoch]) -> None:
        """Continue the curves of a model on its own run; each point has a loss."""
        points = [point for point in points if "loss" in point.metrics]
        if points:
            run_id = self._runs.fit(model, points[0].time)
            known = self._client.steps(run_id, "loss")
            self._client.log(run_id, metrics_of(point for point in points if point.step not in known))

    def end(self, status: str) -> None:
        """Close the runs of the models."""
        for run_id in self._runs.fits.values():
            self._client.end(run_id, status, milliseconds_now())

"""Learning curves of the one-shot models of a study: on the study's run, and on a child run of each model."""

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

FIT = "fit/"
"""Prefix of the metrics of a model's own run, whose steps are those of training and not epochs of trials."""
SNAS_MODEL = "SNAS"
"""Name of the model whose learning curve is in the records of the distribution."""


class FitRuns:
    """Writer of the learning curves of one-shot models, which are stored in the trials that trained them.

    Args:
        runs: Runs of the study.
        pictures: Pictures of distribution and masks.
    """

    def __init__(self, runs: StudyRuns, pictures: StudyPictures) -> None:
        self._runs, self._client, self._pictures = runs, runs.client, pictures
        self._written: set[int] = set()  # numbers of trials whose learning curves are in MLflow
        self._distribution_steps: set[int] = set()  # steps of the distribution's records that are in MLflow

    def find(self) -> None:
        """Read from MLflow which records of the distribution it has."""
        self._distribution_steps = self._client.steps(self._runs.study_id, "distribution/entropy")

    def write(self, trials: Sequence[FrozenTrial]) -> None:
        """Write the records of these trials that MLflow lacks."""
        for trial in trials:
            if trial.number in self._written:
                continue
            for model, records in fit_records_of(trial).items():
                moment, group = milliseconds(trial.datetime_complete), model.lower()
                steps = self._client.steps(self._runs.study_id, f"{group}/loss")
                points = [Epoch(step, step, metrics, moment) for step, metrics in records if step not in steps]
                self._log_on_model(model, points)
                self._log_on_study(group, points)
            self._written.add(trial.number)
        self._write_distribution(trials)
        self._pictures.draw_masks(trials)

    def _write_distribution(self, trials: Sequence[FrozenTrial]) -> None:
        """Write the history of the sampler's distribution: curves, heat map, most likely cells."""
        by_step = {record.step: (record, trial) for trial in trials for record in records_of(trial)}
        self._pictures.add_distribution(record for record, _ in by_step.values())
        new = sorted(by_step.keys() - self._distribution_steps)
        if not new:
            return
        points = []
        for step in new:
            record, trial = by_step[step]
            points.append(Epoch(step, step, record.metrics, milliseconds(trial.datetime_complete)))
        self._log_on_study("distribution", points)
        self._log_on_model(SNAS_MODEL, points)
        self._distribution_steps |= set(new)
        self._pictures.draw_distribution()

    def _log_on_study(self, group: str, points: Sequence[Epoch]) -> None:
        """Add points to the curves of a group on the study's run."""
        self._client.log(self._runs.study_id, metrics_of(_named(f"{group}/", points)))

    def _log_on_model(self, model: str, points: Sequence[Epoch]) -> None:
        """Add the points that have a loss to the curves on the model's own run."""
        points = [point for point in points if "loss" in point.metrics]
        if points:
            run_id = self._runs.fit(model, points[0].time)
            steps = self._client.steps(run_id, f"{FIT}loss")
            self._client.log(run_id, metrics_of(_named(FIT, [point for point in points if point.step not in steps])))

    def end(self, status: str) -> None:
        """End the runs of the models."""
        for run_id in self._runs.fits.values():
            self._client.end(run_id, status, milliseconds_now())


def _named(prefix: str, points: Sequence[Epoch]) -> list[Epoch]:
    """Return points whose metrics have a prefix."""
    return [
        point._replace(metrics={f"{prefix}{name}": value for name, value in point.metrics.items()}) for point in points
    ]

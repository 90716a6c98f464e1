"""The runs of one study in MLflow: found by their tags, made where there are none, never kept twice."""

from __future__ import annotations

import time
import uuid
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from optuna_nas.storage.attributes import UID_ATTRIBUTE
from optuna_nas.tracking.records import milliseconds
from optuna_nas.tracking.view import study_filter

if TYPE_CHECKING:
    from collections.abc import Mapping

    import optuna
    from mlflow.entities import DatasetInput, Run

    from optuna_nas.tracking.client import Client
    from optuna_nas.tracking.records import LocalTrials

RIVAL_SECONDS = 2.0
"""In which another process that makes the run of the same study sees this one's."""
COLOURS = {"study": "#333333", "best": "#d62728", "COMPLETE": "#7fa8c9", "PRUNED": "#c8c8c8", "FAIL": "#e3b7b7"}
"""Colours of the runs' points and curves; all but the winner's are pale."""
_EMPTY: Mapping[str, Any] = MappingProxyType({})


class TrialRun(NamedTuple):
    """The run of a trial, as it was last seen or written."""

    run_id: str
    status: str
    name: str

    @staticmethod
    def of(run: Run) -> TrialRun:
        """Return the fields of MLflow's run."""
        return TrialRun(run.info.run_id, run.info.status, run.info.run_name)


class StudyRuns:
    """The run of a study and, below it, a run for each trial and for each one-shot model that was trained in it.

    Args:
        client: MLflow.
        local: Trials of this process; their runs get `source_tags`.
    """

    def __init__(self, client: Client, local: LocalTrials) -> None:
        self.client, self.local = client, local
        self.experiment_id = self.study_id = self.uid = ""
        self.trials: dict[int, TrialRun] = {}
        self.fits: dict[str, str] = {}  # ids of the runs of one-shot models, by the model's name
        self.source_tags: Mapping[str, str] = _EMPTY
        self.dataset: DatasetInput | None = None  # shown on the study's run and on the trials'
        self._tags: dict[str, str] = {}  # of all runs

    def open(self, experiment: str, study: optuna.Study) -> Run:
        """Find or make the experiment and the study's run; return that run, which is now running."""
        self.experiment_id = self.client.find_experiment(experiment)
        self.uid = study_uid(study)
        self._tags = {"optuna.study_name": study.study_name, "optuna_nas.study_uid": self.uid}
        run = self._find_study(study)
        self.study_id = run.info.run_id
        self.client.mlflow.update_run(self.study_id, status="RUNNING")
        return run

    def _find_study(self, study: optuna.Study) -> Run:
        condition = "tags.`optuna_nas.kind` = 'study'"
        if not (runs := self._search(condition)):
            starts = [trial.datetime_start for trial in study.get_trials(deepcopy=False) if trial.datetime_start]
            tags = self._tags | {"optuna_nas.kind": "study", "mlflow.runColor": COLOURS["study"]}
            start = milliseconds(min(starts, default=None))
            made = self.client.mlflow.create_run(self.experiment_id, start, tags, study.study_name)
            runs = self._search(condition)
            if len(runs) > 1 and made.info.run_id == runs[0].info.run_id:
                time.sleep(RIVAL_SECONDS)  # another process was as fast; if it saw this run, it takes it
                runs = self._search(condition)
                runs = [run for run in runs if run.info.run_id != made.info.run_id] or [made]
            if made.info.run_id != runs[0].info.run_id:
                self.client.mlflow.delete_run(made.info.run_id)
        return runs[0]

    def _search(self, condition: str) -> list[Run]:
        """Return the runs of this study for which a condition holds, oldest first."""
        return self.client.search(self.experiment_id, f"{study_filter(self.uid)} and {condition}")

    def trial(self, number: int, start: int) -> str:
        """Return the id of a trial's run, made where MLflow has none; `start` in milliseconds."""
        if number not in self.trials:
            if not (runs := self._search(f"tags.`optuna.trial_number` = '{number}'")):
                own = {"mlflow.parentRunId": self.study_id, "optuna.trial_number": str(number)}
                tags = self._tags | {"optuna_nas.kind": "trial"} | own
                if number in self.local:
                    tags |= dict(self.source_tags)
                runs = [self.client.mlflow.create_run(self.experiment_id, start, tags, f"trial {number}")]
                if self.dataset is not None:
                    self.client.mlflow.log_inputs(runs[0].info.run_id, datasets=[self.dataset])
            self.trials[number] = TrialRun.of(runs[0])
        return self.trials[number].run_id

    def find_trials(self) -> None:
        """Find the runs of all trials; where two processes made one each, the first stays."""
        self.trials = {}
        for run in self._search("tags.`optuna_nas.kind` = 'trial'"):
            number = int(run.data.tags["optuna.trial_number"])
            if number in self.trials:
                self.client.mlflow.delete_run(run.info.run_id)
            else:
                self.trials[number] = TrialRun.of(run)

    def forget_trials(self) -> None:
        """Look for the runs of trials again; another process may have removed one that was made twice."""
        self.trials = {}

    def fit(self, model: str, start: int) -> str:
        """Return the id of the run of a one-shot model, made where MLflow has none; `start` in milliseconds."""
        if model not in self.fits:
            if not (runs := self._search(f"tags.`optuna_nas.kind` = 'fit' and tags.`optuna_nas.model` = '{model}'")):
                own = {"mlflow.parentRunId": self.study_id, "optuna_nas.kind": "fit", "optuna_nas.model": model}
                tags = self._tags | own | dict(self.source_tags)
                runs = [self.client.mlflow.create_run(self.experiment_id, start, tags, f"{model} fit")]
            self.fits[model] = runs[0].info.run_id
        return self.fits[model]


def study_uid(study: optuna.Study) -> str:
    """Return what tells this study from one of the same name in another storage, made at the first call."""
    if UID_ATTRIBUTE not in study.user_attrs:
        study.set_user_attr(UID_ATTRIBUTE, uuid.uuid4().hex[:16])
    return str(study.user_attrs[UID_ATTRIBUTE])

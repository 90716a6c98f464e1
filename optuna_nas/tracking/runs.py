"""Runs of a study in MLflow: found by their tags, created if missing, without duplicates."""

from __future__ import annotations

import time
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from mlflow.exceptions import MlflowException

from optuna_nas.storage.identity import study_uid
from optuna_nas.tracking.parent import RUN_ID
from optuna_nas.tracking.records import DEFAULT_EXPERIMENT, milliseconds, unreachable
from optuna_nas.tracking.view import study_filter

if TYPE_CHECKING:
    from collections.abc import Mapping

    import optuna
    from mlflow.entities import DatasetInput, Run

    from optuna_nas.tracking.client import Client
    from optuna_nas.tracking.parent import Parent
    from optuna_nas.tracking.records import LocalTrials

RIVAL_SECONDS = 2.0
"""Seconds after which another process that creates the run of the same study at the same time sees this one."""
COLOURS = {"study": "#8a5fb0", "best": "#d62728", "COMPLETE": "#7fa8c9", "PRUNED": "#c8c8c8", "FAIL": "#e3b7b7"}
"""Colours of runs in charts, on light and dark pages; but for the study and the best trial they are pale."""
PARENT = "mlflow.parentRunId"
"""Tag of the run that a run belongs to."""
_EMPTY: Mapping[str, Any] = MappingProxyType({})


class TrialRun(NamedTuple):
    """Run of a trial, as last read or written.

    Args:
        run_id: Id of the run.
        status: Status in MLflow.
        name: Name of the run.
    """

    run_id: str
    status: str
    name: str

    @staticmethod
    def of(run: Run) -> TrialRun:
        """Return the values of a run of MLflow."""
        return TrialRun(run.info.run_id, run.info.status, run.info.run_name)


class StudyRuns:
    """Run of a study and its child runs, one for each trial and each one-shot model that the study trains.

    Args:
        client: Client of MLflow.
        local: Trials of this process, whose runs get `source_tags`.
    """

    def __init__(self, client: Client, local: LocalTrials) -> None:
        self.client, self.local = client, local
        self.experiment_id = self.study_id = self.uid = ""
        self.trials: dict[int, TrialRun] = {}
        self.fits: dict[str, str] = {}  # ids of the runs of one-shot models by name of the model
        self.source_tags: Mapping[str, str] = _EMPTY
        self.dataset: DatasetInput | None = None  # shown on the runs of study and trials
        self._tags: dict[str, str] = {}  # tags of all runs

    def open(self, experiment: str | None, study: optuna.Study, parent: Parent | None = None) -> Run:
        """Find or create the experiment and the study's run, set its status to running, and return it.

        Args:
            experiment: Name of the experiment; None for that of the parent, or else the default.
            study: Study.
            parent: Run under which a new run of the study is put.

        Raises:
            ConnectionError: The experiment was deleted, or a run that must be there is not.
        """
        self.uid, above = study_uid(study), self._parent(parent)
        found = self.client.experiment_of(experiment or DEFAULT_EXPERIMENT, self.uid)
        if found is None and experiment is None and above is not None:
            found = str(above.info.experiment_id)
        self.experiment_id = found or self.client.find_experiment(experiment or DEFAULT_EXPERIMENT)
        self._tags = {"optuna.study_name": study.study_name, "optuna_nas.study_uid": self.uid}
        run = self._find_study(study, {} if above is None else {PARENT: above.info.run_id})
        self.study_id = run.info.run_id
        self.client.mlflow.update_run(self.study_id, status="RUNNING")
        return run

    def _parent(self, parent: Parent | None) -> Run | None:
        """Return the run that a new run of the study belongs to, None without one."""
        if parent is None:
            return None
        try:
            return self.client.mlflow.get_run(parent.run_id)
        except MlflowException as error:
            if not parent.required:
                return None
            why = f"it has no run {parent.run_id!r}, which {RUN_ID} names"
            raise unreachable(self.client.uri, why, "unset that variable, or set it to a run there") from error

    def _find_study(self, study: optuna.Study, above: Mapping[str, str]) -> Run:
        condition = "tags.`optuna_nas.kind` = 'study'"
        if not (runs := self._search(condition)):
            starts = [trial.datetime_start for trial in study.get_trials(deepcopy=False) if trial.datetime_start]
            tags = self._tags | {"optuna_nas.kind": "study", "mlflow.runColor": COLOURS["study"], **above}
            start = milliseconds(min(starts, default=None))
            made = self.client.mlflow.create_run(self.experiment_id, start, tags, study.study_name)
            runs = self._search(condition)
            if len(runs) > 1 and made.info.run_id == runs[0].info.run_id:
                time.sleep(RIVAL_SECONDS)  # another process created a run meanwhile; it deletes it if it saw this one
                runs = self._search(condition)
                runs = [run for run in runs if run.info.run_id != made.info.run_id] or [made]
            if made.info.run_id != runs[0].info.run_id:
                self.client.mlflow.delete_run(made.info.run_id)
        return runs[0]

    def _search(self, condition: str) -> list[Run]:
        """Return the runs of this study that satisfy a filter condition, oldest first."""
        return self.client.search(self.experiment_id, f"{study_filter(self.uid)} and {condition}")

    def trial(self, number: int, start: int) -> str:
        """Return the id of a trial's run, created if missing; `start` in milliseconds since 1970."""
        if number not in self.trials:
            # Nobody else makes the run of a trial that runs here; one request less where MLflow is slow.
            runs = [] if number in self.local.running else self._search(f"tags.`optuna.trial_number` = '{number}'")
            if not runs:
                own = {PARENT: self.study_id, "optuna.trial_number": str(number)}
                tags = self._tags | {"optuna_nas.kind": "trial"} | own
                if number in self.local:
                    tags |= dict(self.source_tags)
                runs = [self.client.mlflow.create_run(self.experiment_id, start, tags, f"trial {number}")]
                if self.dataset is not None:
                    self.client.mlflow.log_inputs(runs[0].info.run_id, datasets=[self.dataset])
            self.trials[number] = TrialRun.of(runs[0])
        return self.trials[number].run_id

    def _adopt(self, run: Run) -> None:
        """Put a run under the study's run, if it belongs to one that was deleted."""
        if run.data.tags.get(PARENT) != self.study_id:
            self.client.log(run.info.run_id, tags={PARENT: self.study_id})

    def find_trials(self) -> None:
        """Read the runs of all trials; of runs that two processes created for a trial, the first is kept."""
        self.trials = {}
        for run in self._search("tags.`optuna_nas.kind` = 'trial'"):
            if not (written := run.data.tags["optuna.trial_number"]).isdecimal():
                continue
            if (number := int(written)) in self.trials:
                self.client.mlflow.delete_run(run.info.run_id)
            else:
                self._adopt(run)
                self.trials[number] = TrialRun.of(run)

    def forget_trials(self) -> None:
        """Forget the runs of trials, since another process may have deleted duplicates."""
        self.trials = {}

    def fit(self, model: str, start: int) -> str:
        """Return the id of a one-shot model's run, created if missing; `start` in milliseconds since 1970."""
        if model not in self.fits:
            if not (runs := self._search(f"tags.`optuna_nas.kind` = 'fit' and tags.`optuna_nas.model` = '{model}'")):
                own = {PARENT: self.study_id, "optuna_nas.kind": "fit", "optuna_nas.model": model}
                tags = self._tags | own | dict(self.source_tags)
                runs = [self.client.mlflow.create_run(self.experiment_id, start, tags, f"{model} fit")]
            self._adopt(runs[0])
            self.fits[model] = runs[0].info.run_id
        return self.fits[model]

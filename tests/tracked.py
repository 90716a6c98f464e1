"""Searches that a tracker shows, with numbers that a test can foretell, and a reader of what MLflow shows."""

import json
from typing import Any, NamedTuple

import optuna
from mlflow import MlflowClient

from optuna_nas.space import nasbench201_space

SPACE = nasbench201_space()
EPOCHS = 3
EXPERIMENT = "optuna_nas"


def new_study(name="study", folder=None, **kwargs):
    storage = f"sqlite:///{folder / 'optuna.db'}" if folder else None
    return optuna.create_study(
        study_name=name,
        storage=storage,
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=0),
        load_if_exists=True,
        **kwargs,
    )


def value_of(number, epoch=EPOCHS):
    return (number * 7 % 10 + epoch) / 20


def objective(tracker, *, pruned=(), failed=(), during=None):
    """Trials that report, with numbers that a test can foretell."""

    def run(trial):
        SPACE.suggest(trial)
        trial.suggest_float("learning rate[0]", 1e-3, 1e-1, log=True)
        trial.set_user_attr("params", 1000 + trial.number)
        trial.set_user_attr("device", "cpu")
        trial.set_user_attr("optuna_nas:note", {"seen": True})
        tracker.trial_started(trial, {"multiply_adds": 5.0})
        if during is not None:
            during(trial)
        for epoch in range(1, EPOCHS + 1):
            accuracy = value_of(trial.number, epoch)
            trial.report(accuracy, epoch)
            tracker.epoch(trial.number, epoch, {"accuracy": accuracy, "train_loss": 1 / epoch})
            if trial.number in pruned and epoch == 2:
                raise optuna.TrialPruned
            if trial.number in failed:
                raise ValueError("no luck")
        return value_of(trial.number)

    return run


def search(tracker, study, n_trials, *, n_jobs=1, start=None, **kwargs):
    tracker.start(study, space=SPACE, metric="accuracy", **(start or {}))
    study.optimize(
        objective(tracker, **kwargs),
        n_trials=n_trials,
        n_jobs=n_jobs,
        catch=(ValueError,),
        callbacks=[tracker.trial_finished],
    )
    tracker.finish(study)


class Shown(NamedTuple):
    """What MLflow shows of the one study in it."""

    client: MlflowClient
    experiment: Any
    parent: Any
    children: dict[int, Any]
    fits: dict[str, Any]

    def curve(self, run, metric):
        return [(point.step, point.value) for point in self.client.get_metric_history(run.info.run_id, metric)]

    def file(self, run, name):
        return self.client.download_artifacts(run.info.run_id, name)

    def tiles(self, run):
        """Return the files of the tiles of MLflow's grid that show the architecture: the picture and a small one."""
        files = [item.path for item in self.client.list_artifacts(run.info.run_id, "images")]
        return [path for path in files if path.startswith("images/architecture+step+0+")]

    @property
    def statuses(self):
        """Statuses of the trials' runs, by number."""
        return [run.info.status for run in self.children.values()]

    @property
    def view(self):
        (view,) = [
            json.loads(value)
            for key, value in self.experiment.tags.items()
            if key.startswith("mlflow.sharedViewState.")
        ]
        return view


def read(uri, experiment=EXPERIMENT):
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id], max_results=5000)
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    below = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(below) == len(runs) - 1
    fits = {run.data.tags["optuna_nas.model"]: run for run in below if run.data.tags["optuna_nas.kind"] == "fit"}
    children = [run for run in below if run.data.tags["optuna_nas.kind"] == "trial"]
    finals = [run for run in below if run.data.tags["optuna_nas.kind"] == "final"]
    assert len(children) + len(fits) + len(finals) == len(below)
    numbers = [int(run.data.tags["optuna.trial_number"]) for run in children]
    assert len(set(numbers)) == len(numbers), "a trial has two runs"
    return Shown(client, found, parent, dict(sorted(zip(numbers, children, strict=True))), fits)

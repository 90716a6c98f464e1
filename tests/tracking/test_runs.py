"""The runs of a study: one of each, whoever makes them and however often."""

import mlflow
import pytest
from mlflow import MlflowClient
from tracked import new_study, read, search

from optuna_nas.tracking import MLflowTracker, runs


def test_studies_of_one_name_in_two_storages_stay_apart(uri):
    for _ in range(2):
        search(MLflowTracker(uri), new_study(), 1)
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("optuna_nas").experiment_id])
    assert sum("mlflow.parentRunId" not in run.data.tags for run in runs) == 2
    assert len(runs) == 4


def test_a_retried_trial_gets_a_run_of_its_own(uri, tmp_path):
    study = new_study(folder=tmp_path)
    search(MLflowTracker(uri), study, 1, failed={0})
    first = study.trials[0]
    study.enqueue_trial(first.params, user_attrs=first.user_attrs)  # a retry inherits the attributes
    search(MLflowTracker(uri), study, 1)
    assert [run.info.status for run in read(uri).children.values()] == ["FAILED", "FINISHED"]


@pytest.mark.parametrize("is_alone", [True, False])
def test_runs_below_a_study_run_that_was_deleted_move_to_the_new_one(is_alone, uri, tmp_path):
    study, client = new_study(folder=tmp_path), MlflowClient(uri)
    search(MLflowTracker(uri), study, 2)
    client.delete_run(read(uri).parent.info.run_id)
    if is_alone:
        MLflowTracker(uri).rebuild(study)
    else:
        search(MLflowTracker(uri), study, 1)
    mirror = read(uri)
    parents = {run.data.tags["mlflow.parentRunId"] for run in mirror.children.values()}
    assert parents == {mirror.parent.info.run_id}
    assert sorted(mirror.children) == list(range(2 if is_alone else 3))


def test_a_run_whose_making_was_not_answered_is_not_made_twice(uri, monkeypatch):
    make, lost = MlflowClient.create_run, []

    def create_run(self, experiment_id, start_time, tags, run_name):
        run = make(self, experiment_id, start_time, tags, run_name)
        if run_name == "trial 0" and not lost:
            lost.append(run)
            raise ConnectionResetError("the answer is lost")
        return run

    monkeypatch.setattr(MlflowClient, "create_run", create_run)
    search(MLflowTracker(uri), new_study(), 1)
    assert read(uri).children[0].info.run_id == lost[0].info.run_id


def test_runs_that_two_processes_made_of_one_trial_become_one(uri, tmp_path):
    study = new_study(folder=tmp_path)
    search(MLflowTracker(uri), study, 2)
    mirror = read(uri)
    first = mirror.children[1]
    tags = {name: value for name, value in first.data.tags.items() if name.startswith(("optuna", "mlflow.parent"))}
    mirror.client.create_run(mirror.experiment.experiment_id, first.info.start_time + 1, tags)
    MLflowTracker(uri).rebuild(study)
    assert read(uri).children[1].info.run_id == first.info.run_id


@pytest.mark.parametrize("rival_is_first", [False, True])
def test_two_processes_that_begin_at_once_make_one_run_of_the_study(rival_is_first, uri, monkeypatch):
    make, made = MlflowClient.create_run, []

    def create_run(self, experiment_id, start_time, tags, run_name):
        if not made:
            made.append(make(self, experiment_id, start_time + (-1 if rival_is_first else 1), tags, "rival"))
        return make(self, experiment_id, start_time, tags, run_name)

    monkeypatch.setattr(MlflowClient, "create_run", create_run)
    monkeypatch.setattr(runs, "RIVAL_SECONDS", 0)
    MLflowTracker(uri).rebuild(new_study())
    assert read(uri).parent.info.run_id == made[0].info.run_id, "the rival has not seen this one and keeps its own"


def test_a_search_inside_of_an_active_run_is_its_child(uri):
    mlflow.set_tracking_uri(uri)
    try:
        study = new_study()
        with mlflow.start_run(experiment_id=MlflowClient(uri).create_experiment("theirs")) as theirs:
            search(MLflowTracker(uri), study, 2)
        search(MLflowTracker(uri), study, 1)  # goes on without that run: in the same place
    finally:
        mlflow.set_tracking_uri(None)
    client = MlflowClient(uri)
    assert client.get_experiment_by_name("optuna_nas") is None
    runs = client.search_runs([client.get_experiment_by_name("theirs").experiment_id])
    (parent,) = [run for run in runs if run.data.tags.get("optuna_nas.kind") == "study"]
    assert parent.data.tags["mlflow.parentRunId"] == theirs.info.run_id
    trials = [run for run in runs if run.data.tags.get("optuna_nas.kind") == "trial"]
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {parent.info.run_id}
    assert len(trials) == 3
    assert MLflowTracker(uri).find_view(study)


def test_the_environment_names_the_run_around_a_search(uri, monkeypatch):
    client = MlflowClient(uri)
    theirs = client.create_run(client.create_experiment("theirs"))
    monkeypatch.setenv("MLFLOW_RUN_ID", theirs.info.run_id)
    search(MLflowTracker(uri, experiment="mine"), new_study(), 1)
    runs = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    (parent,) = [run for run in runs if run.data.tags.get("optuna_nas.kind") == "study"]
    assert parent.data.tags["mlflow.parentRunId"] == theirs.info.run_id


def test_a_run_that_the_environment_names_must_be_there(uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(ConnectionError, match="MLFLOW_RUN_ID names; unset that variable"):
        MLflowTracker(uri).start(new_study())


def test_an_active_run_of_another_place_is_left_alone(uri, tmp_path):
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'elsewhere.db'}")
    try:
        with mlflow.start_run():
            search(MLflowTracker(uri), new_study(), 1)
    finally:
        mlflow.set_tracking_uri(None)
    assert "mlflow.parentRunId" not in read(uri).parent.data.tags

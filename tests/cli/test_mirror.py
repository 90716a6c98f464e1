"""`optuna-nas mirror`: the MLflow side of a study that exists, of this package or of any other program."""

import gc
import json
import re
import shlex

import mlflow
import numpy as np
import optuna
import pytest
import torch
from mlflow.exceptions import MlflowException
from optuna.trial import TrialState
from study_files import TINY
from terminal import here
from tracked import read

from optuna_nas import load_network
from optuna_nas.objective.trial_training import network_path
from optuna_nas.search.opening import noted_mlflow
from optuna_nas.tracking import MLflowTracker
from optuna_nas.tracking.client import Client
from optuna_nas.tracking.final_run import find_trial_run
from optuna_nas.tracking.records import CREDENTIALS


@pytest.fixture
def storage(tmp_path):
    """A study of another program: odd names, odd values, every state."""
    address = f"sqlite:///{tmp_path / 'theirs.db'}"
    study = optuna.create_study(study_name="theirs", storage=address, direction="minimize")

    def objective(trial):
        rate = trial.suggest_float("lr[0]|a", 1e-3, 1.0, log=True)
        trial.suggest_categorical("kind", ["x", "y"])
        trial.set_user_attr("note", {"a": [1, 2]})
        trial.set_user_attr("odd", float("inf"))
        for step in range(3):
            trial.report(rate * (3 - step), step)
            if trial.number == 1:
                raise optuna.TrialPruned
        if trial.number == 2:
            raise ZeroDivisionError
        return rate

    study.optimize(objective, n_trials=6, catch=(ZeroDivisionError,))
    return address


def test_a_study_of_another_program_is_mirrored_once(storage, tmp_path, open_connections):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for _ in range(2):
        done = here("mirror", "theirs", "--storage", storage, "--mlflow", uri)
        assert done.exit_code == 0, done.stderr
        assert "6 trials of theirs" in done.stdout
        assert not open_connections
    study = optuna.load_study(study_name="theirs", storage=storage)
    client, _, parent, children, _ = read(uri)
    assert parent.info.status == "FINISHED"
    assert [children[n].info.status for n in range(6)] == ["FINISHED", "KILLED", "FAILED", *["FINISHED"] * 3]
    for number, run in children.items():
        trial = study.trials[number]
        assert run.data.params["kind"] == trial.params["kind"]
        assert str(trial.params["lr[0]|a"]) in run.data.params.values()
        assert run.info.start_time == pytest.approx(trial.datetime_start.timestamp() * 1000, abs=1)
        if trial.state == TrialState.COMPLETE:
            assert run.data.metrics["value"] == trial.value
    curve = client.get_metric_history(parent.info.run_id, "best_value")
    assert [point.value for point in curve][-1] == study.best_value
    assert len(curve) == 6


def test_a_study_of_ours_gets_its_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(TINY)
    assert here("run", "tiny.py", "--no-mlflow").exit_code == 0
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    done = here("mirror", "tiny.py", "--mlflow", uri)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith(f"optuna-nas view tiny.py --mlflow {uri}")
    client, _, parent, children, _ = read(uri)
    assert len(children) == 3
    assert parent.data.params["trials"] == "3"
    for run in children.values():
        assert "architecture.png" in {file.path for file in client.list_artifacts(run.info.run_id)}


def test_a_moved_folder_gets_its_pictures_in_a_new_database(tmp_path, monkeypatch):
    """The way out that docs/mlflow.md names: MLflow keeps absolute paths of artifacts in its SQLite file."""
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / "tiny.py").write_text(TINY)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path / "before")
    assert here("run", "tiny.py", "--set", "epochs=1").exit_code == 0
    moved = (tmp_path / "before").rename(tmp_path / "moved")
    monkeypatch.chdir(moved)

    def pictures(name):
        client, _, parent, children, _ = read(f"sqlite:///{moved / name}")
        listed = {file.path for file in client.list_artifacts(children[0].info.run_id)}
        return "architecture.png" in listed and "leaderboard.json" in {
            file.path for file in client.list_artifacts(parent.info.run_id)
        }

    assert not pictures("mlflow.db")
    done = here("mirror", "tiny.py", "--set", "epochs=1", "--mlflow", "sqlite:///new.db")
    assert done.exit_code == 0, done.stderr
    assert pictures("new.db")


def test_bad_input_is_one_sentence(storage, tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for arguments, sentence in (
        (("theirs",), "`--storage` must be given if `study` is a name"),
        (("other", "--storage", storage), "has none named 'other'"),
        (("theirs", "--storage", f"sqlite:///{tmp_path}/no.db"), "has none named 'theirs'"),
        (("theirs", "--storage", "nonsense://x"), "`--storage` must be the address of a database"),
    ):
        done = here("mirror", *arguments, "--mlflow", uri)
        assert done.exit_code == 2
        assert sentence in " ".join(done.stderr.split())
    done = here("mirror", "theirs", "--storage", storage, "--mlflow", "http://127.0.0.1:9")
    assert done.exit_code == 2
    assert "127.0.0.1:9" in done.stderr
    assert not (tmp_path / "no.db").exists()


def models_of(client, experiment_id):
    """The model that says where the best network is, and the one that MLflow can load."""
    shown, logged = sorted(client.search_logged_models([experiment_id]), key=lambda model: model.name)
    assert (shown.name, logged.name) == ("best of tiny", "network")
    return shown, logged


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_winner_is_a_model_of_its_run(tmp_path, monkeypatch, open_connections):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(TINY)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert here("run", "tiny.py", "--no-mlflow").exit_code == 0
    done = here("export", "tiny.py", "--format", "mlflow", "--mlflow", uri)
    assert done.exit_code == 2
    assert "`study` must be in MLflow" in " ".join(done.stderr.split())
    assert here("mirror", "tiny.py", "--mlflow", uri).exit_code == 0
    done = here(
        "export", "tiny.py", "--format", "mlflow", "--mlflow", uri, "--register", "tiny-net", "--alias", "champion"
    )
    assert done.exit_code == 0, done.stderr
    gc.collect()  # the traceback of the error holds its study until then
    assert not open_connections
    assert not mlflow.is_tracking_uri_set()
    study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{tmp_path}/runs/tiny/study.db")
    client, _, _, children, _ = read(uri)
    winner = children[study.best_trial.number]
    assert f"of run {winner.info.run_id}, version 1 of tiny-net" in " ".join(done.stdout.split())
    version = client.get_model_version_by_alias("tiny-net", "champion")
    assert version.run_id == winner.info.run_id
    shown, logged = models_of(client, winner.info.experiment_id)
    assert shown.source_run_id == winner.info.run_id, "the mirror shows the file"
    assert logged.experiment_id == winner.info.experiment_id
    assert {m.key: m.value for m in logged.metrics}["accuracy"] == winner.data.metrics["accuracy"]
    mlflow.set_tracking_uri(uri)
    try:
        model = mlflow.pyfunc.load_model("models:/tiny-net/1")
    finally:
        mlflow.set_tracking_uri(None)
    images = np.random.default_rng(1).normal(size=(4, 1, 6, 6)).astype(np.float32)
    network = load_network(network_path(tmp_path / "runs" / "tiny", study.best_trial.number))
    assert np.array_equal(model.predict(images), network.predict(images))
    for layout in (images[:, 0], images.reshape(4, -1), images.transpose(0, 2, 3, 1)):
        assert np.array_equal(model.predict(layout), network.predict(images))
    probabilities = model.predict(images, params={"output": "probabilities"})
    assert np.allclose(probabilities, network.predict_proba(images), atol=1e-5)
    assert list(probabilities.columns) == [str(number) for number in range(probabilities.shape[1])]
    assert model.metadata.metadata == {"shape": [1, 6, 6], "dtype": "float32"}
    done = here("export", "tiny.py", "--register", "tiny-net")
    assert "`--register` must go with --format mlflow" in " ".join(done.stderr.split())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_final_training_and_its_model_have_a_run_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(TINY)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = f"sqlite:///{tmp_path / 'other.db'}"
    assert here("run", "tiny.py", "--mlflow", uri).exit_code == 0
    for address in ((), ("--mlflow", uri)):  # which the study notes; the second finds what the first has made
        done = here("train", "tiny.py", "--recipe", "epochs=3", *address)
        assert done.exit_code == 0, done.stderr
    assert not (tmp_path / "mlflow.db").exists()
    client, experiment, parent, _, _ = read(uri)
    (run,) = client.search_runs([experiment.experiment_id], "tags.`optuna_nas.kind` = 'final'")
    assert run.info.run_id in " ".join(done.stdout.split())
    (tmp_path / "tiny.py").write_text(TINY.replace("cpu_threads=1", "cpu_threads=1, tracking=None"))
    result = json.loads(here("train", "tiny.py", "--recipe", "epochs=3", "--json").stdout.splitlines()[-1])
    assert (result["run"], result["not_in_mlflow"]) == (run.info.run_id, None)
    (tmp_path / "tiny.py").write_text(TINY)
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert run.data.params["recipe/epochs"] == "3"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train_loss")] == [1, 2, 3]
    assert f"Test accuracy {run.data.metrics['test_accuracy']:.4f}" in " ".join(done.stdout.split())
    done = here("export", "tiny.py", "--format", "mlflow")
    assert done.exit_code == 0, done.stderr
    _, logged = models_of(client, experiment.experiment_id)
    assert logged.source_run_id == run.info.run_id
    assert {m.key: m.value for m in logged.metrics}["test_accuracy"] == run.data.metrics["test_accuracy"]


def test_a_final_training_makes_no_experiment_where_its_study_is_not(folder):
    assert here("run", "tiny.py", "--no-mlflow", "--set", "epochs=1", "--set", "trials=1").exit_code == 0
    words = ("tiny.py", "--set", "epochs=1", "--set", "trials=1")
    done = here("train", *words)
    assert done.exit_code == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("Not in MLflow")]
    result = json.loads(here("train", *words, "--json").stdout.splitlines()[-1])
    assert (result["run"], result["not_in_mlflow"]) == (None, line.removeprefix("Not in MLflow").strip())
    assert "sqlite:///mlflow.db has no run of study 'tiny'" in line
    write_it = re.search("`(optuna-nas mirror .*?)`", line)[1]
    assert here("view", *words).exit_code == 2
    assert not (folder / "mlflow.db").exists()
    assert here(*shlex.split(write_it)[1:]).exit_code == 0
    assert "MLflow" not in here("train", *words, "--no-mlflow").stdout
    assert "In MLflow" in here("train", *words).stdout
    assert read(f"sqlite:///{folder / 'mlflow.db'}").parent.data.tags["optuna.study_name"] == "tiny"


@pytest.mark.parametrize("address", ["sqlite:///{}/mlflow.db?password=x", "sqlite:///{}/mlflow.db"])
def test_a_study_notes_where_it_is_in_mlflow_but_no_password(address, tmp_path, monkeypatch):
    address = address.format(tmp_path)
    study = optuna.create_study()
    monkeypatch.setattr("optuna_nas.tracking.tracker._write_all", lambda *unused: None)
    MLflowTracker(address).rebuild(study)
    assert study.user_attrs.get("optuna_nas:mlflow") == (None if "password" in address else address)
    assert noted_mlflow(study) is None, "there is no such file"


def test_credentials_are_not_sent_to_a_server_that_a_study_names(monkeypatch):
    study = optuna.create_study()
    study.set_user_attr("optuna_nas:mlflow", "http://127.0.0.1:5001")
    for name in CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/nowhere")
    assert noted_mlflow(study) == "http://127.0.0.1:5001"
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "mine")
    assert noted_mlflow(study) is None


@pytest.mark.parametrize("address", ["postgresql://elsewhere/mlflow", "mysql+pymysql://elsewhere/x", "databricks"])
def test_passwords_are_not_sent_to_a_database_that_a_study_names(address):
    study = optuna.create_study()
    study.set_user_attr("optuna_nas:mlflow", address)
    assert noted_mlflow(study) is None


def test_what_databricks_answers_is_one_sentence(monkeypatch):
    def refuses(*unused):
        raise MlflowException("no such profile")

    monkeypatch.setattr(Client, "experiment_of", refuses)
    with pytest.raises(ConnectionError, match="MLflow can't be used at databricks: no such profile; correct what it"):
        find_trial_run(MLflowTracker("databricks"), optuna.create_study(), 0)


def test_runs_say_what_they_were_made_with_and_what_pruning_saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(TINY)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert here("run", "tiny.py", "--mlflow", uri).exit_code == 0
    client, _, parent, children, _ = read(uri)
    for run in (parent, *children.values()):
        assert torch.__version__.startswith(run.data.tags["version.torch"])
        assert client.get_run(run.info.run_id).inputs.dataset_inputs[0].dataset.digest
    assert parent.data.params["recipe/seed"] == "0"

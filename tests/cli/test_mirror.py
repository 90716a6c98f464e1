"""`optuna-nas mirror`: the MLflow side of a study that exists, of this package or of any other program."""

import gc
import logging
import resource
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import mlflow
import numpy as np
import optuna
import pytest
import torch
from mlflow import MlflowClient
from optuna.trial import TrialState
from typer.testing import CliRunner

from cli.test_commands import TINY as STUDY
from optuna_nas import MLflowTracker, load_network
from optuna_nas.cli import app
from optuna_nas.objective.train_objective import network_path
from optuna_nas.tracking.view import page_url

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")


def nas(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging, "basicConfig", lambda **unused: None)
        return CliRunner().invoke(app, list(map(str, arguments)))


def runs_of(uri, experiment="optuna_nas"):
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id], max_results=5000)
    (parent,) = (run for run in runs if run.data.tags["optuna_nas.kind"] == "study")
    children = {int(r.data.tags["optuna.trial_number"]): r for r in runs if r is not parent}
    assert len(children) == len(runs) - 1
    return client, parent, children


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
        done = nas("mirror", "theirs", "--storage", storage, "--mlflow", uri)
        assert done.exit_code == 0, done.stderr
        assert "6 trials of theirs" in done.stdout
        assert not open_connections
    study = optuna.load_study(study_name="theirs", storage=storage)
    client, parent, children = runs_of(uri)
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
    (tmp_path / "tiny.py").write_text(STUDY)
    assert nas("run", "tiny.py", "--no-mlflow").exit_code == 0
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    done = nas("mirror", "tiny.py", "--mlflow", uri)
    assert done.exit_code == 0, done.stderr
    assert "viewStateShareKey" in done.stdout.replace("\n", "")
    client, parent, children = runs_of(uri)
    assert len(children) == 3
    assert parent.data.params["trials"] == "3"
    for run in children.values():
        assert "architecture.png" in {file.path for file in client.list_artifacts(run.info.run_id)}


def test_a_study_that_still_runs_stays_so(tmp_path):
    study = optuna.create_study(direction="maximize")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    study.ask()
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    told = []
    MLflowTracker(uri).rebuild(study, on_progress=told.append)
    _, parent, children = runs_of(uri)
    assert parent.info.status == "RUNNING"
    assert len(children) == 2
    assert told[-1] == 2


def test_several_objectives(tmp_path):
    study = optuna.create_study(directions=["maximize", "minimize"])
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), 2.0), n_trials=3)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    MLflowTracker(uri, metric="value").rebuild(study)
    _, _, children = runs_of(uri)
    assert children[1].data.metrics["value"] == study.trials[1].values[0]
    assert children[1].data.metrics["objective 1"] == 2.0


def test_bad_input_is_one_sentence(storage, tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for arguments, sentence in (
        (("theirs",), "`--storage` must be given where `study` is a name"),
        (("other", "--storage", storage), "has none named 'other'"),
        (("theirs", "--storage", f"sqlite:///{tmp_path}/no.db"), "has none named 'theirs'"),
        (("theirs", "--storage", "nonsense://x"), "`storage` must be the address of a database"),
    ):
        done = nas("mirror", *arguments, "--mlflow", uri)
        assert done.exit_code == 2
        assert sentence in " ".join(done.stderr.split())
    done = nas("mirror", "theirs", "--storage", storage, "--mlflow", "http://127.0.0.1:9")
    assert done.exit_code == 2
    assert "127.0.0.1:9" in done.stderr
    assert not (tmp_path / "no.db").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_winner_is_a_model_of_its_run(tmp_path, monkeypatch, open_connections):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(STUDY)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert nas("run", "tiny.py", "--no-mlflow").exit_code == 0
    done = nas("export", "tiny.py", "--format", "mlflow", "--mlflow", uri)
    assert done.exit_code == 2
    assert "`study` must be in MLflow" in " ".join(done.stderr.split())
    assert nas("mirror", "tiny.py", "--mlflow", uri).exit_code == 0
    done = nas("export", "tiny.py", "--format", "mlflow", "--mlflow", uri, "--register", "tiny-net")
    assert done.exit_code == 0, done.stderr
    gc.collect()  # the traceback of the error holds its study until then
    assert not open_connections
    assert not mlflow.is_tracking_uri_set()
    study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{tmp_path}/runs/tiny/study.db")
    assert f"of the run of trial {study.best_trial.number}, version 1 of tiny-net" in done.stdout
    client, _, children = runs_of(uri)
    (version,) = client.search_model_versions("name = 'tiny-net'")
    assert version.run_id == children[study.best_trial.number].info.run_id
    mlflow.set_tracking_uri(uri)
    try:
        model = mlflow.pyfunc.load_model("models:/tiny-net/1")
    finally:
        mlflow.set_tracking_uri(None)
    images = np.random.default_rng(1).normal(size=(4, 1, 6, 6)).astype(np.float32)
    network = load_network(network_path(tmp_path / "runs" / "tiny", study.best_trial.number))
    expected = network(torch.from_numpy(images)).detach().numpy()
    assert np.allclose(model.predict(images), expected, atol=1e-5)
    assert model.metadata.signature.inputs.inputs[0].shape == (-1, 1, 6, 6)
    done = nas("export", "tiny.py", "--register", "tiny-net")
    assert "`--register` must go with --format mlflow" in " ".join(done.stderr.split())


def test_runs_say_what_they_were_made_with_and_what_pruning_saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(STUDY)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert nas("run", "tiny.py", "--mlflow", uri).exit_code == 0
    client, parent, children = runs_of(uri)
    for run in (parent, *children.values()):
        assert torch.__version__.startswith(run.data.tags["version.torch"])
        assert client.get_run(run.info.run_id).inputs.dataset_inputs[0].dataset.digest
    assert parent.data.params["recipe/seed"] == "0"


def test_the_share_of_pruned_trials_and_the_seconds_saved_by_hand(tmp_path):
    study = optuna.create_study(direction="maximize")
    for state, seconds in (("COMPLETE", 10.0), ("PRUNED", 4.0), ("COMPLETE", 20.0), ("PRUNED", 1.0), ("FAIL", 9.0)):
        value = 1.0 if state == "COMPLETE" else None
        attributes = {"train_seconds": seconds, "gpu_seconds": seconds / 2}
        study.add_trial(optuna.trial.create_trial(state=TrialState[state], value=value, user_attrs=attributes))
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    MLflowTracker(uri).rebuild(study)
    client, parent, _ = runs_of(uri)

    def curve(name):
        return [point.value for point in client.get_metric_history(parent.info.run_id, name)]

    assert curve("pruned_share") == pytest.approx([0, 1 / 2, 1 / 3, 2 / 4, 2 / 5])
    # Means of completed trials are 10, 10, 15, 15, 15; the pruned ones took 4 and 1.
    assert curve("seconds_saved") == pytest.approx([0, 6, 11, 25, 25])
    assert curve("gpu_seconds_saved") == pytest.approx([0, 3, 5.5, 12.5, 12.5])


def test_what_mlflow_does_not_take_leaves_a_trace(tmp_path):
    study = optuna.create_study(direction="maximize")
    study.add_trial(
        optuna.trial.create_trial(
            value=1.0,
            params={"long": "x" * 7000},
            distributions={"long": optuna.distributions.CategoricalDistribution(["x" * 7000, "y"])},
            user_attrs={"note": "z" * 9000, "endless": float("inf"), "unknown": float("nan")},
        )
    )
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    MLflowTracker(uri).rebuild(study)
    _, _, children = runs_of(uri)
    run = children[0]
    assert run.data.params["long"].startswith("xxx")
    assert run.data.params["long"].endswith(" ... (cut; 7000 characters in Optuna)")
    assert run.data.tags["note"].endswith(" ... (cut; 9000 characters in Optuna)")
    assert run.data.tags["infinite.endless"] == "inf at step 0"
    assert "endless" not in run.data.metrics
    assert np.isnan(run.data.metrics["unknown"])


def test_a_full_disk_stops_nothing_and_what_fits_later_is_written_later(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # pauses between attempts
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracker, study = MLflowTracker(uri, metric="value"), optuna.create_study(direction="maximize")
    tracker.start(study)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / "mlflow.db").stat().st_size

    def objective(trial):
        if trial.number == 1:  # for files of this process; the system says "File too large"
            resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
        return trial.suggest_float("x", 0, 1)

    try:
        study.optimize(objective, n_trials=4, callbacks=[tracker.trial_finished])
        tracker.finish(study)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(study.trials) == 4
    messages = [record.getMessage() for record in caplog.records if record.name == "optuna_nas.tracking"]
    assert [("misses part" in message, "lacks part" in message) for message in messages] == [
        (True, False),
        (False, True),
    ]
    MLflowTracker(uri, metric="value").rebuild(study)
    _, _, children = runs_of(uri)
    assert [children[number].data.metrics["value"] for number in range(4)] == [trial.value for trial in study.trials]


class Refusing(BaseHTTPRequestHandler):
    """A server that is healthy and lets nobody in."""

    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 403)
        self.end_headers()
        self.wfile.write(b"OK" if self.path == "/health" else b"forbidden")

    do_POST = do_GET  # noqa: N815

    def log_message(self, *unused): ...


def test_a_server_that_lets_nobody_in_is_one_sentence_at_the_start():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(ConnectionError, match="403"):
            MLflowTracker(f"http://127.0.0.1:{server.server_port}").start(optuna.create_study())
    finally:
        server.shutdown()
        server.server_close()


def test_an_experiment_that_is_deleted_meanwhile_costs_one_warning(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # pauses between attempts
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracker, study = MLflowTracker(uri, metric="value"), optuna.create_study(direction="maximize")
    tracker.start(study)
    client = MlflowClient(uri)

    def objective(trial):
        if trial.number == 1:
            client.delete_experiment(client.get_experiment_by_name("optuna_nas").experiment_id)
        return trial.suggest_float("x", 0, 1)

    study.optimize(objective, n_trials=4, callbacks=[tracker.trial_finished])
    tracker.finish(study)
    assert len(study.trials) == 4
    warnings = [record for record in caplog.records if record.name.startswith("optuna_nas.tracking")]
    assert 1 <= len(warnings) <= 2  # one while the search runs, one at its end


@pytest.mark.parametrize(("version", "saved"), [("3.17.2", True), ("4.0", True), ("2.22.0", False), ("?", True)])
def test_a_server_that_knows_no_saved_views_gets_a_plain_address(version, saved):
    class Versioned(Refusing):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(version.encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Versioned)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = page_url(f"http://127.0.0.1:{server.server_port}", "", "7", "uid", "accuracy", maximize=True)
    finally:
        server.shutdown()
        server.server_close()
    assert ("viewStateShareKey=optuna_nas_uid" in address) == saved
    assert ("orderByKey=metrics.%60accuracy%60&orderByAsc=false" in address) != saved
    assert "/#/experiments/7/runs?" in address

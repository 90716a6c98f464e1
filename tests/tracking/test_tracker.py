"""The queue between a search and MLflow: it costs nothing, keeps order, and loses nothing for good."""

import pickle
import resource
import signal
import threading
import time

import optuna
import pytest
from mlflow import MlflowClient
from tracked import new_study, read, search

from optuna_nas.tracking import MLflowTracker
from optuna_nas.tracking import tracker as tracker_module


@pytest.fixture
def gate(monkeypatch):
    """Holds back every batch until opened, and remembers all."""
    opened, batches, write = threading.Event(), [], MlflowClient.log_batch

    def log_batch(self, run_id, metrics=(), params=(), tags=(), **kwargs):
        opened.wait(20)
        batches.append([(metric.key, metric.step) for metric in metrics])
        return write(self, run_id, metrics, params, tags, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    opened.set()
    return opened, batches


def test_a_tracker_closes_its_connections(uri, open_connections):
    tracker, study = MLflowTracker(uri), new_study()
    tracker.start(study)
    assert open_connections
    tracker.finish(study)
    assert not open_connections
    for again in (tracker.find_view, tracker.rebuild):
        again(study)
        assert not open_connections, again.__name__


def test_a_tracker_travels_to_another_process_unstarted(uri):
    tracker = MLflowTracker(uri, "mine", "score")
    study = new_study()
    tracker.start(study)
    copy = pickle.loads(pickle.dumps(tracker))
    tracker.finish(study)
    assert (copy.tracking_uri, copy.experiment, copy.metric) == (uri, "mine", "score")
    copy.epoch(0, 1, {"score": 1.0})  # not started: nothing happens
    search(copy, study, 1)
    assert read(uri, "mine").children[0].data.metrics["score"] == study.best_value


def test_calls_cost_nothing_while_mlflow_is_slow_and_epochs_go_together_in_order(uri, gate):
    opened, batches = gate
    tracker, study = MLflowTracker(uri), new_study()
    tracker.start(study)
    trial = study.ask()
    opened.clear()
    costs = []
    for epoch in range(400):
        begun = time.perf_counter()
        if epoch == 0:
            tracker.trial_started(trial, {"known": 1.0})
        tracker.epoch(trial.number, epoch, {"accuracy": 0.5, "loss": 0.1})
        costs.append(time.perf_counter() - begun)
    study.tell(trial, 0.5)
    tracker.trial_finished(study, study.trials[0])
    opened.set()
    tracker.finish(study)
    assert max(costs) < 10, "no call waits for MLflow, which holds still for 20 s"
    assert sum(any(key == "loss" for key, _ in batch) for batch in batches) <= 2, "400 epochs are a batch or two"
    steps = [step for batch in batches for key, step in batch if key == "loss"]
    assert steps == list(range(400))
    keys = [key for batch in batches for key, _ in batch]
    assert keys.index("known") < keys.index("loss") < keys.index("best_value")


def test_a_full_queue_drops_records_and_the_study_fills_the_gap(uri, gate, monkeypatch, caplog):
    opened, _ = gate
    monkeypatch.setattr(tracker_module, "MAX_RECORDS", 20)
    tracker, study = MLflowTracker(uri, metric="accuracy"), new_study()
    tracker.start(study)
    opened.clear()
    trial = study.ask()
    tracker.trial_started(trial)
    for epoch in range(100):
        trial.report(epoch / 100, epoch)
        tracker.epoch(trial.number, epoch, {"accuracy": epoch / 100})
        assert tracker.n_waiting <= 20
    tracker.trial_finished(study, study.tell(trial, 0.99))
    opened.set()
    tracker.finish(study)
    assert len([record for record in caplog.records if record.name == "optuna_nas.tracking"]) == 1
    mirror = read(uri)
    assert sorted(mirror.curve(mirror.children[0], "accuracy")) == [(epoch, epoch / 100) for epoch in range(100)]
    assert mirror.children[0].info.status == "FINISHED"


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
    assert [("the search continues" in message, "the next start" in message) for message in messages] == [
        (True, False),
        (False, True),
    ]
    MLflowTracker(uri, metric="value").rebuild(study)
    children = read(uri).children
    assert [children[number].data.metrics["value"] for number in range(4)] == [trial.value for trial in study.trials]


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


def test_tags_that_are_no_text_are_written_as_text(uri):
    tracker, study = MLflowTracker(uri, tags={"seed": 3, "layers": [1, 2]}), new_study()
    search(tracker, study, 1)
    tags = read(uri).parent.data.tags
    assert (tags["seed"], tags["layers"]) == ("3", "[1, 2]")


def test_a_deleted_experiment_is_named_with_its_own_way_out(uri):
    client = MlflowClient(uri)
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(
        ConnectionError, match=r"experiment 'gone' was deleted there; restore it \(`mlflow exp"
    ) as raised:
        MLflowTracker(uri, "gone").start(new_study())
    assert "start a server" not in str(raised.value)


def test_a_slow_mlflow_says_how_long_it_takes_and_can_be_left(uri, monkeypatch, caplog):
    monkeypatch.setattr(tracker_module, "SLOW_SECONDS", 0.3)
    write = MlflowClient.log_batch
    tracker, study = MLflowTracker(uri), new_study()
    tracker.start(study)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=8)

    def slowly(*arguments, **named):
        time.sleep(0.5)
        return write(*arguments, **named)

    monkeypatch.setattr(MlflowClient, "log_batch", slowly)
    threading.Timer(3, signal.raise_signal, (signal.SIGINT,)).start()
    tracker.finish(study)
    assert "of 8 trials are complete there" in caplog.text
    assert "Ctrl-C leaves it" in caplog.text
    assert "MLflow lacks part of the study (interrupted); the next start writes it." in caplog.text
    monkeypatch.setattr(MlflowClient, "log_batch", write)
    MLflowTracker(uri).rebuild(study)
    assert len(read(uri).children) == 8

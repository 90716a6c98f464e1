"""Trials in TensorBoard and in Weights & Biases (offline), read back from the files that those tools read."""

import json
import logging
import struct
import time

import optuna
import pytest

from optuna_nas.pipelines.curves import CurvesListener

pytestmark = pytest.mark.pipeline


def run(listener, n_trials=2):
    """Two trials: one of two epochs that is completed, one that is pruned after the first."""

    def objective(trial):
        trial.suggest_categorical("width", [8, None])
        listener.trial_started(trial, {"params": 10.0})
        trial.set_user_attr("seconds", 1.5)
        trial.set_user_attr("device", "cpu")
        for epoch in (1, 2):
            listener.epoch(trial.number, epoch, {"accuracy": epoch / 10, "train_loss": 1 / epoch})
            listener.progress(trial.number, epoch / 2)
            trial.report(epoch / 10, epoch)
            if trial.number == 1:
                raise optuna.TrialPruned
        return 0.25

    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.set_metric_names(["accuracy"])
    study.enqueue_trial({"width": 8})
    study.optimize(objective, n_trials=n_trials, callbacks=[listener.trial_finished])
    return study


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning", "ignore::DeprecationWarning")
def test_tensorboard_shows_curves_parameters_and_results(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from optuna_nas.pipelines.tensorboard import TensorBoardListener

    run(TensorBoardListener(tmp_path))
    found = {}
    for folder in sorted(tmp_path.iterdir()):
        events = EventAccumulator(str(folder))
        events.Reload()
        found[folder.name] = {
            tag: [(point.step, round(point.value, 3)) for point in events.Scalars(tag)]
            for tag in events.Tags()["scalars"]
        }
        assert "state/text_summary" in events.Tags()["tensors"]
    assert list(found) == ["trial-00000", "trial-00001"]
    assert found["trial-00000"]["accuracy"] == [(1, 0.1), (2, 0.2)]
    assert found["trial-00000"]["params"] == [(0, 10.0)]
    assert found["trial-00000"]["result/accuracy"] == [(0, 0.25)]
    assert found["trial-00000"]["result/seconds"] == [(0, 1.5)]
    assert found["trial-00001"]["accuracy"] == [(1, 0.1)]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning", "ignore::DeprecationWarning")
def test_weights_and_biases_keeps_runs_offline(tmp_path):
    pytest.importorskip("wandb")
    from optuna_nas.pipelines.wandb import WandbListener

    run(WandbListener("cells", group="digits", folder=tmp_path))
    end = time.monotonic() + 60
    while True:  # another process writes the files, and may be behind
        runs = [read_offline(file) for file in tmp_path.glob("wandb/offline-run-*/run-*.wandb")]
        if all("state" in run["summary"] for run in runs) or time.monotonic() > end:
            break
        time.sleep(0.1)
    by_name = {run["name"]: run for run in runs}
    assert set(by_name) == {"trial 0", "trial 1"}
    first, second = by_name["trial 0"], by_name["trial 1"]
    assert (first["project"], first["group"]) == ("cells", "digits")
    assert [row.get("accuracy") for row in first["history"]] == [None, 0.1, 0.2]
    assert [row.get("accuracy") for row in second["history"]] == [None, 0.1]
    assert first["config"]["width"] == 8
    assert (first["summary"]["state"], second["summary"]["state"]) == ("COMPLETE", "PRUNED")
    assert first["summary"]["result/seconds"] == 1.5
    assert first["summary"]["result/accuracy"] == 0.25
    with pytest.raises(ValueError, match="`mode` must be 'offline' or 'online' but got 'disabled'"):
        WandbListener("cells", mode="disabled")


def records_of(data, block=32_768):
    """Yield the records of a file of runs: after seven bytes, parts of (checksum, length, kind), as LevelDB's log."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        if block - place % block < 7:  # the rest of a block is padding
            place += block - place % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        if kind == 0:
            place += block - place % block
            continue
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield whole
            whole = b""


def read_offline(file):
    """Return what `wandb sync` would send of a run."""
    from wandb.proto import wandb_internal_pb2

    found = {"history": [], "config": {}, "summary": {}}
    for data in records_of(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found |= {"name": record.run.display_name, "project": record.run.project, "group": record.run.run_group}
        elif kind in ("history", "config", "summary"):
            items = record.history.item if kind == "history" else getattr(record, kind).update
            values = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
            if kind == "history":
                found["history"].append(values)
            else:
                found[kind] |= values
    return found


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_an_error_of_the_tool_ends_no_trial(caplog):
    class Broken(CurvesListener):
        def _log(self, number, step, metrics):
            raise OSError("disk full")

        def _end(self, number, run):
            raise OSError("disk full")

    with caplog.at_level(logging.WARNING, "optuna_nas"):
        study = run(Broken())
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED"]
    assert [record.message for record in caplog.records if "Broken" in record.message] == [
        "Broken could not show a trial: disk full"
    ]

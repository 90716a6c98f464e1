"""A study and its runs after resuming, interrupting, rebuilding."""

import optuna
from optuna.trial import TrialState
from tracked import SPACE, new_study, objective, read, search, value_of

from optuna_nas.tracking import MLflowTracker


def test_a_resumed_study_goes_on_in_the_same_runs(uri, tmp_path):
    for n_trials in (2, 3):
        search(MLflowTracker(uri), new_study(folder=tmp_path), 2, start={"params": {"trials": n_trials}})
    mirror = read(uri)
    assert list(mirror.children) == [0, 1, 2, 3]
    assert mirror.curve(mirror.children[0], "accuracy") == [(epoch, value_of(0, epoch)) for epoch in (1, 2, 3)]
    assert [step for step, _ in mirror.curve(mirror.parent, "best_value")] == [0, 1, 2, 3]
    assert mirror.parent.data.params["trials"] == "2"
    assert mirror.parent.data.tags["changed.trials"] == "3"
    winners = [run.info.run_name for run in mirror.children.values() if "best" in run.info.run_name]
    assert winners == [f"trial {new_study(folder=tmp_path).best_trial.number} (best)"]


def test_trials_that_ran_without_mlflow_are_written_later_from_the_study(uri, tmp_path):
    study = new_study(folder=tmp_path)
    study.optimize(objective(MLflowTracker(uri), pruned={1}, failed={2}), n_trials=4, catch=(ValueError,))
    for _ in range(2):  # the second time there is nothing to write
        tracker = MLflowTracker(uri)
        tracker.start(study, space=SPACE, metric="accuracy")
        tracker.finish(study)
    mirror = read(uri)
    assert [run.info.status for run in mirror.children.values()] == ["FINISHED", "KILLED", "FAILED", "FINISHED"]
    assert mirror.curve(mirror.children[3], "accuracy") == [(epoch, value_of(3, epoch)) for epoch in (1, 2, 3)]
    assert mirror.children[3].data.metrics["params"] == 1003
    tiles = mirror.client.list_artifacts(mirror.children[0].info.run_id, "images")
    assert len([tile for tile in tiles if "/architecture+" in tile.path]) == 2
    assert [step for step, _ in mirror.curve(mirror.parent, "best_value")] == [0, 1, 2, 3]


def test_an_interrupted_search_leaves_no_run_running(uri, tmp_path):
    tracker, study = MLflowTracker(uri), new_study(folder=tmp_path)
    tracker.start(study)
    tracker.trial_started(study.ask())  # and nobody says how it ended
    tracker.finish(study, "KILLED")
    mirror = read(uri)
    assert [mirror.parent.info.status, mirror.children[0].info.status] == ["KILLED", "KILLED"]

    study.tell(0, state=TrialState.FAIL)  # as the next search does
    tracker = MLflowTracker(uri)
    tracker.start(study)
    tracker.finish(study)
    mirror = read(uri)
    assert [mirror.parent.info.status, mirror.children[0].info.status] == ["FINISHED", "FAILED"]


def test_a_study_that_still_runs_stays_so(tmp_path):
    study = optuna.create_study(direction="maximize")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    study.ask()
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    told = []
    MLflowTracker(uri).rebuild(study, on_progress=told.append)
    _, _, parent, children, _ = read(uri)
    assert parent.info.status == "RUNNING"
    assert len(children) == 2
    assert told[-1] == 2

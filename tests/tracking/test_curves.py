"""Curves of a study over trial numbers."""

import time

import optuna
import pytest
from optuna.trial import TrialState
from tracked import EPOCHS, new_study, read, search, value_of

from optuna_nas.storage.attributes import GPU_SECONDS, TRAIN_SECONDS
from optuna_nas.tracking import MLflowTracker


def test_the_study_has_curves_over_trial_numbers(finished):
    mirror, _, _ = finished
    values = {number: value_of(number) for number in (0, 3, 4, 5)}
    assert mirror.curve(mirror.parent, "trial_value") == list(values.items())
    best = [max(value for number, value in values.items() if number <= step) for step in range(6)]
    assert mirror.curve(mirror.parent, "best_value") == list(enumerate(best))
    assert mirror.curve(mirror.parent, "n_pruned") == list(enumerate([0, 1, 1, 1, 1, 1]))
    assert mirror.curve(mirror.parent, "n_failed")[-1] == (5, 1)
    assert mirror.curve(mirror.parent, "n_complete")[-1] == (5, 4)


def test_the_share_of_pruned_trials_and_the_seconds_saved_by_hand(tmp_path):
    study = optuna.create_study(direction="maximize")
    for state, seconds in (("COMPLETE", 10.0), ("PRUNED", 4.0), ("COMPLETE", 20.0), ("PRUNED", 1.0), ("FAIL", 9.0)):
        value = 1.0 if state == "COMPLETE" else None
        attributes = {TRAIN_SECONDS: seconds, GPU_SECONDS: seconds / 2}
        study.add_trial(optuna.trial.create_trial(state=TrialState[state], value=value, user_attrs=attributes))
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    MLflowTracker(uri).rebuild(study)
    client, _, parent, _, _ = read(uri)

    def curve(name):
        return [point.value for point in client.get_metric_history(parent.info.run_id, name)]

    assert curve("pruned_share") == pytest.approx([0, 1 / 2, 1 / 3, 2 / 4, 2 / 5])
    # Means of completed trials are 10, 10, 15, 15, 15; the pruned ones took 4 and 1.
    assert curve("seconds_saved") == pytest.approx([0, 6, 11, 25, 25])
    assert curve("gpu_seconds_saved") == pytest.approx([0, 3, 5.5, 12.5, 12.5])


def test_four_trials_at_once_keep_their_curves_apart_and_the_best_value_never_falls(uri, tmp_path):
    study = new_study(folder=tmp_path)
    slow_first = {"during": lambda trial: time.sleep(0.3 if trial.number % 4 == 0 else 0.0)}
    search(MLflowTracker(uri), study, 8, n_jobs=4, pruned={5}, **slow_first)
    mirror = read(uri)
    assert len(mirror.children) == 8
    for number, run in mirror.children.items():
        epochs = 2 if number == 5 else EPOCHS
        assert mirror.curve(run, "accuracy") == [(epoch, value_of(number, epoch)) for epoch in range(1, epochs + 1)]
    best = sorted(mirror.curve(mirror.parent, "best_value"))
    assert [step for step, _ in best] == list(range(8))
    assert [value for _, value in best] == sorted(value for _, value in best)

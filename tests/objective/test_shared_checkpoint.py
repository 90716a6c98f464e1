"""Checkpoints travel between machines by the store that they share, and are believed only as they were written."""

import optuna
import pytest
from objectives import RECIPE, make
from optuna.trial import TrialState

from optuna_nas.objective import TrialRun
from optuna_nas.storage.artifacts import artifact_store
from optuna_nas.storage.attributes import CHECKPOINT, RESUMES
from optuna_nas.training import TrainingStopped


def stopped_after(folder, store, n_steps):
    steps = []
    objective = make(run=TrialRun(folder, store=store, should_stop=lambda: steps.append(1) or len(steps) >= n_steps))
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    with pytest.raises(TrainingStopped):
        study.optimize(objective, n_trials=1)
    return study


def test_a_trial_goes_on_from_a_checkpoint_that_was_shared(tmp_path):
    store = artifact_store(str(tmp_path / "shared"))
    study = stopped_after(tmp_path / "one machine", store, n_steps=6)
    dead = study.trials[0]
    assert CHECKPOINT in dead.user_attrs
    attributes = {name: dead.user_attrs[name] for name in (CHECKPOINT,)} | {RESUMES: 0}
    study.enqueue_trial(dead.params, user_attrs=attributes)
    n_steps = []
    objective = make(run=TrialRun(tmp_path / "another", store=store, should_stop=lambda: n_steps.append(1) and False))
    study.optimize(objective, n_trials=1)
    assert len(n_steps) == RECIPE.epochs * 4 - 6  # 72 images in batches of 18
    whole = optuna.create_study(direction="maximize")
    whole.enqueue_trial(dead.params)
    whole.optimize(make(), n_trials=1)
    assert study.trials[1].intermediate_values == whole.trials[0].intermediate_values
    assert [file.name[:8] for file in (tmp_path / "shared").iterdir()] == ["networks"], "no checkpoint is left"


def test_a_checkpoint_that_was_changed_is_refused_and_the_trial_starts_anew(tmp_path, caplog):
    store = artifact_store(str(tmp_path / "shared"))
    study = stopped_after(tmp_path / "one machine", store, n_steps=6)
    (file,) = (tmp_path / "shared").iterdir()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    dead = study.trials[0]
    study.enqueue_trial(dead.params, user_attrs={CHECKPOINT: dead.user_attrs[CHECKPOINT], RESUMES: 0})
    study.optimize(make(run=TrialRun(tmp_path / "another", store=store)), n_trials=1)
    assert study.trials[1].state == TrialState.COMPLETE
    assert "starts anew" in caplog.text
    assert "sha256" in caplog.text

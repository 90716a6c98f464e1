"""The seconds of a trial are stored while it trains, whatever becomes of it."""

import optuna
import pytest
from objectives import make
from optuna.pruners import BasePruner
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from optuna_nas import GHN, GHNRecipe, GHNSampler
from optuna_nas.objective import TrialRun
from optuna_nas.objective import trial_training as objective_module
from optuna_nas.storage.artifacts import folder_store
from optuna_nas.storage.attributes import EPOCHS, MODEL_SECONDS, TRAIN_SECONDS
from optuna_nas.storage.database import connect
from optuna_nas.storage.spending import spending_of
from optuna_nas.training import TrainingDiverged, TrainingStopped


class At(BasePruner):
    """Does something after a step, and prunes if it says so."""

    def __init__(self, step, do):
        self.step, self.do = step, do

    def prune(self, study, trial):
        return trial.last_step == self.step and self.do(trial)


def raising(error):
    def do(trial):
        raise error

    return do


def ends(pruner=None, run=None, **parts):
    """Return a trial of a training that ends in some way."""
    study = optuna.create_study(direction="maximize", sampler=RandomSampler(seed=0), pruner=pruner)
    objective = make(reuse_duplicates=False, **({} if run is None else {"run": run}), **parts)
    study.optimize(objective, n_trials=1, catch=(TrainingDiverged, TrainingStopped, RuntimeError))
    (trial,) = study.trials
    return trial


@pytest.mark.parametrize(
    ("how", "state", "saved"),
    [
        ({}, TrialState.COMPLETE, 0),
        ({"pruner": At(2, lambda trial: True)}, TrialState.PRUNED, 1),
        ({"pruner": At(2, raising(RuntimeError("an error of its own")))}, TrialState.FAIL, 0),
        ({"run": TrialRun(should_stop=lambda: True)}, TrialState.FAIL, 0),
    ],
)
def test_the_seconds_of_a_trial_are_kept_whatever_its_end(how, state, saved, monkeypatch):
    monkeypatch.setattr(objective_module, "gpu_share", lambda device: 0.5)
    trial = ends(**how)
    spent = spending_of(trial)
    assert trial.state == state
    assert 0 < trial.user_attrs[TRAIN_SECONDS] == spent.training
    assert spent.gpu == pytest.approx(0.5 * spent.training, abs=0.002)
    assert (trial.user_attrs[EPOCHS], spent.epochs_saved) == (3, saved)


def test_a_trial_pruned_before_its_training_has_spent_nothing_on_it():
    trial = ends(At(None, lambda trial: True))
    assert (trial.state, spending_of(trial).training, spending_of(trial).epochs_saved) == (TrialState.PRUNED, 0, 3)


def test_another_process_reads_the_seconds_of_every_epoch_at_once(tmp_path):
    address, read = f"sqlite:///{tmp_path / 'study.db'}", []

    def look(trial):  # what a kill would leave
        others = optuna.load_study(study_name="own", storage=connect(address))
        read.append(others.trials[0].user_attrs[TRAIN_SECONDS])

    parts = {"sampler": RandomSampler(seed=0), "pruner": At(2, look), "direction": "maximize"}
    study = optuna.create_study(study_name="own", storage=connect(address), **parts)
    study.optimize(make(), n_trials=1)
    assert 0 < read[0] <= study.trials[0].user_attrs[TRAIN_SECONDS]


def test_the_seconds_of_a_one_shot_model_are_apart_from_those_of_trainings(tmp_path):
    objective = make(reuse_duplicates=False)
    ghn = GHN(objective.space, recipe=GHNRecipe(hidden=16, batch_size=16))
    sampler = GHNSampler(
        objective.space, ghn, data=objective.data, budget=0.5, pool_size=4, trials_per_round=2, seed=0,
        artifact_store=folder_store(tmp_path),
    )  # fmt: skip
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(objective, n_trials=3)
    assert [MODEL_SECONDS in trial.user_attrs for trial in study.trials] == [True, False, True]
    for trial in study.trials:
        spent = spending_of(trial)
        assert spent.training + spent.model <= trial.duration.total_seconds() + 0.01
        assert spent.total == pytest.approx(trial.duration.total_seconds())

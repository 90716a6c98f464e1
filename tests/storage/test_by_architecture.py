"""Trials are found by their architecture, in whatever order and however often they were tried."""

import os
import signal

import optuna
import pytest
import torch
from optuna.trial import TrialState
from strategies import few_digits

from optuna_nas import (
    HMNAS,
    CellKind,
    CellSpace,
    HMNASRecipe,
    NetworkSpace,
    Recipe,
    Search,
    Skeleton,
    TrainObjective,
    load_network,
    run,
)
from optuna_nas.search.opening import open_study
from optuna_nas.search.results import network_of
from optuna_nas.storage.attributes import RESUMES, WORKER, attribute
from optuna_nas.storage.by_architecture import enqueue_architecture, trial_of
from optuna_nas.storage.retries import MAX_ATTEMPTS, reap_dead_trials

CELLS = CellSpace(("skip_connect", "nor_conv_3x3"), 2, 1, (CellKind("cell"),), max_ops=2)
DATA = few_digits(48)


@pytest.fixture(scope="module")
def hmnas():
    space = NetworkSpace(CELLS, Skeleton(("cell",), 4, (1, 8, 8), 10, affine=False))
    model = HMNAS(space, HMNASRecipe(batch_size=16, mask_fraction=0.5))
    model.fit(DATA, 2)
    with torch.no_grad():
        model.masks.op_masks_EO[0, 0] = 0.0
    return model


def fine_tuning(hmnas, folder, trials=2):
    recipe = Recipe(epochs=3, batch_size=16, learning_rate=0.05)
    objective = TrainObjective(
        hmnas.space, DATA, recipe, initial_weights=hmnas.inherited, reuse_duplicates=False, device="cpu"
    )
    return Search(
        name="tuned",
        folder=folder,
        space=hmnas.space,
        objective=objective,
        data=DATA,
        sampler=optuna.samplers.RandomSampler(0),
        trials=trials,
        pictures=False,
    )


class Terminated:
    """A listener that has its own process terminated after some steps of a training: with a checkpoint."""

    def __init__(self, steps):
        self.steps = steps

    def __getattr__(self, name):
        return lambda *arguments: None

    def progress(self, number, fraction):
        self.steps -= 1
        if self.steps == 0:
            os.kill(os.getpid(), signal.SIGTERM)


def test_what_survives_is_fine_tuned_as_in_one_go_however_often_interrupted_and_in_another_order(hmnas, tmp_path):
    survives = hmnas.derive().architecture
    whole, search = (fine_tuning(hmnas, tmp_path / name) for name in ("whole", "cut"))
    enqueue_architecture(open_study(whole), survives)
    expected = run(whole)
    run(fine_tuning(hmnas, tmp_path / "cut", trials=1))  # another, and only then what survives
    for _ in range(3):
        enqueue_architecture(open_study(search), survives)
        assert run(search, Terminated(steps=5)).interrupted
    enqueue_architecture(open_study(search), survives)
    result = run(search)
    assert not result.interrupted
    one, other = trial_of(expected.study, survives), trial_of(result.study, survives)
    assert (one.number, other.number, attribute(other.user_attrs, RESUMES)) == (0, 4, 1)
    assert other.intermediate_values == one.intermediate_values
    states = [
        load_network(network_of(s, r.study, t)).state_dict()
        for s, r, t in ((whole, expected, one), (search, result, other))
    ]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_what_was_given_up_is_tried_again_from_its_checkpoint_and_nothing_is_tried_twice(hmnas, tmp_path):
    survives = hmnas.derive().architecture
    study = open_study(fine_tuning(hmnas, tmp_path))
    for _ in range(MAX_ATTEMPTS):
        enqueue_architecture(study, survives)
        enqueue_architecture(study, survives)  # it waits already
        trial = study.ask(hmnas.space.distributions())
        trial.set_user_attr(WORKER, "a process that was killed")
        enqueue_architecture(study, survives)  # it runs
        reap_dead_trials(study, alone=True)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL] * MAX_ATTEMPTS
    enqueue_architecture(study, survives)
    assert len(study.trials) == MAX_ATTEMPTS + 1
    assert attribute(study.trials[-1].user_attrs, RESUMES) == 0
    assert trial_of(study, survives) is None

"""InStudyFit: any one-shot model trained in rounds that workers share, on the device chosen there."""

import pickle

import optuna
import pytest
import torch
from optuna.trial import TrialState
from strategies import few_digits

from optuna_nas import (
    GHN,
    SNAS,
    CellKind,
    CellSpace,
    GHNRecipe,
    InStudyFit,
    NetworkSpace,
    Search,
    Skeleton,
    SNASRecipe,
    SNASSampler,
    run,
)
from optuna_nas.storage.artifacts import folder_store
from optuna_nas.storage.attributes import fit_records_of, read_json, snapshot_key
from optuna_nas.training import TrainingStopped

SPACE = CellSpace(("none", "skip_connect", "nor_conv_3x3"), 2, 1, (CellKind("cell"),))
NETWORKS = NetworkSpace(SPACE, Skeleton(("cell",), 4, (1, 8, 8), 10, affine=False))


@pytest.fixture(scope="module")
def data():
    return few_digits(64)


def snas():
    return SNAS(NETWORKS, SNASRecipe(batch_size=16, relaxation="one_path"))


def make(data, folder, model=None, **arguments):
    arguments = {"n_trials": 6, "trials_per_round": 2, **arguments}
    return InStudyFit(model or snas(), data, 3, artifact_store=folder_store(folder), **arguments)


def objective(fit):
    def call(trial):
        architecture = SPACE.suggest(trial)
        snapshot = fit.before(trial.study, trial)
        assert snapshot is not None
        assert snapshot.number <= trial.number
        return fit.model.score([architecture])[0]

    return call


def openers(study):
    return [t.number for t in study.trials if read_json(t.system_attrs, snapshot_key("SNAS")) is not None]


def test_an_objective_of_ones_own_trains_a_model_in_rounds(data, tmp_path):
    fit, straight = make(data, tmp_path), snas()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective(fit), n_trials=8)
    straight.fit(data, 3)
    assert openers(study) == [0, 2, 4]
    assert fit.model.fitted
    assert (fit.model.logits == straight.logits).all()
    steps = [step for trial in study.trials for step, _ in fit_records_of(trial).get("SNAS", ())]
    assert steps == list(range(1, straight.total_steps + 1))


def test_another_process_takes_what_was_published_and_trains_nothing(data, tmp_path):
    first = make(data, tmp_path)
    study = optuna.create_study()
    study.optimize(objective(first), n_trials=2)
    second = pickle.loads(pickle.dumps(make(data, tmp_path)))
    before = second.newest(study, 1)
    assert before.number == 0
    assert second.model.step == first.model.step
    assert openers(study) == [0]


def test_a_call_again_for_the_same_trial_trains_nothing(data, tmp_path):
    fit, study = make(data, tmp_path), optuna.create_study()
    trial = study.ask()
    assert fit.before(study, trial).number == 0
    step = fit.model.step
    assert fit.before(study, trial).number == 0
    assert fit.model.step == step


def test_a_round_that_was_cut_off_is_opened_by_the_next_trial_from_its_checkpoint(data, tmp_path):
    fit, study, shares = make(data, tmp_path), optuna.create_study(), []
    fit.prepare(tmp_path, None, lambda: fit.model.step == 2)
    trial = study.ask()
    with pytest.raises(TrainingStopped):
        fit.before(study, trial)
    study.tell(trial, state=TrialState.FAIL)
    again = make(data, tmp_path)
    again.prepare(tmp_path, lambda what, share: shares.append(share))
    again.before(study, study.ask())
    assert openers(study) == [1]
    assert len(shares) == again.model.step - 2 + 1  # one for each step that was left, and the end
    assert shares[-1] == 1
    ((_, records),) = fit_records_of(study.trials[1]).items()
    assert [step for step, _ in records] == list(range(1, again.model.step + 1))


# -- the total of trials ------------------------------------------------------------------------------------------


def test_a_search_tells_its_total_so_that_the_whole_budget_is_spent_over_it(data, tmp_path):
    def fitted(name, trials, **arguments):
        sampler = SNASSampler(SPACE, snas(), data=data, budget=3, trials_per_round=2, seed=0, **arguments)
        search = Search(
            name,
            SPACE,
            objective=lambda trial: str(SPACE.suggest(trial)).count("conv"),
            sampler=sampler,
            trials=trials,
            folder=tmp_path / name,
            tracking=None,
            pictures=False,
        )
        run(search)
        return sampler.model.step / sampler.model.total_steps

    assert fitted("told", 4) == 1
    assert fitted("given", 4, n_trials=12) == pytest.approx(1 / 3, abs=0.06)


def test_a_number_of_trials_that_was_given_comes_before_what_a_search_tells(data, tmp_path):
    fit = make(data, tmp_path, n_trials=None)
    assert (fit.n_trials, fit.n_rounds) == (100, 50)
    fit.prepare(n_trials=5)
    assert (fit.n_trials, fit.n_rounds) == (5, 3)
    given = make(data, tmp_path, n_trials=8)
    given.prepare(n_trials=5)
    assert given.n_rounds == 4


# -- the device ---------------------------------------------------------------------------------------------------


class Recorded:
    """Data that can be moved, and say where to."""

    def __init__(self, data, device=None):
        self._data, self.moved_to = data, device

    def __getattr__(self, name):
        return getattr(self._data, name)

    def to(self, device):
        self.moved_to = device
        return Recorded(self._data, device)


@pytest.mark.parametrize(("device", "expected"), [("auto", "cuda"), ("cpu", "cpu")])
def test_data_and_model_go_to_a_gpu_if_there_is_one_and_nothing_else_is_asked_for(
    data, tmp_path, monkeypatch, device, expected
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    recorded, attached = Recorded(data), []
    monkeypatch.setattr(SNAS, "attach", lambda self, given: attached.append(given))
    fit = make(recorded, tmp_path, device=device)
    fit.attach()
    fit.attach()
    assert [given.moved_to.type for given in attached] == [expected]


def test_everything_a_model_has_learned_is_moved(data):
    model = GHN(NETWORKS, GHNRecipe(phases=1, batch_size=16))
    model.fit(data, 1)
    model.move(torch.device("meta"))
    steps = [name for name, tensor in model.tensors().items() if tensor.device.type != "meta"]
    assert all(name.endswith("/step") for name in steps)  # Adam counts its steps on the CPU
    assert model.device.type == "meta"


# -- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"budget": None}, "`model`, `data` and `budget` must be given together"),
        ({"budget": 0}, "`budget` must be a positive number"),
        ({"n_trials": 0}, "`n_trials` must be at least 1"),
        ({"trials_per_round": 0}, "`trials_per_round` must be at least 1"),
        ({"model": None}, "`model`, `data` and `budget` must be given together"),
        ({"model": None, "data": None, "budget": None}, "`name` must be given"),
    ],
)
def test_arguments_out_of_range_are_refused(data, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        InStudyFit(**{"model": snas(), "data": data, "budget": 1, **arguments})

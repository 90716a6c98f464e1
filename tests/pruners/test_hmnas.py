"""HMNASPruner: stops what the masks cut, says what that was, and keeps quiet when its masks say nothing."""

import pickle

import numpy as np
import optuna
import pytest
import torch
from optuna import TrialPruned
from optuna.pruners import NopPruner
from optuna.trial import TrialState
from strategies import few_digits

from optuna_nas import CellKind, CellSpace, Skeleton
from optuna_nas.oneshot import HMNAS, HMNASRecipe
from optuna_nas.pruners import HMNASPruner
from optuna_nas.study_state import CONDEMNED, fit_records_of, folder_store, read_json
from optuna_nas.training import TrainingStopped

SPACE = CellSpace(("none", "skip_connect", "nor_conv_3x3", "avg_pool_3x3"), 3, 1, (CellKind("cell"),))
FRAME = Skeleton(("cell",), 4, (1, 8, 8), 10, affine=False)


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def masked(seed=0, share=0.4):
    """An HMNAS of which a share of the ops and two edges fell, as if it had learned that."""
    hmnas = HMNAS(SPACE, FRAME, HMNASRecipe())
    hmnas.step = hmnas.total_steps = 10
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        hmnas._op_masks_EO[torch.rand(hmnas._op_masks_EO.shape, generator=random) < share] = 0.0
        hmnas._edge_masks_E[:2] = 0.0
        hmnas._edge_logits_E += torch.randn(len(hmnas.paths), generator=random)
    return hmnas


def run(pruner, worth, n_trials=300):
    study = optuna.create_study(direction="maximize", pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=0))

    def objective(trial):
        architecture = SPACE.suggest(trial)
        if not architecture.connected or trial.should_prune():
            raise TrialPruned
        return worth(architecture)

    study.optimize(objective, n_trials=n_trials)
    return study


def test_trials_that_live_on_what_was_cut_are_stopped_and_say_on_what():
    hmnas = masked()
    noise = np.random.default_rng(0)
    study = run(HMNASPruner(hmnas), lambda a: hmnas.survival(a).share + 0.1 * noise.normal())
    condemned = [t for t in study.trials if CONDEMNED in t.user_attrs]
    assert 0.1 < len(condemned) / len(study.trials) < 0.3
    for trial in condemned:
        architecture = SPACE.decode(trial.params)
        edges, ops = hmnas.cut(architecture)
        reason = trial.user_attrs[CONDEMNED]
        assert f"the masks keep {hmnas.survival(architecture).share:.0%} of it" in reason
        assert f"edges cut: {edges[0]}" in reason if edges else f"ops cut: {ops[0][1]} at {ops[0][0]}" in reason
    best = max(hmnas.survival(SPACE.decode(t.params)).share for t in condemned)
    passed = [t for t in study.trials if t.state == TrialState.COMPLETE and CONDEMNED not in t.user_attrs]
    late = [hmnas.survival(SPACE.decode(t.params)).share for t in passed if t.number > 40]
    assert min(late) >= best - 0.1


def test_masks_of_something_else_stop_nobody():
    others, hmnas = np.random.default_rng(1), masked()
    study = run(HMNASPruner(hmnas), lambda _: others.normal(), 150)
    late = [t for t in study.trials if t.number > 60 and CONDEMNED in t.user_attrs]
    assert len(late) <= 5


def test_without_fallen_masks_or_before_the_fit_ends_all_pass():
    fresh = HMNAS(SPACE, FRAME)
    assert not any(CONDEMNED in t.user_attrs for t in run(HMNASPruner(fresh), lambda a: len(str(a)), 40).trials)
    fresh.step = fresh.total_steps = 10
    assert not any(CONDEMNED in t.user_attrs for t in run(HMNASPruner(fresh), lambda a: len(str(a)), 40).trials)


def test_what_passes_goes_to_the_wrapped_pruner_by_default_the_median():
    pruner = HMNASPruner(masked())
    assert isinstance(pruner._pruner, optuna.pruners.MedianPruner)
    assert isinstance(HMNASPruner(masked(), NopPruner())._pruner, NopPruner)


def test_a_pickled_pruner_judges_alike():
    pruner = HMNASPruner(masked())
    other = pickle.loads(pickle.dumps(pruner))
    study = optuna.create_study()
    assert pruner.threshold(study, 20) == other.threshold(study, 20)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"quantile": 1.0}, r"`quantile` must be in \(0, 1\)"),
        ({"spared": 0.0}, r"`spared` must be in \(0, 1\]"),
        ({"n_random": 5}, "`n_random` must be at least 10"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        HMNASPruner(masked(), **arguments)


# -- rounds -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data():
    return few_digits(96)


def learning(data, store, **arguments):
    hmnas = HMNAS(SPACE, FRAME, HMNASRecipe(batch_size=16, mask_fraction=0.5))
    return HMNASPruner(hmnas, data=data, budget=4, trials=6, trials_per_round=3, artifact_store=store, **arguments)


def test_masks_learn_in_rounds_that_all_workers_share(data, tmp_path):
    store = folder_store(tmp_path)
    pruner = learning(data, store)
    study = run(pruner, lambda a: len(str(a)), 4)
    total = pruner.hmnas.total_steps
    assert pruner.hmnas.fitted
    steps = [(value["step"], value["done"]) for value in map(snapshot, study.trials) if value]
    assert steps == [(round(0.75 * total), False), (total, True)]  # the supernet and half of the masks come first
    told = [dict(fit_records_of(trial)) for trial in study.trials if fit_records_of(trial)]
    assert [step for one in told for step, _ in one["HMNAS"]] == list(range(1, total + 1))
    assert {"edges", "ops", "weights", "loss", "accuracy"} <= set(told[1]["HMNAS"][-1][1])
    # Another process takes what was published, without a step of its own.
    other = learning(data, store)
    trial = study.ask()
    SPACE.suggest(trial)
    other.prune(study, study._storage.get_trial(trial._trial_id))
    assert other.hmnas.step == total
    for name, tensor in pruner.hmnas._tensors().items():
        assert torch.equal(tensor, other.hmnas._tensors()[name]), name


def snapshot(trial):
    return read_json(trial.system_attrs, "hmnas:snapshot")


def test_a_round_that_was_cut_off_goes_on_from_its_checkpoint(data, tmp_path):
    whole = learning(data, folder_store(tmp_path / "whole"))
    run(whole, lambda a: len(str(a)), 4)
    first, second = (learning(data, folder_store(tmp_path / "cut")) for _ in range(2))
    first.prepare(tmp_path, None, lambda: first.hmnas.step == 5)
    study = optuna.create_study(direction="maximize", pruner=first, sampler=optuna.samplers.RandomSampler(seed=0))
    trial = study.ask()
    SPACE.suggest(trial)
    with pytest.raises(TrainingStopped):
        trial.should_prune()
    study.tell(trial, state=TrialState.FAIL)
    shares = []
    second.prepare(tmp_path, shares.append, None)
    study.pruner = second
    for _ in range(3):
        trial = study.ask()
        SPACE.suggest(trial)
        trial.should_prune()
        trial.should_prune()  # asking twice trains once
        study.tell(trial, 1.0)
    assert 0 < len(shares) < second.hmnas.total_steps  # it did not begin anew
    assert shares[-1] < 1
    for name, tensor in whole.hmnas._tensors().items():
        assert torch.equal(tensor, second.hmnas._tensors()[name]), name


def test_data_and_budget_belong_together(data):
    hmnas = HMNAS(SPACE, FRAME)
    for arguments in ({"data": data}, {"budget": 2}):
        with pytest.raises(ValueError, match="`data` and `budget` must be given together"):
            HMNASPruner(hmnas, **arguments)
    with pytest.raises(ValueError, match="`trials_per_round` must be at least 1"):
        HMNASPruner(hmnas, data=data, budget=2, trials_per_round=0)

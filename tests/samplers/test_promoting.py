"""The best short trials are trained again, longer, and nothing else changes."""

import pickle

import optuna
import pytest
from optuna.pruners import NopPruner, PercentilePruner, ThresholdPruner
from optuna.testing.pytest_samplers import BasicSamplerTestCase
from optuna.trial import TrialState
from pools import pool_of

from optuna_nas import SNASSampler, nasbench201_space
from optuna_nas.pruners.only_where import OnlyWhere
from optuna_nas.samplers import PromotingSampler
from optuna_nas.storage.attributes import PROMOTES
from optuna_nas.storage.by_architecture import enqueue_architecture

SPACE = nasbench201_space()


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def promoting(every=4, **changes):
    return PromotingSampler(SNASSampler(SPACE, seed=0), short=5, long=15, every=every, **changes)


class TestOptunasPromises(BasicSamplerTestCase):
    @pytest.fixture
    def sampler(self):
        return promoting


def objective(trial):
    architecture = SPACE.suggest(trial)
    length = trial.suggest_categorical("epochs", (5, 15))
    value = len(set(architecture.summary)) + trial.suggest_float("rate", 0, 1)
    for step in range(1, length + 1):
        trial.report(value, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return value + length


def test_after_every_few_short_trials_the_best_that_was_not_yet_is_trained_longer():
    study = optuna.create_study(direction="maximize", sampler=promoting())
    study.optimize(objective, n_trials=16)
    short, promoted = [], []
    for trial in study.trials:
        if trial.params["epochs"] == 5:
            assert PROMOTES not in trial.system_attrs
            short.append(trial)
            continue
        best = max((t for t in short if t.number not in promoted), key=lambda t: t.value)
        assert trial.system_attrs[PROMOTES] == best.number
        assert {**best.params, "epochs": 15} == trial.params, "its other parameters, too"
        promoted.append(best.number)
        assert len(short) == 4 * len(promoted)
    assert len(promoted) == 3


def test_a_resumed_study_promotes_nobody_twice():
    straight = optuna.create_study(direction="maximize", sampler=promoting())
    straight.optimize(objective, n_trials=12)
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(study_name="s", storage=storage, direction="maximize", sampler=promoting())
    for n_trials in (5, 4, 3):
        study.optimize(objective, n_trials=n_trials)
        sampler = pickle.loads(pickle.dumps(promoting()))
        study = optuna.load_study(study_name="s", storage=storage, sampler=sampler)
    seen = [t.system_attrs.get(PROMOTES) for t in study.trials]
    assert seen == [t.system_attrs.get(PROMOTES) for t in straight.trials]


def test_trials_at_once_promote_different_ones():
    pruner = NopPruner()  # whom the median prunes depends on when threads run
    study = optuna.create_study(direction="maximize", sampler=promoting(every=2), pruner=pruner)
    study.optimize(objective, n_trials=30, n_jobs=4)
    promoted = [t.system_attrs[PROMOTES] for t in study.trials if PROMOTES in t.system_attrs]
    assert len(promoted) == len(set(promoted)) >= 6


def test_lower_is_better_where_the_study_says_so():
    study = optuna.create_study(direction="minimize", sampler=promoting())
    study.optimize(objective, n_trials=5)
    (promoted,) = [t.system_attrs[PROMOTES] for t in study.trials if PROMOTES in t.system_attrs]
    assert promoted == min(study.trials[:4], key=lambda t: t.value).number


def test_pruned_trials_count_but_are_not_promoted():
    pruner = OnlyWhere(PercentilePruner(40.0, n_startup_trials=1, n_warmup_steps=2), "epochs", 5)
    study = optuna.create_study(direction="maximize", sampler=promoting(), pruner=pruner)
    study.optimize(objective, n_trials=20)
    states = {t.state for t in study.trials}
    assert states == {TrialState.COMPLETE, TrialState.PRUNED}
    promotions = [t for t in study.trials if PROMOTES in t.system_attrs]
    assert all(t.state == TrialState.COMPLETE for t in promotions), "and what is promoted is not pruned"
    assert all(study.trials[t.system_attrs[PROMOTES]].state == TrialState.COMPLETE for t in promotions)
    finished_short = sum("epochs" in t.params and t.params["epochs"] == 5 for t in study.trials)
    assert len(promotions) == pytest.approx(finished_short / 4, abs=1)


def test_a_pruner_for_some_lets_all_others_pass():
    pruner = OnlyWhere(ThresholdPruner(upper=0.0), "epochs", 5)
    study = optuna.create_study(direction="maximize", sampler=promoting(), pruner=pruner)
    study.optimize(objective, n_trials=3)
    assert {t.state for t in study.trials} == {TrialState.PRUNED}
    study.enqueue_trial({"epochs": 15})
    study.optimize(objective, n_trials=1)
    assert study.trials[-1].state == TrialState.COMPLETE


def test_a_pool_is_handed_out_in_its_order_beside(tmp_path):
    def score(architectures):
        return [float(len(set(architecture.summary))) for architecture in architectures]

    pool = pool_of(tmp_path, SPACE, score, pool_size=40, trials_per_round=40)
    study = optuna.create_study(direction="maximize", sampler=PromotingSampler(pool, short=5, long=15, every=4))
    study.optimize(objective, n_trials=12)
    scores = [score([SPACE.decode(t.params)])[0] for t in study.trials if PROMOTES not in t.system_attrs]
    assert scores == sorted(scores, reverse=True)


def test_an_objective_that_asks_for_no_length_is_left_alone():
    study = optuna.create_study(direction="maximize", sampler=promoting())
    study.optimize(lambda trial: len(SPACE.suggest(trial).summary), n_trials=12)
    assert not [t for t in study.trials if PROMOTES in t.system_attrs]


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match="`every` must be at least 2 but got 1"):
        promoting(every=1)


def test_a_trial_that_was_enqueued_at_the_turn_of_a_promotion_promotes_nothing():
    study = optuna.create_study(direction="maximize", sampler=promoting())
    for number in range(10):
        if number == 4:
            enqueue_architecture(study, SPACE.architecture({path: ["none"] for path in SPACE.options()}))
        study.optimize(objective, n_trials=1)
    assert PROMOTES not in study.trials[4].system_attrs
    assert study.trials[4].params["epochs"] == 5
    for trial in study.trials:
        if (promoted := trial.system_attrs.get(PROMOTES)) is not None:
            assert SPACE.decode(trial.params) == SPACE.decode(study.trials[promoted].params)
    assert PROMOTES in study.trials[5].system_attrs


def test_a_note_of_another_trials_promotion_is_not_believed():
    study = optuna.create_study(direction="maximize", sampler=promoting())
    study.optimize(objective, n_trials=3)
    best = max(study.trials, key=lambda trial: trial.value)
    other = next(trial for trial in study.trials if SPACE.decode(trial.params) != SPACE.decode(best.params))
    study.add_trial(
        optuna.trial.create_trial(
            params={**other.params, "epochs": 15},
            distributions=other.distributions,
            value=0.0,
            system_attrs={PROMOTES: best.number},
        )
    )
    study.optimize(objective, n_trials=2)
    assert study.trials[5].system_attrs.get(PROMOTES) == best.number

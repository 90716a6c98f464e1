"""GHNPruner: stops the clear bottom before the first step while it ranks well, and is quiet when it guesses."""

import logging
import pickle
import zlib

import numpy as np
import optuna
import pytest
from optuna import TrialPruned
from optuna.pruners import MedianPruner
from optuna.trial import TrialState
from scipy.stats import kendalltau

from optuna_nas import GHN, CellKind, CellSpace, GHNPruner, GHNRecipe, NetworkSpace, Skeleton, nasbench201_space
from optuna_nas.pruners.base import rank_correlation
from optuna_nas.storage.attributes import FLAGGED, SURROGATE_SCORE

SPACE = nasbench201_space()
TINY = CellSpace(("skip_connect", "nor_conv_3x3"), 2, 1, (CellKind("cell"),))


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def merit(architecture):
    worth = {(): 0.0, ("skip_connect",): 1.0, ("avg_pool_3x3",): 2.0, ("nor_conv_1x1",): 3.0, ("nor_conv_3x3",): 4.0}
    return sum(worth[kept] * 1.3**place for place, (_, kept) in enumerate(architecture.choices))


def noisy(spread, seed=0):
    """A guess that ranks the better the smaller `spread` is; the same for the same architecture."""

    def score(architectures):
        noise = [np.random.default_rng([seed, zlib.crc32(str(a).encode())]).normal() for a in architectures]
        return np.array([merit(a) for a in architectures]) + spread * np.array(noise)

    return score


def useless(architectures):
    return noisy(1e6)(architectures)


def run(pruner, n_trials, direction="maximize", seed=0):
    sampler = optuna.samplers.RandomSampler(seed=seed)
    study = optuna.create_study(direction=direction, pruner=pruner, sampler=sampler)
    sign = 1.0 if direction == "maximize" else -1.0

    def objective(trial):
        architecture = SPACE.suggest(trial)
        if trial.should_prune():
            raise TrialPruned
        return sign * merit(architecture)

    study.optimize(objective, n_trials=n_trials)
    return study


def pruned(study):
    return [t for t in study.trials if t.state == TrialState.PRUNED]


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_clear_bottom_is_stopped_and_the_top_is_not(direction):
    study = run(GHNPruner(score=noisy(4.0), space=SPACE), 1000, direction)
    trials = study.get_trials(deepcopy=False)
    stopped = [t for t in trials if t.state == TrialState.PRUNED]
    assert 200 <= len(stopped) <= 250
    top = sorted(trials, key=lambda trial: merit(SPACE.decode(trial.params)))[-100:]
    assert sum(trial.state == TrialState.PRUNED for trial in top) <= 5
    exempt = [t for t in trials if t.state == TrialState.COMPLETE and FLAGGED in t.user_attrs]
    assert 5 <= len(exempt) <= 60
    assert all("below" in t.user_attrs[FLAGGED] for t in [*stopped, *exempt])
    assert all(t.user_attrs[SURROGATE_SCORE] < study.pruner.threshold(study, t.number) for t in stopped)


def test_random_architectures_are_scored_a_piece_a_trial_and_by_one_process_each():
    asked, score = [], noisy(4.0)

    def counting(architectures):
        asked.append(len(architectures))
        return score(architectures)

    pruner = GHNPruner(score=counting, space=SPACE, n_random=250)
    study = run(pruner, 5)
    assert [number for number in asked if number > 1] == [100, 100, 50]
    thresholds = [pruner.threshold(study, number) for number in range(5)]
    assert len(set(thresholds)) == 3  # each piece moves it
    assert len(set(thresholds[2:])) == 1
    asked.clear()
    later = GHNPruner(score=counting, space=SPACE, n_random=250)  # as in another process
    assert [later.threshold(study, number) for number in (4, 0, 1, 2)] == [thresholds[i] for i in (4, 0, 1, 2)]
    assert not asked
    # What was never published is scored by whoever needs it.
    assert GHNPruner(score=counting, space=SPACE, n_random=250).threshold(optuna.create_study(), 7) == thresholds[4]


def test_scores_that_are_no_numbers_stop_nobody():
    pruner = GHNPruner(score=lambda architectures: np.full(len(architectures), np.nan), space=SPACE)
    assert not pruned(run(pruner, 40))


def test_nobody_is_stopped_before_enough_trials_have_finished():
    study = run(GHNPruner(score=noisy(0.1), space=SPACE, n_startup_trials=30), 100)
    finished = 0
    for trial in study.trials:
        if trial.state == TrialState.PRUNED:
            assert finished >= 30
        finished += trial.state == TrialState.COMPLETE


@pytest.mark.parametrize("seed", range(5))
def test_a_useless_score_falls_silent_and_says_so_once(seed, caplog):
    with caplog.at_level(logging.WARNING):
        study = run(GHNPruner(score=noisy(1e6, seed), space=SPACE), 200, seed=seed)
    finished = np.cumsum([t.state == TrialState.COMPLETE for t in study.trials])
    late = [t for t in pruned(study) if finished[t.number] >= 40]
    assert len(late) <= 5
    assert caplog.text.count("lets all trials pass") == 1


def test_a_score_that_turns_the_ranks_around_is_silent_too():
    study = run(GHNPruner(score=lambda architectures: -noisy(0.1)(architectures), space=SPACE), 100)
    assert not pruned(study)


def test_what_passes_goes_to_the_wrapped_pruner():
    wrapped = MedianPruner(n_startup_trials=3, n_warmup_steps=0)
    study = optuna.create_study(
        direction="maximize",
        pruner=GHNPruner(score=useless, space=SPACE, pruner=wrapped),
        sampler=optuna.samplers.RandomSampler(seed=0),
    )

    def objective(trial):
        value = merit(SPACE.suggest(trial))
        assert not trial.should_prune()
        trial.report(value, 1)
        if trial.should_prune():
            raise TrialPruned
        return value

    study.optimize(objective, n_trials=30)
    assert len(pruned(study)) > 5


def test_an_enqueued_trial_of_ones_own_parameters_is_left_alone():
    study = optuna.create_study(direction="maximize", pruner=GHNPruner(score=useless, space=SPACE))

    def objective(trial):
        assert not trial.should_prune()
        return trial.suggest_float("x", 0, 1)

    study.optimize(objective, n_trials=3)


def test_a_pickled_pruner_goes_on_alike():
    pruner = GHNPruner(score=noisy(1.0), space=SPACE)
    study = run(pruner, 100)
    study.pruner = pickle.loads(pickle.dumps(GHNPruner(score=len, space=SPACE)))
    study.pruner.__dict__.update(_scorer=pruner._scorer)
    trial = study.ask()
    SPACE.suggest(trial)
    again = study.pruner.prune(study, study._storage.get_trial(trial._trial_id))
    assert again == pruner.prune(study, study._storage.get_trial(trial._trial_id))
    assert study.pruner.correlation(study) == pruner.correlation(study)


def test_the_bound_holds_as_often_as_it_says():
    random = np.random.default_rng(0)
    misses = []
    for _ in range(400):
        one = random.normal(size=40)
        other = 0.6 * one + 0.8 * random.normal(size=40)
        found = rank_correlation(one.tolist(), other.tolist())
        assert found.tau == pytest.approx(kendalltau(one, other).statistic)
        misses.append(found.lower > 2 / np.pi * np.arcsin(0.6))  # tau of a normal pair
    assert np.mean(misses) == pytest.approx(0.01, abs=0.015)


def test_pairs_that_tell_nothing():
    assert rank_correlation([1.0] * 10, list(map(float, range(10)))).lower == -1
    assert rank_correlation([1.0, 2.0], [1.0, 2.0]).lower == -1


def test_a_ghn_brings_its_space():
    ghn = GHN(NetworkSpace(TINY, Skeleton(("cell",), 4, (1, 8, 8), 10)), GHNRecipe(phases=1))
    assert GHNPruner(ghn).space.core == TINY


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"quantile": 0.0}, r"`quantile` must be in \(0, 1\)"),
        ({"quantile": 1.0}, r"`quantile` must be in \(0, 1\)"),
        ({"exempt": 0.0}, r"`exempt` must be in \(0, 1\]"),
        ({"n_startup_trials": 2}, "`n_startup_trials` must be at least 5"),
        ({"n_random": 3}, "`n_random` must be at least 10"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        GHNPruner(score=useless, space=SPACE, **arguments)


def test_a_function_needs_a_space():
    with pytest.raises(ValueError, match="`space` must be given"):
        GHNPruner(score=useless)


def test_scores_of_other_parameters_are_not_those_of_a_trial():
    def score(architectures):
        return np.array([float(str(architecture).count("conv")) for architecture in architectures])

    def objective(trial):
        architecture = SPACE.suggest(trial)
        trial.should_prune()
        return score([architecture])[0]

    study = optuna.create_study(direction="maximize", pruner=GHNPruner(space=SPACE, score=score))
    study.optimize(objective, n_trials=12)
    pruner = GHNPruner(space=SPACE, score=score)
    copy, random = optuna.create_study(direction="maximize", pruner=pruner), np.random.default_rng(0)
    for trial in study.trials:
        other = SPACE.sample(random)
        added = optuna.trial.create_trial(
            params=SPACE.encode(other),
            distributions=SPACE.distributions(),
            value=score([other])[0],
            user_attrs=trial.user_attrs,
        )
        copy.add_trial(added)
    assert pruner.correlation(copy).tau == pytest.approx(1.0)

"""GHNSampler: Optuna's own suites, the best first, each once, whoever asks and however late."""

import logging
import multiprocessing
import pickle
from collections import Counter
from itertools import pairwise

import numpy as np
import optuna
import pytest
from optuna.samplers import RandomSampler, TPESampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)
from optuna.trial import TrialState, create_trial
from pools import pool_of
from strategies import TINY_BLOCK, few_digits, placed

import optuna_nas.samplers.ghn as module
from optuna_nas import (
    GHN,
    CellKind,
    CellSpace,
    GHNPruner,
    GHNRecipe,
    GHNSampler,
    NetworkSpace,
    Search,
    Skeleton,
    nasbench201_space,
)
from optuna_nas.samplers.fronts import non_dominated_ranks
from optuna_nas.samplers.ghn import POOL
from optuna_nas.search.config import part_settings
from optuna_nas.storage.artifacts import folder_store
from optuna_nas.storage.attributes import SURROGATE_SCORE, fit_records_of, read_json, snapshot_key
from optuna_nas.training import TrainingStopped

SPACE = CellSpace(("none", "skip_connect", "nor_conv_3x3", "avg_pool_3x3"), 2, 1, (CellKind("cell"),))
LARGE = nasbench201_space()
FRAME = Skeleton(("cell",), 4, (1, 8, 8), 10)
SNAPSHOT = snapshot_key("GHN")


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture(scope="module")
def data():
    return few_digits(64)


def merit(architecture):
    """A guess, and what a trial comes to: no two cells are alike."""
    worth = {(): 0.0, ("skip_connect",): 1.0, ("avg_pool_3x3",): 2.0, ("nor_conv_1x1",): 3.0, ("nor_conv_3x3",): 4.0}
    return sum(worth[kept] * 1.3**place for place, (_, kept) in enumerate(architecture.choices))


def score(architectures):
    return np.array([merit(architecture) for architecture in architectures])


def sampler_of(folder, space=LARGE, **arguments):
    return pool_of(folder, space, score, **{"pool_size": 200, "trials_per_round": 10, **arguments})


def digests(study, space=LARGE):
    return [space.decode(t.params).canonical().digest for t in study.get_trials(deepcopy=False)]


class Suite(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    """Optuna's promises."""


class TestScore(Suite):
    @pytest.fixture
    def sampler(self, tmp_path):
        return lambda: sampler_of(tmp_path, SPACE, pool_size=20)


class TestTraining(Suite):
    @pytest.fixture
    def sampler(self, data, tmp_path):
        ghn = GHN(NetworkSpace(SPACE, FRAME), GHNRecipe(phases=1))
        store = folder_store(tmp_path)
        arguments = {"pool_size": 10, "trials_per_round": 10, "seed": 0, "artifact_store": store}
        return lambda: GHNSampler(SPACE, ghn, data=data, budget=1, **arguments)


# -- the best first, each once ------------------------------------------------------------------------------------


def test_the_best_of_the_pool_come_first_and_their_scores_are_on_the_trials(tmp_path):
    study = optuna.create_study(direction="maximize", sampler=sampler_of(tmp_path))
    study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=10)
    values = [trial.value for trial in study.trials]
    assert values == sorted(values, reverse=True)
    assert values == [trial.user_attrs[SURROGATE_SCORE] for trial in study.trials]
    random = np.random.default_rng(0)
    assert values[0] > np.quantile([merit(LARGE.sample(random)) for _ in range(1000)], 0.98)


def test_no_function_is_proposed_twice_over_many_rounds(tmp_path):
    study = optuna.create_study(direction="maximize", sampler=sampler_of(tmp_path, exploration=0.3))
    study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=45)
    found = digests(study)
    assert len(set(found)) == len(found)
    openers = [t.number for t in study.trials if SNAPSHOT in t.system_attrs]
    assert openers == [0, 10, 20, 30, 40]


def test_exploration_hands_out_others_than_the_best(tmp_path):
    study = optuna.create_study(
        direction="maximize", sampler=sampler_of(tmp_path, exploration=0.5, trials_per_round=40)
    )
    study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=40)
    values = [trial.value for trial in study.trials]
    falling = sum(later <= earlier for earlier, later in pairwise(values))
    assert 15 < falling < 39


def worker(storage, folder, n_trials):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.load_study(study_name="s", storage=storage, sampler=sampler_of(folder))
    study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=n_trials)


@pytest.mark.process
def test_two_processes_never_repeat_a_candidate(tmp_path):
    storage = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(study_name="s", storage=storage, direction="maximize")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=worker, args=(storage, tmp_path / "artifacts", 100)) for _ in range(2)]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
        assert process.exitcode == 0
    trials = study.get_trials(states=[TrialState.COMPLETE])
    assert len(trials) == 200
    found = digests(study)
    assert len(set(found)) == 200


def test_who_comes_before_the_pool_does_not_wait_and_takes_what_nobody_else_gets(tmp_path):
    study = optuna.create_study(direction="maximize", sampler=sampler_of(tmp_path))
    opener = study.ask()
    early = [study.ask() for _ in range(5)]
    for trial in early:  # the opener has not drawn a pool yet
        LARGE.suggest(trial)
    LARGE.suggest(opener)
    for trial in (opener, *early):
        study.tell(trial, 0.0)
    study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=14)
    found = digests(study)
    assert len(set(found)) == len(found) == 20


def test_few_architectures_are_kept_out_of_pools(tmp_path):
    sampler = sampler_of(tmp_path, pool_size=1000, trials_per_round=1000)
    study = optuna.create_study(sampler=sampler)
    assert len(sampler._reserved(study)) == module.RESERVED


@pytest.mark.parametrize("seed", range(5))
def test_what_draws_find_most_often_is_in_the_pool(tmp_path, seed):
    random = np.random.default_rng(0)
    drawn = Counter(cell.canonical().digest for cell in (LARGE.sample(random) for _ in range(2000)) if cell.connected)
    often = {digest for digest, _ in drawn.most_common(4)}  # one op from input to output
    sampler = sampler_of(tmp_path, pool_size=300, seed=seed)
    study = optuna.create_study(sampler=sampler)
    LARGE.suggest(study.ask())
    assert often <= {cell.canonical().digest for cell, _ in sampler.scored(study)}


def test_a_worker_that_sees_only_an_old_pool_repeats_nobody(tmp_path):
    study = optuna.create_study(direction="maximize", sampler=sampler_of(tmp_path))
    study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=10)
    opener, late = study.ask(), study.ask()
    LARGE.suggest(late)  # trial 11, from the pool of trial 0
    LARGE.suggest(opener)
    for trial in (opener, late):
        study.tell(trial, 0.0)
    study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=18)
    found = digests(study)
    assert len(set(found)) == len(found) == 30


def test_what_was_tried_before_is_not_proposed(tmp_path):
    study = optuna.create_study(direction="maximize")
    random = np.random.default_rng(0)
    pool = sorted((LARGE.sample(random) for _ in range(3000)), key=merit)[-100:]
    for architecture in pool:
        params = LARGE.encode(architecture)
        study.add_trial(create_trial(params=params, distributions=LARGE.distributions(), value=0.0))
    study.sampler = sampler_of(tmp_path)
    study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=10)
    found = digests(study)
    assert not set(found[100:]) & set(found[:100])


def test_a_pool_looks_at_each_trial_once_in_all(tmp_path, monkeypatch):
    looked, digest_of = [], module.digest_of_trial
    monkeypatch.setattr(
        module, "digest_of_trial", lambda space, trial: looked.append(trial.number) or digest_of(space, trial)
    )
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    study.optimize(lambda trial: merit(LARGE.suggest(trial)), 30)
    study.sampler = sampler_of(tmp_path)
    study.optimize(lambda trial: merit(LARGE.suggest(trial)), 35)
    assert sorted(looked) == list(range(60))  # though four pools were made: at trials 30, 40, 50 and 60


def test_seeds_and_pickling_change_nothing(tmp_path):
    found = []
    for name, pickled in (("one", False), ("two", True)):
        sampler = sampler_of(tmp_path / name)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=7)
        if pickled:
            study.sampler = pickle.loads(pickle.dumps(sampler))
        study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=7)
        found.append([t.params for t in study.trials])
    assert found[0] == found[1]


def test_a_small_space_runs_out_and_goes_on_at_random(tmp_path):
    study = optuna.create_study(direction="maximize", sampler=sampler_of(tmp_path, SPACE, pool_size=20))
    study.optimize(lambda trial: merit(SPACE.suggest(trial)), n_trials=40)
    assert all(trial.state == TrialState.COMPLETE for trial in study.trials)


def test_a_pool_may_be_drawn_by_another_sampler(tmp_path):
    class Convolutions(RandomSampler):
        def sample_independent(self, study, trial, name, distribution):
            if name == "cell_0_1":
                return "nor_conv_1x1"
            return super().sample_independent(study, trial, name, distribution)

    for candidates in (Convolutions(), TPESampler()):
        study = optuna.create_study(
            direction="maximize",
            sampler=sampler_of(tmp_path / type(candidates).__name__, pool_size=30, candidates=candidates),
        )
        study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=12)
        assert len(set(digests(study))) == 12
        if isinstance(candidates, Convolutions):
            assert {t.params["cell_0_1"] for t in study.trials} == {"nor_conv_1x1"}


def test_a_prefilter_leaves_its_best_to_the_score(tmp_path):
    """Only what a cheap score puts on top is scored by the dear one, and it decides their order."""
    cheap, dear = [], []

    def prefilter(architectures):
        cheap.extend(architectures)
        return -score(architectures)

    def counted(architectures):
        dear.extend(architectures)
        return score(architectures)

    sampler = GHNSampler(
        LARGE, score=counted, prefilter=prefilter, prefilter_size=100, pool_size=10, trials_per_round=10,
        exploration=0.0, artifact_store=folder_store(tmp_path), seed=0,
    )  # fmt: skip
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=10)
    assert len(cheap) == 100
    assert set(dear) == set(sorted(cheap, key=merit)[:10])
    values = [trial.value for trial in study.trials]
    assert values == sorted(values, reverse=True)
    assert max(values) == pytest.approx(sorted(map(merit, cheap))[9])
    with pytest.raises(ValueError, match="`prefilter_size` must be at least `pool_size`, which are kept"):
        GHNSampler(LARGE, score=score, prefilter=prefilter, prefilter_size=5, pool_size=10, trials_per_round=10)


def test_a_pool_ends_when_its_seconds_are_over_and_trials_go_on_at_random(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def slow(architectures):
        now[0] += 1.0
        return score(architectures)

    arguments = {"pool_size": 200, "trials_per_round": 100, "pool_seconds": 2, "seed": 0}
    sampler = GHNSampler(LARGE, score=slow, artifact_store=folder_store(tmp_path), exploration=0.0, **arguments)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=80)
    scored = [SURROGATE_SCORE in trial.user_attrs for trial in study.trials]
    assert scored == [True] * 2 * module.SCORED_AT_ONCE + [False] * (80 - 2 * module.SCORED_AT_ONCE)
    assert len(set(digests(study)[: sum(scored)])) == sum(scored)


def test_a_prefilter_and_the_score_share_the_seconds_of_a_pool(tmp_path, monkeypatch):
    now, told = [0.0], []
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def slow(architectures):
        now[0] += 1.0
        return score(architectures)

    sampler = pool_of(
        tmp_path, LARGE, slow, prefilter=slow, prefilter_size=320, pool_size=160, trials_per_round=10, pool_seconds=6
    )
    sampler.in_study_fit.report = lambda done, what: told.append(done)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=1)
    assert now == [6.0]
    assert len(sampler.scored(study)) == 3 * module.SCORED_AT_ONCE
    assert told[-6:] == sorted(told[-6:]), "progress goes forward"
    with pytest.raises(ValueError, match="`prefilter` must return 32 numbers but returned shape"):
        sampler._in_time(
            lambda architectures: np.zeros(3), [LARGE.sample(np.random.default_rng(0))] * 32, "prefilter", 0
        )


def test_a_prefilter_keeps_those_within_the_bounds_first(tmp_path):
    def larger(architectures):
        return np.array([SMALL_FRAME.cost(architecture).params for architecture in architectures], dtype=float)

    def pool(bound):
        sampler = sampler_of(
            tmp_path / str(bound), SMALL_FRAME, prefilter=larger, prefilter_size=100, pool_size=10,
            trials_per_round=5, constraints={"params": bound},
        )  # fmt: skip
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=1)
        return larger([architecture for architecture, _ in sampler.scored(study)])

    random = np.random.default_rng(0)
    params = sorted(larger([SMALL_FRAME.sample(random) for _ in range(300)]))
    assert (pool(params[-1]) > params[150]).all(), "without a bound that matters the largest are kept"
    kept = pool(params[3])  # which few of a hundred draws keep
    assert (kept <= params[3]).any()


def test_a_sampler_for_one_pool_scores_all_that_it_draws(tmp_path):
    sampler = sampler_of(tmp_path, prefilter=score, prefilter_size=40, pool_size=10, trials_per_round=5)
    for size, wanted in ((None, 40), (20, 20)):
        alone = sampler.for_one_pool(score, size)
        study = optuna.create_study(direction="maximize", sampler=alone)
        study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=1)
        assert len(alone.scored(study)) == wanted


def test_blocks_are_searched_too(tmp_path):
    def width(architectures):
        return np.array([sum("sep_conv_3x3" in kept for _, kept in a.choices) for a in architectures], dtype=float)

    sampler = GHNSampler(
        TINY_BLOCK,
        score=width,
        pool_size=50,
        trials_per_round=10,
        exploration=0.0,
        seed=0,
        artifact_store=folder_store(tmp_path),
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(lambda trial: float(width([TINY_BLOCK.suggest(trial)])[0]), n_trials=5)
    assert study.trials[0].value >= 3


def test_two_workers_of_different_seeds_repeat_nobody_before_the_pool_is_there(tmp_path):
    study = optuna.create_study(direction="maximize", sampler=sampler_of(tmp_path, seed=None, trials_per_round=30))
    opener = study.ask()
    study.sampler = sampler_of(tmp_path, seed=None, trials_per_round=30)
    early = [study.ask() for _ in range(20)]
    for trial in early:
        LARGE.suggest(trial)
    study.sampler = sampler_of(tmp_path, seed=None, trials_per_round=30)
    LARGE.suggest(opener)
    for trial in (opener, *early):
        study.tell(trial, 0.0)
    study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=9)
    assert len(set(digests(study))) == 30


def test_a_round_whose_first_trials_came_from_elsewhere_is_opened(tmp_path):
    study = optuna.create_study(direction="maximize")
    study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=3)
    study.sampler = sampler_of(tmp_path)
    study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=4)
    assert [t.number for t in study.trials if SNAPSHOT in t.system_attrs] == [3]
    assert all(SURROGATE_SCORE in t.user_attrs for t in study.trials[3:])


def test_a_retried_trial_does_not_pass_for_the_opener_that_it_was(tmp_path):
    study = optuna.create_study(direction="maximize", sampler=sampler_of(tmp_path))
    study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=10)
    dead = study.trials[0]
    study.add_trial(
        create_trial(
            value=0.0, params=dead.params, distributions=dead.distributions, system_attrs=dict(dead.system_attrs)
        )
    )
    study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=9)
    assert len(set(digests(study))) == 19  # the retried one repeats the dead one


def test_what_finished_without_a_network_or_a_number_stops_no_round(data, tmp_path):
    ghn = GHN(NetworkSpace(LARGE, FRAME), GHNRecipe(phases=1))
    ghn.attach(data)
    store = folder_store(tmp_path)
    sampler = GHNSampler(LARGE, ghn, pool_size=60, trials_per_round=30, seed=0, artifact_store=store)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial(dict.fromkeys(LARGE.paths, "none"))
    study.optimize(lambda trial: np.inf if trial.number == 3 else merit(LARGE.suggest(trial)), n_trials=31)
    assert all(trial.state == TrialState.COMPLETE for trial in study.trials)


def test_a_small_space_is_ranked_too(tmp_path):
    study = optuna.create_study(
        direction="maximize", sampler=sampler_of(tmp_path, SPACE, pool_size=100, trials_per_round=100)
    )
    study.optimize(lambda trial: merit(SPACE.suggest(trial)), n_trials=5)
    assert study.trials[0].value == max(merit(SPACE.decode(t.params)) for t in study.trials)
    assert all(SURROGATE_SCORE in t.user_attrs for t in study.trials)


def test_a_fixed_trial_may_be_judged_by_the_ghn_in_a_fresh_process(data, tmp_path):
    storage = f"sqlite:///{tmp_path}/study.db"
    first = training_sampler(data, tmp_path)
    study = optuna.create_study(study_name="s", storage=storage, sampler=first)
    study.optimize(lambda trial: merit(SPACE.suggest(trial)), n_trials=1)
    second = training_sampler(data, tmp_path)
    study = optuna.load_study(study_name="s", storage=storage, sampler=second, pruner=GHNPruner(second.model))
    study.enqueue_trial(dict.fromkeys(SPACE.paths, "skip_connect"))

    def objective(trial):
        architecture = SPACE.suggest(trial)
        trial.should_prune()
        return float(second.model.score([architecture])[0])

    study.optimize(objective, n_trials=1)
    assert second.model.step == first.model.step


def test_a_trial_with_parameters_of_its_own_has_no_score_of_another(tmp_path):
    study = optuna.create_study(direction="maximize", sampler=sampler_of(tmp_path))
    study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=1)
    first = study.trials[0].params[LARGE.paths[0]]
    other = "avg_pool_3x3" if first != "avg_pool_3x3" else "skip_connect"
    study.enqueue_trial({LARGE.paths[0]: other})
    study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=1)
    found = study.trials[1]
    assert found.params[LARGE.paths[0]] == other
    assert found.user_attrs.get(SURROGATE_SCORE, found.value) == found.value


# -- scores -------------------------------------------------------------------------------------------------------


def test_with_several_objectives_the_front_comes_first(tmp_path):
    frame = Skeleton(("cell",), 4, (1, 8, 8), 10)
    sampler = sampler_of(tmp_path, NetworkSpace(LARGE, frame), costs=["params"], pool_size=100)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)

    def objective(trial):
        architecture = LARGE.suggest(trial)
        return merit(architecture), placed(architecture, frame).cost().params

    study.optimize(objective, n_trials=5)
    points = np.array([trial.values for trial in study.trials]) * [1, -1]
    assert (non_dominated_ranks(points) == 0).all()


SMALL_FRAME = NetworkSpace(LARGE, FRAME)


def proposed_under(folder, bounds, n_trials=20, **arguments):
    """Return the parameters of a network's trials, in order, and their scores."""
    sampler = sampler_of(folder, SMALL_FRAME, constraints=bounds, trials_per_round=n_trials, **arguments)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=n_trials)
    cells = [SMALL_FRAME.decode(trial.params) for trial in study.trials]
    return [cell.cost().params for cell in cells], study


@pytest.mark.parametrize("exploration", [0.0, 0.5])
def test_candidates_within_the_bounds_come_first_the_best_at_the_top(tmp_path, exploration):
    free, _ = proposed_under(tmp_path / "free", None)
    bound = np.quantile([SMALL_FRAME.sample(np.random.default_rng(n)).cost().params for n in range(100)], 0.25)
    params, study = proposed_under(tmp_path / "bound", {"params": bound}, exploration=exploration)
    assert min(free) > bound >= max(params)
    if not exploration:
        values = [trial.value for trial in study.trials]
        assert values == sorted(values, reverse=True)


def test_random_architectures_before_the_pool_and_after_it_keep_the_bounds_too(tmp_path):
    bound = np.quantile([SMALL_FRAME.sample(np.random.default_rng(n)).cost().params for n in range(100)], 0.25)
    sampler = sampler_of(tmp_path, SMALL_FRAME, constraints={"params": bound})
    study = optuna.create_study(direction="maximize", sampler=sampler)
    asked = [study.ask(LARGE.distributions()) for _ in range(3)]  # the pool is not published yet
    study.tell(asked[0], 0.0)
    for trial in asked[1:]:
        assert SMALL_FRAME.decode(trial.params).cost().params <= bound


def test_where_nothing_keeps_the_bounds_the_nearest_come_first(tmp_path):
    params, _ = proposed_under(tmp_path, {"params": 1.0, Convolutions(): 6})
    assert params == sorted(params)


class Convolutions:
    """A predicted cost that no architecture of the space has more than six of."""

    name, space = "convolutions", LARGE

    def of(self, architecture):
        return float(architecture.summary.count("conv"))


def test_a_predicted_cost_is_a_bound_as_well(tmp_path):
    _, study = proposed_under(tmp_path, {Convolutions(): 2})
    assert (
        max(LARGE.decode(trial.params).summary.count("conv") for trial in study.trials) == 2
    )  # more of them is better


class Unknown(Convolutions):
    """A predicted cost that does not know architectures with a convolution."""

    def of(self, architecture):
        return super().of(architecture) or float("nan")


def test_what_a_cost_does_not_know_comes_last(tmp_path):
    _, study = proposed_under(tmp_path, {Unknown(): 3}, n_trials=60)
    known = [LARGE.decode(trial.params).summary.count("conv") > 0 for trial in study.trials]
    assert known == sorted(known, reverse=True)


def test_bounds_and_costs_are_noted_settings(tmp_path):
    sampler = sampler_of(tmp_path, SMALL_FRAME, constraints={"params": 142, Convolutions(): 2}, costs=["params"])
    noted = part_settings(Search("s", SMALL_FRAME, objective=merit, sampler=sampler))
    assert noted["sampler.costs"] == '["params"]'
    assert noted["sampler.constraints"] == '{"params": 142.0, "convolutions": 2.0}'


def test_draws_within_narrow_bounds_end_with_their_seconds(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def slow(self, architecture):
        now[0] += 1.0
        return 1.0

    monkeypatch.setattr(module.KnownCosts, "excess", slow)
    sampler = sampler_of(tmp_path, SMALL_FRAME, constraints={"params": 1}, pool_size=300, pool_seconds=80.0)
    sampler._reserve = ("s", [])
    study = optuna.create_study(study_name="s", direction="maximize", sampler=sampler)
    study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=1)
    assert 1 <= len(sampler.scored(study)) <= 3


def test_a_sampler_for_one_pool_keeps_the_bounds(tmp_path):
    sampler = sampler_of(tmp_path, SMALL_FRAME, constraints={"params": 142}).for_one_pool(score)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=1)
    assert SMALL_FRAME.decode(study.trials[0].params).cost().params <= 142


def test_a_score_that_is_no_number_counts_as_the_worst(tmp_path, caplog):
    def broken(architectures):
        return np.where(np.arange(len(architectures)) % 2, np.nan, score(architectures))

    sampler = GHNSampler(
        LARGE, score=broken, pool_size=100, trials_per_round=10, seed=0, artifact_store=folder_store(tmp_path)
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    with caplog.at_level(logging.WARNING):
        study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=3)
    assert "50 of 100 scores are not finite" in caplog.text
    assert all(np.isfinite(trial.user_attrs[SURROGATE_SCORE]) for trial in study.trials)


def test_finished_trials_take_over_from_a_ghn_that_ranks_worse(data, tmp_path, caplog):
    ghn = GHN(NetworkSpace(LARGE, FRAME), GHNRecipe(phases=1))
    ghn.attach(data)  # not trained: its score says nothing
    store = folder_store(tmp_path)
    study = optuna.create_study(direction="maximize", sampler=RandomSampler(seed=0))
    study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=40)
    sampler = GHNSampler(LARGE, ghn, pool_size=60, trials_per_round=40, exploration=0.0, seed=0, artifact_store=store)
    study.sampler = sampler
    with caplog.at_level(logging.INFO, logger="optuna_nas"):
        study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=1)
    assert "finished trials" in caplog.text
    pool = sampler.in_study_fit.newest(study, 40).loaded
    values = [merit(LARGE.decode(sampler._params(chosen))) for chosen in pool.chosen]
    assert np.corrcoef(values, -np.arange(60))[0, 1] > 0.3
    assert (pool.scores <= 1).all()  # still the GHN's accuracies, whatever they are ordered by


# -- the GHN of the study -----------------------------------------------------------------------------------------


def training_sampler(data, folder, **arguments):
    ghn = GHN(NetworkSpace(SPACE, FRAME), GHNRecipe(phases=1))
    arguments = {"pool_size": 10, "trials_per_round": 10, "seed": 0, **arguments}
    return GHNSampler(SPACE, ghn, data=data, budget=2, artifact_store=folder_store(folder), **arguments)


def test_another_process_takes_the_trained_ghn_and_its_pool(data, tmp_path):
    storage = f"sqlite:///{tmp_path}/study.db"
    first = training_sampler(data, tmp_path / "artifacts")
    study = optuna.create_study(study_name="s", storage=storage, direction="maximize", sampler=first)
    study.optimize(lambda trial: merit(SPACE.suggest(trial)), n_trials=2)
    second = pickle.loads(pickle.dumps(training_sampler(data, tmp_path / "artifacts")))
    other = optuna.load_study(study_name="s", storage=storage, sampler=second)
    other.optimize(lambda trial: merit(SPACE.suggest(trial)), n_trials=2)
    assert second.model.step == first.model.step == first.model.total_steps
    architecture = SPACE.decode(other.trials[2].params)
    assert first.model.score([architecture]) == second.model.score([architecture])


def test_another_process_makes_the_next_pool_with_the_trained_ghn(data, tmp_path):
    study = optuna.create_study(direction="maximize")
    for _ in range(2):
        study.sampler = training_sampler(data, tmp_path, trials_per_round=2)
        study.optimize(lambda trial: merit(SPACE.suggest(trial)), n_trials=2)
    assert read_json(study.trials[2].system_attrs, snapshot_key("ghn"))["trial"] == 2
    assert fit_records_of(study.trials[2]) == {}, "and trains it no more"


def test_how_a_ghn_learned_is_told_whole_although_its_fit_was_interrupted(data, tmp_path):
    ghn = GHN(NetworkSpace(SPACE, FRAME), GHNRecipe(phases=1, batch_size=16))
    sampler = GHNSampler(
        SPACE, ghn, data=data, budget=3, pool_size=10, trials_per_round=10, artifact_store=folder_store(tmp_path)
    )
    study = optuna.create_study(sampler=sampler)
    sampler.prepare(tmp_path, None, lambda: ghn.step == 5)
    with pytest.raises(TrainingStopped):
        SPACE.suggest(study.ask())
    study.tell(0, state=TrialState.FAIL)
    sampler.prepare(tmp_path, None, None)
    for _ in range(2):
        SPACE.suggest(study.ask())
    ((model, records),) = fit_records_of(study.trials[1]).items()
    assert model == "GHN"
    assert [step for step, _ in records] == list(range(1, ghn.total_steps + 1))
    assert fit_records_of(study.trials[2]) == {}


def test_a_damaged_pool_is_not_used(data, tmp_path, caplog):
    study = optuna.create_study(direction="maximize", sampler=sampler_of(tmp_path))
    study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=12)
    newest = read_json(study.trials[10].system_attrs, SNAPSHOT)["files"]
    assert newest.keys() == {POOL}
    path = tmp_path / newest[POOL]["artifact"]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    study.sampler = sampler_of(tmp_path)
    with caplog.at_level(logging.WARNING):
        study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=3)
    assert "The GHN snapshot of trial 10 cannot be verified" in caplog.text
    assert len(set(digests(study))) == 15


def test_a_pool_that_cannot_be_read_now_is_tried_again(tmp_path, caplog):
    study = optuna.create_study(direction="maximize", sampler=sampler_of(tmp_path))
    study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=1)
    artifact = tmp_path / read_json(study.trials[0].system_attrs, SNAPSHOT)["files"][POOL]["artifact"]
    content = artifact.read_bytes()
    artifact.unlink()
    study.sampler = sampler_of(tmp_path)
    with caplog.at_level(logging.WARNING):
        study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=2)
    assert caplog.text.count("can't be read") == 1
    artifact.write_bytes(content)
    study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=2)
    assert [SURROGATE_SCORE in trial.user_attrs for trial in study.trials] == [True, False, False, True, True]


def test_what_was_published_is_a_pool_and_a_model(data, tmp_path):
    study = optuna.create_study(direction="maximize", sampler=training_sampler(data, tmp_path))
    study.optimize(lambda trial: merit(SPACE.suggest(trial)), n_trials=1)
    assert read_json(study.trials[0].system_attrs, SNAPSHOT)["files"].keys() == {POOL, "ghn.safetensors"}


# -- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"pool_size": 0}, "`pool_size` must be at least 1"),
        ({"trials_per_round": 0}, "`trials_per_round` must be at least 1"),
        ({"pool_size": 5, "trials_per_round": 6}, "`pool_size` must be at least `trials_per_round`"),
        ({"pool_seconds": 0}, "`pool_seconds` must be larger than 0 but got 0"),
        ({"budget_seconds": 0}, "`budget_seconds` must be larger than 0 but got 0"),
        ({"exploration": 1.5}, r"`exploration` must be in \[0, 1\]"),
        ({"costs": ["seconds"]}, "`costs` must be among"),
        ({"costs": ["params"]}, "`space` must be a `ModelSpace`"),
        ({"constraints": {"seconds": 1}}, "`constraints` must be among"),
        ({"constraints": {"params": 1}}, "`space` must be a `ModelSpace`.*to count `constraints`"),
        ({"constraints": {Convolutions(): "few"}}, "`constraints\\['convolutions'\\]` must be a number but is 'few'"),
        ({"budget": 3}, "`data` and `budget` must be given together"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        GHNSampler(LARGE, score=score, **arguments)


def test_a_ghn_of_another_space_and_a_score_of_another_shape_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`model` must have the sampler's space"):
        GHNSampler(LARGE, GHN(NetworkSpace(SPACE, FRAME), GHNRecipe(phases=1)))
    store = folder_store(tmp_path)
    sampler = GHNSampler(
        LARGE, score=lambda architectures: np.zeros(3), pool_size=10, trials_per_round=5, seed=0, artifact_store=store
    )
    study = optuna.create_study(sampler=sampler)
    with pytest.raises(ValueError, match="`score` must return 10 numbers"):
        study.optimize(lambda trial: merit(LARGE.suggest(trial)), n_trials=1)

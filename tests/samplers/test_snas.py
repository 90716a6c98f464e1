"""SNASSampler: Optuna's own suites, equal numbers everywhere, rounds of training that survive what happens to them."""

import json
import logging
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.distributions import CategoricalDistribution
from optuna.pruners import HyperbandPruner
from optuna.samplers import PartialFixedSampler, RandomSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)
from optuna.trial import TrialState, create_trial
from strategies import few_digits

from optuna_nas import (
    SNAS,
    CellKind,
    CellSpace,
    NetworkSpace,
    Skeleton,
    SNASRecipe,
    SNASSampler,
    distribution_records,
    ghn_space,
    nasbench201_space,
)
from optuna_nas.samplers.snas import records_of
from optuna_nas.storage.artifacts import folder_store
from optuna_nas.storage.attributes import read_json, snapshot_key
from optuna_nas.storage.identity import study_uid
from optuna_nas.training import TrainingStopped

SNAPSHOT = snapshot_key("SNAS")
SPACE = CellSpace(("none", "skip_connect", "nor_conv_3x3", "avg_pool_3x3"), 2, 1, (CellKind("cell"),))
FRAME = Skeleton(("cell",), 4, (1, 8, 8), 10, affine=False)
RECIPE = SNASRecipe(batch_size=16, learning_rate=0.1, relaxation="one_path")


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture(scope="module")
def data():
    return few_digits(64)


def snas_with_logits(seed=0):
    snas = SNAS(NetworkSpace(SPACE, FRAME), RECIPE)
    snas.logits_EO.data.copy_(snas.logits_EO.data.new_tensor(np.random.default_rng(seed).normal(size=(3, 4))))
    return snas


def training_sampler(data, folder, snas=None, **arguments):
    arguments = {"budget": 4, "n_trials": 12, "trials_per_round": 4, "seed": 0, **arguments}
    store = folder_store(folder)
    return SNASSampler(
        SPACE, snas or SNAS(NetworkSpace(SPACE, FRAME), RECIPE), data=data, artifact_store=store, **arguments
    )


def n_convolutions(trial):
    architecture = SPACE.suggest(trial)
    return float(sum("nor_conv_3x3" in kept for _, kept in architecture.choices))


# -- Optuna's suites, in every mode -------------------------------------------------------------------------------


class Suite(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    """Optuna's promises."""


class TestScoreFunction(Suite):
    @pytest.fixture
    def sampler(self):
        return lambda: SNASSampler(SPACE, seed=0)


class TestFixedDistribution(Suite):
    @pytest.fixture
    def sampler(self):
        return lambda: SNASSampler(SPACE, snas_with_logits(), seed=0)


class TestBoth(Suite):
    @pytest.fixture
    def sampler(self):
        return lambda: SNASSampler(SPACE, snas_with_logits(), learn_from_trials=True, seed=0)


class TestTraining(Suite):
    @pytest.fixture
    def sampler(self, data, tmp_path):
        return lambda: training_sampler(data, tmp_path)


# -- the same numbers everywhere ----------------------------------------------------------------------------------


@pytest.fixture(params=["inmemory", "sqlite", "journal"])
def storage(request, tmp_path):
    if request.param == "inmemory":
        return optuna.storages.InMemoryStorage()
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/study.db"
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal.log"))
    return optuna.storages.JournalStorage(backend)


def history(study, n_trials=12):
    """Add finished trials with values that follow from their parameters."""
    random = np.random.default_rng(0)
    for _ in range(n_trials):
        params = SPACE.encode(SPACE.sample(random))
        value = float(sum(choice == "nor_conv_3x3" for choice in params.values()))
        study.add_trial(create_trial(params=params, distributions=SPACE.distributions(), value=value))


def proposals(study):
    return {t.number: t.params for t in study.get_trials(deepcopy=False)}


@pytest.mark.parametrize("mode", ["score function", "fixed", "both"])
def test_one_thread_and_four_propose_the_same_from_the_same_history(storage, mode):
    snas = None if mode == "score function" else snas_with_logits()
    both = True if mode == "both" else None
    found = []
    for name, n_threads in (("one", 1), ("four", 4)):
        study = optuna.create_study(
            study_name=name, storage=storage, sampler=SNASSampler(SPACE, snas, learn_from_trials=both, seed=1)
        )
        history(study)
        trials = [study.ask() for _ in range(12)]
        with ThreadPoolExecutor(n_threads) as pool:
            list(pool.map(SPACE.suggest, trials))
        found.append(proposals(study))
    assert found[0] == found[1]


def test_a_fixed_distribution_gives_the_same_study_with_one_job_and_with_four(storage):
    found = []
    for name, n_jobs in (("one", 1), ("four", 4)):
        sampler = SNASSampler(SPACE, snas_with_logits(), avoid_duplicates=False, seed=2)
        study = optuna.create_study(study_name=name, storage=storage, sampler=sampler)
        study.optimize(n_convolutions, n_trials=16, n_jobs=n_jobs)
        found.append(proposals(study))
    assert found[0] == found[1]


def test_trials_differ_and_so_do_seeds():
    def run(seed):
        study = optuna.create_study(sampler=SNASSampler(SPACE, seed=seed))
        study.optimize(n_convolutions, n_trials=20)
        return [tuple(params.values()) for params in proposals(study).values()]

    assert len(set(run(0))) == 20
    assert run(0) == run(0)
    assert run(0) != run(1)
    assert run(None) != run(None)


@pytest.mark.process
def test_processes_with_other_hash_seeds_propose_the_same():
    code = (
        "import json, optuna, sys; sys.path.insert(0, 'tests'); optuna.logging.set_verbosity(40)\n"
        "from samplers.test_snas import SPACE, SNASSampler, n_convolutions, proposals\n"
        "study = optuna.create_study(direction='maximize', sampler=SNASSampler(SPACE, seed=3))\n"
        "study.optimize(lambda t: n_convolutions(t) + t.suggest_float('rate', 0, 1), n_trials=15)\n"
        "print(json.dumps(proposals(study)))"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("0", "1234")
    ]
    assert len(json.loads(outputs[0])) == 15
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("snas", [None, snas_with_logits()], ids=["score function", "fixed"])
def test_a_sampler_pickled_in_the_middle_goes_on_alike(snas, tmp_path):
    found = []
    for pickled in (False, True):
        sampler = SNASSampler(SPACE, snas, seed=4)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.optimize(n_convolutions, n_trials=10)
        if pickled:
            study.sampler = pickle.loads(pickle.dumps(sampler))
        study.optimize(n_convolutions, n_trials=10)
        found.append(proposals(study))
    assert found[0] == found[1]


def test_other_parameters_have_numbers_of_their_own_whoever_draws_them():
    found = []
    for n_threads in (1, 4):
        study = optuna.create_study(sampler=SNASSampler(SPACE, independent_sampler=RandomSampler(), seed=5))
        trials = [study.ask() for _ in range(12)]

        def suggest(trial):
            return trial.suggest_float("rate", 0, 1), trial.suggest_int("n", 1, 1000)

        with ThreadPoolExecutor(n_threads) as pool:
            found.append(list(pool.map(suggest, trials)))
    assert found[0] == found[1]
    assert len({rate for rate, _ in found[0]}) == 12


# -- learning from trials -----------------------------------------------------------------------------------------


def test_it_learns_what_is_better_from_trials_alone():
    space = nasbench201_space()
    random = np.random.default_rng(0)
    worth = {path: dict(zip(options, random.normal(size=5), strict=True)) for path, options in space.options().items()}

    def best(sampler):
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.optimize(
            lambda trial: sum(
                worth[p][trial.suggest_categorical(p, d.choices)] for p, d in space.distributions().items()
            ),
            n_trials=80,
        )
        return study.best_value

    assert np.mean([best(SNASSampler(space, seed=s)) for s in range(3)]) > np.mean(
        [best(RandomSampler(seed=s)) for s in range(3)]
    )
    highest = sum(max(row.values()) for row in worth.values())
    assert best(SNASSampler(space, seed=0)) > 0.9 * highest


def test_the_distribution_moves_towards_better_options_and_says_so():
    sampler = SNASSampler(SPACE, seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(n_convolutions, n_trials=40)
    for options in sampler.probabilities(study).values():
        assert sum(options.values()) == pytest.approx(1)
        assert max(options, key=options.get) == "nor_conv_3x3"
    records = distribution_records(study)
    assert [record.step for record in records] == list(range(0, 40, 5))
    assert records[-1].metrics["entropy"] < records[0].metrics["entropy"] == pytest.approx(np.log(4), rel=1e-4)
    assert sampler.learning == "score function of trials"


def test_minimising_moves_the_other_way():
    sampler = SNASSampler(SPACE, seed=0)
    study = optuna.create_study(sampler=sampler)
    study.optimize(n_convolutions, n_trials=40)
    assert all(options["nor_conv_3x3"] < 0.25 for options in sampler.probabilities(study).values())


def test_both_multiply_what_the_supernet_and_the_trials_say():
    snas = snas_with_logits()
    fixed, learned, both = (
        SNASSampler(SPACE, snas, seed=0),
        SNASSampler(SPACE, seed=0),
        SNASSampler(SPACE, snas, learn_from_trials=True, seed=0),
    )
    study = optuna.create_study(direction="maximize")
    history(study, 30)
    tables = [sampler.probabilities(study) for sampler in (fixed, learned, both)]
    for path in SPACE.paths:
        products = {option: tables[0][path][option] * tables[1][path][option] for option in tables[0][path]}
        for option, product in products.items():
            assert tables[2][path][option] == pytest.approx(product / sum(products.values()))


def test_of_several_objectives_what_dominates_is_better():
    sampler = SNASSampler(SPACE, seed=0)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)

    def objective(trial):
        kept = dict(SPACE.suggest(trial).choices)
        return sum(k == ("nor_conv_3x3",) for k in kept.values()), sum(k == ("avg_pool_3x3",) for k in kept.values())

    study.optimize(objective, n_trials=50)
    for options in sampler.probabilities(study).values():
        assert options["nor_conv_3x3"] > 0.4 > 0.25 > options["avg_pool_3x3"]


def test_what_breaks_a_constraint_is_worse_than_what_keeps_all():
    sampler = SNASSampler(SPACE, seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)

    def objective(trial):
        value = n_convolutions(trial)
        trial.set_constraint("convolutions", value - 1)
        return value

    study.optimize(objective, n_trials=60)
    expected = sum(options["nor_conv_3x3"] for options in sampler.probabilities(study).values())
    assert 0.4 < expected < 1.6


def test_pruned_trials_count_as_worse_and_failed_ones_not_at_all():
    sampler = SNASSampler(SPACE, seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)

    def objective(trial):
        kept = dict(SPACE.suggest(trial).choices)
        if kept["cell_0_1"] == ("avg_pool_3x3",):
            raise optuna.TrialPruned
        if kept["cell_0_2"] == ("avg_pool_3x3",):
            raise RuntimeError
        return 1.0

    study.optimize(objective, n_trials=40, catch=RuntimeError)
    assert sampler.probabilities(study)["cell_0_1"]["avg_pool_3x3"] < 0.15
    states = [trial.state for trial in study.trials]
    assert TrialState.FAIL in states
    assert sampler.n_outcomes(study) == 40 - states.count(TrialState.FAIL)


def test_it_works_inside_hyperband():
    study = optuna.create_study(
        direction="maximize", sampler=SNASSampler(SPACE, seed=0), pruner=HyperbandPruner(1, 9, 3)
    )

    def objective(trial):
        value = n_convolutions(trial)
        for step in range(9):
            trial.report(value * (step + 1), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    study.optimize(objective, n_trials=30)
    assert study.best_value == 3


def test_blocks_can_be_searched_without_a_supernet():
    space = ghn_space(4)
    study = optuna.create_study(direction="maximize", sampler=SNASSampler(space, seed=0))
    study.optimize(
        lambda trial: sum("conv" in k for _, kept in space.suggest(trial).choices for k in kept), n_trials=40
    )
    assert study.best_value >= 3


def test_no_finished_architecture_is_proposed_again_unless_something_else_is_searched_too():
    study = optuna.create_study(direction="maximize", sampler=SNASSampler(SPACE, seed=0))
    study.optimize(n_convolutions, n_trials=45)
    assert len({tuple(params.values()) for params in proposals(study).values()}) == 45
    study = optuna.create_study(direction="maximize", sampler=SNASSampler(SPACE, seed=0))
    study.optimize(lambda trial: n_convolutions(trial) + 1e-3 * trial.suggest_float("rate", 0, 1), n_trials=60)
    ours = [tuple(value for name, value in params.items() if name != "rate") for params in proposals(study).values()]
    assert len(set(ours)) < 60


def test_a_space_that_is_used_up_still_gives_proposals():
    study = optuna.create_study(direction="maximize", sampler=SNASSampler(SPACE, seed=0))
    study.optimize(n_convolutions, n_trials=70)
    assert len(study.trials) == 70


# -- edge cases ---------------------------------------------------------------------------------------------------


def test_enqueued_and_fixed_parameters_are_kept_and_completed():
    sampler = SNASSampler(SPACE, seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial({"cell_0_1": "nor_conv_3x3"})
    study.enqueue_trial(dict.fromkeys(SPACE.paths, "skip_connect"))
    study.optimize(n_convolutions, n_trials=3)
    assert study.trials[0].params["cell_0_1"] == "nor_conv_3x3"
    assert set(study.trials[1].params.values()) == {"skip_connect"}
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        study.sampler = PartialFixedSampler({"cell_0_2": "avg_pool_3x3"}, sampler)
    study.optimize(n_convolutions, n_trials=5)
    assert {trial.params["cell_0_2"] for trial in study.trials[3:]} == {"avg_pool_3x3"}


def test_conditional_parameters_of_the_user_go_to_the_inner_sampler():
    study = optuna.create_study(direction="maximize", sampler=SNASSampler(SPACE, seed=0))

    def objective(trial):
        value = n_convolutions(trial)
        if trial.suggest_categorical("optimizer", ["sgd", "adam"]) == "sgd":
            return value - trial.suggest_float("momentum", 0, 1)
        return value - trial.suggest_float("beta", 0, 1, log=False) ** 2

    study.optimize(objective, n_trials=40)
    assert {"optimizer", "momentum", "beta"} <= {name for trial in study.trials for name in trial.params}
    assert study.best_value > 2


def test_a_study_of_another_space_is_refused():
    study = optuna.create_study(direction="maximize", sampler=SNASSampler(nasbench201_space(), seed=0))
    study.optimize(lambda trial: len(nasbench201_space().suggest(trial).choices), n_trials=2)
    wider = CellSpace(("none", "skip_connect"), 3, 1, (CellKind("cell", outputs=(3,)),))
    study.sampler = SNASSampler(wider, seed=0)
    with pytest.raises(ValueError, match=r"`study` must search the sampler's space but (trial 0|asks)"):
        study.optimize(lambda trial: len(wider.suggest(trial).choices), n_trials=3)


def test_trials_of_other_samplers_and_of_other_parameters_are_passed_over():
    study = optuna.create_study(direction="maximize", sampler=SNASSampler(SPACE, seed=0))
    study.add_trial(create_trial(params={"x": 1}, distributions={"x": CategoricalDistribution([0, 1])}, value=1.0))
    study.enqueue_trial({"y": 2})
    study.optimize(n_convolutions, n_trials=12)
    assert len(study.trials) == 13


@pytest.mark.parametrize(
    "arguments",
    [
        {"data": object()},
        {"budget": 3},
        {"model": snas_with_logits(), "data": object()},
        {"model": snas_with_logits(), "data": object(), "budget": 0},
        {"n_trials": 0},
        {"trials_per_round": 0},
        {"learn_from_trials": False},
        {"learning_rate": 0.0},
        {"learning_rate": 1.0},
    ],
)
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=r"must"):
        optuna.create_study(sampler=SNASSampler(SPACE, **arguments)).optimize(n_convolutions, n_trials=1)


def test_a_model_of_another_space_is_refused():
    with pytest.raises(ValueError, match="`model` must have the sampler's space"):
        SNASSampler(nasbench201_space(), snas_with_logits())


# -- rounds of training -------------------------------------------------------------------------------------------


def openers(study):
    return [t.number for t in study.get_trials(deepcopy=False) if SNAPSHOT in t.system_attrs]


def test_every_round_is_trained_by_its_first_trial_up_to_its_share_of_the_budget(data, tmp_path):
    sampler = training_sampler(data, tmp_path)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    steps = []
    for _ in range(14):
        study.optimize(n_convolutions, n_trials=1)
        steps.append(sampler.model.step)
    total = sampler.model.total_steps
    assert openers(study) == [0, 4, 8]
    assert steps == [round(total / 3)] * 4 + [round(2 * total / 3)] * 4 + [total] * 6
    records = distribution_records(study)
    assert records[-1].step == total
    assert {"entropy", "params", "loss"} <= records[-1].metrics.keys()
    assert len(records_of(study.trials[1])) == 0


def test_the_opener_proposes_what_is_most_likely(data, tmp_path):
    sampler = training_sampler(data, tmp_path, avoid_duplicates=False)
    study = optuna.create_study(sampler=sampler)
    study.optimize(n_convolutions, n_trials=1)
    assert SPACE.decode(study.trials[0].params).choices == sampler.model.most_likely().choices


def test_another_process_goes_on_from_what_was_published(data, tmp_path):
    storage = f"sqlite:///{tmp_path}/study.db"
    first = training_sampler(data, tmp_path / "artifacts")
    study = optuna.create_study(study_name="s", storage=storage, sampler=first)
    study.optimize(n_convolutions, n_trials=5)
    second = pickle.loads(pickle.dumps(training_sampler(data, tmp_path / "artifacts")))
    assert second.model.step == 0
    other = optuna.load_study(study_name="s", storage=storage, sampler=second)
    other.optimize(n_convolutions, n_trials=1)
    assert second.model.step == first.model.step
    assert np.array_equal(second.model.logits, first.model.logits)
    other.optimize(n_convolutions, n_trials=6)
    straight = training_sampler(data, tmp_path / "straight")
    optuna.create_study(sampler=straight).optimize(n_convolutions, n_trials=12)
    assert np.array_equal(second.model.logits, straight.model.logits)


def test_others_use_the_newest_they_see_and_do_not_wait_for_a_round_that_is_being_trained(data, tmp_path):
    sampler = training_sampler(data, tmp_path)
    study = optuna.create_study(sampler=sampler)
    study.optimize(n_convolutions, n_trials=4)
    opener, other = study.ask(), study.ask()  # trials 4 and 5
    SPACE.suggest(other)  # the opener has not trained yet
    assert sampler.in_study_fit.newest(study, 999).number == 0
    SPACE.suggest(opener)
    SPACE.suggest(study.ask())
    assert sampler.in_study_fit.newest(study, 999).number == 4


def test_a_thread_that_trains_keeps_no_other_waiting(data, tmp_path):
    sampler = training_sampler(data, tmp_path, trials_per_round=2)
    study = optuna.create_study(sampler=sampler)
    study.optimize(n_convolutions, n_trials=12, n_jobs=4)
    assert all(trial.state == TrialState.COMPLETE for trial in study.trials)
    study.optimize(n_convolutions, n_trials=4)  # whoever asks next makes up for what was still open
    assert sampler.model.step == sampler.model.total_steps


@pytest.mark.parametrize("damage", ["changed", "missing", "attribute"])
def test_a_snapshot_that_does_not_verify_gives_way_to_the_one_before(data, tmp_path, caplog, damage):
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(study_name="s", storage=storage, sampler=training_sampler(data, tmp_path))
    study.optimize(n_convolutions, n_trials=5)
    newest = study.trials[4]
    if damage == "attribute":
        name = f"{SNAPSHOT}:0"
        storage._get_trial(newest._trial_id).system_attrs[name] = "{"
    else:
        artifact = tmp_path / read_json(newest.system_attrs, SNAPSHOT)["files"]["snas.safetensors"]["artifact"]
        artifact.write_bytes(artifact.read_bytes()[:-1] + b"x") if damage == "changed" else artifact.unlink()
    sampler = training_sampler(data, tmp_path)
    study.sampler = sampler
    with caplog.at_level(logging.WARNING):
        study.optimize(n_convolutions, n_trials=2)
    assert "The SNAS snapshot of trial 4 cannot be verified" in caplog.text
    assert sampler.in_study_fit.newest(study, 999).number == 0
    assert sampler.model.step == round(sampler.model.total_steps / 3)
    study.optimize(n_convolutions, n_trials=5)
    assert openers(study)[-1] == 8
    assert sampler.model.step == sampler.model.total_steps


def test_a_round_whose_opener_failed_is_opened_by_the_next_trial(data, tmp_path):
    sampler = training_sampler(data, tmp_path)
    study = optuna.create_study(sampler=sampler)
    study.tell(study.ask(), state=TrialState.FAIL)
    study.optimize(n_convolutions, n_trials=2)
    assert openers(study) == [1]


def test_a_round_whose_opener_died_is_made_up_for_by_the_next_opener(data, tmp_path):
    sampler = training_sampler(data, tmp_path)
    study = optuna.create_study(sampler=sampler)
    study.optimize(n_convolutions, n_trials=4)
    study.ask()  # trial 4 runs for ever
    study.optimize(n_convolutions, n_trials=4)
    assert openers(study) == [0, 8]
    assert sampler.model.step == sampler.model.total_steps


def test_a_round_that_begins_with_fixed_trials_is_opened_by_the_first_that_asks(data, tmp_path):
    study = optuna.create_study(sampler=training_sampler(data, tmp_path))
    for _ in range(2):
        study.enqueue_trial(dict.fromkeys(SPACE.paths, "skip_connect"))
    study.optimize(n_convolutions, n_trials=4)
    assert openers(study) == [2]
    assert study.sampler.in_study_fit.newest(study, 999).number == 2


def test_an_objective_may_ask_the_snas_for_a_fixed_trial_in_a_fresh_process(data, tmp_path):
    storage = f"sqlite:///{tmp_path}/study.db"
    first = training_sampler(data, tmp_path)
    optuna.create_study(study_name="s", storage=storage, sampler=first).optimize(n_convolutions, n_trials=1)
    second = training_sampler(data, tmp_path)
    study = optuna.load_study(study_name="s", storage=storage, sampler=second)
    study.enqueue_trial(dict.fromkeys(SPACE.paths, "skip_connect"))
    study.optimize(lambda trial: second.model.score([SPACE.suggest(trial)])[0], n_trials=1)
    assert second.model.step == first.model.step


def test_a_sampler_may_be_used_for_another_study(data, tmp_path):
    sampler = SNASSampler(SPACE, seed=0)
    optuna.create_study(direction="maximize", sampler=sampler).optimize(n_convolutions, n_trials=40)
    study = optuna.create_study(direction="minimize", sampler=sampler)
    assert all(p == pytest.approx(0.25) for options in sampler.probabilities(study).values() for p in options.values())
    study.optimize(n_convolutions, n_trials=40)
    assert all(options["nor_conv_3x3"] < 0.25 for options in sampler.probabilities(study).values())


def test_a_round_that_was_cut_off_goes_on_from_its_checkpoint(data, tmp_path):
    straight = training_sampler(data, tmp_path / "straight")
    optuna.create_study(sampler=straight).optimize(n_convolutions, n_trials=1)
    cut = training_sampler(data, tmp_path)
    study = optuna.create_study(sampler=cut)
    cut.prepare(tmp_path, None, lambda: cut.model.step >= 2)
    with pytest.raises(TrainingStopped):
        study.optimize(n_convolutions, n_trials=1)
    resumed = training_sampler(data, tmp_path)
    steps = []
    resumed.prepare(tmp_path, lambda what, share: steps.append(share), None)
    study.sampler = resumed
    study.optimize(n_convolutions, n_trials=1)
    assert openers(study) == [1]
    assert len(steps) == straight.model.step - 2 + 1
    assert np.array_equal(resumed.model.logits, straight.model.logits)


def test_two_snapshots_are_kept(data, tmp_path):
    study = optuna.create_study(sampler=training_sampler(data, tmp_path))
    study.optimize(n_convolutions, n_trials=12)
    assert len(openers(study)) == 3
    assert len(list(tmp_path.iterdir())) == 2


def test_what_a_dead_opener_has_left_is_removed(data, tmp_path):
    study = optuna.create_study(sampler=training_sampler(data, tmp_path))
    study.optimize(n_convolutions, n_trials=4)
    dead = study.ask()  # trial 4 opens the second round, uploads a file, and dies
    study._storage.set_trial_system_attr(dead._trial_id, f"{SNAPSHOT}:study", study_uid(study))
    half = tmp_path / "half" / "snas.safetensors"
    half.parent.mkdir()
    half.write_bytes(b"half")
    store = FileSystemArtifactStore(str(tmp_path))
    upload_artifact(artifact_store=store, file_path=str(half), study_or_trial=dead)
    # A retry inherits Optuna's list of a dead trial's artifacts, here that of the opener before: they stay.
    for name, value in study.trials[0].system_attrs.items():
        if name.startswith("artifacts:"):
            study._storage.set_trial_system_attr(dead._trial_id, name, value)
    study.tell(dead, state=TrialState.FAIL)
    left = {path.name for path in tmp_path.iterdir()} - {"half"}
    study.optimize(n_convolutions, n_trials=3)
    assert openers(study) == [0, 5]
    kept = {path.name for path in tmp_path.iterdir()} - {"half"}
    assert len(left - kept) == 1, "what the dead opener had uploaded"
    assert len(kept) == 2


def test_snapshots_of_another_recipe_are_refused(data, tmp_path):
    study = optuna.create_study(sampler=training_sampler(data, tmp_path))
    study.optimize(n_convolutions, n_trials=2)
    other = SNAS(NetworkSpace(SPACE, FRAME), SNASRecipe(batch_size=16, learning_rate=0.2))
    study.sampler = training_sampler(data, tmp_path, other)
    with pytest.raises(ValueError, match="differs in recipe"):
        study.optimize(n_convolutions, n_trials=1)


def test_the_cost_of_asking_does_not_grow_with_the_study(monkeypatch):
    study = optuna.create_study(direction="maximize", sampler=SNASSampler(SPACE, seed=0))
    counts = []
    for n_trials in (20, 200):
        history(study, n_trials)
        SPACE.suggest(study.ask())
        calls = []
        monkeypatch.setattr(
            "optuna_nas.samplers.snas._finished_at", lambda trial, c=calls: c.append(1) or (0.0, trial.number)
        )
        SPACE.suggest(study.ask())
        counts.append(len(calls))
    assert counts == [0, 0]


def test_a_prior_multiplies_the_distribution_and_trials_may_still_contradict_it():
    space = nasbench201_space()

    def prior(architectures):
        return np.array([float(str(architecture).count("skip")) for architecture in architectures])

    study = optuna.create_study(direction="maximize")
    plain, biased = SNASSampler(space, seed=0), SNASSampler(space, prior=prior, seed=0)
    before = biased.probabilities(study)
    assert all(row["skip_connect"] > 0.4 for row in before.values())
    assert all(row["skip_connect"] == pytest.approx(0.2) for row in plain.probabilities(study).values())
    none = SNASSampler(space, prior=prior, prior_strength=0.0, seed=0).probabilities(study)
    assert all(row["skip_connect"] == pytest.approx(0.2) for row in none.values())
    study = optuna.create_study(direction="maximize", sampler=biased)
    study.optimize(lambda trial: -float(str(space.suggest(trial)).count("skip")), n_trials=60)
    after = biased.probabilities(study)
    skips = [np.mean([row["skip_connect"] for row in table.values()]) for table in (before, after)]
    assert skips[1] < skips[0]
    with pytest.raises(ValueError, match="`prior_strength` must not be negative but got -1"):
        SNASSampler(space, prior=prior, prior_strength=-1.0)

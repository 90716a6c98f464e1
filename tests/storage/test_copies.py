"""Copies, added trials, fixed trials: what was learned travels or is left with a word, identity does not."""

import logging

import numpy as np
import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore
from optuna.samplers import PartialFixedSampler, RandomSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial
from strategies import few_digits

from optuna_nas import (
    SNAS,
    GHNPruner,
    GHNSampler,
    NetworkSpace,
    Recipe,
    Search,
    SNASRecipe,
    SNASSampler,
    TrainObjective,
    nasbench201_skeleton,
    nasbench201_space,
    should_prune,
)
from optuna_nas.storage.artifacts import fetch_file, remove_file
from optuna_nas.storage.attributes import (
    CHECKPOINT,
    DIGEST,
    DUPLICATE_OF,
    SHARED_NETWORK,
    SURROGATE_SCORE,
    random_scores_key,
    read_json,
)
from optuna_nas.storage.identity import study_uid

pytestmark = pytest.mark.filterwarnings("ignore:PartialFixedSampler is experimental")

DATA = few_digits(48)
SPACE = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 2, DATA.input_shape, DATA.classes))
DISTRIBUTIONS = SPACE.distributions()


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture
def store(tmp_path):
    (tmp_path / "store").mkdir()
    return FileSystemArtifactStore(str(tmp_path / "store"))


def files(tmp_path):
    return {path.name for path in (tmp_path / "store").iterdir()}


def learning_sampler(store, n_trials=8):
    """Return a sampler, and its supernet that trials 0, 2, 4 ... train."""
    snas = SNAS(SPACE, SNASRecipe(relaxation="one_path", batch_size=16))
    settings = {"budget": 4, "n_trials": n_trials, "trials_per_round": 2, "artifact_store": store, "seed": 0}
    return SNASSampler(SPACE, snas, data=DATA, **settings), snas


def run(study, n_trials):
    for _ in range(n_trials):
        trial = study.ask(DISTRIBUTIONS)
        study.tell(trial, float(trial.number))


def new_study(tmp_path, sampler, name="original"):
    return optuna.create_study(
        study_name=name, storage=f"sqlite:///{tmp_path / 'study.db'}", direction="maximize", sampler=sampler
    )


def copy_of(study, tmp_path, sampler, name="copy"):
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    optuna.copy_study(from_study_name=study.study_name, from_storage=storage, to_storage=storage, to_study_name=name)
    return optuna.load_study(study_name=name, storage=storage, sampler=sampler)


# -- the learned supernet ----------------------------------------------------------------------------------------------


def test_what_was_learned_travels_with_the_store_and_stays_with_the_original(tmp_path, store):
    sampler, snas = learning_sampler(store)
    original = new_study(tmp_path, sampler)
    run(original, 4)
    of_original = files(tmp_path)
    other_sampler, other = learning_sampler(store)
    copy = copy_of(original, tmp_path, other_sampler)
    assert other_sampler.catch_up(copy).step == snas.step > 0
    run(copy, 4)  # two rounds more, each of which removes what the one before the last has published
    assert other.fitted
    assert of_original <= files(tmp_path)
    fresh_sampler, fresh = learning_sampler(store)
    again = optuna.load_study(
        study_name="original", storage=f"sqlite:///{tmp_path / 'study.db'}", sampler=fresh_sampler
    )
    run(again, 4)  # the original goes on from what it knows
    assert fresh.fitted
    # Both have gone the same way: the same trials, the same rounds.
    assert [trial.params for trial in again.trials] == [trial.params for trial in copy.trials]
    np.testing.assert_array_equal(fresh.logits, other.logits)


def test_a_copy_without_the_store_says_so_once_and_learns_anew(tmp_path, store, caplog):
    sampler, _ = learning_sampler(store)
    original = new_study(tmp_path, sampler)
    run(original, 6)
    (tmp_path / "elsewhere").mkdir()
    other_sampler, other = learning_sampler(FileSystemArtifactStore(str(tmp_path / "elsewhere")))
    copy = copy_of(original, tmp_path, other_sampler)
    with caplog.at_level(logging.WARNING):
        run(copy, 4)
    assert other.fitted
    said = [record.message for record in caplog.records if record.name.startswith("optuna_nas.storage")]
    assert len(said) == 1
    assert said[0].startswith("The SNAS snapshot of trial 4 cannot be verified (artifact ")
    assert said[0].endswith("whose `artifact_store` has it. Without that, 'copy' learns anew.")


def test_one_model_in_two_studies_is_told_once(tmp_path, store, caplog):
    sampler, _ = learning_sampler(store)
    original = new_study(tmp_path, sampler)
    run(original, 2)
    copy = copy_of(original, tmp_path, sampler)
    with caplog.at_level(logging.WARNING):
        run(copy, 3)
    assert [r.message for r in caplog.records if r.name.startswith("optuna_nas.storage")] == [
        "The SNAS that study 'copy' trains has learned in study 'original', which counts here, too; give each study a "
        "model and a sampler or pruner of its own."
    ]


def test_an_added_trial_brings_no_artifacts_to_remove(tmp_path, store):
    sampler, _ = learning_sampler(store)
    original = new_study(tmp_path, sampler)
    run(original, 4)
    of_original = files(tmp_path)
    other_sampler, _ = learning_sampler(store)
    other = new_study(tmp_path, other_sampler, "other")
    for trial in original.trials:
        other.add_trial(trial)
    run(other, 4)
    assert of_original <= files(tmp_path)


# -- scores and hashes -------------------------------------------------------------------------------------------------


def n_convolutions(architectures):
    return np.array([float(str(architecture.choices).count("conv")) for architecture in architectures])


def test_scores_of_random_architectures_are_the_studys_own(tmp_path):
    def pruner(score):
        return GHNPruner(space=SPACE, score=score, n_random=20, seed=0)

    original = new_study(tmp_path, RandomSampler(seed=0))
    original.pruner = pruner(n_convolutions)
    trial = original.ask(DISTRIBUTIONS)
    trial.should_prune()
    copy = copy_of(original, tmp_path, RandomSampler(seed=0))
    assert read_json(copy.trials[0].system_attrs, random_scores_key("ghn")) is not None
    mine, theirs = pruner(lambda architectures: 10 + n_convolutions(architectures)), pruner(n_convolutions)
    assert mine.threshold(copy, 0) == theirs.threshold(original, 0) + 10


def objective_of():
    return TrainObjective(SPACE, DATA, Recipe(epochs=1, batch_size=16))


def test_the_result_of_another_architecture_is_not_taken_over():
    objective = objective_of()
    study = optuna.create_study(direction="maximize", sampler=RandomSampler(seed=0))
    convolutions, pools = (dict.fromkeys(DISTRIBUTIONS, op) for op in ("nor_conv_3x3", "avg_pool_3x3"))
    study.enqueue_trial(convolutions)
    study.optimize(objective, n_trials=1)
    noted = study.trials[0].user_attrs
    added = create_trial(value=0.123, params=pools, distributions=DISTRIBUTIONS, user_attrs=noted)
    other = optuna.create_study(direction="maximize", sampler=SNASSampler(SPACE, seed=0))
    other.add_trial(added)  # pools, with what was noted for convolutions
    other.enqueue_trial(convolutions)
    other.enqueue_trial(pools)
    other.optimize(objective, n_trials=2)
    assert DUPLICATE_OF not in other.trials[1].user_attrs
    assert other.trials[1].value == study.trials[0].value != 0.123
    assert other.trials[2].user_attrs[DIGEST] != noted[DIGEST]
    assert other.trials[2].value != 0.123

    third = optuna.create_study(direction="maximize", sampler=RandomSampler(seed=0))
    third.add_trial(study.trials[0])  # what is true is still believed
    third.enqueue_trial(convolutions)
    third.optimize(objective, n_trials=1)
    assert third.trials[1].user_attrs[DUPLICATE_OF] == 0


def test_a_pool_counts_added_trials_by_what_they_are():
    study = optuna.create_study(direction="maximize")
    sampler = GHNSampler(SPACE, score=n_convolutions, pool_size=20, trials_per_round=10, seed=0)
    best = SPACE.architecture(dict.fromkeys(DISTRIBUTIONS, "nor_conv_3x3"))
    wrong = {DIGEST: SPACE.architecture(dict.fromkeys(DISTRIBUTIONS, "none")).canonical().digest}
    from optuna_nas.storage.architecture_notes import params_hash
    from optuna_nas.storage.attributes import DIGESTED

    wrong[DIGESTED] = params_hash(dict.fromkeys(DISTRIBUTIONS, "none"), DISTRIBUTIONS)
    study.add_trial(create_trial(value=1.0, params=SPACE.encode(best), distributions=DISTRIBUTIONS, user_attrs=wrong))
    (digest,) = sampler._of_trials(study, study.ask())
    from optuna_nas.samplers.ghn import _digest

    assert digest == _digest(best)


# -- identity ----------------------------------------------------------------------------------------------------------


def test_a_copy_between_journals_has_an_identity_of_its_own(tmp_path):
    one, other = (JournalStorage(JournalFileBackend(str(tmp_path / name))) for name in ("one", "other"))
    uid = study_uid(optuna.create_study(study_name="s", storage=one))
    optuna.copy_study(from_study_name="s", from_storage=one, to_storage=other)
    assert study_uid(optuna.load_study(study_name="s", storage=other)) != uid
    assert study_uid(optuna.load_study(study_name="s", storage=one)) == uid


def test_a_journal_that_was_moved_keeps_its_identity(tmp_path):
    uid = study_uid(
        optuna.create_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(tmp_path / "a"))))
    )
    (tmp_path / "a").rename(tmp_path / "b")
    moved = optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(tmp_path / "b"))))
    assert study_uid(moved) == uid


def search(folder, storage, **changes):
    fields = {"trials": 3, "tracking": None, "pictures": False, "cpu_threads": 1, "sampler": RandomSampler(seed=0)}
    return Search("c", SPACE, DATA, Recipe(epochs=1, batch_size=16), folder=folder, storage=storage, **fields | changes)


def test_a_copied_search_leaves_the_networks_of_its_original_in_the_store(tmp_path, store):
    one, other = (f"sqlite:///{tmp_path / name}" for name in ("one.db", "other.db"))
    shared = {"artifacts": str(tmp_path / "store"), "keep_networks": 1}
    first = search(tmp_path / "one", one, **shared).run()
    reference = first.best.user_attrs[SHARED_NETWORK]
    optuna.copy_study(from_study_name="c", from_storage=one, to_storage=other)
    copied = search(tmp_path / "two", other, trials=6, sampler=RandomSampler(seed=1), **shared).run()
    remove_file(copied.study, store, reference)
    fetch_file(store, reference, tmp_path / "network")
    assert study_uid(copied.study) != study_uid(first.study)


def test_a_copy_resumes_a_checkpoint_and_leaves_it_to_the_original(tmp_path, store):
    from optuna_nas.objective.shared_checkpoint import SharedCheckpoint

    original = new_study(tmp_path, RandomSampler(seed=0))
    trial, file = original.ask(), tmp_path / "checkpoint"
    file.write_text("weights")
    SharedCheckpoint(store, file, trial).publish()
    file.unlink()
    copy = copy_of(original, tmp_path, RandomSampler(seed=0))
    copied = optuna.Trial(copy, copy.trials[0]._trial_id)
    shared = SharedCheckpoint(store, file, copied)
    shared.fetch()
    assert file.read_text() == "weights"
    shared.publish()
    shared.remove()
    fetch_file(store, original.trials[0].user_attrs[CHECKPOINT], tmp_path / "again")


# -- fixed trials, wrapped samplers ------------------------------------------------------------------------------------


def test_an_objective_of_ones_own_is_called_again():
    def objective(trial):
        architecture = SPACE.suggest(trial)
        if should_prune(trial):
            raise optuna.TrialPruned
        return n_convolutions([architecture])[0], float(architecture.cost().params)

    study = optuna.create_study(directions=["maximize", "minimize"], sampler=RandomSampler(seed=0))
    study.optimize(objective, n_trials=3)
    best = study.best_trials[0]
    assert objective(best) == tuple(best.values)
    assert objective(optuna.trial.FixedTrial(best.params)) == tuple(best.values)


def test_a_search_prepares_a_sampler_inside_of_another(tmp_path):
    snas = SNAS(SPACE, SNASRecipe(relaxation="one_path", batch_size=16))
    inner = SNASSampler(SPACE, snas, data=DATA, budget=1, trials_per_round=2, seed=0)
    sampler = PartialFixedSampler({"cell_0_1": "nor_conv_1x1"}, inner)
    result = search(
        tmp_path, None, trials=4, sampler=sampler, objective=lambda t: float(str(SPACE.suggest(t)).count("conv"))
    ).run()
    assert inner.in_study_fit.n_trials == 4
    assert snas.fitted, "the budget is spent over the four trials of the search"
    assert (tmp_path / "snas.safetensors").exists()
    assert {trial.params["cell_0_1"] for trial in result.study.trials} == {"nor_conv_1x1"}
    assert {trial.state for trial in result.study.trials} == {TrialState.COMPLETE}


@pytest.mark.parametrize("fixed", [{"cell_0_1": "none"}, dict.fromkeys(DISTRIBUTIONS, "nor_conv_1x1")])
def test_scores_under_a_partially_fixed_sampler_are_the_trials_own(fixed, store):
    inner = GHNSampler(SPACE, score=n_convolutions, pool_size=20, trials_per_round=10, artifact_store=store, seed=0)
    study = optuna.create_study(direction="maximize", sampler=PartialFixedSampler(fixed, inner))
    study.optimize(lambda trial: float(n_convolutions([SPACE.suggest(trial)])[0]), n_trials=4)
    for trial in study.trials:
        assert fixed.items() <= trial.params.items()
        assert trial.user_attrs.get(SURROGATE_SCORE, trial.value) == trial.value

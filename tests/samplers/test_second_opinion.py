"""A second sampler is asked now and then, and followed where its trials are better."""

import pickle

import numpy as np
import optuna
import pytest
from optuna.samplers import RandomSampler
from optuna.testing.pytest_samplers import BasicSamplerTestCase
from pools import pool_of

from optuna_nas import SNASSampler, nasbench201_space
from optuna_nas.samplers import PromotingSampler, SecondOpinionSampler
from optuna_nas.storage.attributes import PROMOTES, SECOND_OPINION

SPACE = nasbench201_space()


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def asking(**changes):
    return SecondOpinionSampler(SNASSampler(SPACE, seed=0), seed=0, **changes)


class TestOptunasPromises(BasicSamplerTestCase):
    @pytest.fixture
    def sampler(self):
        return lambda: asking(first=1, every=2)


def n_convolutions(architectures):
    return np.array([float(str(architecture).count("conv")) for architecture in architectures])


@pytest.fixture
def by_score(tmp_path):
    """Returns samplers of a pool in which the most convolutions come first; trials do not come to its end."""
    return lambda: pool_of(tmp_path, SPACE, n_convolutions, pool_size=120, trials_per_round=60)


def convolutions(trial):
    return n_convolutions([SPACE.suggest(trial)])[0]


def asked(study):
    return [trial.number for trial in study.trials if SECOND_OPINION in trial.system_attrs]


def test_where_the_first_sampler_is_right_the_second_has_its_turns_only(by_score):
    study = optuna.create_study(
        direction="maximize", sampler=SecondOpinionSampler(by_score(), RandomSampler(0), seed=0)
    )
    study.optimize(convolutions, n_trials=24)
    assert asked(study) == [5, 11, 17, 23]
    others = [trial.value for trial in study.trials if trial.number not in asked(study)]
    assert others == sorted(others, reverse=True), "the pool goes on in its order"


def test_where_it_is_wrong_the_second_is_followed_and_learns(by_score):
    study = optuna.create_study(direction="minimize", sampler=SecondOpinionSampler(by_score(), seed=0))
    study.optimize(convolutions, n_trials=50)
    assert asked(study)[:2] == [5, 11]
    later = range(12, 50)
    assert asked(study)[2:] == [number for number in later if (number - 5) % 6], "the first has the turns now"
    alone = optuna.create_study(direction="minimize", sampler=by_score())
    alone.optimize(convolutions, n_trials=50)
    assert study.best_value <= 1 < alone.best_value


def test_an_interrupted_study_goes_on_as_a_straight_one():
    def trials(*parts):
        storage = optuna.storages.InMemoryStorage()
        study = optuna.create_study(study_name="s", storage=storage, sampler=asking(first=1, every=3))
        for n_trials in parts:
            study.optimize(convolutions, n_trials=n_trials)
            sampler = pickle.loads(pickle.dumps(asking(first=1, every=3)))
            study = optuna.load_study(study_name="s", storage=storage, sampler=sampler)
        return [trial.params for trial in study.trials], asked(study)

    assert trials(4, 5, 9) == trials(18)


def test_trials_are_compared_after_as_many_steps_as_all_have_reported():
    sampler = SecondOpinionSampler(SNASSampler(SPACE, seed=0), RandomSampler(0), first=1, every=2)
    study = optuna.create_study(direction="minimize", sampler=sampler)

    def objective(trial):
        SPACE.suggest(trial)
        is_second = bool(study.get_trials(deepcopy=False)[trial.number].system_attrs.get(SECOND_OPINION))
        trial.report(1.0 if is_second else 2.0, 1)  # the second sampler's are better here ...
        if trial.number % 4 > 1:
            raise optuna.TrialPruned
        trial.report(9.0, 2)  # ... but end with nothing better
        return 9.0

    study.optimize(objective, n_trials=20)
    assert asked(study) == [1, 3, *range(4, 20, 2)], "from the fourth trial on it is the first that has the odd turns"


def test_what_is_promoted_is_no_opinion():
    inside = asking(first=2, every=2)
    study = optuna.create_study(direction="maximize", sampler=PromotingSampler(inside, short=1, long=100, every=2))

    def objective(trial):
        return trial.suggest_categorical("epochs", (1, 100)) + len(set(SPACE.suggest(trial).summary))

    study.optimize(objective, n_trials=20)
    promoted = [trial.number for trial in study.trials if PROMOTES in trial.system_attrs]
    assert promoted
    assert not set(promoted) & set(asked(study))
    values = [trial.value for trials in inside._opinions.of(study)._trials.values() for trial in trials]
    assert values
    assert max(values) < 100


def test_with_several_objectives_nothing_is_compared():
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=asking(first=1, every=2))
    study.optimize(lambda trial: (1.0, convolutions(trial)), n_trials=12)
    assert asked(study) == [1, 3, 5, 7, 9, 11]


def test_threads_share_what_is_known(by_score):
    sampler = SecondOpinionSampler(by_score(), RandomSampler(0), seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(convolutions, n_trials=1)  # other trials do not wait for the first, which makes the pool
    study.optimize(convolutions, n_trials=19, n_jobs=3)
    assert asked(study) == [5, 11, 17]


@pytest.mark.parametrize(("name", "value", "least"), [("first", 0, 1), ("every", 1, 2)])
def test_arguments_out_of_range_are_refused(name, value, least):
    with pytest.raises(ValueError, match=f"`{name}` must be at least {least} but got {value}"):
        asking(**{name: value})

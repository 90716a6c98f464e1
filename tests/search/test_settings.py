"""What decides a result is a setting: another one is refused, or honoured and said, when a study goes on."""

import logging
import signal
from dataclasses import dataclass

import numpy as np
import optuna
import pytest
import torch
from optuna.pruners import MedianPruner
from optuna.samplers import PartialFixedSampler, RandomSampler, TPESampler
from torch import nn
from torch.nn import functional

from optuna_nas import (
    CellSpace,
    ModuleSpace,
    NetworkSpace,
    Recipe,
    Regression,
    Search,
    Skeleton,
    TensorData,
    TrainObjective,
    choose,
    register_op,
    suggest_categorical,
    unregister_op,
)
from optuna_nas.networks import Measure
from optuna_nas.space import elementwise_cost
from optuna_nas.storage.attributes import DUPLICATE_OF, SETTING
from optuna_nas.storage.spending import spending_of
from optuna_nas.training import Task

pytestmark = pytest.mark.filterwarnings("ignore:PartialFixedSampler is experimental")
X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
DATA = TensorData.from_arrays(X, X[:, :1] * 2, name="lines")


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def space_of(act=torch.relu, rate=0.0):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            width = choose("width", [4, 8])
            self.stem, self.drop, self.head = nn.Linear(4, width), nn.Dropout(rate), nn.Linear(width, 1)

        def forward(self, x):
            return self.head(self.drop(act(self.stem(x))))

    return ModuleSpace(Net, example=torch.zeros(1, 4), name="net")


def search(folder, space=None, **changes):
    fields = {"trials": 3, "tracking": None, "pictures": False, "sampler": RandomSampler(0), "task": Regression()}
    fields |= {"data": DATA, "recipe": Recipe(epochs=1, batch_size=16)}
    return Search("settings", space or space_of(), folder=folder, cpu_threads=1, **{**fields, **changes})


def taken_over(study):
    return [trial.number for trial in study.trials if DUPLICATE_OF in trial.user_attrs]


# -- a user's module ---------------------------------------------------------------------------------------------------


def test_another_setting_of_a_part_is_refused(tmp_path):
    search(tmp_path).run()
    with pytest.raises(ValueError, match="`space` must be that of the existing study 'settings' but is another"):
        search(tmp_path, space_of(rate=0.9), trials=6).run()


def test_a_study_of_before_goes_on_though_it_knows_no_parts(tmp_path):
    study = search(tmp_path).run().study
    setting = study.user_attrs[SETTING]
    del setting["space"]["parts"]
    study.set_user_attr(SETTING, setting)
    assert len(search(tmp_path, trials=4).run().study.trials) == 4


def test_other_code_is_said_and_takes_over_nothing(tmp_path, caplog):
    study = search(tmp_path).run().study
    assert taken_over(study), "one of three is a duplicate among two architectures"
    with caplog.at_level(logging.WARNING):
        study = search(tmp_path, space_of(act=torch.sin), trials=8).run().study
    assert (
        "'settings' goes on otherwise than its 3 trials were proposed and judged: code of the networks" in caplog.text
    )
    later = [trial for trial in study.trials if trial.number > 2]
    assert all(trial.user_attrs.get(DUPLICATE_OF, 3) > 2 for trial in later)
    assert sum(DUPLICATE_OF not in trial.user_attrs for trial in later) == 2


def test_the_test_split_is_judged_by_the_code_of_this_search(tmp_path):
    space = space_of(torch.tanh)
    first = search(tmp_path, space).run()
    space_of(torch.sin)  # the newest of its name
    assert search(tmp_path, space).run().test_metric == first.test_metric


def test_an_own_op_of_other_settings_is_other_code():
    codes, frame, cells = [], Skeleton(("normal",), 2, (1, 4, 4), 2), ("mine", "skip_connect")
    for kernel in (1, 1, 3):
        register_op(
            "mine",
            lambda site, kernel=kernel: nn.Conv2d(
                site.in_channels, site.out_channels, kernel, site.stride, kernel // 2
            ),
            cost=lambda site: elementwise_cost(site.in_shape, site.out_shape),
        )
        try:
            codes.append(NetworkSpace(CellSpace(cells), frame).code())
        finally:
            unregister_op("mine")
    assert codes[0] == codes[1] != codes[2]
    assert NetworkSpace(CellSpace(("nor_conv_1x1", "skip_connect")), frame).code() == ""


# -- tasks, objectives -------------------------------------------------------------------------------------------------


class Scaled(Task):
    metric, direction = "error", "minimize"

    def __init__(self, delta):
        self.delta = delta

    def loss(self, model, batch):
        return functional.huber_loss(model(batch[0]), batch[1], delta=self.delta)

    def evaluate(self, model, batches):
        return float(sum(self.loss(model, batch) for batch in batches))


@dataclass(frozen=True)
class ByFunction(Scaled):
    measure: object = functional.l1_loss
    weights: object = None

    def loss(self, model, batch):
        return self.measure(model(batch[0]), batch[1])


def test_attributes_of_a_plain_task_are_settings(tmp_path):
    search(tmp_path, task=Scaled(1.0)).run()
    assert search(tmp_path, task=Scaled(1.0), trials=4).run().best is not None
    with pytest.raises(ValueError, match="`task` must be that of the existing study"):
        search(tmp_path, task=Scaled(0.001), trials=5).run()


def test_functions_and_tensors_in_a_task_are_settings_too(tmp_path):
    search(tmp_path, task=ByFunction(weights=torch.ones(2))).run()
    assert search(tmp_path, task=ByFunction(weights=torch.ones(2)), trials=4).run().network is not None
    for other in (ByFunction(functional.mse_loss, torch.ones(2)), ByFunction(weights=torch.zeros(2))):
        with pytest.raises(ValueError, match="`task` must be that of the existing study"):
            search(tmp_path, task=other, trials=5).run()


def test_another_measure_of_one_name_is_refused(tmp_path):
    def run(factor, trials):
        size = Measure("size", lambda network, inputs: factor * float(len(list(network.parameters()))))
        objective = TrainObjective(space_of(), DATA, Recipe(epochs=1), Regression(), objectives=("r2", size))
        return search(tmp_path, data=None, objective=objective, trials=trials).run()

    run(1.0, 2)
    run(1.0, 3)
    with pytest.raises(ValueError, match="`costs` must be that of the existing study"):
        run(2.0, 4)


@pytest.mark.parametrize("bound", ["40", None, float("nan"), [40]], ids=str)
def test_a_bound_must_be_a_number(bound):
    with pytest.raises(ValueError, match=r"`constraints\['params'\]` must be a number but is"):
        TrainObjective(space_of(), DATA, Recipe(), Regression(), constraints={"params": bound})


def test_numbers_of_numpy_are_numbers(tmp_path):
    recipe = Recipe(epochs=1, batch_size=suggest_categorical([np.int64(8), np.int64(16)]))
    constraints = {"params": np.int64(40)}
    objective = TrainObjective(space_of(), DATA, recipe, Regression(), constraints=constraints)
    fields = {"data": None, "objective": objective}
    result = search(tmp_path, **fields).run()
    assert result.study.trials[0].params["batch_size"] in (8, 16)
    assert objective(optuna.trial.FixedTrial({"width": np.int64(4), "batch_size": 8})) is not None


def test_what_an_objective_says_of_itself_must_be_a_dictionary(tmp_path):
    class Mine:
        def __call__(self, trial):
            return float(space_of().suggest(trial).choices[0][1] == ("8",))

        def describe(self):
            return None

    with pytest.raises(ValueError, match=r"`objective.describe` must return a dictionary but returns a NoneType"):
        search(tmp_path, data=None, objective=Mine()).run()


# -- who proposes and who stops ----------------------------------------------------------------------------------------


def fixed(width):
    return PartialFixedSampler({"width": width}, RandomSampler(0))


@pytest.mark.parametrize(("name", "make", "before", "after", "said"), [
    ("pruner", lambda warmup: MedianPruner(5, warmup), 0, 70, "pruner.n_warmup_steps 70, not 0"),
    ("sampler", lambda trials: TPESampler(n_startup_trials=trials), 5, 9, "sampler.n_startup_trials 9, not 5"),
    ("sampler", fixed, 4, 8, 'sampler.fixed_params {"width": 8}, not {"width": 4}'),
], ids=["pruner", "sampler", "fixed"])  # fmt: skip
def test_other_settings_of_sampler_and_pruner_are_said(tmp_path, caplog, name, make, before, after, said):
    search(tmp_path, **{name: make(before)}).run()
    search(tmp_path, trials=4, **{name: make(before)}).run()
    assert "goes on otherwise" not in caplog.text
    search(tmp_path, trials=5, **{name: make(after)}).run()
    assert said in caplog.text


# -- spending ----------------------------------------------------------------------------------------------------------


def test_epochs_of_a_checkpoint_are_not_counted_again(tmp_path):
    stopping = []

    class Listener:
        def __getattr__(self, name):
            return lambda *arguments, **named: None

        def epoch(self, number, epoch, metrics):
            if epoch == 4 and not stopping:
                stopping.append(number)
                signal.raise_signal(signal.SIGTERM)  # ends at the next step, with a checkpoint

    def run(listener=None):
        changes = {"recipe": Recipe(epochs=6, batch_size=16), "trials": 1}
        return Search(
            "epochs", space_of(), DATA, folder=tmp_path, task=Regression(), tracking=None, pictures=False,
            sampler=RandomSampler(0), cpu_threads=1, **changes,
        ).run(listener)  # fmt: skip

    assert run(Listener()).interrupted
    study = run().study
    epochs = [spending_of(trial).epochs for trial in study.trials]
    assert epochs == [4, 2]

"""What a search would cost, of a module of one's own: trials, one-shot models, scores; the search then begins anew."""

import threading
from contextlib import suppress

import numpy as np
import optuna
import pytest
import torch
from declared import PERCEPTRON

from optuna_nas import GHNSampler, Recipe, Search, TensorData
from optuna_nas.data.splits import TRAIN
from optuna_nas.search import dry_run
from optuna_nas.search.dry_run import plan
from optuna_nas.search.strategy import STRATEGIES
from optuna_nas.training.loop import TrainingStopped


def search(**changes):
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    data = TensorData.from_arrays(x.numpy(), (x[:, 0] > 0).long().numpy() + (x[:, 1] > 0).long().numpy(), name="signs")
    given = {"trials": 20, "tracking": None, "cpu_threads": 1, "strategy": "random"} | changes
    return Search("net", PERCEPTRON, data, Recipe(epochs=3, batch_size=16), **given)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_a_strategy_does_beside_its_trials_is_in_the_seconds(strategy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = search(strategy=strategy)
    planned = plan(asked)
    said = dict(planned.lines())
    beside = sum(planned.model_seconds.values()) + planned.scoring_seconds
    assert planned.all_seconds.median == pytest.approx(planned.search_seconds.median + beside)
    assert (beside > 0) == (strategy not in ("tpe", "random"))
    assert ("In all" in said) == (beside > 0)
    assert list(planned.model_seconds) == {"snas": ["SNAS"], "ghn": ["GHN"], "hmnas": ["HMNAS"]}.get(strategy, [])
    assert all(seconds > 0 for seconds in planned.model_seconds.values())
    assert planned.scored == {"ghn": 300 + 30, "auto": 1000, "free": 1000, "hmnas": 1000}.get(strategy, 0)
    assert "of the whole process" in said["Memory"]
    part = dry_run._innermost(asked.resolved_sampler if strategy != "hmnas" else asked.resolved_pruner)
    fit = getattr(part, "in_study_fit", None)
    assert fit is None or fit.model is None or fit.model.step == 0, "what is timed has learned nothing"
    assert not list(tmp_path.iterdir())


def test_a_sampler_that_cannot_be_copied_is_planned():
    sampler = optuna.samplers.RandomSampler(seed=0)
    sampler.lock = threading.Lock()
    asked = search(strategy=None, sampler=sampler, pruner=optuna.pruners.NopPruner())
    assert dry_run._beside(asked) == ({}, {}, 0, 0.0)


@pytest.mark.parametrize(("epochs", "said"), [(1234.5, "1,234 epochs"), (99.96, "100 epochs"), (2.54, "2.54 epochs")])
def test_epochs_are_written_in_full(epochs, said):
    asked = search()
    planned = plan(asked)._replace(model_epochs={"SNAS": epochs}, model_seconds={"SNAS": 1.0})
    assert dict(planned.lines())["On top"].startswith(f"{said} in which SNAS trains")


def test_seconds_of_a_model_are_those_of_its_steps(monkeypatch):
    def timed(training, device):
        with suppress(TrainingStopped):
            training(lambda share: None, lambda: True)
        return 2.0

    monkeypatch.setattr(dry_run, "_time", timed)
    asked = search(strategy="snas")
    fit = asked.resolved_sampler.in_study_fit
    steps = round(fit.budget * fit.model.steps_per_epoch(asked.data, TRAIN))
    assert dry_run._beside(asked) == ({"SNAS": fit.budget}, {"SNAS": 2.0 * steps}, 0, 0.0)


def test_scores_are_counted_by_pools_within_their_seconds(monkeypatch):
    clock = [0.0]

    def score(architectures):
        clock[0] += len(architectures)
        return np.zeros(len(architectures))

    monkeypatch.setattr(dry_run.time, "monotonic", lambda: clock[0])
    given = {"score": score, "pool_size": 50, "trials_per_round": 10, "seed": 0}
    for most, seconds in ((None, 100.0), (20.0, 40.0)):
        sampler = GHNSampler(PERCEPTRON, **given, pool_seconds=most)
        asked = search(strategy=None, sampler=sampler, pruner=optuna.pruners.NopPruner(), trials=20)
        assert dry_run._beside(asked) == ({}, {}, 100, seconds)

"""Ray Tune finds what the core finds: the same architectures, the same trials stopped, the driver's weights."""

import pickle

import numpy as np
import optuna
import pytest
import torch
from mlflow import MlflowClient
from optuna.pruners import MedianPruner, SuccessiveHalvingPruner
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from optuna_nas import (
    SNAS,
    GHNPruner,
    NetworkSpace,
    SNASRecipe,
    SNASSampler,
    digits,
    nasbench201_skeleton,
    nasbench201_space,
)

pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.process,
    pytest.mark.filterwarnings("ignore:::ray.*"),  # Ray's own, of what it will change
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of files that Ray's processes log to
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # the same, when collected
]

ray = pytest.importorskip("ray")
tune = pytest.importorskip("ray.tune")

from ray.tune.logger.mlflow import MLflowLoggerCallback  # noqa: E402
from ray.tune.search.optuna import OptunaSearch  # noqa: E402

from optuna_nas.pipelines.ray_tune import InheritedWeights, PrunerScheduler  # noqa: E402

SPACE = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 4, (1, 8, 8), 10))
STEPS = 3


def n_convolutions(architectures):
    return np.array([float(str(architecture.choices).count("conv")) for architecture in architectures])


@pytest.fixture(scope="module", autouse=True)
def _started(tmp_path_factory):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.chdir(tmp_path_factory.mktemp("here"))
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
        yield
        ray.shutdown()


def fit(trainable, search, folder, n_trials, at_once=1, scheduler=None, callbacks=()):
    """Run a Tuner whose trials take turns in the same processes, since a new one takes seconds."""
    config = tune.TuneConfig(
        search_alg=search, num_samples=n_trials, max_concurrent_trials=at_once, scheduler=scheduler, reuse_actors=True
    )
    run_config = tune.RunConfig(storage_path=str(folder), verbose=0, callbacks=list(callbacks))
    return tune.Tuner(trainable, tune_config=config, run_config=run_config).fit()


def made_trainable(space, weights=None):
    """Return a trainable that Ray carries to its processes, which do not know this file."""

    def trainable(config):
        architecture = space.decode(config)
        given = None if weights is None else weights.get()
        model = architecture.build(weights=given)
        total = float(sum(tensor.double().sum() for tensor in model.state_dict().values()))
        for step in range(3):
            n = str(architecture.choices).count("conv")
            tune.report({"accuracy": n - 0.1 * n * step * (n % 2), "total": total})

    return trainable


def curve(architecture):
    (n,) = n_convolutions([architecture])
    return [n - 0.1 * n * step * (n % 2) for step in range(STEPS)]


def core_study(sampler, pruner, n_trials):
    """Return the study of an objective that does what the trainable does."""

    def objective(trial):
        architecture = SPACE.suggest(trial)
        if trial.should_prune():
            raise optuna.TrialPruned
        for step, value in enumerate(curve(architecture), start=1):
            trial.report(value, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
    study.optimize(objective, n_trials)
    return study


def told(study):
    return [(trial.state, trial.params, trial.values, trial.intermediate_values) for trial in study.trials]


def found(search):
    return search._ot_study


def test_pruned_trials_are_those_of_the_core_and_are_told_so(tmp_path):
    def pruner():
        inner = MedianPruner(n_startup_trials=5)
        return GHNPruner(
            space=SPACE, score=n_convolutions, quantile=0.7, n_random=50, n_startup_trials=5, exempt=0.01, pruner=inner
        )

    expected = core_study(SNASSampler(SPACE, seed=48), pruner(), 10)
    early = [trial for trial in expected.trials if not trial.intermediate_values]
    late = [trial for trial in expected.trials if trial.state == TrialState.PRUNED and trial.intermediate_values]
    assert early
    assert late

    snas = SNAS(SPACE, SNASRecipe(relaxation="one_path", batch_size=16))
    snas.fit(digits(), 0.02, show_progress=False)
    weights = InheritedWeights(SPACE, snas.weights)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    logged = MLflowLoggerCallback(tracking_uri=uri, experiment_name="ray")
    search = OptunaSearch(SPACE.distributions(), metric="accuracy", mode="max", sampler=SNASSampler(SPACE, seed=48))
    results = fit(made_trainable(SPACE, weights), search, tmp_path, 10, 1, PrunerScheduler(pruner()), [weights, logged])

    assert told(found(search)) == told(expected)
    assert not results.errors
    assert SPACE.encode(SPACE.decode(results.get_best_result("accuracy", "max").config)) == expected.best_params

    shown = [result for result in results if "accuracy" in result.metrics]
    assert len(shown) == 10 - len(early)  # the others never started
    for result in shown:  # trained with the weights of the supernet in this process
        inherited = SPACE.decode(result.config).build(weights=snas.weights(SPACE.decode(result.config)))
        total = float(sum(tensor.double().sum() for tensor in inherited.state_dict().values()))
        assert result.metrics["total"] == pytest.approx(total)

    client = MlflowClient(uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "ray"]
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == len(shown)
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert all(run.data.params.keys() >= SPACE.distributions().keys() for run in runs)


def test_two_at_once_with_a_supernet_that_learns_meanwhile(tmp_path):
    snas = SNAS(SPACE, SNASRecipe(relaxation="one_path", batch_size=16))
    sampler = SNASSampler(SPACE, snas, data=digits(), budget=0.05, n_trials=5, trials_per_round=3, seed=0)
    weights = InheritedWeights(SPACE, snas.weights)
    search = OptunaSearch(SPACE.distributions(), metric="accuracy", mode="max", sampler=sampler)
    pruner = SuccessiveHalvingPruner(reduction_factor=2)
    results = fit(made_trainable(SPACE, weights), search, tmp_path, 5, 2, PrunerScheduler(pruner), [weights])
    assert snas.fitted
    assert not results.errors
    states = [trial.state for trial in found(search).trials]
    assert len(states) == 5
    assert set(states) <= {TrialState.COMPLETE, TrialState.PRUNED}
    for trial in found(search).trials:
        values = curve(SPACE.decode(trial.params))
        assert list(trial.intermediate_values.values()) == values[: len(trial.intermediate_values)]
        assert (trial.state == TrialState.COMPLETE) == (
            len(trial.intermediate_values) == STEPS
        ) or trial.last_step == STEPS


def test_a_trainable_that_fails_is_told_as_failed(tmp_path):
    search = OptunaSearch(SPACE.distributions(), metric="accuracy", mode="max", sampler=RandomSampler(seed=0))

    def trainable(config):
        raise ZeroDivisionError("no such luck")

    results = fit(trainable, search, tmp_path, 1, 1, PrunerScheduler(MedianPruner()))
    assert len(results.errors) == 1
    assert [trial.state for trial in found(search).trials] == [TrialState.FAIL]


def test_flat_and_nested_configurations_are_decoded():
    flat = OptunaSearch(SPACE.distributions(), metric="a", mode="max", sampler=SNASSampler(SPACE, seed=0))
    config = flat.suggest("one")
    assert config == found(flat).trials[0].params
    assert SPACE.encode(SPACE.decode(config)) == config
    rate = optuna.distributions.FloatDistribution(0.01, 0.1)
    nested = OptunaSearch({"cells": SPACE.distributions(), "training": {"rate": rate}}, metric="a", mode="max")
    config = nested.suggest("one")
    assert config["training"].keys() == {"rate"}
    assert SPACE.encode(SPACE.decode(config)) == config["cells"]


# -- errors with a way out -------------------------------------------------------------------------------------------


def test_a_configuration_that_lacks_a_parameter_is_named():
    config = dict.fromkeys(list(SPACE.distributions())[1:], "none")
    with pytest.raises(ValueError, match="`params` must hold every path of the space but lacks 'cell_0_1'"):
        SPACE.decode({"cells": config, "rate": 0.1})


def test_a_scheduler_of_ray_is_no_pruner():
    with pytest.raises(TypeError, match="`pruner` must be a pruner of Optuna but is a FIFOScheduler; pass it to"):
        PrunerScheduler(tune.schedulers.FIFOScheduler())


def test_a_search_without_a_study_is_refused(tmp_path):
    with pytest.raises(TypeError, match="`search_alg` must be Ray's OptunaSearch for a PrunerScheduler"):
        fit(made_trainable(SPACE), None, tmp_path, 1, None, PrunerScheduler(MedianPruner()))


def test_weights_are_asked_for_in_a_trainable_alone():
    weights = pickle.loads(pickle.dumps(InheritedWeights(SPACE, lambda architecture: {"x": torch.zeros(1)})))
    with pytest.raises(RuntimeError, match=r"`get` must be called in a trainable whose `Tuner` has this object"):
        weights.get()

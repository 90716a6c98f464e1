"""Ray Tune: architectures by Ray's `OptunaSearch`, trials stopped by Optuna's and our pruners, inherited weights.

Needs `pip install 'optuna_nas[ray]'`. Spaces and samplers need nothing of this file:
`OptunaSearch(space.distributions(), metric="accuracy", mode="max", sampler=SNASSampler(space))`, and
`space.decode(config).build()` in the trainable.
"""

from __future__ import annotations

import copy
import uuid
from typing import TYPE_CHECKING, Any

import ray
from optuna.pruners import BasePruner
from ray.tune import Callback, get_context
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from optuna_nas.storage.attributes import find_trial

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from optuna import Study
    from optuna.trial import FrozenTrial
    from torch import Tensor

    from optuna_nas.space import Architecture, Space

MAX_WRAPPERS = 10
"""Searchers around Ray's `OptunaSearch`, such as a limit of concurrency, that are looked through."""


class PrunerScheduler(FIFOScheduler):  # type: ignore[misc]  # Ray has no annotations
    """Scheduler of Ray Tune that stops the trials which a pruner of Optuna would prune; for Ray's `OptunaSearch`.

    The pruner is asked once before a trial starts, where `GHNPruner` and `HMNASPruner` judge, and at every report. What
    it stops is PRUNED in Optuna's study, at the step and with the values at which an objective would have been; Ray
    shows it as TERMINATED. A trial that is stopped before it starts has no result, and no run in MLflow.

    Stopped trainables end as Ray's schedulers end them: the process of the trial is told to stop after its report.
    Schedulers of Ray, such as ASHA, stop trials too, but those are COMPLETE in Optuna's study, since `OptunaSearch`
    can't tell them from finished ones; Optuna's `SuccessiveHalvingPruner` and `HyperbandPruner` do the same here.

    Samplers and pruners with `data` train their model in the process of the `Tuner`, inside Ray's event loop. While a
    round is trained, which takes `budget` epochs times `trials_per_round` / `n_trials` (the argument of the sampler or
    pruner, else 100), no trial is started or stopped; running trials go on to their next report and wait there, and
    nothing is lost. A model that was fitted before `Tuner.fit()` takes no time.

    Args:
        pruner: Any pruner of Optuna or of this package.

    Raises:
        TypeError: The pruner is none, or the search algorithm of the `Tuner` is not Ray's `OptunaSearch`.

    Example:
        >>> import optuna
        >>> from ray.tune import TuneConfig
        >>> from ray.tune.search.optuna import OptunaSearch
        >>> from optuna_nas import SNASSampler, nasbench201_space
        >>> from optuna_nas.pipelines.ray_tune import PrunerScheduler
        >>> space = nasbench201_space()
        >>> search = OptunaSearch(space.distributions(), metric="accuracy", mode="max", sampler=SNASSampler(space))
        >>> config = TuneConfig(search_alg=search, scheduler=PrunerScheduler(optuna.pruners.MedianPruner()))
        >>> tuner = Tuner(trainable, tune_config=config)  # doctest: +SKIP
    """

    def __init__(self, pruner: BasePruner) -> None:
        if not isinstance(pruner, BasePruner):
            raise TypeError(
                f"`pruner` must be a pruner of Optuna but is a {type(pruner).__name__}; pass it to `Tuner` as it is if "
                "it is a scheduler of Ray."
            )
        super().__init__()
        self.pruner = pruner
        self._new: list[Any] = []
        self._condemned: list[Any] = []

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._new.append(trial)  # Ray does not let go of a trial before all know it

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        metric = tune_controller.search_alg.metric
        if isinstance(metric, list):
            return str(TrialScheduler.CONTINUE)  # Optuna's trials of several objectives report nothing
        study, asked = _asked(tune_controller, trial)
        # Ray's `OptunaSearch` reports the value after this method, and only of trials that go on.
        asked.intermediate_values[result["training_iteration"]] = float(result[metric])
        if not self.pruner.prune(study, asked):
            return str(TrialScheduler.CONTINUE)
        # `OptunaSearch` calls a running trial that is stopped COMPLETE, and a paused one PRUNED.
        tune_controller.pause_trial(trial, should_checkpoint=False)
        self._condemned.append(trial)
        return str(TrialScheduler.NOOP)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        while self._condemned:
            tune_controller.stop_trial(self._condemned.pop())
        while self._new:
            trial = self._new.pop(0)
            if trial.status == trial.PENDING and self.pruner.prune(*_asked(tune_controller, trial)):
                # As `stop_trial` does, without a word to loggers, which know nothing of trials that have not started.
                trial.init_local_path()  # else Ray's table of results fails
                tune_controller.search_alg.on_trial_complete(trial.trial_id)
                tune_controller._set_trial_status(trial, trial.TERMINATED)
        return super().choose_trial_to_run(tune_controller)

    def debug_string(self) -> str:
        return f"Pruning by {type(self.pruner).__name__}."


def _asked(tune_controller: Any, trial: Any) -> tuple[Study, FrozenTrial]:
    """Return the study of Ray's `OptunaSearch`, and a copy of Optuna's trial behind one of Ray's.

    The two private attributes are those of Ray 2.60; Ray offers no other way from its trial to Optuna's.
    """
    searcher = tune_controller.search_alg
    for _ in range(MAX_WRAPPERS):
        if isinstance(searcher, OptunaSearch):
            study = searcher._ot_study
            found = find_trial(study, searcher._ot_trials[trial.trial_id].number)
            assert found is not None
            return study, copy.deepcopy(found)
        searcher = getattr(searcher, "searcher", None)
    raise TypeError(
        "`search_alg` must be Ray's OptunaSearch for a PrunerScheduler, whose pruner reads its study, but is a "
        f"{type(tune_controller.search_alg).__name__}; use `OptunaSearch(space.distributions(), ...)`."
    )


class InheritedWeights(Callback):  # type: ignore[misc]  # Ray has no annotations
    """Weights of a model in the process of the `Tuner`, such as a supernet's, for the trainables that start from them.

    A callback of the `Tuner`: when a trial starts, the weights of its architecture are put into Ray's object store,
    where the trainable takes them by `get()`; they are dropped when the trial ends. They are those of the model at that
    moment, which a sampler may train meanwhile.

    Args:
        space: Search space of the trials.
        weights: Function of an architecture that returns a state dictionary, or None for random weights:
            `snas.weights` or `ghn.weights`.

    Example:
        >>> from ray.tune import RunConfig
        >>> from optuna_nas import SNAS, NetworkSpace, nasbench201_skeleton, nasbench201_space
        >>> from optuna_nas.pipelines.ray_tune import InheritedWeights
        >>> space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(repeats=1, channels=4))
        >>> weights = InheritedWeights(space, SNAS(space).weights)
        >>> def trainable(config):
        ...     model = space.decode(config).build(weights=weights.get())
        ...     tune.report({"accuracy": your_training(model)})
        >>> run_config = RunConfig(callbacks=[weights])
        >>> tuner = Tuner(trainable, run_config=run_config)  # doctest: +SKIP
    """

    def __init__(self, space: Space, weights: Callable[[Architecture], Mapping[str, Tensor] | None]) -> None:
        self._space, self._weights = space, weights
        self._name = f"optuna_nas-weights-{uuid.uuid4().hex}"
        self._holder: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what trainables need: the name under which they find the weights."""
        return {"_space": self._space, "_weights": None, "_name": self._name, "_holder": None}

    def setup(self, **info: Any) -> None:
        """Start what holds the weights; Ray calls this."""
        self._holder = ray.remote(_Holder).options(name=self._name, num_cpus=0).remote()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Put the weights of the trial's architecture into the object store; Ray calls this."""
        weights = self._weights(self._space.decode(trial.config))
        if weights is not None:
            weights = {name: tensor.detach().cpu() for name, tensor in weights.items()}
        ray.get(self._holder.put.remote(trial.trial_id, [ray.put(weights)]))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Drop the weights of a trial; Ray calls this."""
        self._holder.drop.remote(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Drop the weights of a trial; Ray calls this."""
        self._holder.drop.remote(trial.trial_id)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """End what holds the weights; Ray calls this."""
        ray.kill(self._holder)

    def get(self) -> Mapping[str, Tensor] | None:
        """Return the weights of the architecture of the running trial; call it in the trainable.

        Raises:
            RuntimeError: It is called elsewhere, or this object is not among the callbacks of the `Tuner`.
        """
        trial = get_context().get_trial_id()
        try:
            (reference,) = ray.get(ray.get_actor(self._name).take.remote(trial))
        except (ValueError, TypeError) as error:  # Ray knows no such name; the trial has no weights
            raise RuntimeError(
                "`get` must be called in a trainable whose `Tuner` has this object among its callbacks but finds no "
                "weights; pass `run_config=RunConfig(callbacks=[weights])`."
            ) from error
        return ray.get(reference)  # type: ignore[no-any-return]


class _Holder:
    """Actor of Ray that holds references to the weights of running trials."""

    def __init__(self) -> None:
        self._references: dict[str, list[Any]] = {}

    def put(self, trial: str, reference: list[Any]) -> None:
        self._references[trial] = reference

    def take(self, trial: str) -> list[Any] | None:
        return self._references.get(trial)

    def drop(self, trial: str) -> None:
        self._references.pop(trial, None)

"""What a trial does: take an architecture, train its network, report, return the accuracy on the report split."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from optuna import Trial, TrialPruned
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor

from optuna_nas.data import REPORT
from optuna_nas.networks import DiscreteNetwork, MixedNetwork
from optuna_nas.pruners import should_prune
from optuna_nas.ranks import RankLost, current_ranks
from optuna_nas.space import Architecture, Cost, Skeleton, Space
from optuna_nas.space.cost import COSTS
from optuna_nas.storage import StorageError, backend_of
from optuna_nas.study_state import (
    ANYTIME_CURVE,
    DIGEST,
    GPU_SECONDS,
    PREFIX,
    RESUMES,
    SURROGATE_SCORE,
    Unverified,
    fetch_file,
    store_file,
)
from optuna_nas.training import (
    EpochResult,
    Recipe,
    TrainingDiverged,
    TrainingResult,
    TrainingStopped,
    evaluate,
    is_out_of_memory,
    load_tensors,
    prefixed,
    release_memory,
    save_tensors,
    train,
    without_prefix,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from optuna.artifacts._protocol import ArtifactStore

    from optuna_nas.data import Data
    from optuna_nas.oneshot.ghn import GHN
    from optuna_nas.oneshot.hmnas import HMNAS
    from optuna_nas.oneshot.model import Score

logger = logging.getLogger(__name__)

ACCURACY = "accuracy"

SCRATCH, GENERATED = STARTS = ("scratch", "ghn")

REASON = "reason"
"""Trial attribute: why it was pruned or failed, one sentence."""
DUPLICATE_OF = "duplicate_of"
"""Trial attribute: number of the finished trial that computed the same function under the same other parameters."""
TRAINING_DIGEST = "training_digest"
"""Trial attribute: digest of skeleton, recipe, data and what the training started from."""
MASKS = "masks/"
"""Begins the names of masks in the file of a network that has some."""
START = "start"
"""Trial attribute, where trainings start from generated weights: `ghn`, or `scratch` while the GHN has not learned."""
NETWORK = "network"
"""Trial attribute: file of the trained network, as long as the trial is among the best."""
SHARED_NETWORK = PREFIX + "network"
"""Trial attribute: where that file is in the store that workers share."""
MASKED = "masked"
"""Trial attribute: for every time that masks made the running network smaller, the epoch, the parameters and
multiply-adds that are left, and the accuracy before and after."""
GPU_SHARE = "OPTUNA_NAS_GPU_SHARE"
"""Environment variable: share of its GPU that a worker has, in (0, 1]."""
CHECKPOINT = PREFIX + "checkpoint"
"""Trial attribute: where its newest checkpoint is in the store that workers share."""


class TrialListener(Protocol):
    """Hears of a trial while it runs; must not raise and must not take long."""

    def trial_started(self, trial: Trial | FrozenTrial, metrics: Mapping[str, float]) -> None:
        """Hear the parameters (`trial.params`) and the cost of a trial that starts to train."""

    def epoch(self, trial_number: int, step: int, metrics: Mapping[str, float]) -> None:
        """Hear the learning curves after epoch `step`, counted from 1."""

    def progress(self, trial_number: int, fraction: float) -> None:
        """Hear which fraction of its training a trial has done; called after every step."""


class OutOfMemory(MemoryError):
    """A network did not fit the memory, with whole batches or with halves."""


def suggest_float(low: float, high: float, *, log: bool = False, step: float | None = None) -> float:
    """Let every trial suggest a number for a field of a `Recipe`; typed as the number it will be."""
    return cast("float", FloatDistribution(low, high, log=log, step=step))


def suggest_int(low: int, high: int, *, log: bool = False, step: int = 1) -> int:
    """Let every trial suggest an integer for a field of a `Recipe`; typed as the integer it will be."""
    return cast("int", IntDistribution(low, high, log=log, step=step))


def suggest_categorical(choices: Sequence[Any]) -> Any:
    """Let every trial suggest one of `choices` for a field of a `Recipe`."""
    return CategoricalDistribution(choices)


def resolve(recipe: Recipe, trial: Trial) -> Recipe:
    """Return the recipe with every suggestion replaced by the trial's value; parameters are named like the fields."""
    values: dict[str, Any] = {}
    for recipe_field in fields(recipe):
        value: object = getattr(recipe, recipe_field.name)
        if isinstance(value, FloatDistribution):
            values[recipe_field.name] = trial.suggest_float(
                recipe_field.name, value.low, value.high, log=value.log, step=value.step
            )
        elif isinstance(value, IntDistribution):
            values[recipe_field.name] = trial.suggest_int(
                recipe_field.name, value.low, value.high, log=value.log, step=value.step
            )
        elif isinstance(value, CategoricalDistribution):
            values[recipe_field.name] = trial.suggest_categorical(recipe_field.name, value.choices)
    return replace(recipe, **values)


@dataclass(frozen=True)
class TrainObjective:
    """Suggest an architecture, ask the pruner, build, train, report every epoch, return the report-split accuracy.

    Of a network with early exits that is the accuracy of an anytime prediction, the mean over all budgets up to
    `skeleton.budget` (`anytime_accuracy`).

    An architecture that cannot reach its output is pruned before it is built. One that computes the same function as a
    finished trial's, under the same other parameters, takes over that trial's result. A network that does not fit the
    memory is tried once with half batches, then the trial fails with the reason on it.

    Args:
        space: What may be chosen.
        skeleton: Frame around the cells.
        data: Images and splits.
        recipe: How to train; fields may be suggestions (`suggest_float`, ...).
        objectives: What to return: `accuracy` first, then any of `params`, `multiply_adds`, `memory_access` (to be
            minimised, in a study with as many directions). With several, only pruners that look at the architecture
            work (`GHNPruner`, `HMNASPruner`), since Optuna takes no reports.
        constraints: Upper bounds of costs, such as `{"params": 2e6}`, as Optuna constraints.
        start: What weights a training starts from: `scratch`, `ghn` (generated by the `ghn`), or what a function of the
            architecture returns: a state (`snas.weights`), a network (`hmnas.inherited`), or None for scratch.
        ghn: A GHN in this skeleton, fitted before or by its sampler; trainings before that start from scratch.
        noise: Of generated kernels, relative to their spread; see `GHN.weights`.
        masks: An HM-NAS of this space whose masks are applied to the running network between epochs: what has fallen of
            its edges and ops is removed (and of its weights, where `start` is a function), so that a trial grows
            cheaper. Attribute `masked` and the curve `masked_accuracy` tell what that did.
        score: A guess before the training, recorded as `surrogate_score`.
        reuse_duplicates: Take over the result of a trial that trained the same function.
        device: `auto` (a GPU if there is one), or a torch device.
        folder: Where networks (`networks/trial-00007.safetensors`) and checkpoints go; None keeps neither.
        listener: Hears of the trial while it runs; set by the search.
        should_stop: Asked after every training step; set by the search.
        store: Where checkpoints and networks go besides, for other machines; set by the search.
        lead: Told before every training what the other ranks must `follow`; set by the search of several ranks.

    Raises:
        ValueError: An objective or a constraint is unknown.
    """

    space: Space
    skeleton: Skeleton
    data: Data
    recipe: Recipe = field(default_factory=Recipe)
    objectives: tuple[str, ...] = (ACCURACY,)
    constraints: Mapping[str, float] = field(default_factory=dict)
    start: str | Callable[[Architecture], Mapping[str, Tensor] | DiscreteNetwork | None] = SCRATCH
    ghn: GHN | None = None
    noise: float = 0.1
    masks: HMNAS | None = None
    score: Score | None = None
    reuse_duplicates: bool = True
    device: str = "auto"
    folder: Path | None = None
    listener: TrialListener | None = None
    should_stop: Callable[[], bool] | None = None
    store: ArtifactStore | None = None
    lead: Callable[[Mapping[str, Any]], None] | None = None

    def __post_init__(self) -> None:
        if not self.objectives or self.objectives[0] != ACCURACY:
            raise ValueError(f"`objectives` must begin with {ACCURACY!r} but got {self.objectives}.")
        for name, values in (("objectives", self.objectives[1:]), ("constraints", self.constraints)):
            unknown = sorted(set(values) - set(COSTS))
            if unknown:
                raise ValueError(f"`{name}` must name costs {COSTS} but got {unknown[0]!r}.")
        expected = (*self.data.input_shape, self.data.classes)
        if expected != (*self.skeleton.input_shape, self.skeleton.classes):
            raise ValueError(
                f"`skeleton` must fit the data, input_shape={self.data.input_shape} and classes={self.data.classes}, "
                f"but has input_shape={self.skeleton.input_shape} and classes={self.skeleton.classes}; "
                "pass them from `data`."
            )
        if isinstance(self.start, str) and self.start not in STARTS:
            raise ValueError(f"`start` must be one of {STARTS} or a function of architectures but got {self.start!r}.")
        if (self.start == GENERATED) != (self.ghn is not None):
            raise ValueError("`ghn` must be given with start='ghn', and only then; pass a fitted GHN.")
        if not 0 <= self.noise < inf:
            raise ValueError(
                f"`noise` must not be negative but got {self.noise}; 0.1 is a tenth of the kernels' spread."
            )
        if self.ghn is not None and (self.ghn.space, self.ghn.skeleton) != (self.space, self.skeleton):
            raise ValueError("`ghn` must be of the space and the skeleton of the objective but has others.")
        if self.masks is not None and self.masks.space != self.space:
            raise ValueError("`masks` must be an HMNAS of the space of the objective but is of another.")
        # An image too small for the reductions shows here, before the first trial.
        self.space.graph(self.space.everything(), self.skeleton)

    @cached_property
    def device_data(self) -> Data:
        """The data on the device that trains."""
        to = getattr(self.data, "to", None)
        return cast("Data", to(choose_device(self.device))) if to else self.data

    @property
    def directions(self) -> tuple[str, ...]:
        """What a study must do with the objectives: maximise the accuracy, minimise costs."""
        return ("maximize", *("minimize" for _ in self.objectives[1:]))

    def describe_start(self) -> list[Any]:
        """Return what trainings start from, as JSON values."""
        if not isinstance(self.start, str):
            return ["own"]
        return [self.start] if self.ghn is None else [self.start, self.noise, self.ghn.describe()]

    def _training_digest(self, generated: bool) -> str:
        """Return what else than the architecture and suggested parameters decides a result."""
        start = [SCRATCH] if self.ghn is not None and not generated else self.describe_start()
        masks = () if self.masks is None else (self.masks.describe(),)
        parts = (self.skeleton, self.recipe, self.data.describe(), start, *masks)
        return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()

    def __call__(self, trial: Trial) -> float | tuple[float, ...]:
        directions = tuple(direction.name.lower() for direction in trial.study.directions)
        if directions != self.directions:
            raise ValueError(
                f"`directions` of the study must be {self.directions} for the objectives {self.objectives} but are "
                f"{directions}; create the study with `directions=objective.directions`."
            )
        architecture = self.space.suggest(trial)
        recipe = resolve(self.recipe, trial)
        if not architecture.connected:
            _prune(trial, "the architecture does not reach its output: 'none' cuts every path of a cell")
        digest = architecture.canonical().digest
        cost = architecture.cost(self.skeleton)
        trial.set_user_attr(DIGEST, digest)
        generated = self.ghn is not None and self.ghn.fitted
        if self.ghn is not None:
            trial.set_user_attr(START, GENERATED if generated else SCRATCH)
            if not generated:
                logger.warning("Trial %d starts from scratch: the GHN has not learned yet.", trial.number)
        training_digest = self._training_digest(generated)
        trial.set_user_attr(TRAINING_DIGEST, training_digest)
        for name in COSTS:
            trial.set_user_attr(name, getattr(cost, name))
        for name, bound in self.constraints.items():
            trial.set_constraint(name, getattr(cost, name) - bound)
        metrics: dict[str, float] = {name: getattr(cost, name) for name in COSTS}
        if self.score is not None:
            metrics[SURROGATE_SCORE] = float(self.score([architecture])[0])
            trial.set_user_attr(SURROGATE_SCORE, metrics[SURROGATE_SCORE])
        if self.listener:
            self.listener.trial_started(trial, metrics)
        single = len(trial.study.directions) == 1
        if should_prune(trial):
            _prune(trial, f"{_pruner_name(trial)} stopped it before the first step")
        earlier = self._duplicate(trial, digest, training_digest) if self.reuse_duplicates else None
        if earlier is not None:
            trial.set_user_attr(DUPLICATE_OF, earlier.number)
            if earlier.state == TrialState.PRUNED:
                _prune(trial, f"it computes the same function as trial {earlier.number}, which was pruned")
            return self._values(earlier.values[0], cost)
        network, result, failure = None, None, None
        try:
            network, result = self._train(trial, architecture, recipe, single, generated)
        except (TrialPruned, TrainingDiverged, OutOfMemory) as error:
            failure = type(error)(str(error))
        if network is None or result is None:
            # A new exception: the traceback of the first one, which Optuna keeps, would keep the network too.
            assert failure is not None
            raise failure
        trial.set_user_attr("train_seconds", round(result.seconds, 3))
        for name in ("peak_memory_bytes", "skipped_steps"):
            if getattr(result, name):
                trial.set_user_attr(name, getattr(result, name))
        if result.accumulation > 1:
            trial.set_user_attr("batch_halved", True)
        if self.skeleton.budget:
            accuracies = [round(value, 6) for value in result.last.accuracies]
            columns = {"multiply_adds": network.graph.exit_costs, ACCURACY: accuracies}
            trial.set_user_attr(ANYTIME_CURVE, {**columns, "budget": self.skeleton.budget})
        if self.folder is not None:
            save_network(network_path(self.folder, trial.number), network.compact())
            trial.set_user_attr(NETWORK, str(network_path(self.folder, trial.number)))
            if self.store is not None:
                try:
                    shared = store_file(self.store, network_path(self.folder, trial.number))
                    trial.set_user_attr(SHARED_NETWORK, shared)
                except Exception as error:  # each store has errors of its own
                    logger.warning("The network of trial %d could not be shared (%s).", trial.number, error)
        return self._values(result.last.report_accuracy, network.left.cost(self.skeleton))

    def _values(self, accuracy: float, cost: Cost) -> float | tuple[float, ...]:
        """Return what the objectives ask for."""
        if len(self.objectives) == 1:
            return accuracy
        return (accuracy, *(float(getattr(cost, name)) for name in self.objectives[1:]))

    def _train(
        self, trial: Trial, architecture: Architecture, recipe: Recipe, single: bool, generated: bool
    ) -> tuple[DiscreteNetwork, TrainingResult]:
        first = self._first_weights(trial, architecture, generated)
        if isinstance(first, DiscreteNetwork):
            network = first
        else:
            network = DiscreteNetwork(architecture, self.skeleton, first, recipe.seed)

        def on_epoch(result: EpochResult) -> None:
            if self.listener:
                self.listener.epoch(trial.number, result.epoch, _curves(result))
            if shared is not None:
                shared.publish()
            if single:
                trial.report(result.report_accuracy, result.epoch)
                if result.epoch < recipe.epochs and trial.should_prune():
                    _prune(trial, f"{_pruner_name(trial)} stopped it after epoch {result.epoch} of {recipe.epochs}")

        masks = self.masks
        adapt = None if masks is None else (lambda result: self._apply_masks(masks, trial, network, recipe, result))
        checkpoint, shared = None, None
        if self.folder is not None:
            checkpoint = checkpoint_path(self.folder, trial.user_attrs.get(RESUMES, trial.number))
            if self.store is not None:
                shared = _SharedCheckpoint(self.store, checkpoint, trial)
                shared.fetch()
        listener, number = self.listener, trial.number
        keep_checkpoint = False
        begun = time.monotonic()
        if self.lead is not None:
            self.lead(_plan(network, recipe))
        ranks = current_ranks()
        try:
            with ranks.together():
                result = train(
                    network,
                    self.device_data,
                    recipe,
                    drop_path=self.skeleton.drop_path,
                    on_epoch=on_epoch,
                    on_step=(lambda fraction: listener.progress(number, fraction)) if listener else None,
                    adapt=adapt,
                    checkpoint=checkpoint,
                    configuration={"architecture": architecture.to_dict(), "skeleton": self.skeleton.to_dict()},
                    should_stop=self.should_stop,
                )
        except (TrainingStopped, KeyboardInterrupt, RankLost):
            keep_checkpoint = True
            if shared is not None:
                shared.publish()
            raise
        except (*StorageError, UpdateFinishedTrialError):
            keep_checkpoint = True  # somebody goes on with it, or does already
            raise
        except TrainingDiverged as error:
            trial.set_user_attr(REASON, str(error))
            raise
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            reason = (
                f"`batch_size` must fit the memory but {recipe.batch_size} did not, nor did {recipe.batch_size // 2} "
                "images at a time; use fewer, or a narrower skeleton"
            )
            raise _out_of_memory(trial, reason) from None  # the traceback would hold the tensors that do not fit
        finally:
            if checkpoint is not None and not keep_checkpoint:
                checkpoint.unlink(missing_ok=True)
                if shared is not None:
                    shared.remove()
            if share := ranks.size * gpu_share(self.device_data.device):
                trial.set_user_attr(GPU_SECONDS, round(share * (time.monotonic() - begun), 3))
            release_memory(self.device_data.device)
        return network, result

    def follow(self, plan: Mapping[str, Any]) -> None:
        """Train along with rank 0, whose `lead` was told this plan; it alone keeps the result."""
        try:
            with current_ranks().together():
                architecture = Architecture.from_dict(plan["architecture"])
                skeleton = Skeleton.from_dict(plan["skeleton"])
                if plan["mixing"] is None:
                    network = DiscreteNetwork(architecture, skeleton, seed=0)  # its weights come from rank 0
                else:
                    network = MixedNetwork(architecture, skeleton, plan["mixing"], seed=0)
                train(network, self.device_data, Recipe(**plan["recipe"]), drop_path=self.skeleton.drop_path)
        finally:
            release_memory(self.device_data.device)

    def _apply_masks(
        self, masks: HMNAS, trial: Trial, network: DiscreteNetwork, recipe: Recipe, result: EpochResult
    ) -> None:
        """Remove from the running network what masks have cut meanwhile; tell what that did."""
        parameters = dict(network.named_parameters())
        known = {} if isinstance(self.start, str) else masks.weight_masks()
        before = network.left, network.params_left
        network.remove(masks.fallen(network.left), {n: mask for n, mask in known.items() if n in parameters})
        if (network.left, network.params_left) == before:
            return
        _, accuracy = evaluate(network, self.device_data, REPORT, recipe.precision)
        cost = network.left.cost(self.skeleton)
        row = {
            "epoch": result.epoch,
            "params": network.params_left,
            "multiply_adds": cost.multiply_adds,
            "accuracy_before": result.report_accuracy,
            "accuracy_after": accuracy,
        }
        trial.set_user_attr(MASKED, [*trial.user_attrs.get(MASKED, ()), row])
        if self.listener:
            curves = {"masked_accuracy": accuracy, "params": row["params"], "multiply_adds": row["multiply_adds"]}
            self.listener.epoch(trial.number, result.epoch, curves)

    def _first_weights(
        self, trial: Trial, architecture: Architecture, generated: bool
    ) -> Mapping[str, Tensor] | DiscreteNetwork | None:
        """Return what the training of an architecture starts from, None for fresh weights."""
        if not isinstance(self.start, str):
            return self.start(architecture)
        if self.ghn is None or not generated:
            return None
        try:
            self.ghn.attach(self.device_data)
            return self.ghn.weights(architecture, self.noise)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            release_memory(self.device_data.device)
            reason = "`scoring_images` of the GHN must fit the memory, for statistics of its weights; use fewer"
            raise _out_of_memory(trial, reason) from None

    def _duplicate(self, trial: Trial, digest: str, training_digest: str) -> FrozenTrial | None:
        """Return a finished trial that trained the same function under the same other parameters."""
        ours = set(self.space.distributions())

        def others(params: Mapping[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in params.items() if name not in ours}

        wanted = others(trial.params)
        states = (TrialState.COMPLETE, TrialState.PRUNED)
        for earlier in trial.study.get_trials(deepcopy=False, states=states):
            if (
                earlier.number < trial.number
                and earlier.user_attrs.get(DIGEST) == digest
                and earlier.user_attrs.get(TRAINING_DIGEST) == training_digest
                and DUPLICATE_OF not in earlier.user_attrs
                and (earlier.state == TrialState.COMPLETE or earlier.intermediate_values)
                and others(earlier.params) == wanted
            ):
                return earlier
        return None


class _SharedCheckpoint:
    """The checkpoint of a trial in a store that other machines see."""

    def __init__(self, store: ArtifactStore, file: Path, trial: Trial) -> None:
        self._store, self._file, self._trial = store, file, trial
        self._reference: dict[str, str] | None = trial.user_attrs.get(CHECKPOINT)
        self._written = 0

    def fetch(self) -> None:
        """Take over what an earlier attempt has left, unless it is here."""
        if self._reference is None or self._file.exists():
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        try:
            fetch_file(self._store, self._reference, self._file)
        except Unverified as error:
            self._file.unlink(missing_ok=True)
            logger.warning("Trial %d starts anew: its checkpoint is of no use (%s).", self._trial.number, error)

    def publish(self) -> None:
        """Share the file if it is new."""
        written = self._file.stat().st_mtime_ns if self._file.exists() else 0
        if written == self._written or not written:
            return
        before, self._written = self._reference, written
        try:
            self._reference = store_file(self._store, self._file)
        except Exception as error:  # each store has errors of its own
            logger.warning("The checkpoint of trial %d could not be shared (%s).", self._trial.number, error)
            return
        self._trial.set_user_attr(CHECKPOINT, self._reference)
        if (backend := backend_of(self._trial.study)) is not None:
            backend.flush(self._trial._trial_id)  # before what the study still names is removed
        self._remove(before)

    def remove(self) -> None:
        """Remove what was shared: the trial has ended."""
        self._remove(self._reference)

    def _remove(self, reference: Mapping[str, str] | None) -> None:
        if reference is not None:
            with suppress(Exception):  # each store has errors of its own
                self._store.remove(reference["artifact"])


def _plan(network: DiscreteNetwork, recipe: Recipe) -> dict[str, Any]:
    """Return, as JSON values, what other ranks need to train along."""
    return {
        "architecture": network.architecture.to_dict(),
        "skeleton": network.skeleton.to_dict(),
        "mixing": network.mixing if isinstance(network, MixedNetwork) else None,
        "recipe": asdict(recipe),
    }


def _curves(result: EpochResult) -> dict[str, float]:
    return {
        ACCURACY: result.report_accuracy,
        "report_loss": result.report_loss,
        "train_accuracy": result.train_accuracy,
        "train_loss": result.train_loss,
        "learning_rate": result.learning_rate,
        "epoch_seconds": result.seconds,
    }


def _out_of_memory(trial: Trial, reason: str) -> OutOfMemory:
    trial.set_user_attr(REASON, reason)
    return OutOfMemory(reason)


def _prune(trial: Trial, reason: str) -> None:
    trial.set_user_attr(REASON, reason)
    raise TrialPruned(reason)


def _pruner_name(trial: Trial) -> str:
    return type(trial.study.pruner).__name__


def choose_device(device: str) -> torch.device:
    """Return the torch device of this name; `auto` is a GPU if there is one.

    Raises:
        ValueError: There is no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"`device` must be one of this machine but got {device!r} ({reason}); try 'auto'.") from None
    return torch.device(device)


def gpu_share(device: torch.device) -> float:
    """Return which share of a GPU trainings on a device have: 0 on a CPU, 1 unless a worker was told less."""
    return float(os.environ.get(GPU_SHARE, "1")) if device.type == "cuda" else 0.0


def network_path(folder: Path, number: int) -> Path:
    """Return where the network of a trial is kept."""
    return folder / "networks" / f"trial-{number:05d}.safetensors"


def checkpoint_path(folder: Path, number: int) -> Path:
    """Return where the unfinished training of a trial is kept."""
    return folder / "checkpoints" / f"trial-{number:05d}.safetensors"


def save_network(path: Path, network: DiscreteNetwork) -> None:
    """Write a network, its architecture and its skeleton to one file."""
    description: dict[str, Any] = {
        "architecture": network.architecture.to_dict(),
        "skeleton": network.skeleton.to_dict(),
    }
    tensors = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("masks.")}
    tensors |= prefixed(MASKS, network.masks_by_name())
    if isinstance(network, MixedNetwork):
        description["mixing"] = network.mixing
    save_tensors(path, tensors, description)


def load_network(path: str | Path, device: str = "cpu") -> DiscreteNetwork:
    """Read a network that `save_network` wrote; ops of your own must be registered before. Executes nothing.

    Raises:
        ValueError: The file is not such a network.
    """
    tensors, description = load_tensors(Path(path), device)
    if not {"architecture", "skeleton"} <= set(description):
        raise ValueError(f"`path` must be a network of optuna_nas but {path} holds something else.")
    architecture = Architecture.from_dict(description["architecture"])
    skeleton = Skeleton.from_dict(description["skeleton"])
    masks = without_prefix(MASKS, tensors)
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(MASKS)}
    if "mixing" not in description:
        return DiscreteNetwork(architecture, skeleton, weights, masks=masks).to(device).eval()
    return MixedNetwork(architecture, skeleton, description["mixing"], masks, weights).to(device).eval()

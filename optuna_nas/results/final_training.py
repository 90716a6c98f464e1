"""Final training of an architecture, and the network of a study to export."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from optuna_nas.data.arrays import ImageData
from optuna_nas.data.splits import TEST
from optuna_nas.networks import NetworkSpace
from optuna_nas.networks.deployment import Deployment
from optuna_nas.networks.files import owner_of, save_network
from optuna_nas.objective.suggestions import resolve, resolve_augmentation, without_suggestions
from optuna_nas.search.checks import similar
from optuna_nas.search.opening import read_study
from optuna_nas.search.results import architecture_of, network_of, summarise
from optuna_nas.space import (
    PUBLISHED_CELLS,
    Architecture,
    CellularSpace,
    ModelSpace,
    Skeleton,
    darts_cifar_skeleton,
    darts_imagenet_skeleton,
    darts_search_skeleton,
    ghn_mobile_skeleton,
    ghn_skeleton,
    nasbench201_skeleton,
    published_cell,
)
from optuna_nas.space.reading import named_file, read_json_file
from optuna_nas.storage.by_architecture import trained_by
from optuna_nas.storage.identity import study_uid
from optuna_nas.storage.leaderboard import best_trial
from optuna_nas.storage.secrets import quoted
from optuna_nas.tracking.final_run import FinalRecord, find_trial_run, log_final
from optuna_nas.tracking.tracker import MLflowTracker
from optuna_nas.training.device import choose_device
from optuna_nas.training.disk import whole_file
from optuna_nas.training.evaluation import evaluate
from optuna_nas.training.loop import train
from optuna_nas.training.recipe import Recipe
from optuna_nas.training.rules import (
    Rule,
    anything,
    at_least,
    checked,
    items,
    mapping,
    not_negative,
    number,
    optional,
    settings_of,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from optuna import Study
    from optuna.trial import FrozenTrial

    from optuna_nas.data.splits import Data
    from optuna_nas.search.config import Search
    from optuna_nas.training.loop import EpochResult
    from optuna_nas.training.task import Task

logger = logging.getLogger(__name__)

SKELETONS: dict[str, Callable[..., Skeleton]] = {
    "darts_cifar": darts_cifar_skeleton,
    "darts_imagenet": darts_imagenet_skeleton,
    "darts_search": darts_search_skeleton,
    "ghn": ghn_skeleton,
    "ghn_mobile": ghn_mobile_skeleton,
    "nasbench201": nasbench201_skeleton,
}


RECORD: dict[str, Rule] = {
    "metric": text(),
    "validation_metric": number(),
    "test_metric": optional(number()),
    "params": at_least(0),
    "seconds": not_negative(),
}
CURVE: dict[str, Rule] = {"curve": items(mapping(number())), "settings": mapping(anything())}


class FinalTraining(NamedTuple):
    """Result of a final training.

    Args:
        network: File of the network, for `load_network` and `export`.
        metric: Name of the task's metric.
        validation_metric: Metric on the validation split.
        test_metric: Metric on the test split; None without one.
        params: Number of parameters of the network.
        seconds: Seconds of training.
        curve: Metrics of every epoch.
        settings: Choices of the architecture, and fields of the recipe.
    """

    network: Path
    metric: str
    validation_metric: float
    test_metric: float | None
    params: int
    seconds: float
    curve: Sequence[dict[str, float]] = ()
    settings: Mapping[str, Any] = MappingProxyType({})

    @property
    def record(self) -> FinalRecord:
        """What MLflow shows of the training."""
        metrics = {self.metric: self.validation_metric, "params": self.params, "train_seconds": self.seconds}
        if self.test_metric is not None:
            metrics[f"test_{self.metric}"] = self.test_metric
        return FinalRecord(self.network.stem, self.curve, metrics, self.settings)


def data_of(search: Search, trial: FrozenTrial | None) -> Data:
    """Return the data of a search, with the values of a trial, or else the defaults, for suggested augmentation.

    Raises:
        ValueError: The search has no data.
    """
    data: Data | None = getattr(search.resolved_objective, "data", search.data)
    if data is None:
        raise ValueError(
            "`data` must be given to train a network of a study with an objective of its own; give the search `data`."
        )
    if trial is not None:
        return resolve_augmentation(data, trial)
    return data.with_augmentation(without_suggestions(data.augmentation)) if isinstance(data, ImageData) else data


def task_of(search: Search, trial: FrozenTrial | None) -> Task:
    """Return the task of a search, with the values of a trial, or else the defaults, for suggested fields."""
    task: Task = getattr(search.resolved_objective, "task", search.task)
    return without_suggestions(task) if trial is None else resolve(task, trial)


def space_of(search: Search, skeleton: Skeleton | None = None, architecture: Architecture | None = None) -> ModelSpace:
    """Return the space of networks of a search, perhaps with another skeleton or other cells.

    Args:
        search: Search with a space of networks, or with an objective that has one.
        skeleton: Skeleton; by default that of the search.
        architecture: Architecture whose cells replace those of the search, such as a published one.

    Raises:
        ValueError: There is no skeleton.
    """
    space = getattr(search.resolved_objective, "space", search.space)
    other = None if architecture is None else architecture.space.core
    if isinstance(space, NetworkSpace):
        skeleton = skeleton or space.skeleton
    elif isinstance(space, ModelSpace) and skeleton is None and other in (None, space.core):
        return space
    cells = other or space.core
    if skeleton is None or not isinstance(cells, CellularSpace):
        raise ValueError("`skeleton` must be given for a study with an objective of its own; try `darts_cifar`.")
    return NetworkSpace(cells, skeleton)


def read_architecture(text: str) -> Architecture:
    """Return a published cell by name, or an architecture from a JSON file of `architecture.to_json()`.

    Args:
        text: Name of a published cell in any case, or path of a file.

    Raises:
        ValueError: The text is neither.

    Example:
        >>> from optuna_nas import published_cell
        >>> from optuna_nas.results.final_training import read_architecture
        >>> read_architecture("darts-v2") == published_cell("DARTS_V2")
        True
    """
    if text.lower().replace("-", "_") in {name.lower() for name in PUBLISHED_CELLS}:
        return published_cell(text)
    if not Path(text).is_file():
        raise ValueError(
            f"`architecture` must be a JSON file or one of {', '.join(PUBLISHED_CELLS)} but {quoted(text)} is neither."
        )
    with named_file("an architecture", text):
        return Architecture.from_dict(read_json_file(text))


def read_skeleton(text: str, data: Data) -> Skeleton:
    """Return the skeleton that a text describes, for the inputs and outputs of data.

    Args:
        text: Text such as `darts_cifar` or `nasbench201:channels=8,repeats=1`, or path of a JSON file of
            `skeleton.to_dict()`.
        data: Data that determine shape of inputs and number of classes.

    Raises:
        ValueError: There is no such skeleton, or it has no such argument.

    Example:
        >>> from optuna_nas import digits
        >>> from optuna_nas.results.final_training import read_skeleton
        >>> read_skeleton("nasbench201:channels=8,repeats=1", digits()).channels
        8
    """
    name, _, arguments = text.partition(":")
    if name in SKELETONS:
        make = SKELETONS[name]
        parameters = inspect.signature(make).parameters
        values: dict[str, Any] = {
            "input_shape": getattr(data, "input_shape", None),
            "classes": getattr(data, "outputs", None),
        }
        if None in values.values():
            raise ValueError(f"`skeleton` must be a JSON file for {data.name!r}, whose inputs have no known shape.")
        for argument in filter(None, arguments.split(",")):
            key, _, value = argument.partition("=")
            if key not in parameters or key in values or not value.isdigit():
                names = ", ".join(key for key in parameters if key not in ("input_shape", "classes", "affine"))
                raise ValueError(
                    f"`skeleton` {name!r} must be given whole numbers for {names} but got {quoted(argument)}."
                )
            values[key] = int(value)
        return make(**values)
    if not Path(text).is_file():
        raise ValueError(
            f"`skeleton` must be a JSON file or one of {', '.join(SKELETONS)} but {quoted(text)} is neither."
        )
    with named_file("a skeleton", text):
        return Skeleton.from_dict(read_json_file(text))


_WORDS = {"true": True, "1": True, "false": False, "0": False}


def read_recipe(recipe: Recipe, settings: list[str]) -> Recipe:
    """Return a recipe with fields replaced by `NAME=VALUE` settings.

    Args:
        recipe: Recipe.
        settings: Settings, such as `epochs=600`.

    Raises:
        ValueError: A name or value is invalid.

    Example:
        >>> from optuna_nas import Recipe
        >>> from optuna_nas.results.final_training import read_recipe
        >>> read_recipe(Recipe(), ["epochs=600"]).epochs
        600
    """
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        kinds: dict[str, Any] = {field.name: type(field.default) for field in fields(Recipe)}
        if not equals:
            raise ValueError(f"`recipe` must be NAME=VALUE but got {quoted(setting)}; write such as epochs=600.")
        if name not in kinds:
            way = similar(name, kinds) or f"; it has {', '.join(kinds)}."
            raise ValueError(f"`recipe` must name one of its fields but has none named {quoted(name)}{way}")
        try:
            values[name] = _WORDS[text.lower()] if kinds[name] is bool else kinds[name](text)
        except (KeyError, ValueError):
            kind = "true or false" if kinds[name] is bool else f"of type {kinds[name].__name__}"
            raise ValueError(f"`recipe` {name!r} must be {kind} but got {quoted(text)}; correct the value.") from None
    return replace(recipe, **values)


def recipe_of(search: Search, trial: FrozenTrial | None) -> Recipe:
    """Return the recipe of a search, with the values of a trial, or else the defaults, for suggested fields."""
    recipe: Recipe = getattr(search.resolved_objective, "recipe", search.recipe)
    return without_suggestions(recipe) if trial is None else resolve(recipe, trial)


def best_of(search: Search) -> tuple[FrozenTrial, Architecture]:
    """Return the best trial of an existing study and its architecture.

    Raises:
        ValueError: No trial has completed within its constraints.
    """
    best = best_trial(read_study(search))
    architecture = None if best is None else architecture_of(search, best)
    if best is None or architecture is None:
        raise ValueError(f"`study` must have a finished trial but {search.name!r} has none; run it first.")
    return best, architecture


def train_in_full(
    search: Search,
    architecture: Architecture,
    recipe: Recipe,
    space: ModelSpace | None = None,
    *,
    trial: FrozenTrial | None = None,
    device: str = "auto",
    on_epoch: Callable[[EpochResult], None] | None = None,
    on_step: Callable[[float], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> FinalTraining:
    """Train an architecture from scratch and evaluate it on the test split; interrupted trainings are resumed.

    Files are written to `final/` in the folder of the search, named by a hash of everything that determines the result.
    Finished trainings are not repeated.

    Args:
        search: Search with data and task.
        architecture: Architecture of any space.
        recipe: Recipe of the training.
        space: Space of networks, such as `search.space.with_skeleton(...)`; by default that of the search.
        trial: Trial whose values fields of task and augmentation take that are suggestions; by default their defaults.
        device: Device of the training: `auto` (a GPU if there is one), or a torch device.
        on_epoch: Callback after every epoch.
        on_step: Callback after every step with the fraction of the training that is done, in [0, 1].
        should_stop: Callback after every step; True writes a checkpoint and raises `TrainingStopped`.

    Raises:
        ValueError: Architecture, space and data do not fit each other.
        TrainingStopped: `should_stop` returned True.
    """
    data, task = data_of(search, trial), task_of(search, trial)
    space = space or space_of(search, architecture=architecture)
    space.check_data(data)
    architecture = space.adopt(architecture)
    configuration = {"architecture": architecture.to_dict()}
    parts = json.dumps([configuration, settings_of(recipe), task.describe(), data.describe()], sort_keys=True)
    stem = search.resolved_folder() / "final" / hashlib.blake2b(parts.encode(), digest_size=6).hexdigest()
    record, file = stem.with_suffix(".json"), stem.with_suffix(".safetensors")
    if record.exists() and file.exists():
        return _read(file, record)
    network = space.build(architecture, seed=recipe.seed)
    on_device = data.to(choose_device(device))
    result = train(
        network,
        on_device,
        recipe,
        task,
        on_epoch=on_epoch,
        on_step=on_step,
        checkpoint=stem.with_suffix(".checkpoint"),
        configuration=configuration,
        should_stop=should_stop,
    )
    tested = None
    if data.size([TEST]):
        tested = evaluate(network, on_device, TEST, task, precision=recipe.precision).metric
    owner = {"study": _uid_of(search), "final": stem.name}
    save_network(file, network, architecture, owner, Deployment.of(data, task))
    params, validated = architecture.cost().params, result.last.validation_metric
    final = FinalTraining(
        file,
        task.metric,
        validated,
        tested,
        params,
        result.seconds,
        [_point(epoch, task) for epoch in result.history],
        _settings(architecture, recipe),
    )
    with whole_file(record) as new:
        new.write_text(json.dumps({key: value for key, value in final._asdict().items() if key != "network"}))
    stem.with_suffix(".checkpoint").unlink(missing_ok=True)
    return final


def _read(file: Path, record: Path) -> FinalTraining:
    """Return the result of a final training that is in a file; those of before have no curve."""
    with named_file("the result of a final training", record):
        values = {"curve": [], "settings": {}, **mapping(anything())("record", read_json_file(record))}
        return FinalTraining(file, **checked(values, RECORD | CURVE))


def _uid_of(search: Search) -> str | None:
    """Return the id of the study of a search; None if there is no study yet."""
    try:
        return study_uid(read_study(search))
    except ValueError:
        return None


def _point(epoch: EpochResult, task: Task) -> dict[str, float]:
    """Return the metrics of an epoch, by the names that trials have in MLflow."""
    metrics = {"epoch": epoch.epoch, "train_loss": epoch.train_loss, "validation_loss": epoch.validation_loss}
    metrics |= {task.metric: epoch.validation_metric, "learning_rate": epoch.learning_rate}
    return metrics if epoch.train_metric is None else metrics | {f"train_{task.metric}": epoch.train_metric}


def _settings(architecture: Architecture, recipe: Recipe) -> dict[str, Any]:
    """Return architecture and recipe as MLflow's params."""
    choices = architecture.space.encode(architecture)
    return {**choices, **{f"recipe/{name}": value for name, value in asdict(recipe).items()}}


def is_alone(file: Path) -> bool:
    """Return whether a network was trained without a study, whose run in MLflow could show it."""
    owner = owner_of(file)
    return owner is None or owner["study"] is None


def run_in_mlflow(search: Search, study: Study, file: Path) -> str:
    """Return the id of the MLflow run that a network belongs to: that of its trial, or of its final training.

    The run of a final training is made if it is not there.

    Args:
        search: Search that is mirrored in MLflow.
        study: Its study.
        file: File of the network.

    Raises:
        ValueError: The network is not of this study, or its trial is not in MLflow.
        ConnectionError: MLflow cannot be used.
    """
    owner, tracker = owner_of(file), search.tracking or MLflowTracker()
    if owner is None and (best := best_trial(study)) is not None and file == network_of(search, study, best):
        owner = {"study": study_uid(study), "trial": trained_by(study, best, search.space).number}
    if owner is None or owner.get("study") != study_uid(study):
        raise ValueError(
            f"`network` must be of study {study.study_name!r} to be logged on one of its runs but {file} is not; "
            "export it as a file."
        )
    if "trial" in owner:
        return find_trial_run(tracker, study, int(owner["trial"]))
    record = file.with_suffix(".json")
    if not record.exists():
        raise ValueError(f"`network` must have its record beside it but {record} is not there; train it again.")
    return log_final(tracker, study, _read(file, record).record)


def network_to_export(search: Search) -> Path:
    """Return the file of the network of the newest final training, or else of the best trial.

    Raises:
        ValueError: There is no trained network.
    """
    study = read_study(search)
    finals = [file for file in (search.resolved_folder() / "final").glob("*.safetensors") if _is_of(study, file)]
    if finals:
        return max(finals, key=lambda file: file.stat().st_mtime)
    file = summarise(search, study).network
    if file is None:
        raise ValueError(
            f"`study` must have a trained network but {search.name!r} has none; `optuna-nas train` makes one."
        )
    return file


def _is_of(study: Study, file: Path) -> bool:
    """Return whether a network is of a study, or does not say of which; log a warning of one that is of another."""
    owner = owner_of(file)
    if owner is None or owner["study"] in (None, study_uid(study)):
        return True
    logger.warning("%s is the network of another study, and is left out.", file)
    return False

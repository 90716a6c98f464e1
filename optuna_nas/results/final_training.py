"""From a study to a network: the final training of an architecture, and what is exported."""

from __future__ import annotations

import hashlib
import inspect
import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from optuna_nas.data.splits import TEST
from optuna_nas.networks import DiscreteNetwork, NetworkSpace
from optuna_nas.networks.files import load_network, save_network
from optuna_nas.objective.suggestions import resolve, without_suggestions
from optuna_nas.search.opening import open_study
from optuna_nas.search.results import architecture_of, summarise
from optuna_nas.space import (
    PUBLISHED_CELLS,
    Architecture,
    CellularSpace,
    ModelSpace,
    Skeleton,
    darts_cifar_skeleton,
    darts_imagenet_skeleton,
    darts_search_skeleton,
    ghn_skeleton,
    nasbench201_skeleton,
    published_cell,
)
from optuna_nas.storage.leaderboard import best_trial
from optuna_nas.training.device import choose_device
from optuna_nas.training.evaluation import evaluate
from optuna_nas.training.loop import train
from optuna_nas.training.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna.trial import FrozenTrial

    from optuna_nas.data.splits import Data
    from optuna_nas.search.config import Search
    from optuna_nas.training.loop import EpochResult
    from optuna_nas.training.task import Task


SKELETONS: dict[str, Callable[..., Skeleton]] = {
    "darts_cifar": darts_cifar_skeleton,
    "darts_imagenet": darts_imagenet_skeleton,
    "darts_search": darts_search_skeleton,
    "ghn": ghn_skeleton,
    "nasbench201": nasbench201_skeleton,
}


class FinalTraining(NamedTuple):
    """What a final training came to.

    Args:
        network: File, for `load_network` and `export`.
        metric: Name of the task's metric.
        validation_metric: The metric on the split `report`.
        test_metric: The metric on the test split; None without one.
        params: Parameters of the network.
        seconds: Seconds of training.
    """

    network: Path
    metric: str
    validation_metric: float
    test_metric: float | None
    params: int
    seconds: float


def data_of(search: Search) -> Data:
    """Return the data of a search.

    Raises:
        ValueError: It has none.
    """
    data: Data | None = getattr(search.resolved_objective, "data", search.data)
    if data is None:
        raise ValueError(
            "`data` of the study must be known to train a network but its objective is its own; give the search `data`."
        )
    return data


def task_of(search: Search) -> Task:
    """Return the task that the trials of a search train for; what they suggest takes the default."""
    task: Task = getattr(search.resolved_objective, "task", search.task)
    return without_suggestions(task)


def space_of(search: Search, skeleton: Skeleton | None = None, architecture: Architecture | None = None) -> ModelSpace:
    """Return the space that the trials of a search are built from, perhaps in another skeleton or of other cells.

    Args:
        search: With a space of networks, or an objective that has one.
        skeleton: In place of that of the trials.
        architecture: Of other cells, such as a published one, in the same skeleton.

    Raises:
        ValueError: There is no skeleton to build in.
    """
    space = getattr(search.resolved_objective, "space", search.space)
    other = None if architecture is None else architecture.space.core
    if isinstance(space, NetworkSpace):
        skeleton = skeleton or space.skeleton
    elif isinstance(space, ModelSpace) and skeleton is None and other in (None, space.core):
        return space
    cells = other or space.core
    if skeleton is None or not isinstance(cells, CellularSpace):
        raise ValueError("`skeleton` must be given for a study whose objective is its own; try `darts_cifar`.")
    return NetworkSpace(cells, skeleton)


def read_architecture(text: str) -> Architecture:
    """Return a published cell by its name, or an architecture from a JSON file of `architecture.to_json()`.

    Raises:
        ValueError: It is neither.
    """
    if text.lower().replace("-", "_") in {name.lower() for name in PUBLISHED_CELLS}:
        return published_cell(text)
    if not Path(text).is_file():
        raise ValueError(
            f"`architecture` must be a JSON file or one of {', '.join(PUBLISHED_CELLS)} but {text!r} is neither."
        )
    try:
        return Architecture.from_json(Path(text).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(
            f"`architecture` must be a JSON file of an architecture but {text} is not: {error}."
        ) from error


def read_skeleton(text: str, data: Data) -> Skeleton:
    """Return the skeleton that a text names, for the images and classes of data.

    Args:
        text: `darts_cifar`, `nasbench201:channels=8,repeats=1`, or a JSON file of `skeleton.to_dict()`.
        data: Whose images and classes it takes.

    Raises:
        ValueError: There is no such skeleton, or it has no such argument.
    """
    name, _, arguments = text.partition(":")
    if name in SKELETONS:
        make = SKELETONS[name]
        known = inspect.signature(make).parameters
        values: dict[str, Any] = {
            "input_shape": getattr(data, "input_shape", None),
            "classes": getattr(data, "outputs", None),
        }
        if None in values.values():
            raise ValueError(f"`skeleton` must be a JSON file for {data.name!r}, whose inputs have no known shape.")
        for argument in filter(None, arguments.split(",")):
            key, _, value = argument.partition("=")
            if key not in known or key in values or not value.isdigit():
                names = ", ".join(key for key in known if key not in ("input_shape", "classes", "affine"))
                raise ValueError(f"`skeleton` {name!r} must be given whole numbers for {names} but got {argument!r}.")
            values[key] = int(value)
        return make(**values)
    if not Path(text).is_file():
        raise ValueError(f"`skeleton` must be a JSON file or one of {', '.join(SKELETONS)} but {text!r} is neither.")
    return Skeleton.from_dict(json.loads(Path(text).read_text()))


def read_recipe(recipe: Recipe, settings: list[str]) -> Recipe:
    """Return a recipe with `NAME=VALUE` in place of what it has.

    Raises:
        ValueError: A name or a value is wrong.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        name, _, text = setting.partition("=")
        kinds: dict[str, Any] = {field.name: type(field.default) for field in fields(Recipe)}
        if name not in kinds:
            raise ValueError(f"`recipe` must be NAME=VALUE for one of {', '.join(kinds)} but got {setting!r}.")
        try:
            values[name] = text.lower() in ("true", "1") if kinds[name] is bool else kinds[name](text)
        except ValueError:
            raise ValueError(f"`recipe` {name!r} must be of type {kinds[name].__name__} but got {text!r}.") from None
    return replace(recipe, **values)


def recipe_of(search: Search, trial: FrozenTrial | None) -> Recipe:
    """Return the recipe of a search; what its trials suggest is that of a trial, or the default."""
    recipe: Recipe = getattr(search.resolved_objective, "recipe", search.recipe)
    return without_suggestions(recipe) if trial is None else resolve(recipe, trial)


def best_of(search: Search) -> tuple[FrozenTrial, Architecture]:
    """Return the best trial of an existing study and its architecture.

    Raises:
        ValueError: There is none.
    """
    best = best_trial(open_study(search, create=False))
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
    device: str = "auto",
    on_epoch: Callable[[EpochResult], None] | None = None,
    on_step: Callable[[float], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> FinalTraining:
    """Train an architecture from scratch, go on where an earlier call was interrupted, judge it on the test split.

    Files go to `final/` in the search's folder, named by all that decides the result; a training that has ended is not
    done again.

    Args:
        search: Whose data and task are used.
        architecture: Of any space.
        recipe: How to train.
        space: What to build it in, such as `search.space.with_skeleton(...)`; by default what the trials use.
        device: `auto` (a GPU if there is one), or a torch device.
        on_epoch: Called after every epoch.
        on_step: Called after every step with the fraction done.
        should_stop: Asked after every step; True writes a checkpoint and raises `TrainingStopped`.

    Raises:
        ValueError: The parts do not fit each other, or the network is none that a file can hold.
        TrainingStopped: `should_stop` said so.
    """
    data, task = data_of(search), task_of(search)
    space = space or space_of(search, architecture=architecture)
    space.check_data(data)
    architecture = space.adopt(architecture)
    configuration = {"architecture": architecture.to_dict()}
    parts = json.dumps([configuration, asdict(recipe), task.describe(), data.describe()], sort_keys=True)
    stem = search.resolved_folder() / "final" / hashlib.blake2b(parts.encode(), digest_size=6).hexdigest()
    record, file = stem.with_suffix(".json"), stem.with_suffix(".safetensors")
    if record.exists() and file.exists():
        return FinalTraining(file, **json.loads(record.read_text()))
    network = space.build(architecture, seed=recipe.seed)
    if not isinstance(network, DiscreteNetwork):
        raise ValueError(
            f"`space` must be a `NetworkSpace`, whose networks files can hold, but is a {type(space).__name__}; "
            "call `train` on `space.build(architecture)` and write its `state_dict`."
        )
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
    save_network(file, network)
    params, validated = architecture.cost().params, result.last.validation_metric
    final = FinalTraining(file, task.metric, validated, tested, params, result.seconds)
    record.write_text(json.dumps({key: value for key, value in final._asdict().items() if key != "network"}))
    stem.with_suffix(".checkpoint").unlink(missing_ok=True)
    return final


def network_to_export(search: Search) -> tuple[DiscreteNetwork, Path]:
    """Return the network of the newest final training, or else that of the best trial; and its file.

    Raises:
        ValueError: There is neither.
    """
    finals = list((search.resolved_folder() / "final").glob("*.safetensors"))
    if finals:
        newest = max(finals, key=lambda file: file.stat().st_mtime)
        return load_network(newest), newest
    file = summarise(search, open_study(search, create=False)).network
    if file is None:
        raise ValueError(
            f"`study` must have a trained network but {search.name!r} has none; `optuna-nas train` makes one."
        )
    return load_network(file), file

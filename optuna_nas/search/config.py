"""Configuration of a search."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage

from optuna_nas.objective.protocol import Describes, Objective, TrialListener, directions_of
from optuna_nas.objective.train_objective import TrainObjective
from optuna_nas.search.checks import DEFAULT_TRIALS, MAX_TRIALS, check_name, check_seconds, checked_count
from optuna_nas.space import ModelSpace, Space
from optuna_nas.storage.database import Heartbeat, sqlite_address
from optuna_nas.storage.finished import PicklesSettings
from optuna_nas.storage.folder_names import folder_name
from optuna_nas.storage.own_postgres import MOVED, POSTGRESQL, own_database
from optuna_nas.tracking import MLflowTracker
from optuna_nas.training.described import described
from optuna_nas.training.recipe import Recipe
from optuna_nas.training.task import DIRECTIONS, MAXIMIZE, ImageClassification, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from optuna import Study
    from optuna.trial import FrozenTrial

    from optuna_nas.data.splits import Data
    from optuna_nas.search.results import SearchResult
    from optuna_nas.search.strategy import Strategy
    from optuna_nas.storage.optuna_rdb import ArtifactStore


NO_OBJECTIVE = "`objective` must be given where `data` are not; pass one of them."
"""Message of a search that has nothing to train."""


class SearchListener(TrialListener, Protocol):
    """Protocol of listeners to a search, such as a progress display. Methods must return quickly and must not raise."""

    def trial_finished(self, study: Study, trial: FrozenTrial) -> None:
        """Handle the end of a trial in any state."""

    def model_progress(self, what: str, fraction: float) -> None:
        """Handle a step of a sampler or pruner that trains a one-shot model or scores candidates.

        Args:
            what: What is done, such as `SNAS trains, round 2 of 6`.
            fraction: Fraction of the training round that is done, in [0, 1].
        """

    def closing(self) -> None:
        """Handle the end of all trials, before the remaining events are sent to MLflow."""


LISTENED = ("trial_started", "epoch", "progress", "model_progress", "trial_finished", "closing")
"""Methods of a `SearchListener`."""


def check_listener(listener: SearchListener | None) -> None:
    """Check that a listener can be told everything.

    Raises:
        ValueError: A method is missing.
    """
    missing = [name for name in LISTENED if not callable(getattr(listener, name, None))]
    if listener is not None and missing:
        raise ValueError(
            f"`listener` must have the methods of a SearchListener but {type(listener).__name__} lacks "
            f"{', '.join(missing)}; inherit them from it. An MLflowTracker belongs in `Search(tracking=...)`."
        )


@runtime_checkable
class TrainsModel(Protocol):
    """Protocol of samplers and pruners that train a one-shot model during a study."""

    def prepare(
        self,
        folder: Path,
        on_progress: Callable[[str, float], None] | None,
        should_stop: Callable[[], bool] | None,
        store: ArtifactStore | None,
        n_trials: int,
    ) -> None:
        """Receive the settings of a search.

        Args:
            folder: Folder of files.
            on_progress: Callback with what is done, in words, and its fraction of a training round, in [0, 1].
            should_stop: Callback after every training step; True interrupts the training.
            store: Artifact store that workers share; None for a subfolder of `folder`.
            n_trials: Total number of the study's trials.
        """


def training_parts(*parts: object) -> list[TrainsModel]:
    """Return the samplers and pruners that train a model, also those that one of Optuna wraps.

    Example:
        >>> import optuna
        >>> from optuna_nas import SNASSampler, nasbench201_space
        >>> from optuna_nas.search.config import training_parts
        >>> sampler = SNASSampler(nasbench201_space())
        >>> training_parts(sampler, optuna.pruners.NopPruner()) == [sampler]
        True
    """
    found: list[TrainsModel] = []
    waiting = list(parts)
    while waiting:
        part = waiting.pop(0)
        if isinstance(part, TrainsModel):
            found.append(part)
        elif isinstance(part, BaseSampler | BasePruner):
            waiting += [inner for inner in vars(part).values() if isinstance(inner, BaseSampler | BasePruner)]
    return found


_TYPES: dict[str, tuple[Any, str]] = {
    "space": (Space, "a `Space`"),
    "recipe": (Recipe, "a `Recipe`"),
    "task": (Task, "a `Task`, such as `Regression()`"),
    "sampler": (BaseSampler | None, "a sampler of Optuna or None"),
    "pruner": (BasePruner | None, "a pruner of Optuna or None"),
    "strategy": (str | None, "the name of a strategy or None"),
    "artifacts": (str | Path | None, "a folder, s3://BUCKET or None"),
    "heartbeat": (Heartbeat, "a `Heartbeat`"),
    "tracking": (MLflowTracker | str | Path | None, "an `MLflowTracker`, its address or None"),
    "folder": (str | Path | None, "a path or None"),
    "description": (str, "a text"),
    "command": (str, "a text"),
}
"""Types that fields can have, and what to say of others."""
_PROTOCOLS = {
    "data": (("batches", "describe"), "data such as `ImageData` or `TensorData`"),
    "objective": (("__call__",), "a function of a trial"),
}
"""Methods that fields must have unless they are None, and what to say of others."""


MAX_SETTING = 200
"""Longest text of a setting that is noted."""


def part_names(search: Search) -> dict[str, str]:
    """Return the names of the classes of a search's sampler and pruner; `default` for Optuna's own."""
    parts = {"sampler": search.resolved_sampler, "pruner": search.resolved_pruner}
    return {name: "default" if part is None else type(part).__name__ for name, part in parts.items()}


def part_settings(search: Search) -> dict[str, str]:
    """Return the settings of a search's own sampler and pruner by name, but for seeds, and a digest of its code."""
    code = search.space.code() if isinstance(search.space, ModelSpace) else ""
    found = {"code of the networks": code} if code else {}
    for name, part in (("sampler", search.sampler), ("pruner", search.pruner)):
        found |= _settings_of(name, part)
    return found


def _settings_of(name: str, part: object, depth: int = 3) -> dict[str, str]:
    """Return numbers, texts and mappings of these among the attributes of a sampler or pruner, and of those within."""
    given = part.__getstate__() if isinstance(part, PicklesSettings) else getattr(part, "__dict__", {})
    found: dict[str, str] = {}
    for key, value in given.items():
        own = f"{name}.{key.strip('_')}"
        if isinstance(value, BaseSampler | BasePruner) and depth:
            found[own] = type(value).__name__
            found |= _settings_of(own, value, depth - 1)
        elif "seed" not in key and value is not None and isinstance(value, bool | int | float | str | dict | tuple):
            with suppress(TypeError, ValueError):  # what is no JSON is no setting
                found[own] = json.dumps(value)[:MAX_SETTING]
    return found


@dataclass(frozen=True)
class Search:
    """Configuration of a search, which a study file returns.

    Args:
        name: Name of the study, without slashes; a study of this name is resumed.
        space: Search space; for the default objective a `ModelSpace`.
        data: Data set of the default objective.
        recipe: Recipe of the default objective.
        task: Task of the default objective; by default image classification.
        objective: Any Optuna objective; by default a `TrainObjective` of space, data, recipe and task.
        sampler: Any Optuna sampler; by default Optuna's.
        pruner: Any Optuna pruner; by default Optuna's median pruner.
        directions: `maximize` or `minimize` for each value of the objective; by default those of the objective, or
            `maximize`.
        trials: Total number of trials, at least 1; a resumed study runs the missing ones. By default 50, or as many as
            fit in `seconds`.
        strategy: Name of a strategy that sets sampler, pruner and, unless there is one, the objective: `auto`, which
            is `free` with TPE in every sixth trial where space and data make networks, else `tpe`, and says which;
            `free`, `snas`, `ghn`, `hmnas`, `tpe` or `random`. The value of its trials is the validation loss.
        seconds: Seconds of all trials together, with the training of one-shot models in them, at which the search
            ends; None for no limit.
        patience: Number of trials in a row without a better value at which the search ends; None for no limit.
        storage: URL of an Optuna storage, path of an sqlite file, or a storage object of Optuna with its own heartbeats
            and retries (`JournalStorage`, `RDBStorage`, `InMemoryStorage`); by default an sqlite file in `folder`, or
            the PostgreSQL in `folder/postgresql` if several workers have run.
        artifacts: Folder or `s3://BUCKET` in which workers on several machines share trained models and checkpoints; by
            default models are in `folder/artifacts`, and checkpoints are not shared.
        heartbeat: Signs of life of workers on a database server.
        tracking: MLflow mirror, or its address; None for none.
        folder: Folder of pictures, networks and checkpoints; by default `runs/NAME`.
        n_jobs: Number of simultaneous trials, in threads, at least 1.
        cpu_threads: Number of PyTorch's threads on a CPU; None for PyTorch's default. Small networks train fastest with
            1. A fixed number makes results independent of the number of cores.
        keep_networks: Number of the best trials whose networks are kept on disk, at least 1.
        pictures: Whether to draw the architecture of every trial for MLflow, and as an Optuna artifact in the folder
            `artifacts` (for `optuna-dashboard STORAGE --artifact-dir runs/NAME/artifacts`). It takes 0.2 s per trial.
        description: Markdown text for MLflow.
        command: Shell command that runs or resumes the study, which `optuna-nas list` shows.

    Raises:
        ValueError: A value is out of range, or neither `objective` nor `data` is given.

    Example:
        >>> from optuna_nas import NetworkSpace, Recipe, Search, darts_search_skeleton, darts_space, digits
        >>> data = digits()
        >>> skeleton = darts_search_skeleton(3, 4, data.input_shape, data.classes)
        >>> search = Search("digits", NetworkSpace(darts_space(), skeleton), data, Recipe(epochs=5), trials=20)
        >>> search.directions, str(search.resolved_folder())
        (('maximize',), 'runs/digits')
    """

    name: str
    space: Space
    data: Data | None = None
    recipe: Recipe = field(default_factory=Recipe)
    task: Task = field(default_factory=ImageClassification)
    objective: Objective | None = None
    sampler: BaseSampler | None = None
    pruner: BasePruner | None = None
    directions: tuple[str, ...] | None = None
    trials: int | None = None
    strategy: str | None = None
    seconds: float | None = None
    patience: int | None = None
    storage: str | Path | BaseStorage | None = None
    artifacts: str | None = None
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    tracking: MLflowTracker | None = field(default_factory=MLflowTracker)
    folder: Path | None = None
    n_jobs: int = 1
    cpu_threads: int | None = None
    keep_networks: int = 5
    pictures: bool = True
    description: str = ""
    command: str = ""

    def __post_init__(self) -> None:
        check_name(self.name)
        self._check_types()
        if self.folder is not None:
            object.__setattr__(self, "folder", Path(self.folder))
        storage, tracking = cast("Any", self.storage), cast("Any", self.tracking)
        if isinstance(storage, Path) or (isinstance(storage, str) and ":" not in storage and Path(storage).suffix):
            object.__setattr__(self, "storage", sqlite_address(storage))
        if self.artifacts is not None:
            object.__setattr__(self, "artifacts", str(self.artifacts))
        if isinstance(tracking, str | Path):
            address = sqlite_address(tracking) if isinstance(tracking, Path) else tracking
            object.__setattr__(self, "tracking", MLflowTracker(address))
        if not isinstance(self.storage, str | BaseStorage | None):
            raise ValueError(
                "`storage` must be an address such as 'sqlite:///study.db', a path or an Optuna storage but is a "
                f"{type(self.storage).__name__}; leave it out for a file in `folder`."
            )
        for name in ("trials", "patience", "n_jobs", "cpu_threads", "keep_networks"):
            value = getattr(self, name)
            if value is not None or name in ("n_jobs", "keep_networks"):
                object.__setattr__(self, name, checked_count(name, value))
        check_seconds(self.seconds)
        if self.strategy is not None:
            for name in ("sampler", "pruner"):
                if getattr(self, name) is not None:
                    raise ValueError(f"`{name}` must be left out where `strategy` sets it; leave out one of them.")
        for name in ("sampler", "pruner"):
            space = getattr(getattr(self, name), "space", None)
            if space is not None and space.core != self.space.core:
                raise ValueError(f"`{name}` must be of the space of the search but has another; make it with `space`.")
        objective_directions = directions_of(self.resolved_objective)
        if self.directions is None:
            object.__setattr__(self, "directions", objective_directions or (MAXIMIZE,))
        object.__setattr__(self, "directions", tuple(self.resolved_directions))
        if not self.directions:
            raise ValueError("`directions` must name one direction or more but is empty; use ('maximize',).")
        for direction in self.resolved_directions:
            if direction not in DIRECTIONS:
                raise ValueError(f"`directions` must be 'maximize' or 'minimize' but got {direction!r}.")
        if objective_directions is not None and self.directions != objective_directions:
            raise ValueError(
                f"`directions` must be {objective_directions}, as the objective asks, but are {self.directions}; leave "
                "them out."
            )

    def _check_types(self) -> None:
        """Check that every field is of a type that it can be of, before a study is made."""
        for name, (types, what) in _TYPES.items():
            value = getattr(self, name)
            if isinstance(value, type) or not isinstance(value, types):
                given = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
                raise ValueError(f"`{name}` must be {what} but is {given}.")
        for name, (methods, what) in _PROTOCOLS.items():
            value = getattr(self, name)
            fits = not isinstance(value, type) and all(callable(getattr(value, method, None)) for method in methods)
            if value is not None and not fits:
                raise ValueError(f"`{name}` must be {what} but is a {type(value).__name__}.")
        fields = zip(Heartbeat._fields, self.heartbeat, strict=True)
        interval, grace = (checked_count(f"heartbeat.{name}", value) for name, value in fields)
        if grace < interval:
            raise ValueError(f"`heartbeat.grace` must be no less than its interval of {interval} s but is {grace} s.")
        object.__setattr__(self, "heartbeat", Heartbeat(interval, grace))

    @property
    def total(self) -> int:
        """Total number of trials."""
        if self.trials is not None:
            return self.trials
        return DEFAULT_TRIALS if self.seconds is None else MAX_TRIALS

    @property
    def shown_total(self) -> int | None:
        """Total number of trials; None where something else ends the search."""
        return None if self.total == MAX_TRIALS else self.total

    @property
    def resolved_directions(self) -> tuple[str, ...]:
        """Directions of the study."""
        return self.directions or ()

    @cached_property
    def made_strategy(self) -> Strategy | None:
        """What `strategy` consists of; None where it is not given."""
        if self.strategy is None:
            return None
        from optuna_nas.search.strategy import Setting, make_strategy  # which loads all strategies

        setting = Setting(
            self.space,
            self.data,
            self.recipe,
            self.task,
            self.objective,
            None if self.total == MAX_TRIALS else self.total,
            self.seconds,
        )
        return make_strategy(self.strategy, setting)

    @property
    def resolved_sampler(self) -> BaseSampler | None:
        """The sampler, that of the strategy if there is one; None for Optuna's default."""
        return self.sampler if self.made_strategy is None else self.made_strategy.sampler

    @property
    def resolved_pruner(self) -> BasePruner | None:
        """The pruner, that of the strategy if there is one; None for Optuna's default."""
        return self.pruner if self.made_strategy is None else self.made_strategy.pruner

    @cached_property
    def resolved_objective(self) -> Objective:
        """The objective; by default a `TrainObjective` of space, data, recipe and task."""
        if self.made_strategy is not None:
            return self.made_strategy.objective
        if self.objective is not None:
            return self.objective
        if self.data is None:
            raise ValueError(NO_OBJECTIVE)
        return TrainObjective(cast("ModelSpace", self.space), self.data, self.recipe, self.task)

    def resolved_folder(self) -> Path:
        """Return the folder of the search's files."""
        return self.folder or Path("runs") / folder_name(self.name)

    def resolved_storage(self) -> str | BaseStorage:
        """Return the URL of the Optuna storage, or the object; the PostgreSQL in `folder` is started if necessary."""
        if self.storage is not None:
            return cast("str | BaseStorage", self.storage)
        folder = self.resolved_folder()
        postgresql, sqlite_file = folder / POSTGRESQL, folder / "study.db"
        moved = postgresql.exists() and (not sqlite_file.exists() or (folder / MOVED).exists())
        return own_database(postgresql) if moved else sqlite_address(sqlite_file)

    @staticmethod
    def from_yaml(path: str | Path, settings: Iterable[str] = ()) -> Search:
        r"""Return the search of a YAML file, which has the names of this class's arguments as keys.

        Args:
            path: The file.
            settings: Values in place of the file's, such as `recipe.epochs=5`; the value is YAML.

        Raises:
            ValueError: The file can't be read, or describes no search; the message names file and line.

        Example:
            >>> from pathlib import Path
            >>> from optuna_nas import Search
            >>> _ = Path("study.yaml").write_text("name: digits\ndata: digits\nspace: nasbench201_space\n"
            ...     "skeleton: {type: nasbench201_skeleton, repeats: 1, channels: 4}\ntrials: 20\n")
            >>> Search.from_yaml("study.yaml", ["trials=3"]).trials
            3
        """
        from optuna_nas.search.study_yaml import read_file  # which loads what a file may name

        return read_file(Path(path), settings)

    def with_strategy(self, strategy: str, **changes: Any) -> Search:
        """Return the search with a strategy in place of its sampler and pruner.

        Args:
            strategy: Name of the strategy.
            **changes: Other fields to replace.

        Raises:
            ValueError: The strategy is unknown or does not fit the search.
        """
        return replace(self, strategy=strategy, sampler=None, pruner=None, directions=None, **changes)

    def run(self, listener: SearchListener | None = None) -> SearchResult:
        """Run the search to its total of trials and sum it up: `optuna_nas.run(search)`, with a bar in a notebook.

        Ctrl-C, or the notebook's stop button, ends after the running trial. Whatever was interrupted goes on when the
        search is run again.

        Args:
            listener: Listener of the trials, such as a progress display; by default a bar in a notebook, else none.

        Raises:
            ValueError, ConnectionError: As `optuna_nas.run`.
        """
        from optuna_nas.search.notebook import NotebookBar, in_notebook
        from optuna_nas.search.runner import run  # which runs what is put together here

        if listener is not None or not in_notebook():
            return run(self, listener)
        bar = NotebookBar(self.shown_total)
        try:
            return run(self, bar)
        finally:
            bar.close()

    def setting(self) -> dict[str, Any]:
        """Return the settings that must not change when a study is resumed, as JSON values."""
        objective = self.resolved_objective
        setting: dict[str, Any] = {"space": self.space.core.to_dict()}
        if isinstance(objective, Describes):
            told = objective.describe()
            if not isinstance(told, Mapping):
                raise ValueError(
                    f"`objective.describe` must return a dictionary but returns a {type(told).__name__}; let it return "
                    "what decides the results, or leave the method out."
                )
            setting |= told
        return json.loads(json.dumps(described(setting)))  # type: ignore[no-any-return]

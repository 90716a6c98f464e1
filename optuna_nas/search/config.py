"""A study put together: the `Search` and its parts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from optuna.storages import BaseStorage

from optuna_nas.objective.protocol import Describes, Objective, TrialListener, directions_of
from optuna_nas.objective.train_objective import TrainObjective
from optuna_nas.storage.database import SQLITE, Heartbeat
from optuna_nas.storage.own_postgres import MOVED, POSTGRESQL, own_database
from optuna_nas.tracking import MLflowTracker
from optuna_nas.training.recipe import Recipe
from optuna_nas.training.task import DIRECTIONS, MAXIMIZE, ImageClassification, Task

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna import Study
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

    from optuna_nas.data.splits import Data
    from optuna_nas.search.results import SearchResult
    from optuna_nas.space import ModelSpace, Space
    from optuna_nas.storage.optuna_rdb import ArtifactStore


class SearchListener(TrialListener, Protocol):
    """Hears of a search while it runs: a progress display."""

    def trial_finished(self, study: Study, trial: FrozenTrial) -> None:
        """Hear a finished trial, whatever its state."""

    def model_progress(self, name: str, fraction: float) -> None:
        """Hear which fraction of a round of its training a one-shot model has done; called after every step."""

    def closing(self) -> None:
        """Hear that all trials are done and what is left goes to MLflow."""


@runtime_checkable
class TrainsModel(Protocol):
    """A sampler or pruner that trains a one-shot model while the study runs."""

    def prepare(
        self,
        folder: Path,
        on_progress: Callable[[float], None] | None,
        should_stop: Callable[[], bool] | None,
        store: ArtifactStore | None,
        n_trials: int,
    ) -> None:
        """Take what the search knows.

        Args:
            folder: Where files go.
            on_progress: Called with the fraction of a round that is done.
            should_stop: Asked after every training step; True interrupts.
            store: Where workers share files; None for a folder of the study's.
            n_trials: Total of the study's trials.
        """


@dataclass(frozen=True)
class Search:
    """All that makes a study: what a study file returns.

    Args:
        name: Name of the study; running the same name again goes on with it.
        space: What may be chosen, and for the default objective what it is built into.
        data: Batches and splits, for the default objective.
        recipe: How to train, for the default objective.
        task: Loss and metric, for the default objective; image classification by default.
        objective: What a trial does; by default a `TrainObjective` of the above. Any Optuna objective will do.
        sampler: Who proposes; by default Optuna's.
        pruner: Who stops; by default Optuna's median pruner.
        directions: `maximize` or `minimize`, one for each value of the objective; by default those that it asks for,
            or one to maximize.
        trials: Total of trials; a resumed study runs what is missing.
        storage: Address of an Optuna storage, the path of an sqlite file, or a storage object of Optuna with the
            heartbeats and retries that it was made with (`JournalStorage`, `RDBStorage`, `InMemoryStorage`); by default
            an sqlite file in `folder`, or the PostgreSQL in `folder/postgresql` where several workers have run.
        artifacts: Where workers on several machines share trained models and checkpoints: a folder that all see, or
            `s3://BUCKET`; by default `folder/artifacts`, and checkpoints stay where they are written.
        heartbeat: How workers on a database server tell that they are alive.
        tracking: MLflow mirror; None for none.
        folder: Where pictures, networks and checkpoints go; by default `runs/NAME`.
        n_jobs: Trials at a time, in threads.
        cpu_threads: Threads that torch uses on the CPU; None leaves torch's choice. Small networks train fastest
            with 1, and a number given here makes results independent of how many cores a machine has.
        keep_networks: How many of the best trials' networks stay on disk.
        pictures: Draw the architecture of every trial, for MLflow and as an Optuna artifact in the folder `artifacts`
            (`optuna-dashboard STORAGE --artifact-dir runs/NAME/artifacts` shows it). Takes a fifth of a second a trial.
        description: Markdown shown in MLflow.

    Raises:
        ValueError: A value is out of range, or there is neither an objective nor what the default one needs.
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
    trials: int = 50
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

    def __post_init__(self) -> None:
        if not self.name or any(character in self.name for character in "/\\"):
            raise ValueError(f"`name` must be non-empty and without slashes but got {self.name!r}.")
        if self.folder is not None:
            object.__setattr__(self, "folder", Path(self.folder))
        if isinstance(self.storage, Path):
            object.__setattr__(self, "storage", f"{SQLITE}{self.storage}")
        if not isinstance(self.storage, str | BaseStorage | None):
            raise ValueError(
                "`storage` must be an address such as 'sqlite:///study.db', a path or an Optuna storage but is a "
                f"{type(self.storage).__name__}; leave it out for a file in `folder`."
            )
        for name in ("trials", "n_jobs", "keep_networks"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be an integer of at least 1 but got {value}.")
        for name in ("sampler", "pruner"):
            their_space = getattr(getattr(self, name), "space", None)
            if their_space is not None and their_space.core != self.space.core:
                raise ValueError(f"`{name}` must be of the space of the search but has another; make it with `space`.")
        wanted = directions_of(self.resolved_objective)
        if self.directions is None:
            object.__setattr__(self, "directions", wanted or (MAXIMIZE,))
        object.__setattr__(self, "directions", tuple(self.resolved_directions))
        if not self.directions:
            raise ValueError("`directions` must name one direction or more but is empty; use ('maximize',).")
        for direction in self.resolved_directions:
            if direction not in DIRECTIONS:
                raise ValueError(f"`directions` must be 'maximize' or 'minimize' but got {direction!r}.")
        if wanted is not None and self.directions != wanted:
            raise ValueError(
                f"`directions` must be {wanted}, as the objective asks, but are {self.directions}; leave them out."
            )

    @property
    def resolved_directions(self) -> tuple[str, ...]:
        """Directions of the study's values."""
        return self.directions or ()

    @cached_property
    def resolved_objective(self) -> Objective:
        """The objective, or the default one made of space, data, recipe and task."""
        if self.objective is not None:
            return self.objective
        if self.data is None:
            raise ValueError("`objective` must be given where `data` are not; pass one of them.")
        return TrainObjective(cast("ModelSpace", self.space), self.data, self.recipe, self.task)

    def resolved_folder(self) -> Path:
        """Return where the search's files go."""
        return self.folder or Path("runs") / self.name

    def resolved_storage(self) -> str | BaseStorage:
        """Return the address of the Optuna storage, or the object; the study's own PostgreSQL is started if need be."""
        if self.storage is not None:
            return cast("str | BaseStorage", self.storage)
        folder = self.resolved_folder()
        own, before = folder / POSTGRESQL, folder / "study.db"
        moved = own.exists() and (not before.exists() or (folder / MOVED).exists())
        return own_database(own) if moved else f"{SQLITE}{before}"

    def run(self, listener: SearchListener | None = None) -> SearchResult:
        """Run the search to its total of trials and sum it up: `optuna_nas.run(search)`.

        Ctrl-C, or the notebook's stop button, ends after the running trial. Whatever was interrupted goes on when the
        search is run again.

        Args:
            listener: Listener of the trials, such as a progress display.

        Raises:
            ValueError, ConnectionError: As `optuna_nas.run`.
        """
        from optuna_nas.search.runner import run  # which runs what is put together here

        return run(self, listener)

    def setting(self) -> dict[str, Any]:
        """Return what must not change while a study goes on, as JSON values."""
        objective = self.resolved_objective
        setting: dict[str, Any] = {"space": self.space.core.to_dict()}
        if isinstance(objective, Describes):
            setting |= objective.describe()
        return json.loads(json.dumps(setting))  # type: ignore[no-any-return]

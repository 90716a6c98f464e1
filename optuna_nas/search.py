"""A study put together: what makes it, opened or resumed, and what it came to."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, runtime_checkable

import optuna
from optuna import Study, Trial
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_nas.data import TEST, Data
from optuna_nas.environment import git_commit, versions, without_password
from optuna_nas.objective import (
    DUPLICATE_OF,
    SCRATCH,
    SHARED_NETWORK,
    TrainObjective,
    TrialListener,
    load_network,
    network_path,
)
from optuna_nas.plots import plot_architecture
from optuna_nas.storage import (
    MOVED,
    POSTGRESQL,
    SQLITE,
    Heartbeat,
    clear_errors,
    connect,
    own_database,
)
from optuna_nas.study_state import PREFIX, Unverified, artifact_store, fetch_file
from optuna_nas.tracking import DatasetInfo, MLflowTracker
from optuna_nas.training import Recipe, evaluate

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

    from optuna_nas.space import Architecture, Skeleton, Space

logger = logging.getLogger(__name__)

SETTING = PREFIX + "setting"
"""Study attribute: space, skeleton, data and recipe, as JSON; a study goes on under the same setting only."""
VERSION = PREFIX + "version"
"""Study attribute: of optuna_nas, as it was last run or created."""
TEST_RESULT = PREFIX + "test"
"""Study attribute: which trial's network was judged on the test split, and its accuracy."""
WAIT_SECONDS = 0.5
"""Between two looks at what other workers do."""
WHOLE_LOOKS = 20
"""How often a worker looks whether a study is complete that is being created."""

Objective = Callable[[Trial], float | Sequence[float]]


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
    ) -> None:
        """Take a folder for files, whom to tell the fraction of a round done, when to stop, and a store to share by."""


@dataclass(frozen=True)
class Search:
    """All that makes a study: what a study file returns.

    Args:
        name: Name of the study; running the same name again goes on with it.
        space: What may be chosen.
        skeleton: Frame around the cells, for the default objective.
        data: Images, for the default objective.
        recipe: How to train, for the default objective.
        objective: What a trial does; by default a `TrainObjective` of the above. Any Optuna objective will do.
        sampler: Who proposes; by default Optuna's.
        pruner: Who stops; by default Optuna's median pruner.
        directions: `maximize` or `minimize`, one for each value of the objective.
        trials: Total of trials; a resumed study runs what is missing.
        storage: Optuna storage address; by default an sqlite file in `folder`, or the PostgreSQL in
            `folder/postgresql` where several workers have run.
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
    skeleton: Skeleton | None = None
    data: Data | None = None
    recipe: Recipe = field(default_factory=Recipe)
    objective: Objective | None = None
    sampler: BaseSampler | None = None
    pruner: BasePruner | None = None
    directions: tuple[str, ...] = ("maximize",)
    trials: int = 50
    storage: str | None = None
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
        object.__setattr__(self, "directions", tuple(self.directions))
        if self.folder is not None:
            object.__setattr__(self, "folder", Path(self.folder))
        for name in ("trials", "n_jobs", "keep_networks"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be an integer of at least 1 but got {value}.")
        if not self.directions:
            raise ValueError("`directions` must name one direction or more but is empty; use ('maximize',).")
        for direction in self.directions:
            if direction not in ("maximize", "minimize"):
                raise ValueError(f"`directions` must be 'maximize' or 'minimize' but got {direction!r}.")
        if self.objective is None and (self.skeleton is None or self.data is None):
            raise ValueError("`objective` must be given where `skeleton` and `data` are not; pass it, or pass both.")
        for name in ("sampler", "pruner"):
            if getattr(getattr(self, name), "space", self.space) != self.space:
                raise ValueError(f"`{name}` must be of the space of the search but has another; make it with `space`.")
        objective = self.resolved_objective()
        if isinstance(objective, TrainObjective) and self.directions != objective.directions:
            raise ValueError(
                f"`directions` must be {objective.directions} for the objectives {objective.objectives} but are "
                f"{self.directions}."
            )

    def resolved_objective(self) -> Objective:
        """Return the objective, or the default one made of skeleton, data and recipe."""
        if self.objective is not None:
            return self.objective
        assert self.skeleton is not None
        assert self.data is not None
        return TrainObjective(self.space, self.skeleton, self.data, self.recipe)

    def resolved_folder(self) -> Path:
        """Return where the search's files go."""
        return self.folder or Path("runs") / self.name

    def resolved_storage(self) -> str:
        """Return the address of the Optuna storage; the study's own PostgreSQL is started if need be."""
        if self.storage is not None:
            return self.storage
        folder = self.resolved_folder()
        own, before = folder / POSTGRESQL, folder / "study.db"
        moved = own.exists() and (not before.exists() or (folder / MOVED).exists())
        return own_database(own) if moved else f"{SQLITE}{before}"

    def setting(self) -> dict[str, Any]:
        """Return what must not change while a study goes on, as JSON values."""
        objective = self.resolved_objective()
        setting: dict[str, Any] = {"space": self.space.to_dict()}
        if isinstance(objective, TrainObjective):
            setting["skeleton"] = objective.skeleton.to_dict()
            setting["data"] = objective.data.describe()
            setting["recipe"] = {name: _plain(value) for name, value in vars(objective.recipe).items()}
            if objective.start != SCRATCH:
                setting["start"] = objective.describe_start()
            if objective.masks is not None:
                setting["masks"] = objective.masks.describe()
        return json.loads(json.dumps(setting))  # type: ignore[no-any-return]


def _plain(value: object) -> object:
    return value if isinstance(value, str | int | float | bool) else repr(value)


@dataclass(frozen=True)
class SearchResult:
    """What a search came to.

    Args:
        study: The Optuna study.
        best: The best trial, None where none has finished (or, for several objectives, the first of the best).
        picture: File of the best architecture's picture.
        network: File of the best trial's network, for `load_network`.
        test_accuracy: Its accuracy on the test split, a fraction, measured once.
        interrupted: Whether it was stopped before its total.
        missing: Trials still to run.
    """

    study: Study
    best: FrozenTrial | None
    picture: Path | None = None
    network: Path | None = None
    test_accuracy: float | None = None
    interrupted: bool = False
    missing: int = 0


def open_study(search: Search, create: bool = True) -> Study:
    """Create the study of a search, or load the one of that name.

    Raises:
        ValueError: The study exists with another space, skeleton, data, recipe or direction; or, with `create=False`,
            does not exist.
        ConnectionError: The storage does not answer.
    """
    address = search.resolved_storage()
    absent = ValueError(
        f"`study` must exist but {without_password(address)} has none named {search.name!r}; "
        "start it with `optuna-nas run`."
    )
    if not create and address.startswith(SQLITE) and not Path(address.removeprefix(SQLITE)).exists():
        raise absent  # before Optuna makes the file
    if create:
        _make_folder(search.resolved_folder())

    def on_dead(study: Study, trial: FrozenTrial) -> None:
        logger.warning("Trial %d was left by a worker that is gone.", trial.number)
        if search.tracking is not None:
            search.tracking.trial_finished(study, trial)

    storage = connect(address, search.heartbeat, on_dead)
    with clear_errors(address):
        try:
            study = optuna.load_study(
                study_name=search.name, storage=storage, sampler=search.sampler, pruner=search.pruner
            )
        except KeyError:
            if not create:
                raise absent from None
            study = optuna.create_study(
                study_name=search.name,
                storage=storage,
                sampler=search.sampler,
                pruner=search.pruner,
                directions=[StudyDirection[direction.upper()] for direction in search.directions],
                load_if_exists=True,
            )
        if not create:
            _wait_until_whole(study)
        _check_version(study, create)
        _check_setting(study, search)
    return study


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".running").touch()
    except OSError as error:
        raise ValueError(
            f"`folder` must be one to write to but {folder} is not: {error.strerror}; give the search another."
        ) from None


def _wait_until_whole(study: Study) -> None:
    """Wait for the process that creates the study in this moment.

    Raises:
        ValueError: Nobody seems to.
    """
    for _ in range(WHOLE_LOOKS):
        if SETTING in study.user_attrs:
            return
        time.sleep(WAIT_SECONDS)
    raise ValueError(
        f"`study` must be one that optuna_nas has created but {study.study_name!r} has no setting; "
        "create it with `optuna-nas create` or `optuna-nas run`."
    )


def _check_version(study: Study, create: bool) -> None:
    """Let all workers of a study be of one version: that of who ran or created it last."""
    here, there = versions().get("optuna_nas"), study.user_attrs.get(VERSION)
    if create and here != there:
        study.set_user_attr(VERSION, here)
    elif not create and there is not None and here != there:
        raise ValueError(
            f"`optuna_nas` must be of the version that runs the study, {there}, but is {here}; install that one, or "
            "end all workers and go on with `optuna-nas run` of this one."
        )


def _check_setting(study: Study, search: Search) -> None:
    directions = [StudyDirection[direction.upper()] for direction in search.directions]
    if study.directions != directions:
        raise ValueError(
            f"`directions` must be those of the existing study {search.name!r}, "
            f"{tuple(d.name.lower() for d in study.directions)}, but are {search.directions}; use another name."
        )
    setting, known = search.setting(), study.user_attrs.get(SETTING)
    if known is None:
        study.set_user_attr(SETTING, setting)
    elif known != setting:
        parts = sorted(part for part in setting if known.get(part) != setting[part])
        raise ValueError(
            f"`{(*parts, 'objective')[0]}` must be that of the existing study {search.name!r} but is another; "
            "give the search another `name`, or restore what it was."
        )


# -- what it came to ------------------------------------------------------------------------------------------------


def summarise(search: Search, study: Study, judge: bool = False) -> SearchResult:
    """Return the best trial with its picture and network; with `judge`, measure its test accuracy, once."""
    best = best_trial(study)
    if best is None:
        return SearchResult(study, None)
    folder = search.resolved_folder()
    picture: Path | None = None
    architecture = architecture_of(search, best)
    if architecture is not None:
        picture = folder / "best_architecture.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        plot_architecture(architecture).savefig(picture, dpi=150)
    network: Path | None = network_path(folder, best.user_attrs.get(DUPLICATE_OF, best.number))
    if network is not None and not network.exists() and not _fetch_network(search, study, best, network):
        network = None
    test_accuracy = _test_accuracy(search, study, best, network, judge)
    return SearchResult(study, best, picture, network, test_accuracy)


def _fetch_network(search: Search, study: Study, best: FrozenTrial, path: Path) -> bool:
    """Fetch a network that was trained on another machine; tell whether there is one."""
    trained = study.trials[best.user_attrs.get(DUPLICATE_OF, best.number)]
    if search.artifacts is None or SHARED_NETWORK not in trained.user_attrs:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        fetch_file(artifact_store(search.artifacts), trained.user_attrs[SHARED_NETWORK], path)
    except Unverified as error:
        path.unlink(missing_ok=True)
        logger.warning("The network of trial %d can't be had: %s.", trained.number, error)
        return False
    return True


def _test_accuracy(search: Search, study: Study, best: FrozenTrial, network: Path | None, judge: bool) -> float | None:
    known = study.user_attrs.get(TEST_RESULT)
    if known is not None and known["trial"] == best.number:
        return float(known["accuracy"])
    objective = search.resolved_objective()
    if not judge or network is None or not isinstance(objective, TrainObjective) or not objective.data.size([TEST]):
        return None
    data = objective.device_data
    _, accuracy = evaluate(load_network(network, str(data.device)), data, TEST, objective.recipe.precision)
    study.set_user_attr(TEST_RESULT, {"trial": best.number, "accuracy": accuracy})
    return accuracy


def ranking(study: Study) -> list[FrozenTrial]:
    """Return the completed trials, best first by the first objective; those that break a constraint come last."""
    sign = -1 if study.directions[0] == StudyDirection.MAXIMIZE else 1
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(complete, key=lambda trial: (not feasible(trial), sign * trial.values[0], trial.number))


def feasible(trial: FrozenTrial) -> bool:
    """Tell whether a trial keeps all its constraints."""
    return all(excess <= 0 for excess in trial.constraints.values())


def best_trial(study: Study) -> FrozenTrial | None:
    """Return the best trial that keeps the constraints; of several objectives, the best by the first one."""
    return next((trial for trial in ranking(study) if feasible(trial)), None)


def architecture_of(search: Search, trial: FrozenTrial) -> Architecture | None:
    """Return a trial's architecture, None where an objective of one's own did not ask for all of it."""
    try:
        return search.space.decode(trial.params)
    except ValueError:
        return None


# -- what MLflow shows -----------------------------------------------------------------------------------------------


class _Shown(TypedDict):
    """What `MLflowTracker.start` shows on a study's run."""

    space: Space | None
    description: str
    dataset: DatasetInfo | None
    params: Mapping[str, object]
    tags: Mapping[str, str]


def shown_in_mlflow(search: Search) -> _Shown:
    """Return what MLflow shows of a search besides its trials."""
    return {
        "space": search.space if search.pictures else None,
        "description": search.description,
        "dataset": _dataset_info(search.resolved_objective()),
        "params": _summary(search),
        "tags": {f"version.{name}": found for name, found in versions().items()}
        | ({"mlflow.source.git.commit": commit} if (commit := git_commit()) else {}),
    }


def _dataset_info(objective: Objective) -> DatasetInfo | None:
    if not isinstance(objective, TrainObjective):
        return None
    description = objective.data.describe()
    return DatasetInfo(description["name"], description["name"], description["digest"])


def _summary(search: Search) -> dict[str, object]:
    """Return what the parent run shows as parameters."""
    objective = search.resolved_objective()
    summary: dict[str, object] = {
        "space": type(search.space).__name__,
        "space_size": search.space.size,
        "trials": search.trials,
        "sampler": type(search.sampler).__name__ if search.sampler else "default",
        "pruner": type(search.pruner).__name__ if search.pruner else "default",
    }
    if isinstance(objective, TrainObjective):
        summary["data"] = objective.data.name
        summary |= {f"recipe/{name}": _plain(value) for name, value in asdict(objective.recipe).items()}
        summary |= {f"skeleton/{name}": str(value) for name, value in objective.skeleton.to_dict().items()}
    return summary

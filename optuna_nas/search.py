"""A study put together and run in this process: opened or resumed, mirrored, interrupted without loss, summed up."""

from __future__ import annotations

import json
import logging
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, runtime_checkable

import optuna
import torch
from optuna import Study, Trial, TrialPruned
from optuna.artifacts import upload_artifact
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_nas.data import TEST, Data
from optuna_nas.environment import git_commit, versions, without_password
from optuna_nas.objective import (
    DUPLICATE_OF,
    REASON,
    SCRATCH,
    SHARED_NETWORK,
    OutOfMemory,
    TrainObjective,
    TrialListener,
    load_network,
    network_path,
)
from optuna_nas.plots import plot_architecture
from optuna_nas.ranks import RankFailed, RankLost, Ranks, current_ranks, is_agreed, joined
from optuna_nas.recovery import (
    INTERRUPTED,
    REQUEUED,
    WORKER,
    Quota,
    Silent,
    StorageAway,
    Surplus,
    fail_dead,
    fail_stale,
    presence,
    reap_dead_trials,
    requeue_interrupted,
    this_worker,
)
from optuna_nas.storage import (
    MOVED,
    POSTGRESQL,
    SQLITE,
    Heartbeat,
    StorageError,
    backend_of,
    clear_errors,
    connect,
    own_database,
    storage_reason,
)
from optuna_nas.study_state import PREFIX, Unverified, artifact_store, fetch_file, folder_store
from optuna_nas.tracking import DatasetInfo, MLflowTracker
from optuna_nas.training import Recipe, TrainingDiverged, TrainingStopped, evaluate

if TYPE_CHECKING:
    from types import FrameType

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
MOST_AWAY_SECONDS = 120.0
"""That a worker waits for a database that does not answer."""
MOST_PICTURE_SECONDS = 10.0
"""That a trial which has ended waits for the picture of its architecture."""

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


def run(
    search: Search, listener: SearchListener | None = None, enough: Callable[[Study], bool] = lambda study: False
) -> SearchResult:
    """Run a search to its total of trials, and sum it up.

    `enough` is asked after every trial, and before the first; True ends the search as if its total were reached.

    Ctrl-C (SIGINT) once ends after the running trials, twice at once; SIGTERM ends at the next training step with a
    checkpoint. Whatever was interrupted, by a kill too, goes on when the search is run again.

    Raises:
        ValueError, ConnectionError: As `open_study`; also where the MLflow address does not answer at the start.
    """
    study = open_study(search)
    with _present(search) as alone:
        # An sqlite file is written from one machine: who is alone there knows that all other runs are gone.
        reap_dead_trials(study, alone and search.resolved_storage().startswith("sqlite"))
        if search.sampler is not None and study.get_trials(deepcopy=False):
            search.sampler.reseed_rng()  # its seed has been used up; it would propose the same architectures again
        tracker = search.tracking
        if tracker is not None:
            tracker.start(study, **shown_in_mlflow(search))
        status = "FAILED"
        try:
            missing = _Run(search, study, tracker, listener, enough).to_the_total()
            result = replace(summarise(search, study, judge=not missing), interrupted=missing > 0, missing=missing)
            status = "KILLED" if result.interrupted else "FINISHED"
        finally:
            if tracker is not None:
                if listener is not None:
                    listener.closing()
                tracker.finish(study, status=status)
        return result


@contextmanager
def _present(search: Search) -> Iterator[bool]:
    """Let other processes know that this one runs trials of a study; the value tells whether it is alone."""
    address = search.resolved_storage()
    file = search.resolved_folder() / ".running"
    if address.startswith(SQLITE):
        database = Path(address.removeprefix(SQLITE))
        file = database.with_name(f".{database.name}.running")  # other folders may lead to the same database
    with presence(file) as alone:
        yield alone


def work(search: Search, listener: SearchListener | None = None, closes: bool = True) -> int:
    """Be one of several workers of a study that exists, until its total is reached; return how many trials are missing.

    Waits while others run the last trials, in case one of them dies. Signals are answered as by `run`, and what was
    interrupted goes back to the queue at once, for whoever is there.

    Processes that `torchrun` starts are one worker: rank 0 asks for trials, and the others train along. An objective of
    one's own is called on every rank, with Optuna's `TorchDistributedTrial` (from the package `optuna-integration`); it
    must do alike on all of them.

    Args:
        search: As the one that created the study.
        listener: Hears of this worker's trials.
        closes: Whether the worker that finds the total reached writes to MLflow what others have missed; False where
            somebody else does.

    Raises:
        ValueError: The study does not exist, or with another setting; or it can't be run by several ranks.
        ConnectionError: The storage does not answer at the start, or later not for two minutes.
    """
    with joined() as ranks:
        if ranks.size == 1:
            return _work(search, listener, closes)
        if ranks.rank == 0:
            return _lead(search, listener, closes, ranks)
        return _follow(search, ranks)


def _work(search: Search, listener: SearchListener | None, closes: bool) -> int:
    study = open_study(search, create=False)
    if search.sampler is not None:
        search.sampler.reseed_rng()  # the others have the same seed
    tracker = search.tracking
    if tracker is not None:
        try:
            tracker.start(study, **shown_in_mlflow(search), replay=False)
        except ConnectionError as error:  # the storage knows all, and who closes the study shows it
            logger.warning("This worker's trials are shown in MLflow later: %s", error)
            tracker = None
    missing = search.trials
    try:
        with _present(search):
            missing = _Run(search, study, tracker, listener).to_the_total()
    finally:
        if tracker is not None:
            tracker.finish(study, "FINISHED" if closes and not missing else None)
    return missing


# -- several ranks as one worker ---------------------------------------------------------------------------------


def _lead(search: Search, listener: SearchListener | None, closes: bool, ranks: Ranks) -> int:
    """Be the rank that asks for trials, as `work`, and tell the others what to do."""
    objective = _shared_objective(search, ranks)
    missing = search.trials
    try:
        missing = _work(replace(search, objective=objective), listener, closes)
    finally:
        # Ranks that an objective of one's own has left in different places understand nothing any more; they end when
        # this process does.
        if isinstance(objective, TrainObjective) or not objective.left:
            with suppress(RuntimeError):  # a rank is gone already; what is found stays found
                ranks.broadcast({"end": missing})
                ranks.vote()  # nobody closes a connection from which another still reads
    return missing


def _follow(search: Search, ranks: Ranks) -> int:
    """Do as rank 0 says until it ends; return what it returns. Signals go to all ranks, and it answers them."""
    objective = _shared_objective(search, ranks)
    if search.cpu_threads is not None:
        torch.set_num_threads(search.cpu_threads)
    with _ignored(signal.SIGINT, signal.SIGTERM):
        while True:
            said = ranks.broadcast()
            if "end" in said:
                with suppress(RankLost):
                    ranks.vote()
                return int(said["end"])
            try:
                if isinstance(objective, TrainObjective):
                    objective.follow(said)
                else:
                    objective.follow()
            except Exception as error:
                if not is_agreed(error) and not isinstance(error, _ENDINGS):
                    raise
                if not isinstance(error, (*_ENDINGS, RankFailed)):  # rank 0 knows that something failed, not what
                    logger.warning("Rank %d failed: %s: %s", ranks.rank, type(error).__name__, error)


def _shared_objective(search: Search, ranks: Ranks) -> TrainObjective | _OnAllRanks:
    """Return the objective as several ranks call it.

    Raises:
        ValueError: They can't.
    """
    if search.n_jobs > 1:
        raise ValueError(
            f"`n_jobs` must be 1 for a worker of several ranks but is {search.n_jobs}; start more workers."
        )
    objective = search.resolved_objective()
    if not isinstance(objective, TrainObjective):
        return _OnAllRanks(objective, ranks)
    if objective.masks is not None:
        raise ValueError("`masks` must be None for a worker of several ranks but are given; use workers of one rank.")
    if objective.device != "auto" and torch.device(objective.device).index is not None:
        raise ValueError(
            f"`device` must leave open which GPU for a worker of several ranks but is {objective.device!r}; "
            "use 'auto' or 'cuda'."
        )
    return replace(objective, lead=ranks.broadcast)


_ENDINGS = (TrialPruned, TrainingStopped, TrainingDiverged, OutOfMemory)
"""How an objective may end on all ranks alike, after which the worker goes on."""


class _OnAllRanks:
    """An objective of one's own that all ranks call at a time, each with a trial that tells it what rank 0 is told."""

    def __init__(self, objective: Objective, ranks: Ranks) -> None:
        self._objective, self._ranks = objective, ranks
        self.left = False
        """Whether it was left by an error, which other ranks may know nothing of."""
        try:
            self._trial = import_module("optuna_integration.pytorch_distributed").TorchDistributedTrial
        except ImportError as error:
            raise ValueError(
                "`objective` of one's own must have the package `optuna-integration` for a worker of several ranks but "
                f"it is not there ({error}); install it."
            ) from None

    def __call__(self, trial: Trial) -> float | Sequence[float]:
        self._ranks.broadcast({})
        try:
            return self._objective(self._distributed(trial))
        except Exception as error:
            self.left = not is_agreed(error) and not isinstance(error, _ENDINGS)
            raise

    def follow(self) -> None:
        """Do what rank 0 does."""
        self._objective(self._distributed(None))

    def _distributed(self, trial: Trial | None) -> Trial:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return self._trial(trial)  # type: ignore[no-any-return]  # it has a trial's methods


@contextmanager
def _ignored(*numbers: signal.Signals) -> Iterator[None]:
    """Ignore signals inside the block; in a thread other than the main one, change nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# -- the trials of a process -----------------------------------------------------------------------------------------


class _Run:
    """The trials that this process runs of an opened study."""

    def __init__(
        self,
        search: Search,
        study: Study,
        tracker: MLflowTracker | None,
        listener: SearchListener | None,
        enough: Callable[[Study], bool] = lambda study: False,
    ) -> None:
        self._search, self._study, self._enough = search, study, enough
        self._folder = search.resolved_folder()
        self._shared = not search.resolved_storage().startswith("sqlite")
        self._quota, self._silent = Quota(study, search.trials), Silent(study, search.heartbeat.grace)
        self._interrupts = _Interrupts()
        self._errors: list[BaseException] = []  # of the trials that were begun last
        self._pictures = _Pictures(search.space, self._folder / "artifacts") if search.pictures else None
        self._events = _Events(tracker, listener, self._pictures)
        self._store = None if search.artifacts is None else artifact_store(search.artifacts)
        objective = search.resolved_objective()
        if isinstance(objective, TrainObjective):
            stop = self._interrupts.at_once.is_set
            folder = objective.folder or self._folder
            objective = replace(objective, folder=folder, listener=self._events, should_stop=stop, store=self._store)
        self._objective = objective
        parts: tuple[object, ...] = (search.sampler, search.pruner)
        self._trains = [part for part in parts if isinstance(part, TrainsModel)]
        for part in self._trains:
            on_progress = None if listener is None else partial(self._events.model_progress, type(part).__name__)
            part.prepare(self._folder, on_progress, self._interrupts.at_once.is_set, self._store)

    def to_the_total(self) -> int:
        """Run trials until the total is reached or a signal comes; return how many are missing."""
        if self._search.cpu_threads is not None:
            torch.set_num_threads(self._search.cpu_threads)
        if self._missing() > 0:
            try:
                with self._interrupts.installed():
                    self._run_trials()
                    requeue_interrupted(self._study, this_worker())  # here, where a second signal can't prevent it
            finally:
                for part in self._trains:
                    part.prepare(self._folder, None, None, self._store)
                if self._pictures is not None:
                    self._pictures.close()
        return self._missing()

    def _missing(self) -> int:
        return 0 if self._enough(self._study) else self._quota.missing()

    def _run_trials(self) -> None:
        away_since: float | None = None
        while not self._interrupts.after_trial.is_set():
            self._errors.clear()
            try:
                standing = self._quota.look()
                if standing.finished >= self._quota.total or self._enough(self._study):
                    return
                room = self._quota.total - standing.finished - len(standing.running)
                if room > 0:
                    self._optimize(min(room, self._search.n_jobs) if self._shared else room)
                else:
                    self._wait_for_others()
                away_since = None
            except (TrainingStopped, KeyboardInterrupt):
                return
            except RankLost as error:
                logger.warning("The trial is interrupted: %s", error)
                return
            except Surplus:
                continue
            except StorageAway as away:
                away_since = self._wait_for_storage(away.error, away_since)
            except StorageError as error:
                away_since = self._wait_for_storage(error, away_since)
            except (ValueError, UpdateFinishedTrialError) as error:
                if not _is_taken_over(error):
                    raise
                logger.warning("A trial was given to another worker, since this one gave no sign of life for long.")

    def _optimize(self, n_trials: int) -> None:
        """Run trials by Optuna; raise what it loses."""
        try:
            self._study.optimize(
                self._run_trial,
                n_trials=n_trials,
                n_jobs=self._search.n_jobs,
                catch=(TrainingDiverged, OutOfMemory),
                callbacks=[self._after_trial],
            )
        except (AssertionError, UnboundLocalError) as error:
            # Where a trial can't be told how it ended, Optuna fails once more before it raises why.
            while (cause := error.__context__) is not None:
                if isinstance(cause, (*StorageError, UpdateFinishedTrialError)) or _is_taken_over(cause):
                    raise cause from None
                error = cause  # type: ignore[assignment]
            raise
        if self._errors:  # of threads, whose last errors Optuna does not look at
            raise self._errors[0]

    def _run_trial(self, trial: Trial) -> float | Sequence[float]:
        try:
            return self._try_trial(trial)
        except (TrialPruned, TrainingDiverged, OutOfMemory):
            raise
        except StorageError as error:
            away = StorageAway(error)
            self._errors.append(away)
            raise away from error
        except BaseException as error:
            self._errors.append(error)
            raise

    def _try_trial(self, trial: Trial) -> float | Sequence[float]:
        trial.set_user_attr(WORKER, this_worker())
        if (backend := backend_of(self._study)) is not None and backend.heartbeat_interval is None:
            backend.flush(trial._trial_id)  # nothing else tells when this process has died
        try:
            self._quota.claim(trial)
            if not isinstance(self._objective, TrainObjective):
                self._events.trial_started(trial, {})
            value = self._objective(trial)
            if self._pictures is not None:
                self._pictures.wait(trial.number)
            return value
        except (TrainingStopped, KeyboardInterrupt, RankLost):
            trial.set_user_attr(REASON, INTERRUPTED)
            trial.set_user_attr(REQUEUED, True)
            raise

    def _after_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._events.trial_finished(study, trial)
        _forget_networks(study, self._folder, self._search.keep_networks)
        if self._store is not None:
            _forget_shared(study, trial, self._store, self._search.keep_networks)
        if self._interrupts.after_trial.is_set() or (not self._shared and self._missing() == 0):
            study.stop()

    def _wait_for_others(self) -> None:
        """Wait while other workers run what is missing, and see whether they live."""
        self._interrupts.after_trial.wait(WAIT_SECONDS)
        fail_stale(self._study)
        self._silent.reap()
        if not self._shared:
            reap_dead_trials(self._study)
            for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if trial.user_attrs.get(WORKER) == this_worker():  # no thread of this process runs one now
                    fail_dead(self._study, trial)

    def _wait_for_storage(self, error: BaseException, away_since: float | None) -> float:
        """Wait for a database that is away; return since when it is."""
        now = time.monotonic()
        if not self._shared:
            raise error
        if away_since is None:
            logger.warning("The storage does not answer (%s); waiting for it.", storage_reason(error))
            away_since = now
        elif now - away_since > MOST_AWAY_SECONDS:
            raise ConnectionError(
                f"`storage` must answer within {MOST_AWAY_SECONDS:.0f} s but did not; start the database, then run "
                "this again."
            ) from error
        self._interrupts.after_trial.wait(WAIT_SECONDS)
        return away_since


def _is_taken_over(error: BaseException) -> bool:
    """Tell whether an error says that a trial was ended by another process."""
    return isinstance(error, UpdateFinishedTrialError) or str(error).startswith("Cannot tell a ")


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


# -- interruptions ------------------------------------------------------------------------------------------------


class _Interrupts:
    """Turns signals into two flags: stop after the running trials, stop at the next training step."""

    def __init__(self) -> None:
        self.after_trial, self.at_once = threading.Event(), threading.Event()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM inside the block; in a thread other than the main one, change nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        signal.signal(signal.SIGINT, self._on_interrupt)
        signal.signal(signal.SIGTERM, self._on_terminate)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.after_trial.is_set():
            self.at_once.set()
            if current_ranks().size == 1:
                raise KeyboardInterrupt
            return  # all ranks end at the next training step: none may leave the others in the middle of one
        self.after_trial.set()
        logger.warning("Interrupted: ending after the running trial. Press Ctrl-C again to end at once.")

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        self.after_trial.set()
        self.at_once.set()
        logger.warning("Terminated: ending at the next training step, with a checkpoint.")


# -- small parts --------------------------------------------------------------------------------------------------


class _Events:
    """Hands every event to the tracker and to the display."""

    def __init__(
        self, tracker: MLflowTracker | None, listener: SearchListener | None, pictures: _Pictures | None = None
    ) -> None:
        self._tracker, self._listener, self._pictures = tracker, listener, pictures

    def trial_started(self, trial: Trial | FrozenTrial, metrics: Mapping[str, float]) -> None:
        if self._pictures and isinstance(trial, Trial):
            self._pictures.draw(trial)
        if self._tracker:
            self._tracker.trial_started(trial, metrics)
        if self._listener:
            self._listener.trial_started(trial, metrics)

    def epoch(self, trial_number: int, step: int, metrics: Mapping[str, float]) -> None:
        if self._tracker:
            self._tracker.epoch(trial_number, step, metrics)
        if self._listener:
            self._listener.epoch(trial_number, step, metrics)

    def progress(self, trial_number: int, fraction: float) -> None:
        if self._listener:
            self._listener.progress(trial_number, fraction)

    def model_progress(self, name: str, fraction: float) -> None:
        if self._listener:
            self._listener.model_progress(name, fraction)

    def trial_finished(self, study: Study, trial: FrozenTrial) -> None:
        if self._tracker:
            self._tracker.trial_finished(study, trial)
        if self._listener:
            self._listener.trial_finished(study, trial)


class _Pictures:
    """Draws the architectures of running trials in a thread, and attaches them to the trials as Optuna artifacts."""

    def __init__(self, space: Space, folder: Path) -> None:
        self._space, self._folder = space, folder
        self._thread = ThreadPoolExecutor(1, "optuna_nas-pictures")
        self._drawn: dict[int, Future[None]] = {}

    def draw(self, trial: Trial) -> None:
        """Begin with the picture of a trial, if its architecture is known."""
        try:
            architecture = self._space.decode(trial.params)
        except ValueError:
            return
        self._drawn[trial.number] = self._thread.submit(self._attach, trial, architecture)

    def _attach(self, trial: Trial, architecture: Architecture) -> None:
        try:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "architecture.png"
                plot_architecture(architecture).savefig(file)
                upload_artifact(artifact_store=folder_store(self._folder), file_path=str(file), study_or_trial=trial)
        except Exception:  # a picture is no reason to lose a trial
            logger.debug("The picture of trial %d could not be attached.", trial.number, exc_info=True)

    def wait(self, number: int) -> None:
        """Let a trial wait for its picture, since none can be attached once it has finished."""
        if (drawn := self._drawn.pop(number, None)) is not None:
            with suppress(TimeoutError):
                drawn.result(MOST_PICTURE_SECONDS)

    def close(self) -> None:
        """End the thread; pictures of trials that have ended meanwhile are left out."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _forget_networks(study: Study, folder: Path, keep: int) -> None:
    """Remove the networks of trials that are neither among the best nor still of use."""
    files = list((folder / "networks").glob("trial-*.safetensors"))
    if len(files) <= keep:
        return
    best = [*ranking(study)[:keep], *(study.best_trials if len(study.directions) > 1 else ())]
    kept = {trial.user_attrs.get(DUPLICATE_OF, trial.number) for trial in best}
    finished = {trial.number for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()}
    for file in files:
        number = int(file.stem.removeprefix("trial-"))
        if number in finished - kept:
            file.unlink(missing_ok=True)


def _forget_shared(study: Study, trial: FrozenTrial, store: ArtifactStore, keep: int) -> None:
    """Remove from the shared store the network of a trial, or of the one whose place among the best it has taken."""
    if len(study.directions) > 1:
        return  # a front may be as large as it likes
    ranked = ranking(study)
    kept = {best.user_attrs.get(DUPLICATE_OF, best.number) for best in ranked[:keep]}
    for other in (trial, *ranked[keep : keep + 1]):
        if SHARED_NETWORK in other.user_attrs and other.number not in kept:
            with suppress(Exception):  # each store has errors of its own
                store.remove(other.user_attrs[SHARED_NETWORK]["artifact"])


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

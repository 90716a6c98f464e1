"""A study put together and run in this process: opened or resumed, mirrored, interrupted without loss, summed up."""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, runtime_checkable

import optuna
import torch
from optuna import Study, Trial
from optuna.artifacts import upload_artifact
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from optuna_nas.data import TEST, Data
from optuna_nas.environment import git_commit, versions
from optuna_nas.objective import (
    DUPLICATE_OF,
    REASON,
    RESUMES,
    SCRATCH,
    OutOfMemory,
    TrainObjective,
    TrialListener,
    load_network,
    network_path,
)
from optuna_nas.plots import plot_architecture
from optuna_nas.study_state import PREFIX, folder_store
from optuna_nas.tracking import DatasetInfo, MLflowTracker
from optuna_nas.tracking.records import without_password
from optuna_nas.training import Recipe, TrainingDiverged, TrainingStopped, evaluate

if TYPE_CHECKING:
    from types import FrameType

    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

    from optuna_nas.space import Architecture, Skeleton, Space

logger = logging.getLogger(__name__)

SETTING = PREFIX + "setting"
"""Study attribute: space, skeleton, data and recipe, as JSON; a study goes on under the same setting only."""
TEST_RESULT = PREFIX + "test"
"""Study attribute: which trial's network was judged on the test split, and its accuracy."""
WORKER = PREFIX + "worker"
"""Trial attribute: who runs it: host, process id, and a token of that process."""
REQUEUED = PREFIX + "requeued"
"""Trial attribute: it was interrupted, and another trial goes on with its parameters."""
ATTEMPT = PREFIX + "attempt"
"""Trial attribute: how often these parameters were tried, counting processes that died."""

INTERRUPTED = "interrupted"
MOST_ATTEMPTS = 3
MOST_PICTURE_SECONDS = 10.0
"""That a trial which has ended waits for the picture of its architecture."""

_TOKEN = secrets.token_hex(4)

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
        self, folder: Path, on_progress: Callable[[float], None] | None, should_stop: Callable[[], bool] | None
    ) -> None:
        """Take a folder for artifacts, whom to tell the fraction of a round done, and when to stop."""


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
        storage: Optuna storage address; by default an sqlite file in `folder`.
        tracking: MLflow mirror; None for none.
        folder: Where pictures, networks and checkpoints go; by default `runs/NAME`.
        n_jobs: Trials at a time, in threads.
        cpu_threads: Threads that torch uses on the CPU; None leaves torch's choice. Small networks train fastest
            with 1, and a number given here makes results independent of how many cores a machine has.
        keep_networks: How many of the best trials' networks stay on disk.
        pictures: Attach a picture of its architecture to every trial that trains, as an Optuna artifact in the folder
            `artifacts`: `optuna-dashboard STORAGE --artifact-dir runs/NAME/artifacts` shows it.
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
        """Return the address of the Optuna storage."""
        return self.storage or f"sqlite:///{self.resolved_folder() / 'study.db'}"

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
    storage = search.resolved_storage()
    absent = ValueError(
        f"`study` must exist but {without_password(storage)} has none named {search.name!r}; "
        "start it with `optuna-nas run`."
    )
    if not create and storage.startswith("sqlite:///") and not Path(storage.removeprefix("sqlite:///")).exists():
        raise absent  # before Optuna makes the file
    if create:
        search.resolved_folder().mkdir(parents=True, exist_ok=True)
    with _clear_storage_errors(storage):
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
        _check_setting(study, search)
    return study


@contextmanager
def _clear_storage_errors(storage: str) -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, OSError, ImportError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise ConnectionError(
            f"`storage` must be the address of a database that answers but {without_password(storage)!r} does not: "
            f"{reason}; start the database, or correct the address."
        ) from error


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


def counted_trials(study: Study) -> int:
    """Return how many trials count towards the total: finished ones, but not those that another goes on with."""
    trials = study.get_trials(deepcopy=False)
    return sum(trial.state.is_finished() and REQUEUED not in trial.user_attrs for trial in trials)


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
    folder = search.resolved_folder()
    with _presence(folder / ".running") as alone:
        # An sqlite file is written from one machine: who is alone there knows that all other runs are gone.
        reap_dead_trials(study, alone and search.resolved_storage().startswith("sqlite"))
        if search.sampler is not None and study.get_trials(deepcopy=False):
            search.sampler.reseed_rng()  # its seed has been used up; it would propose the same architectures again
        tracker = search.tracking
        if tracker is None:
            return _run(search, study, None, listener, enough)
        tracker.start(study, **shown_in_mlflow(search))
        status = "FAILED"
        try:
            result = _run(search, study, tracker, listener, enough)
            status = "KILLED" if result.interrupted else "FINISHED"
        finally:
            if listener is not None:
                listener.closing()
            tracker.finish(study, status=status)
        return result


def _run(
    search: Search,
    study: Study,
    tracker: MLflowTracker | None,
    listener: SearchListener | None,
    enough: Callable[[Study], bool],
) -> SearchResult:
    """Run the missing trials of an opened study, and sum it up."""
    folder, objective = search.resolved_folder(), search.resolved_objective()
    if search.cpu_threads is not None:
        torch.set_num_threads(search.cpu_threads)
    interrupts = _Interrupts()
    pictures = _Pictures(search.space, folder / "artifacts") if search.pictures else None
    events = _Events(tracker, listener, pictures)
    if isinstance(objective, TrainObjective):
        objective = replace(
            objective, folder=objective.folder or folder, listener=events, should_stop=interrupts.at_once.is_set
        )

    parts: tuple[object, ...] = (search.sampler, search.pruner)
    trains = [part for part in parts if isinstance(part, TrainsModel)]
    for part in trains:
        on_progress = None if listener is None else partial(events.model_progress, type(part).__name__)
        part.prepare(folder, on_progress, interrupts.at_once.is_set)

    def run_trial(trial: Trial) -> float | Sequence[float]:
        trial.set_user_attr(WORKER, _worker())
        if not isinstance(objective, TrainObjective):
            events.trial_started(trial, {})
        try:
            value = objective(trial)
            if pictures is not None:
                pictures.wait(trial.number)
            return value
        except (TrainingStopped, KeyboardInterrupt):
            trial.set_user_attr(REASON, INTERRUPTED)
            trial.set_user_attr(REQUEUED, True)
            raise

    def after_trial(study: Study, trial: FrozenTrial) -> None:
        events.trial_finished(study, trial)
        _forget_networks(study, folder, search.keep_networks)
        if interrupts.after_trial.is_set() or missing_trials() == 0:
            study.stop()

    def missing_trials() -> int:
        return 0 if enough(study) else max(0, search.trials - counted_trials(study))

    missing = missing_trials()
    if missing > 0:
        try:
            with interrupts.installed(), suppress(TrainingStopped, KeyboardInterrupt):
                study.optimize(
                    run_trial,
                    n_trials=missing,
                    n_jobs=search.n_jobs,
                    catch=(TrainingDiverged, OutOfMemory),
                    callbacks=[after_trial],
                )
        finally:
            for part in trains:
                part.prepare(folder, None, None)
            if pictures is not None:
                pictures.close()
        requeue_interrupted(study)
    missing = missing_trials()
    result = summarise(search, study, judge=missing == 0)
    return replace(result, interrupted=missing > 0, missing=missing)


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
    if network is not None and not network.exists():
        network = None
    test_accuracy = _test_accuracy(search, study, best, network, judge)
    return SearchResult(study, best, picture, network, test_accuracy)


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
            raise KeyboardInterrupt
        self.after_trial.set()
        logger.warning("Interrupted: ending after the running trial. Press Ctrl-C again to end at once.")

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        self.after_trial.set()
        self.at_once.set()
        logger.warning("Terminated: ending at the next training step, with a checkpoint.")


def requeue_interrupted(study: Study) -> None:
    """Enqueue the parameters of every interrupted trial that nobody goes on with yet."""
    trials = study.get_trials(deepcopy=False)
    taken = {trial.user_attrs[PREFIX + "retry_of"] for trial in trials if PREFIX + "retry_of" in trial.user_attrs}
    for trial in trials:
        if REQUEUED in trial.user_attrs and trial.state == TrialState.FAIL and trial.number not in taken:
            study.enqueue_trial(
                trial.params,
                user_attrs={
                    PREFIX + "retry_of": trial.number,
                    RESUMES: trial.user_attrs.get(RESUMES, trial.number),
                    # Being stopped on purpose is no sign that something is wrong with the parameters.
                    ATTEMPT: trial.user_attrs.get(ATTEMPT, 1) + (trial.user_attrs.get(REASON) != INTERRUPTED),
                },
            )


def reap_dead_trials(study: Study, alone: bool = False) -> None:
    """Fail the running trials of processes that are gone, and enqueue their parameters again.

    Args:
        study: With trials that an earlier `run` may have left behind.
        alone: No other process runs this study; otherwise only processes of this machine are looked up.
    """
    host = socket.gethostname()
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = str(trial.user_attrs.get(WORKER, ""))
        if worker and (alone or (worker.startswith(f"{host}:") and not _alive(worker))):
            storage, attempt = study._storage, trial.user_attrs.get(ATTEMPT, 1)
            reason = f"the process that ran it is gone, attempt {attempt} of {MOST_ATTEMPTS}"
            storage.set_trial_user_attr(trial._trial_id, REASON, reason)
            if attempt < MOST_ATTEMPTS:
                storage.set_trial_user_attr(trial._trial_id, REQUEUED, True)
            study.tell(trial.number, state=TrialState.FAIL)
    requeue_interrupted(study)


@contextmanager
def _presence(file: Path) -> Iterator[bool]:
    """Hold a shared lock on a file inside the block; the value tells whether nobody else held one before."""
    try:
        import fcntl
    except ImportError:  # not on Windows, where only process ids tell
        yield False
        return
    with open(file, "w") as handle:
        alone = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            alone = False
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield alone


def _worker() -> str:
    return f"{socket.gethostname()}:{os.getpid()}:{_TOKEN}"


def _alive(worker: str) -> bool:
    """Tell whether a worker of this machine still runs; a new process under its old number is not it."""
    process = int(worker.split(":")[1])
    if process == os.getpid():
        return worker == _worker()
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


# -- small parts --------------------------------------------------------------------------------------------------


class _Events:
    """Hands every event to the tracker and to the display."""

    def __init__(
        self, tracker: MLflowTracker | None, listener: SearchListener | None, pictures: _Pictures | None = None
    ) -> None:
        self._tracker, self._listener, self._pictures = tracker, listener, pictures

    def trial_started(self, trial: Trial, metrics: Mapping[str, float]) -> None:
        if self._pictures:
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
    best = [*ranking(study)[:keep], *(study.best_trials if len(study.directions) > 1 else ())]
    kept = {trial.user_attrs.get(DUPLICATE_OF, trial.number) for trial in best}
    finished = {trial.number for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()}
    for file in (folder / "networks").glob("trial-*.safetensors"):
        number = int(file.stem.removeprefix("trial-"))
        if number in finished - kept:
            file.unlink(missing_ok=True)


class _Shown(TypedDict):
    """What `MLflowTracker.start` shows on a study's run."""

    space: Space
    description: str
    dataset: DatasetInfo | None
    params: Mapping[str, object]
    tags: Mapping[str, str]


def shown_in_mlflow(search: Search) -> _Shown:
    """Return what MLflow shows of a search besides its trials."""
    return {
        "space": search.space,
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

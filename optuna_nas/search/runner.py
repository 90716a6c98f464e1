"""Run the trials of a study in this process, alone or as one of several workers."""

from __future__ import annotations

import logging
import signal
import tempfile
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from optuna import Study, Trial, TrialPruned
from optuna.artifacts import upload_artifact
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from optuna_nas.objective.protocol import Binds, TrialRun
from optuna_nas.objective.trial_training import OutOfMemory
from optuna_nas.plots import plot_architecture
from optuna_nas.search.config import check_listener, training_parts
from optuna_nas.search.events import Events
from optuna_nas.search.opening import WAIT_SECONDS, note_run, open_study
from optuna_nas.search.results import SearchResult, shown_in_mlflow, summarise
from optuna_nas.search.signals import handled
from optuna_nas.search.stopping import stopping_of
from optuna_nas.search.torchrun import follow, lead
from optuna_nas.storage.artifacts import artifact_store, folder_store, remove_file
from optuna_nas.storage.attributes import REASON, REQUEUED, SHARED_NETWORK, WORKER, attribute
from optuna_nas.storage.by_architecture import trained_by
from optuna_nas.storage.database import closing, is_server, local_file, storage_reason
from optuna_nas.storage.leaderboard import ranking
from optuna_nas.storage.optuna_rdb import StorageError, Surplus, backend_of, has_heartbeats
from optuna_nas.storage.presence import presence, this_worker
from optuna_nas.storage.quota import Quota, StorageAway
from optuna_nas.storage.retries import INTERRUPTED, Silent, fail_dead, fail_stale, reap_dead_trials, retry_on_fail
from optuna_nas.training.device import own_default_device
from optuna_nas.training.disk import unwritable
from optuna_nas.training.loop import TrainingDiverged, TrainingStopped
from optuna_nas.training.process_group import RankLost, current_ranks, joined

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from types import FrameType

    from optuna_nas.search.config import Search, SearchListener
    from optuna_nas.space import Architecture, Space
    from optuna_nas.storage.optuna_rdb import ArtifactStore

logger = logging.getLogger(__name__)


MAX_STORAGE_WAIT_SECONDS = 120.0
"""Seconds to wait for a database that does not answer."""
MAX_PICTURE_WAIT_SECONDS = 10.0
"""Seconds that a finished trial waits for the drawing of its architecture."""


@own_default_device()
def run(
    search: Search, listener: SearchListener | None = None, enough: Callable[[Study], bool] = lambda study: False
) -> SearchResult:
    """Run a search until its total number of trials is reached, and return its result.

    Ctrl-C (SIGINT) ends the search after the running trials, a second Ctrl-C at once. SIGTERM ends it at the next
    training step, with a checkpoint. Interrupted and killed trials are resumed when the search is run again.

    Args:
        search: Configuration.
        listener: Listener, such as a progress display.
        enough: Callback before the first trial and after every trial; True ends the search as if its total number of
            trials was reached.

    Raises:
        ValueError: The study exists with another space, data, recipe or direction, or the listener lacks a method.
        ConnectionError: The storage or MLflow does not answer at the start.

    Example:
        >>> from dataclasses import replace
        >>> import optuna
        >>> from optuna_nas import Search, nasbench201_space, run
        >>> space = nasbench201_space()
        >>> def objective(trial):
        ...     return float(space.suggest(trial).connected)
        >>> sampler = optuna.samplers.RandomSampler(seed=0)
        >>> search = Search("random", space, objective=objective, sampler=sampler, trials=3)
        >>> result = run(replace(search, tracking=None, pictures=False))
        >>> len(result.study.trials), result.best.value
        (3, 1.0)
    """
    check_listener(listener)
    study = open_study(search)
    with closing(study), _present(search) as alone:
        # If no other process that runs the study holds the lock beside its file, its running trials are dead.
        alone = alone and local_file(search.resolved_storage()) is not None
        reap_dead_trials(study, alone)
        if alone:
            Quota(study, search.total).requeue_interrupted()
        if search.resolved_sampler is not None and study.get_trials(deepcopy=False):
            search.resolved_sampler.reseed_rng()  # else it proposes what it did before
        tracker = search.tracking
        if tracker is not None:
            tracker.start(study, **shown_in_mlflow(search))
        events = Events(tracker, listener)
        status, network = "FAILED", None
        try:
            running = _Run(search, study, events, enough)
            missing = running.to_the_total()
            if running.ended is not None:
                note_run(study, search, running.ended)
            result = summarise(search, study, judge=not missing)
            result = replace(result, interrupted=missing > 0, missing=missing, ended=running.ended)
            status, network = "KILLED" if result.interrupted else "FINISHED", result.network
        finally:
            if tracker is not None:
                events.closing()
                tracker.finish(study, status, network)
        return result


@contextmanager
def _present(search: Search) -> Iterator[bool]:
    """Register this process as one that runs trials of a study; yield whether it is the only one."""
    file = search.resolved_folder() / ".running"
    if (database := local_file(search.resolved_storage())) is not None:
        file = database.with_name(f".{database.name}.running")  # searches with other folders may share the database
    with presence(file) as alone:
        yield alone


@own_default_device()
def work(
    search: Search,
    listener: SearchListener | None = None,
    closes: bool = True,
    on_ended: Callable[[str], None] | None = None,
) -> int:
    """Run trials of an existing study as one of several workers, until its total number of trials is reached.

    While other workers run the last trials, this one waits, in case one of them dies. Signals are handled as in `run`;
    interrupted trials are enqueued again at once, for any worker.

    Processes that `torchrun` starts are one worker: rank 0 asks for trials, and all ranks train them together. A user's
    own objective is called on every rank with Optuna's `TorchDistributedTrial` (from the package `optuna-integration`),
    and must do the same on all of them.

    Args:
        search: Configuration with which the study was created.
        listener: Listener to the trials of this worker.
        closes: Whether the worker that reaches the total completes the mirror in MLflow; False if another process does.
        on_ended: Callback with the reason why the search has ended before its total number of trials, such as
            `study.stop()` in the objective.

    Returns:
        Number of missing trials.

    Raises:
        ObjectiveFailed: The objective has raised a ValueError or ConnectionError.
        ValueError: The study does not exist or has other settings, or several ranks can't run it.
        ConnectionError: The storage does not answer at the start, or for two minutes later.
    """
    with joined() as ranks:
        if ranks.size == 1:
            return _work(search, listener, closes, on_ended)
        if ranks.rank == 0:
            return lead(search, ranks, lambda led: _work(led, listener, closes, on_ended))
        return follow(search, ranks)


def _work(
    search: Search, listener: SearchListener | None, closes: bool, on_ended: Callable[[str], None] | None = None
) -> int:
    check_listener(listener)
    study = open_study(search, create=False)
    if search.resolved_sampler is not None:
        search.resolved_sampler.reseed_rng()  # the samplers of other workers have the same seed
    tracker = search.tracking
    if tracker is not None:
        try:
            tracker.start(study, **shown_in_mlflow(search), replay=False)
        except ConnectionError as error:  # the mirror is completed from the storage at the end of the study
            logger.warning("This worker's trials are shown in MLflow later: %s", error)
            tracker = None
    missing, running = search.total, None
    with closing(study):
        try:
            with _present(search):
                running = _Run(search, study, Events(tracker, listener))
                missing = running.to_the_total()
                if on_ended is not None and running.ended is not None:
                    on_ended(running.ended)
        except (ValueError, ConnectionError) as error:
            if not running or error not in running.raised_by_objective:
                raise
            raise ObjectiveFailed(f"{type(error).__name__}: {error}") from error
        finally:
            if tracker is not None:
                tracker.finish(study, "FINISHED" if closes and not missing else None)
    return missing


# -- the trials of a process -----------------------------------------------------------------------------------------


class ObjectiveFailed(RuntimeError):
    """Raised by a worker whose objective has raised an error that would otherwise mean wrong input of the worker."""


class _Run:
    """Trials of an open study that this process runs."""

    def __init__(
        self,
        search: Search,
        study: Study,
        events: Events,
        enough: Callable[[Study], bool] = lambda study: False,
    ) -> None:
        self._search, self._study = search, study
        self._stopping, self._given_enough = stopping_of(search), enough
        self._folder = search.resolved_folder()
        self._shared = is_server(search.resolved_storage())
        self._quota, self._silent = Quota(study, search.total), Silent(study, search.heartbeat.grace)
        self._interrupts = _Interrupts()
        self._stops = self._was_stopped = False  # by this class; by the objective or the sampler
        self.ended: str | None = None
        """Why the search has ended before its total number of trials."""
        self.raised_by_objective: list[BaseException] = []
        self._awaited: set[int] = set()  # numbers of trials of other workers that a line was logged for
        self._errors: list[BaseException] = []  # errors of the trials in the current call of `Study.optimize`
        self._pictures = _Pictures(search.space, self._folder / "artifacts") if search.pictures else None
        self._events = events
        if self._pictures is not None:
            events.draw = self._pictures.draw
        self._store = None if search.artifacts is None else artifact_store(search.artifacts)
        objective = search.resolved_objective
        run = TrialRun(self._folder, events, self._interrupts.at_once.is_set, self._store)
        self._announces = isinstance(objective, Binds)
        self._objective = objective.bind(run) if isinstance(objective, Binds) else objective
        self._trains = training_parts(search.resolved_sampler, search.resolved_pruner)
        for part in self._trains:
            on_progress = None if events.listener is None else events.model_progress
            part.prepare(self._folder, on_progress, self._interrupts.at_once.is_set, self._store, search.total)
            fit = getattr(part, "in_study_fit", None)
            if fit is not None and (n_trials := len(study.get_trials(deepcopy=False))):
                fit.newest(study, n_trials - 1)  # another model is refused now, and not in a trial

    def to_the_total(self) -> int:
        """Run trials until the total is reached or a signal is received; return the number of missing trials."""
        if self._search.cpu_threads is not None:
            torch.set_num_threads(self._search.cpu_threads)
        if self._missing() > 0:
            try:
                with self._interrupts.installed():
                    self._run_trials()
                    self._quota.requeue_interrupted(this_worker())  # with handlers, so that no signal prevents it
            except Exception as error:
                if (why := unwritable(error)) is None:
                    raise
                with suppress(*StorageError):
                    self._quota.requeue_interrupted(this_worker())
                raise ConnectionError(
                    f"`folder` must be on a disk {why.must} but that of {self._folder} or of the storage is {why.is_} "
                    f"({storage_reason(error)}); {why.way_out}, then run this again: it goes on where it was."
                ) from error
            finally:
                for part in self._trains:
                    part.prepare(self._folder, None, None, self._store, self._search.total)
                if self._pictures is not None:
                    self._pictures.close()
        return self._missing()

    def _enough(self, study: Study) -> bool:
        """Return whether the search ends before its total number of trials."""
        if (reason := self._stopping.reason(study)) is not None:
            self.ended = reason
        return reason is not None or self._given_enough(study)

    def _missing(self) -> int:
        return 0 if self._was_stopped or self._enough(self._study) else self._quota.missing()

    def _run_trials(self) -> None:
        away_since: float | None = None
        while not self._interrupts.after_trial.is_set():
            self._errors.clear()
            try:
                standing = self._quota.look()
                if not standing.missing or self._was_stopped or self._enough(self._study):
                    return
                if standing.free > 0:
                    with self._quota.admitting(standing):
                        self._optimize(min(standing.free, self._search.n_jobs) if self._shared else standing.free)
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
                logger.warning("A trial was given to another worker: this one gave no sign of life for too long.")

    def _optimize(self, n_trials: int) -> None:
        """Run trials with `Study.optimize`, and raise errors that it hides."""
        self._stops = False
        try:
            self._study.optimize(
                self._run_trial,
                n_trials=n_trials,
                n_jobs=self._search.n_jobs,
                catch=(TrainingDiverged, OutOfMemory),
                callbacks=[self._after_trial],
            )
        except RecursionError as error:
            if error in self.raised_by_objective:
                raise
            raise ValueError(
                "`study` must hold attributes that Optuna can copy but those of a trial in its queue are nested too "
                "deeply; give the search another `name`."
            ) from error
        except (AssertionError, UnboundLocalError) as error:
            # If the state of a trial can't be stored, Optuna raises another error that hides the first one.
            while (cause := error.__context__) is not None:
                if isinstance(cause, (*StorageError, UpdateFinishedTrialError)) or _is_taken_over(cause):
                    raise cause from cause.__cause__  # which may say more, such as that a disk is full
                error = cause  # type: ignore[assignment]
            raise
        if self._errors:  # errors in threads, of which Optuna ignores the last ones
            raise self._errors[0]
        if self._study._stop_flag and not self._stops:
            self.ended = "the objective or the sampler has stopped the study (`study.stop()`)"
            self._was_stopped = True

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
            self.raised_by_objective.append(error)
            if unwritable(error) is not None:  # no failure of these parameters
                with suppress(*StorageError):
                    _note_interrupted(trial)
            raise

    def _try_trial(self, trial: Trial) -> float | Sequence[float]:
        if (backend := backend_of(self._study)) is not None:
            backend.delay(trial._trial_id)
        else:
            trial.set_user_attr(WORKER, this_worker())  # by which the dead are recognised; see `Quota.admitting`
        try:
            self._quota.claim(trial)
            if not self._announces:
                self._events.trial_started(trial, {})
            value = self._objective(trial)
            if self._pictures is not None:
                self._pictures.wait(trial.number)
            return value
        except (TrainingStopped, KeyboardInterrupt, RankLost):
            _note_interrupted(trial)
            raise

    def _after_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._events.trial_finished(study, trial)
        _remove_networks(study, self._search.space, self._folder, self._search.keep_networks)
        if self._store is not None:
            _remove_shared(study, self._search.space, trial, self._store, self._search.keep_networks)
        ends = self._interrupts.after_trial.is_set() or (not self._shared and self._missing() == 0)
        if ends and not study._stop_flag:  # else a trial in another thread has stopped it, or the objective
            self._stops = True
            study.stop()

    def _wait_for_others(self) -> None:
        """Wait while other workers run the missing trials, and fail the trials of workers that have died."""
        self._interrupts.after_trial.wait(WAIT_SECONDS)
        fail_stale(self._study)
        self._silent.reap()
        if not has_heartbeats(self._study):
            reap_dead_trials(self._study)
            for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                worker = attribute(trial.user_attrs, WORKER)
                if worker == this_worker():  # this process runs no trial at the moment
                    fail_dead(self._study, trial)
                elif trial.number not in self._awaited:
                    self._awaited.add(trial.number)
                    logger.warning("Waiting for trial %d, which worker %s says it runs.", trial.number, worker)

    def _wait_for_storage(self, error: BaseException, away_since: float | None) -> float:
        """Wait for a database that does not answer; return the time of the first failure."""
        now = time.monotonic()
        if not self._shared:
            raise error
        if away_since is None:
            logger.warning("The storage does not answer (%s); waiting for it.", storage_reason(error))
            away_since = now
        elif now - away_since > MAX_STORAGE_WAIT_SECONDS:
            raise ConnectionError(
                f"`storage` must answer within {MAX_STORAGE_WAIT_SECONDS:.0f} s but did not; start the database, then "
                "run this again."
            ) from error
        self._interrupts.after_trial.wait(WAIT_SECONDS)
        return away_since


def _note_interrupted(trial: Trial) -> None:
    """Note that a trial ends for no fault of its parameters, which another trial tries again."""
    trial.set_user_attr(REASON, INTERRUPTED)
    trial.set_user_attr(REQUEUED, True)
    retry_on_fail(trial)


def _is_taken_over(error: BaseException) -> bool:
    """Return whether an error means that another process has ended the trial."""
    return isinstance(error, UpdateFinishedTrialError) or str(error).startswith("Cannot tell a ")


# -- interruptions ------------------------------------------------------------------------------------------------


class _Interrupts:
    """Signal handlers that set two flags: stop after the running trials, and stop at the next training step."""

    def __init__(self) -> None:
        self.after_trial, self.at_once = threading.Event(), threading.Event()

    def installed(self) -> AbstractContextManager[None]:
        """Handle SIGINT and SIGTERM inside the block; does nothing in threads other than the main thread."""
        return handled({signal.SIGINT: self._on_interrupt, signal.SIGTERM: self._on_terminate})

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.after_trial.is_set():
            self.at_once.set()
            if current_ranks().size == 1:
                raise KeyboardInterrupt
            return  # all ranks end at the next training step, since a rank in the middle of a step waits for others
        self.after_trial.set()
        logger.warning("Interrupted: ending after the running trial. Press Ctrl-C again to end at once.")

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        self.after_trial.set()
        self.at_once.set()
        logger.warning("Terminated: ending at the next training step, with a checkpoint.")


# -- pictures, files ----------------------------------------------------------------------------------------------


class _Pictures:
    """Drawings of running trials' architectures, made in a thread and attached to the trials as Optuna artifacts."""

    def __init__(self, space: Space, folder: Path) -> None:
        self._space, self._folder = space, folder
        self._thread = ThreadPoolExecutor(1, "optuna_nas-pictures")
        self._drawn: dict[int, Future[None]] = {}

    def draw(self, trial: Trial) -> None:
        """Start to draw the architecture of a trial, if it has all parameters of the space."""
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
        except Exception:  # a failed drawing must not fail the trial
            logger.debug("The picture of trial %d could not be attached.", trial.number, exc_info=True)

    def wait(self, number: int) -> None:
        """Wait for the drawing of a trial, since no artifact can be attached to a finished trial."""
        if (drawn := self._drawn.pop(number, None)) is not None:
            with suppress(TimeoutError):
                drawn.result(MAX_PICTURE_WAIT_SECONDS)

    def close(self) -> None:
        """End the thread; drawings that are not started yet are cancelled."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _remove_networks(study: Study, space: Space, folder: Path, keep: int) -> None:
    """Remove the network files of finished trials that are not among the best."""
    files = list((folder / "networks").glob("trial-*.safetensors"))
    if len(files) <= keep:
        return
    best = [*ranking(study)[:keep], *(study.best_trials if len(study.directions) > 1 else ())]
    kept = {trained_by(study, trial, space).number for trial in best}
    finished = {trial.number for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()}
    for file in files:
        number = int(file.stem.removeprefix("trial-"))
        if number in finished - kept:
            file.unlink(missing_ok=True)


def _remove_shared(study: Study, space: Space, trial: FrozenTrial, store: ArtifactStore, keep: int) -> None:
    """Remove from the artifact store the network of a trial, or of the trial that it has displaced from the best."""
    if len(study.directions) > 1:
        return  # the networks of a Pareto front are all kept
    ranked = ranking(study)
    kept = {trained_by(study, best, space).number for best in ranked[:keep]}
    for other in (trial, *ranked[keep : keep + 1]):
        reference = attribute(other.user_attrs, SHARED_NETWORK)
        if reference is not None and other.number not in kept:
            remove_file(study, store, reference)

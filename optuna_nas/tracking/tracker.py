"""The queue between a search and MLflow, and its thread; knows nothing of MLflow.

Optuna's storage is the truth. What MLflow misses while its server is away is written later from the study, by `finish`
or by the next `start`; nothing here ever raises into a search that has begun, or makes a trial wait.

    tracker = MLflowTracker()
    tracker.start(study, space=space)
    study.optimize(objective, callbacks=[tracker.trial_finished])    # the objective calls trial_started and epoch
    tracker.finish(study)
    print(tracker.command)
"""

from __future__ import annotations

import logging
import os
import shlex
import threading
import time
from collections import deque
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from optuna.trial import TrialState

from optuna_nas.storage.database import one_line
from optuna_nas.tracking.records import (
    SQLITE,
    THREAD_NAME,
    Epoch,
    StartedTrial,
    finished_trials,
    is_server,
    milliseconds,
    milliseconds_now,
    unreachable,
)
from optuna_nas.tracking.view import LOCAL_SERVER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import optuna
    from optuna.trial import FrozenTrial

    from optuna_nas.space import Space
    from optuna_nas.tracking.mirror import Mirror
    from optuna_nas.tracking.records import DatasetInfo

_logger = logging.getLogger("optuna_nas.tracking")

MAX_RECORDS = 10_000  # waiting for MLflow; about 10 MB
FLUSH_SECONDS = 0.5  # how long records are gathered, so that many epochs become one request
RETRY_PAUSES = (0.5, 1.0, 2.0)  # seconds between attempts, before a record is given up
DOWN_SECONDS = 5.0  # how long a server that was given up is left alone
START_SECONDS = 120.0  # the tables of a new database take their time
STALL_SECONDS = 30.0  # `finish` gives up after so long without progress
RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
_EMPTY: Mapping[str, Any] = MappingProxyType({})


class MLflowTracker:
    """Keeps MLflow a mirror of a study, from a thread of its own; safe to call from many threads.

    A call takes far less than a millisecond: it puts a record into a queue of bounded length. A server that goes away
    costs one warning; what it missed is written from the study by `finish` or by the next `start`. Before `start` has
    succeeded and after `finish`, calls do nothing. A pickled tracker has not started.

    MLflow tries to reach a lost server for four minutes. So `MLFLOW_HTTP_REQUEST_MAX_RETRIES`, which is all that MLflow
    listens to, is 1 in the whole process while the tracker of a server runs, unless you have set it.

    Args:
        tracking_uri: `http(s)://...` of an MLflow server, or a database such as `sqlite:///mlflow.db`. By default
            `MLFLOW_TRACKING_URI` of the environment, or else `sqlite:///mlflow.db` in the working folder.
        experiment: Name of the MLflow experiment; `optuna_nas` by default.
        metric: Name of the first value; `epoch` metrics of that name are its learning curve. By default the name that
            the search gives to `start`: that of the task's metric.
        tags: Of all runs that it makes.
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        experiment: str | None = None,
        metric: str | None = None,
        tags: Mapping[str, str] = _EMPTY,
    ) -> None:
        self.tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
        self.experiment = experiment or "optuna_nas"
        self.metric = metric
        self.tags = dict(tags)
        self.store_uri = self.tracking_uri  # with a database where it is now, whoever changes the folder later
        if self.tracking_uri.startswith(SQLITE):
            self.store_uri = SQLITE + str(Path(self.tracking_uri.removeprefix(SQLITE)).absolute())
        self._reset(None)

    def _reset(self, mirror: Mirror | None) -> None:
        self._mirror = mirror
        self._thread: threading.Thread | None = None
        self._condition = threading.Condition()
        self._records: deque[Epoch | _Task] = deque()
        self._awaited = False  # somebody waits for the last record
        self._limited = False  # MLflow's attempts, by us
        self._warned = False
        self._down_until = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("tracking_uri", "store_uri", "experiment", "metric", "tags")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset(None)

    # -- what a search calls --------------------------------------------------------------------------------------

    def start(
        self,
        study: optuna.Study,
        *,
        space: Space | None = None,
        metric: str | None = None,
        description: str = "",
        dataset: DatasetInfo | None = None,
        params: Mapping[str, object] = _EMPTY,
        tags: Mapping[str, str] = _EMPTY,
        replay: bool = True,
    ) -> None:
        """Connect, and find or make the run of this study; what MLflow missed of it is then written in passing.

        Args:
            study: Gets the user attribute `optuna_nas:study_uid`, by which its run is found again. Of several
                objectives the first decides which trial is the best; the others are shown as metrics.
            space: Decodes the trials' parameters to the architectures to draw.
            metric: Name of the first value where the tracker has none of its own; `value` by default.
            description: Markdown, shown on the study's run.
            dataset: Shown on the study's run.
            params: Of the search, shown on the study's run. One that changed since the study began becomes a tag.
            tags: Of the study's run and of the trials that it runs from now on, such as `mlflow.source.git.commit`.
            replay: Write what MLflow missed so far; False for one of many workers.

        Raises:
            ConnectionError: MLflow can't be used at the address; one that does not answer is found out within 10
                seconds.
        """
        from optuna_nas.tracking.mirror import Mirror  # MLflow takes more than a second to load

        self._stop()
        mirror = Mirror(self.store_uri, self.experiment, self._name(metric), space)
        self._reset(mirror)
        if self.served and RETRIES not in os.environ:
            os.environ[RETRIES], self._limited = "1", True
        self._thread = threading.Thread(target=self._live, args=(mirror,), name=THREAD_NAME, daemon=True)
        self._thread.start()
        missed = finished_trials(study) if replay else []  # what finishes from now on comes by `trial_finished`
        opened = self._put_awaited(
            partial(mirror.open, study, description, dataset, params, {**tags, **self.tags}), pauses=()
        )
        try:
            opened.result(START_SECONDS)
        except Exception as error:
            self._stop(STALL_SECONDS if opened.done() else 0.0)
            self._mirror = None
            if isinstance(error, ConnectionError):
                raise
            raise unreachable(self.tracking_uri, one_line(error)) from error
        if replay:
            self._put(_Task(partial(mirror.replay, study, missed)))

    def trial_started(self, trial: optuna.Trial | FrozenTrial, metrics: Mapping[str, float] = _EMPTY) -> None:
        """Open the run of a trial, with the parameters that it has by now.

        Args:
            trial: A running trial.
            metrics: What is known before training: costs, a predicted score.
        """
        if (mirror := self._mirror) is None or self._thread is None:
            return
        started = StartedTrial(trial.number, dict(trial.params), milliseconds(trial.datetime_start))
        mirror.local.running[trial.number] = started
        first = Epoch(trial.number, 0, dict(metrics), milliseconds_now())
        self._put(_Task(partial(mirror.trial_started, started, first)))

    def epoch(self, trial_number: int, step: int, metrics: Mapping[str, float]) -> None:
        """Add a point to the learning curves of a trial; `step` is the epoch, as reported to Optuna."""
        self._put(Epoch(trial_number, step, dict(metrics), milliseconds_now()))

    def trial_finished(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Close the run of a trial that Optuna has finished: value, attributes, architecture, status, end.

        An Optuna callback. Numbers among the user attributes become metrics, the others tags.
        """
        if (mirror := self._mirror) is None or self._thread is None:
            return
        mirror.local.finished.add(trial.number)
        mirror.local.running.pop(trial.number, None)
        self._put(_Task(partial(mirror.trial_finished, study, trial)))

    def finish(self, study: optuna.Study, status: str | None = "FINISHED") -> None:
        """Write what MLflow missed and the leaderboard, close the study's run and stop the thread.

        Returns early, with a warning, where MLflow makes no progress for 30 seconds.

        Args:
            study: The study of `start`.
            status: `FINISHED`, or `KILLED` for a search that was interrupted; None for one of many workers, which only
                writes what it has run.
        """
        if (mirror := self._mirror) is None or self._thread is None:
            return
        close = partial(mirror.close_worker, study) if status is None else partial(mirror.close, study, status)
        closed = self._put_awaited(close, pauses=RETRY_PAUSES)
        n_written = -1
        while not closed.done() and n_written != mirror.client.n_written:
            n_written = mirror.client.n_written
            wait([closed], STALL_SECONDS)
        self._stop(STALL_SECONDS if closed.done() else 0.0)
        stalled = TimeoutError(f"no progress for {STALL_SECONDS:.0f} seconds")
        if (error := closed.exception() if closed.done() else stalled) is not None:
            _logger.warning("MLflow lacks part of the study (%s); the next start writes it.", one_line(error))

    def rebuild(
        self,
        study: optuna.Study,
        *,
        space: Space | None = None,
        metric: str | None = None,
        description: str = "",
        dataset: DatasetInfo | None = None,
        params: Mapping[str, object] = _EMPTY,
        tags: Mapping[str, str] = _EMPTY,
        on_progress: Callable[[int], None] | None = None,
    ) -> str:
        """Write all that MLflow misses of a study, any of Optuna's, wait for it, and return the view's address.

        Written twice, it makes no second run. The study needs no space and no parameters of this package.

        Args:
            study: Perhaps run elsewhere, or by other means.
            space: As `start`.
            metric: As `start`.
            description: As `start`.
            dataset: As `start`.
            params: As `start`.
            tags: As `start`; of the study's run only.
            on_progress: Called with the number of finished trials that are in MLflow, in another thread.

        Raises:
            ConnectionError: MLflow can't be used at the address.
        """
        from optuna_nas.tracking.mirror import Mirror

        mirror = Mirror(self.store_uri, self.experiment, self._name(metric), space)
        finished = finished_trials(study)
        running = any(trial.state == TrialState.RUNNING for trial in study.get_trials(deepcopy=False))
        done: Future[None] = Future()

        def write() -> None:
            try:
                with mirror.client.connections:
                    mirror.client.check()
                    mirror.open(study, description, dataset, params, tags)
                    mirror.replay(study, finished, on_progress or (lambda n_done: None))
                    mirror.close(study, "RUNNING" if running else "FINISHED")
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        threading.Thread(target=write, name=THREAD_NAME, daemon=True).start()
        done.result()
        return mirror.view_url

    @property
    def n_waiting(self) -> int:
        """Number of records that wait for MLflow."""
        return len(self._records)

    @property
    def served(self) -> bool:
        """Whether the address is a server's; a database needs one of its own to be looked at."""
        return is_server(self.tracking_uri)

    @property
    def view_url(self) -> str:
        """Address of the comparison view of the started study; of a database, once `command` runs."""
        if self._mirror is None:
            raise RuntimeError("`view_url` is known once the tracker has started; call `start(study)` first.")
        return self._mirror.view_url

    @property
    def command(self) -> str:
        """What to type to see the comparison view: a server's address, or what serves a database and the address."""
        if self.served:
            return self.view_url
        return f"mlflow ui --backend-store-uri {shlex.quote(self.tracking_uri)}\n{self.view_url}"

    def find_view(self, study: optuna.Study, local_server: str = LOCAL_SERVER, metric: str | None = None) -> str:
        """Return the address of the comparison view of a study that was tracked before, without starting.

        Args:
            study: Of `start`, perhaps long ago.
            local_server: Where a database is or will be served.
            metric: As `start`.

        Raises:
            ConnectionError: MLflow can't be used at the address.
            ValueError: MLflow does not know the study.
        """
        from optuna_nas.tracking.mirror import Mirror

        return Mirror(self.store_uri, self.experiment, self._name(metric), None).find_view(study, local_server)

    def _name(self, metric: str | None) -> str:
        """Return the name of the first value."""
        return self.metric or metric or "value"

    # -- the queue and its thread ---------------------------------------------------------------------------------

    def _put(self, record: Epoch | _Task) -> None:
        with self._condition:
            if self._thread is None:
                return
            awaited = isinstance(record, _Task) and record.done is not None
            if awaited or len(self._records) < MAX_RECORDS:
                self._records.append(record)
                self._awaited |= awaited
                self._condition.notify()
            else:
                self._warn(MemoryError(f"{MAX_RECORDS} records wait"))

    def _put_awaited(self, action: Callable[[], None], pauses: Sequence[float]) -> Future[None]:
        done: Future[None] = Future()
        self._put(_Task(action, done, pauses))
        return done

    def _stop(self, seconds: float = 0.0) -> None:
        """Tell the thread to end, and wait so long until it has closed its connections."""
        with self._condition:
            thread, self._thread = self._thread, None
            self._condition.notify()
        if thread is not None:
            thread.join(seconds)
        if self._limited:
            os.environ.pop(RETRIES, None)
            self._limited = False

    def _live(self, mirror: Mirror) -> None:
        """Be the thread; at its end, also of one that was stopped while MLflow stalled, connections are closed."""
        with mirror.client.connections:
            self._work(mirror)

    def _work(self, mirror: Mirror) -> None:
        """Hand the records to the mirror in their order; epochs that follow each other go together."""
        me = threading.current_thread()
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._records or self._thread is not me)
                self._condition.wait_for(lambda: self._awaited or self._thread is not me, FLUSH_SECONDS)
                if self._thread is not me:
                    return
                records, self._awaited = list(self._records), False
                self._records.clear()
            for task in _merged(records, mirror):
                self._deliver(mirror, task)

    def _deliver(self, mirror: Mirror, task: _Task) -> None:
        """Do a task; after some attempts give it up, the study still knows."""
        if task.done is None and time.monotonic() < self._down_until:
            return
        for pause in (*task.pauses, None):
            try:
                mirror.client.check()
                task.action()
            except Exception as error:  # a mirror must not break what it shows
                mirror.forget()
                if pause is not None:
                    time.sleep(pause)
                    continue
                if isinstance(error, ConnectionError):
                    self._down_until = time.monotonic() + DOWN_SECONDS
                if task.done is not None:
                    task.done.set_exception(error)
                else:
                    self._warn(error)
            else:
                if task.done is not None:
                    task.done.set_result(None)
                return

    def _warn(self, error: BaseException) -> None:
        """Warn once: later failures are of the same kind."""
        level = logging.DEBUG if self._warned else logging.WARNING
        self._warned = True
        message = "MLflow misses part of the study (%s); the search goes on, and its end writes what is missing."
        _logger.log(level, message, one_line(error))


class _Task(NamedTuple):
    """Something to do for the mirror; `done` where somebody waits for it."""

    action: Callable[[], None]
    done: Future[None] | None = None
    pauses: Sequence[float] = RETRY_PAUSES


def _merged(records: Sequence[Epoch | _Task], mirror: Mirror) -> Iterator[_Task]:
    """Go over the tasks; epochs that follow each other become one."""
    epochs: list[Epoch] = []
    for record in records:
        if isinstance(record, Epoch):
            epochs.append(record)
            continue
        if epochs:
            yield _Task(partial(mirror.epochs, epochs))
            epochs = []
        yield record
    if epochs:
        yield _Task(partial(mirror.epochs, epochs))

"""Tracker of studies in MLflow: a queue between search and mirror, and its thread; imports MLflow only in use.

Optuna's storage is the source of truth. Whatever MLflow lacks after its server was unreachable is written from the
study by `finish` or the next `start`. After `start`, no method raises errors into the search or blocks a trial.
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
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from optuna.trial import TrialState
from sqlalchemy.engine import make_url

from optuna_nas.storage.attributes import MLFLOW, attribute, user_attributes
from optuna_nas.storage.database import one_line, sqlite_file
from optuna_nas.storage.home import have_home
from optuna_nas.storage.secrets import holds_secret, with_stars
from optuna_nas.tracking.keys import text_of
from optuna_nas.tracking.parent import parent_of_searches
from optuna_nas.tracking.records import (
    CORRECT,
    THREAD_NAME,
    Epoch,
    StartedTrial,
    finished_trials,
    is_server,
    milliseconds,
    milliseconds_now,
    unusable,
)
from optuna_nas.tracking.view import LOCAL_SERVER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import optuna
    from optuna.trial import FrozenTrial

    from optuna_nas.space import Space
    from optuna_nas.tracking.mirror import Mirror
    from optuna_nas.tracking.records import DatasetInfo

_logger = logging.getLogger("optuna_nas.tracking")

MAX_RECORDS = 10_000
"""Largest number of records in the queue; about 10 MB."""
FLUSH_SECONDS = 0.5
"""Seconds for which records are collected, so that many epochs become one request."""
RETRY_PAUSES = (0.5, 1.0, 2.0)
"""Seconds between attempts at writing a record."""
DOWN_SECONDS = 5.0
"""Seconds without attempts after a server did not answer."""
START_SECONDS = 120.0
"""Timeout of `start` in seconds; a new database takes long to create its tables."""
STALL_SECONDS = 30.0
"""Seconds without progress after which `finish` gives up."""
SLOW_SECONDS, TELL_SECONDS = 10.0, 60.0
"""Seconds of `finish` after which it says that it goes on and how long it may take, and until it says so again."""
RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
_EMPTY: Mapping[str, Any] = MappingProxyType({})


class MLflowTracker:
    """Tracker that mirrors a study in MLflow from a background thread; thread-safe.

    Calls put a record into a bounded queue and take far less than a millisecond. If the server becomes unreachable, one
    warning is logged, and `finish` or the next `start` writes the rest from the study. Calls before `start` and after
    `finish` have no effect. A tracker is pickled in the state before `start`.

    In `with mlflow.start_run():`, and where `MLFLOW_RUN_ID` is set, as by `mlflow run`, the study's run is a child of
    that run, if it is a run at the same tracking URI.

    MLflow tries to reach a lost server for four minutes. While the tracker of a server runs, the environment variable
    `MLFLOW_HTTP_REQUEST_MAX_RETRIES` is therefore 1 in the whole process, unless it is set already.

    Args:
        tracking_uri: `http(s)://...` of an MLflow server, or URL of a database. By default the environment variable
            `MLFLOW_TRACKING_URI`, or else `sqlite:///mlflow.db` in the working folder.
        experiment: Name of the MLflow experiment; by default that of the run around the search, or else `optuna_nas`.
        metric: Name of the first value; `epoch` metrics of that name are its learning curve. By default the name that
            the search passes to `start`: that of the task's metric.
        tags: Tags of all runs; values that are no text are written as text.

    Example:
        >>> from optuna_nas import MLflowTracker
        >>> tracker = MLflowTracker("sqlite:///mlflow.db", tags={"team": "vision"})
        >>> tracker.start(study)  # doctest: +SKIP
        >>> study.optimize(objective, callbacks=[tracker.trial_finished])  # doctest: +SKIP
        >>> tracker.finish(study)  # doctest: +SKIP
        >>> tracker.served
        False
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        experiment: str | None = None,
        metric: str | None = None,
        tags: Mapping[str, object] = _EMPTY,
    ) -> None:
        self.tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
        self.experiment = experiment
        self.metric = metric
        self.tags = {str(name): text_of(value) for name, value in tags.items()}
        self.store_uri = self.tracking_uri  # with the absolute path of a database file, if the working folder changes
        if (file := sqlite_file(self.tracking_uri)) is not None:
            database = make_url(self.tracking_uri).set(database=str(file.absolute()))
            self.store_uri = database.render_as_string(hide_password=False)
        self._reset(None)

    def at(self, tracking_uri: str) -> MLflowTracker:
        """Return a tracker of the same experiment, metric and tags at another tracking URI."""
        return MLflowTracker(tracking_uri, self.experiment, self.metric, self.tags)

    def _reset(self, mirror: Mirror | None) -> None:
        self._mirror = mirror
        self._thread: threading.Thread | None = None
        self._condition = threading.Condition()
        self._records: deque[Epoch | _Task] = deque()
        self._awaited = False  # whether a caller waits for the last record
        self._limited = False  # whether this tracker has set `RETRIES`
        self._warned = False
        self._down_until = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("tracking_uri", "store_uri", "experiment", "metric", "tags")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset(None)

    # -- called by a search ---------------------------------------------------------------------------------------

    def start(
        self,
        study: optuna.Study,
        *,
        space: Space | None = None,
        metric: str | None = None,
        judged: str | None = None,
        description: str = "",
        dataset: DatasetInfo | None = None,
        params: Mapping[str, object] = _EMPTY,
        tags: Mapping[str, str] = _EMPTY,
        replay: bool = True,
    ) -> None:
        """Connect to MLflow, and find or create the run of the study; trials that MLflow lacks are written later.

        Args:
            study: Study; gets the user attributes `optuna_nas:study_uid`, which identifies its run, and
                `optuna_nas:mlflow`, the tracking URI unless that holds a password. With several objectives the first
                one determines the best trial; the others are metrics.
            space: Search space that decodes parameters to architectures, for pictures.
            metric: Name of the first value if the tracker has none of its own; `value` by default.
            judged: Name of the task's metric, where the first value is the loss; `metric` by default.
            description: Markdown text of the study's run.
            dataset: Data set of the study's run.
            params: Params of the study's run; one that changed since the study began becomes a tag.
            tags: Tags of the study's run and of the trials that this process runs, such as `mlflow.source.git.commit`.
            replay: Whether to write the trials that MLflow lacks; False for one of several workers.

        Raises:
            ConnectionError: MLflow cannot be used at the tracking URI; raised within 10 seconds if it does not answer.
        """
        have_home()
        from optuna_nas.tracking.mirror import Mirror  # importing MLflow was measured to take more than a second

        self._stop()
        mirror = Mirror(self.store_uri, self.experiment, self._name(metric), space, judged)
        self._reset(mirror)
        if self.served and RETRIES not in os.environ:
            os.environ[RETRIES], self._limited = "1", True
        self._thread = threading.Thread(target=self._live, args=(mirror,), name=THREAD_NAME, daemon=True)
        self._thread.start()
        missed = finished_trials(study) if replay else []  # trials that finish later arrive by `trial_finished`
        opened = self._put_awaited(
            partial(mirror.open, study, description, dataset, params, {**tags, **self.tags}, parent_of_searches()),
            pauses=(),
        )
        try:
            opened.result(START_SECONDS)
        except Exception as error:
            self._stop(STALL_SECONDS if opened.done() else 0.0)
            self._mirror = None
            if isinstance(error, ConnectionError):
                raise
            raise unusable(self.tracking_uri, error, CORRECT) from error
        self._note_address(study)
        if replay:
            self._put(_Task(partial(mirror.replay, study, missed)))

    def trial_started(self, trial: optuna.Trial | FrozenTrial, metrics: Mapping[str, float] = _EMPTY) -> None:
        """Create the run of a trial, with the parameters suggested so far.

        Args:
            trial: Running trial.
            metrics: Metrics before training, such as costs and a predicted score.
        """
        if (mirror := self._mirror) is None or self._thread is None:
            return
        started = StartedTrial(trial.number, dict(trial.params), milliseconds(trial.datetime_start))
        mirror.local.running[trial.number] = started
        first = Epoch(trial.number, 0, dict(metrics), milliseconds_now())
        self._put(_Task(partial(mirror.trial_started, started, first)))

    def run_id(self, trial: optuna.Trial | FrozenTrial) -> str:
        """Return the id of the run of a running trial, for loggers such as Lightning's `MLFlowLogger(run_id=...)`.

        The run is created if it does not exist, with the parameters suggested so far. This is the one call of a trial
        that waits for MLflow.

        Args:
            trial: Running trial.

        Raises:
            RuntimeError: The tracker is not started.
            ConnectionError: MLflow does not answer.
        """
        if (mirror := self._mirror) is None or self._thread is None:
            raise RuntimeError("`run_id` needs a started tracker; call `start(study)` first.")
        self.trial_started(trial)
        found: list[str] = []
        asked = self._put_awaited(lambda: found.append(mirror.run_id(trial.number)), RETRY_PAUSES)
        try:
            asked.result(START_SECONDS)
        except Exception as error:
            raise unusable(self.tracking_uri, error) from error
        return found[0]

    def epoch(self, trial_number: int, step: int, metrics: Mapping[str, float]) -> None:
        """Add a point to the learning curves of a trial, at the step reported to Optuna, the epoch."""
        self._put(Epoch(trial_number, step, dict(metrics), milliseconds_now()))

    def trial_finished(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Complete and end the run of a finished trial; usable as a callback of Optuna.

        Numeric user attributes become metrics, all others tags.
        """
        if (mirror := self._mirror) is None or self._thread is None:
            return
        mirror.local.finished.add(trial.number)
        mirror.local.running.pop(trial.number, None)
        self._put(_Task(partial(mirror.trial_finished, study, trial)))

    def finish(self, study: optuna.Study, status: str | None = "FINISHED", network: str | Path | None = None) -> None:
        """Write everything that MLflow lacks and the leaderboard, end the study's run, and stop the thread.

        Returns early, with a warning, if MLflow makes no progress for 30 seconds, or at Ctrl-C. If it takes longer than
        a few seconds, it says how long it may take.

        Args:
            study: Study that was passed to `start`.
            status: `FINISHED`, or `KILLED` for an interrupted search; None for one of several workers, which writes
                only its own trials.
            network: File of the best trial's network, which is shown as a model; None if there is none.
        """
        if (mirror := self._mirror) is None or self._thread is None:
            return
        if status is None:
            close = partial(mirror.close_worker, study)
        else:
            close = partial(mirror.close, study, status, None if network is None else str(network))
        closed = self._put_awaited(close, pauses=RETRY_PAUSES)
        try:
            error = self._closing_error(mirror, closed)
        except KeyboardInterrupt:
            error = InterruptedError("interrupted")
        self._stop(STALL_SECONDS if closed.done() else 0.0)
        if error is not None:
            _logger.warning("MLflow lacks part of the study (%s); the next start writes it.", one_line(error))

    def _closing_error(self, mirror: Mirror, closed: Future[None]) -> BaseException | None:
        """Wait until the mirror is closed, as long as it gets on; return its error."""
        begin = progressed = time.monotonic()
        told, n_written = begin + SLOW_SECONDS, -1
        while not closed.done():
            now = time.monotonic()
            if n_written != mirror.client.n_written:
                n_written, progressed = mirror.client.n_written, now
            elif now - progressed > STALL_SECONDS:
                return TimeoutError(f"no progress for {STALL_SECONDS:.0f} seconds")
            if now > told:
                told = now + TELL_SECONDS
                _logger.warning("%s", mirror.remaining(now - begin))
            wait([closed], min(1.0, STALL_SECONDS))
        return closed.exception()

    def rebuild(
        self,
        study: optuna.Study,
        *,
        space: Space | None = None,
        metric: str | None = None,
        judged: str | None = None,
        description: str = "",
        dataset: DatasetInfo | None = None,
        params: Mapping[str, object] = _EMPTY,
        tags: Mapping[str, str] = _EMPTY,
        network: str | Path | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> str:
        """Write everything that MLflow lacks of any study of Optuna, wait for it, and return the URL of the view.

        Repeated calls update the same runs. The study may have been run without this package.

        Args:
            study: Study; all other arguments are those of `start`.
            space: Search space that decodes parameters to architectures, for pictures.
            metric: Name of the first value if the tracker has none of its own; `value` by default.
            judged: Name of the task's metric, where the first value is the loss; `metric` by default.
            description: Markdown text of the study's run.
            dataset: Data set of the study's run.
            params: Params of the study's run.
            tags: Tags of the study's run only.
            network: File of the best trial's network, as for `finish`.
            on_progress: Callback with the number of finished trials in MLflow, called in another thread.

        Raises:
            ConnectionError: MLflow cannot be used at the tracking URI.
        """
        have_home()
        from optuna_nas.tracking.mirror import Mirror

        mirror = Mirror(self.store_uri, self.experiment, self._name(metric), space, judged)
        open_runs = partial(mirror.open, study, description, dataset, params, tags, parent_of_searches())
        file = None if network is None else str(network)
        _write_all(mirror, study, open_runs, file, on_progress or (lambda n_done: None))
        self._note_address(study)
        return mirror.view_url

    @property
    def n_waiting(self) -> int:
        """Number of records in the queue."""
        return len(self._records)

    @property
    def served(self) -> bool:
        """Whether the tracking URI is that of a server; a database is shown by a server of its own."""
        return is_server(self.tracking_uri)

    @property
    def view_url(self) -> str:
        """URL of the comparison view of the started study; for a database, while `command` runs."""
        if self._mirror is None:
            raise RuntimeError("`view_url` needs a started tracker; call `start(study)` first.")
        return self._mirror.view_url

    @property
    def command(self) -> str:
        """Shell command that serves a database, and the URL of the comparison view; for a server, the URL alone.

        A password in the URL of a database, also one in its query, is shown as `***`.
        """
        if self.served:
            return self.view_url
        return f"mlflow ui --backend-store-uri {shlex.quote(with_stars(self.tracking_uri))}\n{self.view_url}"

    def find_view(self, study: optuna.Study, local_server: str = LOCAL_SERVER, metric: str | None = None) -> str:
        """Return the URL of the comparison view of a study that was tracked before, without `start`.

        Args:
            study: Study that was tracked.
            local_server: URL of the server of a database.
            metric: Name of the first value if the tracker has none of its own; `value` by default.

        Raises:
            ConnectionError: MLflow cannot be used at the tracking URI.
            ValueError: MLflow has no run of the study.
        """
        have_home()
        from optuna_nas.tracking.mirror import Mirror

        return Mirror(self.store_uri, self.experiment, self._name(metric), None).find_view(study, local_server)

    def _note_address(self, study: optuna.Study) -> None:
        """Note in a study where MLflow shows it, for commands that are not told; see `noted_mlflow`."""
        if not holds_secret(self.tracking_uri) and attribute(user_attributes(study), MLFLOW) != self.tracking_uri:
            study.set_user_attr(MLFLOW, self.tracking_uri)

    def _name(self, metric: str | None) -> str:
        """Return the name of the first value."""
        return self.metric or metric or "value"

    # -- queue and thread -----------------------------------------------------------------------------------------

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
        """Stop the thread, and wait up to `seconds` until it has closed its connections."""
        with self._condition:
            thread, self._thread = self._thread, None
            self._condition.notify()
        if thread is not None:
            thread.join(seconds)
        if self._limited:
            os.environ.pop(RETRIES, None)
            self._limited = False

    def _live(self, mirror: Mirror) -> None:
        """Run the thread; at its end, connections are closed, even if the thread was stopped while MLflow stalled."""
        with mirror.client.connections:
            self._work(mirror)

    def _work(self, mirror: Mirror) -> None:
        """Pass the records to the mirror in their order, consecutive epochs together."""
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
        """Run a task, with retries; tasks that fail are dropped, since the study has all their data."""
        if task.done is None and time.monotonic() < self._down_until:
            return
        error = task.attempt(mirror)
        if isinstance(error, ConnectionError):
            self._down_until = time.monotonic() + DOWN_SECONDS
        if task.done is None:
            if error is not None:
                self._warn(error)
        elif error is not None:
            task.done.set_exception(error)
        else:
            task.done.set_result(None)

    def _warn(self, error: BaseException) -> None:
        """Log the first failure as a warning, further ones for debugging."""
        level = logging.DEBUG if self._warned else logging.WARNING
        self._warned = True
        message = "MLflow lacks part of the study (%s); the search continues, and its end writes what is missing."
        _logger.log(level, message, one_line(error))


class _Task(NamedTuple):
    """Task of the mirror.

    Args:
        action: Function to call.
        done: Result for a caller that waits; None if no one does.
        pauses: Seconds between attempts.
    """

    action: Callable[[], None]
    done: Future[None] | None = None
    pauses: Sequence[float] = RETRY_PAUSES

    def attempt(self, mirror: Mirror) -> Exception | None:
        """Call the action, again after each pause while it fails; return the last error, None for success."""
        for pause in (*self.pauses, None):
            try:
                mirror.client.check()
                self.action()
                break
            except Exception as error:  # tracking must not break the search
                mirror.forget()
                if pause is None:
                    return error
                time.sleep(pause)
        return None


def _write_all(
    mirror: Mirror,
    study: optuna.Study,
    open_runs: Callable[[], None],
    network: str | None,
    on_progress: Callable[[int], None],
) -> None:
    """Write a whole study in a thread of the tracker's name, in which MLflow's messages are hidden; wait for it."""
    finished = finished_trials(study)
    running = any(trial.state == TrialState.RUNNING for trial in study.get_trials(deepcopy=False))
    done: Future[None] = Future()

    def write() -> None:
        try:
            with mirror.client.connections:
                mirror.client.check()
                open_runs()
                mirror.replay(study, finished, on_progress)
                mirror.close(study, "RUNNING" if running else "FINISHED", network)
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=write, name=THREAD_NAME, daemon=True).start()
    done.result()


def _merged(records: Sequence[Epoch | _Task], mirror: Mirror) -> Iterator[_Task]:
    """Iterate over tasks; consecutive epochs become one task."""
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

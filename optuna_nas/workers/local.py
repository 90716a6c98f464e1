"""Worker processes on this machine: started, assigned to GPUs, supervised and restarted."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import optuna

from optuna_nas.search.runner import ObjectiveFailed
from optuna_nas.search.signals import handled
from optuna_nas.search.streams import keep_streams
from optuna_nas.storage.database import closing
from optuna_nas.storage.optuna_rdb import StorageError
from optuna_nas.storage.retries import reap_dead_trials
from optuna_nas.workers.shared import SharedStudy
from optuna_nas.workers.worker import VISIBLE, GPUs, Job, divided_threads, run_job, visible_gpus

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from multiprocessing.connection import Connection
    from types import FrameType

    from optuna_nas.search.config import SearchListener
    from optuna_nas.search.results import SearchResult

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.3
"""Seconds between two checks of workers and study."""
MAX_CRASHES, MAX_KILLS = 5, 50
"""Crashes of a worker in a row, and kills by others, after which the search fails if no trial succeeds in between."""
MAX_PAUSE = 30.0
"""Longest pause in seconds before a worker that crashed repeatedly is restarted."""
KILLED_AFTER = 60.0
"""Seconds after SIGTERM until workers are killed."""
WRONG_INPUT, AWAY = 2, 3
"""Exit codes of a worker with invalid input, which is not restarted, and of one whose database does not answer."""
MAX_AWAY_SECONDS = 3600.0
"""Seconds for which workers are restarted while the database does not answer."""
PRELOADED = [
    "optuna_nas.workers.worker",
    "optuna_nas.tracking.mirror",
    "optuna_nas.plots.cells",
    "torch._dynamo",  # imported by PyTorch's optimizers; measured to take each worker 1.5 seconds
]


class WorkersFailed(RuntimeError):
    """Raised if a worker crashes repeatedly, or can't be started."""


@dataclass
class _Worker:
    """Slot of a worker, and the process in it."""

    index: int
    process: Any = None
    errors: Connection | None = None  # receives error messages of the process
    crashes: int = 0
    kills: int = 0
    away_since: float | None = None
    n_succeeded: int = 0  # successful trials of the study at the last crash
    next_start: float = 0.0
    done: bool = False
    error: str = ""
    ended: str | None = None


def run_workers(
    job: Job, workers: int, gpus_per_trial: float | None = None, listener: SearchListener | None = None
) -> SearchResult:
    """Run a study to its total number of trials in several processes on this machine.

    Without a storage, the study is kept in a PostgreSQL server of its own in `runs/NAME/postgresql`; a study in an
    sqlite file is copied there. Workers that die are restarted, and their trials are retried by any worker.

    The first Ctrl-C (SIGINT) ends the search after the running trials, the second one at the next training step.
    SIGTERM ends it at the next training step. Interrupted trainings resume from checkpoints.

    Args:
        job: Study and settings of the workers.
        workers: Number of processes, at least 1.
        gpus_per_trial: GPUs per worker: a fraction in (0, 1], a whole number, or 0 for none; by default GPUs are shared
            evenly.
        listener: Listener to all trials, which this process reads from the study.

    Returns:
        Result of the search; `interrupted` if trials are missing.

    Raises:
        UsageError, ValueError, ConnectionError: As `Job.search`, `GPUs.divide` and `open_study`.
        WorkersFailed: A worker crashes repeatedly, or can't be started.

    Example:
        >>> from optuna_nas.workers import Job, run_workers
        >>> result = run_workers(Job("study.py", trials=100), workers=4)  # doctest: +SKIP
        >>> result.best.number  # doctest: +SKIP
        57
    """
    if workers < 1:
        raise ValueError(f"`workers` must be at least 1 but got {workers}.")
    gpus = GPUs.divide(workers, gpus_per_trial, visible_gpus())
    shared = SharedStudy(replace(job, cpu_threads=divided_threads(workers)), listener)
    with closing(shared.study):
        supervisor = _Supervisor(shared, gpus)
        interrupted = supervisor.run()
        return shared.conclude(interrupted, supervisor.ended)


class _Supervisor:
    """Supervisor that starts, restarts and ends the workers of a study."""

    def __init__(self, shared: SharedStudy, gpus: GPUs) -> None:
        self._shared, self._gpus = shared, gpus
        self._workers = [_Worker(index) for index in range(len(gpus.names))]
        self._signals: list[int] = []  # received signals
        self.ended: str | None = None
        """Reason why a worker has ended the search before its total number of trials."""
        # A fork server with all packages loaded starts workers at once, and has not initialised a GPU.
        self._context: Any = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
        if hasattr(os, "fork"):
            self._context.set_forkserver_preload(PRELOADED)

    def run(self) -> bool:
        """Supervise the workers until the total is reached; return whether a signal interrupted them."""
        with self._forwarded_signals():
            try:
                while not all(worker.done for worker in self._workers):
                    for worker in self._workers:
                        self._look_at(worker)
                    self._shared.look()
                    time.sleep(LOOK_SECONDS)
                self._shared.look()
            finally:
                self._end_all()
                with suppress(*StorageError):
                    reap_dead_trials(self._shared.study)  # of workers that were killed last
        return bool(self._signals)

    # -- workers --------------------------------------------------------------------------------------------------

    def _look_at(self, worker: _Worker) -> None:
        if worker.done:
            return
        if worker.process is None:
            if self._signals or self.ended is not None or not self._shared.missing():
                worker.done = True
            elif time.monotonic() >= worker.next_start:
                self._start(worker)
            return
        if worker.errors is not None and worker.errors.poll():
            with suppress(EOFError):
                worker.ended, worker.error = worker.errors.recv()
        code = worker.process.exitcode
        if code is None:
            return
        worker.process.join()
        worker.process = None
        if code == 0 or self._signals:
            worker.done = True
            if worker.ended is not None and self.ended is None:
                self.ended = worker.ended
                for other in self._workers:  # one search: all end after their running trials
                    if other.process is not None and other.process.is_alive():
                        os.kill(other.process.pid, signal.SIGINT)
        elif code == WRONG_INPUT:
            raise ValueError(worker.error)
        else:
            self._crashed(worker, code)

    def _crashed(self, worker: _Worker, code: int) -> None:
        """Schedule the restart of a worker that has ended, with growing pauses while no trial succeeds.

        Its own crashes come to an end soon; kills, by a person or for want of memory, are no fault of its code, and a
        database that is away comes back.
        """
        now = time.monotonic()
        if self._shared.n_succeeded > worker.n_succeeded:
            worker.crashes, worker.kills, worker.away_since = 0, 0, None
        worker.n_succeeded = self._shared.n_succeeded
        reason = worker.error or _how_it_ended(code)
        if code == AWAY:
            worker.away_since = now if worker.away_since is None else worker.away_since
            if now - worker.away_since > MAX_AWAY_SECONDS:
                raise ConnectionError(reason)
        elif code in (-signal.SIGKILL, -signal.SIGTERM):
            worker.kills += 1
        else:
            worker.crashes += 1
        for number, most, how in ((worker.crashes, MAX_CRASHES, "crashed"), (worker.kills, MAX_KILLS, "was killed")):
            if number >= most:
                raise WorkersFailed(f"worker {worker.index} {how} {number} times in a row: {reason}")
        ends = worker.crashes + worker.kills + (worker.away_since is not None)
        worker.next_start = now + (min(MAX_PAUSE, 0.25 * 4 ** (min(ends, MAX_CRASHES) - 1)) if ends > 1 else 0.0)
        logger.warning("Worker %d ended (%s); it is restarted.", worker.index, reason)

    def _start(self, worker: _Worker) -> None:
        worker.error, worker.ended = "", None
        worker.errors, sender = self._context.Pipe(duplex=False)
        arguments = (self._shared.job, self._gpus.names[worker.index], self._gpus.share, sender)
        name = f"optuna_nas worker {worker.index}"
        process = self._context.Process(target=_be_worker, args=arguments, name=name)
        try:
            process.start()
        except OSError as error:
            hint = "; give TMPDIR a shorter path" if "too long" in str(error) else ""
            raise WorkersFailed(f"worker {worker.index} can't be started: {error}{hint}") from error
        worker.process = process
        sender.close()

    def _end_all(self) -> None:
        """End the running workers, after an error of this process."""
        running = [worker.process for worker in self._workers if worker.process is not None]
        for process in running:
            process.terminate()
        end = time.monotonic() + KILLED_AFTER
        for process in running:
            process.join(max(0.0, end - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()

    def _forwarded_signals(self) -> AbstractContextManager[None]:
        """Forward signals to the workers: the first SIGINT as it is, the second as SIGTERM."""

        def handle(number: int, frame: FrameType | None) -> None:
            self._signals.append(number)
            at_once = number == signal.SIGTERM or len(self._signals) > 1
            text = "at the next training step" if at_once else "after the running trials; Ctrl-C again ends at once"
            logger.warning("Interrupted: ending %s.", text)
            for worker in self._workers:
                if worker.process is not None and worker.process.is_alive():
                    os.kill(worker.process.pid, signal.SIGTERM if at_once else signal.SIGINT)

        return handled({signal.SIGINT: handle, signal.SIGTERM: handle})


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"{name}, perhaps out of memory" if name == "SIGKILL" else name


def _be_worker(job: Job, gpu: str | None, share: float, errors: Connection) -> None:
    """Run a worker in this process; send errors, each one sentence, through the connection."""
    if gpu is not None:
        os.environ[VISIBLE] = gpu
    with suppress(OSError):
        os.setsid()  # Ctrl-C in the terminal reaches only the supervisor, which forwards it
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    keep_streams()  # what an objective prints is no reason to fail
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    code = 1
    try:
        run_job(job, share, on_ended=lambda reason: errors.send((reason, "")))
        code = 0
    except (ValueError, ConnectionError, ObjectiveFailed) as error:
        errors.send((None, str(error)))
        kinds = {ValueError: WRONG_INPUT, ConnectionError: AWAY, ObjectiveFailed: 1}
        code = next(code for kind, code in kinds.items() if isinstance(error, kind))
    except KeyboardInterrupt:
        code = 0
    except Exception as error:  # an objective may raise any error
        logger.debug("A worker fails.", exc_info=True)
        errors.send((None, f"{type(error).__name__}: {error}"))
    errors.close()
    raise SystemExit(code)


def _end_with(parent: Any) -> None:
    """Wait for the end of the supervisor's process, then end this process at its next training step."""
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)

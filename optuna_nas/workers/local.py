"""Workers on this machine: started, pinned to GPUs, watched, started again, and shown together."""

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

from optuna_nas.search.signals import handled
from optuna_nas.storage.database import closing
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
"""Between two looks at workers and study."""
MAX_CRASHES = 5
"""Of a worker in a row, no trial succeeding meanwhile, before all is given up."""
MAX_PAUSE = 30.0
"""Seconds before a worker is started again that crashed repeatedly."""
KILLED_AFTER = 60.0
"""Seconds that workers have to end once they are told to end at once."""
WRONG_INPUT = 2
PRELOADED = [
    "optuna_nas.workers.worker",
    "optuna_nas.tracking.mirror",
    "optuna_nas.plots.cells",
    "torch._dynamo",  # PyTorch's optimizers import it; 1.5 seconds that each worker would spend
]


class WorkersFailed(RuntimeError):
    """Workers crash again and again."""


@dataclass
class _Worker:
    """A place for a worker, and the process that has it."""

    index: int
    process: Any = None
    said: Connection | None = None
    crashes: int = 0
    n_succeeded: int = 0  # trials of the study, when it crashed last
    next_start: float = 0.0
    done: bool = False
    last_words: str = ""


def run_workers(
    job: Job, workers: int, gpus_per_trial: float | None = None, listener: SearchListener | None = None
) -> SearchResult:
    """Run a study to its total of trials on several processes of this machine, and sum it up.

    Without an address of a storage, the study lives in a PostgreSQL of its own in `runs/NAME/postgresql`; one that
    began in an sqlite file is copied there. A worker that dies is started again; its trial goes on elsewhere.

    Ctrl-C (SIGINT) once ends after the running trials, twice at once; SIGTERM at once, with checkpoints.

    Args:
        job: What to work on.
        workers: How many processes.
        gpus_per_trial: GPUs of each, see `GPUs.divide`.
        listener: Hears of all trials, by looking at the study.

    Raises:
        UsageError, ValueError, ConnectionError: As `Job.search`, `GPUs.divide` and `open_study`.
        WorkersFailed: Workers crash again and again, with the reason.
    """
    if workers < 1:
        raise ValueError(f"`workers` must be at least 1 but got {workers}.")
    gpus = GPUs.divide(workers, gpus_per_trial, visible_gpus())
    shared = SharedStudy(replace(job, cpu_threads=divided_threads(workers)), listener)
    with closing(shared.study):
        interrupted = _Supervisor(shared, gpus).run()
        return shared.conclude(interrupted)


class _Supervisor:
    """Starts the workers of a study, starts them again, and tells what they do."""

    def __init__(self, shared: SharedStudy, gpus: GPUs) -> None:
        self._shared, self._gpus = shared, gpus
        self._workers = [_Worker(index) for index in range(len(gpus.names))]
        self._asked: list[int] = []  # signals that came
        # A server that has loaded all packages and does nothing else forks workers in no time; none has used a GPU.
        self._context: Any = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
        if hasattr(os, "fork"):
            self._context.set_forkserver_preload(PRELOADED)

    def run(self) -> bool:
        """Keep the workers going until the total is reached; return whether a signal ended it."""
        with self._signals():
            try:
                while not all(worker.done for worker in self._workers):
                    for worker in self._workers:
                        self._look_at(worker)
                    self._shared.look()
                    time.sleep(LOOK_SECONDS)
                self._shared.look()
            finally:
                self._end_all()
        return bool(self._asked)

    # -- workers --------------------------------------------------------------------------------------------------

    def _look_at(self, worker: _Worker) -> None:
        if worker.done:
            return
        if worker.process is None:
            if self._asked or not self._shared.missing():
                worker.done = True
            elif time.monotonic() >= worker.next_start:
                self._start(worker)
            return
        if worker.said is not None and worker.said.poll():
            with suppress(EOFError):
                worker.last_words = worker.said.recv()
        code = worker.process.exitcode
        if code is None:
            return
        worker.process.join()
        worker.process = None
        if code == 0 or self._asked:
            worker.done = True
        elif code == WRONG_INPUT:
            raise ValueError(worker.last_words)
        else:
            self._crashed(worker, code)

    def _crashed(self, worker: _Worker, code: int) -> None:
        """Plan when to start a crashed worker again: at once, later and later while no trial succeeds."""
        worker.crashes = 1 if self._shared.n_succeeded > worker.n_succeeded else worker.crashes + 1
        worker.n_succeeded = self._shared.n_succeeded
        reason = worker.last_words or _how_it_ended(code)
        if worker.crashes >= MAX_CRASHES:
            raise WorkersFailed(f"worker {worker.index} crashed {worker.crashes} times in a row: {reason}")
        pause = min(MAX_PAUSE, 0.25 * 4 ** (worker.crashes - 1)) if worker.crashes > 1 else 0.0
        worker.next_start = time.monotonic() + pause
        logger.warning("Worker %d ended (%s); it is started again.", worker.index, reason)

    def _start(self, worker: _Worker) -> None:
        worker.last_words = ""
        worker.said, says = self._context.Pipe(duplex=False)
        arguments = (self._shared.job, self._gpus.names[worker.index], self._gpus.share, says)
        name = f"optuna_nas worker {worker.index}"
        worker.process = self._context.Process(target=_be_worker, args=arguments, name=name)
        worker.process.start()
        says.close()

    def _end_all(self) -> None:
        """End what still runs, after an error of this process."""
        running = [worker.process for worker in self._workers if worker.process is not None]
        for process in running:
            process.terminate()
        end = time.monotonic() + KILLED_AFTER
        for process in running:
            process.join(max(0.0, end - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()

    def _signals(self) -> AbstractContextManager[None]:
        """Pass signals on: the first SIGINT as it is, the second as SIGTERM."""

        def handle(number: int, frame: FrameType | None) -> None:
            self._asked.append(number)
            at_once = number == signal.SIGTERM or len(self._asked) > 1
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
    return f"{name}, perhaps for want of memory" if name == "SIGKILL" else name


def _be_worker(job: Job, gpu: str | None, share: float, says: Connection) -> None:
    """Run in a process of its own: work, and say in one sentence what went wrong."""
    if gpu is not None:
        os.environ[VISIBLE] = gpu
    with suppress(OSError):
        os.setsid()  # Ctrl-C in the terminal is for the supervisor, who passes it on
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    code = 1
    try:
        run_job(job, share)
        code = 0
    except (ValueError, ConnectionError) as error:
        says.send(str(error))
        code = WRONG_INPUT if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        code = 0
    except Exception as error:  # whatever an objective raises
        logger.debug("A worker fails.", exc_info=True)
        says.send(f"{type(error).__name__}: {error}")
    says.close()
    raise SystemExit(code)


def _end_with(parent: Any) -> None:
    """End this process at its next training step when the supervisor is gone."""
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)

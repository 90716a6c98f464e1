"""Workers as Ray tasks, on this machine or a cluster. Ray places them, assigns GPUs and restarts them."""

from __future__ import annotations

import logging
import os
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna_nas.storage.database import closing, one_line
from optuna_nas.storage.secrets import quoted, without_secrets
from optuna_nas.workers.shared import SharedStudy
from optuna_nas.workers.worker import Job, divided_threads, run_job, visible_gpus

if TYPE_CHECKING:
    from optuna_nas.search.config import SearchListener
    from optuna_nas.search.results import SearchResult

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""Seconds between two checks of workers and study."""
MAX_DEATHS = 100
"""Largest number of restarts of a worker by Ray."""
LOCAL = "local"


def run_on_ray(
    job: Job,
    workers: int,
    gpus_per_trial: float | None = None,
    address: str = LOCAL,
    listener: SearchListener | None = None,
) -> SearchResult:
    """Run a study to its total number of trials as Ray tasks.

    An existing connection of this process to Ray is used. On a cluster, all nodes must reach the storage and the
    artifact store and need the modules that the study file imports; the file itself is sent to them.

    Args:
        job: Study and settings of the workers.
        workers: Number of tasks, at least 1.
        gpus_per_trial: GPUs per task, a fraction or a whole number; by default 1 if Ray has GPUs, else 0.
        address: Address of a cluster, such as `auto` or `ray://host:10001`; `local` starts Ray on this machine.
        listener: Listener to all trials, which this process reads from the study.

    Returns:
        Result of the search; `interrupted` if trials are missing.

    Raises:
        UsageError, ValueError, ConnectionError: As `run_workers`; also if Ray is not installed, cannot be reached, or
            has fewer GPUs.

    Example:
        >>> from optuna_nas.workers import Job, run_on_ray
        >>> job = Job("study.py", storage="postgresql://host/studies", artifacts="s3://networks")
        >>> result = run_on_ray(job, workers=16, gpus_per_trial=0.5, address="auto")  # doctest: +SKIP
        >>> result.best.number  # doctest: +SKIP
        57
    """
    try:
        import ray
    except ImportError:
        raise ValueError("`--ray` needs Ray, which is not installed; pip install 'optuna_nas[ray]'.") from None
    if workers < 1:
        raise ValueError(f"`workers` must be at least 1 but got {workers}.")
    starts_ray = not ray.is_initialized()
    if starts_ray:
        _connect(ray, address, workers)
    try:
        if address != LOCAL and job.search().storage is None:
            raise ValueError(
                "`storage` must be a database server that all machines of the cluster reach but none is given; "
                "pass --storage postgresql://..."
            )
        total = ray.cluster_resources().get("GPU", 0.0)
        share = (1.0 if total else 0.0) if gpus_per_trial is None else gpus_per_trial
        if share > total:
            raise ValueError(f"`gpus_per_trial` must be at most the {total:g} GPU(s) that Ray has but is {share:g}.")
        shared = SharedStudy(job, listener)
        with closing(shared.study):
            return shared.conclude(_run(ray, shared, workers, share))
    finally:
        if starts_ray:
            ray.shutdown()


def _connect(ray: Any, address: str, workers: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        # Workers may share cores, since Ray would otherwise not start more workers than cores.
        options |= {"include_dashboard": False, "num_cpus": max(workers, os.cpu_count() or 1)}
        options |= {"num_gpus": len(visible_gpus()), "_node_ip_address": "127.0.0.1"}
    else:
        options["address"] = address
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise ConnectionError(
            f"`--ray` must be the address of a cluster that answers but {quoted(address)} is not: "
            f"{without_secrets(one_line(error), address)}; "
            f"start one with `ray start --head`, or use {LOCAL!r}."
        ) from error


def _run(ray: Any, shared: SharedStudy, workers: int, gpus: float) -> bool:
    """Run the tasks to their end; return whether Ctrl-C interrupted them."""
    job = shared.job
    if job.cpu_threads is None:
        job = replace(job, cpu_threads=divided_threads(workers))
    function = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=MAX_DEATHS)(_be_task)
    # Paths are absolute, since tasks have their own working folders; other machines get the text of the file.
    file = Path(job.study).resolve()
    job = replace(job, study=str(file), folder=str(shared.search.resolved_folder().resolve()))
    running = [function.remote(job, file.read_text(), min(1.0, gpus) or 1.0) for _ in range(workers)]
    interrupted = False
    while running:
        try:
            done, running = ray.wait(running, timeout=LOOK_SECONDS)
            for task in done:
                with suppress(ray.exceptions.TaskCancelledError):
                    ray.get(task)
            shared.look()
        except ray.exceptions.RayTaskError as error:
            raise (error.cause or error) from None
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
            logger.warning("Interrupted: running trials go back to the queue. Press Ctrl-C again to leave at once.")
            for task in running:
                ray.cancel(task, recursive=False)
    return interrupted


def _be_task(job: Job, source: str, share: float) -> int:
    """Run a worker as a Ray task."""
    if Path(job.study).exists():
        return run_job(job, share)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / Path(job.study).name
        file.write_text(source)
        return run_job(replace(job, study=str(file)), share)

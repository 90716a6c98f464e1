"""Searches: `optuna-nas run`, `create` and `worker`."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from optuna_nas.cli.application import command
from optuna_nas.cli.json_lines import result_values
from optuna_nas.cli.options import (
    Artifacts,
    AsJSON,
    Debug,
    MLflow,
    Name,
    NoMLflow,
    Quiet,
    Settings,
    Storage,
    Strategy,
    StudyFile,
    renamed,
    same_command,
    to_copy,
)
from optuna_nas.cli.output import Output
from optuna_nas.cli.result import print_result
from optuna_nas.search.streams import said_when_unread
from optuna_nas.search.study_file import UsageError, load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from optuna_nas.search.config import Search, SearchListener
    from optuna_nas.search.results import SearchResult
    from optuna_nas.workers import Job


@command()
def run(
    study: StudyFile,
    trials: Annotated[int | None, typer.Option(help="Total number of trials, instead of the study's.")] = None,
    strategy: Strategy = None,
    seconds: Annotated[
        float | None, typer.Option(help="Seconds of all trials together at which the search ends.")
    ] = None,
    name: Name = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Run nothing, but say how large, how long and how much it will be, and end."),
    ] = False,
    storage: Storage = None,
    mlflow: MLflow = None,
    no_mlflow: NoMLflow = False,
    workers: Annotated[
        int | None, typer.Option(help="Processes on this machine; the study is then kept in its own PostgreSQL server.")
    ] = None,
    gpus_per_trial: Annotated[
        float | None, typer.Option(help="GPUs per worker, such as 0.5; by default all GPUs are shared evenly.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help="Run the workers on Ray: `local`, or the address of a cluster such as `auto`.")
    ] = None,
    artifacts: Artifacts = None,
    settings: Settings = None,
    quiet: Quiet = False,
    as_json: AsJSON = False,
    debug: Debug = False,
) -> None:
    """Run or resume a study until its total number of trials; with --workers, in several processes."""
    settings, output = renamed(settings, name), Output(quiet, as_json)
    with output.doing("Loading PyTorch and the study"):
        job = _job(study, settings, strategy, trials, storage, mlflow, no_mlflow, artifacts)
        job = replace(job, seconds=seconds, command=same_command())
        search = job.search()
    for flag, option in (("gpus-per-trial", gpus_per_trial), ("ray", ray)):
        if option is not None and workers is None:
            raise UsageError(f"`--{flag}` must go with --workers but there is none; add --workers 1 or more.")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UsageError(
            "`torchrun` must start `optuna-nas worker` but started `run`; create the study, then start workers."
        )
    go_on = to_copy("view", study, strategy=strategy, storage=storage, mlflow=mlflow, settings=settings)
    if search.tracking is None:
        go_on = to_copy("report", study, strategy=strategy, storage=storage, settings=settings)
    if dry_run:
        _show_plan(search, workers or 1, output)
        return
    started = time.monotonic()
    if search.made_strategy is not None and not output.silent:
        output.line("Strategy", search.made_strategy.explanation)
    with _listener(search, output) as listener:
        result = _run(search, job, workers, gpus_per_trial, ray, listener)
    seconds_spent = time.monotonic() - started
    from optuna_nas.storage.database import closing

    with closing(result.study):  # which is read again
        found = result_values(search, result)
        if not as_json:
            print_result(search, result)
    if result.ended is not None:
        output.line("Ended", result.ended)
    output.line("Time", f"{seconds_spent:.1f} s")
    if result.interrupted:
        output.line("Interrupted", f"with {result.missing} of {search.total} trials to go.")
        output.end("To resume", same_command(), **found, seconds=seconds_spent)
        raise typer.Exit(130)
    output.end("See it in MLflow" if search.tracking is not None else "See why", go_on, **found, seconds=seconds_spent)


def _run(
    search: Search,
    job: Job,
    workers: int | None,
    gpus_per_trial: float | None,
    ray: str | None,
    listener: SearchListener | None,
) -> SearchResult:
    """Run a search in this process, in several, or on Ray."""
    if workers is None:
        from optuna_nas.search.runner import run as run_search

        return run_search(search, listener)
    if ray is not None:
        from optuna_nas.workers import run_on_ray

        return run_on_ray(job, workers, gpus_per_trial, ray, listener)
    from optuna_nas.workers import run_workers

    return run_workers(job, workers, gpus_per_trial, listener)


@contextmanager
def _listener(search: Search, output: Output) -> Iterator[SearchListener | None]:
    """Yield who shows the progress of a search, which goes on if nobody reads it."""
    with (
        said_when_unread("Nobody reads the output any more; the search goes on without it."),
        output.search_progress(search) as listener,
    ):
        yield listener


def _show_plan(search: Search, workers: int, output: Output) -> None:
    """Show what a search will cost."""
    from optuna_nas.search.dry_run import plan

    with output.doing("Loading PyTorch and a sample of networks"):
        planned = plan(search, workers)
    for name, text in planned.lines():
        output.line(name, text)
    output.end("Run it", search.command.replace(" --dry-run", ""), "plan", **planned.values())


def _job(
    study: Path,
    settings: list[str],
    strategy: str | None,
    trials: int | None,
    storage: str | None,
    mlflow: str | None,
    no_mlflow: bool,
    artifacts: str | None,
) -> Job:
    """Return study and settings of a worker."""
    from optuna_nas.workers import Job

    mirrored = not no_mlflow
    return Job(str(study), tuple(settings), trials, storage, mlflow, mirrored, artifacts=artifacts, strategy=strategy)


@command()
def create(
    study: StudyFile,
    name: Name = None,
    strategy: Strategy = None,
    storage: Storage = None,
    settings: Settings = None,
    debug: Debug = False,
) -> None:
    """Create a study without running it, for workers that start at the same time; no effect if it exists."""
    settings, output = renamed(settings, name), Output()
    with output.doing("Loading PyTorch and the study"):
        from optuna_nas.search.opening import open_study

        search = load(study, settings, storage, strategy=strategy)
        worker_command = to_copy("worker", study, strategy=strategy, storage=storage, settings=settings)
        open_study(replace(search, command=worker_command))
    output.line("Study", f"{search.name} is ready for workers.")
    output.end("Start one", worker_command)


@command()
def worker(
    study: StudyFile,
    name: Name = None,
    strategy: Strategy = None,
    storage: Storage = None,
    trials: Annotated[
        int | None, typer.Option(help="Total number of trials of all workers, instead of the study's.")
    ] = None,
    mlflow: MLflow = None,
    no_mlflow: NoMLflow = False,
    artifacts: Artifacts = None,
    gpu_share: Annotated[float, typer.Option(help="Fraction of the GPU memory that this worker may use.")] = 1.0,
    settings: Settings = None,
    quiet: Quiet = False,
    as_json: AsJSON = False,
    debug: Debug = False,
) -> None:
    """Run one more worker of an existing study until its total number of trials: a Slurm task, a pod, a terminal."""
    # Set before loading: the first process of a container ignores signals without a handler.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(130))
    leads = os.environ.get("RANK", "0") == "0"  # rank 0 of `torchrun` speaks for all ranks
    settings, output = renamed(settings, name), Output(quiet or not leads, as_json)
    with output.doing("Loading PyTorch and the study"):
        from optuna_nas.workers import be_worker

        search = _job(study, settings, strategy, trials, storage, mlflow, no_mlflow, artifacts).search()
    with _listener(search, output) as listener:
        missing = be_worker(search, gpu_share, listener)
    if not leads:
        raise typer.Exit(130 if missing else 0)
    found = {"study": search.name, "trials": search.total - missing, "missing": missing, "interrupted": missing > 0}
    if missing:
        output.line("Interrupted", f"with {missing} of {search.total} trials to go; other workers continue.")
        output.end("To resume", same_command(), **found)
        raise typer.Exit(130)
    output.line("Total reached", f"{search.total} trials")
    see_them = to_copy("report", study, strategy=strategy, storage=storage, settings=settings)
    output.end("To see them", see_them, **found)

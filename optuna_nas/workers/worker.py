"""Worker: a process that runs trials of an existing study on its GPU."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from optuna_nas.search.runner import work
from optuna_nas.search.study_file import load
from optuna_nas.training.device import GPU_SHARE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from optuna_nas.search.config import Search, SearchListener

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Job:
    """Study file and settings of a worker, as plain values that can be sent to other processes and machines.

    Args:
        study: Path of the study's file, Python or YAML.
        settings: `NAME=VALUE` arguments of its function `search`, or values in place of those of a YAML file.
        trials: Total number of trials; None for that of the file.
        storage: URL of the storage; None for that of the file.
        mlflow: Tracking URI of MLflow; None for that of the file.
        mirrored: Whether trials are shown in MLflow.
        closes: Whether the worker that reaches the total completes the mirror in MLflow; False if another process does.
        artifacts: Artifact store of checkpoints and trained models; None for that of the file.
        cpu_threads: Number of PyTorch's threads if the file gives none.
        folder: Folder of the study's files; None for that of the file.
        strategy: Strategy by name, instead of sampler and pruner; None for those of the file.
        seconds: Seconds of all trials; None for those of the file.
        command: Shell command that runs the study, for `optuna-nas list`.

    Example:
        >>> from pathlib import Path
        >>> from optuna_nas.workers import Job
        >>> text = '''
        ... from optuna_nas import Search, darts_space
        ...
        ... def search(trials: int = 10):
        ...     return Search("tiny", darts_space(), objective=lambda trial: 0.0, trials=trials)
        ... '''
        >>> _ = Path("study.py").write_text(text)
        >>> Job("study.py", trials=3, mirrored=False).search().trials
        3
    """

    study: str
    settings: tuple[str, ...] = ()
    trials: int | None = None
    storage: str | None = None
    mlflow: str | None = None
    mirrored: bool = True
    closes: bool = True
    artifacts: str | None = None
    cpu_threads: int | None = None
    folder: str | None = None
    strategy: str | None = None
    seconds: float | None = None
    command: str = ""

    def search(self) -> Search:
        """Return the search of the study file with these settings.

        Raises:
            UsageError: The file is not a study file.
        """
        search = load(
            Path(self.study),
            list(self.settings),
            self.storage,
            self.mlflow,
            self.trials,
            artifacts=self.artifacts,
            strategy=self.strategy,
            seconds=self.seconds,
        )
        search = replace(search, cpu_threads=search.cpu_threads or self.cpu_threads)
        if self.folder is not None:
            search = replace(search, folder=Path(self.folder))
        if self.command:
            search = replace(search, command=self.command)
        return search if self.mirrored else replace(search, tracking=None)


def run_job(
    job: Job,
    share: float = 1.0,
    listener: SearchListener | None = None,
    on_ended: Callable[[str], None] | None = None,
) -> int:
    """Run trials of an existing study in this process until its total is reached or a signal arrives.

    Args:
        job: Study and settings.
        share: Fraction of each visible GPU that this process may use, in (0, 1]; limits its GPU memory.
        listener: Listener to the trials of this worker.
        on_ended: Callback with the reason why the search has ended before its total number of trials.

    Returns:
        Number of missing trials.

    Raises:
        UsageError, ValueError, ConnectionError: As `Job.search` and `be_worker`.

    Example:
        >>> from pathlib import Path
        >>> from optuna_nas.search.opening import open_study
        >>> from optuna_nas.workers import Job, run_job
        >>> text = '''
        ... from optuna_nas import Search, darts_space
        ...
        ... def search():
        ...     return Search("tiny", darts_space(), objective=lambda trial: 0.0)
        ... '''
        >>> _ = Path("study.py").write_text(text)
        >>> job = Job("study.py", trials=1, mirrored=False)
        >>> study = open_study(job.search())
        >>> run_job(job)
        0
    """
    return be_worker(job.search(), share, listener, job.closes, on_ended)


def be_worker(
    search: Search,
    share: float = 1.0,
    listener: SearchListener | None = None,
    closes: bool = True,
    on_ended: Callable[[str], None] | None = None,
) -> int:
    """Run trials of a search in this process, one at a time; as `run_job`, for a search that is already loaded.

    Args:
        search: Configuration with which the study was created.
        share: Fraction of each visible GPU that this process may use, in (0, 1]; limits its GPU memory.
        listener: Listener to the trials of this worker.
        closes: Whether the worker that reaches the total completes the mirror in MLflow; False if another process does.
        on_ended: Callback with the reason why the search has ended before its total number of trials.

    Returns:
        Number of missing trials.

    Raises:
        ValueError, ConnectionError: As `work`; also if `share` is out of range.

    Example:
        >>> from optuna_nas import Search, darts_space
        >>> from optuna_nas.search.opening import open_study
        >>> from optuna_nas.workers import be_worker
        >>> search = Search("zeros", darts_space(), objective=lambda trial: 0.0, trials=2, tracking=None)
        >>> study = open_study(search)
        >>> be_worker(search)
        0
    """
    limit_gpu(share)
    return work(replace(search, n_jobs=1), listener, closes=closes, on_ended=on_ended)


def limit_gpu(share: float) -> None:
    """Limit this process to a fraction of the memory of its visible GPUs, and set `OPTUNA_NAS_GPU_SHARE`."""
    if not 0 < share <= 1:
        raise ValueError(f"`share` must be in (0, 1] but got {share}; use more GPUs for more than one.")
    os.environ[GPU_SHARE] = str(share)
    if share < 1:
        import torch

        for index in range(torch.cuda.device_count()):
            torch.cuda.set_per_process_memory_fraction(share, index)


def visible_gpus() -> list[str]:
    """Return the names of the GPUs of this machine that `CUDA_VISIBLE_DEVICES` allows."""
    import torch

    count = torch.cuda.device_count()
    names = [name for name in os.environ.get(VISIBLE, "").split(",") if name]
    return names[:count] if names else [str(index) for index in range(count)]


@dataclass(frozen=True)
class GPUs:
    """Assignment of GPUs to workers.

    Args:
        names: `CUDA_VISIBLE_DEVICES` of each worker; None leaves it unchanged, on machines without a GPU.
        share: Fraction of its GPUs that each worker may use, in (0, 1].

    Example:
        >>> from optuna_nas.workers import GPUs
        >>> GPUs.divide(workers=4, per_trial=0.5, here=["0", "1"])
        GPUs(names=('0', '1', '0', '1'), share=0.5)
    """

    names: tuple[str | None, ...]
    share: float = 1.0

    @staticmethod
    def divide(workers: int, per_trial: float | None, here: Sequence[str]) -> GPUs:
        """Divide GPUs among workers.

        Args:
            workers: Number of workers.
            per_trial: GPUs per worker: a fraction in (0, 1], a whole number, or 0 for none. None shares all GPUs
                evenly.
            here: Names of the GPUs of this machine.

        Raises:
            ValueError: `per_trial` is out of range, or there are too few GPUs.
        """
        if per_trial is not None and not (per_trial == 0 or 0 < per_trial <= 1 or per_trial == int(per_trial) > 1):
            raise ValueError(f"`gpus_per_trial` must be a share up to 1 or a whole number but got {per_trial}.")
        if per_trial == 0 or (per_trial is None and not here):
            return GPUs((None,) * workers if not here else ("",) * workers)
        if per_trial is None:
            per_trial = 1 / -(-workers // len(here))
        if per_trial > 1:
            whole = int(per_trial)
            groups = [",".join(here[start : start + whole]) for start in range(0, len(here) - whole + 1, whole)]
        else:
            groups = list(here) * int(1 / per_trial + 1e-9)  # neighbours on different GPUs
        if len(groups) < workers:
            raise ValueError(
                f"`gpus_per_trial` {per_trial:g} must leave room for {workers} workers but the {len(here)} GPU(s) here "
                f"are enough for {len(groups)}; use fewer workers or a smaller share, or 0 for none."
            )
        return GPUs(tuple(groups[:workers]), min(1.0, per_trial))


def divided_threads(workers: int) -> int:
    """Return the number of CPU threads of each of several workers, at least 1."""
    with suppress(AttributeError):  # macOS has no sched_getaffinity
        return max(1, len(os.sched_getaffinity(0)) // workers)
    return max(1, (os.cpu_count() or 1) // workers)

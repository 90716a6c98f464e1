"""One worker: a process that runs trials of a study which exists, on the GPU that it was given."""

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
    from collections.abc import Sequence

    from optuna_nas.search.config import Search, SearchListener

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Job:
    """What every worker of a study is told, as plain values that travel to other processes and machines.

    Args:
        study: The study's Python file.
        settings: `NAME=VALUE` arguments of its `search` function.
        trials: Total of trials instead of the file's.
        storage: Address of the storage; None for the file's.
        mlflow: Address of MLflow instead of the file's.
        mirrored: Whether trials are shown in MLflow.
        closes: Whether the last worker writes to MLflow what others have missed; False where somebody else does.
        artifacts: Where checkpoints and trained models are shared, instead of the file's.
        cpu_threads: Threads of torch, where the file does not say.
        folder: Where the study's files go, instead of the file's.
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

    def search(self) -> Search:
        """Return the search of the file, with all that is told here.

        Raises:
            UsageError: The file is not one of a study.
        """
        search = load(
            Path(self.study), list(self.settings), self.storage, self.mlflow, self.trials, artifacts=self.artifacts
        )
        search = replace(search, cpu_threads=search.cpu_threads or self.cpu_threads)
        if self.folder is not None:
            search = replace(search, folder=Path(self.folder))
        return search if self.mirrored else replace(search, tracking=None)


def run_job(job: Job, share: float = 1.0, listener: SearchListener | None = None) -> int:
    """Be a worker until the total is reached or a signal comes; return how many trials are missing.

    Args:
        job: What to work on.
        share: Of each GPU that this process sees, in (0, 1]; its memory is limited to that.
        listener: Hears of this worker's trials.

    Raises:
        UsageError, ValueError, ConnectionError: As `Job.search` and `be_worker`.
    """
    return be_worker(job.search(), share, listener, job.closes)


def be_worker(search: Search, share: float = 1.0, listener: SearchListener | None = None, closes: bool = True) -> int:
    """Do as `run_job`, of a search that is loaded already; one trial at a time.

    Raises:
        ValueError, ConnectionError: As `work`; also where `share` is out of range.
    """
    limit_gpu(share)
    return work(replace(search, n_jobs=1), listener, closes=closes)


def limit_gpu(share: float) -> None:
    """Keep this process to a share of the memory of the GPUs that it sees, and let its trials know."""
    if not 0 < share <= 1:
        raise ValueError(f"`share` must be in (0, 1] but got {share}; use more GPUs for more than one.")
    os.environ[GPU_SHARE] = str(share)
    if share < 1:
        import torch

        for index in range(torch.cuda.device_count()):
            torch.cuda.set_per_process_memory_fraction(share, index)


def visible_gpus() -> list[str]:
    """Return the names of the GPUs that workers may be given: what `CUDA_VISIBLE_DEVICES` allows of those here."""
    import torch

    count = torch.cuda.device_count()
    names = [name for name in os.environ.get(VISIBLE, "").split(",") if name]
    return names[:count] if names else [str(index) for index in range(count)]


@dataclass(frozen=True)
class GPUs:
    """Which GPUs each of several workers gets.

    Args:
        names: For each worker, what its `CUDA_VISIBLE_DEVICES` is; None leaves all as it is (no GPU).
        share: Of each of them.
    """

    names: tuple[str | None, ...]
    share: float = 1.0

    @staticmethod
    def divide(workers: int, per_trial: float | None, here: Sequence[str]) -> GPUs:
        """Divide GPUs among workers.

        Args:
            workers: How many.
            per_trial: GPUs of each: a part of one, or whole ones. None shares all evenly, and is no GPU where none is.
            here: Names of the GPUs.

        Raises:
            ValueError: There are not so many.
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
    """Return how many CPU threads each of several workers should use."""
    with suppress(AttributeError):  # not on macOS
        return max(1, len(os.sched_getaffinity(0)) // workers)
    return max(1, (os.cpu_count() or 1) // workers)

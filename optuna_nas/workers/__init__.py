"""Parallel search: the worker process, and starting workers on this machine or with Ray."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna_nas.workers.local import run_workers
    from optuna_nas.workers.on_ray import run_on_ray
    from optuna_nas.workers.worker import GPUs, Job, be_worker, run_job
else:
    from optuna_nas.lazy import lazy_names

    __getattr__ = lazy_names(
        __name__,
        {
            "local": "run_workers",
            "on_ray": "run_on_ray",
            "worker": "GPUs Job be_worker run_job",
        },
    )

__all__ = ["GPUs", "Job", "be_worker", "run_job", "run_on_ray", "run_workers"]

"""Several processes that `torchrun` started, as one worker: rank 0 asks for trials, the others train along."""

from __future__ import annotations

import logging
import signal
import warnings
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from optuna import Trial, TrialPruned
from optuna.exceptions import ExperimentalWarning

from optuna_nas.objective.protocol import Binds, Follows, TrialRun
from optuna_nas.objective.trial_training import OutOfMemory
from optuna_nas.search.signals import handled
from optuna_nas.training.loop import TrainingDiverged, TrainingStopped
from optuna_nas.training.process_group import RankFailed, RankLost, Ranks, is_agreed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from optuna_nas.objective.protocol import Objective
    from optuna_nas.search.config import Search

logger = logging.getLogger(__name__)


class _Shared(Follows, Protocol):
    """An objective that rank 0 calls and the others follow."""

    def __call__(self, trial: Trial) -> float | Sequence[float]: ...


def lead(search: Search, ranks: Ranks, work: Callable[[Search], int]) -> int:
    """Be the rank that asks for trials, as `work` does, and tell the others what to do."""
    objective = _shared_objective(search, ranks)
    missing = search.trials
    try:
        missing = work(replace(search, objective=objective))
    finally:
        # Ranks that an objective of one's own has left in different places understand nothing any more; they end when
        # this process does.
        if not isinstance(objective, _OnAllRanks) or not objective.left:
            with suppress(RuntimeError):  # a rank is gone already; what is found stays found
                ranks.broadcast({"end": missing})
                ranks.vote()  # nobody closes a connection from which another still reads
    return missing


def follow(search: Search, ranks: Ranks) -> int:
    """Do as rank 0 says until it ends; return what it returns. Signals go to all ranks, and it answers them."""
    objective = _shared_objective(search, ranks)
    if search.cpu_threads is not None:
        torch.set_num_threads(search.cpu_threads)
    with handled({signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_IGN}):
        while True:
            plan = ranks.broadcast()
            if "end" in plan:
                with suppress(RankLost):
                    ranks.vote()
                return int(plan["end"])
            try:
                objective.follow(plan)
            except Exception as error:
                if not is_agreed(error) and not isinstance(error, _ENDINGS):
                    raise
                if not isinstance(error, (*_ENDINGS, RankFailed)):  # rank 0 knows that something failed, not what
                    logger.warning("Rank %d failed: %s: %s", ranks.rank, type(error).__name__, error)


def _shared_objective(search: Search, ranks: Ranks) -> _Shared | _OnAllRanks:
    """Return the objective as several ranks call it.

    Raises:
        ValueError: They can't.
    """
    if search.n_jobs > 1:
        raise ValueError(
            f"`n_jobs` must be 1 for a worker of several ranks but is {search.n_jobs}; start more workers."
        )
    objective = search.resolved_objective
    if isinstance(objective, Follows) and isinstance(objective, Binds):
        return cast("_Shared", objective.bind(TrialRun(lead=ranks.broadcast)))
    return _OnAllRanks(objective, ranks)


_ENDINGS = (TrialPruned, TrainingStopped, TrainingDiverged, OutOfMemory)
"""How an objective may end on all ranks alike, after which the worker goes on."""


class _OnAllRanks:
    """An objective of one's own that all ranks call at a time, each with a trial that tells it what rank 0 is told."""

    def __init__(self, objective: Objective, ranks: Ranks) -> None:
        self._objective, self._ranks = objective, ranks
        self.left = False
        """Whether it was left by an error, which other ranks may know nothing of."""
        try:
            self._trial = import_module("optuna_integration.pytorch_distributed").TorchDistributedTrial
        except ImportError as error:
            raise ValueError(
                "`objective` of one's own must have the package `optuna-integration` for a worker of several ranks but "
                f"it is not there ({error}); install it."
            ) from None

    def __call__(self, trial: Trial) -> float | Sequence[float]:
        self._ranks.broadcast({})
        try:
            return self._objective(self._distributed(trial))
        except Exception as error:
            self.left = not is_agreed(error) and not isinstance(error, _ENDINGS)
            raise

    def follow(self, plan: Mapping[str, Any]) -> None:
        """Do what rank 0 does."""
        self._objective(self._distributed(None))

    def _distributed(self, trial: Trial | None) -> Trial:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            # Without a group it would keep one for itself to the end of the process, which then may abort.
            return self._trial(trial, torch.distributed.group.WORLD)  # type: ignore[no-any-return]  # as a trial

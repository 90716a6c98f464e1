"""Workers of several ranks, started by `torchrun`: rank 0 asks for trials, and all ranks train them together."""

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
    """Protocol of objectives that rank 0 calls and the other ranks follow."""

    def __call__(self, trial: Trial) -> float | Sequence[float]: ...


def lead(search: Search, ranks: Ranks, work: Callable[[Search], int]) -> int:
    """Run `work` on rank 0 with an objective that all ranks train together; return its number of missing trials."""
    objective = _shared_objective(search, ranks)
    missing = search.total
    try:
        missing = work(replace(search, objective=objective))
    finally:
        # After an error in the user's objective, ranks may be in different places and can't exchange messages; the
        # other ranks end with this process.
        if not isinstance(objective, _OnAllRanks) or not objective.out_of_step:
            with suppress(RuntimeError):  # a rank has ended already; finished trials are stored anyway
                ranks.broadcast({"end": missing})
                ranks.vote()  # so that no rank closes a connection from which another still reads
    return missing


def follow(search: Search, ranks: Ranks) -> int:
    """Follow rank 0 until it ends; return its number of missing trials.

    Signals are sent to all ranks, but only rank 0 handles them.
    """
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
                if not isinstance(error, (*_ENDINGS, RankFailed)):  # rank 0 does not know the reason
                    logger.warning("Rank %d failed: %s: %s", ranks.rank, type(error).__name__, error)


def _shared_objective(search: Search, ranks: Ranks) -> _Shared | _OnAllRanks:
    """Return an objective that several ranks can train together.

    Raises:
        ValueError: `n_jobs` is not 1, or a package is missing.
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
"""Exceptions that end a trial on all ranks, after which the worker continues."""


class _OnAllRanks:
    """A user's objective that all ranks call, each with a trial that returns the suggestions of rank 0.

    Args:
        objective: The user's objective.
        ranks: Process group.

    Raises:
        ValueError: The package `optuna-integration` is not installed.
    """

    def __init__(self, objective: Objective, ranks: Ranks) -> None:
        self._objective, self._ranks = objective, ranks
        self.out_of_step = False
        """Whether an error ended the objective on this rank, while other ranks may still run it."""
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
            self.out_of_step = not is_agreed(error) and not isinstance(error, _ENDINGS)
            raise

    def follow(self, plan: Mapping[str, Any]) -> None:
        """Call the objective together with rank 0."""
        self._objective(self._distributed(None))

    def _distributed(self, trial: Trial | None) -> Trial:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            # Without `group` it would create a group that is never destroyed, and the process may abort at its end.
            return self._trial(trial, torch.distributed.group.WORLD)  # type: ignore[no-any-return]  # as a trial

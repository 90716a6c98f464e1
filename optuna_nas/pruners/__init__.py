"""Optuna pruners that judge an architecture before its training."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna_nas.pruners.base import should_prune
    from optuna_nas.pruners.ghn import GHNPruner
    from optuna_nas.pruners.hmnas import HMNASPruner
else:
    from optuna_nas.lazy import lazy_names

    __getattr__ = lazy_names(
        __name__,
        {
            "base": "should_prune",
            "ghn": "GHNPruner",
            "hmnas": "HMNASPruner",
        },
    )

__all__ = ["GHNPruner", "HMNASPruner", "should_prune"]

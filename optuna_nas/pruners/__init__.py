"""Who stops: Optuna pruners that look at an architecture before its first step."""

from optuna_nas.pruners.base import should_prune
from optuna_nas.pruners.ghn import GHNPruner
from optuna_nas.pruners.hmnas import HMNASPruner

__all__ = ["GHNPruner", "HMNASPruner", "should_prune"]

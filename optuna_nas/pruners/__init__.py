"""Who stops: Optuna pruners that look at an architecture before its first step."""

from optuna_nas.pruners.ghn import GHNPruner

__all__ = ["GHNPruner"]

"""Graph hypernetworks: one network that generates the weights of any architecture of a space (Zhang et al. 2019)."""

from optuna_nas.oneshot.ghn.model import GHN, GHNRecipe

__all__ = ["GHN", "GHNRecipe"]

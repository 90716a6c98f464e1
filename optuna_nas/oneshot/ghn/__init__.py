"""Graph hypernetworks: one network that generates the weights of any architecture of a space (Zhang et al. 2019)."""

from optuna_nas.oneshot.ghn.model import GHN
from optuna_nas.oneshot.ghn.recipe import GHNRecipe

__all__ = ["GHN", "GHNRecipe"]

"""Models trained once and asked about many architectures; they have never heard of Optuna."""

from optuna_nas.oneshot.distribution import DistributionRecord
from optuna_nas.oneshot.ghn import GHN, GHNRecipe
from optuna_nas.oneshot.hmnas import HMNAS, HMNASRecipe
from optuna_nas.oneshot.snas import SNAS, SNASRecipe

__all__ = ["GHN", "HMNAS", "SNAS", "DistributionRecord", "GHNRecipe", "HMNASRecipe", "SNASRecipe"]

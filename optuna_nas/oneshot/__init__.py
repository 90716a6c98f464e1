"""Models trained once and asked about many architectures: SNAS, GHN, HM-NAS."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna_nas.oneshot.base import OneShotModel, Score
    from optuna_nas.oneshot.free import FreeScore, RankScore
    from optuna_nas.oneshot.ghn import GHN, GHNRecipe
    from optuna_nas.oneshot.hmnas import HMNAS, HMNASRecipe
    from optuna_nas.oneshot.snas import SNAS, SNASRecipe
    from optuna_nas.oneshot.snas.distribution import DistributionRecord
    from optuna_nas.oneshot.split_score import SplitScore
    from optuna_nas.oneshot.state import FitRecipe, FitRecord
else:
    from optuna_nas.lazy import lazy_names

    __getattr__ = lazy_names(
        __name__,
        {
            "base": "OneShotModel Score",
            "free": "FreeScore RankScore",
            "ghn": "GHN GHNRecipe",
            "hmnas": "HMNAS HMNASRecipe",
            "snas": "SNAS SNASRecipe",
            "snas.distribution": "DistributionRecord",
            "split_score": "SplitScore",
            "state": "FitRecipe FitRecord",
        },
    )

__all__ = [
    "GHN",
    "HMNAS",
    "SNAS",
    "DistributionRecord",
    "FitRecipe",
    "FitRecord",
    "FreeScore",
    "GHNRecipe",
    "HMNASRecipe",
    "OneShotModel",
    "RankScore",
    "SNASRecipe",
    "Score",
    "SplitScore",
]

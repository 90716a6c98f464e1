"""Scores of untrained networks."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna_nas.oneshot.free.score import FreeScore, RankScore
else:
    from optuna_nas.lazy import lazy_names

    __getattr__ = lazy_names(__name__, {"score": "FreeScore RankScore"})

__all__ = ["FreeScore", "RankScore"]

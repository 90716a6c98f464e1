"""SNAS (Xie et al. 2019): a factorised distribution over choices, learned together with a supernet."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna_nas.oneshot.snas.model import SNAS
    from optuna_nas.oneshot.snas.recipe import SNASRecipe
else:
    from optuna_nas.lazy import lazy_names

    __getattr__ = lazy_names(
        __name__,
        {
            "model": "SNAS",
            "recipe": "SNASRecipe",
        },
    )

__all__ = ["SNAS", "SNASRecipe"]

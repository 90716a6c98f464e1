"""Graph hypernetworks: one network that generates the weights of any architecture of a space (Zhang et al. 2019)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna_nas.oneshot.ghn.model import GHN
    from optuna_nas.oneshot.ghn.recipe import GHNRecipe
else:
    from optuna_nas.lazy import lazy_names

    __getattr__ = lazy_names(
        __name__,
        {
            "model": "GHN",
            "recipe": "GHNRecipe",
        },
    )

__all__ = ["GHN", "GHNRecipe"]

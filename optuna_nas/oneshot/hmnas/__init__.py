"""HM-NAS (Yan et al. 2019): a supernet with learned masks on edges, ops and weights."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna_nas.oneshot.hmnas.derived import Derived, Survival
    from optuna_nas.oneshot.hmnas.learning import MaskRecord
    from optuna_nas.oneshot.hmnas.model import HMNAS
    from optuna_nas.oneshot.hmnas.recipe import HMNASRecipe
else:
    from optuna_nas.lazy import lazy_names

    __getattr__ = lazy_names(
        __name__,
        {
            "derived": "Derived Survival",
            "learning": "MaskRecord",
            "model": "HMNAS",
            "recipe": "HMNASRecipe",
        },
    )

__all__ = ["HMNAS", "Derived", "HMNASRecipe", "MaskRecord", "Survival"]

"""HM-NAS (Yan et al. 2019): a supernet with learned masks on edges, ops and weights."""

from optuna_nas.oneshot.hmnas.derived import Derived, Survival
from optuna_nas.oneshot.hmnas.learning import MaskRecord
from optuna_nas.oneshot.hmnas.model import HMNAS
from optuna_nas.oneshot.hmnas.recipe import HMNASRecipe

__all__ = ["HMNAS", "Derived", "HMNASRecipe", "MaskRecord", "Survival"]

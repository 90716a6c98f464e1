"""SNAS (Xie et al. 2019): a factorised distribution over choices, learned together with a supernet."""

from optuna_nas.oneshot.snas.model import SNAS
from optuna_nas.oneshot.snas.recipe import SNASRecipe

__all__ = ["SNAS", "SNASRecipe"]

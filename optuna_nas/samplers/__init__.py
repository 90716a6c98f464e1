"""Who proposes: Optuna samplers that search architectures."""

from optuna_nas.samplers.ghn import GHNSampler
from optuna_nas.samplers.snas import SNASSampler, distribution_records

__all__ = ["GHNSampler", "SNASSampler", "distribution_records"]

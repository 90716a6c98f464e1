"""Optuna samplers that propose architectures."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna_nas.samplers.ghn import GHNSampler
    from optuna_nas.samplers.promoting import PromotingSampler
    from optuna_nas.samplers.second_opinion import SecondOpinionSampler
    from optuna_nas.samplers.snas import SNASSampler, distribution_records
    from optuna_nas.samplers.transfer import TransferredScore
else:
    from optuna_nas.lazy import lazy_names

    __getattr__ = lazy_names(
        __name__,
        {
            "ghn": "GHNSampler",
            "promoting": "PromotingSampler",
            "second_opinion": "SecondOpinionSampler",
            "snas": "SNASSampler distribution_records",
            "transfer": "TransferredScore",
        },
    )

__all__ = [
    "GHNSampler", "PromotingSampler", "SNASSampler", "SecondOpinionSampler", "TransferredScore", "distribution_records",
]  # fmt: skip

"""Doors for other people's tools. Each file imports its tool when it is first asked for; nothing here is imported."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna_nas.pipelines.lightning import LightningTask
    from optuna_nas.pipelines.ray_tune import InheritedWeights, PrunerScheduler
    from optuna_nas.pipelines.sklearn import NASClassifier, NASRegressor
else:
    from optuna_nas.lazy import lazy_names

    __getattr__ = lazy_names(
        __name__,
        {
            "lightning": "LightningTask",
            "ray_tune": "InheritedWeights PrunerScheduler",
            "sklearn": "NASClassifier NASRegressor",
        },
    )

__all__ = ["InheritedWeights", "LightningTask", "NASClassifier", "NASRegressor", "PrunerScheduler"]

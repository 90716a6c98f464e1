"""A choice made into modules: the op library, the network of one architecture, the supernet of all."""

from optuna_nas.networks.discrete import (
    DiscreteNetwork,
    MixedNetwork,
    measure_latency,
    recompute_statistics,
    use_batch_statistics,
)
from optuna_nas.networks.graph_network import seeded_building
from optuna_nas.networks.ops import build_op, has_module, register_op, unregister_op
from optuna_nas.networks.supernet import ChoiceWeights, Supernet, choice_names, one_hot

__all__ = [
    "ChoiceWeights",
    "DiscreteNetwork",
    "MixedNetwork",
    "Supernet",
    "build_op",
    "choice_names",
    "has_module",
    "measure_latency",
    "one_hot",
    "recompute_statistics",
    "register_op",
    "seeded_building",
    "unregister_op",
    "use_batch_statistics",
]

"""A choice made into modules: the op library, the network of one architecture, the supernet of all."""

from optuna_nas.networks.discrete import DiscreteNetwork, measure_latency, recompute_statistics, use_batch_statistics
from optuna_nas.networks.ops import build_op, register_op, unregister_op
from optuna_nas.networks.supernet import ChoiceWeights, Supernet, choice_names, one_hot

__all__ = [
    "ChoiceWeights",
    "DiscreteNetwork",
    "Supernet",
    "build_op",
    "choice_names",
    "measure_latency",
    "one_hot",
    "recompute_statistics",
    "register_op",
    "unregister_op",
    "use_batch_statistics",
]

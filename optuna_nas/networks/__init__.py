"""Modules of architectures: op library, discrete network, supernet, network files, export."""

from optuna_nas.networks.discrete import DiscreteNetwork
from optuna_nas.networks.export import export_network
from optuna_nas.networks.files import load_network, save_network
from optuna_nas.networks.graph_network import seeded_building
from optuna_nas.networks.latency_table import LatencyResidual, LatencyTable
from optuna_nas.networks.measures import Measure, latency, measure_latency
from optuna_nas.networks.network_space import NetworkSpace
from optuna_nas.networks.ops import build_op, has_module, register_op, unregister_op
from optuna_nas.networks.statistics import recompute_statistics, use_batch_statistics
from optuna_nas.networks.supernet import ChoiceWeights, Supernet, one_hot

__all__ = [
    "ChoiceWeights",
    "DiscreteNetwork",
    "LatencyResidual",
    "LatencyTable",
    "Measure",
    "NetworkSpace",
    "Supernet",
    "build_op",
    "export_network",
    "has_module",
    "latency",
    "load_network",
    "measure_latency",
    "one_hot",
    "recompute_statistics",
    "register_op",
    "save_network",
    "seeded_building",
    "unregister_op",
    "use_batch_statistics",
]

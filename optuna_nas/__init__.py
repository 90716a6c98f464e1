"""Neural architecture search as an ordinary Optuna study."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from optuna_nas.data import (
        Augmentation,
        DatasetData,
        ImageData,
        ImageFolderData,
        LoaderData,
        TensorData,
        cifar10,
        cifar100,
        digits,
        fashion_mnist,
        mnist,
    )
    from optuna_nas.networks import (
        DiscreteNetwork,
        NetworkSpace,
        Supernet,
        load_network,
        measure_latency,
        register_op,
        unregister_op,
    )
    from optuna_nas.objective import (
        TrainObjective,
        suggest_categorical,
        suggest_float,
        suggest_int,
    )
    from optuna_nas.oneshot import (
        GHN,
        HMNAS,
        SNAS,
        GHNRecipe,
        HMNASRecipe,
        OneShotModel,
        SNASRecipe,
    )
    from optuna_nas.plots import (
        plot_anytime,
        plot_architecture,
        plot_distribution,
        plot_edge_weights,
        plot_family,
        plot_importances,
        plot_masks,
        plot_most_likely,
        plot_pareto,
        plot_progress,
        plot_surrogate,
    )
    from optuna_nas.pruners import (
        GHNPruner,
        HMNASPruner,
        should_prune,
    )
    from optuna_nas.samplers import (
        GHNSampler,
        SNASSampler,
        distribution_records,
    )
    from optuna_nas.search import (
        Search,
        SearchResult,
        run,
    )
    from optuna_nas.space import (
        AnytimeSpace,
        Architecture,
        BlockSpace,
        CellKind,
        CellSpace,
        ComputationGraph,
        Cost,
        ModelSpace,
        Skeleton,
        Space,
        anytime_accuracy,
        anytime_skeleton,
        anytime_space,
        darts_cifar_skeleton,
        darts_imagenet_skeleton,
        darts_search_skeleton,
        darts_space,
        ghn_skeleton,
        ghn_space,
        hmnas_space,
        nasbench201_skeleton,
        nasbench201_space,
        published_cell,
    )
    from optuna_nas.storage import (
        Heartbeat,
        InStudyFit,
    )
    from optuna_nas.tracking import (
        MLflowTracker,
    )
    from optuna_nas.training import (
        ImageClassification,
        Recipe,
        Regression,
        Task,
        train,
    )
    from optuna_nas.workers import (
        Job,
        run_on_ray,
        run_workers,
    )

__version__ = "0.1.0"

__all__ = [
    "GHN",
    "HMNAS",
    "SNAS",
    "AnytimeSpace",
    "Architecture",
    "Augmentation",
    "BlockSpace",
    "CellKind",
    "CellSpace",
    "ComputationGraph",
    "Cost",
    "DatasetData",
    "DiscreteNetwork",
    "GHNPruner",
    "GHNRecipe",
    "GHNSampler",
    "HMNASPruner",
    "HMNASRecipe",
    "Heartbeat",
    "ImageClassification",
    "ImageData",
    "ImageFolderData",
    "InStudyFit",
    "Job",
    "LoaderData",
    "MLflowTracker",
    "ModelSpace",
    "NetworkSpace",
    "OneShotModel",
    "Recipe",
    "Regression",
    "SNASRecipe",
    "SNASSampler",
    "Search",
    "SearchResult",
    "Skeleton",
    "Space",
    "Supernet",
    "Task",
    "TensorData",
    "TrainObjective",
    "anytime_accuracy",
    "anytime_skeleton",
    "anytime_space",
    "cifar10",
    "cifar100",
    "darts_cifar_skeleton",
    "darts_imagenet_skeleton",
    "darts_search_skeleton",
    "darts_space",
    "digits",
    "distribution_records",
    "fashion_mnist",
    "ghn_skeleton",
    "ghn_space",
    "hmnas_space",
    "load_network",
    "measure_latency",
    "mnist",
    "nasbench201_skeleton",
    "nasbench201_space",
    "plot_anytime",
    "plot_architecture",
    "plot_distribution",
    "plot_edge_weights",
    "plot_family",
    "plot_importances",
    "plot_masks",
    "plot_most_likely",
    "plot_pareto",
    "plot_progress",
    "plot_surrogate",
    "published_cell",
    "register_op",
    "run",
    "run_on_ray",
    "run_workers",
    "should_prune",
    "suggest_categorical",
    "suggest_float",
    "suggest_int",
    "train",
    "unregister_op",
]

# Where the public names live; imported when first asked for, since torch, Optuna and MLflow take seconds to load.
_HOMES = {
    "data": (
        "Augmentation",
        "DatasetData",
        "ImageData",
        "ImageFolderData",
        "LoaderData",
        "TensorData",
        "cifar10",
        "cifar100",
        "digits",
        "fashion_mnist",
        "mnist",
    ),
    "networks": (
        "DiscreteNetwork",
        "NetworkSpace",
        "Supernet",
        "load_network",
        "measure_latency",
        "register_op",
        "unregister_op",
    ),
    "objective": (
        "TrainObjective",
        "suggest_categorical",
        "suggest_float",
        "suggest_int",
    ),
    "oneshot": (
        "GHN",
        "HMNAS",
        "SNAS",
        "GHNRecipe",
        "HMNASRecipe",
        "OneShotModel",
        "SNASRecipe",
    ),
    "plots": (
        "plot_anytime",
        "plot_architecture",
        "plot_distribution",
        "plot_edge_weights",
        "plot_family",
        "plot_importances",
        "plot_masks",
        "plot_most_likely",
        "plot_pareto",
        "plot_progress",
        "plot_surrogate",
    ),
    "pruners": (
        "GHNPruner",
        "HMNASPruner",
        "should_prune",
    ),
    "samplers": (
        "GHNSampler",
        "SNASSampler",
        "distribution_records",
    ),
    "search": (
        "Search",
        "SearchResult",
        "run",
    ),
    "space": (
        "AnytimeSpace",
        "Architecture",
        "BlockSpace",
        "CellKind",
        "CellSpace",
        "ComputationGraph",
        "Cost",
        "ModelSpace",
        "Skeleton",
        "Space",
        "anytime_accuracy",
        "anytime_skeleton",
        "anytime_space",
        "darts_cifar_skeleton",
        "darts_imagenet_skeleton",
        "darts_search_skeleton",
        "darts_space",
        "ghn_skeleton",
        "ghn_space",
        "hmnas_space",
        "nasbench201_skeleton",
        "nasbench201_space",
        "published_cell",
    ),
    "storage": ("Heartbeat", "InStudyFit"),
    "tracking": ("MLflowTracker",),
    "training": (
        "ImageClassification",
        "Recipe",
        "Regression",
        "Task",
        "train",
    ),
    "workers": (
        "Job",
        "run_on_ray",
        "run_workers",
    ),
}


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], object]:
    """Return a `__getattr__` by which a package imports its public names when they are first asked for.

    Loading torch takes two seconds of a processor, MLflow and scikit-learn more than one each: `optuna-nas --help`,
    and a process that only looks at a study, need none of them.

    >>> find = lazy_names("optuna_nas.space", {"cost": "Cost Site"})
    >>> find("Cost")
    <class 'optuna_nas.space.cost.Cost'>

    Args:
        package: Its `__name__`. No public name may be that of a module of the package.
        homes: Names, separated by spaces, by the module below the package that defines them.
    """
    modules = {name: f"{package}.{home}" for home, names in homes.items() for name in names.split()}

    def find(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(modules[name]), name)
        setattr(sys.modules[package], name, value)  # found without this function from now on
        return value

    return find


if not TYPE_CHECKING:
    __getattr__ = lazy_names(__name__, {home: " ".join(names) for home, names in _HOMES.items()})


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

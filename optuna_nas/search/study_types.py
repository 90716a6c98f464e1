"""What a study file may name by `type`: constructors of this package, Optuna's samplers and pruners, one's own."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

CELLS = (
    "darts_space", "nasbench201_space", "hmnas_space", "ghn_space", "anytime_space", "CellSpace", "BlockSpace",
    "AnytimeSpace",
)  # fmt: skip
SKELETONS = (
    "darts_search_skeleton", "darts_cifar_skeleton", "darts_imagenet_skeleton", "nasbench201_skeleton", "ghn_skeleton",
    "ghn_mobile_skeleton", "anytime_skeleton", "Skeleton",
)  # fmt: skip
DATA = "digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "ImageFolderData"
MODELS = "SNAS", "GHN", "HMNAS"
RECIPES = "SNASRecipe", "GHNRecipe", "HMNASRecipe"
SUGGESTIONS = "suggest_float", "suggest_int", "suggest_categorical"
TASKS = "ImageClassification", "Regression"
SEARCHED = "Recipe", *TASKS, "Augmentation"
"""Types whose fields may be suggestions."""
BY_ANNOTATION = {
    "Space": CELLS, "ModelSpace": CELLS, "NetworkSpace": CELLS, "CellularSpace": CELLS, "Skeleton": SKELETONS,
    "Data": DATA, "Task": TASKS, "OneShotModel": MODELS, "Score": ("FreeScore",), "Objective": ("TrainObjective",),
    **{name: (name,) for name in ("Recipe", *RECIPES, *MODELS, "Augmentation", "CellKind", "Heartbeat",
                                  "MLflowTracker")},
}  # fmt: skip
"""Names of this package by a class that the annotation of an argument names."""
ENDS = {"BaseSampler": "Sampler", "BasePruner": "Pruner"}
"""Ends of the names of samplers and pruners, ours and Optuna's."""
_registered: dict[str, Callable[..., Any]] = {}


def register_type(name: str, make: Callable[..., Any]) -> None:
    r"""Let YAML studies name your own function or class by `type`, wherever an object is expected.

    A file can't import anything, so register in the Python program that reads it: a study file in Python whose function
    `search` returns `Search.from_yaml(...)`, or a program of your own.

    Args:
        name: New name, a Python identifier; one of your own types of this name is replaced.
        make: Function or class. Arguments that the file does not give and that are named `space`, `data`, `task`,
            `input_shape`, `classes` or `seed` are those of the study.

    Raises:
        ValueError: The name is no identifier, or that of a type of the package or of Optuna.

    Example:
        >>> from pathlib import Path
        >>> from optuna_nas import Search, register_type, unregister_type
        >>> def depth_first(seed=0):
        ...     return lambda trial: float(len(trial.params))
        >>> register_type("depth_first", depth_first)
        >>> _ = Path("study.yaml").write_text("name: tiny\nspace: darts_space\nobjective: depth_first\n")
        >>> Search.from_yaml("study.yaml").objective is not None
        True
        >>> unregister_type("depth_first")
    """
    if not name.isidentifier():
        raise ValueError(f"`name` must be a Python identifier but got {name!r}.")
    if not callable(make):
        raise ValueError(f"`make` must be a function or class but is {make!r}.")
    if name in built_in():
        raise ValueError(f"`name` must be new but {name!r} is a type of the package or of Optuna; choose another.")
    _registered[name] = make


def unregister_type(name: str) -> None:
    """Remove a type that `register_type` added, for interactive work.

    Args:
        name: Name of your own type.

    Raises:
        ValueError: No type of your own has this name.

    Example:
        >>> from optuna_nas import register_type, unregister_type
        >>> register_type("mine", dict)
        >>> unregister_type("mine")
    """
    if name not in _registered:
        raise ValueError(f"`name` must be a type of your own but {name!r} is none; yours: {sorted(_registered)}.")
    del _registered[name]


@cache
def built_in() -> dict[str, Callable[..., Any]]:
    """Return all types that need no registration, by name."""
    import optuna

    from optuna_nas import data, objective, oneshot, pruners, samplers, space, storage, tracking, training

    rooms = data, objective, oneshot, pruners, samplers, space, storage, tracking, training
    names = {name for several in BY_ANNOTATION.values() for name in several} | set(SUGGESTIONS)
    ours = {"SNASSampler", "GHNSampler", "GHNPruner", "HMNASPruner"}
    optunas = {
        name: getattr(room, name)
        for room, end in ((optuna.samplers, "Sampler"), (optuna.pruners, "Pruner"))
        for name in room.__all__
        if name.endswith(end) and not name.startswith("Base")
    }
    homes = {name: room for room in rooms for name in room.__all__}
    return {name: getattr(homes[name], name) for name in sorted(names | ours)} | optunas


def types_for(words: Iterable[str]) -> tuple[str, ...]:
    """Return the names of types of the classes that annotations name; all of them for `Any`.

    Example:
        >>> from optuna_nas.search.study_types import types_for
        >>> types_for(["SNASRecipe", "None"]), types_for(["BasePruner"])[:2], types_for(["int"])
        (('SNASRecipe',), ('GHNPruner', 'HMNASPruner'), ())
    """
    names: list[str] = []
    for word in words:
        if word == "Any":
            names += built_in()
        elif word in ENDS:
            names += [name for name in built_in() if name.endswith(ENDS[word])]
        else:
            names += BY_ANNOTATION.get(word, ())
    return tuple(dict.fromkeys(names))


def registered() -> dict[str, Callable[..., Any]]:
    """Return the registered types by name."""
    return dict(_registered)

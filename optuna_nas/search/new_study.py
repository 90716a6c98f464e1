"""Text of a new study, in YAML or Python, for `optuna-nas init`."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from optuna_nas.search.checks import (
    AUTO,
    BY_GHN,
    BY_HMNAS,
    BY_SNAS,
    FREE,
    RANDOM,
    STRATEGIES,
    TPE,
    check_name,
    check_one_of,
    check_seconds,
    checked_count,
)

DATA = "digits", "mnist", "fashion_mnist", "cifar10", "cifar100"
SKELETONS = {
    "nasbench201_space": ("nasbench201_skeleton", {"repeats": 1, "channels": 8}),
    "darts_space": ("darts_search_skeleton", {"n_cells": 3, "channels": 4}),
    "hmnas_space": ("darts_search_skeleton", {"n_cells": 3, "channels": 4}),
    "ghn_space": ("ghn_skeleton", {"blocks": 3, "channels": 8}),
}
"""Skeleton of small networks and its arguments, by space."""
DEFAULT_TRIALS = 30
STRATEGIES_OF = dict.fromkeys(SKELETONS, STRATEGIES) | {"ghn_space": (AUTO, FREE, BY_GHN, TPE, RANDOM)}
"""Strategies that fit, by space: the graphs of a BlockSpace have no ops on edges to weigh or to mask."""
PLANNED = BY_SNAS, BY_GHN, BY_HMNAS
"""Strategies that need a number of trials, by which they plan the training of their models."""
_PLAIN = re.compile(r"(?!(true|false|null)$)[A-Za-z][\w-]*", re.IGNORECASE | re.ASCII)


class NewStudy(NamedTuple):
    """Settings of a new study.

    Args:
        name: Name of the study.
        data: One of `DATA`.
        space: One of `SKELETONS`.
        strategy: Name of a strategy.
        trials: Total number of trials; by default 30, or none where `seconds` are given and the strategy needs none.
        seconds: Seconds of all trials; None for no limit.

    Example:
        >>> from optuna_nas.search.new_study import NewStudy
        >>> print(NewStudy("first").yaml("optuna-nas run first.yaml").splitlines()[0])
        # A search on digits. Run or resume it:   optuna-nas run first.yaml
    """

    name: str
    data: str = "digits"
    space: str = "nasbench201_space"
    strategy: str = "auto"
    trials: int | None = None
    seconds: float | None = None

    def check(self) -> None:
        """Check that the text will be a study.

        Raises:
            ValueError: A setting is unknown or out of range.
        """
        check_name(self.name)
        check_one_of("data", self.data, DATA)
        check_one_of("space", self.space, tuple(SKELETONS))
        check_one_of("strategy", self.strategy, STRATEGIES)
        if self.strategy not in (fitting := STRATEGIES_OF[self.space]):
            raise ValueError(
                f"`strategy` must be one of {', '.join(fitting)} for {self.space}, which has no ops on edges, but got "
                f"{self.strategy!r}."
            )
        if self.trials is not None:
            checked_count("trials", self.trials)
        check_seconds(self.seconds)

    @property
    def limits(self) -> dict[str, float]:
        """Where the study ends: trials, seconds or both."""
        needs_trials = self.seconds is None or self.strategy in PLANNED
        trials = self.trials or (DEFAULT_TRIALS if needs_trials else None)
        given = {"trials": trials, "seconds": self.seconds}
        return {name: value for name, value in given.items() if value is not None}

    def yaml(self, command: str) -> str:
        """Return the study in YAML.

        Args:
            command: Command that runs it.
        """
        skeleton, arguments = SKELETONS[self.space]
        name = self.name if _PLAIN.fullmatch(self.name) else json.dumps(self.name, ensure_ascii=False)
        limits = "\n".join(f"{key}: {value:g}" for key, value in self.limits.items())
        return f"""\
# A search on {self.data}. Run or resume it:   {command}
# A setting for one run:   {command} --set recipe.epochs=10
# Keys are the arguments of optuna_nas.Search; a `type` is a function or class of optuna_nas, or a sampler or pruner of
# Optuna, and what stands beside it are its arguments.

# The folder runs/NAME keeps everything, and a study of this name is resumed.
name: {name}

# Also {", ".join(data for data in DATA if data != self.data)}; with arguments: {{type: {self.data}, seed: 1}}
data: {self.data}

# What may be chosen; also {", ".join(space for space in SKELETONS if space != self.space)}, with other skeletons.
space: {self.space}

# The network that cells of the space are placed into: small here, for a first result in minutes.
skeleton:
  type: {skeleton}
{"".join(f"  {key}: {value}{chr(10)}" for key, value in arguments.items())}
# How a network is trained. A value may be searched as well:
#   learning_rate: {{type: suggest_float, low: 0.01, high: 0.2, log: true}}
recipe:
  epochs: 5
  batch_size: 64
  learning_rate: 0.025

# auto, free, snas, ghn, hmnas, tpe or random. Instead, a sampler and a pruner:
#   sampler: {{type: SNASSampler, model: SNAS, budget: 40}}
#   pruner: {{type: MedianPruner, n_startup_trials: 8}}
strategy: {self.strategy}

# Where the study ends: trials, seconds, or both.
{limits}

# Small networks train fastest with one thread; a GPU is used if there is one.
cpu_threads: 1
"""

    def python(self, command: str) -> str:
        """Return the study in Python.

        Args:
            command: Command that runs it.
        """
        skeleton, arguments = SKELETONS[self.space]
        written = "".join(f"{key}={value}, " for key, value in arguments.items())
        limits = "\n".join(f"        {key}={value:g}," for key, value in self.limits.items())
        names = sorted(["NetworkSpace", "Recipe", "Search", self.data, self.space, skeleton])
        imports = "\n".join(f"    {name}," for name in names)
        return f'''\
"""A search on {self.data}.

Command:   {command}
           {command} --set epochs=10
"""

from optuna_nas import (
{imports}
)


def search(epochs: int = 5, seed: int = 0) -> Search:
    """Return the search; its arguments can be set on the command line."""
    data = {self.data}(seed=seed)
    # The network that the cells are placed into: small here, for a first result in minutes.
    skeleton = {skeleton}({written}input_shape=data.input_shape, classes=data.classes)
    return Search(
        name={self.name!r},  # the folder runs/NAME keeps everything, and a study of this name is resumed
        space=NetworkSpace({self.space}(), skeleton),
        data=data,
        # A value may be searched as well: learning_rate=suggest_float(0.01, 0.2, log=True)
        recipe=Recipe(epochs=epochs, batch_size=64, learning_rate=0.025, seed=seed),
        strategy={self.strategy!r},  # or sampler=..., pruner=...: any of Optuna or of this package
{limits}
        cpu_threads=1,  # small networks train fastest with one; a GPU is used if there is one
    )
'''

"""Public names of packages, imported when they are first asked for."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], object]:
    """Return a `__getattr__` by which a package imports its public names when they are first asked for.

    Loading torch takes two seconds of a processor, MLflow and scikit-learn more than one each: `optuna-nas --help`,
    and a process that only looks at a study, need none of them.

    Args:
        package: Its `__name__`. No public name may be that of a module of the package.
        homes: Names, separated by spaces, by the module below the package that defines them.

    Example:
        >>> find = lazy_names("optuna_nas.space", {"cost": "Cost Site"})
        >>> find("Cost")
        <class 'optuna_nas.space.cost.Cost'>
    """
    modules = {name: f"{package}.{home}" for home, names in homes.items() for name in names.split()}

    def find(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(modules[name]), name)
        setattr(sys.modules[package], name, value)  # found without this function from now on
        return value

    return find

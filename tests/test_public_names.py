"""The public names are a contract: they are there, they are the only ones, and to import them costs what they need."""

import ast
import inspect
import pkgutil
import subprocess
import sys
from importlib import import_module

import pytest

import optuna_nas

ROOMS = [module.name for module in pkgutil.walk_packages(optuna_nas.__path__, "optuna_nas.") if module.ispkg]


def test_every_public_name_is_documented():
    for name in optuna_nas.__all__:
        assert getattr(optuna_nas, name).__doc__


PRIVATE = ("optuna_nas.lazy", "optuna_nas.version")


@pytest.mark.parametrize("room", ["optuna_nas", *ROOMS])
def test_a_room_hands_out_what_it_lists_and_what_type_checkers_see(room):
    module = import_module(room)
    imports = [node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imports if node.module.startswith("optuna_nas.") and node.module not in PRIVATE]
    seen = {alias.name for node in ours for alias in node.names}
    assert seen == set(module.__all__)
    assert all(getattr(module, name) is not None for name in module.__all__)
    modules = {found.name for found in pkgutil.iter_modules(module.__path__)}
    assert not modules & seen, "a module that is imported would hide the public name"


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(optuna_nas, "NASLib")
    with pytest.raises(AttributeError, match=r"module 'optuna_nas\.search' has no attribute 'NASLib'"):
        optuna_nas.search.NASLib  # noqa: B018


HEAVY = ("torch", "optuna", "mlflow", "matplotlib", "sklearn", "scipy", "pandas", "sqlalchemy", "boto3")


def loaded(code):
    """Return which heavy packages a fresh process has loaded after running some code."""
    code += f"\nimport sys; print(*sorted({set(HEAVY)!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.process
@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import optuna_nas.cli", set()),
        ("from optuna_nas import darts_space; darts_space().size", {"optuna"}),
        ("from optuna_nas import MLflowTracker, Heartbeat", {"optuna", "sqlalchemy", "boto3"}),
        ("from optuna_nas import Recipe, train", {"torch"}),
        ("from optuna_nas import ImageData; import numpy; ImageData.from_arrays(numpy.zeros((90, 4, 4)), "
         "numpy.arange(90) % 3)", {"torch"}),
    ],
)  # fmt: skip
def test_a_name_loads_what_it_needs_and_no_more(code, allowed):
    assert loaded(code) <= allowed

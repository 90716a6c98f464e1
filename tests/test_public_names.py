"""The public names are a contract: they are there, and they are the only ones."""

import subprocess
import sys

import pytest

import optuna_nas


def test_every_public_name_is_there():
    listed = {name for names in optuna_nas._HOMES.values() for name in names}
    assert listed == set(optuna_nas.__all__)
    for name in optuna_nas.__all__:
        assert getattr(optuna_nas, name).__doc__


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(optuna_nas, "NASLib")


@pytest.mark.process
def test_importing_the_package_loads_nothing_heavy_and_changes_nothing():
    code = "import sys, optuna_nas.cli; print({'torch', 'optuna', 'mlflow', 'matplotlib'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.process
def test_a_space_needs_no_torch():
    code = "import sys; from optuna_nas import darts_space; darts_space().size; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"

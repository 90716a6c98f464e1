"""Examples in docstrings run, and every public name has one."""

import doctest
import inspect
from importlib import import_module
from pathlib import Path

import pytest

import optuna_nas

PACKAGE = Path(optuna_nas.__file__).parent
# Found by text, so that workers of pytest-xdist import a module only where its test runs.
MODULES = sorted(
    ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for file in PACKAGE.rglob("*.py")
    if ">>> " in file.read_text(encoding="utf-8")
)
WITHOUT_EXAMPLE = {
    "GHN",
    "GHNPruner",
    "GHNRecipe",
    "GHNSampler",
    "HMNAS",
    "HMNASPruner",
    "HMNASRecipe",
    "Heartbeat",
    "Job",
    "MLflowTracker",
    "OneShotModel",
    "SNAS",
    "SNASRecipe",
    "SNASSampler",
    "distribution_records",
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
    "run_on_ray",
    "run_workers",
    "should_prune",
}


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # an example may write files
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    results = doctest.testmod(import_module(name), optionflags=options)
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("name", sorted(set(optuna_nas.__all__) - WITHOUT_EXAMPLE))
def test_a_public_name_has_an_example(name):
    assert ">>> " in inspect.getdoc(getattr(optuna_nas, name))

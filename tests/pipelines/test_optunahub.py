"""The packages for OptunaHub: loaded as the registry loads them, run as their examples run them."""

import runpy
from functools import partial
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution

import optuna_nas

pytestmark = pytest.mark.pipeline
optunahub = pytest.importorskip("optunahub")

REGISTRY = Path(__file__).parents[2] / "optunahub" / "package"
PACKAGES = {
    "samplers/snas": "SNASSampler",
    "samplers/ghn": "GHNSampler",
    "pruners/hmnas": "HMNASPruner",
    "pruners/ghn": "GHNPruner",
}
OPS = ["conv", "pool", "skip"]


def test_the_registry_holds_these_packages():
    assert {str(file.parent.relative_to(REGISTRY)) for file in REGISTRY.rglob("__init__.py")} == set(PACKAGES)


@pytest.mark.parametrize(("package", "name"), PACKAGES.items())
def test_a_package_is_loaded_and_has_what_the_registry_asks_for(package, name):
    module = optunahub.load_local_module(package=package, registry_root=str(REGISTRY))
    assert getattr(module, name) is getattr(optuna_nas, name)
    assert module.__all__ == [name]
    assert (REGISTRY / package / "LICENSE").read_text().startswith("MIT License\n")
    _, header, text = (REGISTRY / package / "README.md").read_text().split("---\n", 2)
    fields = yaml.safe_load(header)
    assert set(fields) == {"author", "title", "description", "tags", "optuna_versions", "license"}
    assert fields["license"] == "MIT License"
    assert package.split("/")[0].rstrip("s") in fields["tags"]
    assert (REGISTRY / package / "example.py").read_text().strip() in text


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_an_example_runs(package, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    local = partial(optunahub.load_local_module, registry_root=str(REGISTRY))
    monkeypatch.setattr(optunahub, "load_module", local)
    study = runpy.run_path(str(REGISTRY / package / "example.py"))["study"]
    assert all(trial.state.is_finished() for trial in study.trials)
    assert capsys.readouterr().out
    if package == "pruners/ghn":
        assert any(trial.state == optuna.trial.TrialState.PRUNED for trial in study.trials)


def test_ordinary_categoricals_are_learned_beside_another_parameter():
    space = {f"op{number}": CategoricalDistribution(OPS) for number in range(4)}
    sampler = optuna_nas.SNASSampler({**space, "rate": FloatDistribution(0, 1)}, seed=0)

    def objective(trial):
        trial.suggest_float("rate", 0, 1)
        return [trial.suggest_categorical(name, OPS) for name in space].count("pool")

    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(objective, n_trials=60)
    assert study.best_value == 4
    learned = sampler.probabilities(study)
    assert set(learned) == set(space)
    assert all(max(of_path, key=of_path.get) == "pool" for of_path in learned.values())

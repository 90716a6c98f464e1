"""The studies of users' modules run, as their headers say, but for one short trial."""

from pathlib import Path

import pytest
from terminal import here

STUDIES = Path(__file__).parents[2] / "studies"
MODULES = sorted(path for path in STUDIES.glob("*.py") if "ModuleSpace(" in path.read_text())

LESS = {"pretrained_resnet": ("--set", "budget=0.2")}
"""What else makes a study short."""


def test_there_are_studies_of_modules():
    assert len(MODULES) >= 5


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_study_of_a_module_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = here("run", path, "--set", "trials=1", "--set", "epochs=1", "--no-mlflow", *LESS.get(path.stem, ()))
    assert done.exit_code == 0, done.output
    assert "the best of 1 trials" in done.stdout
    assert list(tmp_path.glob("runs/*/networks/*.safetensors"))
    assert "Test " in done.stdout

"""The wheel and the source distribution: what they hold, and a search from an installed wheel."""

import os
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STUDY = """
name: installed
data: digits
space: nasbench201_space
skeleton: {type: nasbench201_skeleton, repeats: 1, channels: 4}
recipe: {epochs: 1}
trials: 1
tracking: null
"""

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="the tests do not lie in a checkout"),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the source distribution."""
    folder = tmp_path_factory.mktemp("built")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=ROOT, check=True)
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


def test_the_wheel_holds_the_package_and_nothing_else(built):
    with zipfile.ZipFile(built[0]) as wheel:
        names = wheel.namelist()
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        described = Parser().parsestr(wheel.read(metadata).decode())
    here = {path.relative_to(ROOT).as_posix() for path in (ROOT / "optuna_nas").rglob("*") if path.is_file()}
    assert {name for name in names if ".dist-info/" not in name} == {name for name in here if "__pycache__" not in name}
    assert described["Requires-Python"] == ">=3.11"
    assert described["License-Expression"] == "Apache-2.0"
    assert "# optuna_nas" in described.get_payload()
    assert all("==" not in requirement.partition(";")[0] for requirement in described.get_all("Requires-Dist"))


def test_the_source_distribution_holds_what_a_reader_wants(built):
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "studies/digits.py", "docs/pipelines.md"} <= names
    assert any(name.startswith("tests/") for name in names)
    assert any(name.startswith("optunahub/") for name in names)


def test_a_search_runs_from_an_installed_wheel(built, tmp_path):
    home, work = tmp_path / "packages", tmp_path / "work"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(home)]
    subprocess.run([*install, str(built[0])], check=True)
    work.mkdir()
    (work / "study.yaml").write_text(STUDY)
    environment = os.environ | {"PYTHONPATH": str(home)}
    place = "import optuna_nas; print(optuna_nas.__file__)"
    found = subprocess.run([sys.executable, "-c", place], cwd=work, env=environment, capture_output=True, text=True)
    assert Path(found.stdout.strip()).is_relative_to(home)
    done = subprocess.run(
        [sys.executable, "-m", "optuna_nas.cli", "run", "study.yaml"],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (work / "runs" / "installed" / "networks" / "trial-00000.safetensors").exists()

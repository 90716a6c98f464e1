"""The benchmark for GPUs runs where nothing but PyTorch is installed."""

import json
import subprocess
import sys

import pytest

BARE = """
import runpy, sys
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec
PathFinder.find_spec = lambda name, *where: None if name.split(".")[0] in {absent} else find_spec(name, *where)
sys.argv = ["gpu.py", "--device", "cpu", "--tiny", "--parts", "pool", "waits", "--json", sys.argv[1]]
sys.path.insert(0, "studies/benchmarks")
runpy.run_path("studies/benchmarks/gpu.py", run_name="__main__")
"""
ABSENT = {"optuna", "mlflow", "sqlalchemy", "sklearn", "scipy", "matplotlib", "rich", "typer", "pandas", "safetensors"}


@pytest.mark.process
def test_the_benchmark_of_a_gpu_needs_pytorch_alone(tmp_path):
    program = BARE.replace("{absent}", repr(ABSENT))
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "gpu.json")], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert "error" not in {**found["waits"], **found["pool"]}, found
    assert len(found["waits"]) == 4  # a CPU makes nobody wait: only a GPU tells more
    assert found["pool"]["GHN.score"]["cells/s"] > 0

"""The notebooks of `examples/` run from the top, and are kept without their outputs."""

from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_outputs_are_kept(path):
    cells = nbformat.read(path, as_version=4).cells
    assert all(cell.get("outputs", []) == [] and cell.get("execution_count") is None for cell in cells)


@pytest.mark.process
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_the_top(path, tmp_path):
    nbclient = pytest.importorskip("nbclient")
    book = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(book, timeout=200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", []) if "data" in output]
    html = "\n".join(output["data"].get("text/html", "") for output in outputs)
    assert "18 architectures" in html
    assert "trial 12 of 12" in html
    assert "notebook: the best of 12 trials" in html
    assert "<img" in html
    assert list(tmp_path.glob("runs/notebook/networks/*.safetensors"))

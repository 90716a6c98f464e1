"""Examples in docstrings run, and every public name has one."""

import ast
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
ROOMS = ["optuna_nas", *sorted(f"optuna_nas.{file.parent.name}" for file in PACKAGE.glob("*/__init__.py"))]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # an example may write files
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    # Doors need the package of their tool, which not everybody has.
    module = pytest.importorskip(name) if name.startswith("optuna_nas.pipelines.") else import_module(name)
    results = doctest.testmod(module, optionflags=options)
    assert results.attempted > 0
    assert results.failed == 0


def test_examples_have_a_heading():
    """Without one, the pages made of docstrings show quotes in quotes."""
    without = [
        f"{file.relative_to(PACKAGE)}: {node.name}"
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
        and ">>> " in (text := ast.get_docstring(node) or "")
        and "Example:\n" not in text
    ]
    assert without == []


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_have_examples(room):
    public = import_module(room)
    objects = {name: getattr(public, name) for name in getattr(public, "__all__", ())}
    without = {
        name
        for name, value in objects.items()
        if (inspect.isclass(value) or inspect.isfunction(value)) and ">>> " not in (inspect.getdoc(value) or "")
    }
    assert without == set()

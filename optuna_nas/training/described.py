"""What determines a result, as JSON values that are the same in every process."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import sys
import sysconfig
import textwrap
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch

DEPTH = 6
"""Levels of objects within objects that are described; deeper ones by their class alone."""
_INSTALLED = [
    *(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    Path(__file__).resolve().parents[1],
]
PLAIN = (bool, int, float, str, type(None))


def described(value: Any, depth: int = DEPTH) -> Any:
    """Return a value as JSON values: numbers and texts as they are, functions by name, tensors by a digest.

    An object is what its `to_dict` returns, or else its class and its attributes, without those whose names begin with
    an underscore. No address in memory is part of it, so that two processes describe equal things equally.

    Args:
        value: Any value.
        depth: Levels of objects within objects to describe.

    Example:
        >>> import numpy as np
        >>> from torch.nn import functional
        >>> from optuna_nas.training.described import described
        >>> described({"rate": np.float32(0.5), "loss": functional.l1_loss, "size": (2, 3)})
        {'rate': 0.5, 'loss': 'torch.nn.functional:l1_loss', 'size': (2, 3)}
    """
    if type(value) in PLAIN:
        return value
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, np.generic):
        return described(value.item(), depth)
    if isinstance(value, str | PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): described(of, depth) for key, of in value.items()}
    if type(value) in (list, tuple):
        return type(value)(described(of, depth) for of in value)
    if isinstance(value, set | frozenset):
        return sorted((described(of, depth) for of in value), key=repr)
    if isinstance(value, np.ndarray) and value.dtype.kind not in "biufc":
        return described(value.tolist(), depth)
    if isinstance(value, torch.Tensor | np.ndarray):
        return _tensor(value)
    if isinstance(value, partial):
        return [described(part, depth) for part in (value.func, value.args, value.keywords)]
    if isinstance(value, type) or inspect.isroutine(value):
        return f"{getattr(value, '__module__', None)}:{getattr(value, '__qualname__', type(value).__name__)}"
    if isinstance(value, torch.dtype | torch.device | torch.Size):
        return str(value)
    if callable(told := getattr(value, "to_dict", None)):
        return described(told(), depth)
    return _attributes_of(value, depth)


def value_digest(value: Any) -> str:
    """Return a digest of what `described` says of a value."""
    return hashlib.blake2b(json.dumps(described(value)).encode(), digest_size=8).hexdigest()


def _tensor(value: Any) -> list[Any]:
    array = value.detach().cpu() if isinstance(value, torch.Tensor) else torch.as_tensor(value)
    if array.is_meta:
        return [str(array.dtype), list(array.shape)]
    data = array.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return [str(array.dtype), list(array.shape), hashlib.blake2b(data, digest_size=8).hexdigest()]


def _attributes_of(value: Any, depth: int) -> Any:
    of = f"{type(value).__module__}:{type(value).__qualname__}"
    if not depth:
        return of
    if isinstance(value, torch.nn.Module):
        state = {name: _tensor(tensor) for name, tensor in value.state_dict().items()}
        return {"class": of, **simple_attributes(value), "state": state}
    own = {name: described(given, depth - 1) for name, given in attributes_of(value).items()}
    return own if is_dataclass(value) else {"class": of, **own}


def attributes_of(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass, or attributes of another object, but those that begin with an underscore."""
    names = [one.name for one in fields(value)] if is_dataclass(value) else list(getattr(value, "__dict__", ()))
    return {name: getattr(value, name) for name in names if not name.startswith("_")}


def code_digest(code: Iterable[Any]) -> str:
    """Return a digest of the code of classes and functions, without comments, docstrings and layout.

    Base classes and what functions have taken from around them count, too; of code whose source can't be read, the
    compiled code does. What belongs to an installed package is left out.

    Example:
        >>> from optuna_nas.training.described import code_digest
        >>> code_digest([dict])
        ''
    """
    texts = {}
    for one in code:
        one = inspect.unwrap(one.func if isinstance(one, partial) else one)
        one = one if isinstance(one, type) or inspect.isroutine(one) else type(one)
        for part in inspect.getmro(one) if isinstance(one, type) else (one,):
            if not _is_installed(part):
                texts[f"{part.__module__}:{part.__qualname__}"] = [_code_of(part), _taken(part)]
    return value_digest(sorted(texts.items())) if texts else ""


def _is_installed(code: Any) -> bool:
    module = sys.modules.get(getattr(code, "__module__", None) or "builtins")
    file = getattr(module, "__file__", None)
    if file is None:  # a built-in module, or a notebook
        return module is not sys.modules["__main__"]
    return any(Path(file).resolve().is_relative_to(place) for place in _INSTALLED)


def _code_of(code: Any) -> Any:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, TypeError, SyntaxError):  # a cell of a notebook, or a lambda within a longer line
        return [[one.__qualname__, one.__code__.co_code.hex(), one.__code__.co_names] for one in _functions_of(code)]
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _functions_of(code: Any) -> list[Any]:
    """Return a function itself, or the methods of a class."""
    return [one for one in (code, *vars(code).values()) if inspect.isfunction(one)]


def _taken(code: Any) -> list[Any]:
    """Return the numbers, texts and functions in the closures of a function, or of the methods of a class."""
    taken = []
    for function in _functions_of(code):
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            with suppress(ValueError):  # not filled yet
                if _is_simple(cell.cell_contents):
                    taken.append([function.__qualname__, name, described(cell.cell_contents)])
    return taken


def simple_attributes(module: torch.nn.Module) -> dict[str, Any]:
    """Return the attributes of a module that are numbers, texts, functions, or rows of these, without its mode."""
    return {
        name: described(value)
        for name, value in vars(module).items()
        if not name.startswith("_") and name != "training" and _is_simple(value)
    }


def _is_simple(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_simple, value))
    return type(value) in PLAIN or isinstance(value, np.generic) or inspect.isroutine(value)

"""Study files: Python files with a function `search()` that returns a `Search`, or YAML files that describe one."""

from __future__ import annotations

import inspect
import runpy
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna_nas.storage.secrets import quoted, without_password

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna_nas.search.config import Search


YAML_SUFFIXES = (".yaml", ".yml")


class UsageError(ValueError):
    """Raised for errors that the user can correct; the command line shows one sentence and exits with code 2."""


def load(
    path: Path,
    settings: list[str] | None,
    storage: str | None = None,
    mlflow: str | None = None,
    trials: int | None = None,
    artifacts: str | None = None,
    strategy: str | None = None,
    seconds: float | None = None,
) -> Search:
    """Return the search of a study file, with some fields replaced.

    Args:
        path: Study file.
        settings: Arguments of the function `search()`, as `NAME=VALUE`; `name=...` renames the study also where the
            function has no such argument. For a YAML file, values in place of the file's, such as `recipe.epochs=5`.
        storage: Replaces `Search.storage` unless None.
        mlflow: URI of an MLflow tracking server, replaces `Search.tracking` unless None.
        trials: Replaces `Search.trials` unless None.
        artifacts: Replaces `Search.artifacts` unless None.
        strategy: Replaces `Search.strategy`, sampler and pruner unless None.
        seconds: Replaces `Search.seconds` unless None.

    Raises:
        UsageError: The file or a setting is wrong.

    Example:
        >>> from pathlib import Path
        >>> from optuna_nas.search.study_file import load
        >>> text = '''
        ... from optuna_nas import Search, darts_space
        ...
        ... def search(trials: int = 10):
        ...     return Search("tiny", darts_space(), objective=lambda trial: 0.0, trials=trials)
        ... '''
        >>> _ = Path("study.py").write_text(text)
        >>> load(Path("study.py"), ["trials=3"]).trials
        3
    """
    from optuna_nas.search.study_yaml import read_file
    from optuna_nas.tracking import MLflowTracker

    if not path.is_file():
        raise UsageError(
            f"`study` must be a Python or YAML file but {without_password(str(path))} is not there; "
            "give the path of a study file, or let `optuna-nas init` write one."
        )
    given = {"storage": storage, "trials": trials, "artifacts": artifacts, "seconds": seconds}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if mlflow is not None:
        changes["tracking"] = MLflowTracker(mlflow)
    try:
        search = read_file(path, settings or ()) if path.suffix in YAML_SUFFIXES else _made(path, settings or [])
        return replace(search, **changes) if strategy is None else search.with_strategy(strategy, **changes)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error


def _made(path: Path, settings: list[str]) -> Search:
    """Return what the function `search` of a study file returns."""
    from optuna_nas.search.config import Search

    sys.path.insert(0, str(path.parent.resolve()))  # modules beside the file, as when Python runs it
    try:
        names = runpy.run_path(str(path), run_name="optuna_nas_study")
    except (Exception, SystemExit) as error:
        raise UsageError(_blame(path, error)) from error
    function = names.get("search")
    if not callable(function):
        raise UsageError(
            f"`study` must define a function `search()` that returns a `Search` but {path} has none; add one."
        )
    own_names = [text.partition("=")[2] for text in settings if text.startswith("name=")]
    if "name" in inspect.signature(function).parameters:
        own_names = []
    arguments = _arguments(function, [text for text in settings if not own_names or not text.startswith("name=")], path)
    try:
        search = function(**arguments)
        if own_names:  # any study can get another name, and with it a folder of its own
            search = replace(search, name=own_names[-1], folder=None)
    except (ValueError, ConnectionError, OSError) as error:
        raise UsageError(str(error)) from error
    except Exception as error:
        raise UsageError(_blame(path, error)) from error
    if not isinstance(search, Search):
        raise UsageError(
            f"`search()` of {path} must return a `Search` but returned {type(search).__name__}; "
            "return `optuna_nas.Search(...)`."
        )
    return search


def _blame(path: Path, error: BaseException) -> str:
    """Return a sentence with the line of the study file that fails, and the reason."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    place = f"line {lines[-1]} of {path}" if lines else str(path)
    return f"`study` must run but {place} fails: {type(error).__name__}: {error}; correct it, or see --debug."


def _arguments(function: Callable[..., Any], settings: list[str], path: Path) -> dict[str, Any]:
    """Convert `NAME=VALUE` texts to arguments of the annotated types, or of the types of the defaults."""
    parameters = inspect.signature(function).parameters
    arguments: dict[str, Any] = {}
    for setting in settings:
        name, separator, text = setting.partition("=")
        if not separator or name not in parameters:
            names = ", ".join(parameters) or "no arguments"
            raise UsageError(
                f"`--set` must be NAME=VALUE for an argument of `search` in {path} ({names}), not {quoted(setting)}."
            )
        parameter = parameters[name]
        try:
            arguments[name] = _convert(text, parameter.default, str(parameter.annotation))
        except ValueError:
            by_default = parameter.annotation is parameter.empty
            like = f"like its default {parameter.default!r}" if by_default else f"of type {parameter.annotation}"
            raise UsageError(f"`--set {name}` must be {like}, but got {quoted(text)}; correct the value.") from None
    lacking = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and name not in arguments and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if lacking:
        raise UsageError(
            f"`--set` must give the argument {lacking[0]!r} of `search` in {path}; add --set {lacking[0]}=..."
        )
    return arguments


def _convert(text: str, default: object, annotation: str) -> object:
    """Convert text to the type of the annotation or, without one, of the default."""
    if default is None and text.lower() == "none":
        return None
    annotated = annotation.replace("|", " ").replace("'", " ").split()
    names = [type(default).__name__] if "inspect._empty" in annotated else annotated
    for kind in (bool, int, float):
        if kind.__name__ in names:
            if kind is not bool:
                return kind(text)
            if text.lower() not in ("true", "false", "1", "0"):
                raise ValueError
            return text.lower() in ("true", "1")
    return Path(text) if isinstance(default, Path) else text

"""Studies as YAML files, with the names of Python's constructors.

A key is an argument of `Search`, `skeleton` (what the cells of `space` are placed into) or `seed`. An object is a
mapping with its `type` and its arguments, or the type alone. What Python code would pass along is filled in: `space`,
`data`, `task`, `input_shape`, `classes` and `seed`, where a constructor has such an argument and the file does not give
it. An anchor is one object wherever its alias stands.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from yaml import MappingNode, Node, ScalarNode, SequenceNode

from optuna_nas.search.checks import similar
from optuna_nas.search.expected import LISTS, MAPPINGS, Expected
from optuna_nas.search.study_types import SEARCHED, SUGGESTIONS, built_in, registered
from optuna_nas.search.yaml_reading import described, entries, fail, place, read_yaml, scalar
from optuna_nas.storage.secrets import quoted, without_password

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from optuna_nas.search.config import Search

_FIRST = {"seed": "int", "data": "Data | None", "skeleton": "Skeleton | None", "task": "Task", "space": "Space"}
"""Keys that are made before the others, in this order, and what they take."""
_PASSED_ALONG = ("seed", "task", "recipe", "data", "space", "input_shape", "classes")


def read_file(path: Path, settings: Iterable[str] = ()) -> Search:
    """Return the search of a YAML file.

    Args:
        path: The file.
        settings: Values in place of the file's, such as `recipe.epochs=5`; the value is YAML.

    Raises:
        ValueError: The file can't be read, or describes no search; the message names file and line.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8 but is not at byte {error.start}; save it as such.") from None
    except OSError as error:
        raise ValueError(f"{path} must be a file that can be read but is not: {error.strerror}.") from None
    return read_text(text, str(path), settings)


def read_text(text: str, name: str, settings: Iterable[str] = (), given: Mapping[str, Any] | None = None) -> Search:
    """Return the search that a YAML text describes.

    Args:
        text: The text.
        name: Path of its file, for messages.
        settings: As in `read_file`.
        given: Values that the caller has, by the names of `Search`'s arguments; the text must not have them.

    Raises:
        ValueError: The text describes no search.

    Example:
        >>> from optuna_nas.search.study_yaml import read_text
        >>> text = '''
        ... name: digits
        ... data: digits
        ... space: darts_space
        ... skeleton: {type: darts_search_skeleton, n_cells: 3, channels: 4}
        ... recipe: {epochs: 5, learning_rate: {type: suggest_float, low: 0.01, high: 0.2, log: true}}
        ... trials: 30
        ... '''
        >>> search = read_text(text, "study.yaml", ["trials=3"])
        >>> search.trials, search.space.skeleton.input_shape, search.recipe.epochs
        (3, (1, 8, 8), 5)
    """
    return _Builder(dict(given or {})).search(read_yaml(text, name, settings))


class _Builder:
    """Makes the objects that nodes describe.

    Args:
        given: Values that need not be made.
    """

    def __init__(self, given: dict[str, Any]) -> None:
        self._given = given
        self._known: dict[str, Any] = {}  # what constructors are passed without its being written
        self._made: dict[tuple[int, str], Any] = {}

    def search(self, root: MappingNode) -> Search:
        """Return the search of the whole file."""
        from optuna_nas.search.config import Search
        from optuna_nas.training.recipe import Recipe

        keys = entries(root)
        parameters = inspect.signature(Search).parameters
        _check_keys(keys, [*parameters, "skeleton", "seed"], "the file", "key")
        for name in self._given:
            if name in keys:
                fail(keys[name][0], f"`{name}` must be left out, since the program gives it")
        made = dict(self._given)
        for name, annotation in _FIRST.items():
            if name in keys:
                made[name] = self._value(keys[name][1], name, Expected(annotation))
            if name == "data" and made.get("data") is not None:
                shape, outputs = (getattr(made["data"], field, None) for field in ("input_shape", "outputs"))
                self._known |= {"input_shape": shape, "classes": outputs}
            if name in made:
                self._known[name] = made[name]
            self._known = {known: value for known, value in self._known.items() if value is not None}
        if "space" in keys:
            made["space"] = self._known["space"] = self._placed(made, keys)
        if "recipe" in keys:
            made["recipe"] = self._known["recipe"] = self._value(keys["recipe"][1], "recipe", Expected("Recipe"))
        elif "seed" in self._known:
            seed = self._known["seed"]
            made["recipe"] = self._known["recipe"] = _attempt(lambda: Recipe(seed=seed), "Recipe", root, "")
        made = {name: value for name, value in made.items() if name in parameters}
        return self._call(Search, "Search", root, "", made)  # type: ignore[no-any-return]

    def _placed(self, made: Mapping[str, Any], keys: Mapping[str, tuple[Node, Node]]) -> Any:
        """Return the space, cells in their skeleton."""
        from optuna_nas.networks import NetworkSpace
        from optuna_nas.space import ModelSpace

        space, skeleton = made["space"], made.get("skeleton")
        if isinstance(space, ModelSpace):
            if skeleton is not None:
                fail(keys["skeleton"][0], "`skeleton` must be left out where `space` has one, or needs none")
            return space
        if skeleton is None:
            if made.get("data") is not None and "objective" not in {*keys, *made}:
                fail(keys["space"][0], "`skeleton` must say what cells are placed into; add a `skeleton` with a type")
            return space
        return _attempt(lambda: NetworkSpace(space, skeleton), "NetworkSpace", keys["skeleton"][1], "skeleton")

    def _value(self, node: Node, path: str, expected: Expected, searched: bool = False) -> Any:
        """Return what a node describes.

        Args:
            node: The node.
            path: Where it is, for messages.
            expected: What is taken there.
            searched: Whether it may be a suggestion.
        """
        types = expected.types
        if isinstance(node, ScalarNode):
            value = scalar(node)
            if isinstance(value, str) and types and not expected.takes(value):
                return self._object(node, path, value, types, node)
            if expected.takes(value):
                return value
            if expected.takes("") and isinstance(value, int | float):  # `name: 2026`
                return node.value
            return fail(node, f"`{path}` must be {expected.says} but is {quoted(value)}")
        if isinstance(node, SequenceNode):
            word = expected.one_of(LISTS)
            if word is None:
                fail(node, f"`{path}` must be {expected.says} but is a list")
            items = expected.items(word)
            values = [self._value(child, f"{path}[{i}]", items) for i, child in enumerate(node.value)]
            return tuple(values) if word == "tuple" else values
        keys = entries(node)
        if "type" in keys:
            named = keys["type"][1]
            name = scalar(named) if isinstance(named, ScalarNode) else None
            if not isinstance(name, str):
                fail(named, f"`{path}.type` must be a name but is {described(named)}")
            return self._object(node, path, name, (*types, *(SUGGESTIONS if searched else ())), named)
        word = expected.one_of(MAPPINGS)
        if word is not None:
            items = expected.items(word)
            return {
                key: self._value(child, f"{path}.{without_password(key)}", items) for key, (_, child) in keys.items()
            }
        if len(types) == 1:
            return self._object(node, path, types[0], types, node)
        says = f"name its `type`, one of {', '.join(types)}" if types else f"be {expected.says} but is a mapping"
        return fail(node, f"`{path}` must {says}")

    def _object(self, node: Node, path: str, name: str, types: tuple[str, ...], named: Node) -> Any:
        """Return the object of a type, the same one for every alias of its anchor."""
        own = registered()
        if name not in types and name not in own:
            known = [*types, *own]
            if not known:
                only = "; only fields of `recipe` and `task` can be searched" if name in SUGGESTIONS else ""
                fail(named, f"`{path}` must be a plain value but is of the type {quoted(name)}{only}")
            way = similar(name, known) or f"; known: {', '.join(known)}"
            fail(named, f"`{path}` must be of a known type but is of {quoted(name)}{way}")
        if (id(node), name) not in self._made:
            make = own[name] if name in own else built_in()[name]
            self._made[id(node), name] = self._call(make, name, node, path)
        return self._made[id(node), name]

    def _call(
        self, make: Callable[..., Any], name: str, node: Node, path: str, made: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a constructor with the arguments of a node, what is made already, and what is passed along."""
        keys = entries(node) if isinstance(node, MappingNode) else {}
        keys.pop("type", None)
        parameters = inspect.signature(make).parameters
        arguments = dict(made or {})
        if made is None and not any(p.kind == p.VAR_KEYWORD for p in parameters.values()):
            _check_keys(keys, list(parameters), f"`{path}`", "field")
        for key, (_, child) in keys.items():
            if key not in arguments and (key in parameters or made is None):
                expected = Expected.of(parameters[key]) if key in parameters else Expected("")
                arguments[key] = self._value(
                    child, f"{path}.{without_password(key)}" if path else key, expected, name in SEARCHED
                )
        for key, parameter in parameters.items():
            if made is None and key not in arguments and self._passes(key, parameter, arguments):
                arguments[key] = self._known[key]
            several = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if parameter.default is parameter.empty and not several and key not in arguments:
                fail(node, f"{f'`{path}`' if path else 'the file'} must have `{key}`; add it")
        return _attempt(lambda: make(**arguments), name, node, path)

    def _passes(self, key: str, parameter: inspect.Parameter, arguments: Mapping[str, Any]) -> bool:
        """Return whether an argument that is not written is that of the study."""
        if key not in _PASSED_ALONG or key not in self._known:
            return False
        if parameter.default is parameter.empty or key in ("seed", "task", "input_shape", "classes"):
            return True
        if key == "recipe":  # those of one-shot models are others
            return bool(parameter.annotation == "Recipe")
        return bool(("model" in arguments) == (key == "data"))  # a model has a space, and data train it


def _check_keys(keys: Mapping[str, tuple[Node, Node]], known: list[str], where: str, kind: str) -> None:
    for name, (key, _) in keys.items():
        if name not in known:
            way = similar(name, known) or f"; it has {', '.join(known) or 'none'}"
            fail(key, f"{where} has no {kind} {quoted(name)}{way}")


def _attempt(make: Callable[[], Any], name: str, node: Node, path: str) -> Any:
    """Return what a function makes; its errors become one sentence with the place."""
    try:
        return make()
    except ValueError as error:
        message = " ".join(str(error).split())
    except Exception as error:  # whatever a constructor meets in values that nobody foresaw
        message = f"{name} can't be made: {type(error).__name__}: {' '.join(str(error).split())}"
    keys = entries(node) if isinstance(node, MappingNode) else {}
    blamed = message.split("`")[1] if message.startswith("`") else ""
    at = keys[blamed][0] if blamed in keys else node
    within = f"in `{path}`, " if path else ""
    raise ValueError(f"{place(at)}: {within}{message}")

"""YAML read with limits, into nodes that know their line. Nothing in a file can run code or name a Python object.

Values are those of YAML 1.2's core schema, in which `1e-3` is a number and `no` a text; PyYAML reads YAML 1.1.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NoReturn

import yaml
from yaml import MappingNode, Node, ScalarNode, SequenceNode

from optuna_nas.space.reading import MAX_NUMBER
from optuna_nas.storage.secrets import quoted, without_password

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_CHARACTERS, MAX_DEPTH, MAX_ITEMS = 100_000, 16, 10_000
"""Limits of a file: its characters, the levels of its lists and mappings, its values with every alias written out."""
SETTING = "`--set "
_TEXT, _MAPPING, _SEQUENCE = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "map", "seq"))
_WORDS = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip
_INTEGER = re.compile(r"[-+]?[0-9]+")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|nan)", re.IGNORECASE)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no annotations
    """PyYAML's safe loader, stopped at a depth; words stay texts until `scalar` reads them."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's name
    depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(None, None, _TOO_DEEP, self.peek_event().start_mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


_TOO_DEEP = f"has more than {MAX_DEPTH} levels of lists and mappings; write it flatter"


def read_yaml(text: str, name: str, settings: Iterable[str] = ()) -> MappingNode:
    """Return the mapping that a text consists of.

    Args:
        text: YAML.
        name: Path of the file, for messages.
        settings: Values that replace some of the text's, as `a.b=VALUE`; the value is YAML, too.

    Raises:
        ValueError: The text is no YAML, too large or deep, has duplicate keys or tags, or is no mapping; or a setting
            has another form.

    Example:
        >>> from optuna_nas.search.yaml_reading import entries, plain_value, read_yaml
        >>> root = read_yaml("recipe: {epochs: 5}", "study.yaml", ["recipe.learning_rate=1e-3"])
        >>> plain_value(root)
        {'recipe': {'epochs': 5, 'learning_rate': 0.001}}
    """
    root = _compose(text, name)
    if root is None or (isinstance(root, ScalarNode) and scalar(root) is None):
        raise ValueError(f"{name} is empty; write at least `name` and `space`, or let `optuna-nas init` write it.")
    if not isinstance(root, MappingNode):
        fail(root, f"the file must be a mapping, with lines such as `name: digits`, but is {described(root)}")
    for setting in settings:
        _replace(root, setting)
    _check(root, "", {}, set())
    return root


def place(node: Node) -> str:
    """Return where a node is written: file and line, or the setting that gave it."""
    mark = node.start_mark
    return mark.name if mark.name.startswith(SETTING) else f"{mark.name}, line {mark.line + 1}"


def fail(node: Node, sentence: str) -> NoReturn:
    """Raise a ValueError that names the place of a node."""
    raise ValueError(f"{place(node)}: {sentence}{'' if sentence.endswith('?') else '.'}")


def described(node: Node) -> str:
    """Return what a node is, for messages."""
    if isinstance(node, ScalarNode):
        return quoted(scalar(node))
    return "a mapping" if isinstance(node, MappingNode) else "a list"


def entries(node: MappingNode) -> dict[str, tuple[Node, Node]]:
    """Return key and value of a mapping by the text of the key."""
    return {key.value: (key, value) for key, value in node.value}


def scalar(node: ScalarNode) -> Any:
    """Return the text, number, truth value or None of a node.

    Raises:
        ValueError: A number is too large, or not finite.
    """
    text = node.value
    if node.style is not None:  # in quotes
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _NUMBER.fullmatch(text):
        number = float(text)
        if not abs(number) <= MAX_NUMBER:
            fail(node, f"a number must be at most {MAX_NUMBER:g} but is {text[:20]}")
        return int(text) if _INTEGER.fullmatch(text) else number
    if _NOT_FINITE.fullmatch(text):
        fail(node, f"a number must be finite but is {text}; leave it out for no limit")
    return text


def plain_value(node: Node) -> Any:
    """Return lists, dictionaries, texts and numbers of a node."""
    if isinstance(node, MappingNode):
        return {key: plain_value(value) for key, (_, value) in entries(node).items()}
    return [plain_value(child) for child in node.value] if isinstance(node, SequenceNode) else scalar(node)


def _compose(text: str, name: str) -> Node | None:
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{name} must be of at most {MAX_CHARACTERS:,} characters but has {len(text):,}; shorten it.")
    loader = None
    try:
        loader = _Loader(text)
        loader.name = name
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}, line {mark.line + 1}" if mark and not name.startswith(SETTING) else name
        problem = str(error.problem)
        if r"'\t'" in problem:
            problem = "a tab can't indent; use spaces"
        elif problem != _TOO_DEEP:
            problem = f"must be YAML but {' '.join(filter(None, (error.context, problem)))}"
        raise ValueError(f"{where}: {problem}.") from None
    except yaml.YAMLError as error:
        character = getattr(error, "character", None)
        raise ValueError(f"{name} must be text but has the character {character!r}; remove it.") from None
    finally:
        if loader is not None:
            loader.dispose()


def _check(node: Node, path: str, sizes: dict[int, tuple[int, int]], open_nodes: set[int]) -> tuple[int, int]:
    """Return the number of values and levels of a node; aliases count as if they were written out."""
    if id(node) in sizes:
        return sizes[id(node)]
    if id(node) in open_nodes:
        fail(node, f"`{path}` must not contain itself; remove the alias")
    if node.tag not in (_TEXT, _MAPPING, _SEQUENCE):
        fail(node, f"a value must have no tag but has {quoted(node.tag)}; name what is made by `type`")
    open_nodes.add(id(node))
    size, depth = 1, 1
    if isinstance(node, MappingNode):
        _check_keys(node, path)
    for child in [value for _, value in node.value] if isinstance(node, MappingNode) else _items(node):
        inner_size, inner_depth = _check(child, path or "the file", sizes, open_nodes)
        size, depth = size + inner_size, max(depth, 1 + inner_depth)
    open_nodes.remove(id(node))
    if size > MAX_ITEMS:
        fail(node, f"a file must be of at most {MAX_ITEMS:,} values, with aliases written out; shorten it")
    if depth > MAX_DEPTH:
        fail(node, f"the file {_TOO_DEEP}")
    sizes[id(node)] = size, depth
    return size, depth


def _items(node: Node) -> list[Node]:
    return list(node.value) if isinstance(node, SequenceNode) else []


def _check_keys(node: MappingNode, path: str) -> None:
    seen: dict[str, Node] = {}
    for key, _ in node.value:
        if not isinstance(key, ScalarNode) or key.tag != _TEXT:
            fail(key, "a key must be a plain word")
        if key.value == "<<" and key.style is None:
            fail(key, "`<<` is not read; write the keys out, or name one value twice by an alias")
        if key.value in seen:
            first = seen[key.value].start_mark.line + 1
            fail(key, f"the key {quoted(key.value)} is there twice, first in line {first}; remove one")
        seen[key.value] = key


def _replace(root: MappingNode, setting: str) -> None:
    """Put the value of `a.b=VALUE` in place of that of a mapping, or into it; words between are made if necessary."""
    path, separator, text = setting.partition("=")
    words = path.split(".")
    if not separator or not all(words) or path != without_password(path):
        raise ValueError(f"`--set` must be NAME=VALUE, such as recipe.epochs=5, but got {quoted(setting)}.")
    name = f"{SETTING}{path}`"
    key = ScalarNode(_TEXT, words[0], *[yaml.Mark(name, 0, 0, 0, None, None)] * 2)
    value = _compose(text, name) or ScalarNode(_TEXT, "", key.start_mark, key.end_mark)
    if path == "name":  # another name goes with a folder of its own
        root.value = [pair for pair in root.value if pair[0].value != "folder"]
    node: Node = root
    for depth, word in enumerate(words):
        last = depth == len(words) - 1
        if isinstance(node, SequenceNode):
            if not word.isdecimal() or not word.isascii() or len(word) > 9 or int(word) >= len(node.value):
                fail(key, f"{word!r} must be the position of an item, of 0 to {len(node.value) - 1}")
            if last:
                node.value[int(word)] = value
            node = node.value[int(word)]
            continue
        if not isinstance(node, MappingNode):
            fail(key, f"{'.'.join(words[:depth])!r} must be a mapping but is {described(node)}")
        found = [number for number, (other, _) in enumerate(node.value) if other.value == word]
        word_key = ScalarNode(_TEXT, word, key.start_mark, key.end_mark)
        child = value if last else node.value[found[0]][1] if found else _mapping(key)
        if isinstance(child, ScalarNode) and not last and isinstance(scalar(child), str | None):
            child = _mapping(key, child)
        if found:
            node.value[found[0]] = word_key if last else node.value[found[0]][0], child
        else:
            node.value.append((word_key, child))
        node = child


def _mapping(key: ScalarNode, short: ScalarNode | None = None) -> MappingNode:
    """Return a mapping for more keys: empty, or of the `type` that a single word stands for."""
    pairs = [] if short is None or scalar(short) is None else [(ScalarNode(_TEXT, "type", key.start_mark), short)]
    return MappingNode(_MAPPING, pairs, key.start_mark, key.end_mark)

"""What an argument takes, read from its annotation, for values that come from a file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from optuna_nas.search.study_types import types_for

if TYPE_CHECKING:
    import inspect

LISTS, MAPPINGS = ("tuple", "Sequence", "list"), ("Mapping", "dict")
SHORT = {"Shape": "tuple[int, ...]", "Path": "str"}
SAYS = {
    "int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false", "None": "null",
    **dict.fromkeys(LISTS, "a list"), **dict.fromkeys(MAPPINGS, "a mapping"),
}  # fmt: skip


@dataclass(frozen=True)
class Expected:
    """What an argument takes: alternatives such as `int`, `tuple`, `None` and classes, each with what is in brackets.

    Args:
        annotation: Text of the annotation; empty for anything.

    Example:
        >>> from optuna_nas.search.expected import Expected
        >>> expected = Expected("tuple[int, ...] | None")
        >>> expected.takes(None), expected.takes(3), expected.items("tuple").takes(3), expected.says
        (True, False, True, 'a list or null')
    """

    annotation: str

    @staticmethod
    def of(parameter: inspect.Parameter) -> Expected:
        """Return what a parameter takes."""
        annotation = parameter.annotation
        if annotation is parameter.empty:
            return Expected("")
        forward = getattr(annotation, "__forward_arg__", None)
        return Expected(forward or (annotation if isinstance(annotation, str) else annotation.__name__))

    @cached_property
    def alternatives(self) -> dict[str, str]:
        """What is in brackets, by the word before them."""
        found = {}
        for part in _split(self.annotation or "Any", "|"):
            word, _, inner = SHORT.get(part, part).partition("[")
            found["Any" if word == "object" else word.rpartition(".")[2]] = inner.removesuffix("]")
        return found

    @property
    def types(self) -> tuple[str, ...]:
        """Names of types whose values it takes."""
        return types_for(self.alternatives)

    def items(self, word: str) -> Expected:
        """Return what the items of a list take, or the values of a mapping.

        Args:
            word: One of the alternatives, or `Any`.
        """
        parts = _split(self.alternatives[word], ",")
        return Expected(parts[-1] if word in MAPPINGS else parts[0])

    def takes(self, value: Any) -> bool:
        """Return whether it takes a text, a number, a truth value or None."""
        words = self.alternatives.keys()
        kind = type(value).__name__.replace("NoneType", "None")
        return "Any" in words or kind in words or (kind == "int" and "float" in words)

    def one_of(self, words: tuple[str, ...]) -> str | None:
        """Return the alternative that is one of several words, None without one."""
        return next((word for word in (*words, "Any") if word in self.alternatives), None)

    @property
    def says(self) -> str:
        """What it takes, for messages."""
        said = [SAYS[word] for word in self.alternatives if word in SAYS]
        types = self.types
        if types:
            said.insert(0, f"of a type such as {types[0]}")
        if not said or said == ["null"]:
            return "left out, since only Python can give it,"
        return " or ".join(dict.fromkeys(said))


def _split(text: str, separator: str) -> list[str]:
    """Return the parts of a text between separators that are in no brackets."""
    parts, depth = [""], 0
    for character in re.sub(r"\s", "", text):
        depth += (character == "[") - (character == "]")
        if character == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts

"""What the reference needs to know of our docstrings: examples are code, and a named tuple has arguments."""

from __future__ import annotations

import re
from typing import Any

from griffe import Attribute, Class, Extension, Function, Object, Parameter, ParameterKind, Parameters


class OurDocstrings(Extension):
    """Show examples as code, and the fields of a `NamedTuple` as arguments of its constructor."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Name the section of examples as Griffe does; an `Example:` is a box of prose to it."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)

    def on_class(self, *, cls: Class, **kwargs: Any) -> None:
        """Give a named tuple the constructor that Python makes of its fields, as Griffe does for dataclasses."""
        if not any(str(base).endswith("NamedTuple") for base in cls.bases) or "__init__" in cls.members:
            return
        kind = ParameterKind.positional_or_keyword
        fields = [
            Parameter(name, annotation=member.annotation, kind=kind, default=member.value)
            for name, member in cls.members.items()
            if isinstance(member, Attribute) and member.annotation is not None
        ]
        cls.set_member("__init__", Function("__init__", parameters=Parameters(Parameter("self"), *fields)))

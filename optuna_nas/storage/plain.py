"""Texts of others, such as names and reasons in a study, made harmless for terminals, pages, plots and MLflow."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_MARKS = re.compile(r"[\\`|~\[\]]")
MAX_LABEL, MAX_TEXT = 50, 300
"""Largest number of characters of a text in a plot, and in a table: enough for DARTS' cells and for blocks."""


def visible(text: str) -> str:
    r"""Return a text whose control characters are written out, so that a terminal does not obey them.

    Line breaks and tabs stay. Characters that turn the direction of writing count as control characters, and so do
    halves of characters, which no file can hold.

    Example:
        >>> from optuna_nas.storage.plain import visible
        >>> print(visible("a\x1b[31mb"))
        a\x1b[31mb
    """
    return _CONTROLS.sub(lambda found: repr(found.group())[1:-1], text)


def json_text(value: Any, *, indent: int | None = None, spells: bool = False) -> str:
    """Return a value as JSON, which has no infinite numbers and no NaN: they are null, or spelt where people read it.

    Args:
        value: Containers, texts and numbers; others as text.
        indent: Spaces of a level, on lines of their own; None for one line.
        spells: Whether to write `"inf"` and the like in place of null.

    Example:
        >>> from optuna_nas.storage.plain import json_text
        >>> json_text({"loss": float("inf")}), json_text([float("-inf"), 1.5], spells=True)
        ('{"loss": null}', '["-inf", 1.5]')
    """

    def finite(value: Any) -> Any:
        if isinstance(value, float):
            return value if math.isfinite(value) else str(float(value)) if spells else None
        if isinstance(value, dict):
            return {str(key): finite(one) for key, one in value.items()}
        return [finite(one) for one in value] if isinstance(value, list | tuple) else value

    return json.dumps(finite(value), indent=indent, allow_nan=False, default=str)


def without_tags(text: str) -> str:
    """Return a text for Markdown in which nothing is HTML.

    Example:
        >>> from optuna_nas.storage.plain import without_tags
        >>> without_tags("<b>1 & 2</b>")
        '&lt;b&gt;1 & 2&lt;/b&gt;'
    """
    return visible(text).replace("<", "&lt;").replace(">", "&gt;")


def markdown_text(text: str) -> str:
    r"""Return a text for a paragraph in Markdown, without tags, links, pictures or code; its lines stay.

    Example:
        >>> from optuna_nas.storage.plain import markdown_text
        >>> print(markdown_text("![a](http://b)"))
        !\[a\](http://b)
    """
    return _MARKS.sub(r"\\\g<0>", without_tags(text))


def markdown_cell(text: str) -> str:
    r"""Return a text for a heading or a cell of a table in Markdown: one line, without tags, links, code or columns.

    Example:
        >>> from optuna_nas.storage.plain import markdown_cell
        >>> print(markdown_cell("a|b [c](d)"))
        a\|b \[c\](d)
    """
    return markdown_text(" ".join(text.split()))


def markdown_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], numbers: Collection[str] = frozenset()
) -> str:
    r"""Return a table in Markdown, whose headings and cells are made harmless by `markdown_cell`.

    Args:
        headings: Headings of the columns.
        rows: Texts of the cells.
        numbers: Headings of the columns that are aligned on the right.

    Example:
        >>> from optuna_nas.storage.plain import markdown_table
        >>> print(markdown_table(["name", "value"], [["a|b", "1"]], {"value"}))
        | name | value |
        | --- | ---: |
        | a\|b | 1 |
    """
    rule = ["---:" if heading in numbers else "---" for heading in headings]
    first, *others = (list(map(markdown_cell, row)) for row in (headings, *rows))
    return "\n".join(f"| {' | '.join(line)} |" for line in (first, rule, *others))


def code_block(text: str) -> str:
    """Return a block of code in Markdown that a text can't end.

    Example:
        >>> from optuna_nas.storage.plain import code_block
        >>> code_block("optuna-nas run study.py").splitlines()
        ['```', 'optuna-nas run study.py', '```']
    """
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{visible(text)}\n{fence}"


def label(text: str, parse_math: bool = True) -> str:
    r"""Return a text for a plot: one line, in which matplotlib takes no dollar for the beginning of a formula.

    Args:
        text: Any text.
        parse_math: Whether it is drawn where matplotlib looks for formulas, by its argument of this name.

    Example:
        >>> from optuna_nas.storage.plain import label
        >>> print(label("$5 or $6"))
        \$5 or \$6
    """
    line = shortened(visible(" ".join(text.split())), MAX_LABEL)
    return line.replace("$", r"\$") if parse_math else line


def shortened(text: str, most: int = MAX_TEXT) -> str:
    """Return a text, cut off with dots if it is long.

    Example:
        >>> from optuna_nas.storage.plain import shortened
        >>> len(shortened("a" * 10_000))
        300
    """
    return text if len(text) <= most else text[: most - 4] + " ..."

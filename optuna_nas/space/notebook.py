"""HTML of tables in notebooks: everything is escaped, and takes its colours from the page, light or dark."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

from optuna_nas.space.reading import brief

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_ROWS = 60
"""Largest number of rows of a table."""
_TABLE = "border-collapse:collapse; color:inherit; font-size:inherit"
_NUMBER = re.compile(r"-?[0-9][0-9.,]*")
_CELL = "border:0; border-bottom:1px solid rgba(128,128,128,.4); background:none; color:inherit; padding:2px 10px 2px 0"


def html_text(text: object) -> str:
    """Return a text for HTML, on one line, in which nothing has an effect.

    Example:
        >>> from optuna_nas.space.notebook import html_text
        >>> html_text("<b>bold</b>")
        '&lt;b&gt;bold&lt;/b&gt;'
    """
    return html.escape(brief(str(text)))


def html_table(
    title: str, headings: Sequence[str], rows: Iterable[Sequence[object]], indents: Sequence[int] = ()
) -> str:
    """Return a table with a title; numbers are on the right.

    Args:
        title: Line above the table.
        headings: Headings of the columns; none leave out the line of headings.
        rows: Values of the cells. Those after the first 60 are only counted.
        indents: Levels by which the first cells of the rows are indented; by default 0.

    Example:
        >>> from optuna_nas.space.notebook import html_table
        >>> html_table("Two", ["name"], [["<a>"], ["b"]]).count("&lt;a&gt;")
        1
    """
    rows = list(rows)
    lines = [f"<p style='margin:4px 0'><b>{html_text(title)}</b></p>", f"<table style='{_TABLE}'>"]
    if headings:
        cells = "".join(f"<th style='{_CELL}; text-align:left'>{html_text(heading)}</th>" for heading in headings)
        lines.append(f"<thead><tr>{cells}</tr></thead>")
    for number, row in enumerate(rows[:MAX_ROWS]):
        indent = f"; padding-left:{1.5 * indents[number]:g}em" if number < len(indents) and indents[number] else ""
        cells = "".join(
            f"<td style='{_CELL}; text-align:{'right' if _NUMBER.fullmatch(str(value)) else 'left'}"
            f"{indent if place == 0 else ''}'>{html_text(value)}</td>"
            for place, value in enumerate(row)
        )
        lines.append(f"<tr>{cells}</tr>")
    lines.append("</table>")
    if len(rows) > MAX_ROWS:
        lines.append(f"<p>and {len(rows) - MAX_ROWS:,} more</p>")
    return "\n".join(lines)

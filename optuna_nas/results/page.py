"""Pages of sections of texts, tables and pictures: a self-contained HTML page, and the same as Markdown."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING, NamedTuple

from optuna_nas.storage.plain import code_block, markdown_cell, markdown_table, markdown_text, visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

DOTS = 192
"""Dots per inch of pictures: two for every pixel of a screen, so that labels stay sharp on phones and paper."""
STYLE = """
:root { color-scheme: light dark; --ink: #222; --soft: #595959; --paper: #fff; --line: #ddd; --code: #f4f4f4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e4e4; --soft: #a9a9a9; --paper: #17191c; --line: #3c4046;
  --code: #24272c; } img { filter: brightness(.9); } }
body { font: 1rem/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
  margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid var(--line); }
p { white-space: pre-line; overflow-wrap: anywhere; } pre { background: var(--code); padding: .6rem; overflow-x: auto; }
figure { margin: 1rem 0; } figcaption { color: var(--soft); font-size: .85rem; overflow-wrap: anywhere; }
.picture, .table { overflow-x: auto; } img { display: block; background: #fff; border-radius: 4px; }
table { border-collapse: collapse; font-size: .85rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .6rem; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; min-width: 5rem; }
.wide td:last-child { min-width: 16rem; }
th { border-bottom-width: 2px; }
.number { text-align: right; overflow-wrap: normal; min-width: 0; font-variant-numeric: tabular-nums; }
@media screen and (min-width: 40.01rem) { img { max-width: 100%; height: auto; } }
@media screen and (max-width: 40rem) {
  .wide { display: grid; grid-template-columns: repeat(var(--columns), auto); }
  .wide :is(thead, tbody, tr) { display: grid; grid-template-columns: subgrid; grid-column: 1 / -1; }
  .wide :is(th, td) { padding: .2rem; border: 0; min-width: min-content; font-size: .75rem; }
  .wide th { font-size: .68rem; hyphens: auto; }
  .wide :is(th, td):last-child { grid-column: 1 / -1; border-bottom: 1px solid var(--line); }
}
@media print {
  :root { font-size: 11px; --ink: #000; --soft: #444; --paper: #fff; --line: #bbb; --code: #f4f4f4; }
  body { max-width: none; padding: 0; } .picture, .table { overflow: visible; } pre { white-space: pre-wrap; }
  img { max-width: 100%; max-height: 24cm; height: auto; object-fit: contain; object-position: left; filter: none; }
  h1, h2, thead { break-after: avoid; }
  figure, tr, p, pre { break-inside: avoid; } p:has(+ .table, + figure), pre:has(+ .table) { break-after: avoid; }
  tbody tr:nth-child(-n+2) { break-after: avoid; } tbody tr:nth-last-child(-n+3) { break-before: avoid; }
  .wide td:last-child { width: 60%; }
}
"""
"""Wide tables have, on a phone, their last column below the others; pictures, always on white paper, keep their size
there and are moved sideways. On paper the last four rows of a table stay together."""
WIDE = 5
"""Smallest number of columns of a wide table."""


class Text(NamedTuple):
    """Paragraph.

    Args:
        text: Text.
        code: Whether it is shown as code.
    """

    text: str
    code: bool = False


class Table(NamedTuple):
    """Table.

    Args:
        headings: Headings of the columns; empty strings for no headings.
        rows: Rows of texts.
        numbers: Headings of the columns with numbers.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[str] = frozenset()


class Picture(NamedTuple):
    """Picture.

    Args:
        name: Name of the file without suffix.
        shows: Description in words.
        png: Content of the PNG file.
        width: Width on a screen in pixels.
    """

    name: str
    shows: str
    png: bytes
    width: int

    @classmethod
    def of(cls, name: str, shows: str, figure: Figure) -> Picture:
        """Return the picture of a figure of matplotlib."""
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=DOTS)
        return cls(name, shows, file.getvalue(), round(96 * figure.get_figwidth()))


Block = Text | Table | Picture


class Section(NamedTuple):
    """Section with its heading."""

    title: str
    blocks: Sequence[Block]


def as_html(title: str, sections: Sequence[Section]) -> str:
    """Return a report as one HTML page with embedded pictures."""
    body = [f"<h1>{_escaped(title)}</h1>"]
    for section in sections:
        body.append(f"<section><h2>{_escaped(section.title)}</h2>")
        for block in section.blocks:
            if isinstance(block, Text):
                tag = "pre" if block.code else "p"
                body.append(f"<{tag}>{_escaped(block.text)}</{tag}>")
            elif isinstance(block, Picture):
                data, shows = base64.b64encode(block.png).decode(), _escaped(block.shows)
                caption = f"<figcaption>{shows}</figcaption>"
                image = f'<img src="data:image/png;base64,{data}" alt="{shows}" width="{block.width}">'
                body.append(f'<figure><div class="picture">{image}</div>{caption}</figure>')
            else:
                body.append(_html_table(block))
        body.append("</section>")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{_escaped(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _escaped(text: str) -> str:
    return html.escape(visible(text))


def _html_table(table: Table) -> str:
    classes = [' class="number"' if heading in table.numbers else "" for heading in table.headings]
    head = "".join(f"<th{c}>{_escaped(h)}</th>" for h, c in zip(table.headings, classes, strict=True))
    rows = [
        "<tr>" + "".join(f"<td{c}>{_escaped(cell)}</td>" for cell, c in zip(row, classes, strict=True)) + "</tr>"
        for row in table.rows
    ]
    shown = f"<thead><tr>{head}</tr></thead>" if any(table.headings) else ""
    n_columns = len(table.headings)
    look = f' class="wide" style="--columns: {n_columns - 1}"' if n_columns >= WIDE else ""
    return f'<div class="table"><table{look}>{shown}<tbody>{"".join(rows)}</tbody></table></div>'


def as_markdown(title: str, sections: Sequence[Section]) -> str:
    """Return a report as Markdown, with references to picture files in the same folder."""
    parts = [f"# {markdown_cell(title)}"]
    for section in sections:
        parts.append(f"## {markdown_cell(section.title)}")
        for block in section.blocks:
            if isinstance(block, Text):
                parts.append(code_block(block.text) if block.code else markdown_text(block.text))
            elif isinstance(block, Picture):
                parts.append(f"![{markdown_cell(block.shows)}]({block.name}.png)")
            else:
                parts.append(markdown_table(block.headings, block.rows, block.numbers))
    return "\n\n".join(parts) + "\n"

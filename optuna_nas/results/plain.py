"""Texts of others, such as names and reasons in a study, made harmless for terminals and pages."""

from __future__ import annotations

import re

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    r"""Return a text whose control characters are written out, so that a terminal does not obey them.

    Line breaks and tabs stay. Characters that turn the direction of writing count as control characters.

    Example:
        >>> from optuna_nas.results.plain import visible
        >>> print(visible("a\x1b[31mb"))
        a\x1b[31mb
    """
    return _CONTROLS.sub(lambda found: repr(found.group())[1:-1], text)


def without_tags(text: str) -> str:
    """Return a text for Markdown in which nothing is HTML.

    Example:
        >>> from optuna_nas.results.plain import without_tags
        >>> without_tags("<b>1 & 2</b>")
        '&lt;b&gt;1 & 2&lt;/b&gt;'
    """
    return visible(text).replace("<", "&lt;").replace(">", "&gt;")

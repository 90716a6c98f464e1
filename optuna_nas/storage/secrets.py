"""What messages show of addresses and of other values that a user gave: no passwords, also where they are mistyped."""

from __future__ import annotations

import re

MIN_SECRET = 2
"""Characters of a piece of a URL from which on it is taken out of messages."""
_VALUES = re.compile(r"((?:^|[?&;\s])\w*(?:pass|pwd|secret|token)\w*=)[^&\s]+", re.IGNORECASE)
"""Names, as those of a URL's query, whose values are secret."""


def quoted(value: object) -> str:
    """Return a value that a user gave as Python writes it, a text without what may be a password.

    Example:
        >>> from optuna_nas.storage.secrets import quoted
        >>> quoted("storage=postgresql://me:secret@host/studies"), quoted(3)
        ("'storage=postgresql://host/studies'", '3')
    """
    return repr(without_password(value) if isinstance(value, str) else value)


def without_password(text: str) -> str:
    """Return a URL without user name, password and query, and other texts with stars for what may be a password.

    All up to the last `@` counts as user name and password, which may have characters that should be escaped.

    Example:
        >>> from optuna_nas.storage.secrets import without_password
        >>> without_password("postgresql://me:se@cr/et@host/studies?password=x")
        'postgresql://host/studies'
        >>> without_password("sqlite:///runs/a@b.db")
        'sqlite:///runs/a@b.db'
        >>> without_password("postgresql://me:se?cret@host/studies")
        'postgresql://host/studies'
        >>> without_password("me:secret@host/studies"), without_password("postgresql:/me:secret@host/studies")
        ('me:***@host/studies', 'postgresql:***@host/studies')
        >>> without_password("me@host")
        'me@host'
    """
    scheme, _, rest = login_of(text)
    return scheme + rest.partition("?")[0] if scheme else with_stars(text)


def with_stars(text: str) -> str:
    """Return a URL with stars in place of its password, and of one in its query, for commands to copy.

    Example:
        >>> from optuna_nas.storage.secrets import with_stars
        >>> with_stars("postgresql://me:secret@host/studies?sslmode=require&password=secret")
        'postgresql://me:***@host/studies?sslmode=require&password=***'
    """
    scheme, login, rest = login_of(text)
    user, colon, _ = login.partition(":")
    shown = f"{user}:***@" if colon else f"{user}@" if login else ""
    return scheme + _VALUES.sub(r"\1***", shown + rest)


def holds_secret(address: str) -> bool:
    """Return whether an address has what may be a password or token, so that nothing may keep or show it as it is.

    Example:
        >>> from optuna_nas.storage.secrets import holds_secret
        >>> [holds_secret(one) for one in ("https://token@host", "http://host:5000", "sqlite:///mlflow.db?timeout=9")]
        [True, False, False]
    """
    return (with_stars(address) if address.startswith("sqlite") else without_password(address)) != address


def login_of(text: str) -> tuple[str, str, str]:
    """Return scheme, user name with password, and what follows their `@`; without a scheme, it is empty.

    Example:
        >>> from optuna_nas.storage.secrets import login_of
        >>> login_of("postgresql://me:secret@host/studies")
        ('postgresql://', 'me:secret', 'host/studies')
    """
    scheme, separator, rest = text.partition("://")
    if not separator or re.search(":.*@", scheme, re.DOTALL):
        scheme, separator, rest = "", "", text
    before = rest.partition("?")[0]
    # A password may have a ?; what follows one is a query where a path stands before it.
    login = (before if separator and "/" in before.rpartition("@")[2] else rest).rpartition("@")[0]
    is_file = rest.startswith("/") and (":" not in login or re.search(r"\b(sqlite|file)", scheme))
    if separator and is_file:
        login = ""
    return scheme + separator, login, rest[len(login) + 1 :] if login else rest


def without_secrets(text: str, uri: str) -> str:
    """Return a message without the parts of a URL that may be secret: what a driver says of a password in pieces.

    Example:
        >>> from optuna_nas.storage.secrets import without_secrets
        >>> without_secrets("could not find host 'cret@host'", "postgresql://me:se@cret@host/studies")
        "could not find host '***'"
    """
    _, login, after = login_of(uri)
    given, query = login.partition(":")[2], after.partition("?")[2]
    values = [value for _, _, value in (part.partition("=") for part in query.split("&")) if value]
    for piece in [given, *re.split(r"[@:/]", given), *values]:
        if len(piece) >= MIN_SECRET:
            text = re.sub(rf"(?<!\w){re.escape(piece)}(?!\w)(@[^\s'\"]*)?", "***", text)
    return text

"""Names and texts as MLflow takes them."""

from __future__ import annotations

import json
import re
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAX_KEY_CHARACTERS = 250
MAX_PARAM_CHARACTERS, MAX_TAG_CHARACTERS = 6000, 8000


def mlflow_keys(names: Iterable[str]) -> dict[str, str]:
    """Return for each name a key that MLflow accepts; different names get different keys.

    A name that MLflow accepts stays as it is. What is forbidden or too long is spelt with underscores and a digest of
    the name.

    >>> mlflow_keys(["normal_0_2", "rate[0]"])
    {'normal_0_2': 'normal_0_2', 'rate[0]': 'rate_0_.45a43b9c'}
    """
    ordered = sorted(set(names))
    keys = {name: name for name in ordered if is_mlflow_key(name)}
    for name in ordered:
        if name not in keys:
            spelt = re.sub(r"[^a-zA-Z0-9-]", "_", name)[:200]
            keys[name] = f"{spelt}.{blake2b(name.encode(), digest_size=4).hexdigest()}"
    return keys


def is_mlflow_key(name: str) -> bool:
    """Tell whether MLflow takes a name: allowed characters, at most 250, and no path that has a shorter spelling.

    >>> is_mlflow_key("block/5"), is_mlflow_key("a//b"), is_mlflow_key("a[0]")
    (True, False, False)
    """
    allowed = re.fullmatch(r"[\w\-. :/]+", name) is not None
    return len(name) <= MAX_KEY_CHARACTERS and allowed and not {"", ".", ".."} & set(name.split("/"))


def keyed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values under keys that MLflow accepts.

    >>> keyed({"normal_0_2": "skip_connect"})
    {'normal_0_2': 'skip_connect'}
    """
    keys = mlflow_keys(values)
    return {keys[name]: value for name, value in values.items()}


def text_of(value: object) -> str:
    """Return a value as the text of a param or a tag; containers as JSON.

    >>> text_of([1, 2]), text_of("adam")
    ('[1, 2]', 'adam')
    """
    return json.dumps(value, default=str) if isinstance(value, (dict, list, tuple)) else str(value)


def param_texts(params: Mapping[str, object]) -> dict[str, str]:
    """Return a trial's parameters as MLflow's params.

    >>> param_texts({"rate": 0.5})
    {'rate': '0.5'}
    """
    return {key: text_of(value) for key, value in keyed(params).items()}


def cut(text: str, max_characters: int) -> str:
    """Return the beginning of a text that is too long for MLflow, with a note that says so.

    >>> cut("x" * 9000, 50)
    'xxxxxxxxxxxxx ... (cut; 9000 characters in Optuna)'
    """
    note = f" ... (cut; {len(text)} characters in Optuna)"
    return text if len(text) <= max_characters else text[: max_characters - len(note)] + note

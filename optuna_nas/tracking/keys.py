"""Keys and values in the form that MLflow accepts."""

from __future__ import annotations

import json
import re
from hashlib import blake2b
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from optuna_nas.storage.attributes import unreadable_in
from optuna_nas.storage.plain import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

UNREADABLE = "optuna_nas.unreadable"
"""Tag of a run that names the attributes of its trial or study that can't be read."""
MAX_KEY_CHARACTERS = 250
MAX_PARAM_CHARACTERS, MAX_TAG_CHARACTERS = 6000, 8000


def mlflow_keys(names: Iterable[str]) -> dict[str, str]:
    """Return a key that MLflow accepts for each name; distinct names get distinct keys.

    Names that MLflow accepts are kept. In all others, forbidden characters become underscores and a hash of the name is
    appended.

    Args:
        names: Names of parameters or metrics.

    Returns:
        Keys of MLflow, at most 250 characters long, by name.

    Example:
        >>> from optuna_nas.tracking import mlflow_keys
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
    """Return whether MLflow accepts a name: at most 250 allowed characters, and a normalised path.

    Example:
        >>> from optuna_nas.tracking.keys import is_mlflow_key
        >>> is_mlflow_key("block/5"), is_mlflow_key("a//b"), is_mlflow_key("a[0]")
        (True, False, False)
    """
    allowed = re.fullmatch(r"[\w\-. :/]+", name) is not None
    return len(name) <= MAX_KEY_CHARACTERS and allowed and not {"", ".", ".."} & set(name.split("/"))


def keyed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by keys that MLflow accepts; see `mlflow_keys`.

    Example:
        >>> from optuna_nas.tracking.keys import keyed
        >>> keyed({"normal_0_2": "skip_connect"})
        {'normal_0_2': 'skip_connect'}
    """
    keys = mlflow_keys(values)
    return {keys[name]: value for name, value in values.items()}


def text_of(value: object) -> str:
    """Return a value as the text of a param or tag; containers become JSON.

    Example:
        >>> from optuna_nas.tracking.keys import text_of
        >>> text_of([1, 2]), text_of("adam")
        ('[1, 2]', 'adam')
    """
    return visible(json.dumps(value, default=str) if isinstance(value, (dict, list, tuple)) else str(value))


def param_texts(params: Mapping[str, object]) -> dict[str, str]:
    """Return the parameters of a trial as MLflow's params.

    Example:
        >>> from optuna_nas.tracking.keys import param_texts
        >>> param_texts({"rate": 0.5})
        {'rate': '0.5'}
    """
    return {key: text_of(value) for key, value in keyed(params).items()}


def cut(text: str, max_characters: int) -> str:
    """Return a text, truncated with a note if it is longer than `max_characters`.

    Example:
        >>> from optuna_nas.tracking.keys import cut
        >>> cut("x" * 9000, 50)
        'xxxxxxxxxxxxx ... (cut; 9000 characters in Optuna)'
    """
    note = f" ... (cut; {len(text)} characters in Optuna)"
    return text if len(text) <= max_characters else text[: max_characters - len(note)] + note


def unreadable_tag(user: Mapping[str, Any], system: Mapping[str, Any] = MappingProxyType({})) -> dict[str, str]:
    """Return the tag that names the attributes that can't be read; none if all can.

    Example:
        >>> from optuna_nas.tracking.keys import unreadable_tag
        >>> unreadable_tag({"optuna_nas:params": "many"})
        {'optuna_nas.unreadable': "optuna_nas:params: `optuna_nas:params` must be a number but got 'many'."}
    """
    wrong = [f"{key}: {why}" for key, why in unreadable_in(user, system)]
    return {UNREADABLE: text_of("; ".join(wrong))} if wrong else {}

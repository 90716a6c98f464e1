"""Checkpoints: tensors and JSON in one safetensors file, written atomically, read without executing anything."""

from __future__ import annotations

import json
import os
import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch
    from torch import Tensor

ABANDONED_SECONDS = 3600


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under longer names, to keep several sets in one file."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the set of tensors that `prefixed` has put into a file under this prefix."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def check_configuration(path: Path, theirs: Mapping[str, Any] | None, ours: Mapping[str, Any]) -> None:
    """Raise ValueError where a checkpoint is of another configuration; compared as JSON."""
    theirs, ours = theirs or {}, json.loads(json.dumps(ours))
    differing = sorted(key for key in {*ours, *theirs} if theirs.get(key) != ours.get(key))
    if differing:
        raise ValueError(
            f"`checkpoint` must be of the same configuration but {path} differs in {', '.join(differing)}; "
            "use another file, or delete it to start anew."
        )


def save_tensors(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write tensors and a JSON description as one safetensors file; nobody ever sees half of it.

    The description travels in the file's header, so the two can't come apart.
    """
    from safetensors.torch import save_file  # training without a checkpoint does without it

    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            temporary,
            {"optuna_nas": json.dumps(dict(description))},
        )
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        for unfinished in path.parent.glob(f".{path.name}.*"):
            with suppress(FileNotFoundError):
                if time.time() - unfinished.stat().st_mtime > ABANDONED_SECONDS:
                    unfinished.unlink()  # of a process that was killed while writing


def load_tensors(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote; executes nothing.

    Raises:
        ValueError: The file is not one of ours, or is damaged.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, "pt", device=str(device)) as file:
            description = json.loads((file.metadata() or {})["optuna_nas"])
            return {name: file.get_tensor(name) for name in file.keys()}, description  # noqa: SIM118
    except Exception as error:
        raise ValueError(f"`path` must be a checkpoint of optuna_nas but {path} is not readable: {error}") from error

"""Checkpoints: tensors and JSON values in one safetensors file, written atomically and read without executing code."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from optuna_nas.space.reading import brief, named_file, parse_json, within_limits
from optuna_nas.training.disk import whole_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from torch import Tensor

logger = logging.getLogger(__name__)

DESCRIPTION, CHECKSUM = "optuna_nas", "checksum"
"""Keys of description and checksum in the header of a file."""
MAX_VALUES = 1_000_000
"""Largest number of JSON values in a description."""


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with a prefix before their names, so that one file can hold several sets.

    Example:
        >>> import torch
        >>> from optuna_nas.training.checkpoints import prefixed, without_prefix
        >>> tensors = prefixed("network/", {"weight": torch.ones(1)})
        >>> list(tensors), list(without_prefix("network/", tensors))
        (['network/weight'], ['weight'])
    """
    return {prefix + name: tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names start with a prefix, without it; the inverse of `prefixed`."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


class OtherConfiguration(ValueError):
    """A checkpoint is whole, and of another configuration than is asked for.

    Args:
        what: The checkpoint, in words.
        differing: What differs.
        way_out: What to do.
    """

    def __init__(self, what: str, differing: str, way_out: str) -> None:
        message = f"`checkpoint` must be of the same configuration but {what} differs in {differing}; {way_out}."
        super().__init__(message)
        self.differing = differing


def check_configuration(path: Path, saved: Mapping[str, Any] | None, current: Mapping[str, Any]) -> None:
    """Check that a checkpoint has the current configuration; both are compared as JSON.

    Args:
        path: File of the checkpoint.
        saved: Configuration in the checkpoint.
        current: Configuration of this training.

    Raises:
        ValueError: They differ.
    """
    current = json.loads(json.dumps(current))
    saved = completed(saved if isinstance(saved, dict) else {}, current)
    differing = _differing(saved, current)
    if differing:
        way_out = "use another file, or delete it to start anew"
        raise OtherConfiguration(str(path), brief(", ".join(differing)), way_out)


NEW_PARTS = ("objectives", "constraints", "costs")
NEW_IN = {
    "data": ("augmentation", "files", "examples", "class_names", "normalization", "sample"),
    "space": ("parts",),
}
"""What configurations, and descriptions of data and spaces, lacked in earlier versions."""


def completed(saved: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, Any]:
    """Return an earlier configuration; what it could not yet describe is taken to be as it is now."""
    saved = {**{key: current[key] for key in NEW_PARTS if key in current}, **saved}
    for part, now in current.items():
        before = saved.get(part)
        if part in ("task", *NEW_IN) and isinstance(before, dict) and isinstance(now, dict):
            saved[part] = {**{key: now[key] for key in NEW_IN.get(part, now) if key in now}, **before}
    return saved


def _differing(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Return the names of what differs, a recipe with its fields: `recipe (freeze_fraction 0.0, not 1.0)`."""
    names = []
    for key in sorted({*current, *saved}):
        one, other = saved.get(key), current.get(key)
        if one == other:
            continue
        fields: list[str] = []
        if key == "recipe" and isinstance(one, dict) and isinstance(other, dict):
            unlike = [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
            fields = [f"{name} {one.get(name, 'by default')}, not {other.get(name, 'by default')}" for name in unlike]
        names.append(f"{key} ({', '.join(fields)})" if fields else key)
    return names


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write tensors and a description atomically to one safetensors file.

    Args:
        path: File to write; its folder is created if necessary.
        tensors: Tensors by name.
        description: JSON values for the header of the file.

    Example:
        >>> from pathlib import Path
        >>> import torch
        >>> from optuna_nas.training import load_tensors, save_tensors
        >>> save_tensors(Path("state.safetensors"), {"weight": torch.ones(2)}, {"epoch": 3})
        >>> load_tensors(Path("state.safetensors"))
        ({'weight': tensor([1., 1.])}, {'epoch': 3})
    """
    path = Path(path)
    from safetensors.torch import save_file  # imported late: a training without checkpoints needs none

    written = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    described = json.dumps(dict(description))
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        save_file(written, file, {DESCRIPTION: described, CHECKSUM: checksum(written, described)})


def load_tensors(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and description of a file of `save_tensors`. Loading executes no code from the file.

    Read further within `reading_checkpoint`, and compare the tensors with those that are expected by `check_tensors`.

    Args:
        path: File to read.
        device: Device of the tensors.

    Raises:
        ValueError: The file is not a checkpoint of optuna_nas, or is damaged.

    Example:
        >>> from pathlib import Path
        >>> from optuna_nas.training import load_tensors, save_tensors
        >>> save_tensors(Path("empty.safetensors"), {}, {"epoch": 3})
        >>> tensors, description = load_tensors(Path("empty.safetensors"))
        >>> description["epoch"]
        3
    """
    from safetensors import SafetensorError, safe_open

    with reading_checkpoint(path):
        try:
            with safe_open(path, "pt", device="cpu") as file:  # compares all sizes with that of the file
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(str(error)) from error
        if DESCRIPTION not in metadata or metadata.keys() - {DESCRIPTION, CHECKSUM}:
            raise ValueError("it holds something else")
        described = metadata[DESCRIPTION]
        if metadata.get(CHECKSUM, "") not in ("", checksum(tensors, described)):  # files of before have none
            raise ValueError("its checksum is another")
        description = parse_json("description", described)
        if not isinstance(description, dict) or not within_limits(description, MAX_VALUES, finite=False):
            raise ValueError("its description is too large or deep")
        return {name: tensor.to(device) for name, tensor in tensors.items()}, description


def set_aside_if_damaged(path: Path) -> None:
    """Give a damaged file of `save_tensors` another name, with a warning, so that what it is for begins anew.

    Example:
        >>> from pathlib import Path
        >>> from optuna_nas.training.checkpoints import set_aside_if_damaged
        >>> _ = Path("state.safetensors").write_text("damaged")
        >>> set_aside_if_damaged(Path("state.safetensors"))
        >>> Path("state.safetensors").exists(), Path("state.safetensors.damaged").exists()
        (False, True)
    """
    if not path.exists():
        return
    try:
        load_tensors(path)
    except ValueError as error:
        aside = path.with_name(f"{path.name}.damaged")
        path.replace(aside)
        logger.warning("A damaged checkpoint is left in %s, and what it was for begins anew: %s.", aside, error)


def reading_checkpoint(path: Path) -> AbstractContextManager[None]:
    """Turn errors of reading a file, and of taking over what is in it, into a ValueError that names it."""
    return named_file("a checkpoint of optuna_nas", path)


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str = "") -> None:
    """Check that tensors have names, types and shapes of others, and finite numbers where those do.

    Args:
        tensors: Tensors of a file.
        expected: Tensors of what they are for; none is changed.
        what: Prefix of the names in messages.

    Raises:
        ValueError: They do not.

    Example:
        >>> import torch
        >>> from optuna_nas.training.checkpoints import check_tensors
        >>> check_tensors({"weight": torch.ones(2)}, {"weight": torch.ones(3)})
        Traceback (most recent call last):
            ...
        ValueError: tensor 'weight' must be float32 of shape (3,) but is float32 of shape (2,)
    """
    for name in sorted(tensors.keys() ^ expected.keys()):
        raise ValueError(f"tensor {what + name!r} must {'be there but is not' if name in expected else 'not be there'}")
    for name, like in expected.items():
        tensor = tensors[name]
        if tensor.dtype != like.dtype or tensor.shape != like.shape:
            raise ValueError(f"tensor {what + name!r} must be {_kind(like)} but is {_kind(tensor)}")
        if not is_finite(tensor) and is_finite(like):
            raise ValueError(f"tensor {what + name!r} must be finite but is not")


def is_finite(tensor: Tensor) -> bool:
    """Return whether all numbers of a tensor are finite."""
    return tensor.is_meta or bool(torch.isfinite(tensor).all())


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def checksum(tensors: Mapping[str, Tensor], described: str) -> str:
    """Return a hash of tensors on the CPU, with their names, types and shapes, and of a description.

    Example:
        >>> import torch
        >>> from optuna_nas.training.checkpoints import checksum
        >>> checksum({"a": torch.ones(2)}, "{}") == checksum({"a": torch.ones(2)}, "{}") != checksum({}, "{}")
        True
    """
    digest = hashlib.blake2b(described.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()

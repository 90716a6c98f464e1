"""Files that workers share through an artifact store, verified by their SHA-256 hashes."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import re
import shutil
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from optuna.artifacts import Boto3ArtifactStore, FileSystemArtifactStore, upload_artifact

from optuna_nas.storage.attributes import Unreachable, Unverified
from optuna_nas.storage.database import one_line
from optuna_nas.storage.identity import study_uid
from optuna_nas.storage.secrets import quoted, without_password, without_secrets
from optuna_nas.training.disk import whole_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from optuna import Study
    from optuna.trial import FrozenTrial

    from optuna_nas.storage.optuna_rdb import ArtifactStore


_MISTYPED = re.compile(r"[A-Za-z][\w+.-]+:/")
"""Beginning of an address that lacks a slash; a single letter is a drive of Windows."""


def publish_file(study: Study, trial: FrozenTrial, store: ArtifactStore, path: Path) -> dict[str, str]:
    """Upload a file as an artifact of a trial and return its reference, for `fetch_file` and `remove_file`."""
    digest = _sha256(path)
    artifact = upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=trial, storage=study._storage)
    return {"artifact": artifact, "sha256": digest, "study": study_uid(study)}


def store_file(study: Study, store: ArtifactStore, path: Path) -> dict[str, str]:
    """Copy a file into a store and return its reference, for `fetch_file` and `remove_file`.

    Optuna does not list it as an artifact.

    The artifact is named after the file and its folder, whose names must consist of letters, digits, `-` and `_`.
    """
    artifact = f"{path.parent.name}-{path.stem}-{uuid.uuid4().hex}"
    with open(path, "rb") as file:
        store.write(artifact, file)
    return {"artifact": artifact, "sha256": _sha256(path), "study": study_uid(study)}


def is_of_another(study: Study, reference: Mapping[str, str]) -> bool:
    """Return whether another study published a file: copied and added trials have the references of their original."""
    uid = study_uid(study)
    return bool(reference.get("study", uid) != uid)


def remove_file(study: Study, store: ArtifactStore, reference: Mapping[str, str]) -> None:
    """Remove a published file, unless it is another study's or can't be removed.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import optuna
        >>> from optuna_nas.storage.artifacts import folder_store, remove_file, store_file
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "note.txt").write_text("weights")
        >>> store, study = folder_store(folder / "store"), optuna.create_study()
        >>> reference = store_file(study, store, folder / "note.txt")
        >>> remove_file(optuna.create_study(), store, reference)
        >>> len(list((folder / "store").iterdir()))
        1
        >>> remove_file(study, store, reference)
        >>> len(list((folder / "store").iterdir()))
        0
    """
    if not is_of_another(study, reference):
        with suppress(Exception):  # stores raise errors of their own types
            store.remove(reference["artifact"])


def fetch_file(store: ArtifactStore, reference: Mapping[str, str], path: Path) -> None:
    """Download a published file to `path`.

    Args:
        store: Artifact store with the file.
        reference: Reference from `publish_file` or `store_file`.
        path: Local file to write.

    Raises:
        Unreachable: The artifact cannot be read now.
        Unverified: The artifact differs from the published file.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import optuna
        >>> from optuna_nas.storage.artifacts import fetch_file, folder_store, store_file
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "note.txt").write_text("weights")
        >>> store = folder_store(folder / "store")
        >>> reference = store_file(optuna.create_study(), store, folder / "note.txt")
        >>> fetch_file(store, reference, folder / "copy.txt")
        >>> (folder / "copy.txt").read_text()
        'weights'
    """
    if not re.fullmatch(r"[\w-]+", str(reference["artifact"])):  # a path would lead out of the store's folder
        raise Unverified(f"{reference['artifact']!r} is no name of an artifact")
    try:
        with whole_file(path) as file:
            with store.open_reader(reference["artifact"]) as source, open(file, "wb") as target:
                shutil.copyfileobj(source, target)
            if _sha256(file) != reference["sha256"]:
                raise Unverified(f"artifact {reference['artifact']} is not what was published: its sha256 differs")
    except Unverified:
        raise
    except Exception as error:  # stores raise errors of their own types
        raise Unreachable(f"artifact {reference['artifact']} can't be read: {error}") from error


def is_published(reference: Mapping[str, str], path: Path) -> bool:
    """Return whether a local file is the published one that a reference names."""
    return _sha256(path) == reference["sha256"]


def folder_store(folder: Path) -> ArtifactStore:
    """Return an artifact store in a folder, which is created if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    return FileSystemArtifactStore(str(folder))


def artifact_store(address: str) -> ArtifactStore:
    """Return the artifact store at an address.

    Args:
        address: Folder, or `s3://BUCKET` with boto3's usual credentials.

    Raises:
        ValueError: The address is neither, or boto3 is not installed.
        ConnectionError: The store cannot be written to.
    """
    kind, separator, place = address.partition("://")
    is_path = not separator and not _MISTYPED.match(address) and address == without_password(address)
    if is_path or kind == "file":
        store = _checked(address, lambda: folder_store(Path(place or address)))
    elif kind != "s3" or "/" in place.rstrip("/") or not place:
        raise ValueError(f"`artifacts` must be a folder or s3://BUCKET but got {quoted(address)}.")
    elif importlib.util.find_spec("boto3") is None:
        raise ValueError("`artifacts` in a bucket needs boto3, which is not installed; pip install 'optuna_nas[s3]'.")
    else:
        store = _checked(address, lambda: Boto3ArtifactStore(place.rstrip("/")))
    return store


def _checked(address: str, make: Callable[[], ArtifactStore]) -> ArtifactStore:
    """Return the store after a test file was written to it and removed."""
    name = f"check-{uuid.uuid4().hex}"
    try:
        store = make()
        store.write(name, io.BytesIO(b"optuna_nas"))
        store.remove(name)
    except Exception as error:  # stores raise errors of their own types
        raise ConnectionError(
            f"`artifacts` must be a place to write to but {quoted(address)} is not: "
            f"{without_secrets(one_line(error), address)}; "
            "give another one, or check its permissions."
        ) from error
    return store


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""What workers tell each other through a study: JSON in append-only trial attributes, weights in an artifact store.

A value is cut into pieces that every storage takes and its header is written last, so nobody reads half of it. Weights
carry their sha256. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import re
import shutil
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.artifacts import Boto3ArtifactStore, FileSystemArtifactStore, upload_artifact

from optuna_nas.environment import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from optuna import Study
    from optuna.artifacts._protocol import ArtifactStore
    from optuna.trial import FrozenTrial

PREFIX = "optuna_nas:"
RESUMES = "resumes"
"""Trial attribute: number of the trial whose checkpoint this one goes on from."""
DIGEST = "architecture_digest"
"""Trial attribute: digest of the canonical architecture, of trials that know it."""
SURROGATE_SCORE = "surrogate_score"
"""Trial attribute: what was guessed of it without training, larger is better."""
GPU_SECONDS = "gpu_seconds"
"""Trial attribute: seconds of a GPU that it took, times the share of the GPU that it had."""
CONDEMNED = "condemned"
"""Trial attribute: why a pruner wanted to stop it before its first step, one sentence."""
ANYTIME_CURVE = "anytime_curve"
"""Trial attribute of networks with early exits: `multiply_adds` and `accuracy` of each, and the `budget`."""
MASKS = "masks"
"""Key of what masks keep (HM-NAS): `step` of the model, `kept` ops and `weights` of edges by path."""
FIT = "fit:"
"""Begins the keys of how the fits of models went, before the model's name."""
PIECE = 2045
"""Characters that every storage of Optuna takes in one attribute."""


class Forgetful:
    """Pickles its settings only; what can't be pickled, or can be had again from a study, is made anew.

    Subclasses set their settings before they call this constructor, and all else in `_forget`.
    """

    def __init__(self) -> None:
        settings = set(vars(self))
        self._forget()
        self._forgotten = frozenset(vars(self)) - settings

    def _forget(self) -> None:
        """Make anew what is not pickled."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in sorted(vars(self).items()) if name not in self._forgotten}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()


class FinishedTrials:
    """The trials of a study as they finish, each shown once."""

    def __init__(self) -> None:
        self.unfinished: list[int] = []  # places in the list of trials
        self._n_known = 0

    def take(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Return the trials that have finished since the last call, those that ran on first.

        Args:
            trials: All of the study, by number.
        """
        finished, unfinished = [], []
        for place in [*self.unfinished, *range(self._n_known, len(trials))]:
            # Another thread may have shown a longer list before.
            if place < len(trials) and trials[place].state.is_finished():
                finished.append(trials[place])
            else:
                unfinished.append(place)
        self.unfinished, self._n_known = unfinished, max(self._n_known, len(trials))
        return finished


def hash_of(name: str) -> int:
    """Return a number of 64 bits, the same in every process."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


class Unverified(Exception):
    """What another worker published is damaged or gone."""


class Unreachable(Unverified):
    """It can't be read now; perhaps later."""


def write_json(study: Study, trial: FrozenTrial, key: str, value: object) -> None:
    """Attach a JSON value to a running trial."""
    text = json.dumps(value, separators=(",", ":"))
    storage, name = study._storage, PREFIX + key
    pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
    for number, piece in enumerate(pieces):
        storage.set_trial_system_attr(trial._trial_id, f"{name}:{number}", piece)
    header: dict[str, Any] = {"pieces": len(pieces), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    storage.set_trial_system_attr(trial._trial_id, name, header)


def read_json(attributes: Mapping[str, Any], key: str) -> Any | None:
    """Return a value that `write_json` attached, None where there is none.

    Args:
        attributes: System attributes of the trial.
        key: As written.

    Raises:
        Unverified: A piece is missing or changed.
    """
    name = PREFIX + key
    if name not in attributes:
        return None
    try:
        header = attributes[name]
        text = "".join(attributes[f"{name}:{number}"] for number in range(header["pieces"]))
        if hashlib.sha256(text.encode()).hexdigest() != header["sha256"]:
            raise ValueError("its sha256 differs")
        return json.loads(text)
    except (KeyError, TypeError, ValueError) as error:
        raise Unverified(f"attribute {name!r} is damaged: {error}") from error


def write_fit_records(
    study: Study, trial: FrozenTrial, model: str, records: Sequence[tuple[int, Mapping[str, float]]]
) -> None:
    """Attach to a running trial how the fit of a one-shot model went that it trained: (step, metrics)."""
    plain = [[step, {name: float(f"{value:.6g}") for name, value in metrics.items()}] for step, metrics in records]
    write_json(study, trial, FIT + model, plain)


def fit_records_of(trial: FrozenTrial) -> dict[str, list[tuple[int, dict[str, float]]]]:
    """Return how the fits of the models went that a trial trained, by model; empty for most trials."""
    found: dict[str, list[tuple[int, dict[str, float]]]] = {}
    for key in trial.system_attrs:
        model = key.removeprefix(PREFIX + FIT)
        if model != key and ":" not in model:
            with suppress(Unverified):
                published = read_json(trial.system_attrs, FIT + model)
                found[model] = [(step, metrics) for step, metrics in published or ()]
    return found


def masks_of(trial: FrozenTrial) -> dict[str, Any] | None:
    """Return how the masks stood that judged a trial, where it is the first to tell."""
    with suppress(Unverified):
        return read_json(trial.system_attrs, MASKS)
    return None


def find_trial(study: Study, number: int) -> FrozenTrial | None:
    """Return the trial of a number as it is now, at a cost that does not grow with the study."""
    try:
        trial_id = study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    except KeyError:
        return None
    return study._storage.get_trial(trial_id)


def publish_file(study: Study, trial: FrozenTrial, store: ArtifactStore, path: Path) -> dict[str, str]:
    """Upload a file and return what `fetch_file` needs to find and verify it."""
    digest = _sha256(path)
    artifact = upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=trial, storage=study._storage)
    return {"artifact": artifact, "sha256": digest}


def store_file(store: ArtifactStore, path: Path) -> dict[str, str]:
    """Copy a file into a store and return what `fetch_file` needs; Optuna's lists of artifacts do not show it.

    It is named after the file and its folder, which have plain names.
    """
    artifact = f"{path.parent.name}-{path.stem}-{uuid.uuid4().hex}"
    with open(path, "rb") as file:
        store.write(artifact, file)
    return {"artifact": artifact, "sha256": _sha256(path)}


def fetch_file(store: ArtifactStore, reference: Mapping[str, str], path: Path) -> None:
    """Download a published file to `path`.

    Raises:
        Unreachable: It can't be read.
        Unverified: It is not what was published.
    """
    if not re.fullmatch(r"[\w-]+", str(reference["artifact"])):  # a path would lead out of the store's folder
        raise Unverified(f"{reference['artifact']!r} is no name of an artifact")
    try:
        with store.open_reader(reference["artifact"]) as source, open(path, "wb") as target:
            shutil.copyfileobj(source, target)
    except Exception as error:  # each store has errors of its own
        raise Unreachable(f"artifact {reference['artifact']} can't be read: {error}") from error
    if _sha256(path) != reference["sha256"]:
        raise Unverified(f"artifact {reference['artifact']} is not what was published: its sha256 differs")


def folder_store(folder: Path) -> ArtifactStore:
    """Return an artifact store in a folder, made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    return FileSystemArtifactStore(str(folder))


def artifact_store(address: str) -> ArtifactStore:
    """Return the artifact store at an address: a folder, or `s3://BUCKET` (credentials as boto3 finds them).

    Raises:
        ValueError: The address is of neither kind, or boto3 is not installed.
        ConnectionError: Nothing can be written there.
    """
    kind, separator, place = address.partition("://")
    if not separator or kind == "file":
        store = _checked(address, lambda: folder_store(Path(place or address)))
    elif kind != "s3" or "/" in place.rstrip("/") or not place:
        raise ValueError(f"`artifacts` must be a folder or s3://BUCKET but got {address!r}.")
    elif importlib.util.find_spec("boto3") is None:
        raise ValueError("`artifacts` in a bucket needs boto3, which is not installed; pip install 'optuna_nas[s3]'.")
    else:
        store = _checked(address, lambda: Boto3ArtifactStore(place.rstrip("/")))
    return store


def _checked(address: str, make: Callable[[], ArtifactStore]) -> ArtifactStore:
    """Return a store in which a file could be written."""
    name = f"check-{uuid.uuid4().hex}"
    try:
        store = make()
        store.write(name, io.BytesIO(b"optuna_nas"))
        store.remove(name)
    except Exception as error:  # each store has errors of its own
        raise ConnectionError(
            f"`artifacts` must be a place to write to but {address!r} is not: {one_line(error)}; "
            "give another, or mend it."
        ) from error
    return store


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

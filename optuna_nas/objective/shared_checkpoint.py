"""Checkpoints of trials in an artifact store, for other machines."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from optuna_nas.storage.artifacts import fetch_file, remove_file, store_file
from optuna_nas.storage.attributes import CHECKPOINT, Unverified, attribute
from optuna_nas.storage.optuna_rdb import backend_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from optuna import Trial

    from optuna_nas.storage.optuna_rdb import ArtifactStore

logger = logging.getLogger(__name__)


class SharedCheckpoint:
    """Checkpoint of a trial in an artifact store, for other machines.

    Args:
        store: Artifact store.
        file: Local file of the checkpoint.
        trial: Trial whose attributes have the reference to the stored checkpoint.
    """

    def __init__(self, store: ArtifactStore, file: Path, trial: Trial) -> None:
        self._store, self._file, self._trial = store, file, trial
        self._reference: dict[str, str] | None = attribute(trial.user_attrs, CHECKPOINT)
        self._written = 0

    def fetch(self) -> None:
        """Download the checkpoint of an earlier attempt, unless the local file exists."""
        if self._reference is None or self._file.exists():
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        try:
            fetch_file(self._store, self._reference, self._file)
        except Unverified as error:
            self._file.unlink(missing_ok=True)
            logger.warning("Trial %d starts anew, since its checkpoint is damaged (%s).", self._trial.number, error)

    def publish(self) -> None:
        """Upload the local file if it has changed."""
        written = self._file.stat().st_mtime_ns if self._file.exists() else 0
        if written == self._written or not written:
            return
        previous, self._written = self._reference, written
        try:
            self._reference = store_file(self._trial.study, self._store, self._file)
        except Exception as error:  # artifact stores raise errors of their own types
            logger.warning("The checkpoint of trial %d could not be shared (%s).", self._trial.number, error)
            return
        self._trial.set_user_attr(CHECKPOINT, self._reference)
        if (backend := backend_of(self._trial.study)) is not None:
            backend.flush(self._trial._trial_id)  # so that no other worker reads the reference to the removed artifact
        self._remove(previous)

    def remove(self) -> None:
        """Remove the stored checkpoint of a trial that has ended."""
        self._remove(self._reference)

    def _remove(self, reference: Mapping[str, str] | None) -> None:
        if reference is not None:
            remove_file(self._trial.study, self._store, reference)

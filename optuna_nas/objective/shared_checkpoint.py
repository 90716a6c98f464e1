"""The checkpoint of a trial in a store that other machines see."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from optuna_nas.storage.artifacts import fetch_file, store_file
from optuna_nas.storage.attributes import CHECKPOINT, Unverified, attribute
from optuna_nas.storage.optuna_rdb import backend_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from optuna import Trial

    from optuna_nas.storage.optuna_rdb import ArtifactStore

logger = logging.getLogger(__name__)


class SharedCheckpoint:
    """The checkpoint of a trial in a store that other machines see."""

    def __init__(self, store: ArtifactStore, file: Path, trial: Trial) -> None:
        self._store, self._file, self._trial = store, file, trial
        self._reference: dict[str, str] | None = attribute(trial.user_attrs, CHECKPOINT)
        self._written = 0

    def fetch(self) -> None:
        """Take over what an earlier attempt has left, unless it is here."""
        if self._reference is None or self._file.exists():
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        try:
            fetch_file(self._store, self._reference, self._file)
        except Unverified as error:
            self._file.unlink(missing_ok=True)
            logger.warning("Trial %d starts anew: its checkpoint is of no use (%s).", self._trial.number, error)

    def publish(self) -> None:
        """Share the file if it is new."""
        written = self._file.stat().st_mtime_ns if self._file.exists() else 0
        if written == self._written or not written:
            return
        before, self._written = self._reference, written
        try:
            self._reference = store_file(self._store, self._file)
        except Exception as error:  # each store has errors of its own
            logger.warning("The checkpoint of trial %d could not be shared (%s).", self._trial.number, error)
            return
        self._trial.set_user_attr(CHECKPOINT, self._reference)
        if (backend := backend_of(self._trial.study)) is not None:
            backend.flush(self._trial._trial_id)  # before what the study still names is removed
        self._remove(before)

    def remove(self) -> None:
        """Remove what was shared: the trial has ended."""
        self._remove(self._reference)

    def _remove(self, reference: Mapping[str, str] | None) -> None:
        if reference is not None:
            with suppress(Exception):  # each store has errors of its own
                self._store.remove(reference["artifact"])

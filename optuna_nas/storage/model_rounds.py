"""Rounds of a study: one trial of each prepares what the others use, and publishes it; nobody waits, nobody counts.

The opener of a round is its first trial, by number. What it publishes is a snapshot: a small JSON value among the
attributes of its trial, and files in an artifact store with their sha256. If it dies, the next round goes on from the
last snapshot that verifies.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from optuna.artifacts import get_all_artifact_meta
from optuna.trial import TrialState

from optuna_nas.storage.artifacts import fetch_file, publish_file
from optuna_nas.storage.attributes import Unreachable, Unverified, find_trial, read_json, snapshot_key, write_json
from optuna_nas.storage.finished import PerStudy

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from optuna import Study
    from optuna.trial import FrozenTrial

    from optuna_nas.storage.optuna_rdb import ArtifactStore

logger = logging.getLogger(__name__)


Loaded = TypeVar("Loaded")


class Snapshot(NamedTuple, Generic[Loaded]):
    """What the opener of a round has published.

    Args:
        number: Number of the opener's trial.
        done: Whether no round need be opened after it.
        files: Where its files are.
        previous: Artifacts of the snapshot before it.
        step: Step of its model.
        loaded: What was made of it here.
    """

    number: int
    done: bool
    files: Mapping[str, Mapping[str, str]]
    previous: tuple[str, ...]
    step: int
    loaded: Loaded


class _State(Generic[Loaded]):
    """What is known of one study."""

    def __init__(self) -> None:
        self.newest: Snapshot[Loaded] | None = None
        self.due = -1  # the highest round whose turn has come in this process
        self.refused: set[int] = set()  # trials whose snapshots are not what was published
        self.named: set[int] = set()  # trials whose snapshots were said to be of no use


class Rounds(Generic[Loaded]):
    """Who opens a round, what was published, and which snapshot is the newest that verifies.

    Args:
        name: Name of the model, for the attribute (`optuna_nas:snas:snapshot`) and for messages.
        trials_per_round: Trials between two openers.
        store: Returns where the files of a study go.
        is_fixed: Tells a trial that has all parameters, or was enqueued with them, and so opens no round any more.
        load: Makes something of a snapshot's JSON value and of a function that fetches one of its files; called by one
            thread at a time, and never while a round is prepared here. Raises `Unverified` where they are damaged.
    """

    def __init__(
        self,
        name: str,
        trials_per_round: int,
        store: Callable[[Study], ArtifactStore],
        is_fixed: Callable[[FrozenTrial], bool],
        load: Callable[[dict[str, Any], Callable[[str], Path]], Loaded],
    ) -> None:
        self._name, self._key = name, snapshot_key(name)
        self._trials_per_round, self._store = trials_per_round, store
        self._is_fixed, self._load = is_fixed, load
        self._preparing = threading.Lock()
        self._states: PerStudy[_State[Loaded]] = PerStudy(_State)

    def open(
        self,
        study: Study,
        trial: FrozenTrial,
        prepare: Callable[[int, Snapshot[Loaded] | None], None],
        save: Callable[[Path], dict[str, Any]],
    ) -> None:
        """Prepare and publish the round if it is this trial's to open; never wait for a thread that prepares another.

        Args:
            study: The study.
            trial: The trial that asks.
            prepare: Called with the number of the round and the newest snapshot; and again, if other threads came to
                later rounds meanwhile.
            save: Writes files into a folder and returns the JSON value; its key `done` says that this was the last.
        """
        state = self._state(study)
        if (state.newest is not None and state.newest.done) or not self._is_opener(study, trial):
            return
        state.due = max(state.due, trial.number // self._trials_per_round)
        if not self._preparing.acquire(blocking=False):
            return  # the thread that prepares makes up for this round
        try:
            newest = self._newest(study, trial.number, preparing=True)
            if newest is not None and newest.done:
                return
            prepared = -1
            while prepared < state.due:  # which other threads may raise meanwhile
                prepared = state.due
                prepare(prepared, newest)
            self._publish(study, trial, newest, save)
        finally:
            self._preparing.release()

    def newest(self, study: Study, number: int) -> Snapshot[Loaded] | None:
        """Return the newest snapshot that verifies, from a trial up to `number`; of those seen, if one is prepared."""
        return self._newest(study, number, preparing=False)

    def _newest(self, study: Study, number: int, preparing: bool) -> Snapshot[Loaded] | None:
        state = self._state(study)
        for earlier in range(number // self._trials_per_round, -1, -1):
            first = earlier * self._trials_per_round
            if state.newest is not None and (state.newest.done or state.newest.number >= first):
                break
            published = self._published(study, first, number)
            if published is None or not (preparing or self._preparing.acquire(blocking=False)):
                continue
            try:
                snapshot = self._loaded(study, *published)
            finally:
                if not preparing:
                    self._preparing.release()
            if snapshot is not None:
                state.newest = snapshot
                break
        return state.newest

    def _state(self, study: Study) -> _State[Loaded]:
        return self._states.of(study)

    def _is_opener(self, study: Study, trial: FrozenTrial) -> bool:
        """Tell whether a trial opens its round: it is the first, or those before it will not.

        Those have failed, or have their parameters without having published anything: an opener publishes first.
        """
        for number in range(trial.number - trial.number % self._trials_per_round, trial.number):
            earlier = find_trial(study, number)
            if earlier is None or self._has_snapshot(earlier) or not self._is_passed_over(earlier):
                return False
        return True

    def _is_passed_over(self, trial: FrozenTrial) -> bool:
        return trial.state == TrialState.FAIL or self._is_fixed(trial)

    def _has_snapshot(self, trial: FrozenTrial) -> bool:
        try:
            return self._value(trial) is not None
        except Unverified:
            return True  # it came so far

    def _value(self, trial: FrozenTrial) -> dict[str, Any] | None:
        """Return what a trial published, not what a retried trial has inherited with its attributes."""
        value = read_json(trial.system_attrs, self._key)
        return value if value is not None and value.get("trial") == trial.number else None

    def _publish(
        self,
        study: Study,
        trial: FrozenTrial,
        before: Snapshot[Loaded] | None,
        save: Callable[[Path], dict[str, Any]],
    ) -> None:
        store = self._store(study)
        with tempfile.TemporaryDirectory() as folder:
            value = save(Path(folder))
            files = {path.name: publish_file(study, trial, store, path) for path in sorted(Path(folder).iterdir())}
        previous = () if before is None else tuple(file["artifact"] for file in before.files.values())
        own = {"trial": trial.number, "files": files, "previous": previous}
        write_json(study, trial, self._key, {**value, **own})
        # Two are kept: one to fall back on.
        outdated = set(() if before is None else before.previous) | self._left_behind(study, trial, files.keys())
        for artifact in outdated - {*previous, *(file["artifact"] for file in files.values())}:
            with suppress(Exception):  # each store has errors of its own
                store.remove(artifact)

    def _left_behind(self, study: Study, trial: FrozenTrial, names: Collection[str]) -> set[str]:
        """Return the artifacts of openers that died before their snapshot was whole, in this round and the last."""
        artifacts: set[str] = set()
        for number in range(max(0, trial.number - 2 * self._trials_per_round), trial.number):
            earlier = find_trial(study, number)
            if earlier is not None and earlier.state == TrialState.FAIL and not self._has_snapshot(earlier):
                metas = get_all_artifact_meta(earlier, storage=study._storage)
                artifacts.update(meta.artifact_id for meta in metas if meta.filename in names)
        return artifacts

    def _published(self, study: Study, first: int, last: int) -> tuple[int, dict[str, Any]] | None:
        """Return the snapshot of a round as it was written, with the number of its trial."""
        refused = self._state(study).refused
        for number in range(first, min(first + self._trials_per_round, last + 1)):
            trial = find_trial(study, number)
            if trial is None:
                return None
            try:
                value = self._value(trial)
                if value is not None:
                    return None if number in refused else (number, value)
            except Unverified as error:
                self._refuse(study, number, error)
                return None
            if not self._is_passed_over(trial):
                return None
        return None

    def _loaded(self, study: Study, number: int, value: dict[str, Any]) -> Snapshot[Loaded] | None:
        """Fetch and verify the files of a snapshot and load it; None where it is of no use."""
        try:
            with tempfile.TemporaryDirectory() as folder:

                def fetch(name: str) -> Path:
                    fetch_file(self._store(study), value["files"][name], Path(folder) / name)
                    return Path(folder) / name

                loaded = self._load(value, fetch)
            return Snapshot(number, value["done"], value["files"], tuple(value["previous"]), value["step"], loaded)
        except Unverified as error:
            self._refuse(study, number, error)
            return None

    def _refuse(self, study: Study, number: int, error: Exception) -> None:
        """Say once that a snapshot is of no use; what can't be read now is tried again by the next trial."""
        state = self._state(study)
        if not isinstance(error, Unreachable):
            state.refused.add(number)
        if number not in state.named:
            state.named.add(number)
            logger.warning(
                "The %s of trial %d does not verify (%s); the one before it is used.", self._name, number, error
            )

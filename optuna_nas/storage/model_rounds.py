"""Rounds of a study: one trial per round prepares and publishes a snapshot, which all others use without waiting.

The leader of a round is its first trial, by number, unless the leader of an earlier round is still at work in another
process: then the first trial after its end makes up for both. The last round is prepared in any case. A snapshot is a
small JSON value in the attributes of its leader, and files in an artifact store with their SHA-256 hashes. If the
leader dies, the next round continues from the last verified snapshot.
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

from optuna_nas.storage.artifacts import fetch_file, is_of_another, publish_file
from optuna_nas.storage.attributes import (
    Unreachable,
    Unverified,
    find_trial,
    read_json,
    reference,
    snapshot_key,
    write_json,
)
from optuna_nas.storage.finished import PerStudy
from optuna_nas.storage.identity import study_uid
from optuna_nas.storage.optuna_rdb import has_heartbeats
from optuna_nas.storage.presence import has_ended, this_worker
from optuna_nas.training.checkpoints import OtherConfiguration
from optuna_nas.training.rules import Rule, anything, at_least, checked, flag, items, mapping, text

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from optuna import Study
    from optuna.trial import FrozenTrial

    from optuna_nas.storage.optuna_rdb import ArtifactStore

logger = logging.getLogger(__name__)


Loaded = TypeVar("Loaded")

_OWN: dict[str, Rule] = {
    "trial": at_least(0),
    "step": at_least(0),
    "done": flag(),
    "files": mapping(reference),
    "previous": items(text()),
}


def _snapshot(name: str, value: Any) -> Any:
    """Check a snapshot's JSON value, the rule of `read_json`; what a model has added to it is left as it is."""
    own = mapping(anything())(name, value)
    return {**own, **checked({"step": 0, **own}, _OWN)}


class Snapshot(NamedTuple, Generic[Loaded]):
    """Published result of a round.

    Args:
        number: Number of the leader trial.
        done: Whether this was the last round.
        files: References to the files in the artifact store, by name.
        previous: Artifact ids of the snapshot before.
        step: Training step of the model.
        loaded: Content loaded by this process.
    """

    number: int
    done: bool
    files: Mapping[str, Mapping[str, str]]
    previous: tuple[str, ...]
    step: int
    loaded: Loaded


class _State(Generic[Loaded]):
    """Rounds of one study, as seen by this process."""

    def __init__(self) -> None:
        self.newest: Snapshot[Loaded] | None = None
        self.due = -1  # latest round that a trial of this process leads
        self.refused: set[int] = set()  # numbers of trials whose snapshots are damaged
        self.left = False  # whether a warning was logged for what a copy left behind
        self.warned: set[int] = set()  # numbers of trials whose snapshots a warning was logged for


class Rounds(Generic[Loaded]):
    """Rounds of studies: election of the leader trial, publication, and loading of the newest verified snapshot.

    Args:
        name: Name of the model, for the attribute (`optuna_nas:snas:snapshot`) and messages.
        trials_per_round: Trials per round, at least 1.
        store: Function that returns the artifact store of a study.
        is_fixed: Function that returns whether a trial has all its parameters, or was enqueued with them, and thus does
            not lead a round any more.
        load: Function of a snapshot's JSON value and of a function that fetches one of its files by name; returns the
            loaded content, or raises `Unverified` if it is damaged. Called by one thread at a time, and never while a
            round is prepared in this process.
        is_done: Function of a snapshot's JSON value that returns whether it was the last round.
    """

    def __init__(
        self,
        name: str,
        trials_per_round: int,
        store: Callable[[Study], ArtifactStore],
        is_fixed: Callable[[FrozenTrial], bool],
        load: Callable[[dict[str, Any], Callable[[str], Path]], Loaded],
        is_done: Callable[[dict[str, Any]], bool] = lambda value: bool(value["done"]),
    ) -> None:
        self._name, self._key = name, snapshot_key(name)
        self._leads = f"{self._key}:leader"
        self._trials_per_round, self._store = trials_per_round, store
        self._is_fixed, self._load, self._is_done = is_fixed, load, is_done
        self._preparing = threading.Lock()
        self._states: PerStudy[_State[Loaded]] = PerStudy(_State)

    def open(
        self,
        study: Study,
        trial: FrozenTrial,
        prepare: Callable[[int, Snapshot[Loaded] | None], None],
        save: Callable[[Path], dict[str, Any]],
        is_last: bool = False,
    ) -> None:
        """Prepare and publish the round if this trial leads one; do not wait for threads that prepare another round.

        Args:
            study: Study of the trial.
            trial: Running trial.
            prepare: Function of the number of the round and the newest snapshot. It is called again if other threads
                reach later rounds meanwhile.
            save: Function that writes files into a folder and returns the JSON value. Its key `done` marks the last
                round.
            is_last: Whether no later round will make up for this one, which is then prepared in any case.
        """
        state = self._state(study)
        if (state.newest is not None and state.newest.done) or not self._is_leader(study, trial):
            return
        state.due = max(state.due, trial.number // self._trials_per_round)
        if not self._preparing.acquire(blocking=False):
            return  # the thread that is preparing prepares this round, too
        try:
            newest = self._newest(study, trial.number, preparing=True)
            if (newest is not None and newest.done) or (not is_last and self._is_prepared_elsewhere(study)):
                return
            mark: list[Any] = [trial.number, this_worker(), study_uid(study)]
            study._storage.set_trial_system_attr(trial._trial_id, self._leads, mark)
            prepared = -1
            while prepared < state.due:  # other threads may increase it meanwhile
                prepared = state.due
                prepare(prepared, newest)
            self._publish(study, trial, newest, save)
        finally:
            self._preparing.release()

    def newest(self, study: Study, number: int) -> Snapshot[Loaded] | None:
        """Return the newest verified snapshot of trials up to `number`; while a round is prepared, the last loaded."""
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

    def _is_leader(self, study: Study, trial: FrozenTrial) -> bool:
        """Return whether a trial leads its round: it is the first one, or all before it are passed over.

        Trials are passed over if they failed, or have their parameters but no snapshot: a leader publishes first.
        """
        for number in range(trial.number - trial.number % self._trials_per_round, trial.number):
            earlier = find_trial(study, number)
            if earlier is None or self._has_snapshot(earlier) or not self._is_passed_over(earlier):
                return False
        return True

    def _is_passed_over(self, trial: FrozenTrial) -> bool:
        return trial.state == TrialState.FAIL or self._is_fixed(trial)

    def _is_prepared_elsewhere(self, study: Study) -> bool:
        """Return whether another trial prepares a snapshot: it says so, and its process lives, or would be missed.

        Without heartbeats, processes of other machines would not be missed.
        """
        uid = study_uid(study)
        for other in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            match other.system_attrs.get(self._leads):
                case [other.number, str(worker), str(of)] if of == uid and not self._has_snapshot(other):
                    ended = has_ended(worker)
                    if ended is False or (ended is None and has_heartbeats(study)):
                        return True
        return False

    def _has_snapshot(self, trial: FrozenTrial) -> bool:
        try:
            return self._value(trial) is not None
        except Unverified:
            return True  # damaged, but published

    def _value(self, trial: FrozenTrial) -> dict[str, Any] | None:
        """Return the JSON value that a trial published itself; retried trials hold copies of other trials' values."""
        value = read_json(trial.system_attrs, self._key, _snapshot)
        return value if value is not None and value["trial"] == trial.number else None

    def _publish(
        self,
        study: Study,
        trial: FrozenTrial,
        before: Snapshot[Loaded] | None,
        save: Callable[[Path], dict[str, Any]],
    ) -> None:
        store = self._store(study)
        study._storage.set_trial_system_attr(trial._trial_id, f"{self._key}:study", study_uid(study))
        with tempfile.TemporaryDirectory() as folder:
            value = save(Path(folder))
            files = {path.name: publish_file(study, trial, store, path) for path in sorted(Path(folder).iterdir())}
        if before is not None and any(is_of_another(study, file) for file in before.files.values()):
            before = None  # the files belong to the study that this one is a copy of
        previous = () if before is None else tuple(file["artifact"] for file in before.files.values())
        own = {"trial": trial.number, "files": files, "previous": previous}
        write_json(study, trial, self._key, {**value, **own})
        # The two newest snapshots are kept, one of them as a fallback.
        outdated = set(() if before is None else before.previous) | self._left_behind(study, trial, files.keys())
        for artifact in outdated - {*previous, *(file["artifact"] for file in files.values())}:
            with suppress(Exception):  # stores raise errors of their own types
                store.remove(artifact)

    def _left_behind(self, study: Study, trial: FrozenTrial, names: Collection[str]) -> set[str]:
        """Return the artifacts of leaders of this round and the last that died before their snapshot was complete."""
        artifacts: set[str] = set()
        uid = study_uid(study)
        for number in range(max(0, trial.number - 2 * self._trials_per_round), trial.number):
            earlier = find_trial(study, number)
            if earlier is None or earlier.system_attrs.get(f"{self._key}:study") != uid:
                continue  # a copied trial's belong to the original
            if earlier.state == TrialState.FAIL and not self._has_snapshot(earlier):
                metas = get_all_artifact_meta(earlier, storage=study._storage)
                artifacts.update(meta.artifact_id for meta in metas if meta.filename in names)
        return artifacts

    def _published(self, study: Study, first: int, last: int) -> tuple[int, dict[str, Any]] | None:
        """Return the number of the trial that published the round starting at trial `first`, and its JSON value."""
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
        """Fetch, verify and load the files of a snapshot; None if they are damaged or unreachable."""
        try:
            with tempfile.TemporaryDirectory() as folder:

                def fetch(name: str) -> Path:
                    fetch_file(self._store(study), value["files"][name], Path(folder) / name)
                    return Path(folder) / name

                loaded = self._load(value, fetch)
            done, previous = self._is_done(value), tuple(value["previous"])
            return Snapshot(number, done, value["files"], previous, value["step"], loaded)
        except OtherConfiguration as error:
            way_out = f"give {self._name} what it had, or the study another name (`--set name=...`)"
            raise OtherConfiguration(f"the snapshot of trial {number}", error.differing, way_out) from None
        except (Unverified, ValueError) as error:  # ValueError: the file is not what it should be
            if isinstance(error, Unreachable) and any(is_of_another(study, file) for file in value["files"].values()):
                self._leave(study, number, error)
            else:
                self._refuse(study, number, error)
            return None

    def _leave(self, study: Study, number: int, error: Exception) -> None:
        """Log one warning for all snapshots of its original that a copy of a study can't reach."""
        state = self._state(study)
        if not state.left:
            logger.warning(
                "The %s snapshot of trial %d cannot be verified (%s); another study published it, whose "
                "`artifact_store` has it. Without that, %r learns anew.",
                self._name,
                number,
                error,
                study.study_name,
            )
        state.left = True
        state.refused.add(number)

    def _refuse(self, study: Study, number: int, error: Exception) -> None:
        """Log one warning for an unusable snapshot; snapshots that cannot be read now are tried again later."""
        state = self._state(study)
        if not isinstance(error, Unreachable):
            state.refused.add(number)
        if number not in state.warned:
            state.warned.add(number)
            logger.warning(
                "The %s snapshot of trial %d cannot be verified (%s); the one before it is used.",
                self._name,
                number,
                error,
            )

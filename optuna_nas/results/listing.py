"""Studies of a folder or a storage: state, number of trials, best value, and the command that goes on."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

import optuna
from optuna.trial import TrialState

from optuna_nas.search.checks import MAX_TRIALS
from optuna_nas.storage.attributes import METRIC, RUN, attribute, user_attributes
from optuna_nas.storage.database import clear_errors, connect, sqlite_address, sqlite_file
from optuna_nas.storage.database import closing as closed
from optuna_nas.storage.leaderboard import best_trial
from optuna_nas.storage.own_postgres import MOVED, POSTGRESQL, own_database
from optuna_nas.storage.presence import presence
from optuna_nas.storage.quota import counted_trials
from optuna_nas.storage.secrets import without_password

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from optuna import Study

DATABASE = "study.db"
RUNNING, FINISHED, OPEN, UNKNOWN = "running", "finished", "to go on", "unknown"
"""States of a study: trials run now; its total is reached or it has ended; trials are missing; nobody noted a total."""


class StudySummary(NamedTuple):
    """One study.

    Args:
        name: Its name.
        state: One of `running`, `finished`, `to go on` and `unknown`.
        trials: Number of finished trials that count.
        total: Total number of trials to run; None where something else ends the study, or where nobody noted it.
        best: First value of the best trial; None if there is none.
        metric: The task's metric of the best trial where the value is the loss; else None.
        trial: Number of the best trial; None if there is none.
        changed: When a trial last began or ended, in local time; None without trials.
        ended: Why the study ended before its total; None if it did not.
        command: Command that goes on; empty where nobody noted it.
        place: Folder; or the storage's address without secrets.
        storage: Address of the storage.
    """

    name: str
    state: str
    trials: int
    total: int | None
    best: float | None
    metric: float | None
    trial: int | None
    changed: datetime | None
    ended: str | None
    command: str
    place: str
    storage: str


def studies_in(folder: Path) -> list[StudySummary]:
    """Return the studies in the databases below a folder, the one that changed last first.

    Args:
        folder: Folder such as `runs`, or that of one study.

    Raises:
        ValueError: There is no such folder.

    Example:
        >>> from pathlib import Path
        >>> import optuna
        >>> from optuna_nas.results.listing import studies_in
        >>> Path("runs/mine").mkdir(parents=True)
        >>> study = optuna.create_study(study_name="mine", storage="sqlite:///runs/mine/study.db")
        >>> study.optimize(lambda trial: 0.5, n_trials=2)
        >>> [(one.name, one.state, one.trials, one.best) for one in studies_in(Path("runs"))]
        [('mine', 'unknown', 2, 0.5)]
    """
    if not folder.is_dir():
        raise ValueError(
            f"`folder` must be a folder of studies but {without_password(str(folder))} is none; give another."
        )
    found: list[StudySummary] = []
    for file in sorted(folder.rglob(DATABASE)):
        if _has_studies(file) and not (file.parent / MOVED).exists():
            found += _summaries(sqlite_address(file), str(file.parent))
    for database in sorted(folder.rglob(POSTGRESQL)):
        if (database / "PG_VERSION").exists():
            found += _summaries(own_database(database), str(database.parent))
    return _newest_first(found)


def studies_of(storage: str) -> list[StudySummary]:
    """Return the studies of a storage, the one that changed last first.

    Args:
        storage: URL of an Optuna storage.

    Raises:
        ValueError: The storage is a file that does not exist.
        ConnectionError: The storage does not answer.
    """
    if (file := sqlite_file(storage)) is not None and not _has_studies(file):  # Optuna would create the file
        raise ValueError(f"`storage` must hold studies but {file} holds none; give another.")
    return _newest_first(_summaries(storage, without_password(storage)))


def _newest_first(found: Iterable[StudySummary]) -> list[StudySummary]:
    return sorted(found, key=lambda one: one.changed or datetime.min, reverse=True)


def _has_studies(file: Path) -> bool:
    """Return whether a file is a database of Optuna, without changing it."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
        return bool(database.execute("SELECT 1 FROM sqlite_master WHERE name = 'studies'").fetchone())
    return False


def _summaries(address: str, place: str) -> Iterator[StudySummary]:
    with clear_errors(address):
        storage = connect(address)
        for name in optuna.get_all_study_names(storage):
            study = optuna.load_study(study_name=name, storage=storage)
            with closed(study):
                yield _summary(study, address, place)


def _summary(study: Study, address: str, place: str) -> StudySummary:
    file = sqlite_file(address)
    trials, best = study.get_trials(deepcopy=False), best_trial(study)
    noted = attribute(user_attributes(study), RUN, {"total": None, "command": "", "ended": None})
    n_counted, total, ended = counted_trials(study), noted["total"], noted["ended"]
    if any(trial.state == TrialState.RUNNING for trial in trials) and (file is None or _is_held(file)):
        state = RUNNING
    elif total is None:
        state = UNKNOWN
    else:
        state = FINISHED if ended is not None or n_counted >= total else OPEN
    times = [time for trial in trials for time in (trial.datetime_start, trial.datetime_complete) if time is not None]
    return StudySummary(
        study.study_name,
        state,
        n_counted,
        None if total == MAX_TRIALS else total,
        best.values[0] if best else None,
        attribute(best.user_attrs, METRIC) if best else None,
        best.number if best else None,
        max(times, default=None),
        ended,
        noted["command"],
        place,
        address,
    )


def _is_held(file: Path) -> bool:
    """Return whether a process runs trials of the studies in an sqlite file."""
    lock = file.with_name(f".{file.name}.running")
    if not lock.exists():
        return True  # of another program, perhaps
    with presence(lock) as alone:
        return not alone

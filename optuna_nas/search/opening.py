"""Creation and resumption of studies, with checks of settings and version."""

from __future__ import annotations

import logging
import time
import warnings
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import optuna
from optuna import Study
from optuna.exceptions import ExperimentalWarning
from optuna.study import StudyDirection

from optuna_nas.objective.protocol import names_of
from optuna_nas.search.config import part_names, part_settings
from optuna_nas.storage.attributes import MLFLOW, PARTS, RUN, SETTING, VERSION, attribute, unreadable, user_attributes
from optuna_nas.storage.database import clear_errors, connect, shown_storage, sqlite_file
from optuna_nas.storage.identity import check_folder, claim_folder
from optuna_nas.storage.versions import versions
from optuna_nas.tracking import MLflowTracker
from optuna_nas.tracking.records import has_credentials, is_server
from optuna_nas.training.checkpoints import completed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from optuna.trial import FrozenTrial

    from optuna_nas.search.config import Search

logger = logging.getLogger(__name__)


WAIT_SECONDS = 0.5
"""Seconds between two checks of what other workers do."""
MAX_UNREADABLE = 10
"""Maximum number of attributes that a warning names."""
MAX_CREATION_CHECKS = 20
"""Maximum number of checks whether another process has finished the creation of a study."""


def open_study(search: Search, create: bool = True) -> Study:
    """Open the study of a search to run trials: create it, or load an existing one of that name.

    Args:
        search: Configuration.
        create: Whether to create the study if it does not exist.

    Raises:
        ValueError: The study exists with another space, data, recipe or direction, was created by an earlier version
            with other parameter names, or does not exist and `create` is False; or its folder holds the files of
            another study.
        ConnectionError: The storage does not answer.
    """
    if create:
        _make_folder(search.resolved_folder())
    with clear_errors(search.resolved_storage()):
        study = _loaded(search, create)
        if not create:
            _wait_until_created(study)
        _check_version(study, create)
        if _is_earlier(study):
            raise ValueError(
                f"`study` must be of this version of optuna_nas but {search.name!r} was created by an earlier one, "
                "whose parameters have other names; it can be read, but give the search another `name` to go on "
                "(`--set name=...`)."
            )
        _check_setting(study, search)
        if not create:
            _make_folder(search.resolved_folder())
        with _named_folder(search.resolved_folder()):
            claim_folder(search.resolved_folder(), study)
        if create:
            _name_objectives(study, search)
            note_run(study, search)
            _note_parts(study, search)
            warn_of_unreadable(study)
    return study


def _name_objectives(study: Study, search: Search) -> None:
    """Name the values of a study as its objective does, where there are several: for MLflow, plots and Optuna's own."""
    names = names_of(search.resolved_objective)
    if names is not None and len(names) == len(study.directions) > 1 and study.metric_names is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(list(names))


def note_run(study: Study, search: Search, ended: str | None = None) -> None:
    """Note in a study how it is run, for whoever looks at it without its file.

    Args:
        study: Study.
        search: Configuration.
        ended: Why the search has ended before its total number of trials; None if it has not.
    """
    noted = {"total": search.total, "command": search.command, "ended": ended}
    if attribute(user_attributes(study), RUN) != noted:
        study.set_user_attr(RUN, noted)


def _note_parts(study: Study, search: Search) -> None:
    """Note who proposes and who stops, how, and the code of the networks; log a line if that was otherwise before."""
    parts = {"strategy": search.strategy or "none", **part_names(search), **part_settings(search)}
    noted = attribute(user_attributes(study), PARTS)
    if noted == parts:
        return
    changed = [
        f"{name} {now}, not {noted[name]}" for name, now in parts.items() if noted and noted.get(name, now) != now
    ]
    if changed and (n_trials := len(study.get_trials(deepcopy=False))):
        line = "%r goes on otherwise than its %d trials were proposed and judged: %s."
        logger.warning(line, search.name, n_trials, ", ".join(changed))
    study.set_user_attr(PARTS, parts)


def warn_of_unreadable(study: Study) -> None:
    """Log a line for each of the first attributes that can't be read, which the search then does without."""
    found = unreadable(study)
    for one in found[:MAX_UNREADABLE]:
        logger.warning("%s", one)
    if len(found) > MAX_UNREADABLE:
        logger.warning("%d more attributes can't be read.", len(found) - MAX_UNREADABLE)


def read_study(search: Search) -> Study:
    """Load the existing study of a search to read it; also one of an earlier version, which runs no more trials.

    Raises:
        ValueError: The study does not exist, or exists with another space, data, recipe or direction, or its folder
            holds the files of another study.
        ConnectionError: The storage does not answer.
    """
    with clear_errors(search.resolved_storage()):
        study = _loaded(search, create=False)
        _wait_until_created(study)
        if not _is_earlier(study):  # settings of earlier versions had other parts
            _check_setting(study, search)
        check_folder(search.resolved_folder(), study)
    return study


def noted_mlflow(study: Study) -> str | None:
    """Return the address at which MLflow last got a study, None where the study notes none that can be used.

    A noted SQLite file that is not there any more is passed over, and a noted server where this process has credentials
    of MLflow: whoever may write to the study would get them. So would a noted database server or Databricks, whose
    clients look for passwords in more places than can be told: they are never followed.
    """
    noted: str | None = attribute(user_attributes(study), MLFLOW)
    if noted is None:
        return None
    file = sqlite_file(noted)
    is_safe = is_server(noted) and not has_credentials() if file is None else file.exists()
    return noted if is_safe else None


def where_mirrored(search: Search, study: Study) -> Search:
    """Return a search with the tracker of the address that its study notes, if there is one.

    The search may have another, since `optuna-nas run --mlflow` is given one by its user.
    """
    noted, own = noted_mlflow(study), search.tracking
    if noted is None:
        return search
    return replace(search, tracking=MLflowTracker(noted) if own is None else own.at(noted))


def _loaded(search: Search, create: bool) -> Study:
    place = search.resolved_storage()
    absent = ValueError(
        f"`study` must exist but {shown_storage(place)} has none named {search.name!r}; start it with `optuna-nas run`."
    )
    if not create and (file := sqlite_file(place)) is not None and not file.exists():
        raise absent  # before Optuna creates the file

    def on_dead(study: Study, trial: FrozenTrial) -> None:
        logger.warning("Trial %d was left by a worker that has died.", trial.number)
        if search.tracking is not None:
            search.tracking.trial_finished(study, trial)

    storage = connect(place, search.heartbeat, on_dead)
    try:
        study = optuna.load_study(
            study_name=search.name, storage=storage, sampler=search.resolved_sampler, pruner=search.resolved_pruner
        )
    except KeyError:
        if not create:
            raise absent from None
        study = optuna.create_study(
            study_name=search.name,
            storage=storage,
            sampler=search.resolved_sampler,
            pruner=search.resolved_pruner,
            directions=[StudyDirection[direction.upper()] for direction in search.resolved_directions],
            load_if_exists=True,
        )
    return study


def _make_folder(folder: Path) -> None:
    with _named_folder(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".running").touch()


@contextmanager
def _named_folder(folder: Path) -> Iterator[None]:
    """Turn errors of a folder that can't be written to into one sentence."""
    try:
        yield
    except ConnectionError:  # of the storage
        raise
    except OSError as error:
        raise ValueError(
            f"`folder` must be one to write to but {folder} is not: {error.strerror}; give the search another."
        ) from None


def _wait_until_created(study: Study) -> None:
    """Wait until another process has finished the creation of the study.

    Raises:
        ValueError: The study has no settings after `MAX_CREATION_CHECKS`.
    """
    for _ in range(MAX_CREATION_CHECKS):
        if SETTING in user_attributes(study):  # perhaps unreadable
            return
        time.sleep(WAIT_SECONDS)
    raise ValueError(
        f"`study` must be one that optuna_nas has created but {study.study_name!r} has no setting; "
        "create it with `optuna-nas create` or `optuna-nas run`."
    )


def _check_version(study: Study, create: bool) -> None:
    """Check that all workers of a study have the same version: that of the process that created or resumed it last."""
    version, study_version = versions().get("optuna_nas"), attribute(user_attributes(study), VERSION)
    if create and version != study_version:
        study.set_user_attr(VERSION, version)
    elif not create and study_version is not None and version != study_version:
        raise ValueError(
            f"`optuna_nas` must be of the version that runs the study, {study_version}, but is {version}; install that "
            "one, or end all workers and go on with `optuna-nas run` of this one."
        )


def _is_earlier(study: Study) -> bool:
    """Return whether an earlier version created the study, with a skeleton of its own and other parameter names."""
    return "skeleton" in attribute(user_attributes(study), SETTING, {})


def _check_setting(study: Study, search: Search) -> None:
    directions = [StudyDirection[direction.upper()] for direction in search.resolved_directions]
    if study.directions != directions:
        raise ValueError(
            f"`directions` must be those of the existing study {search.name!r}, "
            f"{tuple(d.name.lower() for d in study.directions)}, but are {search.directions}; use another name."
        )
    setting, study_setting = search.setting(), attribute(user_attributes(study), SETTING)
    if study_setting is None:
        if SETTING in user_attributes(study):
            raise ValueError(
                f"`study` must have the setting that it was created with but attribute {SETTING!r} of {search.name!r} "
                "can't be read; give the search another `name` (`--set name=...`), or restore what it was."
            )
        study.set_user_attr(SETTING, setting)
    elif (study_setting := completed(study_setting, setting)) != setting:
        parts = sorted(part for part in setting if study_setting.get(part) != setting[part])
        raise ValueError(
            f"`{(*parts, 'objective')[0]}` must be that of the existing study {search.name!r} but is another; "
            "give the search another `name` (`--set name=...` on the command line), or restore what it was."
        )

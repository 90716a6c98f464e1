"""Studies opened or resumed: the same setting, a compatible version."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import optuna
from optuna import Study
from optuna.study import StudyDirection

from optuna_nas.storage.attributes import SETTING, VERSION
from optuna_nas.storage.database import clear_errors, connect, shown_storage, sqlite_file
from optuna_nas.storage.versions import versions

if TYPE_CHECKING:
    from pathlib import Path

    from optuna.trial import FrozenTrial

    from optuna_nas.search.config import Search

logger = logging.getLogger(__name__)


WAIT_SECONDS = 0.5
"""Between two looks at what other workers do."""
WHOLE_LOOKS = 20
"""How often a worker looks whether a study is complete that is being created."""


def open_study(search: Search, create: bool = True) -> Study:
    """Create the study of a search, or load the one of that name.

    Raises:
        ValueError: The study exists with another space, skeleton, data, recipe or direction; or, with `create=False`,
            does not exist.
        ConnectionError: The storage does not answer.
    """
    place = search.resolved_storage()
    absent = ValueError(
        f"`study` must exist but {shown_storage(place)} has none named {search.name!r}; start it with `optuna-nas run`."
    )
    if not create and (file := sqlite_file(place)) is not None and not file.exists():
        raise absent  # before Optuna makes the file
    if create:
        _make_folder(search.resolved_folder())

    def on_dead(study: Study, trial: FrozenTrial) -> None:
        logger.warning("Trial %d was left by a worker that is gone.", trial.number)
        if search.tracking is not None:
            search.tracking.trial_finished(study, trial)

    storage = connect(place, search.heartbeat, on_dead)
    with clear_errors(place):
        try:
            study = optuna.load_study(
                study_name=search.name, storage=storage, sampler=search.sampler, pruner=search.pruner
            )
        except KeyError:
            if not create:
                raise absent from None
            study = optuna.create_study(
                study_name=search.name,
                storage=storage,
                sampler=search.sampler,
                pruner=search.pruner,
                directions=[StudyDirection[direction.upper()] for direction in search.resolved_directions],
                load_if_exists=True,
            )
        if not create:
            _wait_until_whole(study)
        _check_version(study, create)
        _check_setting(study, search)
    return study


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".running").touch()
    except OSError as error:
        raise ValueError(
            f"`folder` must be one to write to but {folder} is not: {error.strerror}; give the search another."
        ) from None


def _wait_until_whole(study: Study) -> None:
    """Wait for the process that creates the study in this moment.

    Raises:
        ValueError: Nobody seems to.
    """
    for _ in range(WHOLE_LOOKS):
        if SETTING in study.user_attrs:
            return
        time.sleep(WAIT_SECONDS)
    raise ValueError(
        f"`study` must be one that optuna_nas has created but {study.study_name!r} has no setting; "
        "create it with `optuna-nas create` or `optuna-nas run`."
    )


def _check_version(study: Study, create: bool) -> None:
    """Let all workers of a study be of one version: that of who ran or created it last."""
    here, there = versions().get("optuna_nas"), study.user_attrs.get(VERSION)
    if create and here != there:
        study.set_user_attr(VERSION, here)
    elif not create and there is not None and here != there:
        raise ValueError(
            f"`optuna_nas` must be of the version that runs the study, {there}, but is {here}; install that one, or "
            "end all workers and go on with `optuna-nas run` of this one."
        )


def _check_setting(study: Study, search: Search) -> None:
    directions = [StudyDirection[direction.upper()] for direction in search.resolved_directions]
    if study.directions != directions:
        raise ValueError(
            f"`directions` must be those of the existing study {search.name!r}, "
            f"{tuple(d.name.lower() for d in study.directions)}, but are {search.directions}; use another name."
        )
    setting, known = search.setting(), study.user_attrs.get(SETTING)
    if known is not None and "skeleton" in known:
        raise ValueError(
            f"`study` must be of this version of optuna_nas but {search.name!r} was created by an earlier one, whose "
            "parameters have other names; it can be read, but give the search another `name` to go on."
        )
    if known is None:
        study.set_user_attr(SETTING, setting)
    elif known != setting:
        parts = sorted(part for part in setting if known.get(part) != setting[part])
        raise ValueError(
            f"`{(*parts, 'objective')[0]}` must be that of the existing study {search.name!r} but is another; "
            "give the search another `name`, or restore what it was."
        )

"""Results of a search: best trial, test metric."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from optuna.trial import FrozenTrial

from optuna_nas.networks.files import owner_and_choices
from optuna_nas.objective.protocol import Describes, Judges, Objective, judged_metric_of, metric_of
from optuna_nas.objective.trial_training import network_path
from optuna_nas.search.config import part_names
from optuna_nas.storage.artifacts import artifact_store, fetch_file, is_published
from optuna_nas.storage.attributes import (
    SHARED_NETWORK,
    TEST_RESULT,
    Unverified,
    attribute,
    user_attributes,
)
from optuna_nas.storage.by_architecture import trained_by
from optuna_nas.storage.identity import study_uid
from optuna_nas.storage.leaderboard import best_trial
from optuna_nas.storage.versions import git_commit, versions
from optuna_nas.tracking import DatasetInfo
from optuna_nas.training.disk import whole_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from optuna import Study
    from optuna.trial import FrozenTrial

    from optuna_nas.search.config import Search
    from optuna_nas.space import Architecture, Space

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchResult:
    """Result of a search.

    Args:
        study: The Optuna study.
        best: Best trial by the first objective that violates no constraint; None if there is none.
        picture: File with a drawing of the best architecture; None if the trial has no architecture of the space.
        network: File with the network of the best trial, for `load_network`; None if there is none.
        test_metric: Metric of this network on the test split, which is evaluated once; None before the end.
        interrupted: Whether the search was stopped before its total number of trials.
        missing: Number of trials that are still to run.
        ended: Why the search ended before its total number of trials, in words; None if it did not.

    Example:
        >>> import optuna
        >>> from optuna_nas import SearchResult
        >>> study = optuna.create_study(direction="maximize")
        >>> study.optimize(lambda trial: 0.9, n_trials=1)
        >>> SearchResult(study, study.best_trial).best.value
        0.9
    """

    study: Study
    best: FrozenTrial | None
    picture: Path | None = None
    network: Path | None = None
    test_metric: float | None = None
    interrupted: bool = False
    missing: int = 0
    ended: str | None = None

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        from optuna_nas.search.notebook import result_html

        return result_html(self)


# -- summary --------------------------------------------------------------------------------------------------------


def summarise(search: Search, study: Study, judge: bool = False) -> SearchResult:
    """Return the result of a study: the best trial with its picture and network.

    Args:
        search: Configuration.
        study: Study of the search.
        judge: Whether to evaluate the network on the test split, unless that was done before.
    """
    best = best_trial(study)
    if best is None:
        return SearchResult(study, None)
    folder = search.resolved_folder()
    picture: Path | None = None
    architecture = architecture_of(search, best)
    if architecture is not None:
        from optuna_nas.plots import plot_architecture  # workers draw nothing, and need not load matplotlib

        picture = folder / "best_architecture.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(picture) as file:
            plot_architecture(architecture).savefig(file, dpi=150)
    network: Path | None = network_of(search, study, best)
    test_metric = _test_metric(search, study, best, network, judge)
    return SearchResult(study, best, picture, network, test_metric)


def network_of(search: Search, study: Study, trial: FrozenTrial) -> Path | None:
    """Return the file of a trial's network, downloaded if it was trained on another machine; None if there is none.

    A file of the same name that another study has left is not believed.
    """
    trained = trained_by(study, trial, search.space)
    path = network_path(search.resolved_folder(), trained.number)
    if path.exists():
        try:
            owner, chosen = owner_and_choices(path)
        except ValueError as error:
            logger.warning("The network of trial %d is damaged: %s", trial.number, error)
            return None
        architecture = architecture_of(search, trained)
        whole = None if architecture is None else dict(architecture.choices)
        if whole is not None and not all(set(names) <= set(whole.get(place, ())) for place, names in chosen.items()):
            logger.warning("%s is the network of another architecture, and is left out.", path)
            return None
        if owner is None or owner.get("study") == study_uid(study):  # files of before do not say
            return path
        reference = attribute(trained.user_attrs, SHARED_NETWORK)
        if reference is not None and is_published(reference, path):  # downloaded: the trial of a copy names it
            return path
        logger.warning("%s is the network of another study, and is left out.", path)
        return None
    return path if _fetch_network(search, trained, path) else None


def _fetch_network(search: Search, trained: FrozenTrial, path: Path) -> bool:
    """Download a network that was trained on another machine; return whether there is one."""
    reference = attribute(trained.user_attrs, SHARED_NETWORK)
    if search.artifacts is None or reference is None:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        fetch_file(artifact_store(search.artifacts), reference, path)
    except Unverified as error:
        path.unlink(missing_ok=True)
        logger.warning("The network of trial %d is not available: %s.", trained.number, error)
        return False
    return True


def _test_metric(search: Search, study: Study, best: FrozenTrial, network: Path | None, judge: bool) -> float | None:
    judged = attribute(user_attributes(study), TEST_RESULT)
    if judged is not None and judged["trial"] == best.number:
        return float(judged["metric"])
    objective = search.resolved_objective
    if not judge or network is None or not isinstance(objective, Judges):
        return None
    metric = objective.judge(network)
    if metric is not None:
        study.set_user_attr(TEST_RESULT, {"trial": best.number, "metric": metric})
    return metric


def architecture_of(search: Search, trial: FrozenTrial) -> Architecture | None:
    """Return a trial's architecture, None if the trial lacks parameters of the space."""
    try:
        return search.space.decode(trial.params)
    except ValueError:
        return None


# -- MLflow ----------------------------------------------------------------------------------------------------------


class _Shown(TypedDict):
    """Arguments of `MLflowTracker.start`."""

    space: Space | None
    metric: str
    judged: str
    description: str
    dataset: DatasetInfo | None
    params: Mapping[str, object]
    tags: Mapping[str, str]


def shown_in_mlflow(search: Search) -> _Shown:
    """Return what MLflow shows on the run of a study, besides its trials."""
    return {
        "space": search.space if search.pictures else None,
        "metric": metric_of(search.resolved_objective),
        "judged": judged_metric_of(search.resolved_objective),
        "description": search.description,
        "dataset": _dataset_info(search.resolved_objective),
        "params": _summary(search),
        "tags": {f"version.{name}": version for name, version in versions().items()}
        | ({"mlflow.source.git.commit": commit} if (commit := git_commit()) else {}),
    }


def _dataset_info(objective: Objective) -> DatasetInfo | None:
    data = getattr(objective, "data", None)
    if data is None:
        return None
    description = data.describe()
    return DatasetInfo(description["name"], description["name"], description.get("digest", ""))


def _summary(search: Search) -> dict[str, object]:
    """Return the parameters of a study's run in MLflow."""
    summary: dict[str, object] = {
        "space": type(search.space.core).__name__,
        "space_size": search.space.size,
        "trials": search.total,
        **part_names(search),
    }
    objective = search.resolved_objective
    if isinstance(objective, Describes):
        described = objective.describe()
        summary["data"] = described["data"]["name"] if "data" in described else "own"
        for part in ("recipe", "task"):
            summary |= {f"{part}/{name}": value for name, value in described.get(part, {}).items()}
        skeleton = described.get("space", {}).get("skeleton", {})
        summary |= {f"skeleton/{name}": str(value) for name, value in skeleton.items()}
    return summary

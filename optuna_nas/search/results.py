"""What a search came to: best trial, test metric."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from optuna.trial import FrozenTrial

from optuna_nas.objective.protocol import Describes, Judges, Objective, metric_of
from optuna_nas.objective.trial_training import network_path
from optuna_nas.storage.artifacts import artifact_store, fetch_file
from optuna_nas.storage.attributes import DUPLICATE_OF, SHARED_NETWORK, TEST_RESULT, Unverified, attribute
from optuna_nas.storage.leaderboard import best_trial
from optuna_nas.storage.versions import git_commit, versions
from optuna_nas.tracking import DatasetInfo

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
    """What a search came to.

    Args:
        study: The Optuna study.
        best: The best trial, None where none has finished (or, for several objectives, the first of the best).
        picture: File of the best architecture's picture.
        network: File of the best trial's network, for `load_network`.
        test_metric: Its metric on the test split, measured once.
        interrupted: Whether it was stopped before its total.
        missing: Trials still to run.
    """

    study: Study
    best: FrozenTrial | None
    picture: Path | None = None
    network: Path | None = None
    test_metric: float | None = None
    interrupted: bool = False
    missing: int = 0


# -- what it came to ------------------------------------------------------------------------------------------------


def summarise(search: Search, study: Study, judge: bool = False) -> SearchResult:
    """Return the best trial with its picture and network; with `judge`, measure its test metric, once."""
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
        plot_architecture(architecture).savefig(picture, dpi=150)
    network: Path | None = network_path(folder, attribute(best.user_attrs, DUPLICATE_OF, best.number))
    if network is not None and not network.exists() and not _fetch_network(search, study, best, network):
        network = None
    test_metric = _test_metric(search, study, best, network, judge)
    return SearchResult(study, best, picture, network, test_metric)


def _fetch_network(search: Search, study: Study, best: FrozenTrial, path: Path) -> bool:
    """Fetch a network that was trained on another machine; tell whether there is one."""
    trained = study.trials[attribute(best.user_attrs, DUPLICATE_OF, best.number)]
    if search.artifacts is None or SHARED_NETWORK not in trained.user_attrs:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        fetch_file(artifact_store(search.artifacts), trained.user_attrs[SHARED_NETWORK], path)
    except Unverified as error:
        path.unlink(missing_ok=True)
        logger.warning("The network of trial %d can't be had: %s.", trained.number, error)
        return False
    return True


def _test_metric(search: Search, study: Study, best: FrozenTrial, network: Path | None, judge: bool) -> float | None:
    judged = study.user_attrs.get(TEST_RESULT)
    if judged is not None and judged["trial"] == best.number:
        return float(judged["accuracy"] if "accuracy" in judged else judged["metric"])
    objective = search.resolved_objective
    if not judge or network is None or not isinstance(objective, Judges):
        return None
    metric = objective.judge(network)
    if metric is not None:
        study.set_user_attr(TEST_RESULT, {"trial": best.number, "metric": metric})
    return metric


def architecture_of(search: Search, trial: FrozenTrial) -> Architecture | None:
    """Return a trial's architecture, None where an objective of one's own did not ask for all of it."""
    try:
        return search.space.decode(trial.params)
    except ValueError:
        return None


# -- what MLflow shows -----------------------------------------------------------------------------------------------


class _Shown(TypedDict):
    """What `MLflowTracker.start` shows on a study's run."""

    space: Space | None
    metric: str
    description: str
    dataset: DatasetInfo | None
    params: Mapping[str, object]
    tags: Mapping[str, str]


def shown_in_mlflow(search: Search) -> _Shown:
    """Return what MLflow shows of a search besides its trials."""
    return {
        "space": search.space if search.pictures else None,
        "metric": metric_of(search.resolved_objective),
        "description": search.description,
        "dataset": _dataset_info(search.resolved_objective),
        "params": _summary(search),
        "tags": {f"version.{name}": found for name, found in versions().items()}
        | ({"mlflow.source.git.commit": commit} if (commit := git_commit()) else {}),
    }


def _dataset_info(objective: Objective) -> DatasetInfo | None:
    data = getattr(objective, "data", None)
    if data is None:
        return None
    description = data.describe()
    return DatasetInfo(description["name"], description["name"], description.get("digest", ""))


def _summary(search: Search) -> dict[str, object]:
    """Return what the parent run shows as parameters."""
    summary: dict[str, object] = {
        "space": type(search.space.core).__name__,
        "space_size": search.space.size,
        "trials": search.trials,
        "sampler": type(search.sampler).__name__ if search.sampler else "default",
        "pruner": type(search.pruner).__name__ if search.pruner else "default",
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

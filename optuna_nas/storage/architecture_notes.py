"""Notes of a trial about its architecture, each with a hash of the parameters that it is about."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from optuna_nas.storage.attributes import DIGEST, DIGESTED, SCORED, SCORED_BY, SURROGATE_SCORE, attribute, hash_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from optuna import Study
    from optuna.trial import FrozenTrial


def params_hash(params: Mapping[str, Any], names: Iterable[str]) -> str:
    """Return a hash of the parameters of some names.

    Example:
        >>> from optuna_nas.storage.architecture_notes import params_hash
        >>> params_hash({"a": 1, "rate": 0.1}, ["a"]) == params_hash({"a": 1}, ["a"])
        True
    """
    chosen = [[name, params.get(name)] for name in sorted(names)]
    return f"{hash_of(json.dumps(chosen, default=lambda number: number.item())):016x}"  # which may be NumPy's


def digest_noted(trial: FrozenTrial, names: Iterable[str]) -> str | None:
    """Return the hash of the architecture that a trial notes, None if there is none or it is another architecture's.

    Args:
        trial: Trial of an objective that notes hashes.
        names: Names of the parameters of the space.

    Example:
        >>> import optuna
        >>> from optuna_nas.storage.architecture_notes import digest_noted, params_hash
        >>> from optuna_nas.storage.attributes import DIGEST, DIGESTED
        >>> op = {"op": optuna.distributions.CategoricalDistribution(("a", "b"))}
        >>> noted = {DIGEST: "0123456789abcdef", DIGESTED: params_hash({"op": "a"}, op)}
        >>> for choice in ("a", "b"):
        ...     trial = optuna.create_trial(value=1, params={"op": choice}, distributions=op, user_attrs=noted)
        ...     print(digest_noted(trial, op))
        0123456789abcdef
        None
    """
    noted, digest = trial.user_attrs.get(DIGESTED), attribute(trial.user_attrs, DIGEST)
    return digest if isinstance(digest, str) and noted in (None, params_hash(trial.params, names)) else None


def score_notes(score: float, params: Mapping[str, Any], names: Iterable[str], meaning: str) -> dict[str, Any]:
    """Return the attributes that note a score of an architecture.

    Args:
        score: Score.
        params: Parameters that were scored.
        names: Names of the parameters of the space.
        meaning: What the score is, in a few words; see `meaning_of`.

    Example:
        >>> from optuna_nas.storage.architecture_notes import score_notes
        >>> sorted(score_notes(0.7, {"op": "a", "rate": 0.1}, ["op"], "share of convolutions"))
        ['optuna_nas:scored_by', 'optuna_nas:scored_params', 'optuna_nas:surrogate_score']
    """
    return {SURROGATE_SCORE: score, SCORED: params_hash(params, names), SCORED_BY: meaning}


def note_score(
    study: Study, trial: FrozenTrial, score: float, params: Mapping[str, Any], names: Iterable[str], meaning: str
) -> None:
    """Note a score in the attributes of a running trial; see `score_notes`."""
    for key, value in score_notes(score, params, names, meaning).items():
        study._storage.set_trial_user_attr(trial._trial_id, key, value)


def score_noted(trial: FrozenTrial, names: Iterable[str] | None = None) -> float | None:
    """Return the score that a trial notes, None if there is none or it was noted for other parameters.

    Args:
        trial: Trial, which may have come by `copy_study` or `add_trial`.
        names: Names of the parameters of the space; None to believe whatever a trial notes.

    Example:
        >>> import optuna
        >>> from optuna_nas.storage.architecture_notes import score_noted, score_notes
        >>> op = {"op": optuna.distributions.CategoricalDistribution(("a", "b"))}
        >>> noted = score_notes(0.7, {"op": "a"}, op, "share of convolutions")
        >>> for choice in ("a", "b"):
        ...     trial = optuna.create_trial(value=1, params={"op": choice}, distributions=op, user_attrs=noted)
        ...     print(score_noted(trial, op))
        0.7
        None
    """
    score, noted = attribute(trial.user_attrs, SURROGATE_SCORE), attribute(trial.user_attrs, SCORED)
    if names is not None and noted is not None and noted != params_hash(trial.params, names):
        return None
    return None if score is None else float(score)

"""Index of finished trials whose results trials of the same function can reuse."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from optuna_nas.storage.architecture_notes import digest_noted
from optuna_nas.storage.attributes import DUPLICATE_OF, TRAINING_DIGEST, attribute, has_attribute
from optuna_nas.storage.finished import FinishedIndex, PerStudy

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Mapping

    from optuna import Trial


class Duplicates:
    """Index of finished trials by everything that determines their results. Each finished trial is read once.

    Args:
        own_names: Names of the parameters of the space, which the hash of the architecture covers.
    """

    def __init__(self, own_names: Collection[str]) -> None:
        self._own_names = frozenset(own_names)
        self._results: PerStudy[FinishedIndex[Hashable]] = PerStudy(
            partial(FinishedIndex, partial(_key_of_result, own_names=self._own_names))
        )

    def of(self, trial: Trial, digest: str, training_digest: str) -> FrozenTrial | None:
        """Return an earlier finished trial that trained the same function with the same other parameters, or None.

        Args:
            trial: Running trial.
            digest: Hash of the canonical graph of its architecture.
            training_digest: Hash of everything else that determines its result.
        """
        index = self._results.of(trial.study)
        index.update(trial.study.get_trials(deepcopy=False))
        same = index.of(_result_key(digest, training_digest, trial.params, self._own_names))
        return next((earlier for earlier in same if earlier.number < trial.number), None)


def _key_of_result(trial: FrozenTrial, own_names: frozenset[str]) -> Hashable | None:
    """Return the key of a finished trial in the index, None if its result must not be reused."""
    digest, training_digest = digest_noted(trial, own_names), attribute(trial.user_attrs, TRAINING_DIGEST)
    is_whole = trial.state == TrialState.COMPLETE or (trial.state == TrialState.PRUNED and trial.intermediate_values)
    if not is_whole or digest is None or has_attribute(trial.user_attrs, DUPLICATE_OF):
        return None
    return _result_key(digest, training_digest, trial.params, own_names)


def _result_key(
    digest: str, training_digest: str | None, params: Mapping[str, Any], own_names: frozenset[str]
) -> Hashable:
    # Numbers are compared as floats, since 1 may be enqueued as 1.0; choices as text, since lists are not hashable.
    others = sorted(
        (name, float(value) if isinstance(value, int | float) else repr(value))
        for name, value in params.items()
        if name not in own_names
    )
    return digest, training_digest, tuple(others)

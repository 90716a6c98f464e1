"""Results of finished trials that another trial of the same function may take over."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from optuna_nas.storage.attributes import DIGEST, DUPLICATE_OF, TRAINING_DIGEST, attribute, has_attribute
from optuna_nas.storage.finished import FinishedIndex, PerStudy

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Mapping

    from optuna import Trial


class Duplicates:
    """Finished trials by what decides their results; every finished trial of a study is looked at once.

    Args:
        own_names: Parameters that the digest of the architecture stands for.
    """

    def __init__(self, own_names: Collection[str]) -> None:
        self._own_names = frozenset(own_names)
        self._results: PerStudy[FinishedIndex[Hashable]] = PerStudy(
            partial(FinishedIndex, partial(_key_of_result, own_names=self._own_names))
        )

    def of(self, trial: Trial, digest: str, training_digest: str) -> FrozenTrial | None:
        """Return an earlier finished trial that trained the same function under the same other parameters.

        Args:
            trial: A running trial.
            digest: Digest of its canonical architecture.
            training_digest: Digest of what else decides its result.
        """
        index = self._results.of(trial.study)
        index.update(trial.study.get_trials(deepcopy=False))
        same = index.of(_result_key(digest, training_digest, trial.params, self._own_names))
        return next((earlier for earlier in same if earlier.number < trial.number), None)


def _key_of_result(trial: FrozenTrial, own_names: frozenset[str]) -> Hashable | None:
    """Return what decides a finished trial's result, None where the result may not be taken over."""
    digest, training_digest = (attribute(trial.user_attrs, key) for key in (DIGEST, TRAINING_DIGEST))
    is_whole = trial.state == TrialState.COMPLETE or (trial.state == TrialState.PRUNED and trial.intermediate_values)
    if not is_whole or digest is None or has_attribute(trial.user_attrs, DUPLICATE_OF):
        return None
    return _result_key(digest, training_digest, trial.params, own_names)


def _result_key(
    digest: str, training_digest: str | None, params: Mapping[str, Any], own_names: frozenset[str]
) -> Hashable:
    # A number is equal however it was enqueued (1 or 1.0), and a choice may be a list, which can't be a key.
    others = sorted(
        (name, float(value) if isinstance(value, int | float) else repr(value))
        for name, value in params.items()
        if name not in own_names
    )
    return digest, training_digest, tuple(others)

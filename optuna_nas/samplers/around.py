"""Base class of samplers around a sampler of architectures."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from optuna.samplers import BaseSampler

from optuna_nas.storage.finished import PicklesSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna import Study
    from optuna.trial import FrozenTrial, TrialState

    from optuna_nas.samplers.base import ArchitectureSampler


class AroundSampler(PicklesSettings, BaseSampler):
    """Base class of samplers that hand most of their work to a sampler of architectures.

    Args:
        sampler: The other sampler.
    """

    def __init__(self, sampler: ArchitectureSampler | AroundSampler) -> None:
        self.sampler = sampler
        super().__init__()

    def _init_state(self) -> None:
        super()._init_state()
        self._lock = threading.Lock()

    @property
    def space(self) -> Any:
        """Search space of the other sampler."""
        return self.sampler.space

    def prepare(self, *arguments: Any, **named: Any) -> None:
        """Hand the settings of a search to the other sampler; see `InStudyFit.prepare`."""
        self.sampler.prepare(*arguments, **named)

    def reseed_rng(self) -> None:
        self.sampler.reseed_rng()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self.sampler.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self.sampler.after_trial(study, trial, state, values)

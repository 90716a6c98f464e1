"""Prune the worst architectures by a score that needs no training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from optuna_nas.oneshot.base import meaning_of, score_of
from optuna_nas.pruners.base import QuantilePruner
from optuna_nas.space.choice_space import as_space

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner

    from optuna_nas.oneshot.base import OneShotModel, Score
    from optuna_nas.space import Architecture, Space


class GHNPruner(QuantilePruner):
    """Pruner of architectures that score below a quantile of random ones, before their training.

    The default quantile is a quarter: among the 500 networks of Knyazev et al. (2021), dropping the worst quarter by
    the score of a graph hypernetwork loses a seventh of the true top tenth; dropping the worst half loses two fifths.

    Pruning is disabled while scores do not rank finished trials significantly; see `SurrogatePruner`.

    Args:
        model: Fitted `OneShotModel`, such as a `GHN`.
        space: Search space of the trials, or Optuna distributions, for a `ChoiceSpace`; by default that of the model.
        score: Function that scores architectures instead of a model; larger is better.
        quantile: Quantile of the scores of random architectures below which trials are pruned, in (0, 1).
        n_random: Number of random architectures for the quantile, at least 10; each of the first trials scores 100.
        pruner: Pruner that judges the learning curve of trials that pass; by default Optuna's median pruner.
        exempt: Fraction of flagged trials that are trained anyway, to check the predictions, in (0, 1].
        n_startup_trials: Number of finished trials before the first one is pruned, at least 5.
        seed: Seed of the random architectures and of the choice of exempt trials.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> import numpy as np, optuna
        >>> from optuna_nas import GHNPruner, nasbench201_space
        >>> space = nasbench201_space()
        >>> def n_convolutions(architectures):
        ...     return np.array([float(str(architecture).count("conv")) for architecture in architectures])
        >>> def objective(trial):
        ...     architecture = space.suggest(trial)
        ...     if trial.should_prune():
        ...         raise optuna.TrialPruned
        ...     return n_convolutions([architecture])[0]
        >>> pruner = GHNPruner(space=space, score=n_convolutions, exempt=0.2)
        >>> sampler = optuna.samplers.RandomSampler(seed=0)
        >>> study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
        >>> study.optimize(objective, n_trials=40)
        >>> n_pruned = sum(trial.state.name == "PRUNED" for trial in study.trials)
        >>> n_pruned > 0, pruner.correlation(study).tau
        (True, 1.0)
    """

    name = "ghn"

    def __init__(
        self,
        model: OneShotModel[Any] | None = None,
        *,
        space: Space | Mapping[str, BaseDistribution] | None = None,
        score: Score | None = None,
        quantile: float = 0.25,
        n_random: int = 1000,
        pruner: BasePruner | None = None,
        exempt: float = 0.05,
        n_startup_trials: int = 15,
        seed: int = 0,
    ) -> None:
        self.model, self._scorer = model, score_of(model, score)
        if space is None:
            if model is None:
                raise ValueError("`space` must be given, unless there is a `model`, which has one.")
            space = model.space
        super().__init__(as_space(space), pruner, quantile, n_random, exempt, n_startup_trials, seed)

    @property
    def meaning(self) -> str:
        return meaning_of(self._scorer)

    def _scores(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        return np.asarray(self._scorer(architectures), dtype=np.float64)

    def _step(self) -> int:
        return 0 if self.model is None else self.model.step

    def _can_score(self) -> bool:
        """Return whether the model is fitted."""
        return self.model is None or self.model.fitted

"""A pruner for some trials only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optuna.pruners import BasePruner

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial


class OnlyWhere(BasePruner):
    """Pruner that asks another one for trials with a value of a parameter, and lets all other trials pass.

    Learning curves of trainings of different lengths cannot be compared epoch by epoch.

    Args:
        pruner: Pruner of those trials.
        parameter: Name of the parameter.
        value: Its value.

    Example:
        >>> import optuna
        >>> from optuna_nas.pruners.only_where import OnlyWhere
        >>> pruner = OnlyWhere(optuna.pruners.ThresholdPruner(upper=1.0), "epochs", 5)
        >>> study = optuna.create_study(pruner=pruner)
        >>> for epochs in (5, 15):
        ...     study.enqueue_trial({"epochs": epochs})
        ...     trial = study.ask()
        ...     _ = trial.suggest_categorical("epochs", (5, 15))
        ...     trial.report(2.0, 1)
        ...     print(trial.should_prune())
        True
        False
    """

    def __init__(self, pruner: BasePruner, parameter: str, value: Any) -> None:
        self._pruner, self._parameter, self._value = pruner, parameter, value

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        return trial.params.get(self._parameter) == self._value and self._pruner.prune(study, trial)

"""Trials of a study by their architecture, whatever their numbers: a trial that is tried again gets another one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optuna.trial import TrialState

from optuna_nas.storage.architecture_notes import digest_noted
from optuna_nas.storage.attributes import DUPLICATE_OF, REQUEUED, TRAINING_DIGEST, attribute, find_trial, given_params
from optuna_nas.storage.leaderboard import ranking
from optuna_nas.storage.retries import try_again

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

    from optuna_nas.space import Architecture, Space


def trial_of(study: Study, architecture: Architecture) -> FrozenTrial | None:
    """Return the best completed trial of an architecture; None if there is none.

    Example:
        >>> import optuna
        >>> from optuna_nas import nasbench201_space
        >>> from optuna_nas.storage.by_architecture import enqueue_architecture, trial_of
        >>> space, study = nasbench201_space(), optuna.create_study(direction="maximize")
        >>> wanted = space.architecture({"cell_0_3": ("skip_connect",)})
        >>> study.optimize(lambda trial: float(space.suggest(trial) == wanted), n_trials=1)
        >>> enqueue_architecture(study, wanted)
        >>> study.optimize(lambda trial: float(space.suggest(trial) == wanted), n_trials=1)
        >>> trial_of(study, wanted).number
        1
    """
    return next((trial for trial in ranking(study) if _is_of(trial, architecture)), None)


def trained_by(study: Study, trial: FrozenTrial, space: Space) -> FrozenTrial:
    """Return the trial whose training is that of a trial: an earlier one whose result it took over, or itself.

    An attribute that names another trial is believed only if that one computes the same function, trained alike: added
    trials have attributes of another study.

    Args:
        study: Study of the trial.
        trial: Trial.
        space: Space of the study.
    """
    earlier = find_trial(study, attribute(trial.user_attrs, DUPLICATE_OF, trial.number))
    if earlier is None or earlier.number >= trial.number:
        return trial
    names = space.distributions()
    same = digest_noted(earlier, names) == digest_noted(trial, names) is not None
    settings = [attribute(one.user_attrs, TRAINING_DIGEST) for one in (earlier, trial)]
    return earlier if same and settings[0] == settings[1] else trial


def enqueue_architecture(study: Study, architecture: Architecture) -> None:
    """Enqueue a trial of an architecture, unless one has finished, runs or waits, or will be tried again.

    One whose attempts were given up, such as after several processes that died before a first checkpoint, is tried
    again, from its checkpoint if there is one. Call it before `run`, as often as you like.

    Args:
        study: Study in whose parameters the space of the architecture encodes it.
        architecture: Architecture of the study's space.
    """
    own = [trial for trial in study.get_trials(deepcopy=False) if _is_of(trial, architecture)]
    if not own:
        study.enqueue_trial(architecture.space.encode(architecture))
    elif all(trial.state == TrialState.FAIL for trial in own) and not attribute(own[-1].user_attrs, REQUEUED, False):
        try_again(study, own[-1])


def _is_of(trial: FrozenTrial, architecture: Architecture) -> bool:
    """Return whether a trial has, or will have, the parameters of an architecture."""
    try:
        return architecture.space.core.decode(given_params(trial)) == architecture.space.core.adopt(architecture)
    except ValueError:  # it has others
        return False

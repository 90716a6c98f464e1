"""Scores against values: the numbers behind the picture, and that it is drawn."""

import numpy as np
import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial
from scipy.stats import kendalltau

from optuna_nas import (
    GHN,
    FreeScore,
    GHNPruner,
    GHNRecipe,
    NetworkSpace,
    digits,
    nasbench201_skeleton,
    nasbench201_space,
    plot_surrogate,
)
from optuna_nas.plots.surrogate import scores_of
from optuna_nas.storage.architecture_notes import params_hash, score_notes
from optuna_nas.storage.attributes import PREFIX, SCORED


def trial(value, **named):
    attributes = {PREFIX + name: value for name, value in named.items()}
    if value is None:
        return create_trial(state=TrialState.PRUNED, user_attrs=attributes)
    return create_trial(value=value, user_attrs=attributes)


def study_of(trials, direction="maximize"):
    study = optuna.create_study(direction=direction)
    for one in trials:
        study.add_trial(one)
    return study


def test_trials_that_finished_and_were_guessed_are_counted():
    study = study_of(
        [
            trial(0.5, surrogate_score=0.1),
            trial(0.7),
            trial(None, surrogate_score=0.2),
            trial(0.6, surrogate_score=0.3, flagged="its score is low"),
            trial(0.6, surrogate_score=float("nan")),
        ]
    )
    found = scores_of(study.trials, StudyDirection.MAXIMIZE)
    assert found.numbers == (0, 3)
    assert found.scores == (0.1, 0.3)
    assert found.values == (0.5, 0.6)
    assert found.flagged == (False, True)


def test_the_axis_says_what_a_score_is():
    space = NetworkSpace(nasbench201_space(), nasbench201_skeleton(1, 2, (1, 8, 8), 10))
    cell = space.sample(np.random.default_rng(0))

    def n_ops(architectures):
        return np.ones(len(architectures))

    for score, says in (
        (FreeScore(space, digits(), reference=2), "share of random architectures that it beats"),
        (GHN(space, GHNRecipe(phases=1)).score, "minus the loss with the weights of GHN"),
        (n_ops, "n_ops"),
    ):
        pruner = GHNPruner(space=space, score=score)
        study = optuna.create_study(direction="maximize", pruner=pruner)
        noted = score_notes(-0.3, space.encode(cell), space.options(), pruner.meaning)
        study.add_trial(create_trial(value=0.5, user_attrs=noted))
        assert plot_surrogate(study).axes[0].get_xlabel() == says
    study = study_of([trial(0.5, surrogate_score=0.1)])  # of before
    assert plot_surrogate(study).axes[0].get_xlabel() == "score before training, larger is better"


def test_the_score_of_another_architecture_is_left_out_where_the_space_is_known():
    space = nasbench201_space()
    ours, other = (space.encode(space.sample(np.random.default_rng(seed))) for seed in (0, 1))
    noted = {"optuna_nas:surrogate_score": 0.3, SCORED: params_hash(ours, space.options())}
    study = optuna.create_study(direction="maximize")
    for params in (ours, other):  # as `add_trial` brings it
        arguments = {"params": params, "distributions": space.distributions(), "user_attrs": noted}
        study.add_trial(optuna.create_trial(value=0.5, **arguments))
    assert scores_of(study.trials, StudyDirection.MAXIMIZE, space).numbers == (0,)
    assert scores_of(study.trials, StudyDirection.MAXIMIZE).numbers == (0, 1)


@pytest.mark.parametrize("direction", [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE])
def test_the_correlation_says_how_well_better_trials_score_higher(direction):
    random = np.random.default_rng(0)
    values = random.normal(size=30)
    scores = values + random.normal(size=30)
    sign = 1 if direction == StudyDirection.MAXIMIZE else -1
    found = scores_of([trial(sign * v, surrogate_score=s) for v, s in zip(values, scores, strict=True)], direction)
    assert found.correlation.tau == pytest.approx(kendalltau(scores, values).statistic)
    assert 0 < found.correlation.lower < found.correlation.tau < found.correlation.upper < 1


@pytest.mark.parametrize("number", [2, 20])
def test_a_picture_shows_every_trial(number, tmp_path):
    trials = [
        trial(0.1 * i, surrogate_score=0.2 * i, **({"flagged": "low"} if i % 3 == 0 else {})) for i in range(number)
    ]
    figure = plot_surrogate(study_of(trials))
    (axes,) = figure.axes
    assert sum(len(points.get_offsets()) for points in axes.collections) == number
    assert ("too few" in axes.get_title(loc="left")) == (number < 5)
    figure.savefig(tmp_path / "surrogate.png")


def test_nothing_to_draw_is_one_sentence():
    with pytest.raises(ValueError, match="`study` must have finished trials with a surrogate score"):
        plot_surrogate(study_of([trial(0.5)]))

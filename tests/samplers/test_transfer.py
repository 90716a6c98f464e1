"""What was learned elsewhere starts a study: from trials, logits or scores; refused where the choices differ."""

import numpy as np
import optuna
import pytest
from strategies import few_digits

from optuna_nas import (
    GHN,
    SNAS,
    CellKind,
    CellSpace,
    ChoiceSpace,
    GHNRecipe,
    GHNSampler,
    NetworkSpace,
    Skeleton,
    SNASRecipe,
    SNASSampler,
    TransferredScore,
    nasbench201_space,
)

SPACE = nasbench201_space()
FEW = CellSpace(("none", "nor_conv_3x3"), 2, 1, (CellKind("cell"),))
MORE = CellSpace(("none", "skip_connect", "nor_conv_3x3"), 2, 1, (CellKind("cell"),))
FRAME = Skeleton(("cell",), 2, (1, 8, 8), 10, affine=False)


def n_convolutions(architectures):
    return np.array([float(str(architecture).count("conv")) for architecture in architectures])


def studied(n_trials, sampler, direction="maximize", sign=1.0):
    study = optuna.create_study(direction=direction, sampler=sampler)
    study.optimize(lambda trial: sign * n_convolutions([SPACE.suggest(trial)])[0], n_trials=n_trials)
    return study


@pytest.mark.parametrize(("direction", "sign"), [("maximize", 1.0), ("minimize", -1.0)])
def test_trials_of_a_study_tell_what_options_are_worth(direction, sign):
    learned = TransferredScore.of_study(studied(60, optuna.samplers.RandomSampler(0), direction, sign), SPACE)
    cells = [SPACE.sample(np.random.default_rng(seed)) for seed in range(200)]
    assert np.corrcoef(learned(cells), n_convolutions(cells))[0, 1] > 0.95
    means = [
        np.mean([trial.value for trial in studied(5, SNASSampler(SPACE, prior=prior, seed=0)).trials])
        for prior in (learned, None)
    ]
    assert means[0] > means[1] + 0.5


def test_trials_that_failed_or_were_pruned_do_not_count():
    study = studied(30, optuna.samplers.RandomSampler(0))
    learned = TransferredScore.of_study(study, SPACE).effects
    for state in (optuna.trial.TrialState.FAIL, optuna.trial.TrialState.PRUNED):
        trial = study.trials[0]
        study.add_trial(optuna.create_trial(state=state, params=trial.params, distributions=trial.distributions))
    assert TransferredScore.of_study(study, SPACE).effects == learned


def test_logits_are_taken_as_they_are_and_other_models_by_their_scores():
    data = few_digits(64)
    snas = SNAS(NetworkSpace(FEW, FRAME), SNASRecipe(batch_size=16))
    snas.fit(data, 1, show_progress=False)
    learned = TransferredScore.of_model(snas)
    assert [list(options.values()) for options in learned.effects.values()] == [
        pytest.approx(row) for row in snas.logits.tolist()
    ]
    ghn = GHN(NetworkSpace(FEW, FRAME), GHNRecipe(batch_size=16, phases=1))
    ghn.fit(data, 1, show_progress=False)
    by_scores = TransferredScore.of_model(ghn)
    assert by_scores.effects.keys() == learned.effects.keys()
    assert any(by_scores.effects["cell_0_1"].values())


def test_an_added_option_is_worth_the_mean_and_other_choices_are_refused():
    learned = TransferredScore({name: {"none": -1.0, "nor_conv_3x3": 2.0} for name in FEW.distributions()})
    [new] = learned([MORE.architecture({path: ["skip_connect"] for path in MORE.paths})])
    assert new == pytest.approx(0.5 * len(MORE.paths))
    sampler = GHNSampler(NetworkSpace(MORE, FRAME), score=learned, pool_size=20, trials_per_round=5, seed=0)
    assert sampler.score is learned
    with pytest.raises(ValueError, match="must have the choices that were learned about but 'cell_0_3' is in one of"):
        learned([SPACE.sample(np.random.default_rng(0))])
    without = ChoiceSpace(tuple((name, ("none",)) for name in FEW.distributions()))
    with pytest.raises(ValueError, match="all options that were learned about but 'cell_0_1' has no 'nor_conv_3x3'"):
        learned([without.sample(np.random.default_rng(0))])


def test_nothing_to_learn_from_is_said():
    with pytest.raises(ValueError, match="`effects` must name the options of at least one choice but is empty"):
        TransferredScore({})
    with pytest.raises(ValueError, match="`study` must have one objective but has 2"):
        TransferredScore.of_study(optuna.create_study(directions=["maximize", "minimize"]), SPACE)
    with pytest.raises(ValueError, match="`study` must have at least 2 completed trials but 'empty' has 0"):
        TransferredScore.of_study(optuna.create_study(study_name="empty"), SPACE)

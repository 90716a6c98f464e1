"""The best value so far is Optuna's, infinite ones too; plots show what is finite."""

import optuna
import pytest

from optuna_nas.plots.progress import draw_progress, progress

ENDLESS = float("inf")


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize("values", [(0.5, ENDLESS, 0.6), (0.5, -ENDLESS, 0.6), (0.5, 0.6)])
def test_the_best_so_far_is_optunas(values, direction):
    study = optuna.create_study(direction=direction)
    study.add_trials([optuna.create_trial(value=value) for value in values])
    curve = progress(study.trials, study.directions[0])
    assert curve.best[-1] == study.best_value
    axes, _ = draw_progress(curve).axes
    finite = [value for value in values if abs(value) < ENDLESS]
    assert axes.collections[0].get_offsets()[:, 1].tolist() == finite

"""Which of the best differ by less than noise is said of losses and accuracies, and of nothing else."""

import optuna
import pytest

from optuna_nas.storage.attributes import VALIDATION_LOSS
from optuna_nas.storage.leaderboard import leaderboard
from optuna_nas.storage.noise import told_apart, validation_loss


def rows_of(values, noted=None, direction="minimize"):
    study = optuna.create_study(direction=direction)
    attributes = {} if noted is None else {VALIDATION_LOSS: noted}
    study.add_trials([optuna.create_trial(value=value, user_attrs=attributes) for value in values])
    return leaderboard(study)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([0.9, 0.310, 0.300, 0.315, 0.319, 0.33], "Ranks 1 to 4 differ by less than one standard error: 0.02 of loss"),
        ([0.300, 0.319], "Ranks 1 and 2 differ by less than one standard error: 0.02 of loss on 360 examples."),
        ([0.300, 0.350], "Ranks 1 and 2 differ by 0.05 of loss, more than one standard error: 0.02 of loss on 360"),
    ],
)
def test_losses_are_told_apart_by_the_standard_error_of_the_best(values, says):
    assert told_apart(rows_of(values, [0.3, 0.02, 360]), "loss").startswith(says)


def test_accuracies_are_told_apart_by_the_error_of_a_share():
    rows = rows_of([0.90, 0.89, 0.80], [0.3, 0.02, 360], direction="maximize")
    says = "Ranks 1 and 2 differ by less than one standard error: 1.6 points on 360 examples."
    assert told_apart(rows, "accuracy").startswith(says)
    plain = rows_of([0.90, 0.89, 0.80], direction="maximize")
    assert told_apart(plain, "accuracy", 360).startswith(says)


@pytest.mark.parametrize("noted", [None, [0.3, None, 360], [0.3, "much", 360], [0.3, 0.02]])
def test_nothing_is_said_where_no_error_is_known(noted):
    assert told_apart(rows_of([0.30, 0.31], noted), "loss") is None
    assert told_apart(rows_of([0.30, 0.31], [0.3, 0.02, 360]), "r2") is None
    assert told_apart(rows_of([0.30], [0.3, 0.02, 360]), "loss") is None
    (row, *_) = rows_of([0.3], noted)
    assert (validation_loss(row.trial) is None) == (noted is None or noted[1] == "much" or len(noted) == 2)


def test_nothing_is_said_where_the_best_is_infinite():
    assert told_apart(rows_of([float("-inf"), 0.30, 0.31], [0.3, 0.02, 360]), "loss") is None
    assert told_apart(rows_of([0.30, 0.31, float("inf")], [0.3, 0.02, 360]), "loss").startswith("Ranks 1 and 2")


def test_ranks_are_those_of_the_leaderboard():
    rows = [row._replace(rank=rank) for row, rank in zip(rows_of([0.30, 0.31, 0.9]), (1, 3, 4), strict=True)]
    for error, says in ((0.02, "Ranks 1 and 3 differ by less"), (0.001, "Ranks 1 and 3 differ by 0.01 of loss, more")):
        for row in rows:
            row.trial.user_attrs[VALIDATION_LOSS] = [0.3, error, 360]
        assert told_apart(rows, "loss").startswith(says)


def test_nothing_is_said_of_several_objectives():
    study = optuna.create_study(directions=["minimize", "minimize"])
    for values in ([0.3, 1], [0.31, 2]):
        study.add_trial(optuna.create_trial(values=values, user_attrs={VALIDATION_LOSS: [0.3, 0.02, 360]}))
    assert told_apart(leaderboard(study), "loss") is None

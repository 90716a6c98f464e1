"""One table of rules for the fields of all recipes."""

import math
from dataclasses import fields

import numpy as np
import pytest

from optuna_nas import GHNRecipe, HMNASRecipe, Recipe, SNASRecipe, suggest_float
from optuna_nas.oneshot.ghn.recipe import RULES as GHN_RULES
from optuna_nas.oneshot.hmnas.recipe import RULES as HMNAS_RULES
from optuna_nas.oneshot.snas.recipe import RULES as SNAS_RULES
from optuna_nas.training.recipe import RULES

RECIPES = {Recipe: RULES, SNASRecipe: SNAS_RULES, HMNASRecipe: HMNAS_RULES, GHNRecipe: GHN_RULES}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_field_has_a_rule(recipe):
    assert {field.name for field in fields(recipe)} == RECIPES[recipe].keys()


@pytest.mark.parametrize("recipe", RECIPES)
def test_numbers_of_numpy_become_pythons(recipe):
    made = recipe(batch_size=np.int64(3), learning_rate=np.float32(0.5), seed=np.uint8(7))
    assert (made.batch_size, made.learning_rate, made.seed) == (3, 0.5, 7)
    assert [type(value) for value in (made.batch_size, made.learning_rate, made.seed)] == [int, float, int]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", np.int64(-3)),
        ("batch_size", np.float64(3)),
        ("batch_size", True),
        ("batch_size", "3"),
        ("batch_size", None),
        ("learning_rate", np.float64(-1)),
        ("learning_rate", np.float64(math.nan)),
        ("learning_rate", True),
        ("learning_rate", None),
        ("precision", None),
        ("precision", 16),
        ("seed", np.int64(-1)),
    ],
)
def test_what_breaks_a_rule_is_refused_at_once(recipe, field, value):
    with pytest.raises(ValueError, match=rf"`{field}` must (not )?be"):
        recipe(**{field: value})


def test_a_float_may_be_an_integer_and_bounds_may_be_numpys():
    assert SNASRecipe(resource={"params": np.int64(5)}).resource == {"params": 5}
    assert SNASRecipe(resource=np.float64(0.5)).resource == 0.5
    assert HMNASRecipe(clip_norm=0).clip_norm == 0


def test_a_suggestion_is_left_to_the_trial_in_a_recipe_of_trials_only():
    assert Recipe(learning_rate=suggest_float(0.01, 0.3)).learning_rate == suggest_float(0.01, 0.3)
    with pytest.raises(ValueError, match="`learning_rate` must be a number"):
        SNASRecipe(learning_rate=suggest_float(0.01, 0.3))

"""A search as an estimator of scikit-learn: pipelines, searches over it, pickles, and scikit-learn's own checks."""

import pickle
import re

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_digits, load_iris
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from optuna_nas import ModuleSpace
from optuna_nas.pipelines import NASClassifier, NASRegressor
from optuna_nas.pipelines.sklearn import SEED_FILE, Perceptron

ROUNDED = {"check_methods_subset_invariance": "float32 sums depend on the size of the batch, on some processors"}
"""scikit-learn compares to 1e-7; a prediction of -0.044 differs by 1.8e-7 on a CPU without AVX-512."""
LEARNING = ("check_classifiers_train", "check_regressors_train")
"""Checks that ask for a good score; others need no long training."""
pytestmark = pytest.mark.usefixtures("small_pools")
QUICK = {"n_trials": 2, "epochs": 10, "random_state": 0}


def iris():
    return load_iris(return_X_y=True)


def test_it_searches_trains_and_predicts():
    x, y = iris()
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    found = NASClassifier(**QUICK).fit(x, names)
    assert found.score(x, names) > 0.8
    assert found.predict_proba(x).sum(axis=1) == pytest.approx(1)
    assert list(found.classes_) == ["setosa", "versicolor", "virginica"]
    assert found.best_params_.keys() == {"width", "activation", "dropout", "norm", "depth"}
    again = NASClassifier(**QUICK).fit(x, names)
    assert np.array_equal(found.predict_proba(x), again.predict_proba(x))


def test_it_predicts_values_of_one_or_several_columns():
    x, y = load_diabetes(return_X_y=True)
    assert NASRegressor(**QUICK).fit(x, y).score(x, y) > 0.3
    both = np.stack([y, -y], axis=1)
    assert NASRegressor(**QUICK).fit(x, both).predict(x).shape == both.shape


def test_images_are_rows_or_arrays():
    digits = load_digits(n_class=3)
    quick = {**QUICK, "epochs": 2, "channels": 4}
    rows = NASClassifier(image_shape=(1, 8, 8), **quick).fit(digits.data, digits.target)
    arrays = NASClassifier(**quick).fit(digits.images[:, None], digits.target)
    assert np.array_equal(rows.predict(digits.data), arrays.predict(digits.images[:, None]))
    with pytest.raises(ValueError, match="`image_shape` must have as many pixels as a row of X has columns"):
        NASClassifier(image_shape=(1, 7, 7), **quick).fit(digits.data, digits.target)


def own_space(shape, n_outputs):
    """A space of one's own, made for the data."""
    return ModuleSpace(lambda: Perceptron(shape[0], n_outputs), name=f"own_{shape[0]}_{n_outputs}")


def test_pipelines_grids_and_folds():
    x, y = iris()
    pipeline = make_pipeline(MinMaxScaler(), NASClassifier(own_space, strategy="random", **QUICK))
    grid = GridSearchCV(pipeline, {"nasclassifier__epochs": [2, 10]}, cv=2).fit(x, y)
    assert grid.best_params_ == {"nasclassifier__epochs": 10}
    assert cross_val_score(NASClassifier(**QUICK), x, y, cv=2, n_jobs=2).mean() > 0.6


@pytest.mark.parametrize("write", [pickle, joblib])
def test_it_is_cloned_and_pickled(write, tmp_path):
    x, y = iris()
    found = NASClassifier(**QUICK).fit(x, y)
    with open(tmp_path / "estimator", "wb") as file:
        write.dump(found, file)
    with open(tmp_path / "estimator", "rb") as file:
        loaded = write.load(file)
    assert np.array_equal(loaded.predict_proba(x), found.predict_proba(x))
    copied = clone(found)
    assert copied.get_params() == found.get_params()
    assert not hasattr(copied, "network_")


def test_a_time_limit_and_a_folder(tmp_path):
    x, y = iris()
    found = NASClassifier(n_trials=None, timeout=3, epochs=2, folder=tmp_path, strategy="random").fit(x, y)
    assert found.n_trials_ >= 1
    assert len(list(tmp_path.glob("fit-*/study.db"))) == 1


@pytest.mark.parametrize("random_state", [None, 0])
def test_a_later_fit_resumes_and_other_folds_and_settings_have_studies_of_their_own(random_state, tmp_path):
    x, y = iris()
    quick = {"epochs": 1, "strategy": "random", "folder": tmp_path, "random_state": random_state}
    cross_val_score(NASClassifier(n_trials=1, **quick), x, y, cv=2, error_score="raise")
    assert len(list(tmp_path.glob("fit-*/study.db"))) == 2
    first, later = (NASClassifier(n_trials=n, **quick).fit(x, y) for n in (1, 2))
    assert len(list(tmp_path.glob("fit-*/study.db"))) == 3
    assert (first.n_trials_, later.n_trials_) == (1, 2)
    assert later.best_value_ <= first.best_value_
    NASClassifier(n_trials=1, **quick).set_params(epochs=2).fit(x, y)
    assert len(list(tmp_path.glob("fit-*/study.db"))) == 4


def test_a_study_of_before_lies_in_the_folder_itself_and_a_damaged_seed_is_named(tmp_path):
    x, y = iris()
    quick = {"n_trials": 1, "epochs": 1, "strategy": "random", "folder": tmp_path}
    NASClassifier(random_state=0, **quick).fit(x, y)
    (kept,) = tmp_path.iterdir()
    kept.rename(tmp_path.parent / "before")
    NASClassifier(random_state=0, **quick).set_params(folder=tmp_path.parent / "before").fit(x, y)
    assert not list((tmp_path.parent / "before").glob("fit-*"))
    NASClassifier(**quick).fit(x, y)
    (note,) = tmp_path.glob(f"fit-*/{SEED_FILE}")
    note.write_text('{"seed": -1}')
    with pytest.raises(ValueError, match=f"must be a note of optuna_nas but {note} is not readable"):
        NASClassifier(**quick).fit(x, y)


@parametrize_with_checks(
    [NASClassifier(n_trials=1, epochs=30, strategy="random", random_state=0),
     NASRegressor(n_trials=1, epochs=30, strategy="random", random_state=0)],
    expected_failed_checks=lambda estimator: ROUNDED,
)  # fmt: skip
def test_scikit_learns_own_checks(estimator, check):
    if check.func.__name__ not in LEARNING:
        estimator.set_params(epochs=2)
    check(estimator)


@pytest.mark.parametrize(
    ("changes", "labels", "message"),
    [
        ({"n_trials": 0}, "abc", "`n_trials` must be at least 1"),
        ({"timeout": 0}, "abc", "`timeout` must be a positive number of seconds but got 0"),
        ({"strategy": "best"}, "abc", "`strategy` must be one of auto, free, snas"),
        ({}, "aaa", "`y` must have at least two classes but has 1 class: 'a'"),
        ({"image_shape": (1, 3, 3)}, "abc", "`image_shape` must have as many pixels as a row of X has columns"),
    ],
)
def test_a_wrong_argument_is_one_sentence(changes, labels, message):
    x, y = np.zeros((30, 4), np.float32), np.array(list(labels * 10))
    with pytest.raises(ValueError, match=re.escape(message)):
        NASClassifier(**{"n_trials": 1, "epochs": 1} | changes).fit(x, y)

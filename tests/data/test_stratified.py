"""A split by class is scikit-learn's, number for number."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from optuna_nas.data.stratified import stratified_split


@given(st.data())
def test_it_draws_what_scikit_learn_draws(data):
    sizes = data.draw(st.lists(st.integers(2, 40), min_size=1, max_size=12))
    labels = np.random.default_rng(data.draw(st.integers(0, 99))).permutation(np.repeat(np.arange(len(sizes)), sizes))
    seed = data.draw(st.integers(0, 2**32 - 1))
    n_part = data.draw(st.integers(len(sizes), len(labels) - len(sizes)))
    expected = train_test_split(np.arange(len(labels)), test_size=n_part, random_state=seed, stratify=labels)
    for ours, theirs in zip(stratified_split(labels, n_part, seed), expected, strict=True):
        assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize(
    ("labels", "n_part", "reason"),
    [
        ([0, 0, 0, 1], 2, "class 1 has 1"),
        ([0, 0, 1, 1], 1, "2 classes do not fit into 1 images"),
        ([0, 0, 1, 1], 3, "2 classes do not fit into 1 images"),
    ],
)
def test_classes_that_cannot_be_divided_are_named(labels, n_part, reason):
    with pytest.raises(ValueError, match=reason):
        stratified_split(np.array(labels), n_part, 0)

"""Stratified random splits, equal to those of scikit-learn.

Importing `sklearn.model_selection.train_test_split` was measured to take 1.5 CPU seconds, as long as importing PyTorch,
since it imports SciPy, pandas and Arrow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MIN_CLASS_SIZE = 2


def stratified_split(labels: NDArray[np.int64], n_part: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split positions at random into a rest and a part, both with the same fractions of classes.

    The result equals that of `train_test_split(..., stratify=labels)` of scikit-learn 1.8, in the same order.

    Args:
        labels: Class of every position, shape (N,).
        n_part: Size of the part, from the number of classes to N minus the number of classes.
        seed: Seed of the split.

    Returns:
        Positions of the rest and of the part.

    Raises:
        ValueError: A class has fewer than two positions, or rest or part have fewer positions than there are classes.

    Example:
        >>> import numpy as np
        >>> from optuna_nas.data.stratified import stratified_split
        >>> labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
        >>> rest, part = stratified_split(labels, n_part=2, seed=0)
        >>> len(rest), sorted(labels[part].tolist())
        (6, [0, 1])
    """
    classes, members, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    n_rest = len(labels) - n_part
    if (smallest := int(np.min(sizes))) < MIN_CLASS_SIZE:
        raise ValueError(f"class {classes[np.argmin(sizes)]} has {smallest}.")
    if min(n_rest, n_part) < len(classes):
        raise ValueError(f"{len(classes)} classes do not fit into {min(n_rest, n_part)} images.")
    by_class = np.split(np.argsort(members, kind="stable"), np.cumsum(sizes)[:-1])
    random = np.random.RandomState(seed)
    rest_sizes = _shares(sizes, n_rest, random)
    part_sizes = _shares(sizes - rest_sizes, n_part, random)
    rest, part = [], []
    for positions, size, n_class_rest, n_class_part in zip(by_class, sizes, rest_sizes, part_sizes, strict=True):
        shuffled = positions[random.permutation(size)]
        rest.append(shuffled[:n_class_rest])
        part.append(shuffled[n_class_rest : n_class_rest + n_class_part])
    return random.permutation(np.concatenate(rest)), random.permutation(np.concatenate(part))


def _shares(sizes: NDArray[np.int64], n_draws: int, random: np.random.RandomState) -> NDArray[np.int64]:
    """Divide draws among classes in proportion to their sizes, with largest remainders; ties are broken at random."""
    exact = sizes / sizes.sum() * n_draws
    shares = np.floor(exact)
    remainders, n_left = exact - shares, int(n_draws - shares.sum())
    for remainder in np.unique(remainders)[::-1]:
        if n_left == 0:
            break
        (tied,) = np.where(remainders == remainder)
        chosen = random.choice(tied, size=min(len(tied), n_left), replace=False)
        shares[chosen] += 1
        n_left -= len(chosen)
    return np.asarray(shares, np.int64)

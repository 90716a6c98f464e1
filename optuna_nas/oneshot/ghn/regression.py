"""A second score: a regression from graph embeddings to the values of finished trials (GHN-2, Knyazev et al. 2021)."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import kendalltau
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

if TYPE_CHECKING:
    from numpy.typing import NDArray

MIN_TRIALS = 20
FOLDS = 5


def regress_if_better(
    embeddings_NH: NDArray[np.float32],
    scores_N: NDArray[np.float64],
    values_N: NDArray[np.float64],
    candidates_MH: NDArray[np.float32],
    candidate_scores_M: NDArray[np.float64],
) -> tuple[NDArray[np.float64], str]:
    """Return scores of candidates: the given ones, or those of a regression that ranks finished trials better.

    Ridge regression and a Gaussian process predict the values from the embeddings together with the scores. What ranks
    best (Kendall's tau) in five-fold cross-validation is used; at least 20 trials are needed.

    Args:
        embeddings_NH: Embeddings of the architectures of finished trials.
        scores_N: Their scores.
        values_N: Their values, larger is better.
        candidates_MH: Embeddings of those to be scored.
        candidate_scores_M: Their scores.

    Returns:
        Scores of shape (M,), and `score`, `ridge` or `gaussian_process`.
    """
    if len(values_N) < MIN_TRIALS or np.ptp(values_N) == 0:
        return candidate_scores_M, "score"
    features, queries = np.column_stack([embeddings_NH, scores_N]), np.column_stack([candidates_MH, candidate_scores_M])
    folds = KFold(FOLDS, shuffle=True, random_state=0)
    best, best_tau, name = None, _tau(scores_N, values_N), "score"
    for kind, model in _models().items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a kernel at its bound ranks as well
            tau = _tau(cross_val_predict(model, features, values_N, cv=folds), values_N)
            if tau > best_tau:
                best, best_tau, name = model.fit(features, values_N), tau, kind
    return (candidate_scores_M, name) if best is None else (np.asarray(best.predict(queries)), name)


def _models() -> dict[str, Any]:
    kernel = RBF(5.0) + WhiteKernel(0.1)
    return {
        "ridge": make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 4, 13))),
        "gaussian_process": make_pipeline(StandardScaler(), GaussianProcessRegressor(kernel, normalize_y=True)),
    }


def _tau(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    if np.ptp(one) == 0:
        return -1.0
    return float(kendalltau(one, other).statistic)

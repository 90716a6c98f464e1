"""Which parameters matter: the share of the variance of values that each explains, its interval, and what chance gives.

B resamples, G groups of trials with an equal value of a parameter, N trials.
"""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from optuna_nas.plots.style import BLUE, GREY, INK, LEGEND_FONT, PAPER, label_axes, new_plot
from optuna_nas.storage.plain import label

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from optuna import Study
    from optuna.trial import FrozenTrial

MAX_BARS = 20
MIN_TRIALS = 20
"""Smallest number of completed trials: with it, 88 of 100 simulated studies of NAS-Bench-201's space told the edge that
explains 63 % of the variance from chance, with 30 trials all did. (Optuna's PED-ANOVA, over the best quarter: 0 and 1
of 12. fANOVA takes seconds a study, too long to be asked hundreds of times.)"""
RESAMPLES, CONFIDENCE, CHANCE = 400, 0.9, 0.95
MAX_DRAWN = 4_000_000
"""Largest number of trials in all resamples together, which take 32 MB; at least 50 resamples are drawn."""
MAX_VALUES, QUANTILES = 8, 4
"""Numbers with more values are grouped by quarters of the trials."""


class Importance(NamedTuple):
    """Share of the variance of values that a parameter explains by itself, as a fraction of it.

    Args:
        share: Share, corrected for the number of groups (the adjusted squared correlation ratio): about 0 on average
            for a parameter without effect, and never reported below 0.
        lower: Lower end of its 90 % interval, by a bootstrap over trials.
        upper: Upper end of its 90 % interval.
    """

    share: float
    lower: float
    upper: float


class Importances(NamedTuple):
    """Importances of the parameters of a study.

    Args:
        by_parameter: Importance by the name of the parameter, largest first; empty if nothing can be said.
        chance: Share that the largest one stays below in 95 % of shuffles of the values.
        n_trials: Number of completed trials with a finite value.
    """

    by_parameter: dict[str, Importance]
    chance: float
    n_trials: int

    @property
    def told(self) -> list[str]:
        """Names of the parameters that are told from chance."""
        return [name for name, importance in self.by_parameter.items() if importance.share > self.chance]


def importances(study: Study) -> Importances:
    """Return what share of the variance of values each parameter explains by itself.

    It counts main effects, over the trials as the sampler drew them; where a sampler draws two choices together, they
    share the credit. Nothing is said with fewer than 20 completed trials, or if all have equal values.

    Args:
        study: Study of one or several objectives, of which the first counts.

    Example:
        >>> import optuna
        >>> from optuna_nas.plots.importances import importances
        >>> study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        >>> study.optimize(lambda t: t.suggest_int("x", 0, 3) + 0.01 * t.suggest_int("y", 0, 3), n_trials=30)
        >>> importances(study).told
        ['x']
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    trials = [trial for trial in complete if isfinite(trial.values[0])]
    values_N = np.array([trial.values[0] for trial in trials])
    if len(trials) < MIN_TRIALS or np.ptp(values_N) == 0:
        return Importances({}, 0.0, len(trials))
    names = dict.fromkeys(name for trial in trials for name in trial.params)
    groups = {name: _groups(trials, name) for name in names}
    groups = {name: group_N for name, group_N in groups.items() if 1 < group_N.max() + 1 < len(trials)}
    if not groups:
        return Importances({}, 0.0, len(trials))
    values_N = (values_N - values_N.mean()) / values_N.std()
    random = np.random.default_rng(0)
    resamples = min(RESAMPLES, max(50, MAX_DRAWN // len(trials)))
    drawn_BN = random.integers(len(trials), size=(resamples, len(trials)))
    shuffled_BN = random.permuted(np.tile(values_N, (resamples, 1)), axis=1)
    found, largest_B = {}, np.zeros(resamples)
    for name, group_N in groups.items():
        (share,) = _shares(group_N[None], values_N[None])
        resampled_B = _shares(group_N[drawn_BN], values_N[drawn_BN])
        # A sample with repetitions explains too much of its own variance: its spread counts, around its own mean.
        tail = (1 - CONFIDENCE) / 2
        ends = share + np.quantile(resampled_B, (tail, 1 - tail)) - resampled_B.mean()
        lower, upper = ends.clip(0, 1).tolist()
        found[name] = Importance(max(0.0, float(share)), lower, upper)
        largest_B = np.maximum(largest_B, _shares(np.broadcast_to(group_N, shuffled_BN.shape), shuffled_BN))
    ordered = dict(sorted(found.items(), key=lambda item: -item[1].share))
    return Importances(ordered, float(np.quantile(largest_B, CHANCE)), len(trials))


def _groups(trials: Sequence[FrozenTrial], name: str) -> NDArray[np.int64]:
    """Return the group of every trial, from 0: its value of a parameter, or that it has none."""
    values = [trial.params.get(name) for trial in trials]
    numbers = np.array([value for value in values if value is not None], dtype=object)
    categorical = any(isinstance(trial.distributions.get(name), CategoricalDistribution) for trial in trials)
    if not categorical and len(set(numbers)) > MAX_VALUES:
        cuts = np.quantile(numbers.astype(float), np.linspace(0, 1, QUANTILES + 1)[1:-1])
        values = [None if value is None else int(np.searchsorted(cuts, float(value))) for value in values]
    known: dict[object, int] = {}
    return np.array([known.setdefault((type(value), value), len(known)) for value in values])


def _shares(group_BN: NDArray[np.int64], values_BN: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the adjusted share of the variance between groups, of every sample (Kelley 1935)."""
    n_samples, n_trials = group_BN.shape
    n_groups = int(group_BN.max()) + 1
    cell_BN = group_BN + n_groups * np.arange(n_samples)[:, None]
    shape = n_samples, n_groups
    count_BG = np.bincount(cell_BN.ravel(), minlength=n_samples * n_groups).reshape(shape)
    sum_BG = np.bincount(cell_BN.ravel(), values_BN.ravel(), minlength=n_samples * n_groups).reshape(shape)
    mean_B = values_BN.mean(axis=1)
    total_B = ((values_BN - mean_B[:, None]) ** 2).sum(axis=1)
    between_B = (count_BG * (sum_BG / np.maximum(count_BG, 1) - mean_B[:, None]) ** 2).sum(axis=1)
    left_B = 1 - between_B / np.where(total_B > 0, total_B, 1)
    shares_B: NDArray[np.float64] = 1 - left_B * (n_trials - 1) / np.maximum(1, n_trials - (count_BG > 0).sum(axis=1))
    return shares_B


def plot_importances(study: Study) -> Figure:
    """Plot the 20 largest shares of the variance of values that parameters explain, with 90 % intervals over trials.

    Bars that are not told from chance are hatched; the dashed line is what chance gives the largest of them.

    Args:
        study: Study with at least 20 completed trials.

    Returns:
        Figure of matplotlib.

    Raises:
        ValueError: Too few trials have completed, all have the same value, or no parameter varies.

    Example:
        >>> import optuna
        >>> from optuna_nas.plots import plot_importances
        >>> study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        >>> study.optimize(lambda trial: trial.suggest_float("x", 0, 1) + trial.suggest_int("y", 0, 9), n_trials=20)
        >>> [text.get_text() for text in plot_importances(study).axes[0].get_yticklabels()]  # the largest is on top
        ['x', 'y']
    """
    return draw_importances(importances(study))


def draw_importances(found: Importances) -> Figure:
    """Plot importances; see `plot_importances`."""
    if not found.by_parameter:
        raise ValueError(
            f"`study` must have {MIN_TRIALS} completed trials with different values and parameters for importances but "
            f"has {found.n_trials}; run more."
        )
    shown = list(found.by_parameter.items())[:MAX_BARS][::-1]
    figure, axes = new_plot(6.2, 1.3 + 0.24 * len(shown))
    places = np.arange(len(shown))
    told = np.array([importance.share > found.chance for _, importance in shown])
    shares = np.array([importance.share for _, importance in shown])
    for chosen, says, fill, edge, hatch in (
        (told, "told from chance", BLUE, BLUE, ""),
        (~told, "may be chance", PAPER, GREY, "////"),
    ):
        if chosen.any():
            bars = places[chosen], shares[chosen]
            axes.barh(*bars, height=0.62, label=says, facecolor=fill, edgecolor=edge, hatch=hatch)
    ends = np.array([(importance.lower, importance.upper) for _, importance in shown])
    axes.hlines(places, ends[:, 0], ends[:, 1], color=INK, linewidth=1.2, label=f"{100 * CONFIDENCE:.0f} % interval")
    axes.axvline(found.chance, color=INK, linewidth=1, linestyle="--", label="largest by chance")
    axes.set_yticks(places, [label(name) for name, _ in shown])
    axes.set_xlim(left=0)
    figure.legend(frameon=False, loc="outside lower center", ncols=4, prop=LEGEND_FONT)
    label_axes(axes, None, "share of the variance of values", "")
    return figure

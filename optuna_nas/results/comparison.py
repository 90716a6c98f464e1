"""Comparison of strategies with equal budgets and several seeds, with confidence intervals and significance."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from itertools import combinations
from math import ceil
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from optuna.pruners import MedianPruner, NopPruner
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState
from scipy.stats import rankdata, t, ttest_rel

from optuna_nas.objective.protocol import Judges, metric_of
from optuna_nas.objective.train_objective import TrainObjective
from optuna_nas.plots.comparison import COLOURS, AnytimeBand, draw_bands, draw_table
from optuna_nas.plots.progress import progress
from optuna_nas.search.checks import MAX_TRIALS
from optuna_nas.search.config import training_parts
from optuna_nas.search.opening import open_study, read_study
from optuna_nas.search.results import network_of
from optuna_nas.search.runner import run
from optuna_nas.search.strategy import TPE_STARTUP_TRIALS
from optuna_nas.storage.attributes import DUPLICATE_OF, PARTS, PLANNED_FOR, attribute, has_attribute, user_attributes
from optuna_nas.storage.database import closing, sqlite_address
from optuna_nas.storage.directions import oriented
from optuna_nas.storage.leaderboard import can_win, rank_trials
from optuna_nas.storage.plain import json_text
from optuna_nas.storage.quota import counted_numbers
from optuna_nas.storage.secrets import quoted
from optuna_nas.storage.spending import spending_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence, Set
    from pathlib import Path

    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from optuna import Study
    from optuna.study import StudyDirection
    from optuna.trial import FrozenTrial

    from optuna_nas.search.config import Search, SearchListener
    from optuna_nas.search.results import SearchResult
    from optuna_nas.tracking import MLflowTracker

logger = logging.getLogger(__name__)

TRIALS, SECONDS, EPOCHS = BUDGETS = ("trials", "seconds", "epochs")
RANDOM, TPE = BASELINES = ("random", "tpe")
CONFIDENCE = 0.95
"""Confidence of the intervals of means."""
MIN_SEEDS = 3
"""Smallest number of seeds from which a comparison says who is ahead."""
MIN_TRIALS = 2
"""Smallest number of trials of a run from which a comparison says who is ahead, of a sampler without start-up draws."""
TPE_DRAWS = 10
"""Start-up draws of Optuna's TPE by default."""
STARTUP = re.compile(r"(sampler\.)+n_startup_trials")
"""Name of the setting that is the number of start-up draws of a sampler, or of that which it is around."""
POINTS = 200
"""Number of points of anytime curves."""


class Budget(NamedTuple):
    """Budget of each run.

    Args:
        kind: `trials` (finished trials), `seconds` (of trials, including the training of one-shot models in them) or
            `epochs` (reported by trials, without the training of one-shot models).
        amount: Amount, larger than 0. A run ends with the trial that reaches it; values beyond it do not count.

    Example:
        >>> from optuna_nas.results.comparison import Budget
        >>> Budget.parse("seconds=600")
        Budget(kind='seconds', amount=600.0)
    """

    kind: str
    amount: float

    def __str__(self) -> str:
        return f"{self.kind}={self.amount:g}"

    @staticmethod
    def parse(text: str) -> Budget:
        """Return the budget of a text such as `trials=30`, `seconds=600` or `epochs=200`.

        Raises:
            ValueError: The text has another form, or the amount is out of range.
        """
        kind, _, amount = text.partition("=")
        try:
            budget = Budget(kind, float(amount))
        except ValueError:
            budget = Budget(kind, 0.0)
        if kind not in BUDGETS or not 0 < budget.amount < float("inf"):
            raise ValueError(f"`budget` must be such as trials=30, seconds=600 or epochs=200 but got {quoted(text)}.")
        return budget

    def spent(self, study: Study) -> float:
        """Return the budget spent by the finished trials of a study."""
        return float(sum(self._spent_by_each(_finished(study), counted_numbers(study))))

    def within(self, study: Study) -> tuple[list[FrozenTrial], NDArray[np.float64]]:
        """Return the T finished trials up to the one that reaches the budget, and the budget spent after each, (T,).

        A trial that exceeds the budget is left out, unless it is the first one, whose attempts are all taken.
        """
        trials, counted = _finished(study), counted_numbers(study)
        spent = np.cumsum(self._spent_by_each(trials, counted))
        first = next((place for place, trial in enumerate(trials) if trial.number in counted), 0)
        reaching = int(np.searchsorted(spent, self.amount))
        n_within = max(first + 1, int((spent[: reaching + 1] <= self.amount).sum()))
        return trials[:n_within], spent[:n_within]

    def _spent_by_each(self, trials: Sequence[FrozenTrial], counted: Set[int]) -> list[float]:
        """Return the budget spent by each of a study's trials; one that another retries is no trial of `trials`."""
        return [float(trial.number in counted) if self.kind == TRIALS else self.of(trial) for trial in trials]

    def of(self, trial: FrozenTrial) -> float:
        """Return the epochs or seconds spent by one finished trial."""
        return float(_epochs_of(trial)) if self.kind == EPOCHS else spending_of(trial).total


def _finished(study: Study) -> list[FrozenTrial]:
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def _epochs_of(trial: FrozenTrial) -> int:
    """Return the epochs that a finished trial trained.

    Raises:
        ValueError: It has a value, but has told no epoch.
    """
    spent = spending_of(trial)
    if spent.epochs == 0 and trial.state == TrialState.COMPLETE and not has_attribute(trial.user_attrs, DUPLICATE_OF):
        raise ValueError(
            f"`budget` must be in trials or seconds for an objective that reports no epochs but is in {EPOCHS}, of "
            f"which trial {trial.number} tells none; give trials=... or seconds=... instead."
        )
    return spent.epochs


class Row(NamedTuple):
    """Results of a strategy over S seeds.

    Args:
        strategy: Name of the strategy.
        best: Best value within the budget for each seed, shape (S,).
        mean: Mean of the best values.
        interval: Half of the 95 % confidence interval of the mean (Student's t); NaN for one seed.
        rank: Mean rank among the strategies, 1 is best.
        seconds: Mean seconds of the trials within the budget, with the training of one-shot models in them.
        tested: Mean metric of the networks of the best values on the test split; None if one was not measured.
        p_value: P value of a paired t-test against Optuna's TPE; NaN for one seed, and for TPE itself.
        n_trials: Fewest trials of a run within the budget.
        n_draws: Most start-up draws of its sampler, which say nothing about the strategy.
    """

    strategy: str
    best: NDArray[np.float64]
    mean: float
    interval: float
    rank: float
    seconds: float
    tested: float | None
    p_value: float
    n_trials: int
    n_draws: int


class Comparison(NamedTuple):
    """Result of a comparison.

    Args:
        rows: Results of the strategies, best first.
        bands: Anytime curves of the strategies, in the same order.
        studies: Studies of all runs, those of the best strategy first.
        metric: Name of the values.
        starts: Number of equal trials at the start of two strategies in every seed, where it is not 0, by their names.
    """

    rows: list[Row]
    bands: list[AnytimeBand]
    studies: list[Study]
    metric: str = "value"
    starts: Mapping[tuple[str, str], int] = MappingProxyType({})

    @property
    def headings(self) -> tuple[str, ...]:
        """Headings of the table of `cells`."""
        return ("strategy", f"best {self.metric}", "95 % interval", "rank", "seconds", "test", "p against TPE")

    @property
    def told(self) -> str:
        """What can be told from the table, in sentences: who is ahead, by how much, and whether that is chance.

        Strategies whose first trials are the same in every seed, such as the start-up draws of TPE and random search
        with one seed, are named.
        """
        return " ".join([self._too_few or _ahead(self.rows), *_same_starts(self.starts)])

    @property
    def _too_few(self) -> str:
        """Why seeds, or trials of the best two, are too few to tell anything, in a sentence; empty if they are enough.

        With as many trials as start-up draws all of them are draws.
        """
        if len(self.rows) < 2:
            return ""
        n_seeds, found, needed = len(self.rows[0].best), [], []
        if n_seeds < MIN_SEEDS:
            found.append("1 seed" if n_seeds == 1 else f"{n_seeds} seeds")
            needed.append(f"{MIN_SEEDS} seeds (--seeds {MIN_SEEDS})")
        for row in self.rows[:2]:
            if row.n_trials < (least := max(MIN_TRIALS, row.n_draws + 1)):
                found.append(f"{row.n_trials} {'trial' if row.n_trials == 1 else 'trials'} a run of {row.strategy}")
                draws = f", which draws {row.n_draws} by chance to begin with," if row.n_draws else ""
                needed.append(f"{least} trials of {row.strategy}{draws}")
        if not found:
            return ""
        tell = "tells" if len(found) == 1 and found[0].startswith("1 ") else "tell"
        needs = " and ".join(needed)
        return f"{' and '.join(found)} {tell} nothing about which strategy is better; at least {needs} are needed."

    @property
    def leader(self) -> str | None:
        """Name of the strategy that is ahead by more than chance; None where nothing can be told."""
        if len(self.rows) < 2 or self._too_few:
            return None
        return self.rows[0].strategy if _is_told(_p_value(*self.rows[:2])) else None

    @property
    def finding(self) -> str:
        """Who is ahead by how much, or that nothing can be told: the short form of `told`, without a full stop."""
        if self.leader is None:
            return "Nothing can be told about which strategy is better"
        first, second = self.rows[:2]
        return f"{self.leader} is ahead of {second.strategy} by {abs(first.mean - second.mean):.4f}, more than chance"

    @property
    def headlines(self) -> tuple[str, str, str]:
        """Titles of what MLflow shows, forty letters each: who is ahead, where strategies ended, what they spent."""
        first, last = self.rows[0], self.rows[-1]
        cheap, dear = (end(self.rows, key=lambda row: row.seconds) for end in (min, max))
        return (
            f"{self.leader} is ahead, more than chance" if self.leader else "Nothing can be told about the best",
            f"Best {self.metric}: {last.mean:.4g} ({last.strategy}) to {first.mean:.4g} ({first.strategy})",
            f"Seconds: {cheap.seconds:.1f} ({cheap.strategy}) to {dear.seconds:.1f} ({dear.strategy})",
        )

    def by_second(self, budget: Budget) -> dict[str, list[tuple[int, float]]]:
        """Return the best value within the budget after each second, (second, value), by study name.

        The seconds are the same for all studies, from the first at which all have a value, so that means are of all.
        """
        curves = {}
        for study in self.studies:
            trials, _ = budget.within(study)
            curves[study.study_name] = np.cumsum([spending_of(trial).total for trial in trials]), _best(study, trials)
        longest = max(1, ceil(max(spent[-1] for spent, _ in curves.values())))
        grid = np.unique(np.linspace(0, longest, min(longest, POINTS) + 1).round().astype(int))
        values = np.stack([_at(grid, *curve) for curve in curves.values()])  # shape (studies, seconds)
        known = np.isfinite(values).all(0)
        return {
            name: list(zip(grid[known].tolist(), row[known].tolist(), strict=True))
            for name, row in zip(curves, values, strict=True)
        }

    def figure(self, budget: Budget) -> Figure:
        """Plot the best value against the spent budget, as mean over seeds with a band of one standard error."""
        return draw_bands(self.bands, budget.kind, f"best {self.metric}", self.studies[0].directions[0])

    def figure_by_second(self, budget: Budget) -> Figure | None:
        """Plot the best value against the seconds of training, None where a run has no finite value; see `figure`."""
        by_second = list(self.by_second(budget).values())
        if not by_second[0]:
            return None
        (spent, *_), curves = zip(*(zip(*curve, strict=True) for curve in by_second), strict=True)
        n_seeds = len(self.rows[0].best)
        bands = [
            AnytimeBand(row.strategy, np.array(spent), np.array(curves[number * n_seeds : (number + 1) * n_seeds]))
            for number, row in enumerate(self.rows)
        ]
        return draw_bands(bands, SECONDS, f"best {self.metric}", self.studies[0].directions[0])

    def table(self) -> Figure:
        """Draw the table as a picture, under the `finding`."""
        return draw_table(self.finding, self.headings, [cells(row) for row in self.rows])


def strategies(searches: Sequence[Search], seed: int) -> dict[str, Search]:
    """Return the strategies of a seed by name: the searches, random search, and Optuna's TPE.

    The two baselines use skeleton, data, recipe and task of the first search. Random search prunes no trials; TPE has
    Optuna's median pruner.

    Args:
        searches: Searches with equal settings apart from sampler and pruner.
        seed: Seed of the baselines' samplers.

    Raises:
        ValueError: Searches have different settings, or share a name.
    """
    first = searches[0]
    if taken := [search.name for search in searches if search.name in BASELINES and search.strategy != search.name]:
        raise ValueError(
            f"`name` must not be that of a baseline, which every comparison has, but is {taken[0]!r}; rename the study."
        )
    if first.strategy is not None:  # of one study, which differ in their strategies alone
        named = {search.name: search for search in searches}
        baselines = {name: replace(first, name=name, strategy=name) for name in BASELINES}
        return {name: _in_parts(search) for name, search in {**named, **baselines}.items()}
    for search in searches[1:]:
        reference, setting = first.setting(), search.setting()
        differing = sorted(
            part
            for part in {*reference, *setting} - {"initial_weights", "masks"}
            if reference.get(part) != setting.get(part)
        )
        if search.directions != first.directions:
            differing.append("directions")
        if differing:
            raise ValueError(
                f"`{differing[0]}` must be the same in all studies that are compared but that of {search.name!r} is "
                f"not that of {first.name!r}; give them the same."
            )
    named = {search.name: search for search in searches}
    if len(named) < len(searches):
        raise ValueError(
            f"`name` must be different for every study but {first.name!r} and others share one; rename them."
        )
    objective = first.objective
    if isinstance(objective, TrainObjective):
        objective = replace(objective, initial_weights=None, masks=None)
    plain = replace(first, objective=objective)
    return {
        **named,
        RANDOM: replace(plain, sampler=RandomSampler(seed), pruner=NopPruner()),
        TPE: replace(plain, sampler=TPESampler(seed=seed), pruner=MedianPruner()),
    }


def _in_parts(search: Search) -> Search:
    """Return a search with the parts of its strategy, as it planned them, in place of the strategy."""
    if search.made_strategy is None:
        return search
    made = search.made_strategy
    return replace(search, strategy=None, sampler=made.sampler, pruner=made.pruner, objective=made.objective)


def by_strategies(search: Search, names: Sequence[str], budget: Budget) -> list[Search]:
    """Return a search once for every strategy of a list, under its name.

    Args:
        search: Search whose space, data, recipe and task all have.
        names: Names of strategies.
        budget: Budget of each run, which strategies plan by.

    Raises:
        ValueError: A strategy is unknown or does not fit the search.
    """
    return [search.with_strategy(name, name=name, **_limits(search, budget)) for name in names]


def _limits(search: Search, budget: Budget) -> dict[str, Any]:
    """Return the fields of a search that a strategy plans by, of which those of the budget are set."""
    return {
        "trials": round(budget.amount) if budget.kind == TRIALS else search.trials,
        "seconds": budget.amount if budget.kind == SECONDS else search.seconds,
    }


def _planned(search: Search, budget: Budget) -> Search:
    """Return a search whose strategy, if it names one, plans by the budget."""
    limits = _limits(search, budget)
    is_planned = search.strategy is None or limits == {name: getattr(search, name) for name in limits}
    return search if is_planned else replace(search, **limits)


def compare(
    make: Callable[[int], Sequence[Search]],
    budget: Budget,
    seeds: int,
    folder: Path,
    tracker: Callable[[Mapping[str, str]], MLflowTracker | None],
    *,
    listener: Callable[[str, int, Search], SearchListener | None] = lambda strategy, seed, search: None,
) -> Comparison | None:
    """Run every strategy with every seed until the budget is spent; existing runs are resumed.

    With another budget, existing runs of random search, TPE and others that do not plan go on, or are read up to it. A
    strategy that trains a model or scores a pool does so in rounds planned for its budget: its run keeps that one.

    Args:
        make: Function of a seed that returns the searches, equal ones at each call.
        budget: Budget of each run.
        seeds: Number of seeds, at least 1; seeds are counted from 0.
        folder: Folder of studies and networks.
        tracker: Function of the tags of a run that returns its MLflow tracker, or None.
        listener: Function of strategy, seed and search that returns the listener to a run, or None.

    Returns:
        Result of the comparison; None if a run was interrupted.

    Raises:
        ValueError: As `strategies`; also if `seeds` is below 1, or a run was planned for another budget.
    """
    if seeds < 1:
        raise ValueError(f"`seeds` must be at least 1 but got {seeds}.")
    results: dict[str, list[SearchResult]] = {}
    metric = "value"
    for seed in range(seeds):
        runs: dict[str, Search] = {}
        planned = strategies([_planned(search, budget) for search in make(seed)], seed)
        for number, (name, search) in enumerate(planned.items()):
            place = folder / f"{name}-{seed}"
            shown = {"strategy": name, "seed": str(seed), "budget": str(budget)}
            shown["mlflow.runColor"] = COLOURS[number % len(COLOURS)]
            runs[name] = replace(
                search,
                name=f"{name}-{seed}",
                folder=place,
                storage=sqlite_address(place / "study.db"),
                trials=round(budget.amount) if budget.kind == TRIALS else MAX_TRIALS,
                tracking=tracker(shown),
            )
            _check_plan(runs[name], budget)
        for name, search in runs.items():
            metric = metric_of(search.resolved_objective)
            _note_plan(search, budget)
            result = run(search, listener(name, seed, search), lambda study: budget.spent(study) >= budget.amount)
            if result.interrupted:
                return None
            results.setdefault(name, []).append(_result_within(budget, search, result))
    return judge(results, budget, metric)


def _plans(search: Search) -> bool:
    """Return whether sampler or pruner do something in rounds over the whole budget."""
    parts = training_parts(search.resolved_sampler, search.resolved_pruner)
    return any(getattr(part, "in_study_fit", part) is not None for part in parts)


def _check_plan(search: Search, budget: Budget) -> None:
    """Check that the trials that a run has were planned for this budget.

    Raises:
        ValueError: They were planned for another.
    """
    if not _plans(search):
        return
    try:
        study = read_study(search)
    except ValueError:  # it has not begun, or `run` says what is wrong with it
        return
    with closing(study):
        noted = attribute(user_attributes(study), PLANNED_FOR) if study.get_trials(deepcopy=False) else None
    if noted is not None and Budget(*noted) != budget:
        raise ValueError(
            f"`budget` must be {Budget(*noted)}, by which {search.name!r} in {search.resolved_folder()} has planned "
            f"its model or pool, but is {budget}; give that one, or another `folder` (`--name` on the command line)."
        )


def _note_plan(search: Search, budget: Budget) -> None:
    """Note the budget in the study of a run that plans by it."""
    if _plans(search):
        with closing(study := open_study(search)):
            study.set_user_attr(PLANNED_FOR, list(budget))


def _result_within(budget: Budget, search: Search, result: SearchResult) -> SearchResult:
    """Return the result of a run with the best trial within the budget, its network and its test metric."""
    study = result.study
    best = next(filter(can_win, rank_trials(budget.within(study)[0], study.directions[0])), None)
    if best is not None and result.best is not None and best.number == result.best.number:
        return result
    network = None if best is None else network_of(search, study, best)
    objective, tested = search.resolved_objective, None
    if network is not None and isinstance(objective, Judges):
        tested = objective.judge(network)
    elif best is not None and result.test_metric is not None:
        line = "The network of trial %d of %r, its best within %s, is not kept: the column `test` stays empty."
        logger.warning(line, best.number, study.study_name, budget)
    return replace(result, best=best, picture=None, network=network, test_metric=tested)


def judge(results: Mapping[str, Sequence[SearchResult]], budget: Budget, metric: str = "value") -> Comparison:
    """Return the result of a comparison, of the trials within the budget alone.

    Args:
        results: Results of the runs of each strategy, one per seed, with the test metrics of the best within the
            budget.
        budget: Budget of each run.
        metric: Name of the values.
    """
    studies = {name: [result.study for result in runs] for name, runs in results.items()}
    direction = next(iter(studies.values()))[0].directions[0]
    trials = {name: [budget.within(study)[0] for study in runs] for name, runs in studies.items()}
    curves = {name: [anytime(study, budget) for study in runs] for name, runs in studies.items()}
    best = {name: np.array([values[-1] for _, values in runs]) for name, runs in curves.items()}
    losses = -_comparable(np.stack(list(best.values())), direction)
    ranks = dict(zip(best, rankdata(losses, axis=0).mean(1).tolist(), strict=True))
    rows = []
    for name, values in best.items():
        n_seeds = len(values)
        is_finite = bool(np.isfinite(values).all())  # there is no interval around infinity
        spread = float(values.std(ddof=1)) if n_seeds > 1 and is_finite else float("nan")
        tested = [result.test_metric for result in results[name] if result.test_metric is not None]
        differs = n_seeds > 1 and name != TPE and TPE in best and bool((values != best[TPE]).any())
        differs = differs and is_finite and bool(np.isfinite(best[TPE]).all())
        rows.append(
            Row(
                name,
                values,
                _mean(values),
                spread / n_seeds**0.5 * float(t.ppf((1 + CONFIDENCE) / 2, max(1, n_seeds - 1))),
                ranks[name],
                float(np.mean([sum(spending_of(trial).total for trial in run) for run in trials[name]])),
                float(np.mean(tested)) if len(tested) == n_seeds else None,
                float(ttest_rel(values, best[TPE]).pvalue) if differs else float("nan"),
                min(map(len, trials[name])),
                max(map(_startup_draws, studies[name])),
            )
        )
    rows.sort(key=lambda row: -float(_comparable(np.array(row.mean), direction)))
    grid = np.linspace(0, budget.amount, POINTS)
    bands = [
        AnytimeBand(row.strategy, grid, np.stack([_at(grid, *curve) for curve in curves[row.strategy]])) for row in rows
    ]
    all_studies = [study for row in rows for study in studies[row.strategy]]
    return Comparison(rows, bands, all_studies, metric, _starts(trials))


def _startup_draws(study: Study) -> int:
    """Return the number of trials that the sampler of a study draws before it learns, 0 where it does not tell."""
    parts = attribute(user_attributes(study), PARTS, {})
    default = 0
    if parts.get("sampler") in (TPESampler.__name__, "default"):  # strategies note no settings
        default = TPE_DRAWS if parts.get("strategy", "none") == "none" else TPE_STARTUP_TRIALS
    noted = [text for name, text in parts.items() if STARTUP.fullmatch(name)]
    return max((int(text) for text in noted if text.isdecimal()), default=default)


def anytime(study: Study, budget: Budget) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the budget spent after each of T finished trials within it, and the best value so far, shape (T,) each.

    The best value is NaN before the first value.
    """
    trials, spent = budget.within(study)
    return spent, _best(study, trials)


def _best(study: Study, trials: Sequence[FrozenTrial]) -> NDArray[np.float64]:
    """Return the best value so far after each of T finished trials, shape (T,)."""
    bests = progress(trials, study.directions[0]).best
    return np.array([np.nan if best is None else best for best in bests], dtype=np.float64)


def _at(grid: NDArray[np.float64], spent: NDArray[np.float64], best: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the best values at the spent budgets of a grid."""
    places = np.searchsorted(spent, grid, side="right") - 1
    return np.where(places >= 0, best[np.maximum(places, 0)], np.nan)


def _comparable(values: NDArray[np.float64], direction: StudyDirection) -> NDArray[np.float64]:
    """Return values such that larger is better; NaN, that of a run without any value, is the worst."""
    return np.where(np.isnan(values), -np.inf, oriented(values, direction))


def _mean(values: NDArray[np.float64]) -> float:
    with np.errstate(invalid="ignore"):  # of infinities of both signs there is none
        return float(values.mean())


def _ahead(rows: Sequence[Row]) -> str:
    """Return who is ahead, by a paired test of the best two over the seeds."""
    if len(rows) < 2:
        return "One strategy: there is nothing to compare it with."
    first, second = rows[:2]
    n_seeds = len(first.best)
    if not (first.best - second.best).any():
        return f"{first.strategy} and {second.strategy} found the same values: nothing can be told about the best."
    p_value = _p_value(first, second)
    gap = f"{first.strategy} is {abs(first.mean - second.mean):.4f} ahead of {second.strategy}"
    if _is_told(p_value):
        return f"{gap}, which is more than chance (paired t-test over {n_seeds} seeds, p = {p_value:.3f})."
    chance = f"(paired t-test over {n_seeds} seeds, p = {p_value:.2f})"
    return f"{gap}, which may be chance {chance}: nothing can be told about the best."


def _p_value(first: Row, second: Row) -> float:
    """Return the p-value of a paired test of two strategies over the seeds; 1 if they found the same values."""
    differences = first.best - second.best
    if not differences.any():
        return 1.0
    return float(ttest_rel(first.best, second.best).pvalue) if np.ptp(differences) else 0.0


def _is_told(p_value: float) -> bool:
    return p_value < 1 - CONFIDENCE


def _starts(trials: Mapping[str, Sequence[Sequence[FrozenTrial]]]) -> dict[tuple[str, str], int]:
    """Return how many trials at the start of two strategies are the same in every seed, where there are any."""
    params = {name: [[trial.params for trial in run] for run in runs] for name, runs in trials.items()}
    equal = {
        (one, other): min(
            next((n for n, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), min(len(mine), len(theirs)))
            for mine, theirs in zip(params[one], params[other], strict=True)
        )
        for one, other in combinations(params, 2)
    }
    return {pair: n for pair, n in equal.items() if n}


def _same_starts(starts: Mapping[tuple[str, str], int]) -> list[str]:
    return [
        f"{one} and {other} propose the same {'first trial' if n == 1 else f'first {n} trials'} in every seed."
        for (one, other), n in starts.items()
    ]


def cells(row: Row) -> list[str]:
    """Return a row as texts for the columns of `Comparison.headings`."""

    def shown(number: float | None, digits: int) -> str:
        return "" if number is None or number != number else f"{number:.{digits}f}"

    interval = f"+- {row.interval:.4f}" if row.interval == row.interval else ""
    numbers = [shown(row.mean, 4), interval, shown(row.rank, 2), shown(row.seconds, 1), shown(row.tested, 4)]
    return [row.strategy, *numbers, shown(row.p_value, 3)]


def as_values(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the rows of a comparison as JSON values."""
    return [{**row._asdict(), "best": row.best.tolist()} for row in comparison.rows]


def as_json(comparison: Comparison) -> str:
    """Return the rows of a comparison as JSON."""
    return json_text(as_values(comparison), indent=1)

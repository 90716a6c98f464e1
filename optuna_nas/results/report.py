"""Report of a study: a self-contained HTML page, and the same as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from optuna.trial import TrialState

from optuna_nas.data.splits import REPORT
from optuna_nas.objective.protocol import Describes, judged_metric_of, metric_of
from optuna_nas.plots import plot_architecture
from optuna_nas.plots.anytime import anytime_curves, draw_anytime
from optuna_nas.plots.distribution import distribution_pages
from optuna_nas.plots.importances import MIN_TRIALS, draw_importances, importances
from optuna_nas.plots.masks import draw_masks
from optuna_nas.plots.objectives import MAX_PANELS, front_of, plot_objectives
from optuna_nas.plots.progress import COST_NAMES, draw_pareto, draw_progress, pareto, progress
from optuna_nas.plots.surrogate import draw_scores, scores_of
from optuna_nas.results.page import Block, Picture, Section, Table, Text, as_html, as_markdown
from optuna_nas.samplers import distribution_records
from optuna_nas.samplers.snas import records_of_space
from optuna_nas.search.opening import read_study
from optuna_nas.search.results import architecture_of, summarise
from optuna_nas.space import CellularSpace
from optuna_nas.space.ops import FAMILIES, NONE
from optuna_nas.storage.attributes import (
    METRIC,
    REASON,
    attribute,
    cost_key,
    has_attribute,
    masks_of,
    objective_names,
    unreadable,
)
from optuna_nas.storage.leaderboard import best_trial, can_win, leaderboard, rank_trials
from optuna_nas.storage.noise import told_apart
from optuna_nas.storage.plain import shortened
from optuna_nas.storage.spending import Savings, spending_of
from optuna_nas.storage.versions import git_commit, versions
from optuna_nas.training.disk import whole_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from optuna import Study
    from optuna.trial import FrozenTrial

    from optuna_nas.search.config import Search
    from optuna_nas.storage.leaderboard import LeaderboardRow


MAX_ROWS = 20
"""Largest number of rows of the leaderboard."""
MIN_SCORES = 5
"""Smallest number of scored trials for a plot of scores against values."""
MAX_REASONS = 8
"""Largest number of reasons in the table of stopped trials."""
MAX_UNREADABLE = 50
"""Largest number of rows of the table of attributes that can't be read."""


class Report(NamedTuple):
    """Files of a report.

    Args:
        page: HTML page.
        markdown: Markdown file.
    """

    page: Path
    markdown: Path


def write_report(search: Search, folder: Path | None = None, command: str = "") -> Report:
    """Write `report.html`, `report.md` and its pictures.

    Args:
        search: Search with an existing study.
        folder: Folder of the files; by default `report` in the folder of the search.
        command: Shell command that runs the study, shown in the section "How to reproduce".

    Raises:
        ValueError: The study does not exist.
    """
    study = read_study(search)
    folder = folder or search.resolved_folder() / "report"
    folder.mkdir(parents=True, exist_ok=True)
    sections = sections_of(search, study, command)
    page, markdown = folder / "report.html", folder / "report.md"
    with whole_file(page) as file:
        file.write_text(as_html(search.name, sections), encoding="utf-8")
    for section in sections:
        for block in section.blocks:
            if isinstance(block, Picture):
                with whole_file(folder / f"{block.name}.png") as file:
                    file.write_bytes(block.png)
    with whole_file(markdown) as file:
        file.write_text(as_markdown(search.name, sections), encoding="utf-8")
    return Report(page, markdown)


# -- contents -----------------------------------------------------------------------------------------------------


def sections_of(search: Search, study: Study, command: str) -> list[Section]:
    """Return the sections of a report that are not empty.

    Args:
        search: Search.
        study: Study of the search.
        command: Shell command that runs the study.
    """
    trials = study.get_trials(deepcopy=False)
    finished = [trial for trial in trials if trial.state.is_finished()]
    metric, ranked = metric_of(search.resolved_objective), leaderboard(study)
    names = [metric, *objective_names(study)[1:]]
    sections = [
        Section("Question", [Text(search.description.strip())] if search.description.strip() else []),
        Section("Result", _result(search, study)),
        Section("Leaderboard", _leaderboard(search, ranked, names)),
        Section("Pareto front", _front(study, names)),
        Section("Names", _names(search) if ranked else []),
        Section("Best so far", _progress(study, finished, metric)),
        Section("What mattered", _importances(study)),
        Section("What the sampler learned", _distribution(search, study)),
        Section("What the masks keep", _masks(search, finished)),
        Section("Scores against values", _scores(search, study, finished, metric)),
        Section(f"Cost and {metric}", _costs(study, finished, names)),
        Section("What was stopped", _stopped(search, finished)),
        Section("What can't be read", _unreadable(study)),
        Section("How to reproduce", _reproduction(search, study, command)),
    ]
    return [section for section in sections if section.blocks]


def _result(search: Search, study: Study) -> list[Block]:
    best = best_trial(study)
    if best is None:
        return [Text("No trial has completed within its constraints yet.")]
    summed, metric = summarise(search, study), metric_of(search.resolved_objective)
    judged = judged_metric_of(search.resolved_objective)
    rows = [(f"best {metric}", f"{best.values[0]:.4f} (trial {best.number})")]
    further = objective_names(study)[1:]
    rows += [(f"its {_shown(name)}", _amount(v)) for name, v in zip(further, best.values[1:], strict=True)]
    if has_attribute(best.user_attrs, METRIC):
        rows.append((f"its {judged}", f"{attribute(best.user_attrs, METRIC):.4f}"))
    if summed.test_metric is not None:
        rows.append((f"test {judged}", f"{summed.test_metric:.4f}, on data that the search never saw"))
    for name, text in COST_NAMES.items():
        if name not in further and has_attribute(best.user_attrs, cost_key(name)):
            rows.append((text, f"{attribute(best.user_attrs, cost_key(name)):,}"))
    rows.append(("seconds of training", f"{spending_of(best).training:,.1f}"))
    if summed.network is not None:
        rows.append(("network", str(summed.network)))
    architecture = architecture_of(search, best)
    blocks: list[Block] = [Table(("", ""), rows)]
    if architecture is not None:
        blocks.append(
            Picture.of(
                "best_architecture",
                f"The best architecture: {architecture.summary}",
                plot_architecture(architecture),
            )
        )
    return blocks


def _leaderboard(search: Search, ranked: Sequence[LeaderboardRow], names: Sequence[str]) -> list[Block]:
    if not ranked:
        return []
    metric, *further = names
    judged = {judged_metric_of(search.resolved_objective)} - {metric}  # another where the value is the loss
    costs = [name for name in ("params", "multiply_adds") if name not in further]
    rows = []
    for row in ranked[:MAX_ROWS]:
        architecture = architecture_of(search, row.trial)
        summary = (
            architecture.summary
            if architecture
            else shortened(", ".join(f"{k}={v}" for k, v in row.trial.params.items()))
        )
        place = str(row.rank) if row.can_win else "breaks a constraint"
        numbers = [
            f"{row.value:.4f}",
            *(["" if row.metric is None else f"{row.metric:.4f}"] if judged else []),
            *map(_amount, row.trial.values[1:]),
            *(f"{row.numbers[name]:,}" if name in row.numbers else "" for name in costs),
        ]
        rows.append((place, str(row.trial.number), *numbers, f"{row.seconds:.1f}", summary))
    headings = ("rank", "trial", metric, *judged, *map(_shown, (*further, *costs)), "seconds", "architecture")
    notes = [f"The best {MAX_ROWS} of {len(ranked)} completed trials."] if len(ranked) > MAX_ROWS else []
    notes += [f"Ranked by {metric}, the first of {len(names)} objectives."] if further else []
    text = " ".join([*notes, *_noise(search, ranked, metric)])
    return [*([Text(text)] if text else []), Table(headings, rows, frozenset(headings[:-1]))]


def _front(study: Study, names: Sequence[str]) -> list[Block]:
    """Return the trials that no other beats in all objectives, the best by the first one at the top."""
    if len(names) < 2 or not (front := rank_trials(front_of(study), study.directions[0])):
        return []
    n_feasible = sum(map(can_win, study.get_trials(deepcopy=False)))
    text = f"Of {n_feasible} completed trials, no other is better in all objectives than these {len(front)}."
    if len(names) > 2:
        text += " In the picture some of them lie behind others: each panel shows two objectives alone."
    if len(names) > MAX_PANELS + 1:
        text += f" It shows {MAX_PANELS} of the {len(names) - 1} objectives beside {names[0]}."
    if len(front) > MAX_ROWS:
        text += f" The table has the {MAX_ROWS} best of them by {names[0]}."
    shown = list(map(_shown, names))
    headings = ("trial", *shown)
    rows = [(str(t.number), f"{t.values[0]:.4f}", *map(_amount, t.values[1:])) for t in front[:MAX_ROWS]]
    picture = Picture.of("pareto_front", "Trials and their Pareto front", plot_objectives(study, shown))
    return [Text(text), picture, Table(headings, rows, frozenset(headings))]


def _shown(name: str) -> str:
    """Return the name of an objective or cost as pages show it."""
    return COST_NAMES.get(name, name)


def _amount(value: float) -> str:
    """Return a number of any size: whole ones of at most 15 digits in full, others with four digits."""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:,.4g}"


def _noise(search: Search, ranked: Sequence[LeaderboardRow], metric: str) -> list[str]:
    """Return a sentence on which of the best are as good as equal."""
    objective = search.resolved_objective
    described = objective.describe() if isinstance(objective, Describes) else {}
    told = told_apart(ranked, metric, described.get("data", {}).get("sizes", {}).get(REPORT, 0))
    return [] if told is None else [told]


def _progress(study: Study, finished: Sequence[FrozenTrial], metric: str) -> list[Block]:
    curve = progress(finished, study.directions[0])
    bests = [best for best in curve.best if best is not None]
    if not bests:
        return []
    when = curve.best.index(bests[-1])
    savings = _savings(finished)
    parts = ", ".join(
        f"{seconds:,.0f} of {name}"
        for name, seconds in zip(("training", "one-shot models", "waiting"), savings.spent, strict=False)
    )
    text = Text(
        f"{len(finished)} trials took {savings.spent.total:,.0f} seconds in total ({parts}); trial "
        f"{curve.numbers[when]} reached the best value, after {curve.seconds[when]:,.0f} seconds."
    )
    return [text, Picture.of("progress", "Best value so far", draw_progress(curve, metric))]


def _importances(study: Study) -> list[Block]:
    found = importances(study)
    if not found.by_parameter:
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        has_few = 0 < found.n_trials < MIN_TRIALS and any(trial.params for trial in study.get_trials(deepcopy=False))
        n_infinite = len(complete) - found.n_trials
        infinite = f", {n_infinite} of them with an infinite value, which does not count" if n_infinite else ""
        needed = f"{MIN_TRIALS} are needed to tell anything from chance."
        return [Text(f"{len(complete)} trials have completed{infinite}, and {needed}")] if has_few else []
    (first, importance), *_ = found.by_parameter.items()
    told, chance = len(found.told), f"the {found.chance:.0%} that the largest of them reaches by chance (in 1 of 20)"
    texts = [
        f"{shortened(first)} explains {importance.share:.0%} of the variance of values by itself, with a 90 % interval "
        f"of {importance.lower:.0%} to {importance.upper:.0%} (bootstrap over {found.n_trials} trials).",
        f"{told} of {len(found.by_parameter)} parameters explain more than {chance}; the others may be chance."
        if told
        else f"No parameter explains more than {chance}: nothing is told from chance.",
    ]
    return [Text(" ".join(texts)), Picture.of("importances", "What parameters explain", draw_importances(found))]


def _distribution(search: Search, study: Study) -> list[Block]:
    records = records_of_space(search.space, distribution_records(study))
    if not records:
        return []
    first, last = (record.metrics["entropy"] for record in (records[0], records[-1]))
    text = Text(
        f"The mean entropy of a choice went from {first:.2f} to {last:.2f} nats over {records[-1].step} steps; at 0 "
        "the sampler always draws the same architecture."
    )
    pages = enumerate(distribution_pages(search.space, records), 1)
    return [text, *(Picture.of(f"distribution_{page}", shows, draw()) for page, (shows, draw) in pages)]


def _masks(search: Search, finished: Sequence[FrozenTrial]) -> list[Block]:
    stored = [masks for trial in finished if (masks := masks_of(trial, search.space))]
    if not stored:
        return []
    newest = max(stored, key=lambda masks: int(masks["step"]))
    kept, total = (
        sum(map(len, newest["kept"].values())),
        sum(map(len, dict(search.space.full_architecture().choices).values())),
    )
    text = Text(f"The masks keep {kept} of {total} ops on edges.")
    return [
        text,
        Picture.of("masks", "Ops that masks keep", draw_masks(search.space, newest["kept"], newest["weights"])),
    ]


def _scores(search: Search, study: Study, finished: Sequence[FrozenTrial], metric: str) -> list[Block]:
    scores = scores_of(finished, study.directions[0], search.space)
    if len(scores.numbers) < MIN_SCORES:
        return []
    tau = scores.correlation
    text = Text(
        f"Kendall's tau between scores before training and values: {tau.tau:.2f}, 95 % interval {tau.lower:.2f} to "
        f"{tau.upper:.2f}, over {tau.n_trials} trials."
    )
    return [text, Picture.of("surrogate", "Scores against values", draw_scores(scores, metric))]


def _costs(study: Study, finished: Sequence[FrozenTrial], names: Sequence[str]) -> list[Block]:
    """Return the first value against costs that are no objectives themselves, which the Pareto front shows."""
    blocks: list[Block] = []
    metric = names[0]
    for cost in ("params", "multiply_adds"):
        points, name = pareto(finished, cost, study.directions[0]), COST_NAMES[cost]
        if points and cost not in names:
            shows = f"{metric} against {name}"
            blocks.append(Picture.of(f"pareto_{cost}", shows, draw_pareto(points, name, metric)))
            if cost == "params":
                headings = ("trial", name, metric)
                front = [(str(p.number), f"{p.cost:,.0f}", f"{p.value:.4f}") for p in points if p.on_front]
                blocks.append(Table(headings, front, frozenset(headings)))
    curves = anytime_curves(finished, study.directions[0])
    if curves:
        blocks.append(
            Picture.of("anytime", f"{curves[0].metric} against the budget of a prediction", draw_anytime(curves))
        )
    return blocks


def _stopped(search: Search, finished: Sequence[FrozenTrial]) -> list[Block]:
    pruned = [trial for trial in finished if trial.state == TrialState.PRUNED]
    failed = [trial for trial in finished if trial.state == TrialState.FAIL]
    if not pruned and not failed:
        return []
    blocks: list[Block] = []
    at_once = sum(not trial.intermediate_values for trial in pruned)
    text = (
        f"Of {len(finished)} trials, {len(pruned)} were pruned ({at_once} before the first step), {len(failed)} failed."
    )
    savings = _savings(finished)
    if saved := savings.spent.epochs_saved:
        text += f" Pruning saved {saved} of {saved + savings.spent.epochs} epochs"
        text += f", about {savings.seconds:,.0f} seconds of training." if savings.seconds else "."
    blocks.append(Text(text))
    reasons: dict[str, list[int]] = {}
    for trial in (*pruned, *failed):
        reason = shortened(attribute(trial.user_attrs, REASON, "no reason given"))
        reasons.setdefault(reason, []).append(trial.number)
    common = sorted(reasons.items(), key=lambda item: -len(item[1]))[:MAX_REASONS]
    rows = [(str(len(numbers)), reason, ", ".join(map(str, numbers[:10]))) for reason, numbers in common]
    return [*blocks, Table(("trials", "reason", "numbers of the first"), rows, frozenset({"trials"}))]


def _savings(finished: Sequence[FrozenTrial]) -> Savings:
    savings = Savings()
    for trial in finished:
        savings.add(trial)
    return savings


def _unreadable(study: Study) -> list[Block]:
    found = unreadable(study)
    if not found:
        return []
    rows = [("study" if one.trial is None else str(one.trial), shortened(one.key), shortened(one.why)) for one in found]
    note = Text(f"{len(found)} attributes are not of the type that they must have, and are left out of this report.")
    return [note, Table(("trial", "attribute", "why"), rows[:MAX_UNREADABLE], frozenset({"trial"}))]


def _names(search: Search) -> list[Block]:
    """Return what the notation of architectures means, and the table of short names of ops."""
    core = search.space.core
    blocks: list[Block] = [Text(core.notation)]
    if isinstance(core, CellularSpace):
        rows = [(op.label, op.name, FAMILIES[op.family]) for op in core.known_ops]
        empty = [(NONE, NONE, "no op, and no edge")] if NONE in getattr(core, "ops", ()) else []
        blocks.append(Table(("short", "in parameters", "what it is"), [*rows, *empty]))
    return blocks


def _reproduction(search: Search, study: Study, command: str) -> list[Block]:
    objective = search.resolved_objective
    rows = [
        ("space", f"{type(search.space.core).__name__}, {search.space.size:,} architectures"),
        ("sampler", type(search.resolved_sampler).__name__ if search.resolved_sampler else "Optuna's default"),
        ("pruner", type(search.resolved_pruner).__name__ if search.resolved_pruner else "Optuna's default"),
        ("trials", f"{sum(t.state.is_finished() for t in study.get_trials(deepcopy=False))} of {search.total}"),
    ]
    if isinstance(objective, Describes):
        described = objective.describe()
        if "data" in described:
            rows.append(("data", f"{described['data']['name']}, digest {described['data'].get('digest', 'unknown')}"))
        for part in ("recipe", "task"):
            rows += [(f"{part}: {name}", str(value)) for name, value in described.get(part, {}).items()]
    rows += [*versions().items(), ("git commit", git_commit())]
    code: list[Block] = [Text(command, code=True)] if command else []
    return [*code, Table(("", ""), [row for row in rows if row[1]])]

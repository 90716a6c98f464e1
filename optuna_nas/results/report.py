"""Report of a study: a self-contained HTML page, and the same as Markdown."""

from __future__ import annotations

import base64
import html
import io
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from optuna.trial import TrialState

from optuna_nas.data.splits import REPORT
from optuna_nas.objective.protocol import Describes, judged_metric_of, metric_of
from optuna_nas.plots import plot_architecture
from optuna_nas.plots.anytime import anytime_curves, draw_anytime
from optuna_nas.plots.distribution import distribution_pages
from optuna_nas.plots.importances import MIN_TRIALS, draw_importances, importances
from optuna_nas.plots.masks import draw_masks
from optuna_nas.plots.progress import COST_NAMES, draw_pareto, draw_progress, pareto, progress
from optuna_nas.plots.surrogate import draw_scores, scores_of
from optuna_nas.samplers import distribution_records
from optuna_nas.samplers.snas import records_of_space
from optuna_nas.search.opening import read_study
from optuna_nas.search.results import architecture_of, summarise
from optuna_nas.space import CellularSpace
from optuna_nas.space.ops import FAMILIES, NONE, choosable_ops, get_op
from optuna_nas.storage.attributes import METRIC, REASON, attribute, cost_key, has_attribute, masks_of, unreadable
from optuna_nas.storage.leaderboard import best_trial, leaderboard
from optuna_nas.storage.noise import told_apart
from optuna_nas.storage.plain import code_block, markdown_cell, markdown_table, markdown_text, shortened, visible
from optuna_nas.storage.spending import Savings, spending_of
from optuna_nas.storage.versions import git_commit, versions
from optuna_nas.training.disk import whole_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from matplotlib.figure import Figure
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


DOTS = 192
"""Dots per inch of pictures: two for every pixel of a screen, so that labels stay sharp on phones and paper."""


class Text(NamedTuple):
    """Paragraph.

    Args:
        text: Text.
        code: Whether it is shown as code.
    """

    text: str
    code: bool = False


class Table(NamedTuple):
    """Table.

    Args:
        headings: Headings of the columns; empty strings for no headings.
        rows: Rows of texts.
        numbers: Headings of the columns with numbers.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[str] = frozenset()


class Picture(NamedTuple):
    """Picture.

    Args:
        name: Name of the file without suffix.
        shows: Description in words.
        png: Content of the PNG file.
        width: Width on a screen in pixels.
    """

    name: str
    shows: str
    png: bytes
    width: int


class Section(NamedTuple):
    """Section with its heading."""

    title: str
    blocks: Sequence[Text | Table | Picture]


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
    sections = [
        Section("Question", [Text(search.description.strip())] if search.description.strip() else []),
        Section("Result", _result(search, study)),
        Section("Leaderboard", _leaderboard(search, ranked, metric)),
        Section("Names", _names(search) if ranked else []),
        Section("Best so far", _progress(study, finished, metric)),
        Section("What mattered", _importances(study)),
        Section("What the sampler learned", _distribution(search, study)),
        Section("What the masks keep", _masks(search, finished)),
        Section("Scores against values", _scores(search, study, finished, metric)),
        Section(f"Cost and {metric}", _costs(study, finished, metric)),
        Section("What was stopped", _stopped(search, finished)),
        Section("What can't be read", _unreadable(study)),
        Section("How to reproduce", _reproduction(search, study, command)),
    ]
    return [section for section in sections if section.blocks]


def _result(search: Search, study: Study) -> list[Text | Table | Picture]:
    best = best_trial(study)
    if best is None:
        return [Text("No trial has completed within its constraints yet.")]
    summed, metric = summarise(search, study), metric_of(search.resolved_objective)
    judged = judged_metric_of(search.resolved_objective)
    rows = [(f"best {metric}", f"{best.values[0]:.4f} (trial {best.number})")]
    if has_attribute(best.user_attrs, METRIC):
        rows.append((f"its {judged}", f"{attribute(best.user_attrs, METRIC):.4f}"))
    if summed.test_metric is not None:
        rows.append((f"test {judged}", f"{summed.test_metric:.4f}, on data that the search never saw"))
    for name, text in COST_NAMES.items():
        if has_attribute(best.user_attrs, cost_key(name)):
            rows.append((text, f"{attribute(best.user_attrs, cost_key(name)):,}"))
    rows.append(("seconds of training", f"{spending_of(best).training:,.1f}"))
    if summed.network is not None:
        rows.append(("network", str(summed.network)))
    architecture = architecture_of(search, best)
    blocks: list[Text | Table | Picture] = [Table(("", ""), rows)]
    if architecture is not None:
        blocks.append(
            _picture(
                "best_architecture",
                f"The best architecture: {architecture.summary}",
                lambda: plot_architecture(architecture),
            )
        )
    return blocks


def _leaderboard(search: Search, ranked: Sequence[LeaderboardRow], metric: str) -> list[Text | Table | Picture]:
    if not ranked:
        return []
    judged = {judged_metric_of(search.resolved_objective)} - {metric}  # another where the value is the loss
    rows = []
    for row in ranked[:MAX_ROWS]:
        architecture = architecture_of(search, row.trial)
        summary = (
            architecture.summary
            if architecture
            else shortened(", ".join(f"{k}={v}" for k, v in row.trial.params.items()))
        )
        costs = [f"{row.numbers[name]:,}" if name in row.numbers else "" for name in ("params", "multiply_adds")]
        place = str(row.rank) if row.can_win else "breaks a constraint"
        metrics = [f"{row.value:.4f}", *(["" if row.metric is None else f"{row.metric:.4f}"] if judged else [])]
        rows.append((place, str(row.trial.number), *metrics, *costs, f"{row.seconds:.1f}", summary))
    headings = ("rank", "trial", metric, *judged, "parameters", "multiply-adds", "seconds", "architecture")
    note = [f"The best {MAX_ROWS} of {len(ranked)} completed trials."] if len(ranked) > MAX_ROWS else []
    text = " ".join([*note, *_noise(search, ranked, metric)])
    return [*([Text(text)] if text else []), Table(headings, rows, frozenset(headings[:-1]))]


def _noise(search: Search, ranked: Sequence[LeaderboardRow], metric: str) -> list[str]:
    """Return a sentence on which of the best are as good as equal."""
    objective = search.resolved_objective
    described = objective.describe() if isinstance(objective, Describes) else {}
    told = told_apart(ranked, metric, described.get("data", {}).get("sizes", {}).get(REPORT, 0))
    return [] if told is None else [told]


def _progress(study: Study, finished: Sequence[FrozenTrial], metric: str) -> list[Text | Table | Picture]:
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
    return [text, _picture("progress", "Best value so far", lambda: draw_progress(curve, metric))]


def _importances(study: Study) -> list[Text | Table | Picture]:
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
    return [Text(" ".join(texts)), _picture("importances", "What parameters explain", lambda: draw_importances(found))]


def _distribution(search: Search, study: Study) -> list[Text | Table | Picture]:
    records = records_of_space(search.space, distribution_records(study))
    if not records:
        return []
    first, last = (record.metrics["entropy"] for record in (records[0], records[-1]))
    text = Text(
        f"The mean entropy of a choice went from {first:.2f} to {last:.2f} nats over {records[-1].step} steps; at 0 "
        "the sampler always draws the same architecture."
    )
    pages = enumerate(distribution_pages(search.space, records), 1)
    return [text, *(_picture(f"distribution_{page}", shows, draw) for page, (shows, draw) in pages)]


def _masks(search: Search, finished: Sequence[FrozenTrial]) -> list[Text | Table | Picture]:
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
        _picture("masks", "Ops that masks keep", lambda: draw_masks(search.space, newest["kept"], newest["weights"])),
    ]


def _scores(search: Search, study: Study, finished: Sequence[FrozenTrial], metric: str) -> list[Text | Table | Picture]:
    scores = scores_of(finished, study.directions[0], search.space)
    if len(scores.numbers) < MIN_SCORES:
        return []
    tau = scores.correlation
    text = Text(
        f"Kendall's tau between scores before training and values: {tau.tau:.2f}, 95 % interval {tau.lower:.2f} to "
        f"{tau.upper:.2f}, over {tau.n_trials} trials."
    )
    return [text, _picture("surrogate", "Scores against values", lambda: draw_scores(scores, metric))]


def _costs(study: Study, finished: Sequence[FrozenTrial], metric: str) -> list[Text | Table | Picture]:
    blocks: list[Text | Table | Picture] = []
    for cost in ("params", "multiply_adds"):
        points, name = pareto(finished, cost, study.directions[0]), COST_NAMES[cost]
        if points:
            shows = f"{metric} against {name}"
            blocks.append(_picture(f"pareto_{cost}", shows, partial(draw_pareto, points, name, metric)))
            if cost == "params":
                headings = ("trial", name, metric)
                front = [(str(p.number), f"{p.cost:,.0f}", f"{p.value:.4f}") for p in points if p.on_front]
                blocks.append(Table(headings, front, frozenset(headings)))
    curves = anytime_curves(finished, study.directions[0])
    if curves:
        blocks.append(
            _picture("anytime", f"{curves[0].metric} against the budget of a prediction", lambda: draw_anytime(curves))
        )
    return blocks


def _stopped(search: Search, finished: Sequence[FrozenTrial]) -> list[Text | Table | Picture]:
    pruned = [trial for trial in finished if trial.state == TrialState.PRUNED]
    failed = [trial for trial in finished if trial.state == TrialState.FAIL]
    if not pruned and not failed:
        return []
    blocks: list[Text | Table | Picture] = []
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


def _unreadable(study: Study) -> list[Text | Table | Picture]:
    found = unreadable(study)
    if not found:
        return []
    rows = [("study" if one.trial is None else str(one.trial), shortened(one.key), shortened(one.why)) for one in found]
    note = Text(f"{len(found)} attributes are not of the type that they must have, and are left out of this report.")
    return [note, Table(("trial", "attribute", "why"), rows[:MAX_UNREADABLE], frozenset({"trial"}))]


def _names(search: Search) -> list[Text | Table | Picture]:
    """Return what the notation of architectures means, and the table of short names of ops."""
    core = search.space.core
    blocks: list[Text | Table | Picture] = [Text(core.notation)]
    if isinstance(core, CellularSpace):
        known = {name for options in core.options().values() for chosen in options.values() for name in chosen}
        ops = [get_op(name) for name in choosable_ops() if name in known]
        rows = [(op.label, op.name, FAMILIES[op.family]) for op in ops]
        empty = [(NONE, NONE, "no op, and no edge")] if NONE in getattr(core, "ops", ()) else []
        blocks.append(Table(("short", "in parameters", "what it is"), [*rows, *empty]))
    return blocks


def _reproduction(search: Search, study: Study, command: str) -> list[Text | Table | Picture]:
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
    code: list[Text | Table | Picture] = [Text(command, code=True)] if command else []
    return [*code, Table(("", ""), [row for row in rows if row[1]])]


def _picture(name: str, shows: str, draw: Callable[[], Figure]) -> Picture:
    file, figure = io.BytesIO(), draw()
    figure.savefig(file, format="png", dpi=DOTS)
    return Picture(name, shows, file.getvalue(), round(96 * figure.get_figwidth()))


# -- rendering ----------------------------------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light dark; --ink: #222; --soft: #595959; --paper: #fff; --line: #ddd; --code: #f4f4f4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e4e4; --soft: #a9a9a9; --paper: #17191c; --line: #3c4046;
  --code: #24272c; } img { filter: brightness(.9); } }
body { font: 1rem/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
  margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid var(--line); }
p { white-space: pre-line; overflow-wrap: anywhere; } pre { background: var(--code); padding: .6rem; overflow-x: auto; }
figure { margin: 1rem 0; } figcaption { color: var(--soft); font-size: .85rem; overflow-wrap: anywhere; }
.picture, .table { overflow-x: auto; } img { display: block; background: #fff; border-radius: 4px; }
table { border-collapse: collapse; font-size: .85rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .6rem; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; min-width: 5rem; }
.wide td:last-child { min-width: 16rem; }
th { border-bottom-width: 2px; }
.number { text-align: right; overflow-wrap: normal; min-width: 0; font-variant-numeric: tabular-nums; }
@media screen and (min-width: 40.01rem) { img { max-width: 100%; height: auto; } }
@media screen and (max-width: 40rem) {
  .wide { display: grid; grid-template-columns: repeat(var(--columns), auto); }
  .wide :is(thead, tbody, tr) { display: grid; grid-template-columns: subgrid; grid-column: 1 / -1; }
  .wide :is(th, td) { padding: .2rem; border: 0; min-width: min-content; font-size: .75rem; }
  .wide th { font-size: .68rem; hyphens: auto; }
  .wide :is(th, td):last-child { grid-column: 1 / -1; border-bottom: 1px solid var(--line); }
}
@media print {
  :root { font-size: 11px; --ink: #000; --soft: #444; --paper: #fff; --line: #bbb; --code: #f4f4f4; }
  body { max-width: none; padding: 0; } .picture, .table { overflow: visible; } pre { white-space: pre-wrap; }
  img { max-width: 100%; max-height: 24cm; height: auto; object-fit: contain; object-position: left; filter: none; }
  h1, h2, thead { break-after: avoid; }
  figure, tr, p, pre { break-inside: avoid; } p:has(+ .table, + figure), pre:has(+ .table) { break-after: avoid; }
  tbody tr:nth-child(-n+2) { break-after: avoid; } tbody tr:nth-last-child(-n+3) { break-before: avoid; }
  .wide td:last-child { width: 60%; }
}
"""
"""Wide tables have, on a phone, their last column below the others; pictures, always on white paper, keep their size
there and are moved sideways. On paper the last four rows of a table stay together."""
WIDE = 5
"""Smallest number of columns of a wide table."""


def as_html(title: str, sections: Sequence[Section]) -> str:
    """Return a report as one HTML page with embedded pictures."""
    body = [f"<h1>{_escaped(title)}</h1>"]
    for section in sections:
        body.append(f"<section><h2>{_escaped(section.title)}</h2>")
        for block in section.blocks:
            if isinstance(block, Text):
                tag = "pre" if block.code else "p"
                body.append(f"<{tag}>{_escaped(block.text)}</{tag}>")
            elif isinstance(block, Picture):
                data, shows = base64.b64encode(block.png).decode(), _escaped(block.shows)
                caption = f"<figcaption>{shows}</figcaption>"
                image = f'<img src="data:image/png;base64,{data}" alt="{shows}" width="{block.width}">'
                body.append(f'<figure><div class="picture">{image}</div>{caption}</figure>')
            else:
                body.append(_html_table(block))
        body.append("</section>")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{_escaped(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _escaped(text: str) -> str:
    return html.escape(visible(text))


def _html_table(table: Table) -> str:
    classes = [' class="number"' if heading in table.numbers else "" for heading in table.headings]
    head = "".join(f"<th{c}>{_escaped(h)}</th>" for h, c in zip(table.headings, classes, strict=True))
    rows = [
        "<tr>" + "".join(f"<td{c}>{_escaped(cell)}</td>" for cell, c in zip(row, classes, strict=True)) + "</tr>"
        for row in table.rows
    ]
    shown = f"<thead><tr>{head}</tr></thead>" if any(table.headings) else ""
    n_columns = len(table.headings)
    look = f' class="wide" style="--columns: {n_columns - 1}"' if n_columns >= WIDE else ""
    return f'<div class="table"><table{look}>{shown}<tbody>{"".join(rows)}</tbody></table></div>'


def as_markdown(title: str, sections: Sequence[Section]) -> str:
    """Return a report as Markdown, with references to picture files in the same folder."""
    parts = [f"# {markdown_cell(title)}"]
    for section in sections:
        parts.append(f"## {markdown_cell(section.title)}")
        for block in section.blocks:
            if isinstance(block, Text):
                parts.append(code_block(block.text) if block.code else markdown_text(block.text))
            elif isinstance(block, Picture):
                parts.append(f"![{markdown_cell(block.shows)}]({block.name}.png)")
            else:
                parts.append(markdown_table(block.headings, block.rows, block.numbers))
    return "\n\n".join(parts) + "\n"

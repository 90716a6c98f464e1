"""Leaderboard and files of a search in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from optuna_nas.cli.console import console, print_line

if TYPE_CHECKING:
    from optuna_nas.search.config import Search
    from optuna_nas.search.results import SearchResult

MAX_ROWS = 10


def print_result(search: Search, result: SearchResult) -> None:
    """Print the leaderboard of a search and its files."""
    from optuna_nas.objective.protocol import judged_metric_of, metric_of
    from optuna_nas.search.results import architecture_of
    from optuna_nas.storage.attributes import unreadable
    from optuna_nas.storage.leaderboard import leaderboard
    from optuna_nas.storage.noise import told_apart
    from optuna_nas.storage.plain import shortened
    from optuna_nas.storage.quota import counted_trials

    for one in (left_out := unreadable(result.study))[:MAX_ROWS]:
        print_line("Left out", shortened(str(one)))
    if len(left_out) > MAX_ROWS:
        print_line("", f"and {len(left_out) - MAX_ROWS} more attributes that can't be read")
    rows = leaderboard(result.study)
    if not rows:
        console.print("No trial has finished yet; nothing to rank.")
        return
    table = Table(title=f"{search.name}: the best of {counted_trials(result.study)} trials")
    value, judged = metric_of(search.resolved_objective), judged_metric_of(search.resolved_objective)
    metrics = dict.fromkeys((value, judged))  # one, unless the value is the loss
    for name in ("rank", "trial", *metrics, "params", "multiply-adds", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("architecture", overflow="fold")
    for row in rows[:MAX_ROWS]:
        numbers, architecture = row.numbers, architecture_of(search, row.trial)
        table.add_row(
            str(row.rank) if row.can_win else "breaks a constraint",
            str(row.trial.number),
            f"{row.value:.4f}",
            *("" if row.metric is None else f"{row.metric:.4f}" for _ in list(metrics)[1:]),
            f"{numbers['params']:,}" if "params" in numbers else "",
            f"{numbers['multiply_adds']:,}" if "multiply_adds" in numbers else "",
            f"{row.seconds:.1f}",
            shortened(architecture.summary) if architecture else "",
        )
    console.print(table)
    if (told := told_apart(rows, value)) is not None:
        print_line("Noise", told)

    if result.best is None:
        print_line("Best architecture", "none: every trial breaks a constraint")
        return
    picture = f", picture in {result.picture}" if result.picture else ""
    print_line("Best architecture", f"trial {result.best.number}{picture}")
    if result.network is not None:
        print_line("Best network", f"{result.network}, read it with optuna_nas.load_network")
    if result.test_metric is not None:
        print_line(f"Test {judged}", f"{result.test_metric:.4f} on data that the search never saw")

"""Run of a study in MLflow: description, params, curves, leaderboard, and the saved view of its trials."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow.entities import Dataset, DatasetInput, InputTag
from optuna.study import StudyDirection

from optuna_nas.plots.objectives import front_of
from optuna_nas.space import CellularSpace
from optuna_nas.storage.attributes import (
    PARAMS,
    SHOWN_NAMES,
    SURROGATE_SCORE,
    TEST_RESULT,
    attribute,
    has_attribute,
    objective_names,
    shown_attributes,
    user_attributes,
)
from optuna_nas.storage.leaderboard import can_win, rank_trials
from optuna_nas.storage.noise import told_apart
from optuna_nas.storage.plain import json_text, markdown_table, visible
from optuna_nas.storage.spending import spending_of
from optuna_nas.tracking.client import metrics_of
from optuna_nas.tracking.curves import CurvePoints
from optuna_nas.tracking.keys import mlflow_keys, text_of
from optuna_nas.tracking.records import Epoch, finished_trials, milliseconds_now
from optuna_nas.tracking.view import (
    PICTURE_KEY,
    TESTED,
    Shown,
    comparison_view,
    parallel_axes,
    trials_filter,
    view_tag,
    winner_key,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import optuna
    from mlflow.entities import Run
    from optuna.trial import FrozenTrial

    from optuna_nas.space import Space
    from optuna_nas.storage.leaderboard import LeaderboardRow
    from optuna_nas.tracking.pictures import StudyPictures
    from optuna_nas.tracking.records import DatasetInfo
    from optuna_nas.tracking.runs import StudyRuns

SCATTER_METRICS = (SHOWN_NAMES[SURROGATE_SCORE], SHOWN_NAMES[PARAMS])
"""Metrics to draw against the value, in order of preference: predicted score, number of parameters."""
MAX_LEADERS = 5
"""Number of trials in the description of the study's run."""


class StudyRun:
    """Writer of the run of a study.

    Args:
        runs: Runs of the study.
        metric: Name of the first value.
        direction: Direction of the first objective.
        space: Search space whose parameters the view shows; None for the parameters of the trials.
        pictures: Pictures of the study.
    """

    def __init__(
        self,
        runs: StudyRuns,
        metric: str,
        direction: StudyDirection,
        space: Space | None,
        pictures: StudyPictures,
    ) -> None:
        self._runs, self._client, self._pictures = runs, runs.client, pictures
        self._metric, self._direction, self._space = metric, direction, space
        self._points = CurvePoints(direction, space)
        self._description = ""
        self._said: FrozenTrial | None = None  # best trial that the description names
        self._scatter = SCATTER_METRICS[-1]

    def describe(
        self,
        run: Run,
        description: str,
        dataset: DatasetInfo | None,
        params: Mapping[str, object],
        tags: Mapping[str, str],
    ) -> None:
        """Write description, data set, params and tags; a param that changed since the study began becomes a tag."""
        keys = mlflow_keys(params)
        logged = run.data.params
        texts = {keys[name]: text_of(value) for name, value in params.items()}
        changed = {f"changed.{key}": text for key, text in texts.items() if logged.get(key, text) != text}
        self._description = visible(description).replace("<", "&lt;")  # Markdown, of which no part is HTML
        said = run.data.tags.get("mlflow.note.content", "")  # perhaps with a result before it
        note = {} if said.endswith(self._description.strip()) else {"mlflow.note.content": self._description}
        new = {key: text for key, text in texts.items() if key not in logged}
        self._client.log(self._runs.study_id, (), new, {**note, **changed, **tags})
        self._runs.source_tags = dict(tags)
        if dataset is not None:
            entity = Dataset(dataset.name, dataset.digest[:36], "external", json.dumps({"uri": dataset.source}))
            self._runs.dataset = DatasetInput(entity, [InputTag("mlflow.data.context", "search")])
            self._client.mlflow.log_inputs(self._runs.study_id, datasets=[self._runs.dataset])

    def find_curves(self) -> None:
        """Read from MLflow which points of the curves it has."""
        self._points.written = self._client.steps(self._runs.study_id, "n_complete")

    def write_curves(self, study: optuna.Study, numbers: set[int]) -> None:
        """Extend the study's curves by the points of these trials, with trial numbers as steps."""
        running = list(self._runs.local.running)  # read first: a trial that ends meanwhile counts as running
        settled = self._points.update(finished_trials(study), running)
        points = self._points.take(numbers)
        self._client.log(self._runs.study_id, metrics_of(points))
        self._points.written |= {point.step for point in points}
        if points:
            self._pictures.draw(settled)

    def save_view(self, study: optuna.Study, winner: int | None, ended: bool = False) -> None:
        """Save the comparison view, with the picture of the best trial.

        Args:
            study: Study.
            winner: Number of the best trial; None if there is none yet.
            ended: Whether all trials have ended, so that what they lack need not be waited for.
        """
        finished = finished_trials(study)
        attributes = {name for trial in finished for name in shown_attributes(trial.user_attrs)}
        self._scatter = next((name for name in SCATTER_METRICS if name in attributes), self._scatter)
        best = [] if winner is None else [winner_key(winner)]
        keys = mlflow_keys(others := objective_names(study)[1:])
        shown = Shown(
            metrics=[self._metric, *(keys[name] for name in others)],
            maximize=self._direction == StudyDirection.MAXIMIZE,
            params=parallel_axes(finished, self._space),
            scatter="" if ended and self._scatter not in attributes else self._scatter,
            pictures=[] if self._space is None else [*best, PICTURE_KEY],
            curves=not ended or any(trial.intermediate_values for trial in finished),
        )
        view = comparison_view(shown, trials_filter(self._runs.uid))
        tag = view_tag(self._runs.uid)
        self._client.mlflow.set_experiment_tag(self._runs.experiment_id, tag, json.dumps(view))

    def shows_less_than(self, trial: FrozenTrial) -> bool:
        """Return whether this trial is the first with a metric that the saved view should show instead."""
        return self._scatter != SCATTER_METRICS[0] and has_attribute(trial.user_attrs, SURROGATE_SCORE)

    def says_less_than(self, trial: FrozenTrial) -> bool:
        """Return whether a trial is better than the best that the description names."""
        said = self._said
        return can_win(trial) and (said is None or rank_trials([said, trial], self._direction)[0] is not said)

    def note_result(
        self,
        study: optuna.Study,
        rows: Sequence[LeaderboardRow],
        network: str | None = None,
        *,
        ended: bool = False,
    ) -> None:
        """Begin the description with the result, its picture and the best trials; write its numbers as metrics.

        Args:
            study: Study.
            rows: Leaderboard, which begins with a trial that can win.
            network: File of the best trial's network, None if there is none.
            ended: Whether the search has ended, and this is not the result so far.
        """
        best, states = rows[0].trial, Counter(row.trial.state for row in rows)
        if (shown := best.number in self._runs.trials) or best.number not in self._runs.local:
            self._said = best
        if not shown:
            return  # it comes next, or the process that ran it says so
        run = self._runs.trials[best.number].run_id
        link = f"[trial {best.number}](#/experiments/{self._runs.experiment_id}/runs/{run})"
        spent = [spending_of(row.trial) for row in rows]
        training, model = sum(each.training for each in spent), sum(each.model for each in spent)
        seconds = f"{training:,.0f} s of training" + (f", {model:,.0f} s of one-shot models" if model else "")
        numbers = {"best_trial": float(best.number)}
        result = f"**Best {self._metric}: {best.values[0]:.4g}**{'' if ended else ' so far'}, of {link}"
        judged = attribute(user_attributes(study), TEST_RESULT)
        if judged is not None and judged["trial"] == best.number:
            numbers[TESTED] = judged["metric"]
            result += f"; on the test split {judged['metric']:.4g}"
        counts = ", ".join(f"{count} {state.name.lower()}" for state, count in states.items())
        lines = [f"{result}. Trials: {counts}; {seconds}.", told_apart(rows, self._metric) or ""]
        if network is not None:
            lines.append(visible(f'Its network: `optuna_nas.load_network("{network}")`').replace("<", "&lt;"))
        if self._space is not None:
            lines.append(f"![the best architecture](get-artifact?path=architecture.png&run_uuid={run})")
        names = [self._metric, *objective_names(study)[1:]]
        if several := len(names) > 1:
            self._pictures.draw_objectives(study, names)
            picture = f"get-artifact?path=pareto_front.png&run_uuid={self._runs.study_id}"
            lines.append(f"![trials and their Pareto front]({picture})")
        leaders = front_of(study) if several else [row.trial for row in rows if row.can_win]
        headings = [f"{'Pareto front' if several else 'best'}: trial", *names]
        values = [[f"{t.number}", *(f"{value:.4g}" for value in t.values)] for t in leaders[:MAX_LEADERS]]
        lines.append(markdown_table(headings, values))
        if self._space is not None:
            lines.append(_notation(self._space, best))
        lines.append(self._description.strip())
        step = max(row.trial.number for row in rows)  # where the curves end
        points = [Epoch(step, step, numbers, milliseconds_now())]
        self._client.log(
            self._runs.study_id, metrics_of(points), tags={"mlflow.note.content": "\n\n".join(filter(None, lines))}
        )

    def save_leaderboard(self, rows: Sequence[LeaderboardRow]) -> None:
        """Save the leaderboard as a table in MLflow."""
        table = json_text(leaderboard_table(rows, self._metric), spells=True)
        save = partial(self._client.mlflow.log_text, self._runs.study_id, table, "leaderboard.json")
        self._client.store(save)
        shown = '[{"path": "leaderboard.json", "type": "table"}]'
        self._client.log(self._runs.study_id, tags={"mlflow.loggedArtifacts": shown})

    def end(self, status: str) -> None:
        """End the run."""
        self._client.end(self._runs.study_id, status, milliseconds_now())


def _notation(space: Space, trial: FrozenTrial) -> str:
    """Return how terminal and report write a trial's architecture of cells, and what that means; empty for others."""
    core = space.core
    if not isinstance(core, CellularSpace):
        return ""
    try:
        written = space.decode(trial.params).summary
    except ValueError:  # a trial of an earlier search of another space
        return ""
    short = ", ".join(f"`{op.label}` is `{op.name}`" for op in core.known_ops if op.label != op.name)
    names = f" Short names: {short}." * bool(short)
    return f"Terminal and report write this architecture as `{written}`. {core.notation}{names}"


def leaderboard_table(rows: Sequence[LeaderboardRow], metric: str) -> dict[str, Any]:
    """Return a leaderboard as MLflow's JSON of a table; `log_table` would append to the table of an earlier run."""
    numbers = sorted({name for row in rows for name in row.numbers})
    params = list(dict.fromkeys(name for row in rows for name in row.trial.params))
    data = [
        [
            row.trial.number,
            row.value,
            row.trial.state.name,
            round(row.seconds, 1),
            *(shown_attributes(row.trial.user_attrs).get(name) for name in numbers),
            *(row.trial.params.get(name) for name in params),
        ]
        for row in rows
    ]
    return {"columns": ["trial", metric, "state", "seconds", *numbers, *params], "data": data}

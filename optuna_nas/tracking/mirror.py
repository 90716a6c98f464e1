"""The side that talks to MLflow, through `MlflowClient` and explicit run ids only; knows no threads."""

from __future__ import annotations

import json
import logging
import socket
import sqlite3
import time
import uuid
from bisect import bisect_right
from collections import Counter, defaultdict
from contextlib import ExitStack, contextmanager
from functools import partial
from math import inf, isinf
from operator import attrgetter, itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlsplit

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from optuna.study import StudyDirection
from optuna.trial import TrialState

from optuna_nas.plots import plot_architecture, plot_distribution, plot_most_likely
from optuna_nas.plots.anytime import anytime_curves, draw_anytime
from optuna_nas.plots.masks import draw_masks
from optuna_nas.plots.progress import spent_seconds
from optuna_nas.plots.surrogate import draw_guesses, guesses
from optuna_nas.samplers.snas import records_of
from optuna_nas.storage.attributes import (
    GPU_SECONDS,
    PARAMS,
    PREFIX,
    SHOWN_NAMES,
    SURROGATE_SCORE,
    UID_ATTRIBUTE,
    attribute,
    fit_records_of,
    has_attribute,
    masks_of,
    shown_attributes,
)
from optuna_nas.storage.database import one_line, without_password
from optuna_nas.tracking.records import (
    SQLITE,
    STATUSES,
    THREAD_NAME,
    Begun,
    Epoch,
    finished_trials,
    is_server,
    milliseconds,
    milliseconds_now,
    unreachable,
)
from optuna_nas.tracking.view import (
    LOCAL_SERVER,
    PICTURE_KEY,
    comparison_view,
    mlflow_keys,
    page_url,
    parallel_axes,
    study_filter,
    view_key,
    winner_key,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import optuna
    from matplotlib.figure import Figure
    from mlflow.entities import Run
    from optuna.trial import FrozenTrial

    from optuna_nas.oneshot import DistributionRecord
    from optuna_nas.space import Space
    from optuna_nas.tracking.records import DatasetInfo

_logger = logging.getLogger("optuna_nas.tracking")

NOISY = ("mlflow", "alembic", "sqlalchemy", "urllib3")  # loggers whose messages from that thread are nobody's business
PROBE_SECONDS = 5  # in which a server must say something
FRESH_SECONDS = 10.0  # how long a trial of another process is left to that process
SCATTER_ATTRIBUTES = (SHOWN_NAMES[SURROGATE_SCORE], SHOWN_NAMES[PARAMS])
"""Metrics to draw against the value, best first: what a one-shot model guessed, what the network costs."""
TAU_CURVES = (("", "tau"), ("_lower", "lower"), ("_upper", "upper"))
GUESSES, FEWEST_GUESSES = "surrogate.png", 5
ANYTIME = "anytime.png"
LONGEST_PARAM, LONGEST_TAG = 6000, 8000
"""Characters that MLflow takes."""
SNAS_MODEL = "SNAS"
"""Whose fits the records of a distribution tell."""
RIVAL_SECONDS = 2.0
"""In which another process that makes the run of the same study sees this one's."""
LEADERS = 5
"""Trials in the description of the study's run."""
TAU_FROM = 1.01
"""A rank correlation is computed again when there are so many times more trials than the last time."""
REDRAWN_FROM = 1.2
"""A picture of the study is drawn again when so many times more trials are in it."""
COLOURS = {"study": "#333333", "best": "#d62728", "COMPLETE": "#7fa8c9", "PRUNED": "#c8c8c8", "FAIL": "#e3b7b7"}
"""Of the runs' points and curves; all but the winner's are pale."""
BEST = " (best)"
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
"""Databases besides SQLite that MLflow writes to, and where they listen."""
_EMPTY: Mapping[str, Any] = MappingProxyType({})


class _Child(NamedTuple):
    """The run of a trial."""

    run_id: str
    status: str
    name: str

    @staticmethod
    def of(run: Run) -> _Child:
        return _Child(run.info.run_id, run.info.status, run.info.run_name)


@contextmanager
def connected(uri: str, registry: bool = False) -> Iterator[MlflowClient]:
    """Let a block talk to MLflow, and to its registry of models, and close what MLflow would keep open for good."""
    client = MlflowClient(uri)
    try:
        yield client
    finally:
        for part in (client._tracking_client, *([client._get_registry_client()] if registry else [])):
            # Of a database, not of a server. What else in this process uses it opens a connection again.
            if (engine := getattr(part.store, "engine", None)) is not None:
                engine.dispose()


class Mirror:
    """Tells MLflow about a study. Everything may be done again after it failed half-way, with the same outcome.

    Used by one thread, but for `running`, which the trials' threads fill.
    """

    def __init__(self, uri: str, experiment: str, metric: str, space: Space | None) -> None:
        self._uri, self._experiment, self._metric, self._space = uri, experiment, metric, space
        self._database = Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None
        self.connections = ExitStack()  # to be closed by the thread that calls, once it is done
        self.running: dict[int, Begun] = {}
        self.n_written = 0
        self.view_url = ""
        self._children: dict[int, _Child] = {}
        self.own: set[int] = set()  # trials that finished in this process; filled by their threads, like `running`
        self._steps: set[int] = set()  # of the study's curves
        self._unwritten: dict[int, Epoch] = {}  # points of those curves, of trials that others may write
        self._n_tau = 0  # finished trials at the last rank correlation
        self._records: dict[int, DistributionRecord] = {}  # how the sampler's distribution stood, by step
        self._record_steps: set[int] = set()  # of those in MLflow
        self._fits: set[int] = set()  # trials whose fits are in MLflow
        self._fit_runs: dict[str, str] = {}  # runs of one-shot models, by their name
        self._description = ""
        self._masks_step = -1  # of the masks in MLflow's picture
        self._drawn: Counter[str] = Counter()  # finished trials in the study's pictures, by their name
        self._source: dict[str, str] = {}  # tags of trials that this process runs
        self._dataset: DatasetInput | None = None
        self._scatter = SCATTER_ATTRIBUTES[-1]
        self._refused = False  # an artifact could not be stored

    # -- the address ----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise ConnectionError where MLflow can't be used now, within some 5 seconds."""
        parts = urlsplit(self._uri)
        try:
            if is_server(self._uri):
                credentials = get_default_host_creds(self._uri)
                http_request(credentials, "/health", "GET", max_retries=0, timeout=PROBE_SECONDS)
            elif self._database is not None:
                sqlite3.connect(self._database).close()
            elif (kind := parts.scheme.split("+")[0]) in PORTS:
                if parts.hostname is not None:
                    socket.create_connection((parts.hostname, parts.port or PORTS[kind]), PROBE_SECONDS).close()
            elif not self._uri.startswith("databricks"):
                raise ValueError("this is neither a server nor a database")
        except MlflowException as error:
            raise unreachable(self._uri, "it does not answer") from error
        except (sqlite3.Error, OSError, ValueError) as error:
            raise unreachable(self._uri, one_line(error)) from error

    def find_view(self, study: optuna.Study, local_server: str) -> str:
        """Return the address of the comparison view of a study that was tracked before."""
        self.check()
        uid = str(study.user_attrs.get(UID_ATTRIBUTE, ""))
        with connected(self._uri) as client:
            experiment = client.get_experiment_by_name(self._experiment) if uid else None
        if experiment is None:
            raise ValueError(
                f"`study` must have been tracked at {without_password(self._uri)} but MLflow does not know "
                f"{study.study_name!r}; run it with this tracker first."
            )
        best_first = study.directions[0] == StudyDirection.MAXIMIZE
        return page_url(self._uri, local_server, experiment.experiment_id, uid, self._metric, maximize=best_first)

    def open(
        self,
        study: optuna.Study,
        description: str,
        dataset: DatasetInfo | None,
        params: Mapping[str, object],
        tags: Mapping[str, str] = _EMPTY,
    ) -> None:
        """Find or make the experiment and the study's run."""
        _silence()
        self._client = self.connections.enter_context(connected(self._uri))
        self._experiment_id = self._find_experiment()
        self._maximize = study.directions[0] == StudyDirection.MAXIMIZE
        self._curves = _StudyCurves(self._maximize)
        self._objectives = study.metric_names or [f"objective {i}" for i in range(len(study.directions))]
        uid = _study_uid(study)
        self._tags = {"optuna.study_name": study.study_name, "optuna_nas.study_uid": uid}
        where = (self._uri, LOCAL_SERVER, self._experiment_id, uid, self._metric)
        self.view_url = page_url(*where, maximize=self._maximize)

        parent = self._find_parent(study)
        self._parent_id = parent.info.run_id
        self._client.update_run(self._parent_id, status="RUNNING")
        keys = mlflow_keys(params)
        known = parent.data.params
        texts = {keys[name]: _text(value) for name, value in params.items()}
        changed = {f"changed.{key}": text for key, text in texts.items() if known.get(key, text) != text}
        self._description = description
        note = {"mlflow.note.content": description} if description else {}
        new = {key: text for key, text in texts.items() if key not in known}
        self._log(self._parent_id, (), new, {**note, **changed, **tags})
        self._source = dict(tags)
        if dataset is not None:
            entity = Dataset(dataset.name, dataset.digest[:36], "external", json.dumps({"uri": dataset.source}))
            self._dataset = DatasetInput(entity, [InputTag("mlflow.data.context", "search")])
            self._client.log_inputs(self._parent_id, datasets=[self._dataset])
        self._save_view(study)

    def _find_experiment(self) -> str:
        experiment = self._client.get_experiment_by_name(self._experiment)
        if experiment is None:
            folder = self._database and self._database.parent / "mlruns" / quote(self._experiment, safe="")
            try:
                return str(self._client.create_experiment(self._experiment, folder and folder.as_uri()))
            except MlflowException:  # another process was faster
                experiment = self._client.get_experiment_by_name(self._experiment)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage != "active":
            raise unreachable(self._uri, f"experiment {self._experiment!r} was deleted there")
        return str(experiment.experiment_id)

    def _find_parent(self, study: optuna.Study) -> Run:
        condition = "tags.`optuna_nas.kind` = 'study'"
        if not (found := self._search(condition)):
            starts = [trial.datetime_start for trial in study.get_trials(deepcopy=False) if trial.datetime_start]
            tags = self._tags | {"optuna_nas.kind": "study", "mlflow.runColor": COLOURS["study"]}
            start = milliseconds(min(starts, default=None))
            made = self._client.create_run(self._experiment_id, start, tags, study.study_name)
            found = self._search(condition)
            if len(found) > 1 and made.info.run_id == found[0].info.run_id:
                time.sleep(RIVAL_SECONDS)  # another process was as fast; if it saw this run, it takes it
                found = self._search(condition)
                found = [run for run in found if run.info.run_id != made.info.run_id] or [made]
            if made.info.run_id != found[0].info.run_id:
                self._client.delete_run(made.info.run_id)
        return found[0]

    def _search(self, condition: str) -> list[Run]:
        """Return the runs of this study for which the condition holds, oldest first."""
        query = f"{study_filter(self._tags['optuna_nas.study_uid'])} and {condition}"
        order = ["attributes.start_time", "attributes.run_id"]
        runs: list[Run] = []
        token = None
        while True:
            page = self._client.search_runs([self._experiment_id], query, 1, 1000, order, token)
            runs += page
            if not (token := page.token):
                return runs

    # -- trials ---------------------------------------------------------------------------------------------------

    def trial_started(self, begun: Begun, first: Epoch) -> None:
        """Make the run of a trial, with what is known before training."""
        self._log(self._child(begun.number, begun.start), _points(first), _param_texts(begun.params))

    def epochs(self, epochs: Sequence[Epoch]) -> None:
        """Add points to learning curves, one request a trial."""
        points: dict[int, list[Metric]] = defaultdict(list)
        for epoch in epochs:
            points[epoch.number] += _points(epoch)
        for number, metrics in points.items():
            if number in self._children:
                self._log(self._children[number].run_id, metrics)
            elif (begun := self.running.get(number)) is not None:
                self._log(self._child(number, begun.start), metrics, _param_texts(begun.params))

    def trial_finished(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Close the run of a trial of this process, and continue the study's curves."""
        self._write_trial(trial)
        self._write_curves(study, set(self.own))
        self._write_records([trial])
        if self._scatter != SCATTER_ATTRIBUTES[0] and has_attribute(trial.user_attrs, SURROGATE_SCORE):
            self._save_view(study)

    def _write_trial(self, trial: FrozenTrial) -> None:
        """Complete and close the run of a trial; the status comes last, so that a run that has it lacks nothing."""
        run_id = self._child(trial.number, milliseconds(trial.datetime_start))
        run, end = self._client.get_run(run_id), milliseconds(trial.datetime_complete)

        curve = {point.step: point for point in self._history(run_id, self._metric)}
        missing = {step: value for step, value in trial.intermediate_values.items() if step not in curve}
        metrics = [Metric(self._metric, value, end, step) for step, value in sorted(missing.items())]
        curve |= {point.step: point for point in metrics}
        if trial.values and (not curve or curve[max(curve)].value != trial.values[0]):
            step, after = max(curve, default=0), max((point.timestamp for point in curve.values()), default=0) + 1
            metrics.append(Metric(self._metric, trial.values[0], max(end, after), step))  # of a step, the latest counts
        known = shown_attributes(trial.user_attrs)
        numbers = {name: value for name, value in known.items() if _is_number(name, value)}
        shown = numbers | dict(zip(self._objectives[1:], (trial.values or [])[1:], strict=False))
        attributes = {key: value for key, value in _keyed(shown).items() if key not in run.data.metrics}
        metrics += [Metric(key, float(value), end, 0) for key, value in attributes.items() if key != self._metric]
        texts = {name: _text(value) for name, value in known.items() if name not in numbers}
        tags = _keyed(texts) | {"optuna.state": trial.state.name, "mlflow.runColor": COLOURS[trial.state.name]}
        self._log(run_id, metrics, _param_texts(trial.params), tags)
        if "mlflow.loggedImages" not in run.data.tags:
            self._store(partial(self._draw, trial, run_id))
        self._end(run_id, STATUSES[trial.state], end)
        self._children[trial.number] = self._children[trial.number]._replace(status=STATUSES[trial.state])

    def _draw(self, trial: FrozenTrial, run_id: str, key: str = PICTURE_KEY) -> None:
        try:
            architecture = None if self._space is None else self._space.decode(trial.params)
        except ValueError:  # it failed before everything was chosen, or an earlier search had another space
            architecture = None
        if architecture is not None:
            canvas = FigureCanvasAgg(plot_architecture(architecture))
            canvas.draw()  # type: ignore[no-untyped-call]
            picture = np.array(canvas.buffer_rgba(), np.uint8)  # type: ignore[no-untyped-call]
            self._client.log_text(run_id, architecture.to_json(), "architecture.json")
            self._client.log_image(run_id, picture, "architecture.png")
            self._client.log_image(run_id, picture, key=key, step=0)

    def _store(self, save: Callable[[], None]) -> None:
        """Save an artifact, or do without: files go to a place of their own, which may refuse what MLflow takes."""
        try:
            save()
        except Exception as error:
            self.check()  # MLflow itself is away: then all of it is done again
            level = logging.DEBUG if self._refused else logging.WARNING
            self._refused = True
            _logger.log(level, "MLflow could not store an architecture or a table (%s).", one_line(error))

    def _child(self, number: int, start: int) -> str:
        """Return the run of a trial, made where MLflow has none."""
        if number not in self._children:
            if not (found := self._search(f"tags.`optuna.trial_number` = '{number}'")):
                own = {"mlflow.parentRunId": self._parent_id, "optuna.trial_number": str(number)}
                tags = self._tags | {"optuna_nas.kind": "trial"} | own
                if number in self.running or number in self.own:
                    tags |= self._source
                found = [self._client.create_run(self._experiment_id, start, tags, f"trial {number}")]
                if self._dataset is not None:
                    self._client.log_inputs(found[0].info.run_id, datasets=[self._dataset])
            self._children[number] = _Child.of(found[0])
        return self._children[number].run_id

    # -- the study ------------------------------------------------------------------------------------------------

    def replay(
        self,
        study: optuna.Study,
        finished: Sequence[FrozenTrial],
        on_progress: Callable[[int], None] = lambda n_done: None,
    ) -> None:
        """Write what MLflow misses of these trials, whoever ran them; `on_progress` hears how many are done."""
        self._find_children()
        self._steps = {point.step for point in self._history(self._parent_id, "n_complete")}
        # Those of this process first: meanwhile other processes write theirs, so that few are made twice.
        for n_done, trial in enumerate(sorted(finished, key=lambda trial: trial.number not in self.own)):
            on_progress(n_done)
            child = self._children.get(trial.number)
            if child is None or not (child.status == STATUSES[trial.state] or self._is_being_closed(trial, child)):
                self._write_trial(trial)
        on_progress(len(finished))
        self._find_children()
        self._write_curves(study, {trial.number for trial in finished})
        self._record_steps = {point.step for point in self._history(self._parent_id, "distribution/entropy")}
        self._write_records(finished)
        self._save_view(study)

    def _find_children(self) -> None:
        """Find the runs of all trials; where two processes made one each, the first stays."""
        self._children = {}
        for run in self._search("tags.`optuna_nas.kind` = 'trial'"):
            number = int(run.data.tags["optuna.trial_number"])
            if number in self._children:
                self._client.delete_run(run.info.run_id)
            else:
                self._children[number] = _Child.of(run)

    def forget(self) -> None:
        """Look for the runs of trials again; another process may have removed one that was made twice."""
        self._children = {}

    def _is_being_closed(self, trial: FrozenTrial, child: _Child) -> bool:
        """Whether another process has only just finished the trial and still writes its curves."""
        fresh = milliseconds_now() - milliseconds(trial.datetime_complete) < FRESH_SECONDS * 1000
        return fresh and child.status == "RUNNING" and trial.number not in self.own

    def close(self, study: optuna.Study, status: str | None) -> None:
        """Write what is missing and the leaderboard, name the winner, close the study's run.

        Without a status, only write what this process has run.
        """
        if status is None:
            self._find_children()
            for trial in finished_trials(study):
                child = self._children.get(trial.number)
                if trial.number in self.own and (child is None or child.status != STATUSES[trial.state]):
                    self._write_trial(trial)
            self._write_curves(study, set(self.own))
            return
        for number in self.running.keys() & self._children.keys():  # cut off in the middle
            self._end(self._children[number].run_id, "KILLED", milliseconds_now())
        self.running.clear()
        self.replay(study, finished_trials(study))
        self._draw_study(study, finished_trials(study), 1.0)
        ranked = self._ranked(study)
        if ranked and self._counts(ranked[0]):
            self._crown(ranked[0])
            self._describe(ranked)
        for run_id in self._fit_runs.values():
            self._end(run_id, "FINISHED" if status == "RUNNING" else status, milliseconds_now())
        self._save_view(study)
        table = json.dumps(self._leaderboard(ranked))
        self._store(partial(self._client.log_text, self._parent_id, table, "leaderboard.json"))
        self._log(
            self._parent_id, (), tags={"mlflow.loggedArtifacts": '[{"path": "leaderboard.json", "type": "table"}]'}
        )
        self._end(self._parent_id, status, milliseconds_now())

    def _crown(self, best: FrozenTrial) -> None:
        """Give the best trial its name, its colour and a picture that the view shows by itself."""
        for number, child in self._children.items():
            wins = number == best.number
            if (name := f"trial {number}" + BEST * wins) != child.name:
                if wins:
                    self._store(partial(self._draw, best, child.run_id, winner_key(number)))
                colour = COLOURS["best" if wins else "COMPLETE"]
                self._log(child.run_id, (), tags={"mlflow.runColor": colour})
                self._client.update_run(child.run_id, name=name)
                self._children[number] = child._replace(name=name)

    def _describe(self, ranked: Sequence[FrozenTrial]) -> None:
        """Let the description of the study's run say what won, with its picture and the leaders."""
        best, states = ranked[0], Counter(trial.state for trial in ranked)
        child = self._children[best.number]
        lines = [self._description.strip(), f"**Best {self._metric}: {best.values[0]:.4g}**, of trial {best.number}."]
        lines.append(", ".join(f"{count} {state.name.lower()}" for state, count in states.items()) + ".")
        if self._space is not None:
            picture = f"get-artifact?path=architecture.png&run_uuid={child.run_id}"
            lines.append(f"![the best architecture]({picture})")
        leaders = [trial for trial in ranked[:LEADERS] if self._counts(trial)]
        rows = [f"| {rank} | {trial.number} | {trial.values[0]:.4g} |" for rank, trial in enumerate(leaders, 1)]
        lines.append("\n".join([f"| rank | trial | {self._metric} |", "| --- | --- | --- |", *rows]))
        self._log(self._parent_id, (), tags={"mlflow.note.content": "\n\n".join(filter(None, lines))})

    def _counts(self, trial: FrozenTrial) -> bool:
        """Whether a trial can be the best."""
        return trial.state == TrialState.COMPLETE and all(excess <= 0 for excess in trial.constraints.values())

    def _ranked(self, study: optuna.Study) -> list[FrozenTrial]:
        """Return the finished trials, best first; those without a value or beyond a constraint come last."""

        def rank(trial: FrozenTrial) -> tuple[bool, float]:
            value = trial.values[0] if trial.values else inf
            return not self._counts(trial), -value if self._maximize and trial.values else value

        return sorted(finished_trials(study), key=rank)

    def _leaderboard(self, ranked: Sequence[FrozenTrial]) -> dict[str, Any]:
        """Return MLflow's form of a table (`log_table` would append to that of an earlier run)."""
        known = [shown_attributes(trial.user_attrs) for trial in ranked]
        attributes = sorted({name for known_of in known for name, value in known_of.items() if _is_number(name, value)})
        params = list(dict.fromkeys(name for trial in ranked for name in trial.params))
        columns = ["trial", self._metric, "state", "seconds", *attributes, *params]
        rows = [
            [
                trial.number,
                trial.values[0] if trial.values else None,
                trial.state.name,
                round(trial.duration.total_seconds(), 1) if trial.duration else None,
                *(known_of.get(name) for name in attributes),
                *(trial.params.get(name) for name in params),
            ]
            for trial, known_of in zip(ranked, known, strict=True)
        ]
        return {"columns": columns, "data": rows}

    def _write_curves(self, study: optuna.Study, numbers: set[int]) -> None:
        """Continue the study's curves, trial numbers as steps; a trial waits for those begun before it.

        So a curve of the best value never falls, though trials finish in any order.
        """
        horizon = min(list(self.running), default=inf)
        finished = finished_trials(study)
        seen = finished[: bisect_right(finished, horizon, key=attrgetter("number"))]
        if not self._curves.begins(seen):  # one that took its time has ended: its place is before others
            self._curves, self._unwritten = _StudyCurves(self._maximize), {}
        for n_seen in range(len(self._curves.numbers), len(seen)):
            trial = seen[n_seen]
            point = self._curves.add(trial, counts=self._counts(trial))
            if trial.number in self._steps:
                continue
            if has_attribute(trial.user_attrs, SURROGATE_SCORE) and n_seen + 1 >= TAU_FROM * self._n_tau:
                self._n_tau = n_seen + 1
                tau = guesses(seen[: n_seen + 1], study.directions[0]).correlation
                point |= {f"surrogate/kendall_tau{name}": getattr(tau, field) for name, field in TAU_CURVES}
            self._unwritten[trial.number] = Epoch(
                trial.number, trial.number, point, milliseconds(trial.datetime_complete)
            )
        points = [self._unwritten.pop(number) for number in sorted(numbers & self._unwritten.keys())]
        self._log(self._parent_id, [metric for point in points for metric in _points(point)])
        self._steps |= {point.step for point in points}
        if points:
            self._draw_study(study, seen, REDRAWN_FROM)

    def _draw_study(self, study: optuna.Study, trials: Sequence[FrozenTrial], growth: float) -> None:
        """Draw pictures of the study that show so many times more trials than the last time, and more."""

        def draw(name: str, n_trials: int, fewest: int, figure: Callable[[], Figure]) -> None:
            if n_trials >= fewest and n_trials > growth * self._drawn[name]:
                self._store(lambda: self._client.log_figure(self._parent_id, figure(), name))
                self._drawn[name] = n_trials

        direction = study.directions[0]
        found, curves = guesses(trials, direction), anytime_curves(trials, direction)
        draw(GUESSES, len(found.numbers), FEWEST_GUESSES, lambda: draw_guesses(found, self._metric))
        draw(ANYTIME, len(curves), 1, lambda: draw_anytime(curves))

    def _write_records(self, trials: Sequence[FrozenTrial]) -> None:
        """Show on the study's run how the models learned that its sampler trained."""
        for trial in trials:
            if trial.number in self._fits:
                continue
            for model, records in fit_records_of(trial).items():
                moment, group = milliseconds(trial.datetime_complete), model.lower()
                known = {point.step for point in self._history(self._parent_id, f"{group}/loss")}
                new = [(step, metrics) for step, metrics in records if step not in known]
                self._write_fit(model, [Epoch(step, step, metrics, moment) for step, metrics in new])
                points = [
                    Epoch(step, step, {f"{group}/{name}": value for name, value in metrics.items()}, moment)
                    for step, metrics in new
                ]
                self._log(self._parent_id, [metric for point in points for metric in _points(point)])
            self._fits.add(trial.number)
        self._write_distribution(trials)
        self._draw_masks(trials)

    def _write_fit(self, model: str, points: Sequence[Epoch]) -> None:
        """Continue the curves of a one-shot model on a run of its own below the study's; each point has a loss."""
        points = [point for point in points if "loss" in point.metrics]
        if not points:
            return
        if model not in self._fit_runs:
            if not (found := self._search(f"tags.`optuna_nas.kind` = 'fit' and tags.`optuna_nas.model` = '{model}'")):
                own = {"mlflow.parentRunId": self._parent_id, "optuna_nas.kind": "fit", "optuna_nas.model": model}
                tags = self._tags | own | self._source
                found = [self._client.create_run(self._experiment_id, points[0].time, tags, f"{model} fit")]
            self._fit_runs[model] = found[0].info.run_id
        run_id = self._fit_runs[model]
        known = {point.step for point in self._history(run_id, "loss")}
        self._log(run_id, [metric for point in points if point.step not in known for metric in _points(point)])

    def _draw_masks(self, trials: Sequence[FrozenTrial]) -> None:
        """Show on the study's run what the newest masks keep."""
        newest = max((known for trial in trials if (known := masks_of(trial))), key=itemgetter("step"), default=None)
        if newest is not None and newest["step"] > self._masks_step and self._space is not None:
            figure = partial(draw_masks, self._space, newest["kept"], newest["weights"])
            self._store(lambda: self._client.log_figure(self._parent_id, figure(), "masks.png"))
            self._masks_step = newest["step"]

    def _write_distribution(self, trials: Sequence[FrozenTrial]) -> None:
        """Show on the study's run how the sampler's distribution stood: curves, heat map, most likely cells."""
        found = {record.step: (record, trial) for trial in trials for record in records_of(trial)}
        self._records |= {step: record for step, (record, _) in found.items()}
        new = sorted(found.keys() - self._record_steps)
        if not new:
            return
        points = [
            Epoch(
                step,
                step,
                {f"distribution/{name}": value for name, value in found[step][0].metrics.items()},
                milliseconds(found[step][1].datetime_complete),
            )
            for step in new
        ]
        self._log(self._parent_id, [metric for point in points for metric in _points(point)])
        times = {step: milliseconds(found[step][1].datetime_complete) for step in new}
        self._write_fit(SNAS_MODEL, [Epoch(step, step, found[step][0].metrics, times[step]) for step in new])
        self._record_steps |= set(new)
        if self._space is None:
            return
        records = [self._records[step] for step in sorted(self._records)]
        for name, plot in (("distribution.png", plot_distribution), ("most_likely_cells.png", plot_most_likely)):
            self._store(partial(self._draw_distribution, plot, records, name))

    def _draw_distribution(
        self,
        plot: Callable[[Space, Sequence[DistributionRecord]], Figure],
        records: list[DistributionRecord],
        name: str,
    ) -> None:
        assert self._space is not None
        self._client.log_figure(self._parent_id, plot(self._space, records), name)

    def _save_view(self, study: optuna.Study) -> None:
        finished = finished_trials(study)
        attributes = {name for trial in finished for name in shown_attributes(trial.user_attrs)}
        self._scatter = next((name for name in SCATTER_ATTRIBUTES if name in attributes), self._scatter)
        view = comparison_view(
            self._metric,
            maximize=self._maximize,
            params=parallel_axes(finished, self._space),
            scatter=self._scatter,
            winner=next((winner_key(n) for n, child in self._children.items() if child.name.endswith(BEST)), ""),
            search_filter=study_filter(self._tags["optuna_nas.study_uid"]),
        )
        tag = f"mlflow.sharedViewState.{view_key(self._tags['optuna_nas.study_uid'])}"
        self._client.set_experiment_tag(self._experiment_id, tag, json.dumps(view))

    # -- MLflow ---------------------------------------------------------------------------------------------------

    def _history(self, run_id: str, metric: str) -> list[Metric]:
        return sorted(self._client.get_metric_history(run_id, metric), key=lambda point: point.timestamp)

    def _log(
        self,
        run_id: str,
        metrics: Sequence[Metric],
        params: Mapping[str, str] = _EMPTY,
        tags: Mapping[str, str] = _EMPTY,
    ) -> None:
        """Write all of it, in pieces as large as MLflow takes."""
        infinite = {f"infinite.{m.key}": f"{m.value} at step {m.step}" for m in metrics if isinf(m.value)}
        metrics = [metric for metric in metrics if not isinf(metric.value)]  # a database would hold 1.8e308
        all_params = [Param(key, _cut(value, LONGEST_PARAM)) for key, value in params.items()]
        all_tags = [RunTag(key, _cut(value, LONGEST_TAG)) for key, value in {**tags, **infinite}.items()]
        while metrics or all_params or all_tags:
            self._client.log_batch(run_id, metrics[:800], all_params[:100], all_tags[:100])
            metrics, all_params, all_tags = metrics[800:], all_params[100:], all_tags[100:]
            self.n_written += 1

    def _end(self, run_id: str, status: str, end: int) -> None:
        # `set_terminated` of a server's run prints its address; the store behind it does not.
        store = self._client._tracking_client.store
        store.update_run_info(run_id, RunStatus.from_string(status), end, None)


class _StudyCurves:
    """The curves of a study over trial numbers, trial after trial, at a cost that does not grow with the study.

    Pruning saves for a pruned trial what it lacks to the mean seconds of those that completed.
    """

    def __init__(self, maximize: bool) -> None:
        self.numbers: list[int] = []
        self._better = max if maximize else min
        self._best: float | None = None
        self._counts: Counter[TrialState] = Counter()
        names = ("seconds_saved", "gpu_seconds_saved")
        self._spent: dict[str, defaultdict[TrialState, float]] = {name: defaultdict(float) for name in names}

    def begins(self, trials: Sequence[FrozenTrial]) -> bool:
        """Tell whether the trials that were added are the first of these."""
        n_added = len(self.numbers)
        return n_added <= len(trials) and (not n_added or trials[n_added - 1].number == self.numbers[-1])

    def add(self, trial: FrozenTrial, *, counts: bool) -> dict[str, float]:
        """Add a finished trial, and return the curves' values at it; `counts` where it can be the best."""
        self.numbers.append(trial.number)
        self._counts[trial.state] += 1
        self._spent["seconds_saved"][trial.state] += spent_seconds(trial)
        self._spent["gpu_seconds_saved"][trial.state] += attribute(trial.user_attrs, GPU_SECONDS, 0)
        complete, pruned = (self._counts[state] for state in (TrialState.COMPLETE, TrialState.PRUNED))
        point = {"n_complete": complete, "n_pruned": pruned, "n_failed": self._counts[TrialState.FAIL]}
        values = {name: float(count) for name, count in point.items()} | {"pruned_share": pruned / len(self.numbers)}
        for name, spent in self._spent.items():
            mean = spent[TrialState.COMPLETE] / max(1, complete)
            if name == "seconds_saved" or mean:
                values[name] = max(0.0, mean * pruned - spent[TrialState.PRUNED])
        if counts:
            values["trial_value"] = trial.values[0]
            self._best = trial.values[0] if self._best is None else self._better(self._best, trial.values[0])
        return values if self._best is None else values | {"best_value": self._best}


def _points(epoch: Epoch) -> list[Metric]:
    return [Metric(key, float(value), epoch.time, epoch.step) for key, value in _keyed(epoch.metrics).items()]


def _param_texts(params: Mapping[str, object]) -> dict[str, str]:
    return {key: _text(value) for key, value in _keyed(params).items()}


def _keyed(values: Mapping[str, Any]) -> dict[str, Any]:
    keys = mlflow_keys(values)
    return {keys[name]: value for name, value in values.items()}


def _cut(text: str, longest: int) -> str:
    """Return what MLflow takes of a text, with a note where that is not all."""
    note = f" ... (cut; {len(text)} characters in Optuna)"
    return text if len(text) <= longest else text[: longest - len(note)] + note


def _text(value: object) -> str:
    return json.dumps(value, default=str) if isinstance(value, (dict, list, tuple)) else str(value)


def _is_number(name: str, value: object) -> bool:
    """Whether a user attribute is a metric: a number that is no bookkeeping of this package."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not name.startswith(PREFIX)


def _study_uid(study: optuna.Study) -> str:
    """Return what tells this study from one of the same name in another storage."""
    if UID_ATTRIBUTE not in study.user_attrs:
        study.set_user_attr(UID_ATTRIBUTE, uuid.uuid4().hex[:16])
    return str(study.user_attrs[UID_ATTRIBUTE])


def _silence() -> None:
    """Keep what MLflow, Alembic and urllib3 have to say in the tracker's thread out of the user's terminal."""
    logging.getLogger("urllib3.connectionpool").addFilter(_is_elsewhere)
    for handler in logging.getLogger("mlflow").handlers:
        handler.addFilter(_is_elsewhere)


def _is_elsewhere(record: logging.LogRecord) -> bool:
    return record.threadName != THREAD_NAME or not record.name.startswith(NOISY)

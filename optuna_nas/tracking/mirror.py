"""Mirror of a study in MLflow: order in which its runs are written, independent of threads."""

from __future__ import annotations

from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from optuna.study import StudyDirection

from optuna_nas.storage.attributes import UID_ATTRIBUTE, attribute, objective_names, user_attributes
from optuna_nas.storage.leaderboard import leaderboard
from optuna_nas.storage.secrets import without_password
from optuna_nas.tracking.client import Client, silence
from optuna_nas.tracking.fits import FitRuns
from optuna_nas.tracking.keys import unreadable_tag
from optuna_nas.tracking.pictures import StudyPictures
from optuna_nas.tracking.records import DEFAULT_EXPERIMENT, STATUSES, LocalTrials, finished_trials
from optuna_nas.tracking.runs import StudyRuns
from optuna_nas.tracking.study_run import StudyRun
from optuna_nas.tracking.trial_runs import TrialRuns
from optuna_nas.tracking.view import LOCAL_SERVER, page_url
from optuna_nas.tracking.winner import show_winner

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import optuna
    from optuna.trial import FrozenTrial

    from optuna_nas.space import Space
    from optuna_nas.tracking.parent import Parent
    from optuna_nas.tracking.records import DatasetInfo, Epoch, StartedTrial

_EMPTY: Mapping[str, Any] = MappingProxyType({})


class Mirror:
    """Mirror of a study in MLflow. All methods are idempotent: after a failure, they can be called again.

    All methods are called by one thread; only `local` is written by the threads of trials.

    Args:
        uri: Tracking URI of MLflow.
        experiment: Name of the experiment; None for that of the run around the search, or else the default.
        metric: Name of the first value.
        space: Search space that decodes parameters to architectures; None for no pictures.
        judged: Name of the task's metric, where the first value is the loss.
    """

    def __init__(
        self, uri: str, experiment: str | None, metric: str, space: Space | None, judged: str | None = None
    ) -> None:
        self.client, self.local = Client(uri), LocalTrials()
        self.view_url = ""
        self._experiment, self._metric, self._space = experiment, metric, space
        self._judged = judged or "metric"
        self._runs = StudyRuns(self.client, self.local)
        self._progress = (0, 0)  # trials that are done at the end of a search, and all of them

    def remaining(self, seconds: float) -> str:
        """Return a sentence that says how long it may take to write what MLflow lacks at the end of a search.

        Args:
            seconds: Seconds that it has taken so far.
        """
        n_done, n_all = self._progress
        text = f"MLflow is slow: {n_done} of {n_all} trials are complete there"
        if not n_all:
            text = "MLflow is slow: it still gets what the search noted meanwhile"
        if 0 < n_done < n_all:
            text += f", and the rest takes about {seconds / n_done * (n_all - n_done):,.0f} s"
        return f"{text}. Ctrl-C leaves it; the next start, or `optuna-nas mirror`, writes what is missing."

    def find_view(self, study: optuna.Study, local_server: str) -> str:
        """Return the URL of the comparison view of a study that was tracked before."""
        uid = str(attribute(user_attributes(study), UID_ATTRIBUTE, ""))
        experiment_id = None
        if uid and not self.client.is_new:
            self.client.check()
            with self.client.connections:
                experiment_id = self.client.experiment_of(self._experiment or DEFAULT_EXPERIMENT, uid)
        if experiment_id is None:
            raise ValueError(
                f"`study` must have been tracked at {without_password(self.client.uri)} but MLflow has no run of "
                f"{study.study_name!r}; run it with this tracker first."
            )
        return self._page_url(study, local_server, experiment_id, uid)

    def _page_url(self, study: optuna.Study, local_server: str, experiment_id: str, uid: str) -> str:
        maximize = study.directions[0] == StudyDirection.MAXIMIZE
        return page_url(self.client.uri, local_server, experiment_id, uid, self._metric, maximize=maximize)

    def open(
        self,
        study: optuna.Study,
        description: str,
        dataset: DatasetInfo | None,
        params: Mapping[str, object],
        tags: Mapping[str, str] = _EMPTY,
        parent: Parent | None = None,
    ) -> None:
        """Find or create the experiment and the study's run; called before anything else is written."""
        silence()
        run = self._runs.open(self._experiment, study, parent)
        self.view_url = self._page_url(study, LOCAL_SERVER, self._runs.experiment_id, self._runs.uid)
        direction = study.directions[0]
        names = objective_names(study)
        self._pictures = StudyPictures(self._runs, self._metric, direction, self._space)
        self._trials = TrialRuns(self._runs, self._metric, self._judged, names[1:], self._space)
        self._fits = FitRuns(self._runs, self._pictures)
        self._study = StudyRun(self._runs, self._metric, direction, self._space, self._pictures)
        self._study.describe(run, description, dataset, params, {**tags, **unreadable_tag(user_attributes(study))})
        self._study.save_view(study, self._trials.winner())

    def trial_started(self, started: StartedTrial, first: Epoch) -> None:
        """Create the run of a trial, with its parameters and first metrics."""
        self._trials.start(started, first)

    def run_id(self, number: int) -> str:
        """Return the id of the run of a trial that has started."""
        return self._runs.trial(number, self.local.running[number].start)

    def epochs(self, epochs: Sequence[Epoch]) -> None:
        """Add points to learning curves."""
        self._trials.add_epochs(epochs)

    def trial_finished(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Complete and end the run of a trial of this process, and extend the study's curves."""
        self._trials.write(trial)
        self._study.write_curves(study, set(self.local.finished))
        self._fits.write([trial])
        self._note_result(study, [trial])
        if self._study.shows_less_than(trial):
            self._study.save_view(study, self._trials.winner())

    def _note_result(self, study: optuna.Study, finished: Sequence[FrozenTrial]) -> None:
        """Begin the description with the result so far, where one of these trials is better than what it says."""
        if any(map(self._study.says_less_than, finished)):
            self._study.note_result(study, leaderboard(study, tuple(STATUSES)))

    def replay(
        self,
        study: optuna.Study,
        finished: Sequence[FrozenTrial],
        on_progress: Callable[[int], None] = lambda n_done: None,
    ) -> None:
        """Write what MLflow lacks of these trials, of any process.

        Args:
            study: Study of the trials.
            finished: Finished trials.
            on_progress: Callback with the number of trials that are done.
        """
        self._replay(study, finished, on_progress)
        self._note_result(study, finished)

    def _replay(self, study: optuna.Study, finished: Sequence[FrozenTrial], on_progress: Callable[[int], None]) -> None:
        """Write what MLflow lacks of these trials, but for the description."""
        self._runs.find_trials()
        self._study.find_curves()
        self._trials.replay(finished, on_progress)
        self._runs.find_trials()
        self._study.write_curves(study, {trial.number for trial in finished})
        self._fits.find()
        self._fits.write(finished)
        self._study.save_view(study, self._trials.winner())

    def forget(self) -> None:
        """Forget the runs of trials after a failure, so that they are read again."""
        self._runs.forget_trials()

    def close_worker(self, study: optuna.Study) -> None:
        """Write what MLflow lacks of the trials of this process, while other processes continue the study."""
        self._runs.find_trials()
        self._trials.write_local(finished_trials(study))
        self._study.write_curves(study, set(self.local.finished))

    def close(self, study: optuna.Study, status: str, network: str | None = None) -> None:
        """Write everything that MLflow lacks and the leaderboard, mark the best trial, and end the study's run.

        Args:
            study: Study.
            status: Status of its run.
            network: File of the best trial's network, None if there is none.
        """
        self._trials.kill_running()
        finished = finished_trials(study)

        def progressed(n_done: int) -> None:
            self._progress = (n_done, len(finished))

        progressed(0)
        self._replay(study, finished, progressed)
        self._pictures.draw(finished_trials(study), growth=1.0)
        rows = leaderboard(study, tuple(STATUSES))
        if rows and rows[0].can_win:
            self._trials.crown(rows[0].trial)
            self._study.note_result(study, rows, network, ended=status == "FINISHED")
            if network is not None:
                self.client.store(partial(show_winner, self._runs, study.study_name, rows[0].trial.number, network))
        self._fits.end("FINISHED" if status == "RUNNING" else status)
        self._study.save_view(study, self._trials.winner(), ended=status == "FINISHED")
        self._study.save_leaderboard(rows)
        self._study.end(status)

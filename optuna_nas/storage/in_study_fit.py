"""A one-shot model trained inside a study, in rounds that all workers share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from optuna_nas.storage.artifacts import folder_store
from optuna_nas.storage.attributes import write_fit_records
from optuna_nas.storage.finished import PicklesSettings
from optuna_nas.storage.model_rounds import Rounds, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from optuna import Study
    from optuna.trial import FrozenTrial

    from optuna_nas.data.splits import Data
    from optuna_nas.oneshot import OneShotModel
    from optuna_nas.storage.optuna_rdb import ArtifactStore

DEFAULT_TRIALS = 100
"""Trials over which a budget is spent where neither the user nor a search says how many there will be."""
FIT_FRACTION = 0.8
"""Share of a round that its display counts for the fit, where more than the model is made in a round."""

Content = TypeVar("Content")


class RoundContent(Protocol[Content]):
    """What a round publishes beside its model: a pool of candidates, a table of logits."""

    def make(self, study: Study, trial: FrozenTrial, number: int, before: Content | None) -> Content:
        """Return the content of a round, after the fit.

        Args:
            study: The study.
            trial: The trial that opens the round.
            number: Number of the round.
            before: Content of the newest round before it.
        """

    def save(self, content: Content, folder: Path) -> dict[str, Any]:
        """Write files into a folder; return JSON values."""

    def load(self, value: dict[str, Any], fetch: Callable[[str], Path]) -> Content:
        """Return the content of a round that another process may have published.

        Args:
            value: What `save` returned.
            fetch: Returns a local copy of a file that `save` has written.

        Raises:
            Unverified: It is damaged.
        """


class InStudyFit(PicklesSettings, Generic[Content]):
    """Train a one-shot model inside a study: one trial a round trains and publishes, all others take the newest.

    Every `trials_per_round` trials, the first of them trains the model for its share of the budget and publishes it:
    JSON among the attributes of its trial, weights in an artifact store. All other trials, in any process, load the
    newest snapshot that verifies and never wait. A round that was cut off goes on from its checkpoint; if its trial
    dies, another opens it.

    >>> import tempfile
    >>> import optuna
    >>> from optuna.artifacts import FileSystemArtifactStore
    >>> from optuna_nas import SNAS, InStudyFit, NetworkSpace, Skeleton, SNASRecipe, digits, nasbench201_space
    >>> space = nasbench201_space()
    >>> snas = SNAS(NetworkSpace(space, Skeleton(("cell",), 4, (1, 8, 8), 10)), SNASRecipe(relaxation="one_path"))
    >>> store = FileSystemArtifactStore(tempfile.mkdtemp())
    >>> fit = InStudyFit(snas, digits(), budget=0.2, n_trials=4, trials_per_round=2, artifact_store=store)
    >>> def objective(trial):
    ...     architecture = space.suggest(trial)
    ...     fit.before(trial.study, trial)  # trains in trials 0 and 2
    ...     return snas.score([architecture])[0]
    >>> study = optuna.create_study(direction="maximize")
    >>> study.optimize(objective, n_trials=3)
    >>> snas.fitted
    True

    Args:
        model: The model; None where a round has no model but only `content`.
        data: What it learns from; None for a model that is taken as it is.
        budget: Epochs of the training in all; given with `data`.
        n_trials: Trials over which the budget is spent; by default the total that a search tells (`prepare`), or 100.
        trials_per_round: Trials from one training to the next.
        artifact_store: Where snapshots are published, reachable by all workers; by default the search's, or the folder
            `runs/STUDY/artifacts`.
        device: `auto` (a GPU if there is one), or a torch device; data and model are moved there.
        name: Name in attributes, by default the model's.
        content: What a round publishes beside the model.
        passes_over: Tells whether a trial will open no round any more; by default, whether it has finished.
        write_records: Attaches the learning curve of a round to its trial; by default `write_fit_records`.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        model: OneShotModel[Any] | None,
        data: Data | None,
        budget: float | None,
        *,
        n_trials: int | None = None,
        trials_per_round: int = 10,
        artifact_store: ArtifactStore | None = None,
        device: str = "auto",
        name: str | None = None,
        content: RoundContent[Content] | None = None,
        passes_over: Callable[[FrozenTrial], bool] | None = None,
        write_records: Callable[[Study, FrozenTrial, Sequence[Any]], None] | None = None,
    ) -> None:
        if (data is None) != (budget is None) or (data is not None and model is None):
            raise ValueError("`model`, `data` and `budget` must be given together to train while the study runs.")
        if budget is not None and not budget > 0:
            raise ValueError(f"`budget` must be a positive number of epochs but got {budget}.")
        for argument, value in (("n_trials", n_trials), ("trials_per_round", trials_per_round)):
            if value is not None and value < 1:
                raise ValueError(f"`{argument}` must be at least 1 but got {value}.")
        if model is None and name is None:
            raise ValueError("`name` must be given where there is no model to take it from.")
        self.model, self.budget, self.trials_per_round, self.device = model, budget, trials_per_round, device
        self.name = name or (model.name if model is not None else "")
        self._data, self._given_trials, self._given_store = data, n_trials, artifact_store
        self._content, self._passes_over, self._write_records = content, passes_over, write_records
        super().__init__()

    def _init_state(self) -> None:
        super()._init_state()
        self._on_device: Data | None = None
        self.prepare()
        self._rounds: Rounds[Content] = Rounds(
            self.name, self.trials_per_round, self._store, self._passes_over or _is_finished, self._load
        )

    def prepare(
        self,
        folder: Path | None = None,
        on_progress: Callable[[float], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
        store: ArtifactStore | None = None,
        n_trials: int | None = None,
    ) -> None:
        """Take what a search knows. Without a call, no checkpoint is kept and nobody is told of progress.

        Args:
            folder: Where checkpoints go, and snapshots where no store is given.
            on_progress: Called with the share of the running round that is done, in [0, 1].
            should_stop: Asked after every training step; True interrupts the fit with a checkpoint.
            store: Where workers share files; a store given at the start comes first.
            n_trials: Total of the study's trials; a number given at the start comes first.
        """
        self._folder, self._on_progress, self._should_stop = folder, on_progress, should_stop
        self._told_store, self._told_trials = store, n_trials

    @property
    def trains(self) -> bool:
        """Whether the model is trained here, rather than taken as it is."""
        return self._data is not None

    @property
    def n_trials(self) -> int:
        """Trials over which the budget is spent."""
        return self._given_trials or self._told_trials or DEFAULT_TRIALS

    @property
    def n_rounds(self) -> int:
        """Rounds in which the budget is spent."""
        return -(-self.n_trials // self.trials_per_round)

    @property
    def file(self) -> str:
        """Name of the model's file among those of a snapshot."""
        return f"{self.name.lower()}.safetensors"

    def before(self, study: Study, trial: FrozenTrial) -> Snapshot[Content] | None:
        """Train and publish if the round is this trial's to open; bring the model to the newest snapshot.

        Call it before the model is asked about a trial; a second call for the same trial does nothing more.

        Args:
            study: The study.
            trial: The trial that runs.

        Returns:
            The newest snapshot that verifies, with the content loaded; None while there is none.

        Raises:
            TrainingStopped: `should_stop` of `prepare` said so.
        """
        newest = self.newest(study, trial.number)
        if newest is not None and newest.number == trial.number:
            return newest
        contents: list[Content] = []
        steps: list[int] = []  # of the snapshot that the training goes on from

        def make(number: int, earlier: Snapshot[Content] | None) -> None:
            steps.append(0 if earlier is None else earlier.step)
            self._fit(number)
            if self._content is not None:
                before = None if earlier is None else earlier.loaded
                contents.append(self._content.make(study, trial, number, before))
            self.report(1.0)

        def save(folder: Path) -> dict[str, Any]:
            value: dict[str, Any] = {"step": 0, "done": False}
            if self.model is not None:
                value = {"step": self.model.step, "done": self.model.fitted}
                if self.trains:
                    self._write(study, trial, [record for record in self.model.records if record.step > steps[0]])
                    self.model.save(folder / self.file)
            if self._content is not None:
                value |= self._content.save(contents[-1], folder)
            return value

        self._rounds.open(study, trial, make, save)
        return self.newest(study, trial.number)

    def newest(self, study: Study, number: int) -> Snapshot[Content] | None:
        """Bring the model to the newest snapshot of a trial up to `number`, and return it; None while there is none."""
        self.attach()
        return self._rounds.newest(study, number)

    def attach(self) -> None:
        """Move data and model to the device, once."""
        if self._on_device is None and self._data is not None and self.model is not None:
            from optuna_nas.training.device import choose_device, on_device  # torch: a report does without it

            data = on_device(self._data, choose_device(self.device))
            self.model.attach(data)
            self._on_device = data

    def report(self, share: float) -> None:
        """Tell whoever listens which share of the round is done, in [0, 1]."""
        if self._on_progress is not None:
            self._on_progress(share)

    def _fit(self, number: int) -> None:
        """Train up to the end of a round, from a checkpoint if an earlier attempt left one."""
        model, data = self.model, self._on_device
        if model is None or data is None or self.budget is None:
            return
        first, until = (model.share_after(rounds, self.n_rounds) for rounds in (number, number + 1))
        most = FIT_FRACTION if self._content is not None else 0.999

        def on_step(share: float) -> None:
            self.report(most * min(1.0, max(0.0, (share - first) / max(until - first, 1e-9))))

        model.fit(
            data,
            self.budget,
            until=until,
            on_step=None if self._on_progress is None else on_step,
            checkpoint=None if self._folder is None else self._folder / self.file,
            should_stop=self._should_stop,
        )

    def _write(self, study: Study, trial: FrozenTrial, records: Sequence[Any]) -> None:
        if self._write_records is not None:
            self._write_records(study, trial, records)
        elif records:
            write_fit_records(study, trial, self.name, [(record.step, record.metrics) for record in records])

    def _load(self, value: dict[str, Any], fetch: Callable[[str], Path]) -> Content:
        content = cast("Content", None) if self._content is None else self._content.load(value, fetch)
        if self.model is not None and self.trains and self.model.step < value["step"]:
            self.model.load(fetch(self.file))
        return content

    def _store(self, study: Study) -> ArtifactStore:
        store = self._given_store or self._told_store
        return store or folder_store((self._folder or Path("runs") / study.study_name) / "artifacts")


def _is_finished(trial: FrozenTrial) -> bool:
    return trial.state.is_finished()

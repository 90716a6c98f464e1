"""Training of a one-shot model during a study, in rounds that all workers share."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from optuna.exceptions import UpdateFinishedTrialError

from optuna_nas.storage.artifacts import folder_store
from optuna_nas.storage.attributes import GPU_SECONDS, MODEL_SECONDS, attribute, write_fit_records
from optuna_nas.storage.finished import PicklesSettings
from optuna_nas.storage.folder_names import folder_name
from optuna_nas.storage.identity import Home, home_of
from optuna_nas.storage.model_rounds import Rounds, Snapshot
from optuna_nas.storage.optuna_rdb import StorageError
from optuna_nas.storage.spending import Meter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from optuna import Study
    from optuna.trial import FrozenTrial

    from optuna_nas.data.splits import Data
    from optuna_nas.oneshot import OneShotModel
    from optuna_nas.storage.optuna_rdb import ArtifactStore

logger = logging.getLogger(__name__)

DEFAULT_TRIALS = 100
"""Number of trials over which a budget is spent if neither the user nor a search gives it."""
STORED_SECONDS = 5.0
"""Seconds between two notes of how long a model trains."""
FIT_FRACTION = 0.8
"""Fraction of a round's progress that counts for the training if the round also makes other content."""

Content = TypeVar("Content")


class RoundContent(Protocol[Content]):
    """Protocol of the content that a round publishes in addition to its model, such as a pool of candidates."""

    def make(self, study: Study, trial: FrozenTrial, number: int, before: Content | None) -> Content:
        """Return the content of a round, after its training.

        Args:
            study: Study of the trial.
            trial: Trial that leads the round.
            number: Number of the round, from 0.
            before: Content of the newest round before; None if there is none.
        """

    def save(self, content: Content, folder: Path) -> dict[str, Any]:
        """Write the files of the content into a folder, and return its JSON values."""

    def load(self, value: dict[str, Any], fetch: Callable[[str], Path]) -> Content:
        """Return the content of a round, which another process may have published.

        Args:
            value: Dictionary with the JSON values that `save` returned.
            fetch: Function that returns a local copy of a file of `save` by name.

        Raises:
            Unverified: The content is damaged.
        """


class InStudyFit(PicklesSettings, Generic[Content]):
    """Training of a one-shot model during a study, in rounds that all workers share.

    The first of every `trials_per_round` trials leads a round: it trains the model for its part of the budget and
    publishes a snapshot, with JSON in the attributes of the trial and weights in an artifact store. All other trials,
    in any process, load the newest verified snapshot without waiting. An interrupted round resumes from its checkpoint;
    if its trial dies, another trial leads the round.

    Args:
        model: Model to train; None if a round has only `content`.
        data: Training data; None to use the model without training.
        budget: Epochs of the training in all, larger than 0; given together with `data`.
        budget_seconds: Seconds of the training in all, larger than 0, to which the budget is lowered where it would
            take longer; None keeps it, whatever it takes.
        n_trials: Trials over which the budget is spent; by default the total of the search (see `prepare`), or 100.
        trials_per_round: Trials per training round, at least 1.
        artifact_store: Artifact store of the snapshots, reachable by all workers; by default that of the search, or the
            folder `runs/STUDY/artifacts`.
        device: Device of data and model: `auto` (a GPU if there is one), or a torch device.
        name: Name in attributes; by default that of the model.
        content: Further content of a round.
        passes_over: Function that returns whether a trial will not lead a round any more; by default, whether it has
            finished.
        write_records: Function that stores the learning curve of a round in its trial; by default `write_fit_records`.

    Raises:
        ValueError: An argument is out of range.

    Example:
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
    """

    def __init__(
        self,
        model: OneShotModel[Any] | None,
        data: Data | None,
        budget: float | None,
        *,
        budget_seconds: float | None = None,
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
            raise ValueError("`model`, `data` and `budget` must be given together to train during the study.")
        if budget is not None and not budget > 0:
            raise ValueError(f"`budget` must be a positive number of epochs but got {budget}.")
        if budget_seconds is not None and not budget_seconds > 0:
            raise ValueError(f"`budget_seconds` must be larger than 0 but got {budget_seconds}; None sets no limit.")
        for argument, value in (("n_trials", n_trials), ("trials_per_round", trials_per_round)):
            if value is not None and value < 1:
                raise ValueError(f"`{argument}` must be at least 1 but got {value}.")
        if model is None and name is None:
            raise ValueError("`name` must be given if `model` is None.")
        self.model, self.budget, self.trials_per_round, self.device = model, budget, trials_per_round, device
        self.budget_seconds = budget_seconds
        self.name = name or (model.name if model is not None else "")
        self._data, self._given_trials, self._given_store = data, n_trials, artifact_store
        self._content, self._passes_over, self._write_records = content, passes_over, write_records
        super().__init__()

    def _init_state(self) -> None:
        super()._init_state()
        self._on_device: Data | None = None
        self._round, self._last_doing = 0, f"{self.name} is made"
        self._home: Home | None = None  # study whose trials train the model
        self.prepare()
        self._rounds: Rounds[Content] = Rounds(
            self.name, self.trials_per_round, self._store, self._passes_over or _is_finished, self._load, self._is_done
        )

    def prepare(
        self,
        folder: Path | None = None,
        on_progress: Callable[[str, float], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
        store: ArtifactStore | None = None,
        n_trials: int | None = None,
    ) -> None:
        """Receive the settings of a search. Without this call, no checkpoints are written.

        Args:
            folder: Folder of checkpoints, and of snapshots if there is no artifact store.
            on_progress: Callback with what is done, in words, and its fraction of the running round, in [0, 1].
            should_stop: Callback after every training step; True interrupts the training with a checkpoint.
            store: Artifact store of the search; the constructor's takes precedence.
            n_trials: Total number of trials of the study; the constructor's takes precedence.
        """
        self._folder, self._on_progress, self._should_stop = folder, on_progress, should_stop
        self._search_store, self._search_trials = store, n_trials

    @property
    def trains(self) -> bool:
        """Whether the model is trained during the study."""
        return self._data is not None

    @property
    def n_trials(self) -> int:
        """Number of trials over which the budget is spent."""
        return self._given_trials or self._search_trials or DEFAULT_TRIALS

    @property
    def n_rounds(self) -> int:
        """Number of rounds in which the budget is spent."""
        return -(-self.n_trials // self.trials_per_round)

    @property
    def file(self) -> str:
        """Name of the model's file in a snapshot."""
        return f"{self.name.lower()}.safetensors"

    def before(self, study: Study, trial: FrozenTrial) -> Snapshot[Content] | None:
        """Train and publish the round if this trial leads one; load the newest snapshot into the model.

        Call it before the model is used for a trial. Further calls for the same trial have no effect.

        Args:
            study: Study of the trial.
            trial: Running trial.

        Returns:
            Newest verified snapshot with its loaded content; None if there is none.

        Raises:
            TrainingStopped: `should_stop` of `prepare` returned True.
        """
        newest = self.newest(study, trial.number)
        if newest is not None and newest.number == trial.number:
            return newest
        contents: list[Content] = []
        steps: list[int] = []  # training step of the snapshot that the round continues from

        def make(number: int, earlier: Snapshot[Content] | None) -> None:
            self._round = number
            steps.append(0 if earlier is None else earlier.step)
            meter = self._meter(study, trial)
            try:
                self._fit(number, meter)
                if self._content is not None:
                    before = None if earlier is None else earlier.loaded
                    contents.append(self._content.make(study, trial, number, before))
            finally:
                with suppress(*StorageError, UpdateFinishedTrialError):  # its own error says more
                    meter.store()
            self.report(1.0, self._last_doing)

        def save(folder: Path) -> dict[str, Any]:
            value: dict[str, Any] = {"step": 0, "done": False}
            if self.model is not None:
                value = {"step": self.model.step, "done": self.model.fitted, **self._limits()}
                if self.trains:
                    self._write(study, trial, [record for record in self.model.records if record.step > steps[0]])
                    self.model.save(folder / self.file)
            if self._content is not None:
                value |= self._content.save(contents[-1], folder)
            return value

        is_last = trial.number // self.trials_per_round >= self.n_rounds - 1
        self._rounds.open(study, trial, make, save, is_last)
        return self.newest(study, trial.number)

    def newest(self, study: Study, number: int) -> Snapshot[Content] | None:
        """Load the newest snapshot of trials up to `number` into the model and return it; None if there is none."""
        self.attach()
        self._check_home(study)
        return self._rounds.newest(study, number)

    def _check_home(self, study: Study) -> None:
        """Log one warning if trials of two studies train the same model."""
        if self.model is None or not self.trains or (home := home_of(study)) == self._home:
            return
        if self._home is not None and self.model.step > 0:
            logger.warning(
                "The %s that study %r trains has learned in study %r, which counts here, too; give each study a model "
                "and a sampler or pruner of its own.",
                self.name,
                home.name,
                self._home.name,
            )
        self._home = home

    def attach(self) -> None:
        """Move data and model to the device, once."""
        if self._on_device is None and self._data is not None and self.model is not None:
            from optuna_nas.training.device import choose_device, on_device  # imports torch, which reports do not need

            data = on_device(self._data, choose_device(self.device))
            self.model.attach(data)
            self._on_device = data

    def fit_alone(self, on_step: Callable[[float], None], should_stop: Callable[[], bool]) -> None:
        """Train the model as the rounds of a study do, but all at once and without one, such as to time its steps.

        Args:
            on_step: Callback after every step with the share of the budget that is done.
            should_stop: Callback after every step; True interrupts the training.

        Raises:
            TrainingStopped: `should_stop` returned True.
            ValueError: There is no training.
        """
        self.attach()
        if self.model is None or self._on_device is None or self.budget is None:
            raise ValueError("`data` must be given to train during the study but are not; `trains` tells.")
        self.model.fit(self._on_device, self.budget, on_step=on_step, should_stop=should_stop)

    def report(self, share: float, doing: str) -> None:
        """Report what is done, and the fraction of the round in [0, 1], to the listener of the search."""
        self._last_doing = doing
        if self._on_progress is not None:
            rounds = f", round {self._round + 1} of {self.n_rounds}" if self.n_rounds > 1 else ""
            self._on_progress(doing + rounds, share)

    def _meter(self, study: Study, trial: FrozenTrial) -> Meter:
        gpus = 0.0
        if self._on_device is not None:
            from optuna_nas.training.device import gpu_share

            gpus = gpu_share(self._on_device.device)
        write = partial(study._storage.set_trial_user_attr, trial._trial_id)
        return Meter(MODEL_SECONDS, gpus, attribute(trial.user_attrs, GPU_SECONDS, 0.0), write)

    def _fit(self, number: int, meter: Meter) -> None:
        """Train to the end of a round, from the checkpoint of an earlier attempt if there is one."""
        model, data = self.model, self._on_device
        if model is None or data is None or self.budget is None:
            return
        first, until = (model.share_after(rounds, self.n_rounds) for rounds in (number, number + 1))
        checkpoint = None if self._folder is None else self._folder / self.file
        if checkpoint is not None:
            from optuna_nas.training.checkpoints import set_aside_if_damaged

            set_aside_if_damaged(checkpoint)  # the model is that of the newest snapshot
        fit_fraction = FIT_FRACTION if self._content is not None else 0.999

        def on_step(share: float) -> None:
            meter.store(after=STORED_SECONDS)
            done = min(1.0, max(0.0, (share - first) / max(until - first, 1e-9)))
            self.report(fit_fraction * done, f"{self.name} trains")

        model.fit(
            data,
            self.budget,
            until=until,
            seconds=self.budget_seconds,
            on_step=on_step,
            checkpoint=checkpoint,
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

    def _limits(self) -> dict[str, float | None]:
        """Return what limits the training, as a snapshot notes it."""
        return {"budget": self.budget, "budget_seconds": self.budget_seconds}

    def _is_done(self, value: dict[str, Any]) -> bool:
        """Return whether a round was the last one, also for the budget and seconds of now; None is no limit."""
        for name, limit in self._limits().items():
            if isinstance(noted := value.get(name, limit), int | float) and (limit is None or limit > noted):
                return False
        return bool(value["done"])

    def _store(self, study: Study) -> ArtifactStore:
        store = self._given_store or self._search_store
        return store or folder_store((self._folder or Path("runs") / folder_name(study.study_name)) / "artifacts")


def _is_finished(trial: FrozenTrial) -> bool:
    return trial.state.is_finished()

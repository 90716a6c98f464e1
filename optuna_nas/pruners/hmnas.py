"""Prune architectures whose ops and edges are removed by learned masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optuna_nas.pruners.base import QuantilePruner
from optuna_nas.storage.attributes import MASKS, SURVIVAL, write_json
from optuna_nas.storage.in_study_fit import InStudyFit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from optuna import Study
    from optuna.pruners import BasePruner
    from optuna.trial import FrozenTrial

    from optuna_nas.data.splits import Data
    from optuna_nas.oneshot.hmnas.model import HMNAS
    from optuna_nas.space import Architecture
    from optuna_nas.storage.optuna_rdb import ArtifactStore

MAX_NAMED = 3
"""Largest number of edges or ops that a reason names."""
ENDURANCE = "endurance"
SCORES = (ENDURANCE, "survival")


class HMNASPruner(QuantilePruner):
    """Pruner of architectures that survive the masks of an `HMNAS` less than random ones, before their training.

    The score of an architecture is the threshold of the masks up to which it survives (`HMNAS.endurance`), or the
    fraction that survives at the threshold of the recipe (`HMNAS.survival`), which is informative only if the masks
    remove many ops. The paper (Yan et al. 2019) prunes a network; pruning of trials by its masks is a rule of this
    package. The reason in the trial names removed edges, or else removed ops, or else the ops with the weakest masks.

    With `data`, the model is trained during the study. The first trial trains the supernet; the first of every
    `trials_per_round` trials refines the masks and publishes them. All other trials, in any process, use the newest
    published masks.

    Pruning is disabled while scores do not rank finished trials significantly; see `SurrogatePruner`. Where it was
    measured (BENCHMARKS.md), scores ranked cells at a tau of about 0.2, which takes some 200 finished trials to be told
    from chance: in a study of 60 trials it stopped nothing. HM-NAS makes small networks; to save trials, use another.

    Args:
        model: Model with the search space of the trials.
        data: Data to train the model on during the study; not needed for a fitted model.
        budget: Epochs of that training in all, larger than 0.
        budget_seconds: Seconds of that training, larger than 0, to which `budget` is lowered where it would take
            longer. None keeps it, so that what is learned does not depend on the clock.
        n_trials: Trials over which the masks are refined; by default the total of the search, or 100.
        trials_per_round: Trials per training round, at least 1.
        artifact_store: Artifact store of the rounds, reachable by all workers; by default the folder
            `runs/STUDY/artifacts`.
        by: Score: `endurance` or `survival`.
        quantile: Quantile of the scores of random architectures below which trials are pruned, in (0, 1).
        n_random: Number of random architectures for the quantile, at least 10; each of the first trials scores 100.
        exempt: Fraction of flagged trials that are trained anyway, to check the predictions, in (0, 1].
        n_startup_trials: Number of finished trials before the first one is pruned, at least 5.
        pruner: Pruner that judges the learning curve of trials that pass; by default Optuna's median pruner.
        device: Device of the training: `auto` (a GPU if there is one), or a torch device.
        seed: Seed of the random architectures and of the choice of exempt trials.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> import optuna
        >>> from optuna_nas import HMNAS, HMNASPruner, NetworkSpace, Skeleton, hmnas_space
        >>> skeleton = Skeleton(("normal", "reduction"), 4, (1, 8, 8), 10, affine=False)
        >>> space = NetworkSpace(hmnas_space(), skeleton)
        >>> pruner = HMNASPruner(HMNAS(space), quantile=0.25, n_startup_trials=20)
        >>> study = optuna.create_study(direction="maximize", pruner=pruner)
        >>> trial = study.ask()
        >>> architecture = space.suggest(trial)
        >>> trial.should_prune()  # all trials pass until the model is fitted
        False
    """

    name = "hmnas"

    def __init__(
        self,
        model: HMNAS,
        *,
        data: Data | None = None,
        budget: float | None = None,
        budget_seconds: float | None = None,
        n_trials: int | None = None,
        trials_per_round: int = 10,
        artifact_store: ArtifactStore | None = None,
        by: str = ENDURANCE,
        quantile: float = 0.25,
        n_random: int = 1000,
        pruner: BasePruner | None = None,
        exempt: float = 0.05,
        n_startup_trials: int = 15,
        device: str = "auto",
        seed: int = 0,
    ) -> None:
        if by not in SCORES:
            raise ValueError(f"`by` must be one of {SCORES} but got {by!r}.")
        self.model, self._by = model, by
        self._data, self._budget, self._budget_seconds, self._device = data, budget, budget_seconds, device
        self._n_trials, self._trials_per_round, self._given_store = n_trials, trials_per_round, artifact_store
        super().__init__(model.space, pruner, quantile, n_random, exempt, n_startup_trials, seed)

    @property
    def meaning(self) -> str:
        return "mean share of mask thresholds survived" if self._by == ENDURANCE else "share that survives the masks"

    def _scores(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        if self._by == ENDURANCE:
            return self.model.endurance(architectures)
        return np.array([survival.share for survival in self.model.survivals(architectures)])

    def _step(self) -> int:
        return self.model.step

    def _can_score(self) -> bool:
        return self.model.masking and (self._data is not None or self.model.fitted)

    # -- rounds of training ---------------------------------------------------------------------------------------

    def _init_state(self) -> None:
        super()._init_state()
        self._shown_step = -1  # training step of the masks that were stored last
        fit: InStudyFit[None] = InStudyFit(
            self.model,
            self._data,
            self._budget,
            budget_seconds=self._budget_seconds,
            n_trials=self._n_trials,
            trials_per_round=self._trials_per_round,
            artifact_store=self._given_store,
            device=self._device,
        )
        self.in_study_fit = fit if fit.trains else None

    def prepare(
        self,
        folder: Path | None = None,
        on_progress: Callable[[str, float], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
        store: ArtifactStore | None = None,
        n_trials: int | None = None,
    ) -> None:
        """Receive the settings of a search; see `InStudyFit.prepare`."""
        if self.in_study_fit is not None:
            self.in_study_fit.prepare(folder, on_progress, should_stop, store, n_trials)

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        if not trial.intermediate_values and self._is_ours(trial):
            if self.in_study_fit is not None:
                self.in_study_fit.before(study, trial)
            if self._can_score():
                self._show(study, trial)
        return super().prune(study, trial)

    def _show(self, study: Study, trial: FrozenTrial) -> None:
        """Store the survival in a trial, and the masks in the first trial that they judge, for their picture."""
        architecture = self.space.decode(trial.params)
        share = round(self.model.survival(architecture).share, 6)
        study._storage.set_trial_user_attr(trial._trial_id, SURVIVAL, share)
        with self._lock:
            step, shown = self.model.step, self._shown_step
            self._shown_step = step
        if shown != step:
            weights = {path: float(f"{weight:.4g}") for path, weight in self.model.edge_weights.items()}
            write_json(study, trial, MASKS, {"step": step, "kept": self.model.kept(), "weights": weights})

    def _flags(self, study: Study, trial: FrozenTrial, score: float) -> str | None:
        reason = super()._flags(study, trial, score)
        if reason is None:
            return None
        architecture = self.space.decode(trial.params)
        edges, ops = self.model.cut(architecture)
        if edges:
            level, names = "edges removed", edges
        elif ops:
            level, names = "ops removed", [f"{op} at {path}" for path, op in ops]
        else:
            level, names = (
                "weakest ops",
                [f"{op} at {path}" for path, op in self.model.weakest(architecture)[:MAX_NAMED]],
            )
        shown = ", ".join(names[:MAX_NAMED]) + (f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else "")
        share = self.model.survival(architecture).share
        return f"the masks keep {share:.0%} of it ({level}: {shown}); {reason}"

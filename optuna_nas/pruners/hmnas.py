"""Stops trials whose architecture lives on what learned masks have cut."""

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
"""Edges or ops that a reason names."""
ENDURANCE = "endurance"
SCORES = (ENDURANCE, "survival")


class HMNASPruner(QuantilePruner):
    """Stops trials of which the masks of a fitted `HMNAS` keep less than of random ones, before their first step.

    The score of an architecture is how long it survives while the threshold of the masks rises
    (`HMNAS.endurance`), or the share that survives at the recipe's threshold (`HMNAS.survival`), which says something
    only where masks cut a good deal. The paper (Yan et al. 2019) prunes a network, not trials; this rule is ours. The
    reason on the trial names what was cut, edges first, then ops; or else what is the next to fall.

    With `data`, the model learns while the study goes on: the first trial trains the supernet, every `trials_per_round`
    trials one refines the masks and publishes them, and all others, in any process, judge by the newest they can see.

    Args:
        model: The model; of the space that trials choose from.
        data: Data to train the model on while the study runs; not needed if it is fitted.
        budget: Epochs of that training in all.
        n_trials: Trials over which the masks are refined; by default the total of the search, or 100.
        trials_per_round: Trials from one round to the next.
        artifact_store: Where snapshots go, reachable by all workers; by default the folder `runs/STUDY/artifacts`.
        by: `endurance` or `survival`.
        quantile: Share of random architectures below whose score a trial is stopped, in (0, 1).
        n_random: Random architectures that are judged to know that quantile.
        exempt: Share of flagged trials that train anyway, so that it can be known who was right.
        n_startup_trials: Finished trials before the first is stopped.
        pruner: Decides on the learning curve of trials that pass; by default Optuna's median pruner.
        device: Where the model is trained: `auto` (a GPU if there is one), or a torch device.
        seed: Seed of the random architectures and of the choice of exempt trials.

    Raises:
        ValueError: An argument is out of range.
    """

    name = "hmnas"

    def __init__(
        self,
        model: HMNAS,
        *,
        data: Data | None = None,
        budget: float | None = None,
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
        self._data, self._budget, self._device = data, budget, device
        self._n_trials, self._trials_per_round, self._given_store = n_trials, trials_per_round, artifact_store
        super().__init__(model.space, pruner, quantile, n_random, exempt, n_startup_trials, seed)

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
        self._shown_step = -1  # step of the masks that a trial shows
        fit: InStudyFit[None] = InStudyFit(
            self.model,
            self._data,
            self._budget,
            n_trials=self._n_trials,
            trials_per_round=self._trials_per_round,
            artifact_store=self._given_store,
            device=self._device,
        )
        self.in_study_fit = fit if fit.trains else None

    def prepare(
        self,
        folder: Path | None = None,
        on_progress: Callable[[float], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
        store: ArtifactStore | None = None,
        n_trials: int | None = None,
    ) -> None:
        """Take what a search knows; see `InStudyFit.prepare`."""
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
        """Attach the masks to the first trial that they judge, for their picture."""
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
            level, names = "edges cut", edges
        elif ops:
            level, names = "ops cut", [f"{op} at {path}" for path, op in ops]
        else:
            level, names = (
                "next to fall",
                [f"{op} at {path}" for path, op in self.model.weakest(architecture)[:MAX_NAMED]],
            )
        shown = ", ".join(names[:MAX_NAMED]) + (f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else "")
        share = self.model.survival(architecture).share
        return f"the masks keep {share:.0%} of it ({level}: {shown}); {reason}"

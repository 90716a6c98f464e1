"""Stops trials whose architecture lives on what learned masks have cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.pruners import MedianPruner

from optuna_nas.pruners.base import QuantilePruner
from optuna_nas.storage.attributes import MASKS, SURVIVAL, write_fit_records, write_json
from optuna_nas.storage.model_rounds import Rounds, Snapshot, TrainsInRounds

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

FILE = "hmnas.safetensors"
SHOWN = 3
"""Edges or ops that a reason names."""
ENDURANCE = "endurance"
SCORES = (ENDURANCE, "survival")


class HMNASPruner(TrainsInRounds, QuantilePruner):
    """Stops trials of which the masks of a fitted `HMNAS` keep less than of random ones, before their first step.

    What is guessed of an architecture is how long it survives while the threshold of the masks rises
    (`HMNAS.endurance`), or the share that survives at the recipe's threshold (`HMNAS.survival`), which says something
    only where masks cut a good deal. The paper (Yan et al. 2019) prunes a network, not trials; this rule is ours. The
    reason on the trial names what was cut, edges first, then ops; or else what is the next to fall.

    With `data`, the model learns while the study goes on: the first trial trains the supernet, every `trials_per_round`
    trials one refines the masks and publishes them, and all others, in any process, judge by the newest they can see.

    Args:
        hmnas: The model; of the space that trials choose from.
        pruner: Decides on the learning curve of what passes; by default Optuna's median pruner.
        data: Images to train the HMNAS on while the study runs; not needed if it is fitted.
        budget: Epochs of that training in all.
        trials: Number of trials over which the masks are refined.
        trials_per_round: Trials between two rounds.
        artifact_store: Where snapshots go, reachable by all workers; by default the folder `runs/STUDY/artifacts`.
        by: `endurance` or `survival`.
        quantile: Share of random architectures below whose guess a trial is stopped, in (0, 1).
        n_random: Random architectures that are judged to know that quantile.
        exempt: Share of flagged trials that train anyway, so that it can be known who was right.
        n_startup_trials: Finished trials before the first is stopped.
        seed: Seed of the random architectures and of the choice of exempt trials.

    Raises:
        ValueError: An argument is out of range.
    """

    name = "hmnas"

    def __init__(
        self,
        hmnas: HMNAS,
        pruner: BasePruner | None = None,
        *,
        data: Data | None = None,
        budget: float | None = None,
        trials: int = 100,
        trials_per_round: int = 10,
        artifact_store: ArtifactStore | None = None,
        by: str = ENDURANCE,
        quantile: float = 0.25,
        n_random: int = 1000,
        exempt: float = 0.05,
        n_startup_trials: int = 15,
        seed: int = 0,
    ) -> None:
        if (data is None) != (budget is None):
            raise ValueError("`data` and `budget` must be given together, to train the HMNAS while the study runs.")
        if budget is not None and not budget > 0:
            raise ValueError(f"`budget` must be a positive number of epochs but got {budget}.")
        for name, value in (("trials", trials), ("trials_per_round", trials_per_round)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1 but got {value}.")
        if by not in SCORES:
            raise ValueError(f"`by` must be one of {SCORES} but got {by!r}.")
        self.hmnas, self._by = hmnas, by
        self._data, self._budget, self._given_store = data, budget, artifact_store
        self._n_rounds, self._trials_per_round = -(-trials // trials_per_round), trials_per_round
        super().__init__(hmnas.space, pruner or MedianPruner(), quantile, n_random, exempt, n_startup_trials, seed)

    def _scores(self, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
        if self._by == ENDURANCE:
            return self.hmnas.endurance(architectures)
        return np.array([survival.share for survival in self.hmnas.survivals(architectures)])

    def _step(self) -> int:
        return self.hmnas.step

    def _can_guess(self) -> bool:
        return self.hmnas.masking and (self._data is not None or self.hmnas.fitted)

    # -- rounds of training ---------------------------------------------------------------------------------------

    def _init_state(self) -> None:
        super()._init_state()
        self._attached = False
        self._told = -1  # step of the masks that a trial has told of
        self._rounds: Rounds[int] = Rounds(
            "HMNAS", self._trials_per_round, self._given_store, _is_over, self._load, self
        )

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        if self._data is not None and not trial.intermediate_values and self._is_ours(trial):
            self._learn(study, trial)
        if not trial.intermediate_values and self._is_ours(trial) and self._can_guess():
            self._tell(study, trial)
        return super().prune(study, trial)

    def _tell(self, study: Study, trial: FrozenTrial) -> None:
        """Attach the masks to the first trial that they judge, for their picture."""
        architecture = self.space.decode(trial.params)
        share = round(self.hmnas.survival(architecture).share, 6)
        study._storage.set_trial_user_attr(trial._trial_id, SURVIVAL, share)
        with self._lock:
            step, told = self.hmnas.step, self._told
            self._told = step
        if told != step:
            weights = {path: float(f"{weight:.4g}") for path, weight in self.hmnas.edge_weights.items()}
            write_json(study, trial, MASKS, {"step": step, "kept": self.hmnas.kept(), "weights": weights})

    def _learn(self, study: Study, trial: FrozenTrial) -> None:
        """Train and publish if the round is this trial's to open; take the newest snapshot."""
        hmnas, data, budget = self.hmnas, self._data, self._budget
        assert data is not None
        assert budget is not None
        if not self._attached:
            hmnas.attach(data)
            self._attached = True
        newest = self._rounds.newest(study, trial.number)
        if newest is not None and newest.number == trial.number:
            return  # asked before
        before: list[int] = []

        def fit(number: int, _: Snapshot[int] | None) -> None:
            before.append(hmnas.step)
            # The first round trains the supernet; all of them share the masks.
            first = 1 - hmnas.recipe.mask_fraction
            start = 0.0 if number == 0 else first + (1 - first) * number / self._n_rounds
            until = min(1.0, first + (1 - first) * (number + 1) / self._n_rounds)
            on_progress = self._on_progress
            hmnas.fit(
                data,
                budget,
                until=until,
                on_step=None
                if on_progress is None
                else lambda share: on_progress(min(0.999, max(0.0, (share - start) / max(until - start, 1e-9)))),
                checkpoint=None if self._folder is None else self._folder / FILE,
                should_stop=self._should_stop,
            )

        def save(folder: Path) -> dict[str, Any]:
            records = [(record.step, record.metrics) for record in hmnas.records if record.step > before[0]]
            write_fit_records(study, trial, hmnas.name, records)
            hmnas.save(folder / FILE)
            return {"step": hmnas.step, "done": hmnas.fitted}

        self._rounds.open(study, trial, fit, save)
        self._rounds.newest(study, trial.number)

    def _load(self, value: dict[str, Any], fetch: Callable[[str], Path]) -> int:
        if self.hmnas.step < value["step"]:
            self.hmnas.load(fetch(FILE))
        return int(value["step"])

    def _flags(self, study: Study, trial: FrozenTrial, guess: float) -> str | None:
        reason = super()._flags(study, trial, guess)
        if reason is None:
            return None
        architecture = self.space.decode(trial.params)
        edges, ops = self.hmnas.cut(architecture)
        if edges:
            level, names = "edges cut", edges
        elif ops:
            level, names = "ops cut", [f"{op} at {path}" for path, op in ops]
        else:
            level, names = "next to fall", [f"{op} at {path}" for path, op in self.hmnas.weakest(architecture)[:SHOWN]]
        shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        share = self.hmnas.survival(architecture).share
        return f"the masks keep {share:.0%} of it ({level}: {shown}); {reason}"


def _is_over(trial: FrozenTrial) -> bool:
    """A trial that has ended opens no round any more."""
    return trial.state.is_finished()
